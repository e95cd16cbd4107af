# The targets are thin: what they do stands in scripts/, one file each.

.DEFAULT_GOAL := help
.PHONY: help test lint fuzz model steps torture bench plots clean

help: ## print this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | while IFS='	' read -r t d; do printf 'make %-8s %s\n' "$$t" "$$d"; done

test: ## install what the tests need where that is allowed, then run all of them; ends with a list of what was skipped
	@scripts/test.sh

lint: ## gofmt, go vet, staticcheck, shellcheck, govulncheck
	@scripts/lint.sh

fuzz: ## run every fuzz function for FUZZTIME (60s); FUZZ=regexp chooses some
	@scripts/fuzz.sh

model: ## check the protocol's models with SPIN
	@docs/model/check.sh

steps: ## let clients of the engine die and stop at every step, and pairs of them; random schedules (KUMQUAT_SCHEDULES)
	@CGO_ENABLED=0 KUMQUAT_STRIDE=$${KUMQUAT_STRIDE:-1} go test -tags kumquat_step -count=1 -timeout 0 -run '^(TestEveryStep|TestEveryStepTwice|TestSchedules)$$' -v ./shm

torture: ## an hour of killing, stopping, schedules, histories and programs (see scripts/torture.sh)
	@scripts/torture.sh

bench: ## measure all that the queue has to reach, on a quiet machine: a table, bench/results.txt, bench/plots (see scripts/bench.sh)
	@scripts/bench.sh

plots: ## make that table and those drawings again from bench/results.txt
	@scripts/bench.sh --again

clean: ## remove what the targets leave in this folder
	@rm -rf bin dist coverage.out
