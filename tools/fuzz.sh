#!/usr/bin/env bash
# Runs every fuzz target of the module, one after the other, for the time
# given (default 10s each). Minimizing what is merely interesting is kept short:
# it would take most of that time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

time=${1:-10s}
failed=0
while read -r package; do
  while read -r target; do
    echo "== $package $target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 200x "$package" </dev/null || failed=1
  done < <(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true)
done < <(go list ./...)
exit $failed
