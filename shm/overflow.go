package shm

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/kumquat-mq/kumquat/driver"
)

// drop removes a message that nobody will receive: evicted, expired or purged. listed: it stands in prio's list.
//
// Who:   the holder.
// Order: as for a claim: the CAS decides, failing means fenced. The slot is ours until its memory is given back.
// Dies:  after the CAS: gone, and its slot named by our ledger.
func (q *Queue) drop(prio, s uint64, listed bool) error {
	a := q.hold.a
	store32(p32(q.ledger, posDrop*4), uint32(s+1))
	step("drop")
	if !cas(q.stateOf(s), load(a.expected(s)), q.taken) {
		if q.isFenced() {
			return errFenced
		}
		return errDamaged
	}
	var err error
	if listed {
		err = a.unlink(prio, s)
	}
	if err == nil && load(a.heapLen) != 0 && q.mayBeTimed(s) {
		err = a.heapRemove(s)
	}
	store(a.consumed, (load(a.consumed)+1)&seqMask)
	if q.stride >= punchFrom {
		q.punch(s)
	}
	store(q.stateOf(s), kindFree)
	q.giveHints(s/64, 1<<(s%64))
	q.record(opDrop, s, 0)
	return err
}

// whenFull is what a send does that met a queue without room for n messages of at least priority low. nil: try again.
func (q *Queue) whenFull(ctx context.Context, low, n uint64, try bool) error {
	if err := q.enter(); err != nil {
		return err
	}
	defer q.exit()
	limit := q.limitOf(low)
	if n > limit {
		return fmt.Errorf("headroom leaves %d messages below priority %d, the batch has %d: %w", limit, q.headroomPriority, n, driver.ErrTooLarge)
	}
	if q.overflow == driver.Block && !try {
		return q.waitForRoom(ctx, limit, n)
	}
	room, err := q.makeRoom(ctx, low, n, limit, q.overflow)
	switch {
	case err != nil:
		return err
	case room:
		return nil
	case n > 1:
		return fmt.Errorf("the queue has no room for %d messages, it takes %d: %w", n, limit, driver.ErrFull)
	}
	return q.errFull(limit)
}

func (q *Queue) errFull(limit uint64) error {
	if limit < q.max {
		return errFullHeadroom
	}
	return driver.ErrFull
}

var errFullHeadroom = fmt.Errorf("only the headroom for higher priorities is left: %w", driver.ErrFull)

// surelyFull reports that the queue is full, without the lock: nobody holds it, its word did not change, and nothing can be over
// because no message ever had a time, or because all is drained and none has one now.
func (q *Queue) surelyFull(n, limit uint64) bool {
	h := load(q.head)
	l := load(q.lockw)
	a := &q.areas[lockArea(l)]
	c := load(a.consumed)
	return !lockIsHeld(l) && (load(q.timed) == 0 || load(a.heapLen) == 0 && lockDrained(l) == headSeq(h)) && uint64(seqDiff(headSeq(h)+n, c)) > limit && load(q.lockw) == l
}

// makeRoom takes the lock, collects what is over and, if policy says so, evicts. It reports whether n messages fit now.
func (q *Queue) makeRoom(ctx context.Context, low, n, limit uint64, policy driver.Overflow) (bool, error) {
	if policy < driver.DropOldest && q.surelyFull(n, limit) {
		return false, nil
	}
	if !q.lk.lock(ctx, q.closing) {
		return false, q.sentAway(ctx)
	}
	defer q.lk.unlock()
	for {
		if err := q.usable(); err != nil {
			return false, err
		}
		if err := q.acquire(ctx); err != nil {
			return false, err
		}
		room, err := q.roomUnderLock(low, n, limit, policy)
		if err == nil {
			q.unlock()
			return room, nil
		}
		if err = q.abandon(err); err != nil {
			return false, err
		}
	}
}

func (q *Queue) roomUnderLock(low, n, limit uint64, policy driver.Overflow) (bool, error) {
	a := q.hold.a
	if err := q.drainAndCollect(); err != nil {
		return false, err
	}
	if load(q.timed)&someLeases != 0 && uint64(seqDiff(headSeq(load(q.head))+n, load(a.consumed))) > limit {
		if err := q.collectAcked(); err != nil {
			return false, err
		}
	}
	if policy == driver.DropLowest {
		if over := seqDiff(headSeq(load(q.head))+n, load(a.consumed)) - int64(limit); over > 1 {
			if enough, err := q.lowerThan(low, uint64(over)); !enough || err != nil { // else some would go for nothing
				return false, err
			}
		}
	}
	for tries := uint64(0); uint64(seqDiff(headSeq(load(q.head))+n, load(a.consumed))) > limit; tries++ {
		if policy < driver.DropOldest && tries <= q.max && headSeq(load(q.head)) != q.hold.drained {
			// What came meanwhile may be over already.
			if err := q.drainAndCollect(); err != nil {
				return false, err
			}
			continue
		}
		if policy < driver.DropOldest || tries > 2*q.max {
			return false, nil
		}
		if err := q.drain(); err != nil { // others send meanwhile: what they sent may be the one to go
			return false, err
		}
		var prio, s uint64
		var listed bool
		var err error
		if policy == driver.DropOldest {
			prio, s, _, listed, err = q.oldest()
		} else {
			prio, s, listed, err = q.leastUrgent()
		}
		if err != nil {
			return false, err
		}
		if s == noSlot || policy == driver.DropLowest && prio >= low {
			if q.isFenced() { // what was read from slots is true only if we still hold
				return false, errFenced
			}
			return false, nil
		}
		if err := q.drop(prio, s, listed); err != nil {
			return false, err
		}
		add(q.dropped, 1)
	}
	return true, nil
}

// oldest returns the message with the smallest seq, s = noSlot if there is none. We hold the lock and have drained.
func (q *Queue) oldest() (prio, s, seq uint64, listed bool, err error) {
	a := q.hold.a
	s, listed = noSlot, true
	for p := a.below(driver.MaxPriority + 1); p >= 0; p = a.below(p) {
		at, err := a.first(uint64(p))
		if err != nil {
			return 0, noSlot, 0, false, err
		}
		if k := nodeSeq(load(a.node(at))); s == noSlot || seqDiff(k, seq) < 0 {
			prio, s, seq = uint64(p), at, k
		}
	}
	err = q.eachDelayed(func(p, at, k uint64) {
		if s == noSlot || seqDiff(k, seq) < 0 {
			prio, s, seq, listed = p, at, k, false
		}
	})
	return
}

// leastUrgent returns the oldest message of the lowest priority.
func (q *Queue) leastUrgent() (prio, s uint64, listed bool, err error) {
	a := q.hold.a
	s, listed = noSlot, true
	var seq uint64
	if p := a.lowest(); p >= 0 {
		if s, err = a.first(uint64(p)); err != nil {
			return 0, noSlot, false, err
		}
		prio, seq = uint64(p), nodeSeq(load(a.node(s)))
	}
	err = q.eachDelayed(func(p, at, k uint64) {
		if s == noSlot || p < prio || p == prio && seqDiff(k, seq) < 0 {
			prio, s, seq, listed = p, at, k, false
		}
	})
	return
}

// lowerThan reports whether at least n messages are of lower priority than prio.
func (q *Queue) lowerThan(prio, n uint64) (bool, error) {
	a := q.hold.a
	var found uint64
	if err := q.eachDelayed(func(p, _, _ uint64) {
		if p < prio {
			found++
		}
	}); err != nil {
		return false, err
	}
	for p := a.below(int(prio)); p >= 0 && found < n; p = a.below(p) {
		s, err := a.first(uint64(p))
		if err != nil {
			return false, err
		}
		for last := listTail(load(a.list(uint64(p)))); ; {
			if found++; found >= n || s == last {
				break
			}
			if s = nodeNext(load(a.node(s))); s >= a.slots {
				return false, errDamaged
			}
		}
	}
	if found < n && q.isFenced() { // what was read is true only if we still hold
		return false, errFenced
	}
	return found >= n, nil
}

// eachDelayed calls f for every message that is in the heap alone.
func (q *Queue) eachDelayed(f func(prio, s, seq uint64)) error {
	a := q.hold.a
	n := load(a.heapLen)
	if n > a.slots {
		return errDamaged
	}
	for i := uint64(0); i < n; i++ {
		item := load(a.heapItem(i))
		if headSlot(item) >= a.slots {
			return errDamaged
		}
		if load(a.heapTime(i))&heapKind == heapDelayed {
			f(linkPrio(load(q.linkOf(headSlot(item)))), headSlot(item), headSeq(item))
		}
		if i%1024 == 1023 {
			a.step()
		}
	}
	return nil
}

// Purge removes what was sent before it began and f lets through. See driver.Purger.
func (q *Queue) Purge(ctx context.Context, f driver.Filter) (n int, err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	if err := q.enter(); err != nil {
		return 0, err
	}
	defer q.exit()
	until := headSeq(load(q.head))
	for {
		k, more, err := q.purgeSome(ctx, &f, until)
		n += k
		if k > 0 {
			q.wakeSenders(allSleepers)
		}
		if err != nil || !more {
			return n, err
		}
		if ctx.Err() != nil {
			return n, driver.ContextError(ctx)
		}
	}
}

const purgeChunk = 1024 // messages purged under one hold of the lock

func (q *Queue) purgeSome(ctx context.Context, f *driver.Filter, until uint64) (n int, more bool, err error) {
	if !q.lk.lock(ctx, q.closing) {
		return 0, false, q.sentAway(ctx)
	}
	defer q.lk.unlock()
	for {
		if err := q.usable(); err != nil {
			return n, false, err
		}
		if err := q.acquire(ctx); err != nil {
			return n, false, err
		}
		k, more, err := q.purgeUnderLock(f, until)
		n += k
		if err == nil {
			q.unlock()
			return n, more, nil
		}
		if err = q.abandon(err); err != nil {
			return n, false, err
		}
	}
}

func (q *Queue) purgeUnderLock(f *driver.Filter, until uint64) (n int, more bool, err error) {
	a := q.hold.a
	if err := q.drainAndCollect(); err != nil {
		return 0, false, err
	}
	type victim struct {
		prio, s uint64
		listed  bool
	}
	var vs []victim
	err = q.eachListed(func(p, s uint64) bool {
		if p < uint64(f.MinPriority) {
			return false
		}
		if _, ok := q.matches(f, s); ok && seqDiff(nodeSeq(load(a.node(s))), until) <= 0 {
			if len(vs) == purgeChunk {
				more = true
				return false
			}
			vs = append(vs, victim{p, s, true})
		}
		return true
	})
	if err != nil {
		return 0, false, err
	}
	if !more {
		err = q.eachDelayed(func(p, s, seq uint64) {
			if _, ok := q.matches(f, s); !ok || p < uint64(f.MinPriority) || seqDiff(seq, until) > 0 {
				return
			}
			if len(vs) == purgeChunk {
				more = true
				return
			}
			vs = append(vs, victim{p, s, false})
		})
		if err != nil {
			return 0, false, err
		}
	}
	for _, v := range vs {
		if err := q.drop(v.prio, v.s, v.listed); err != nil {
			return n, false, err
		}
		n++
		add(q.dropped, 1)
	}
	return n, more, nil
}
