package shm

import (
	"math"
	"slices"

	"github.com/kumquat-mq/kumquat/driver"
)

// Filtered receives. The shared index knows priorities only. A handle that filters keeps an index of its own, by type and, once a
// filter names a key, by key: a heap of waiting messages for each. It is built from the lists by the first filtered receive, which
// also asks all holders (aFiltering) to write what they enlist to the area's ring; later receives read on from there. So a filtered
// receive costs what came since the last, not what waits. What others took meanwhile is found out when it gets to the top of a heap.
//
// It is a cache of a cache: after a takeover, or when the ring has gone round, it is thrown away.

// find returns the first message that f lets through: by priority, then FIFO; with TypeAtMost by type first. s is noSlot if there is
// none. It always drains, and it leaves cur alone: the message it takes says nothing about what is on top.
//
// Who:   the holder.
func (q *Queue) find(f *driver.Filter) (prio, s uint64, err error) {
	if err := q.drainAndCollect(); err != nil {
		return 0, noSlot, err
	}
	prio, s, err = q.lookFor(f)
	// What was read from slots is true only if we still hold: after a takeover a matching message may have been claimed, and its
	// slot filled with another that does not match, while a second matching one came. Finding something needs no such proof: its
	// claim is one.
	if err == nil && s == noSlot && q.isFenced() {
		err = errFenced
	}
	return prio, s, err
}

func (q *Queue) lookFor(f *driver.Filter) (prio, s uint64, err error) {
	a := q.hold.a
	byType := f.Type != 0 || f.TypeAtMost != 0 || f.NotType != 0
	if f.Key == "" && !byType {
		top := a.top()
		if top < f.MinPriority {
			return 0, noSlot, nil
		}
		s, err = a.first(uint64(top))
		return uint64(top), s, err
	}
	if f.Key != "" && byType || !q.sync(f.Key != "") {
		return q.scanFor(f)
	}
	x := &q.filters
	if f.Key != "" {
		e, err := x.best(a, q, x.keys[f.Key])
		if e == nil {
			delete(x.keys, f.Key)
		}
		return e.under(f, err)
	}
	if f.Type != 0 {
		if f.TypeAtMost != 0 && f.Type > f.TypeAtMost || f.NotType == f.Type {
			return 0, noSlot, nil
		}
		e, err := x.bestOf(a, q, f.Type)
		return e.under(f, err)
	}
	var best *filterEntry
	for i := 0; i < len(x.order); i++ {
		t := x.order[i]
		if f.TypeAtMost != 0 && t > f.TypeAtMost {
			break
		}
		if t == f.NotType {
			continue
		}
		e, err := x.bestOf(a, q, t)
		switch {
		case err != nil:
			return 0, noSlot, err
		case e == nil:
			i-- // its heap is gone, and with it its place in order
		case int(e.prio) < f.MinPriority:
		case f.TypeAtMost != 0:
			return e.under(f, nil)
		case best == nil || e.before(best):
			best = e
		}
	}
	return best.under(f, nil)
}

// filterIndex is a handle's own index. It is guarded by lk.
type filterIndex struct {
	valid bool
	epoch uint64 // of the area that it follows
	pos   uint64 // how far it has read the ring
	keyed bool
	size  uint64 // entries, those taken by others included
	types map[int64]*filterHeap
	order []int64 // the types that have a heap, ascending
	keys  map[string]*filterHeap
}

type filterEntry struct{ prio, seq, slot uint64 }

func (e *filterEntry) before(o *filterEntry) bool {
	return e.prio > o.prio || e.prio == o.prio && seqDiff(e.seq, o.seq) < 0
}

// under is what find returns for e, which may be nil.
func (e *filterEntry) under(f *driver.Filter, why error) (prio, s uint64, err error) {
	if e == nil || int(e.prio) < f.MinPriority {
		return 0, noSlot, why
	}
	return e.prio, e.slot, nil
}

// filterHeap is a binary heap, the first message on top.
type filterHeap []filterEntry

func (h *filterHeap) push(e filterEntry) {
	x := append(*h, e)
	*h = x
	for i := len(x) - 1; i > 0; {
		p := (i - 1) / 2
		if !x[i].before(&x[p]) {
			break
		}
		x[i], x[p] = x[p], x[i]
		i = p
	}
}

func (h *filterHeap) pop() {
	x := *h
	n := len(x) - 1
	x[0] = x[n]
	x = x[:n]
	*h = x
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			return
		}
		if c+1 < n && x[c+1].before(&x[c]) {
			c++
		}
		if !x[c].before(&x[i]) {
			return
		}
		x[i], x[c] = x[c], x[i]
		i = c
	}
}

// bestOf returns the first waiting message of type t, nil if there is none; then the type's heap is gone.
func (x *filterIndex) bestOf(a *area, q *Queue, t int64) (*filterEntry, error) {
	e, err := x.best(a, q, x.types[t])
	if e == nil && err == nil && x.types[t] != nil {
		delete(x.types, t)
		if i, ok := slices.BinarySearch(x.order, t); ok {
			x.order = slices.Delete(x.order, i, i+1)
		}
	}
	return e, err
}

// best drops from h what no longer waits, and returns what is on top then.
//
// A message that waits under another tag than we expect has been adopted by a takeover: then we are fenced, and must not go on to the
// next, which that takeover may not have reached yet, so that we could still claim it and pass this one over (F4).
func (x *filterIndex) best(a *area, q *Queue, h *filterHeap) (*filterEntry, error) {
	for h != nil && len(*h) > 0 {
		e := &(*h)[0]
		if w := load(q.stateOf(e.slot)); nodeSeq(load(a.node(e.slot))) == e.seq {
			if w == load(a.expected(e.slot)) && kindOf(w) == kindReady && !q.waitsForRetry(a, e.slot) {
				return e, nil
			}
			if w == load(a.expected(e.slot)) { // leased, or waiting after a failure: it is enlisted again when that is over
				h.pop()
				x.size--
				continue
			}
			if kindOf(w) == kindReady && seqOf(w) == e.seq {
				x.valid = false
				if q.isFenced() {
					return nil, errFenced
				}
				return nil, errDamaged
			}
		}
		h.pop()
		x.size--
	}
	return nil, nil
}

// sync brings the handle's own index up to date, or builds it. false: it cannot be had.
func (q *Queue) sync(keyed bool) bool {
	x, a := &q.filters, q.hold.a
	pos := load(a.ringPos)
	if !x.valid || x.epoch != lockEpoch(q.hold.my) || load(a.filtering) == 0 || pos-x.pos > q.ring || keyed && !x.keyed ||
		x.size > 2*q.max+1<<12 {
		if !q.ringReady(a) {
			return false
		}
		*x = filterIndex{valid: true, epoch: lockEpoch(q.hold.my), pos: pos, keyed: keyed || x.keyed, types: map[int64]*filterHeap{}, keys: map[string]*filterHeap{}}
		store(a.filtering, 1)
		if q.eachListed(func(p, s uint64) bool {
			q.index(x, p, nodeSeq(load(a.node(s))), s)
			return true
		}) != nil {
			x.valid = false
			return false
		}
		return true
	}
	for ; x.pos != pos; x.pos++ {
		e := load(p64(a.ring, x.pos&a.ringMask*8))
		if s := headSlot(e); s < a.slots && nodeSeq(load(a.node(s))) == headSeq(e) {
			q.index(x, linkPrio(load(q.linkOf(s))), headSeq(e), s)
		}
		if x.pos%1024 == 1023 {
			a.step()
		}
	}
	return true
}

// ringReady gives the area's ring pages, if the file system has them.
func (q *Queue) ringReady(a *area) bool {
	up := p64(q.base, offRingsUp)
	if load(up)>>a.k&1 == 0 {
		if allocate(q.f, a.at+q.ringIn, q.ring*8) != nil {
			return false
		}
		or(up, 1<<a.k)
	}
	return true
}

func (q *Queue) index(x *filterIndex, prio, seq, s uint64) {
	e := filterEntry{prio, seq, s}
	t := int64(load(p64(q.slot(s), sType)))
	h := x.types[t]
	if h == nil {
		h = &filterHeap{}
		x.types[t] = h
		if i, ok := slices.BinarySearch(x.order, t); !ok {
			x.order = slices.Insert(x.order, i, t)
		}
	}
	h.push(e)
	x.size++
	if !x.keyed {
		return
	}
	if _, meta, _, err := q.content(s); err == nil {
		if k := findKey(meta); k != nil {
			h := x.keys[string(k)]
			if h == nil {
				h = &filterHeap{}
				x.keys[string(k)] = h
			}
			h.push(e)
			x.size++
		}
	}
}

// scanFor finds by looking at every message that waits.
func (q *Queue) scanFor(f *driver.Filter) (prio, s uint64, err error) {
	s = noSlot
	lowest := int64(math.MaxInt64)
	err = q.eachListed(func(p, at uint64) bool {
		if p < uint64(f.MinPriority) {
			return false
		}
		t, ok := q.matches(f, at)
		if !ok {
			return true
		}
		if f.TypeAtMost == 0 {
			prio, s = p, at
			return false
		}
		if t < lowest {
			prio, s, lowest = p, at, t
		}
		return lowest > 1
	})
	return prio, s, err
}

// eachListed calls f for the listed messages in the order of delivery until it returns false.
func (q *Queue) eachListed(f func(prio, s uint64) bool) error {
	a := q.hold.a
	n := uint64(0)
	for p := a.below(driver.MaxPriority + 1); p >= 0; p = a.below(p) {
		w := load(a.list(uint64(p)))
		for s := listHead(w); ; {
			if n++; s >= a.slots || n > a.slots {
				return errDamaged
			}
			if n%1024 == 0 {
				a.step()
			}
			next := nodeNext(load(a.node(s)))
			last := s == listTail(w)
			if !f(uint64(p), s) {
				return nil
			}
			if last {
				break
			}
			s = next
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
