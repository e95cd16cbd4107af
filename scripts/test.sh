#!/usr/bin/env bash
# Everything that can be tested on this machine. What it needs and may install, it installs; what is missing after that is left out
# and said at the end. Environment: KUMQUAT_NO_INSTALL=1 installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
need_go
export CGO_ENABLED=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# Packages by package manager for: a C compiler (the race detector, and SPIN's generated checkers), g++, SPIN, shellcheck.
install_tools() {
	local missing=() x
	for x in gcc g++ spin shellcheck; do have "$x" || missing+=("$x"); done
	if [ ${#missing[@]} -eq 0 ]; then
		echo "all there: gcc, g++, spin, shellcheck"
		return 0
	fi
	echo "missing: ${missing[*]}"
	if ! may_install; then
		echo "nothing is installed: that needs root, or sudo without a password, and KUMQUAT_NO_INSTALL not set"
		return 0
	fi
	# One package that does not exist must not keep the others away, so each is asked for by itself.
	if have apt-get; then
		DEBIAN_FRONTEND=noninteractive as_root timeout 300 apt-get update -q </dev/null >"$logs/install" 2>&1 || true
	fi
	for x in "${missing[@]}"; do
		if have apt-get; then
			as_root env DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -q --no-install-recommends "$x" </dev/null >>"$logs/install" 2>&1 || true
		elif have dnf; then
			case $x in g++) x=gcc-c++ ;; shellcheck) x=ShellCheck ;; esac
			as_root timeout 600 dnf install -y -q "$x" </dev/null >>"$logs/install" 2>&1 || true
		elif have zypper; then
			case $x in g++) x=gcc-c++ ;; shellcheck) x=ShellCheck ;; esac
			as_root timeout 600 zypper -n -q install "$x" </dev/null >>"$logs/install" 2>&1 || true
		elif have pacman; then
			case $x in g++) x=gcc ;; esac
			as_root timeout 600 pacman -S --noconfirm --needed "$x" </dev/null >>"$logs/install" 2>&1 || true
		elif have apk; then
			as_root timeout 600 apk add -q "$x" musl-dev </dev/null >>"$logs/install" 2>&1 || true
		else
			echo "no package manager known here: apt-get, dnf, zypper, pacman, apk"
			return 0
		fi
	done
	for x in "${missing[@]}"; do
		if have "$x"; then echo "installed: $x"; else echo "not installed: $x"; fi
	done
}

build() { go build ./...; }

vet() { go vet ./...; }

# Modules of their own, which ./... does not see: the program that draws, and gRPC over rpc.
nested=(bench/plot rpc/grpcrpc)

# nested_module DIR: vet, staticcheck and test it.
nested_module() {
	local rc=0
	cd "$1"
	if go vet ./... && { [ -z "$staticcheck" ] || "$staticcheck" ./...; }; then
		go_test "${1//\//-}" -count=1 ./... || rc=$?
	else
		rc=1
	fi
	cd "$OLDPWD"
	return "$rc"
}

# go_test LOG ARG…: go test, showing one line a package, the tests that took a second or more, those that fail, and the lines that
# tests print to be read (those with a word and "summary:"). What tests skipped goes to the closing list. The whole output is shown
# where a package fails.
go_test() {
	local log=$logs/$1 rc
	shift
	{
		rc=0
		go test -v "$@" || rc=$?
		echo "$rc" >"$log.rc"
	} 2>&1 | tee "$log" | grep --line-buffered -aE '^(ok|FAIL|--- FAIL|panic:)|^ +--- FAIL|^--- PASS: [^ ]+ \([1-9][0-9]*\.|[a-z-]+ summary:' || true
	rc=$(cat "$log.rc")
	# The reason of a skip is the last line that the test logged. Those that begin with "needs" or "no" are for want of something;
	# of the others (a driver that declares that it cannot, -short) only the number is told.
	while IFS=$'\t' read -r why names; do skip "$why" "$names"; done < <(awk '
		/^=== (RUN|NAME|CONT) / { test = $3 }
		/^ *[a-z0-9_]+\.go:[0-9]+: / { why[test] = $0; sub(/^.*\.go:[0-9]+: /, "", why[test]) }
		/^ *--- SKIP: / {
			r = why[$3] == "" ? "skipped without a reason" : why[$3]
			if (r ~ /^(needs|no) /) names[r] = names[r] " " $3; else others++
		}
		END {
			for (r in names) print r "\t" substr(names[r], 2)
			if (others > 0) print "for reasons of their own, not listed\t" others " tests"
		}' "$log" | sort)
	[ "$rc" -eq 0 ] || show_failed "$log"
	return "$rc"
}

# show_failed LOG: what the failed tests wrote, and what belongs to no test: errors of the compiler, panics, timeouts.
show_failed() {
	printf '\nthe output of what failed:\n'
	awk '
		/^=== (RUN|NAME|CONT) / { test = $3; next }
		/^=== / { next }
		/^panic: |^fatal error: |^SIG[A-Z]+: / { loose = 80 }
		/^ *--- FAIL: / { failed[++n] = $3; next }
		/^ *--- / { next }
		/^(ok|FAIL|PASS|\?)/ { test = ""; next }
		loose > 0 || test == "" { loose--; print; next }
		{ if (++lines[test] <= 100) out[test] = out[test] $0 "\n" }
		END { for (i = 1; i <= n; i++) printf "--- %s\n%s", failed[i], out[failed[i]] }' "$1" | head -n 600
}

# The packages run one after the other: some of them measure times, and kill and stop processes on a machine of perhaps two cores.
tests() { go_test tests -count=1 -p 1 -timeout 20m ./...; }

# The race detector sees the memory of one process and nothing of the mapping, so the long tests of many processes gain nothing
# from it: -short leaves them out. -skip leaves out those that measure speed or take very long under it. A process ends a second
# later under the detector unless it is told not to wait, and many are started.
race() {
	CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 go_test race -race -short -count=1 -timeout 15m \
		-skip '^(TestLinesThroughput|TestSplitStream)$' ./...
}

# The engine built so that a test can stop it before every access to a shared word: a client dies or is stopped at each step, and
# random schedules. `make steps` takes more of them.
steps() {
	go vet -tags kumquat_step ./shm &&
		go_test steps -tags kumquat_step -count=1 -timeout 10m -run '^(TestEveryStep|TestEveryStepTwice|TestSchedules)$' ./shm
}

# The command itself, on this folder, as a newcomer runs it.
tour() {
	go build -o "$logs/kumquat" ./cmd/kumquat && "$logs/kumquat" tour .
}

model() { docs/model/check.sh --quick; }

step "what the tests need" install_tools
step "build" build || closing
step "vet" vet || true
step "gofmt" lint_format || true
if have shellcheck; then
	step "shellcheck" lint_shell || true
else
	skip "shellcheck" "it is not installed"
fi
staticcheck="" # its program; empty: not there
if tool_builds staticcheck; then
	step "staticcheck" tool staticcheck ./... || true
	staticcheck=$(tool -n staticcheck)
else
	skip "staticcheck" "it could not be built; its modules come from the Go module proxy"
fi
step "tests" tests || true
for dir in "${nested[@]}"; do
	if go -C "$dir" mod download >/dev/null 2>&1; then
		step "the module $dir" nested_module "$dir" || true
	else
		skip "the module $dir" "its modules could not be had; they come from the Go module proxy"
	fi
done
step "the engine step by step" steps || true
step "tour of this folder" tour || true
if have gcc; then
	step "tests with the race detector" race || true
else
	skip "race detector" "it needs gcc"
fi
have g++ || skip "C++ peers" "they need g++"
if ! have spin; then
	skip "model" "it needs spin"
elif ! have gcc; then
	skip "model" "it needs gcc"
else
	step "model, the short runs" model || true
fi
[ "$(id -u)" -eq 0 ] || skip "tests with two users or a file system of their own" "they need root"
closing
