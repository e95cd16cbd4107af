#!/usr/bin/env bash
# Runs every fuzz function of every package for FUZZTIME each. Environment: FUZZTIME (60s), FUZZ, a regular expression that chooses
# some by name. What is found is kept in testdata/fuzz of the package: commit it with the mend.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
need_go
export CGO_ENABLED=0
time=${FUZZTIME:-60s}
pattern=${FUZZ:-.}
n=0
# Only packages whose tests name one are compiled to be asked for their list.
while IFS= read -r dir; do
	while IFS= read -r f; do
		n=$((n + 1))
		step "$f in $dir for $time" go test -run '^$' -fuzz "^$f\$" -fuzztime "$time" -fuzzminimizetime 1s "$dir" || true
	done < <(go test -list '^Fuzz' "$dir" | grep '^Fuzz' | grep -E "$pattern" || true)
done < <(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u)
if [ "$n" -eq 0 ]; then
	echo "no fuzz function matches $pattern" >&2
	exit 1
fi
closing
