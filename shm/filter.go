package shm

import (
	"math"

	"github.com/kumquat-mq/kumquat/driver"
)

// find returns the first message that f lets through: by priority, then FIFO; with TypeAtMost by type first. s is noSlot if there is
// none. It always drains, and it leaves cur alone: the message it takes says nothing about what is on top.
//
// Who:   the holder.
func (q *Queue) find(f *driver.Filter) (prio, prev, s uint64, err error) {
	if err := q.drainAndCollect(); err != nil {
		return 0, 0, noSlot, err
	}
	s = noSlot
	lowest := int64(math.MaxInt64)
	defer func() {
		// What was read from slots is true only if we still hold: after a takeover a matching message may have been claimed, and
		// its slot filled with another that does not match, while a second matching one came. Finding something needs no such
		// proof: its claim is one.
		if err == nil && s == noSlot && q.isFenced() {
			err = errFenced
		}
	}()
	err = q.eachListed(func(p, before, at uint64) bool {
		if p < uint64(f.MinPriority) {
			return false
		}
		t, ok := q.matches(f, at)
		if !ok {
			return true
		}
		if f.TypeAtMost == 0 {
			prio, prev, s = p, before, at
			return false
		}
		if t < lowest {
			prio, prev, s, lowest = p, before, at, t
		}
		return lowest > 1
	})
	return prio, prev, s, err
}

// eachListed calls f for the listed messages in the order of delivery until it returns false. prev is the one before in the list.
func (q *Queue) eachListed(f func(prio, prev, s uint64) bool) error {
	a := q.hold.a
	n := uint64(0)
	for p := a.below(driver.MaxPriority + 1); p >= 0; p = a.below(p) {
		w := load(a.list(uint64(p)))
		prev, s := uint64(noSlot), listHead(w)
		for {
			if n++; s >= a.slots || n > a.slots {
				return errDamaged
			}
			if n%1024 == 0 {
				a.step()
			}
			next := nodeNext(load(a.node(s)))
			last := s == listTail(w)
			if !f(uint64(p), prev, s) {
				return nil
			}
			if last {
				break
			}
			prev, s = s, next
		}
	}
	return nil
}

// matches applies f to the message in slot s, its priority apart.
func (q *Queue) matches(f *driver.Filter, s uint64) (int64, bool) {
	t := int64(load(p64(q.slot(s), sType)))
	if f.Type != 0 && t != f.Type || f.TypeAtMost != 0 && t > f.TypeAtMost || f.NotType != 0 && t == f.NotType {
		return t, false
	}
	if f.Key == "" {
		return t, true
	}
	_, meta, _, err := q.content(s)
	return t, err == nil && string(findKey(meta)) == f.Key
}
