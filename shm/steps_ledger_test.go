//go:build kumquat_step

package shm

import (
	"fmt"
	"time"
)

// The ledger keeps its own books of a queue: after every step of a client it compares the shared words with what they were, and
// knows from the protocol (words.go) which changes there are. So it knows exactly, at every tick, which messages are published and
// which are claimed, and it tells the very step that does wrong:
//
//   - a published message changes only its tag, until it is claimed: never lost, freed, or changed;
//   - a lease is its owner's: only he acknowledges it, and others end it only when its time has come or he is dead; a takeover keeps
//     its token, and no token is used twice;
//   - what was never published is not claimed and not adopted;
//   - nobody frees or takes what a living other has reserved, made ready or claimed;
//   - published − claimed, the exact number of messages, never exceeds the capacity;
//   - consumed is never ahead of the number claimed, and exactly that number when the lock is given back, less
//     what was acknowledged and still stands in the index as leased;
//   - drained never goes back and never beyond head; a taken-over area is in no living other's mark;
//   - when the lock is given back, cur is of the lock's epoch, and the index has every drained message at its place;
//   - a node of the index, which is evidence, names only what was published.
type ledger struct {
	w             *world
	states        []uint64
	slots         []slotBook
	head, lock    uint64
	sent, claimed uint64
	everPublished map[[2]uint64]bool // slot and seq
	takeovers     int
	tokens        map[uint64]bool
	returned      int // leases that ended otherwise than by their owner
	retags, freed int // messages that takeovers adopted; slots of the dead that were taken back
}

// slotBook is what the ledger knows of a slot.
type slotBook struct {
	published bool // and not claimed
	by        *client

	leased bool
	seq    uint64 // of the leased message
	until  int64  // until when (ns) its owner has it
}

func (g *ledger) begin(w *world) {
	*g = ledger{w: w, everPublished: map[[2]uint64]bool{}, tokens: map[uint64]bool{}, head: *w.seen.head, lock: *w.seen.lockw}
}

// look compares. c made the step; nil: the test itself did many, as it opened or closed handles.
func (g *ledger) look(c *client) {
	q := g.w.seen
	if c != nil && c.inside && c.unmarked() {
		c.inside = false
	}
	high := min(*q.high, q.slots)
	for uint64(len(g.states)) < high {
		g.states = append(g.states, kindFree)
		g.slots = append(g.slots, slotBook{})
	}
	for s := range high {
		if x := *q.stateOf(s); x != g.states[s] {
			old := g.states[s]
			g.states[s] = x
			if why := g.changed(c, s, old, x); why != "" {
				g.w.fail("slot %d goes from %s to %s: %s", s, stateText(old), stateText(x), why)
			}
		}
	}
	if h := *q.head; h != g.head {
		g.publish(h)
	}
	l := *q.lockw
	consumed := *q.areas[lockArea(l)].consumed
	if d := seqDiff(g.claimed&seqMask, consumed); d < 0 && c != nil {
		g.w.fail("consumed is %d, but only %d messages were claimed", consumed, g.claimed)
	}
	if l != g.lock {
		old := g.lock
		g.lock = l
		g.locked(c, old, l)
	}
}

func stateText(w uint64) string {
	switch kindOf(w) {
	case kindFree:
		return "FREE"
	case kindReserved:
		return fmt.Sprintf("RESERVED(%d,%d)", ownerOf(w), genOf(w))
	case kindReady:
		return fmt.Sprintf("READY(%d,%d)", tagOf(w), seqOf(w))
	case kindLeased:
		return fmt.Sprintf("LEASED(%d,%d:%d)", tagOf(w), tokenOwner(tokenOf(w)), tokenOf(w)>>tokenParts)
	case kindTaken:
		return fmt.Sprintf("TAKEN(%d,%d)", ownerOf(w), genOf(w))
	}
	return fmt.Sprintf("%#x", w)
}

// changed judges a change of slot s, "" if it may be.
func (g *ledger) changed(c *client, s, old, x uint64) string {
	b := &g.slots[s]
	if b.leased {
		return g.lease(c, s, old, x)
	}
	if b.published {
		switch {
		case kindOf(x) == kindLeased:
			if g.tokens[tokenOf(x)] {
				return "its token is not new"
			}
			g.tokens[tokenOf(x)] = true
			*b = slotBook{published: true, by: c, leased: true, seq: seqOf(old), until: recTime(*g.w.seen.recordOf(s, 1))}
		case kindOf(x) == kindTaken:
			g.claimed++
			*b = slotBook{by: c}
		case kindOf(x) != kindReady || seqOf(x) != seqOf(old):
			return "it has a published message"
		case tagOf(x) == 0:
			return "a takeover's tag goes"
		default:
			g.retags++
		}
		return ""
	}
	stranger := c != nil && b.by != nil && b.by != c && !b.by.dead
	from, to := kindOf(old), kindOf(x)
	switch {
	case from == kindFree && to == kindReserved:
		b.by = c
		return ""
	case from == kindReserved && to == kindReady && tagOf(x) == 0, from == kindReady && to == kindReserved:
		if stranger || c == nil {
			return "only its owner may"
		}
		return ""
	case to == kindFree:
		if stranger {
			return fmt.Sprintf("it is client %d's, who lives", b.by.n)
		}
		if b.by != nil && b.by.dead {
			g.freed++
		}
		b.by = nil
		return ""
	case from == kindReady && (to == kindTaken || to == kindReady && tagOf(x) != 0):
		return "what it holds was never published"
	}
	return "no rule allows that"
}

// lease judges a change of a leased slot.
func (g *ledger) lease(c *client, s, old, x uint64) string {
	b := &g.slots[s]
	mine := c != nil && b.by == c || b.by != nil && c == nil
	switch kindOf(x) {
	case kindLeased:
		if tokenOf(x) != tokenOf(old) || tagOf(x) == tagOf(old) {
			return "a takeover changes the tag, and nothing else"
		}
		g.retags++
		return ""
	case kindFree, kindTaken:
		if !mine {
			return "only its owner acknowledges"
		}
		g.claimed++
		*b = slotBook{}
		if kindOf(x) == kindTaken {
			b.by = c
		}
		return ""
	case kindReady:
		if seqOf(x) != b.seq || tagOf(x) == 0 {
			return "it is another message"
		}
		e := b.by.last()
		giving := e != nil && e.kind == opsBack && e.done == 0 // he wants it to end
		if !mine && !b.by.dead && !giving && b.by.q.state.Load() == stateOpen && time.Now().UnixNano() < b.until {
			return "its owner lives, and its time has not come"
		}
		if !mine {
			g.returned++
		}
		*b = slotBook{published: true}
		return ""
	}
	return "no rule allows that"
}

// uncounted is how many messages stand in area a as leased, and were acknowledged.
func (g *ledger) uncounted(a *area) (n uint64) {
	for i := range min(*a.heapLen, a.slots) {
		s := headSlot(*a.heapItem(i))
		if *a.heapTime(i)&heapKind == heapLeased && s < uint64(len(g.slots)) && !(g.slots[s].leased && g.slots[s].seq == headSeq(*a.heapItem(i))) {
			n++
		}
	}
	return n
}

// held judges a lease in the heap of a free lock.
func (g *ledger) held(a *area, s, seq uint64) string {
	if s >= uint64(len(g.slots)) || nodeSeq(*a.node(s)) != seq || kindOf(*a.expected(s)) != kindLeased {
		return fmt.Sprintf("the heap has a lease of message %d in slot %d, whose node does not know it", seq, s)
	}
	b := &g.slots[s]
	if b.leased && (b.seq != seq || *a.expected(s) != g.states[s]) {
		return fmt.Sprintf("slot %d is %s of message %d, the index has %s of message %d", s, stateText(g.states[s]), b.seq, stateText(*a.expected(s)), seq)
	}
	return ""
}

// publish books what the new head word h adds.
func (g *ledger) publish(h uint64) {
	q := g.w.seen
	n := seqDiff(headSeq(h), headSeq(g.head))
	if n <= 0 || uint64(n) > q.max {
		g.w.fail("head goes from seq %d to %d", headSeq(g.head), headSeq(h))
	}
	g.head = h
	for s, k := headSlot(h), headSeq(h); n > 0; n, k = n-1, (k-1)&seqMask {
		if s >= uint64(len(g.slots)) || g.slots[s].published || g.states[s] != readyWord(0, k) {
			g.w.fail("message %d is published in slot %d, whose state is %s", k, s, stateText(*q.stateOf(min(s, q.slots-1))))
		}
		g.slots[s].published = true
		g.everPublished[[2]uint64{s, k}] = true
		g.sent++
		s = linkNext(*q.linkOf(s))
	}
	if g.sent-g.claimed > q.max {
		g.w.fail("%d messages are there, the queue takes %d", g.sent-g.claimed, q.max)
	}
}

// locked judges a change of the lock's word.
func (g *ledger) locked(c *client, old, l uint64) {
	q := g.w.seen
	if d := seqDiff(lockDrained(l), lockDrained(old)); d < 0 || seqDiff(headSeq(g.head), lockDrained(l)) < 0 {
		g.w.fail("drained goes from %d to %d, head is at %d", lockDrained(old), lockDrained(l), headSeq(g.head))
	}
	if lockEpoch(l) != lockEpoch(old) {
		g.takeovers++
		if !lockIsHeld(old) && c != nil {
			g.w.fail("a lock that nobody holds was taken over")
		}
		for _, o := range g.w.clients {
			if o != c && !o.dead && o.inside && o.area == lockArea(l) {
				g.w.fail("a takeover uses area %d, which client %d may still touch", lockArea(l), o.n)
			}
		}
	}
	if c != nil && lockIsHeld(l) && (!lockIsHeld(old) || lockEpoch(l) != lockEpoch(old)) {
		c.inside, c.area = true, lockArea(l)
	}
	if lockIsHeld(l) || lockEpoch(l) != lockEpoch(old) && c != nil {
		return
	}
	// The lock was given back: the index is whole.
	a := &q.areas[lockArea(l)]
	if *a.consumed+g.uncounted(a) != g.claimed&seqMask {
		g.w.fail("the lock is given back with consumed %d and %d acknowledged, %d messages were claimed", *a.consumed, g.uncounted(a), g.claimed)
	}
	cur := *q.cur
	if curEpoch(cur) != lockEpoch(l) {
		g.w.fail("the lock of epoch %d is given back with cur of epoch %d", lockEpoch(l), curEpoch(cur))
	}
	if why := g.indexed(a, l); why != "" {
		g.w.fail("the lock is given back: %s", why)
	}
}

// unmarked reports that the client has given up its mark, and with it the area.
func (c *client) unmarked() bool { return c.q.state.Load() != stateOpen || *c.q.mark == 0 }

// indexed compares the index of a free lock with the messages that are published up to drained: each stands in it once, in its
// list in the order of its seq, or in the heap alone.
func (g *ledger) indexed(a *area, l uint64) string {
	q := g.w.seen
	found := map[uint64]bool{}
	for p := range uint64(8) { // the tests use priorities 0…7
		if *p64(a.level0, p/64*8)>>(p%64)&1 == 0 {
			continue
		}
		w := *a.list(p)
		last := int64(-1)
		for s := listHead(w); ; s = nodeNext(*a.node(s)) {
			if s >= uint64(len(g.slots)) || found[s] || !g.slots[s].published || g.slots[s].leased {
				return fmt.Sprintf("the list of priority %d has slot %d, which has no message of its own", p, s)
			}
			found[s] = true
			switch seq := seqOf(g.states[s]); {
			case nodeSeq(*a.node(s)) != seq || *a.expected(s) != g.states[s]:
				return fmt.Sprintf("slot %d is %s, its node says seq %d, %s", s, stateText(g.states[s]), nodeSeq(*a.node(s)), stateText(*a.expected(s)))
			case linkPrio(*q.linkOf(s)) != p:
				return fmt.Sprintf("slot %d of priority %d is in the list of priority %d", s, linkPrio(*q.linkOf(s)), p)
			case int64(seq) <= last:
				return fmt.Sprintf("the list of priority %d has seq %d after %d", p, seq, last)
			default:
				last = int64(seq)
			}
			if s == listTail(w) {
				break
			}
		}
	}
	for i := range min(*a.heapLen, a.slots) {
		s := headSlot(*a.heapItem(i))
		if *a.heapTime(i)&heapKind == heapLeased {
			if why := g.held(a, s, headSeq(*a.heapItem(i))); why != "" {
				return why
			}
			if g.slots[s].leased {
				found[s] = true
			}
			continue
		}
		listed := *a.heapTime(i)&heapKind == heapListed
		if s >= uint64(len(g.slots)) || !g.slots[s].published || g.slots[s].leased || found[s] != listed || headSeq(*a.heapItem(i)) != seqOf(g.states[s]) {
			return fmt.Sprintf("the heap has slot %d, listed %v, which is %s", s, listed, stateText(g.states[s]))
		}
		if i > 0 && *a.heapTime((i - 1) / 2) > *a.heapTime(i) {
			return "the heap is out of order"
		}
		found[s] = true
	}
	for s := range g.slots {
		if !g.slots[s].published || found[uint64(s)] {
			continue
		}
		if g.slots[s].leased {
			return fmt.Sprintf("slot %d is leased, and not in the index", s)
		}
		if seqDiff(seqOf(g.states[s]), lockDrained(l)) <= 0 {
			return fmt.Sprintf("message %d of slot %d is drained, and not in the index", seqOf(g.states[s]), s)
		}
	}
	return ""
}

// end looks at what is left when all is received.
func (g *ledger) end() {
	g.look(nil)
	q := g.w.seen
	if g.sent != g.claimed {
		g.w.fail("%d messages were published, %d claimed", g.sent, g.claimed)
	}
	for k := range q.areas {
		a := &q.areas[k]
		up := min(*p64(q.base, offNodesUp+uint64(k)*8), uint64(len(g.slots)))
		for s := range up {
			if seq := nodeSeq(*a.node(s)); seq != 0 && !g.everPublished[[2]uint64{s, seq}] {
				g.w.fail("area %d has evidence that slot %d carried message %d, which it never did", k, s, seq)
			}
		}
	}
}
