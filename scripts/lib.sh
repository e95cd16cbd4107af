# Sourced by the scripts of this folder: steps with their times, and the list of what was left out. Not to be run.
# shellcheck shell=bash

started=$SECONDS
steps=()   # "seconds name"
failed=()  # names
skipped=() # "what: why"

# In a folder that belongs to another user git refuses to tell the version, and go build with it.
export GOFLAGS="${GOFLAGS:+$GOFLAGS }-buildvcs=false"

# skip WHAT WHY: remember what could not be done here.
skip() { skipped+=("$1: $2"); }

# step NAME COMMAND…: run a command under a heading, with its time. A failure is remembered, and the script goes on.
step() {
	local name=$1 from=$SECONDS rc=0
	shift
	printf '\n== %s\n' "$name"
	"$@" || rc=$?
	local took=$((SECONDS - from))
	steps+=("$took $name")
	if [ "$rc" -ne 0 ]; then
		failed+=("$name")
		printf -- '-- %s: FAILED (exit %d) after %d s\n' "$name" "$rc" "$took"
	else
		printf -- '-- %s: done in %d s\n' "$name" "$took"
	fi
	return "$rc"
}

# closing: print what was done and what was not, and exit.
closing() {
	local s
	printf '\n== summary: %d s\n' "$((SECONDS - started))"
	for s in "${steps[@]}"; do printf '%6d s  %s\n' "${s%% *}" "${s#* }"; done
	if [ ${#skipped[@]} -gt 0 ]; then
		printf '\nskipped for want of something:\n'
		printf '  %s\n' "${skipped[@]}"
	else
		printf '\nskipped: nothing\n'
	fi
	if [ ${#failed[@]} -gt 0 ]; then
		printf '\nFAILED:\n'
		printf '  %s\n' "${failed[@]}"
		exit 1
	fi
	printf '\nall passed\n'
	exit 0
}

have() { command -v "$1" >/dev/null 2>&1; }

# need_go: say what is missing instead of failing at some later place.
need_go() {
	if ! have go; then
		echo "go is not in the PATH: install Go 1.26 or newer (https://go.dev/dl), then run this again" >&2
		exit 1
	fi
	if ! go version >/dev/null; then
		echo "this Go does not work with the go.mod of this folder, which asks for Go 1.26 or newer" >&2
		exit 1
	fi
}

# as_root COMMAND…: run it as root if that is possible without a password.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	else
		sudo -n "$@"
	fi
}

may_install() {
	[ -z "${KUMQUAT_NO_INSTALL:-}" ] || return 1
	[ "$(id -u)" -eq 0 ] || { have sudo && sudo -n true 2>/dev/null; }
}

# lint_format, lint_shell, lint_static: the parts of the lint that `make test` runs too.
lint_format() {
	local bad
	bad=$(gofmt -l .) || return 1
	[ -z "$bad" ] || {
		printf 'not as gofmt has it:\n%s\n' "$bad"
		return 1
	}
}

# Switches for SPIN are kept in variables and split on purpose, so what is only "info" is not asked for.
lint_shell() { find . -path ./.git -prune -o \( -name '*.sh' -o -path './.ci/run' \) -type f -print0 | xargs -0 shellcheck -x --severity=warning; }

# tool NAME ARG…: run a tool of tools/go.mod, whose versions are not those of the library's module.
tool() { CGO_ENABLED=0 go tool -modfile=tools/go.mod "$@"; }

tool_builds() { tool "$1" -version >/dev/null 2>&1; }
