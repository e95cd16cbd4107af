package shm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// The queue's lock can be taken from its holder at any moment: raising the epoch makes the holder's word stale, and every step that
// counts is a CAS that then fails. So the lock needs no owner, no robust mutex and no repair; a holder that died, was stopped, or
// was merely preempted too long is treated alike.
//
// holder is what a goroutine knows while it holds the lock. It is guarded by lk.
type holder struct {
	my      uint64 // the lock's word as we set it: lock ≠ my means fenced
	a       *area
	drained uint64
	low     int // receives in a row whose best was below cur
	lowBest uint64

	freed   [freedWords]freed // hints not given back yet
	buf     []uint64          // drained links, or keys of a rebuild
	ahead   ahead
	slab    []byte // short bodies are cut from it
	spare   []uint64
	fenced  int    // in a row
	taken   uint64 // messages claimed by this handle
	giveWay bool   // somebody sleeps for the lock: let it have it before we take it again
	damaged int

	// leases
	returned  int      // messages that came back and nobody was woken for
	acked     []uint64 // slots of our leases that were acknowledged and not counted yet
	acksSeen  uint64   // how many acknowledgements there had been when all were counted last, +1,
	acksEpoch uint64   // in this epoch
	deadAsked int64    // when it was last asked whether somebody with leases died (ns)
	leasing   bool     // our entry says that we may have leases
	lapsed    []lapsed
	hint      lapsed // the last one that came back, while many do: its priority and slot + 1
}

var (
	// errFenced: the lock was taken over. What we claimed before stays ours; the rest is forgotten and begun again.
	errFenced = errors.New("fenced")
	// errDamaged: the index has something in it that no holder writes.
	errDamaged = errors.New("index damaged")
)

const (
	stuckAfter = 20 * time.Millisecond  // a holder without progress for so long is fenced
	deadAfter  = 2 * time.Millisecond   // after so long it is asked whether it lives
	patience   = 100 * time.Millisecond // a call whose context is done waits no longer for the lock
	maxFenced  = 1000                   // fenced so often in one operation: somebody plays with us
)

// acquire takes the queue's lock; a stuck one is taken over. The caller holds lk.
//
// Who:   a receiver, or a producer that must change or examine the index.
// Order: mark before the CAS, so that no takeover picks our area.
// Dies:  marked only: the mark of a dead participant counts no more. Holding: others take over.
func (q *Queue) acquire(ctx context.Context) error {
	h := &q.hold
	var w *watchdog
	if h.giveWay {
		h.giveWay = false
		q.letOthersLock()
	}
	for spin := 0; ; spin++ {
		l := load(q.lockw)
		if !lockIsHeld(l) {
			store(q.mark, markWord(lockArea(l), lockEpoch(l)))
			step("mark")
			if cas(q.lockw, l, l|lockHeld) {
				h.my, h.a, h.drained = l|lockHeld, &q.areas[lockArea(l)], lockDrained(l)
				h.a.step()
				return nil
			}
			continue
		}
		if spin < 32 && multiCPU && !simulated {
			pause(8)
			continue
		}
		if w == nil {
			store(q.mark, 0)
			w = &watchdog{}
		}
		stuck, err := w.wait(ctx, q, l)
		if err != nil {
			return err
		}
		if stuck {
			if err := q.takeover(l); err == nil || !errors.Is(err, errFenced) {
				return err
			}
			w = &watchdog{}
		}
	}
}

// watchdog watches a held lock. It sleeps in growing slices and tells when the holder counts as stuck: known dead, or neither the
// word nor the area's progress has changed for stuckAfter.
type watchdog struct {
	word, progress uint64
	since, asked   time.Time
	begun          time.Time
	naps           int
}

func (w *watchdog) wait(ctx context.Context, q *Queue, l uint64) (stuck bool, err error) {
	if simulated {
		return simulatedStuck(q, l), nil
	}
	now := time.Now()
	if w.begun.IsZero() {
		w.begun = now
	}
	if p := load(q.areas[lockArea(l)].progress); w.since.IsZero() || l != w.word || p != w.progress {
		w.word, w.progress, w.since, w.asked = l, p, now, now
	}
	if now.Sub(w.since) >= stuckAfter {
		return true, nil
	}
	if now.Sub(w.asked) >= deadAfter {
		w.asked = now
		if q.holderDead(l) {
			return true, nil
		}
	}
	if err := q.usable(); err != nil {
		return false, err
	}
	w.naps++
	switch {
	case w.naps <= 16: // the holder may only need this processor
		_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		runtime.Gosched()
	default:
		// A call that need not wait succeeds whatever its context says, and a holder that only lacks the processor is no wait.
		if ctx.Err() != nil && now.Sub(w.begun) > patience {
			return false, driver.ContextError(ctx)
		}
		store32(q.wanted, 1)
		if load(q.lockw) == l { // else it was given back meanwhile, perhaps before we said so
			futexWait(q.wanted, 1, rawSlice)
		}
	}
	return false, nil
}

// letOthersLock waits a moment for the one whom the last unlock woke. Without it a loop of receives would take the lock again before
// anybody else could wake up.
func (q *Queue) letOthersLock() {
	const moment = 60 * time.Microsecond
	l := load(q.lockw)
	for start := time.Now(); load(q.lockw) == l && time.Since(start) < moment; {
		_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}

// holderDead reports whether every participant that may touch the lock's area is dead. The lock names no holder, but a holder has
// marked its area before it held.
func (q *Queue) holderDead(l uint64) bool {
	for p, n := uint64(0), q.partsUp(); p < n; p++ {
		m := load(p64(q.entryOf(p), pMark))
		if m&markUsed != 0 && markArea(m) == lockArea(l) && p != q.me && q.alive(p) {
			return false
		}
	}
	return load(q.lockw) == l
}

// unlock gives the lock back. Failing means that we were fenced: what we claimed stays ours.
func (q *Queue) unlock() {
	h := &q.hold
	step("unlock")
	cas(q.lockw, h.my, h.my&^lockHeld)
	store(q.mark, 0)
	if load32(q.wanted) != 0 && cas32(q.wanted, 1, 0) {
		futexWake(q.wanted, 1)
		h.giveWay = !simulated
	}
	h.fenced, h.damaged = 0, 0
	if h.returned != 0 {
		q.tellReturned()
	}
}

// abandon ends a hold that failed with err. It returns nil when the operation is to begin again, else the error for the caller.
// After a fence there is nothing to undo. A damaged index is built anew from the slots, by a takeover from ourselves.
func (q *Queue) abandon(err error) error {
	h := &q.hold
	switch {
	case errors.Is(err, errFenced):
		store(q.mark, 0)
		q.count(pFenced, 1)
		if h.fenced++; h.fenced > maxFenced {
			h.fenced = 0
			return fmt.Errorf("the lock was taken over %d times during one operation: %w", maxFenced, driver.ErrCorrupt)
		}
		return nil
	case errors.Is(err, errDamaged):
		if h.damaged++; h.damaged > 3 {
			h.damaged = 0
			q.unlock()
			return errRebuilt
		}
		n := h.damaged
		err := q.takeover(h.my)
		if err == nil {
			q.unlock()
			h.damaged = n
			return nil
		}
		if errors.Is(err, errFenced) {
			return nil
		}
		return err
	}
	q.unlock()
	return err
}

// fenced reports whether the lock is no longer ours.
func (q *Queue) isFenced() bool { return load(q.lockw) != q.hold.my }
