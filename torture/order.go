package torture

import (
	"cmp"
	"slices"
)

// waiting is what is known to have been in the queue when a message was claimed, because it was claimed later. It is filled from the
// last claim to the first.
type waiting struct {
	ranks map[uint16]int // of the priorities, lowest first
	types [maxTypes + 1]struct {
		avail []best         // by rank: the message of this priority or a higher one that has been there longest (a Fenwick tree)
		seq   []best         // by rank: the smallest Seq of this priority
		count map[own]uint32 // the smallest counter of this producer and priority
	}
}

const maxTypes = 3

type own struct {
	producer, prio uint16
}

// best is the smallest key so far, and whose it is.
type best struct {
	key int64
	t   *take
}

func (b *best) add(key int64, t *take) {
	if b.t == nil || key < b.key {
		*b = best{key, t}
	}
}

func newWaiting(ts []take) *waiting {
	var ps []uint16
	seen := map[uint16]bool{}
	for i := range ts {
		if !seen[ts[i].prio] {
			seen[ts[i].prio] = true
			ps = append(ps, ts[i].prio)
		}
	}
	slices.Sort(ps)
	w := &waiting{ranks: map[uint16]int{}}
	for i, p := range ps {
		w.ranks[p] = i
	}
	for i := range w.types {
		w.types[i].avail = make([]best, len(ps)+1)
		w.types[i].seq = make([]best, len(ps))
		w.types[i].count = map[own]uint32{}
	}
	return w
}

// add enters a message. A delayed one is left out: when it could be received first depends on clocks.
func (w *waiting) add(t *take) {
	if t.delayed {
		return
	}
	x, n := &w.types[t.typ], len(w.ranks)
	for i := n - w.ranks[t.prio]; i <= n; i += i & -i {
		x.avail[i].add(t.sent.to, t)
	}
	if t.seq != 0 {
		x.seq[w.ranks[t.prio]].add(int64(t.seq), t)
	}
	k := own{producerOf(t.id), t.prio}
	if c, ok := x.count[k]; !ok || counterOf(t.id) < c {
		x.count[k] = counterOf(t.id)
	}
}

// above returns the message of type typ above this priority that has been there longest.
func (w *waiting) above(typ uint8, prio int) (b best) {
	rank := -1
	if prio >= 0 {
		rank = w.ranks[uint16(prio)]
	}
	for i := len(w.ranks) - 1 - rank; i > 0; i -= i & -i {
		if x := w.types[typ].avail[i]; x.t != nil {
			b.add(x.key, x.t)
		}
	}
	return b
}

// better says which messages of type typ must be received before c, if they are there: those of a priority above prio (−1: all), and,
// if alike is set, those of the same priority that were sent before.
func better(c *take, typ uint8) (prio int, alike, ok bool) {
	f := filters[c.filter]
	t := int64(typ)
	switch {
	case f.Type > 0 && t != f.Type, f.NotType > 0 && t == f.NotType, f.TypeAtMost > 0 && t > int64(c.typ):
		return 0, false, false
	case f.TypeAtMost > 0 && t < int64(c.typ):
		return -1, false, true
	}
	return int(c.prio), true, true
}

// passed finds a message that was there when the call of c began, has priority over c and was claimed later.
func (h *history) passed(w *waiting, c *take) {
	for typ := uint8(1); typ <= maxTypes; typ++ {
		prio, _, ok := better(c, typ)
		if !ok {
			continue
		}
		if b := w.above(typ, prio); b.t != nil && b.key < c.began {
			h.find(kindPassed, "message %d of producer %d, priority %d, Seq %d, type %d, Taken %d by %s with filter %v: its send had returned %d ns before the call began that took priority %d, type %d, Seq %d, Taken %d (%s with filter %v)",
				counterOf(b.t.id), producerOf(b.t.id), b.t.prio, b.t.seq, b.t.typ, b.t.taken, b.t.op, filters[b.t.filter], c.began-b.key, c.prio, c.typ, c.seq, c.taken, c.op, filters[c.filter])
			return
		}
	}
}

// order checks priority and FIFO along the order of claims, over all receivers.
func (h *history) order(taken []take) {
	w := newWaiting(taken)
	for i := len(taken) - 1; i >= 0; i-- {
		c := &taken[i]
		h.passed(w, c)
		for typ := uint8(1); typ <= maxTypes; typ++ {
			if _, alike, ok := better(c, typ); !ok || !alike {
				continue
			}
			if b := w.types[typ].seq[w.ranks[c.prio]]; b.t != nil && b.key < int64(c.seq) {
				h.find(kindDisorder, "priority %d: Seq %d was Taken %d (%s), Seq %d only Taken %d (%s)", c.prio, c.seq, c.taken, c.op, b.key, b.t.taken, b.t.op)
			}
		}
		w.add(c)
	}
}

// orderByTime checks the same by time: of two takes the one that returned before the other was called came first. It knows less of
// each pair, but also of those whose stamps nobody told.
func (h *history) orderByTime() {
	byEnd := slices.Clone(h.takes)
	slices.SortFunc(byEnd, func(a, b take) int { return cmp.Compare(a.ended, b.ended) })
	byBegin := slices.Clone(h.takes)
	slices.SortFunc(byBegin, func(a, b take) int { return cmp.Compare(a.began, b.began) })
	w := newWaiting(h.takes)
	next := len(byBegin) - 1
	for i := len(byEnd) - 1; i >= 0; i-- {
		c := &byEnd[i]
		for ; next >= 0 && byBegin[next].began > c.ended; next-- {
			w.add(&byBegin[next])
		}
		h.passed(w, c)
		for typ := uint8(1); typ <= maxTypes; typ++ {
			if _, alike, ok := better(c, typ); !ok || !alike {
				continue
			}
			if n, ok := w.types[typ].count[own{producerOf(c.id), c.prio}]; ok && n < counterOf(c.id) {
				h.find(kindDisorder, "producer %d, priority %d: message %d (%s) was received before message %d", producerOf(c.id), c.prio, counterOf(c.id), c.op, n)
			}
		}
	}
}
