#!/usr/bin/env bash
# Runs all tests. The race detector runs on every package that starts goroutines, or
# uses one that does; where there is none it would find nothing, and takes ten times
# as long. Without it run the others, and those packages that keep tests out of it:
# with a file that carries a "!race" build constraint (memory budgets, allocation
# counts, the long walks). The arguments are passed on to go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

holding() { # dirs of Go files that have such a line, as packages
	grep -rlE "$@" . | xargs -r -n1 dirname | sort -u | sed "s,^\.,$module,"
}
module=$(go list -m)
goroutines=$(holding --include='*.go' '^\s*go (func\b|[A-Za-z_.]+\()|\.Go\(|\.Parallel\(\)')
norace=$(holding --include='*_test.go' '^//go:build .*!race')

all=$(go list ./... | sort)
race=$(go list -test -f '{{.ImportPath}} {{join .Deps " "}}' ./... | awk -v starts="$goroutines" '
	BEGIN { split(starts, a, "\n"); for (i in a) has[a[i]] = 1 }
	{ p = $1; sub(/(\.|_)test$/, "", p); for (i = 1; i <= NF; i++) if (p in has || $i in has) { print p; next } }' | sort -u)
mapfile -t plain < <(sort -u <(comm -23 <(echo "$all") <(echo "$race")) <(comm -12 <(echo "$all") <(echo "$norace")))
[ -n "$race" ] && [ ${#plain[@]} -gt 0 ] || { echo "tools/test.sh: expected packages of both kinds" >&2; exit 1; }

# shellcheck disable=SC2086 # a word is a package
go test -race -timeout 25m "$@" $race
echo "without the race detector:"
exec go test -timeout 15m "$@" "${plain[@]}"
