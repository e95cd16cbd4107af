package torture

import (
	"cmp"
	"container/heap"
	"slices"
	"sort"
)

// account finds what is wrong and adds the round to t.
func (h *history) account(t *Tally) []string {
	h.countAll(t)
	taken, seq := h.byTaken(), h.bySeq()
	h.stamps(taken, seq)
	h.producers()
	h.order(taken)
	h.orderByTime()
	h.capacity(taken)
	if !h.plan.drops() && !h.plan.Timed {
		h.occupancy()
		h.gaps(taken)
	}
	t.Lost += h.count[kindLost]
	t.Doubled += h.count[kindDoubled]
	t.Invented += h.count[kindInvented]
	t.Damaged += h.count[kindDamaged]
	t.OutOfOrder += h.count[kindDisorder]
	t.PassedOver += h.count[kindPassed]
	t.OverCapacity += h.count[kindOver]
	if !h.plan.Timed {
		if d := h.holdUp(); d > t.HoldUp {
			t.HoldUp, t.HoldUpIn = d, h.plan.String()
		}
	}
	return h.wrong
}

// countAll compares the numbers. Stats.Sent is the count of all commits; what it has more than the sends that returned is those of
// killed senders.
func (h *history) countAll(t *Tally) {
	returned, perhaps, sure, missing := 0, 0, 0, 0
	for _, so := range h.sends {
		for _, c := range so.calls {
			got, gone := 0, 0
			for k := range c.n {
				id := messageID(0, c.first+uint32(k))
				switch {
				case so.msgs[counterOf(id)].times > 0:
					got++
				case c.res != resNothing:
					gone++
				}
			}
			switch {
			case c.res == resOK:
				returned += c.n
				missing += gone
			case c.res == 0:
				perhaps += c.n
				if got > 0 { // a batch is sent wholly or not at all
					sure += c.n
					missing += gone
				}
			}
		}
	}
	sent, received := int(h.stats.Sent), len(h.takes)
	removed := int(h.stats.Dropped + h.stats.Expired)
	inHand := sent - received - removed
	t.Sent += sent
	t.Perhaps += sent - returned
	t.Received += received
	t.Removed += removed
	t.InHand += max(0, inHand)

	most := 0
	for _, x := range h.hands {
		most += x.n
	}
	slack := 0 // who dies between a removal and its count
	if h.plan.drops() || h.plan.Timed {
		for _, l := range h.lives {
			if l.died != 0 {
				slack++
			}
		}
	}
	if sent < returned+sure {
		h.find(kindLost, "%d sends returned and %d more were received, the queue counts %d", returned, sure, sent)
	}
	if sent > returned+perhaps {
		h.find(kindInvented, "the queue counts %d sends, %d returned and %d were cut short by a death", sent, returned, perhaps)
	}
	if inHand < 0 {
		h.find(kindInvented, "%d messages were sent, %d received and %d removed", sent, received, removed)
	}
	if inHand > most+slack {
		h.find(kindLost, "%d of %d messages are gone, killed receivers had at most %d in hand (%d received, %d dropped, %d expired)",
			inHand, sent, most, received, h.stats.Dropped, h.stats.Expired)
	}
	if missing > most+removed+slack {
		h.find(kindLost, "%d messages whose send returned are gone, killed receivers had at most %d in hand", missing, most)
	}
}

// stamps checks that both orders are orders, and that times agree with them.
func (h *history) stamps(taken, seq []take) {
	last, latest := uint64(0), int64(0)
	for i := range taken {
		c := &taken[i]
		if c.taken == last {
			h.find(kindDoubled, "Taken %d was given twice", c.taken)
		}
		if c.taken > h.stats.Sent {
			h.find(kindInvented, "Taken %d was given, %d messages were sent", c.taken, h.stats.Sent)
		}
		if c.ended < latest {
			h.find(kindDisorder, "Taken %d was given by a call (%s) that returned %d ns before a call began that got a smaller one", c.taken, c.op, latest-c.ended)
		}
		last, latest = c.taken, max(latest, c.began)
	}
	last, latest = 0, 0
	for i := range seq {
		c := &seq[i]
		if c.seq == last {
			h.find(kindDoubled, "Seq %d was given twice", c.seq)
		}
		if c.seq > h.stats.Sent {
			h.find(kindInvented, "Seq %d was given, %d messages were sent", c.seq, h.stats.Sent)
		}
		if c.sent.to < latest {
			h.find(kindDisorder, "Seq %d was given to a send that returned before one began that got a smaller Seq", c.seq)
		}
		last, latest = c.seq, max(latest, c.sent.from)
	}
}

// producers checks each producer's messages: their Seqs ascend, those of a batch are neighbours.
func (h *history) producers() {
	for number, so := range h.sends {
		last := uint64(0)
		for i := range so.msgs {
			m := &so.msgs[i]
			if m.seq == 0 {
				continue
			}
			if m.seq <= last {
				h.find(kindDisorder, "producer %d: message %d has Seq %d, an earlier one %d", number, i, m.seq, last)
			}
			last = m.seq
		}
		for _, c := range so.calls {
			base := uint64(0)
			for k := range c.n {
				s := so.msgs[int(c.first)+k].seq
				if s == 0 {
					continue
				}
				if base == 0 {
					base = s - uint64(k)
				} else if s-uint64(k) != base {
					h.find(kindDisorder, "producer %d: the batch from message %d on has Seq %d at place %d, the first should be %d", number, c.first, s, k, base)
				}
			}
		}
	}
}

// capacity: the send that got Seq k found at most MaxMessages in the queue, it included, so k − MaxMessages had been taken before it
// returned: none of these takes may have begun after that.
func (h *history) capacity(taken []take) {
	latest := make([]int64, len(taken)) // began, of this take and those before
	for i := range taken {
		latest[i] = taken[i].began
		if i > 0 {
			latest[i] = max(latest[i], latest[i-1])
		}
	}
	for i := range taken {
		c := &taken[i]
		if c.seq <= uint64(h.plan.MaxMessages) {
			continue
		}
		must := c.seq - uint64(h.plan.MaxMessages)
		n := sort.Search(len(taken), func(j int) bool { return taken[j].taken > must })
		if n > 0 && latest[n-1] > c.sent.to {
			h.find(kindOver, "Seq %d was sent %d ns before the receive of Taken ≤ %d began", c.seq, latest[n-1]-c.sent.to, must)
		}
	}
}

// occupancy: at no time may the sends that have returned outnumber the takes that have begun by more than MaxMessages.
func (h *history) occupancy() {
	type event struct {
		at int64
		n  int
	}
	var es []event
	for _, so := range h.sends {
		for _, c := range so.calls {
			if c.res == resOK {
				es = append(es, event{c.ended, c.n})
			}
		}
	}
	for i := range h.takes {
		es = append(es, event{h.takes[i].began, -1})
	}
	for _, x := range h.hands {
		es = append(es, event{x.began, -x.n})
	}
	slices.SortFunc(es, func(a, b event) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.n, b.n)) })
	n := 0
	for _, e := range es {
		if n += e.n; n > h.plan.MaxMessages {
			h.find(kindOver, "%d messages were in the queue, it takes %d", n, h.plan.MaxMessages)
			return
		}
	}
}

// claimant is a call that took messages without telling their stamps: a ReceiveInto, or a call of the dead, which may also have taken
// none. It fits to the gaps first … last.
type claimant struct{ first, last int }

type claimants []claimant

func (c claimants) Len() int           { return len(c) }
func (c claimants) Less(i, j int) bool { return c[i].last < c[j].last }
func (c claimants) Swap(i, j int)      { c[i], c[j] = c[j], c[i] }
func (c *claimants) Push(x any)        { *c = append(*c, x.(claimant)) }
func (c *claimants) Pop() any {
	x := (*c)[len(*c)-1]
	*c = (*c)[:len(*c)-1]
	return x
}

// gaps explains every stamp that no receive has told. Each must belong to one claimant whose call was open when it was given: so a
// message that vanished otherwise is found even if some receiver died. Both sides are ordered by time, so giving each gap the
// claimant that can wait least is the best that can be done; and if all gaps can be explained, and all calls of the living find a
// gap, then both at once can too (Mendelsohn and Dulmage).
func (h *history) gaps(taken []take) {
	var lo, hi []int64 // a gap's claim happened after the first and before the second
	var stamp []uint64
	latest, next := int64(0), uint64(1)
	var at []int // how many takes come before the gap
	for i := 0; i <= len(taken); i++ {
		end := h.stats.Sent + 1
		if i < len(taken) {
			end = min(end, taken[i].taken)
		}
		for ; next < end; next++ {
			lo, at, stamp = append(lo, latest), append(at, i), append(stamp, next)
		}
		if i < len(taken) {
			latest, next = max(latest, taken[i].began), taken[i].taken+1
		}
	}
	hi = make([]int64, len(lo))
	soonest := int64(forever)
	for g, i := len(lo)-1, len(taken); g >= 0; g-- {
		for ; i > at[g]; i-- {
			soonest = min(soonest, taken[i-1].ended)
		}
		hi[g] = soonest
	}
	fit := func(began, ended int64) claimant {
		return claimant{sort.Search(len(hi), func(g int) bool { return hi[g] >= began }),
			sort.Search(len(lo), func(g int) bool { return lo[g] > ended }) - 1}
	}
	var living, all []claimant
	for i := range h.takes {
		if x := &h.takes[i]; x.taken == 0 {
			living = append(living, fit(x.began, x.ended))
		}
	}
	all = slices.Clone(living)
	for _, x := range h.hands {
		for range x.n {
			all = append(all, fit(x.began, x.died))
		}
	}
	if gap, _ := match(living, len(lo), false); gap >= 0 {
		h.find(kindInvented, "a ReceiveInto took a message for which there is no Taken")
	}
	if _, gap := match(all, len(lo), true); gap >= 0 {
		h.find(kindLost, "Taken %d was given to nobody: no call of a killed receiver, and no ReceiveInto, was open then", stamp[gap])
	}
}

// match gives each of n gaps a claimant, the one that can wait least. It returns the index, in order of their firsts, of a claimant
// that found no gap (−1: all did) and a gap that found no claimant.
func match(cs []claimant, n int, every bool) (left, gap int) {
	slices.SortFunc(cs, func(a, b claimant) int { return cmp.Compare(a.first, b.first) })
	left, gap = -1, -1
	var open claimants
	next := 0
	for g := range n {
		for ; next < len(cs) && cs[next].first <= g; next++ {
			heap.Push(&open, cs[next])
		}
		for len(open) > 0 && open[0].last < g {
			heap.Pop(&open)
			left = g
		}
		switch {
		case len(open) > 0:
			heap.Pop(&open)
		case every:
			return left, g
		}
	}
	if len(open) > 0 || next < len(cs) {
		left = n
	}
	return left, gap
}
