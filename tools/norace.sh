#!/usr/bin/env bash
# Runs, without the race detector, the packages that keep tests out of it:
# those with a file that carries a "!race" build constraint (memory budgets,
# allocation counts, timing). The arguments are passed on to go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mapfile -t dirs < <(grep -rlE --include='*_test.go' '^//go:build .*!race' . | xargs -r -n1 dirname | sort -u)
[ ${#dirs[@]} -gt 0 ] || exit 0
echo "without the race detector: ${dirs[*]}"
exec go test -timeout 15m "$@" "${dirs[@]}"
