#!/usr/bin/env bash
# Measure everything that the queue has to reach, row by row (bench/table): the raw lines go into bench/results.txt under their command
# lines, with the machine and the date; the table is printed and the drawings in bench/plots are made. It takes some ten minutes on
# a machine that does nothing else. With --again nothing is measured: table and drawings are made of bench/results.txt as it is.
# Environment: KUMQUAT_BENCH_ROUNDS (5), KUMQUAT_BENCH_TARGET (300ms, the least duration of a round of one subject),
# KUMQUAT_BENCH_ONLY (a regular expression: only rows whose command line it fits; their lines go into bin/results.txt, and nothing is drawn).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
need_go
export CGO_ENABLED=0

again=()
case ${1:-} in
"") ;;
--again) again=(-again) ;;
*)
	echo "usage: scripts/bench.sh [--again]" >&2
	exit 2
	;;
esac

programs=$(mktemp -d)
trap 'rm -rf "$programs"' EXIT
go build -o "$programs/" ./cmd/kumquat ./bench/table
plots=(-plots bench/plots)
# The program that draws has modules of its own; it is found beside the table.
if ! go -C bench/plot build -o "$programs/" ./kumquat-plot; then
	echo "no drawings are made: kumquat-plot could not be built; its modules come from the Go module proxy" >&2
	plots=()
fi
have g++ || echo "boost and zmq are not measured without g++, libboost-dev and libzmq3-dev" >&2

results=bench/results.txt
if [ -n "${KUMQUAT_BENCH_ONLY:-}" ] && [ ${#again[@]} -eq 0 ]; then
	mkdir -p bin
	results=bin/results.txt
	plots=()
fi
revision=$(git --no-optional-locks describe --always --dirty 2>/dev/null || true)
# Not by exec: the trap removes the programs. SIGINT reaches the child as well, which ends its own children.
"$programs/table" -kumquat "$programs/kumquat" -results "$results" -revision "$revision" -rounds "${KUMQUAT_BENCH_ROUNDS:-5}" \
	-target "${KUMQUAT_BENCH_TARGET:-300ms}" -only "${KUMQUAT_BENCH_ONLY:-}" "${plots[@]}" "${again[@]}"
