#!/bin/sh
# Checks the models with SPIN: every run of the rules as built must be free of errors, every run of a weakened rule must fail.
#
#   check.sh            all runs            (some 10 minutes alone on a machine, at most 3 GiB)
#   check.sh --quick    the small ones      (half a minute alone on a machine)
#   check.sh PATTERN    those whose name matches the shell pattern
#
# A line for each: verdict, name, states, seconds, what it shows.  Exit code: 0 all as it should be, 1 not, 77 spin or gcc is missing.
set -u
here=$(cd "$(dirname "$0")" && pwd)
quick= only='*' opt=-O2
case ${1-} in
--quick) quick=1 opt=-O1 ;; # most of its time is gcc's
'') ;;
-*) echo "usage: check.sh [--quick | PATTERN]" >&2; exit 2 ;;
*) only=$1 ;;
esac
for tool in spin gcc; do
	command -v $tool >/dev/null 2>&1 || { echo "model: skipped: $tool is not installed (apt install spin gcc)"; exit 77; }
done
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
bad=0 runs=0 began=$(date +%s)

# run LEVEL KIND NAME SHOWS MODEL SWITCHES…    LEVEL: q = in the quick set too; KIND: sound, or weak = must fail
run() {
	level=$1 kind=$2 name=$3 shows=$4 model=$5
	shift 5
	[ -z "$quick" ] || [ "$level" = q ] || return 0
	case $name in $only) ;; *) return 0 ;; esac
	runs=$((runs + 1)) start=$(date +%s)
	rm -f "$work"/*
	verdict=FAILED why=
	if ! (cd "$work" && spin -a "$@" "$here/$model.pml") >"$work/log" 2>&1; then
		why="spin: $(tail -n 1 "$work/log")"
	elif ! (cd "$work" && gcc $opt -w -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -DMEMLIM=6000 -o pan pan.c) >"$work/log" 2>&1; then
		why="gcc: $(head -n 1 "$work/log")"
	else
		(cd "$work" && timeout 900 ./pan -E -m1000000) >"$work/log" 2>&1
		errors=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' "$work/log")
		if [ $kind = weak ]; then
			if [ "${errors:-0}" -gt 0 ] && grep -q 'assertion violated' "$work/log"; then verdict=caught; else why="the weakened rule was not caught"; fi
		elif [ "${errors:-1}" = 0 ] && ! grep -q -e 'Search not completed' -e 'max search depth' "$work/log"; then
			verdict=ok
		else
			why=$(grep -m 1 -e 'pan:1:' -e 'max search depth' -e 'out of memory' "$work/log" || echo "did not finish")
		fi
	fi
	states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$work/log" | head -n 1)
	printf '%-6s  %-22s %9s states %4d s  %s\n' "$verdict" "$name" "${states:--}" $(($(date +%s) - start)) "$shows"
	[ -z "$why" ] || { echo "        $why; spin -a $* $model.pml"; bad=$((bad + 1)); }
}

# ---- queue.pml: send, receive, takeover, the alert word, evidence ----
two="-DNA=4 -DNC=2"
run q sound alert-small     "one takeover of a live holder at any moment, 2 messages" queue $two -DOPS=1 -DM0=1 -DM1=1 -DMAXTO=1
run q sound alert-nested    "takeover inside a takeover" queue $two -DOPS=1 -DM0=1 -DM1=1 -DMAXTO=2
run f sound alert-many      "no takeover, capacity 3" queue -DNA=2 -DNC=2 -DOPS=2 -DM0=2 -DM1=1 -DMAXTO=0 -DMAX=3 -DN=4
four="-DNA=2 -DNC=2 -DOPS=2 -DM0=3 -DM1=1 -DMAXTO=0 -DMAX=4 -DN=4 -DPRIOS=596"
run f sound alert-four      "no takeover, 4 messages" queue $four
run f sound alert-three     "3 receivers, one takeover" queue -DNA=4 -DNC=3 -DOPS=1 -DM0=1 -DM1=1 -DMAXTO=1
run f sound alert-death     "a death of anybody at any step, and a takeover" queue $two -DOPS=1 -DM0=1 -DM1=1 -DMAXTO=1 -DDEATHS=1
run f sound alert-fine      "every access a step of its own, nested takeovers" queue -DFINE $two -DOPS=1 -DM0=1 -DM1=1 -DMAXTO=2
run f sound alert-fine3     "every access a step of its own, 3 messages" queue -DFINE $two -DOPS=1 -DM0=2 -DM1=1 -DMAXTO=1
run f sound alert-large     "2 receives each, 3 messages, one takeover" queue $two -DOPS=2 -DM0=2 -DM1=1 -DMAXTO=1
run f sound alert-takelate  "the taker's full write of cur may come as late as its first look" queue $two -DOPS=1 -DM0=2 -DM1=1 -DMAXTO=1 -DM_TAKELATE
three="$two -DOPS=2 -DM0=2 -DM1=1 -DMAXTO=1"
run f weak  no-epoch        "cur without an epoch" queue $three -DM_NOEPOCH
run f weak  no-take         "a taker that does not write cur" queue $three -DM_NOTAKE
run f weak  epoch-late      "a taker that writes only its epoch, after the rebuild read head" queue $three -DM_EPOCHLATE
run f weak  clear-after     "alert cleared after head is read" queue $four -DM_CLEARAFTER
run q weak  lower-after     "priority lowered after head is read" queue $four -DM_LOWERAFTER
run f weak  cur-early       "a producer that reads cur before its CAS of head" queue $four -DM_CUREARLY
run f weak  no-evidence     "tag 0 adopted without evidence" queue $three -DM_NOEVIDENCE
run f weak  no-retag        "a scan that adopts without a new tag" queue $three -DM_NORETAG

# ---- queue.pml: eviction, purge, expiry collection ----
evict="-DEVICT -DNOALERT -DNC=2 -DOPS=1"
run f sound evict-oldest    "DropOldest at capacity 1, one takeover" queue $evict -DNA=4 -DM0=2 -DM1=1 -DMAXTO=1 -DMAX=1
run f sound evict-direct    "the same, freed without TAKEN" queue $evict -DDIRECT -DNA=4 -DM0=2 -DM1=1 -DMAXTO=1 -DMAX=1
run f sound evict-lowest    "DropLowest at capacity 1, one takeover" queue $evict -DDROPLOWEST -DNA=4 -DM0=2 -DM1=1 -DMAXTO=1 -DMAX=1
run f sound evict-alert     "DropOldest beside the alert rule, 4 messages" queue -DEVICT -DNC=2 -DOPS=1 -DNA=3 -DM0=2 -DM1=2 -DMAXTO=0 -DN=4 -DPRIOS=596
run f sound lowest-alert    "DropLowest beside the alert rule, 4 messages" queue -DEVICT -DDROPLOWEST -DNC=2 -DOPS=1 -DNA=3 -DM0=2 -DM1=2 -DMAXTO=0 -DN=4 -DPRIOS=596
run f sound evict-death     "DropOldest and a death" queue $evict -DNA=4 -DM0=1 -DM1=2 -DMAXTO=0 -DDEATHS=1 -DMAX=1
run q sound evict-delayed   "DropOldest with a delayed message" queue -DEVICT -DDELAYED=2 -DNC=2 -DOPS=1 -DNA=3 -DM0=2 -DM1=1 -DMAXTO=0
refuse="$evict -DDROPLOWEST -DDELAYED=2 -DNA=3 -DM0=2 -DM1=1 -DMAXTO=1 -DMAX=1 -DN=2 -DPRIOS=180"
run f sound lowest-delayed  "DropLowest with a delayed message, one takeover" queue $refuse
run f weak  refuse-early    "a refusal by DropLowest without a verify" queue $refuse -DM_NOVERIFYREFUSE
run q weak  evict-unasked   "a sender that evicts without looking again, under the lock, whether it is full" queue $evict -DNA=3 -DM0=2 -DM1=1 -DMAXTO=0 -DM_NORECHECK
run f sound purge           "purge, one takeover" queue $two -DROLE3=PURGE -DOPS=1 -DM0=2 -DM1=1 -DMAXTO=1
run f sound collect         "purge of some (expired ones), one takeover" queue $two -DROLE3=PURGE -DTYPES=10 -DOPS=1 -DM0=2 -DM1=1 -DMAXTO=1
run f sound purge-delayed   "purge of delayed ones too" queue $two -DROLE3=PURGE -DDELAYED=2 -DOPS=1 -DM0=2 -DM1=1 -DMAXTO=1

# ---- queue.pml: filters and delay ----
filter="$two -DROLE3=FILTER -DTYPES=10 -DOPS=2 -DM0=2 -DM1=1 -DMAXTO=1 -DMAX=3"
run f sound filter          "a filtered receiver beside a plain one, one takeover" queue $filter
run f sound filter-four     "the same with 4 messages, no takeover" queue -DROLE3=FILTER -DTYPES=14 -DNC=2 -DOPS=2 -DM0=3 -DM1=1 -DMAXTO=0 -DNA=3 -DMAX=4 -DN=4 -DPRIOS=596
run f weak  filter-early    "a filtered receive that says empty without a verify" queue $filter -DM_NOVERIFYEMPTY
run f sound delay           "a delayed message, 2 receives each" queue -DDELAYED=2 -DNC=2 -DOPS=2 -DM0=2 -DM1=1 -DMAXTO=0 -DNA=3 -DMAX=3
run f sound delay-takeover  "a delayed message and a takeover" queue $two -DDELAYED=2 -DOPS=1 -DM0=2 -DM1=1 -DMAXTO=1
run f sound delay-death     "a delayed message, a takeover and a death" queue $two -DDELAYED=2 -DOPS=1 -DM0=1 -DM1=1 -DMAXTO=1 -DDEATHS=1

# ---- participants.pml ----
run f sound numbers         "3 handles on 2 entries, one killed" participants -DNH=3
run f sound numbers-take    "the same and a takeover of a live holder" participants -DNH=3 -DMAXTO=1
run f sound numbers-stop    "one killed and one stopped for ever, also while it reclaims" participants -DNH=3 -DSTOPS=1 -DSENDS=3 -DRECVS=4
run f sound numbers-one     "3 handles on a single entry, two killed" participants -DNH=3 -DNE=1 -DKILLS=2 -DSENDS=7 -DRECVS=7
run q weak  no-entry-lock   "reclaim without the entry's lock" participants -DNH=3 -DKILLS=2 -DM_NOENTRYLOCK
run q weak  unproved        "reclaim that does not ask for evidence" participants -DNH=3 -DKILLS=2 -DM_NOEVIDENCE
run f weak  undecided-free  "reclaim of what is between drained and head" participants -DNH=3 -DKILLS=2 -DM_UNDECIDEDFREE
run f weak  any-writer      "reclaim that does not compare the slot's writer" participants -DNH=3 -DKILLS=2 -DM_NOWRITER
run f weak  ledger-late     "ledger written after the CAS" participants -DNH=3 -DKILLS=2 -DM_LEDGERLATE

# ---- wake.pml ----
mixed="-DSPECIAL=2 -DPICKY=2"
run q sound wake            "3 plain sleepers, 4 messages, no slices" wake -DNS=3 -DNM=2
run f sound wake-mixed      "2 plain and a special one" wake -DNS=3 -DNM=2 -DSPECIAL=4 -DPICKY=2
run f sound wake-mixed2     "a plain and 2 special ones" wake -DNS=3 -DNM=2 -DSPECIAL=6 -DPICKY=2
run f sound wake-fifo       "without the second look, if the kernel wakes in order of arrival" wake -DNS=3 -DNM=2 -DSPECIAL=4 -DPICKY=2 -DM_NOSECONDLOOK -DFIFO
run f sound wake-deaths     "two deaths of sleepers or wakers, with slices" wake -DNM=2 -DDEATHS=2 -DSLICES
run f sound wake-deaths3    "the same, mixed" wake -DNS=3 -DDEATHS=2 -DSLICES -DSPECIAL=4 -DPICKY=2
run f weak  no-slices       "a death without slices" wake -DNM=2 -DDEATHS=1
run f weak  look-first      "a look before announcing, none after" wake -DNM=2 -DM_LOOKFIRST
run f weak  quiet-arrival   "an arrival that does not change the word" wake -DNM=2 -DM_QUIETARRIVAL
run f weak  word-first      "a waker that reads the word before its commit" wake -DNM=2 -DM_WORDFIRST
run f weak  no-change       "a waker that does not change the word" wake -DNM=2 $mixed -DM_NOCHANGE
run f weak  clear-always    "plain bit cleared though somebody was woken" wake -DNM=2 $mixed -DM_CLEARALWAYS
run f weak  special-one     "special sleepers woken one at a time" wake -DNM=2 $mixed -DM_SPECIALONE
run q weak  no-second-look  "no look at the word after the wake" wake -DNS=3 -DNM=2 -DSPECIAL=4 -DPICKY=2 -DM_NOSECONDLOOK

# ---- hints.pml ----
run f sound hints           "2 producers, lost, doubled and wrong hints" hints
run f sound hints-tight     "3 slots for capacity 1" hints -DN=3 -DMAX=1
run q weak  no-scan         "no scan of the states when no hint is left" hints -DN=3 -DMAX=1 -DM_NOSCAN
run f weak  believe-lies    "hints beyond the high-water mark believed" hints -DM_LIES

# ---- lease.pml ----
E=-DWITHEXTEND T=-DWITHRETRY L=-DWITHRELEASE
run q sound lease           "2 consumers, one message, one takeover" lease
run f sound lease-death     "a death of a consumer at any step, 2 leases each" lease -DDEATHS=1 -DOPS=2
run f sound lease-fine      "every access a step of its own, Extend, a death" lease -DFINE $E -DTICKS=2 -DDEATHS=1
run f sound lease-reuse     "2 messages in a queue of 1: acknowledged slots used again" lease -DM=2 -DMAX=1 -DOPS=2
run f sound lease-extend    "Extend, a death" lease $E -DTICKS=2 -DDEATHS=1
run f sound lease-retry     "Retry with a delay, a death" lease $T -DTICKS=2 -DDEATHS=1
run f sound lease-release   "Release, a death" lease $L -DTICKS=2 -DDEATHS=1
run f sound lease-nested    "Extend and Retry, takeover inside a takeover" lease $E $T -DMAXTO=2
run f sound lease-all       "Extend, Retry and Release, 2 leases each" lease $T $E $L -DOPS=2
run q weak  lease-no-retag  "a takeover that leaves the tag of leases" lease -DM_NORETAG $E -DTICKS=2
run q weak  lease-one-token "a token that is not of one lease" lease -DM_TOKSAME
run f weak  lease-ack-counts "an owner that counts what it acknowledges" lease -DM_ACKCOUNTS -DOPS=2 -DM=2
run f weak  lease-insert    "a slot enlisted without counting the lease that it had" lease -DM_NOCOUNTATINSERT -DOPS=2 -DM=2
run f weak  lease-no-counted "a failure counted at every attempt to give back" lease -DM_NOCOUNTED -DDEATHS=1 -DOPS=2
run q weak  extend-early    "Extend without the verify after its CAS" lease -DM_EXTENDNOVERIFY $E -DTICKS=2
run f weak  end-is-delay    "a lease's end that is not told from a retry's time" lease -DM_NODELAYBIT -DDEATHS=1
run f weak  retry-late      "Retry that writes its time after its CAS" lease -DM_RETRYTIMELATE $T -DDEATHS=1 -DTICKS=2
run f weak  write-if-needed "a record that is not written because it says so already" lease -DM_WRITEIFNEEDED $E $T -DMAXTO=2

echo "model: $runs runs, $((runs - bad)) as they should be, $bad not; $(($(date +%s) - began)) s"
[ $bad = 0 ] && [ $runs -gt 0 ]
