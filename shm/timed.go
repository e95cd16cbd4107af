package shm

import (
	"time"
)

// Delayed and expiring messages. Such a message counts as any other from its send on, and its link says that it is timed. A holder
// that drains it puts it into the area's heap, by the time at which it must be looked at:
//
//	not yet due        in the heap only, by NotBefore or Expires, whichever comes first
//	due, may expire    in its list, and in the heap by Expires
//	due, never expires in its list only
//	leased             in the heap only, by the end of its lease (lease.go)
//
// A message whose delivery failed may have to wait too: its record says so (record.go).
//
// Times are CLOCK_REALTIME. Every holder looks at the top of the heap before it claims, so a due message gets its place, which is
// that of its send, before anything that came later; an expired one is dropped before anybody can claim it.

func (q *Queue) times(s uint64) (notBefore, expires int64) {
	sl := q.slot(s)
	return max(0, int64(load(p64(sl, sInline)))), max(0, int64(load(p64(sl, sInline+8))))
}

// enlist puts a published message into the index.
func (q *Queue) enlist(a *area, link, s, expected, seq uint64) error {
	prio := linkPrio(link)
	if a.k >= 2 {
		if err := q.backDrain(a.k, []uint64{link&^slotMask | s}); err != nil {
			return err
		}
	}
	var notBefore, expires int64
	if linkIsTimed(link) {
		notBefore, expires = q.times(s)
	}
	if load(q.timed)&someLeases != 0 {
		notBefore = max(notBefore, q.retryAt(s, seq))
	}
	from := uint64(noSlot)
	if h := &q.hold.hint; h.slot != 0 && h.prio == prio {
		from = h.slot - 1
	}
	if notBefore|expires == 0 {
		return a.insertFrom(from, s, prio, expected, seq)
	}
	if a.k >= 2 {
		if err := q.backHeap(a.k, min(load(q.high), q.slots)); err != nil {
			return err
		}
	}
	if notBefore > time.Now().UnixNano() {
		store(a.expected(s), expected)
		store(a.node(s), nodeWord(seq, noSlot))
		at := notBefore
		if expires > 0 {
			at = min(at, expires)
		}
		return a.heapPush(delayedTime(at), seq, s)
	}
	if err := a.insertFrom(from, s, prio, expected, seq); err != nil {
		return err
	}
	if expires > 0 {
		return a.heapPush(listedTime(expires), seq, s)
	}
	return nil
}

// drainAndCollect brings the index up to date: what was published is in it, what is due in its list, what has expired gone.
func (q *Queue) drainAndCollect() error {
	if err := q.drain(); err != nil {
		return err
	}
	if load(q.hold.a.heapLen) == 0 {
		return nil
	}
	return q.collectDue()
}

// collectDue gives due messages their places and drops expired ones.
func (q *Queue) collectDue() error {
	a := q.hold.a
	now := time.Now().UnixNano()
	if load(q.timed)&someLeases != 0 {
		if err := q.collectDead(now); err != nil {
			return err
		}
	}
	for n := uint64(0); ; n++ {
		t, seq, s, ok, err := a.heapTop()
		if err != nil {
			return err
		}
		if !ok || int64(t) > now {
			return nil
		}
		if n > 2*a.slots || nodeSeq(load(a.node(s))) != seq {
			return errDamaged
		}
		if n%256 == 255 {
			a.step()
		}
		if t&heapKind == heapLeased {
			if err := q.leaseDue(s, seq, now); err != nil {
				return err
			}
			continue
		}
		link, listed, expires := load(q.linkOf(s)), t&heapKind == heapListed, int64(0)
		prio := linkPrio(link)
		if linkIsTimed(link) {
			_, expires = q.times(s)
		}
		switch {
		case listed || expires > 0 && expires <= now:
			if err := q.drop(prio, s, listed); err != nil {
				return err
			}
			add(q.expired, 1)
		default:
			if err := a.heapRemove(s); err != nil {
				return err
			}
			if err := a.insert(s, prio, load(a.expected(s)), seq); err != nil {
				return err
			}
			if expires > 0 {
				if err := a.heapPush(listedTime(expires), seq, s); err != nil {
					return err
				}
			}
		}
	}
}

// The lowest two bits of a heap entry's time say what it is.
const (
	heapKind    = 3
	heapDelayed = 0 // in the heap alone
	heapListed  = 1 // in its list too
	heapLeased  = 2
)

func listedTime(ns int64) uint64  { return uint64(max(ns-1, 0))&^heapKind | heapListed }
func delayedTime(ns int64) uint64 { return uint64(ns)&^heapKind | heapDelayed }
func leasedTime(ns int64) uint64  { return uint64(ns)&^heapKind | heapLeased }
