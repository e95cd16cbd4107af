package shm

import (
	"fmt"
	"math/bits"
)

// indexOf checks the area of the lock against the slots, in a quiet moment: every message that waits is in exactly the places where
// it belongs, and nothing else is in any.
func (c *checker) indexOf(s *snapshot) error {
	c.duplicates()
	k := lockArea(s.lock)
	x := &indexCheck{checker: c, s: s, k: k, where: fmt.Sprintf("area %d", k), pages: pages{o: c.o}}
	c.fact(curEpoch(s.cur) == lockEpoch(s.lock), "cur", "it is of epoch %d, the lock of %d", curEpoch(s.cur), lockEpoch(s.lock))
	if c.fact(s.broken == "", "head", "the chain of what is not drained yet %s", s.broken) {
		want := seqDiff(headSeq(s.head), lockDrained(s.lock))
		c.fact(int64(c.fresh) == want, "head", "%d messages are not drained yet, %d are found", want, c.fresh)
	}
	prios, err := x.bitmap()
	if err != nil {
		return err
	}
	for _, p := range prios {
		if err := x.list(p); err != nil {
			return err
		}
	}
	if err := x.heap(); err != nil {
		return err
	}
	waiting := seqDiff(headSeq(s.head), s.consumed)
	c.fact(int64(c.queued+c.held) == waiting, "head", "%d messages wait according to the counts, %d are found", waiting, c.queued+c.held)
	for i, m := range c.marks {
		if m&slotLeased != 0 {
			c.fact(m&slotHeld != 0, fmt.Sprintf("slot %d", i), "it is leased but not in the heap: the lease would never end")
		}
		if m&slotQueued == 0 {
			continue // a listed one was found out already
		}
		in := m & (slotListed | slotTimed)
		where := fmt.Sprintf("slot %d", i)
		if m&slotFresh != 0 {
			c.fact(in == 0, where, "its message is in the index but not drained")
		} else {
			c.fact(in != 0, where, "its message waits but is in no list: nobody will get it")
		}
	}
	return nil
}

// indexCheck walks one area.
type indexCheck struct {
	*checker
	s      *snapshot
	k      uint64
	where  string
	pages  pages
	listed uint64
}

// bitmap checks that the three levels agree and returns the priorities that have messages.
func (x *indexCheck) bitmap() (prios []uint64, err error) {
	b := make([]byte, aLists)
	if err := x.o.read(b, x.o.areaBase(x.k)); err != nil {
		return nil, err
	}
	up, err := x.o.word(offListsUp + 8*x.k)
	if err != nil {
		return nil, err
	}
	level2 := u64at(b, aLevel2)
	x.fact(level2>>8 == 0, x.where, "level 2 of its bitmap has bits beyond the eight words of level 1")
	for i := range 8 {
		level1 := u64at(b, aLevel1+8*i)
		x.fact(level2>>i&1 == 1 == (level1 != 0), x.where, "levels 2 and 1 of its bitmap disagree about priorities %d … %d", 4096*i, 4096*i+4095)
		for j := range 64 {
			n := 64*i + j
			level0 := u64at(b, aLevel0+8*n)
			x.fact(level1>>j&1 == 1 == (level0 != 0), x.where, "levels 1 and 0 of its bitmap disagree about priorities %d … %d", 64*n, 64*n+63)
			for ; level0 != 0; level0 &= level0 - 1 {
				p := uint64(64*n + bits.TrailingZeros64(level0))
				if x.fact(up>>(p/listsPerPage)&1 == 1, x.where, "priority %d has messages, but its list head has no memory", p) {
					prios = append(prios, p)
				}
			}
		}
	}
	return prios, nil
}

// node checks the node of slot i and returns its seq and next. ok is false if nothing can be said of it.
func (x *indexCheck) node(i uint64, where string) (seq, next uint64, ok bool, err error) {
	if !x.fact(i < x.s.high && i < x.s.nodesUp[x.k], where, "it leads to slot %d, of %d in use", i, x.s.high) {
		return 0, 0, false, nil
	}
	at := x.o.nodeBase(x.k, i)
	expected, err := x.pages.word(at)
	if err != nil {
		return 0, 0, false, err
	}
	node, err := x.pages.word(at + 8)
	if err != nil {
		return 0, 0, false, err
	}
	state, err := x.pages.word(x.o.slotBase(i) + sState)
	if err != nil {
		return 0, 0, false, err
	}
	ok = x.fact(x.marks[i]&slotQueued != 0, where, "it has slot %d, which has no message that waits", i)
	ok = x.fact(expected == state, where, "it expects slot %d to be %#x, but it is %#x", i, expected, state) && ok
	ok = x.fact(nodeSeq(node) == seqOf(state), where, "it has message %d in slot %d, the slot has %d", nodeSeq(node), i, seqOf(state)) && ok
	return nodeSeq(node), nodeNext(node), ok, nil
}

// list walks the list of priority p.
func (x *indexCheck) list(p uint64) error {
	where := fmt.Sprintf("area %d, priority %d", x.k, p)
	w, err := x.pages.word(x.o.areaBase(x.k) + aLists + 8*p)
	if err != nil {
		return err
	}
	at, tail := w&slotMask, w>>slotBits&slotMask
	x.fact(w>>(2*slotBits) == 0, where, "its list head %#x has bits that mean nothing", w)
	prev := uint64(noSlot)
	for before, first := uint64(0), true; ; first = false {
		seq, next, ok, err := x.node(at, where)
		if err != nil || !ok {
			return err
		}
		if !x.fact(x.marks[at]&slotListed == 0, where, "slot %d is in a list twice", at) {
			return nil // a circle
		}
		x.marks[at] |= slotListed
		x.listed++
		if !first {
			x.fact(seqDiff(seq, before) > 0, where, "message %d comes after %d", seq, before)
			back, err := x.pages.word(x.o.areaBase(x.k) + x.o.beforeIn + at/2*8)
			if err != nil {
				return err
			}
			back = back >> (at % 2 * 32) & (1<<32 - 1)
			x.fact(back == prev, where, "slot %d says that %d stands before it, it is %d", at, back, prev)
		}
		link, err := x.pages.word(x.o.linkBase(at))
		if err != nil {
			return err
		}
		x.fact(linkPrio(link) == p, where, "slot %d is of priority %d", at, linkPrio(link))
		if at == tail {
			return nil
		}
		before, prev, at = seq, at, next
	}
}

// heap checks the heap of timed messages: its order, its places, and that each has the time that it should have.
func (x *indexCheck) heap() error {
	base := x.o.areaBase(x.k)
	n, err := x.o.word(base + aHeapLen)
	if err != nil {
		return err
	}
	up, err := x.o.word(offHeapUp + 8*x.k)
	if err != nil {
		return err
	}
	if !x.fact(n <= min(up, x.o.slots), x.where, "its heap has %d entries, there is memory for %d", n, up) {
		return nil
	}
	where := x.where + ", heap"
	for i := range n {
		t, err := x.pages.word(base + x.o.heapIn + i*heapSize)
		if err != nil {
			return err
		}
		item, err := x.pages.word(base + x.o.heapIn + i*heapSize + 8)
		if err != nil {
			return err
		}
		if i > 0 {
			parent, err := x.pages.word(base + x.o.heapIn + (i-1)/2*heapSize)
			if err != nil {
				return err
			}
			x.fact(parent <= t, where, "entry %d is due before entry %d, which is above it", i, (i-1)/2)
		}
		slot := headSlot(item)
		if t&heapKind == heapLeased {
			if err := x.lease(slot, i, item, where); err != nil {
				return err
			}
			continue
		}
		seq, _, ok, err := x.node(slot, where)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		x.fact(seq == headSeq(item), where, "entry %d has message %d, slot %d has %d", i, headSeq(item), slot, seq)
		x.fact(x.marks[slot]&slotTimed == 0, where, "slot %d is in it twice", slot)
		x.marks[slot] |= slotTimed
		place, err := x.pages.word(base + x.o.placeIn + slot/2*8)
		if err != nil {
			return err
		}
		place = place >> (32 * (slot % 2)) & (1<<32 - 1)
		x.fact(place == i+1, where, "slot %d says it is entry %d, it is %d", slot, int64(place)-1, i)
		if err := x.time(slot, t, where); err != nil {
			return err
		}
	}
	return x.untimed()
}

// lease checks the heap's entry i, which stands for a lease: the slot is as the node expects, or was acknowledged since.
func (x *indexCheck) lease(slot, i, item uint64, where string) error {
	if !x.fact(slot < x.s.high && slot < x.s.nodesUp[x.k], where, "entry %d leads to slot %d, of %d in use", i, slot, x.s.high) {
		return nil
	}
	base := x.o.areaBase(x.k)
	place, err := x.pages.word(base + x.o.placeIn + slot/2*8)
	if err != nil {
		return err
	}
	place = place >> (32 * (slot % 2)) & (1<<32 - 1)
	x.fact(place == i+1, where, "slot %d says it is entry %d, it is %d", slot, int64(place)-1, i)
	x.fact(x.marks[slot]&(slotHeld|slotTimed) == 0, where, "slot %d is in it twice", slot)
	x.marks[slot] |= slotHeld
	x.held++
	expected, err := x.pages.word(x.o.nodeBase(x.k, slot))
	if err != nil {
		return err
	}
	node, err := x.pages.word(x.o.nodeBase(x.k, slot) + 8)
	if err != nil {
		return err
	}
	state, err := x.pages.word(x.o.slotBase(slot) + sState)
	if err != nil {
		return err
	}
	x.fact(kindOf(expected) == kindLeased, where, "entry %d is of a lease, but slot %d is expected to be %#x", i, slot, expected)
	x.fact(kindOf(state) != kindLeased || state == expected, where, "it expects slot %d to be %#x, but it is %#x", slot, expected, state)
	x.fact(nodeSeq(node) == headSeq(item), where, "entry %d has message %d, slot %d has %d", i, headSeq(item), slot, nodeSeq(node))
	record, err := x.pages.word(x.o.recordBase(slot))
	if err != nil {
		return err
	}
	x.fact(state != expected || recSeq(record) == headSeq(item), where, "slot %d has message %d, its record is of %d", slot, headSeq(item), recSeq(record))
	return nil
}

// time checks the time of a heap entry: what is in a list waits for its expiry, the others for what comes first.
func (x *indexCheck) time(slot, t uint64, where string) error {
	h, err := x.slotHead(slot)
	if err != nil {
		return err
	}
	listed := x.marks[slot]&slotListed != 0
	if slot < x.s.records {
		var r [recordSize]byte
		if err := x.o.read(r[:], x.o.recordBase(slot)); err != nil {
			return err
		}
		state, err := x.pages.word(x.o.slotBase(slot) + sState)
		if err != nil {
			return err
		}
		_, retry := recordOf(r[:], seqOf(state))
		h.notBefore = max(h.notBefore, retry)
	}
	at := h.expires
	if !listed && (at == 0 || h.notBefore < at) {
		at = h.notBefore
	}
	want := delayedTime(at)
	if listed {
		want = listedTime(at)
	}
	x.fact(t == want && at > 0, where, "slot %d is due at %d, its message says %d", slot, t, want)
	return nil
}

// untimed checks that what has an expiry and is listed is in the heap too: else it would never expire.
func (x *indexCheck) untimed() error {
	for i, m := range x.marks {
		if m&(slotListed|slotTimed) != slotListed {
			continue
		}
		link, err := x.pages.word(x.o.linkBase(uint64(i)))
		if err != nil {
			return err
		}
		if !linkIsTimed(link) {
			continue
		}
		h, err := x.slotHead(uint64(i))
		if err != nil {
			return err
		}
		x.fact(h.expires == 0, fmt.Sprintf("slot %d", i), "its message has an expiry but is not in the heap: it would never expire")
	}
	return nil
}

func (x *indexCheck) slotHead(i uint64) (slotHead, error) {
	var b [slotSize]byte
	err := x.o.read(b[:], x.o.slotBase(i))
	return parseSlot(b[:]), err
}
