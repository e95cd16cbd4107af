#!/usr/bin/env bash
# gofmt, go vet, staticcheck, shellcheck, govulncheck. Environment: KUMQUAT_VULNDB, a vulnerability database for govulncheck as a URL.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh
need_go
export CGO_ENABLED=0

# The database as a Go module, for machines that reach the module proxy and not the database itself. It is of the day of its version.
vulndb=golang.org/x/vulndb@v0.0.0-20261105234957-e22db6528018

# offline_db: print the folder of a database built from that module, building it once (a minute or two).
offline_db() {
	local cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/kumquat/vulndb-${vulndb##*-} src
	if [ ! -s "$cache/index/modules.json" ]; then
		src=$(go mod download -json "$vulndb" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
		[ -n "$src" ] || return 1
		echo "building the offline database, once" >&2
		mkdir -p "$(dirname "$cache")"
		rm -rf "$cache.new" && mkdir "$cache.new"
		go run "${vulndb/@//cmd/indexdb@}" -vulns "$src/data/osv" -out "$cache.new" >&2 || return 1
		rm -rf "$cache" && mv "$cache.new" "$cache"
	fi
	# An empty database finds nothing and says so with success: a module that is known to be in it is the control.
	grep -q '"golang.org/x/text"' "$cache/index/modules.json" || return 1
	printf '%s\n' "$cache"
}

# vulnerable: fails if code of a third party that is reached from here is known to be vulnerable. What is found in the standard
# library, which a newer Go mends, and what is not reached is printed only.
vulnerable() {
	local out db=${KUMQUAT_VULNDB:-}
	out=$(mktemp)
	# shellcheck disable=SC2064 # the name is fixed now
	trap "rm -f '$out'" RETURN
	if [ -z "$db" ] && ! tool govulncheck -format json ./... >"$out" 2>"$out.err"; then
		if ! grep -q 'fetching vulnerabilities' "$out.err"; then
			cat "$out.err"
			rm -f "$out.err"
			return 1
		fi
		db=file://$(offline_db) || {
			rm -f "$out.err"
			skip "govulncheck" "its database is not reached, and the offline one could not be built"
			return 0
		}
	fi
	rm -f "$out.err"
	if [ -n "$db" ]; then
		echo "database: $db"
		tool govulncheck -db "$db" -format json ./... >"$out"
	fi
	go -C tools run ./vulngate <"$out"
}

# Modules of their own, which the library's does not see: the program that draws, gRPC over rpc.
vet() { go vet ./... && go -C bench/plot vet ./... && go -C rpc/grpcrpc vet ./...; }

# go tool looks for the module of the folder that it runs in, so the path of the tool is asked for here.
static() {
	local program
	tool staticcheck ./... && program=$(tool -n staticcheck) && (cd bench/plot && "$program" ./...) && (cd rpc/grpcrpc && "$program" ./...)
}

step "gofmt" lint_format || true
step "vet" vet || true
step "tools" go -C tools test ./... || true
if tool_builds staticcheck; then
	step "staticcheck" static || true
else
	skip "staticcheck" "it could not be built; its modules come from the Go module proxy"
fi
if have shellcheck; then
	step "shellcheck" lint_shell || true
else
	skip "shellcheck" "it is not installed"
fi
if tool_builds govulncheck; then
	step "govulncheck" vulnerable || true
else
	skip "govulncheck" "it could not be built; its modules come from the Go module proxy"
fi
closing
