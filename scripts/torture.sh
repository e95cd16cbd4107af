#!/usr/bin/env bash
# What is too long for make test, about an hour on two cores. Environment, with what each is without it:
#   KUMQUAT_TORTURE_SIGNALS (10000)   SIGKILLs and SIGSTOPs of real processes, every message accounted for
#   KUMQUAT_LINEAR_ROUNDS (5000)      histories of real processes, checked for linearizability
#   KUMQUAT_SCHEDULES (2000000)       random and PCT schedules of the engine's steps, with deaths and stops
#   KUMQUAT_DIFFER_PROGRAMS (22000)   random programs on the kernel's queues and on the engine
# KUMQUAT_ONLY=regexp chooses some of: processes, histories, schedules, programs.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
need_go
export CGO_ENABLED=0
export KUMQUAT_TORTURE_SIGNALS=${KUMQUAT_TORTURE_SIGNALS:-10000}
export KUMQUAT_LINEAR_ROUNDS=${KUMQUAT_LINEAR_ROUNDS:-5000}
export KUMQUAT_SCHEDULES=${KUMQUAT_SCHEDULES:-2000000}
export KUMQUAT_DIFFER_PROGRAMS=${KUMQUAT_DIFFER_PROGRAMS:-22000}

# part NAME ARG…: one of the parts, if it is chosen.
part() {
	local name=$1
	shift
	if [[ $name =~ ${KUMQUAT_ONLY:-.} ]]; then
		step "$name" go test -count=1 -timeout 0 -v "$@" || true
	fi
}

part processes -run '^TestTorture$' ./torture
part histories -run '^TestHistories$' ./linear
part schedules -tags kumquat_step -run '^TestSchedules$' ./shm
part programs -run '^TestPrograms$' ./differ
closing
