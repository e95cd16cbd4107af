package shm

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// Check has two halves. What lies in one word or one slot can be judged at any time: it is read, judged, and read again, and only
// what has not changed is reported. How lists, heap, bitmaps and counts agree can be judged only when no holder was at work in
// between: two equal stamps around the look, with the lock free. Check waits some time for such a moment. What it then finds
// broken must be found again in another quiet moment.
const (
	checkFor    = 2 * time.Second
	maxProblems = 1000
)

// checker gathers what one look found.
type checker struct {
	o        *observer
	ctx      context.Context
	problems []driver.Problem
	omitted  int
	checked  int
	table    []entry
	alive    []bool
	marks    []byte   // per slot, of a quiet look: slotQueued, …
	seqs     []uint64 // of the queued messages
	queued   uint64
	fresh    uint64 // of these, not drained yet
	held     uint64 // entries of the heap that stand for leases
	suspects []suspect
	index    bool // found a contradiction of the index
}

// A suspect slot seems to belong to nobody alive. It is judged at the end, with the table of participants read anew.
type suspect struct{ slot, state uint64 }

const (
	slotQueued = 1 << iota
	slotListed
	slotTimed // in the heap
	slotFresh // not drained yet
	slotLeased
	slotHeld // in the heap as leased
)

func (c *checker) add(broken bool, where, text string) {
	if len(c.problems) >= maxProblems {
		c.omitted++
		return
	}
	c.problems = append(c.problems, driver.Problem{Broken: broken, Where: where, Text: text})
}

// fact counts a fact and, if it does not hold, notes it as broken.
func (c *checker) fact(holds bool, where, format string, args ...any) bool {
	c.checked++
	if !holds {
		c.add(true, where, fmt.Sprintf(format, args...))
	}
	return holds
}

func (c *checker) debris(where, format string, args ...any) {
	c.add(false, where, fmt.Sprintf(format, args...))
}

// Check examines every invariant of the file. Debris of the dead (Problem.Broken false) is what the next users clear away. If the
// queue was in use all the time, Busy is set and the index was not checked. Hints and futex words have no invariants.
func (o *observer) Check(ctx context.Context) (driver.Report, error) {
	r := driver.Report{Name: o.name}
	head := &checker{o: o, ctx: ctx}
	sound, err := head.header()
	if err != nil {
		return r, err
	}
	if !sound {
		r.Checked, r.Problems = head.checked, head.problems
		return r, nil
	}
	c, busy, err := o.look(ctx)
	if err != nil {
		return r, err
	}
	r.Busy = busy
	r.Checked, r.Problems = head.checked+c.checked, append(head.problems, c.problems...)
	if c.omitted > 0 {
		r.Problems = append(r.Problems, driver.Problem{Broken: true, Where: "file", Text: fmt.Sprintf("and %d more", c.omitted)})
	}
	users := userNames{}
	for i := range c.table {
		if e := &c.table[i]; partState(e.word) == partLive && !c.alive[i] {
			p, err := o.describe(e, false, users)
			if err != nil {
				return r, err
			}
			r.Dead = append(r.Dead, p)
		}
	}
	return r, nil
}

// look looks until it had a quiet moment, and twice if that showed the index broken.
func (o *observer) look(ctx context.Context) (c *checker, busy bool, err error) {
	deadline := time.Now().Add(checkFor)
	confirmed := false
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		late := !time.Now().Before(deadline)
		before, err := o.stamp()
		if err != nil {
			return nil, false, err
		}
		if !lockIsHeld(before.lock) || late {
			c = &checker{o: o, ctx: ctx}
			quiet, err := c.pass(before)
			switch {
			case err != nil:
				return nil, false, err
			case quiet && (!c.index || confirmed):
				return c, false, nil
			case quiet:
				confirmed = true // once more, to be sure
				continue
			case late:
				return c, !c.lockOfDead(before), nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, false, driver.ContextError(ctx)
		case <-time.After(pause):
		}
	}
}

// pass makes one look. quiet says whether the index was looked at in a quiet moment; else what was found there is forgotten.
func (c *checker) pass(before stamp) (quiet bool, err error) {
	if err := c.hot(); err != nil {
		return false, err
	}
	if err := c.participants(); err != nil {
		return false, err
	}
	s, err := c.o.snapshot(c.ctx)
	if err != nil {
		return false, err
	}
	quiet = !lockIsHeld(before.lock) && s.stamp == before
	if quiet {
		c.marks = make([]byte, s.high)
	}
	if err := c.slots(s); err != nil {
		return false, err
	}
	if err := c.judge(); err != nil {
		return false, err
	}
	if !quiet {
		return false, nil
	}
	n, facts, omitted := len(c.problems), c.checked, c.omitted
	if err := c.indexOf(s); err != nil {
		return false, err
	}
	after, err := c.o.stamp()
	if err != nil {
		return false, err
	}
	if after != before {
		c.problems, c.checked, c.omitted = c.problems[:n], facts, omitted
		return false, nil
	}
	c.index = len(c.problems) > n || c.omitted > omitted
	return true, nil
}

// header checks the header page. Unless it is sound nothing else has a meaning.
func (c *checker) header() (sound bool, err error) {
	st, err := c.o.stat()
	if err != nil {
		return false, err
	}
	b := make([]byte, pageSize)
	if err := c.o.read(b[:min(pageSize, st.Size)], 0); err != nil {
		return false, err
	}
	l, err := decodeLayout(b[:min(pageSize, st.Size)], st.Size)
	if err != nil {
		return c.fact(false, "header", "%v", err), nil
	}
	c.checked++
	mine := c.o.layout
	l.created, mine.created = time.Time{}, time.Time{}
	w := u64at(b, offRemoved)
	c.fact(w <= 1, "header", "the removed flag is %d, it is 0 or 1", w)
	return c.fact(l == mine, "header", "it has changed since the queue was opened"), nil
}

// hot checks the hot words that have bounds of their own.
func (c *checker) hot() error {
	o := c.o
	b := make([]byte, pageSize)
	if err := o.read(b, pageSize); err != nil {
		return err
	}
	at := func(off int) uint64 { return u64at(b, off-pageSize) }
	high, backed, parts := at(offHigh), at(offBacked), at(offPartHigh)
	c.fact(high <= o.slots, "hot words", "the high-water mark is %d, there are %d slots", high, o.slots)
	c.fact(backed <= o.slots, "hot words", "memory is claimed for %d slots, there are %d", backed, o.slots)
	if backed < high { // backed is raised first; the two may lie in different lines
		again, err := o.word(offBacked)
		if err != nil {
			return err
		}
		c.fact(high <= again, "hot words", "%d slots are in use, only %d have memory", high, again)
	}
	c.fact(parts <= roundUp(o.parts, pageSize/partSize), "hot words", "%d participants are in use, there are %d", parts, o.parts)
	cur := at(offCur)
	c.fact(curPrio(cur) <= driver.MaxPriority && cur&^(epochMask<<32|curAlert|0xffff) == 0, "cur", "the word %#x has bits that mean nothing", cur)
	for k := range areaCount {
		nodes, heap := at(offNodesUp+8*k), at(offHeapUp+8*k)
		c.fact(nodes <= o.slots && heap <= o.slots, fmt.Sprintf("area %d", k), "memory is claimed for %d nodes and %d heap entries, there are %d slots", nodes, heap, o.slots)
	}
	return c.counts()
}

// counts checks that drained ≤ head, and that no more wait than may. The words are read one after the other, so they are
// believed when lock is the same before and after.
func (c *checker) counts() error {
	for range 100 {
		s, err := c.o.stamp()
		if err != nil {
			return err
		}
		lock, err := c.o.word(offLock)
		if err != nil {
			return err
		}
		if lock != s.lock {
			continue
		}
		fresh := seqDiff(headSeq(s.head), lockDrained(lock))
		c.fact(fresh >= 0 && uint64(fresh) <= c.o.max, "lock", "it says that %d of the %d messages sent were drained: at most %d can be left", lockDrained(lock), headSeq(s.head), c.o.max)
		c.fact(headSlot(s.head) < c.o.slots, "head", "it leads to slot %d, there are %d", headSlot(s.head), c.o.slots)
		if lockIsHeld(lock) {
			return nil // consumed may be on its way
		}
		again, err := c.o.stamp()
		if err != nil {
			return err
		}
		if again == s {
			n := seqDiff(headSeq(s.head), s.consumed)
			c.fact(n >= 0 && uint64(n) <= c.o.max, "head", "%d messages were sent and %d left: at most %d can wait", headSeq(s.head), s.consumed&seqMask, c.o.max)
			c.fact(seqDiff(lockDrained(lock), s.consumed) >= 0, "lock", "%d messages left, but only %d were drained", s.consumed&seqMask, lockDrained(lock))
			return nil
		}
	}
	return nil
}

// participants reads and checks the table.
func (c *checker) participants() (err error) {
	if c.table, err = c.o.entries(); err != nil {
		return err
	}
	c.alive = make([]bool, len(c.table))
	lock, err := c.o.word(offLock)
	if err != nil {
		return err
	}
	for i := range c.table {
		e := &c.table[i]
		where := fmt.Sprintf("participant %d", i)
		live := partState(e.word) == partLive
		if live {
			if c.alive[i], err = c.o.alive(i); err != nil {
				return err
			}
		}
		c.fact(live || partState(e.word) == partClosed, where, "its state is %d, it is closed (0) or live (1)", partState(e.word))
		c.fact(e.mark&^(markUsed|(areaCount-1)<<epochBits|epochMask) == 0, where, "its mark %#x has bits that mean nothing", e.mark)
		if !live && e.mark != 0 {
			again, err := c.o.entry(i)
			if err != nil {
				return err
			}
			c.fact(again.mark == 0 || again.word != e.word, where, "it is closed, but its mark still keeps area %d", markArea(e.mark))
		}
		for _, s := range e.ledger {
			c.fact(uint64(s) <= c.o.slots, where, "its ledger names slot %d, there are %d", uint64(s)-1, c.o.slots)
		}
		if live && !c.alive[i] {
			doing, _ := e.busy(lock)
			c.debris(where, "process %d (%q) died with the queue open; it was at: %s; its place goes to a new handle when no other is left", e.pid, e.command, doing)
		}
	}
	return nil
}

// lockOfDead reports, and says, that the lock has been held all the time and that nobody alive may be its holder.
func (c *checker) lockOfDead(before stamp) bool {
	after, err := c.o.stamp()
	if err != nil || !lockIsHeld(before.lock) || after.lock != before.lock || after.progress != before.progress {
		return false
	}
	for i := range c.table {
		if e := &c.table[i]; e.mark&markUsed != 0 && markArea(e.mark) == lockArea(before.lock) && c.alive[i] {
			return false
		}
	}
	c.debris("lock", "it is held by a process that died; the next user takes it over and builds the index anew, so the index was not checked")
	return true
}

// slots checks every slot in use.
func (c *checker) slots(s *snapshot) error {
	return s.scan(c.ctx, func(b *blocks, i, w uint64) (bool, error) {
		c.checked++
		switch kindOf(w) {
		case kindFree:
			return true, nil
		case kindReady:
			return true, c.ready(b, i, w)
		case kindReserved, kindTaken:
			if p := ownerOf(w); p >= uint64(len(c.table)) || !c.alive[p] || partGen(c.table[p].word)&genMask != genOf(w) {
				c.suspect(i, w)
			}
			return true, nil
		case kindLeased:
			if s.leases {
				return true, c.leased(i, w)
			}
		}
		return true, c.still(i, w, fmt.Sprintf("its state %#x is of no kind that this version writes", w))
	})
}

func (c *checker) suspect(i, w uint64) {
	if len(c.suspects) < maxProblems {
		c.suspects = append(c.suspects, suspect{i, w})
	}
}

// still notes a problem of slot i if its state has not changed since it was w.
func (c *checker) still(i, w uint64, text string) error {
	again, err := c.o.word(c.o.slotBase(i) + sState)
	if err == nil && again == w {
		c.fact(false, fmt.Sprintf("slot %d", i), "%s", text)
	}
	return err
}

// leased checks a slot that is LEASED.
func (c *checker) leased(i, w uint64) error {
	if c.marks != nil {
		c.marks[i] |= slotLeased
	}
	p := tokenOwner(tokenOf(w))
	switch {
	case p >= uint64(len(c.table)):
		return c.still(i, w, fmt.Sprintf("it is leased by participant %d, there are %d", p, len(c.table)))
	case i >= c.o.slots:
		return nil
	case !c.alive[p]:
		again, err := c.o.word(c.o.slotBase(i) + sState)
		if err == nil && again == w {
			c.debris(fmt.Sprintf("slot %d", i), "it was leased by participant %d, which died; the next user gives the message back", p)
		}
		return err
	}
	return nil
}

// ready checks a slot that is READY.
func (c *checker) ready(b *blocks, i, w uint64) error {
	published, err := b.published(i, w)
	if err != nil {
		return err
	}
	seq, head := seqOf(w), b.slots[slotSize*(i-b.first):][:slotSize]
	if !published {
		if tagOf(w) != 0 {
			now, err := c.o.word(offHead)
			if err == nil && seqDiff(seq, headSeq(now)) > 0 {
				return c.still(i, w, fmt.Sprintf("it carries message %d, only %d were sent", seq, headSeq(now)))
			}
			return err
		}
		p := uint64(u32at(head, sOwner)) & 0xfff
		if p >= uint64(len(c.table)) || !c.alive[p] || ownerMark(p, partGen(c.table[p].word)) != u32at(head, sOwner) {
			c.suspect(i, w)
		}
		return nil
	}
	c.queued++
	if c.marks != nil {
		c.marks[i] |= slotQueued
		c.seqs = append(c.seqs, seq)
		if seqDiff(seq, lockDrained(b.s.lock)) > 0 {
			c.marks[i] |= slotFresh
			c.fresh++
		}
	}
	link, err := b.link(i)
	if err != nil {
		return err
	}
	h := parseSlot(head)
	why := cmp.Or(h.fault(&c.o.layout), h.linkFault(link))
	if why == "" {
		var m driver.Message
		if why, err = c.o.contents(i, &h, &m, true); err != nil {
			return err
		}
	}
	if why != "" {
		return c.still(i, w, fmt.Sprintf("message %d %s", seq, why))
	}
	return nil
}

// judge looks at the suspects again, with a table read after their states.
func (c *checker) judge() error {
	if len(c.suspects) == 0 {
		return nil
	}
	table, err := c.o.entries()
	if err != nil {
		return err
	}
	for _, x := range c.suspects {
		var b [slotSize]byte
		if err := c.o.read(b[:], c.o.slotBase(x.slot)); err != nil {
			return err
		}
		if u64at(b[:], sState) != x.state {
			continue
		}
		p, what := ownerOf(x.state), map[uint64]string{kindReserved: "being filled", kindTaken: "being read", kindReady: "about to be published"}[kindOf(x.state)]
		ready := kindOf(x.state) == kindReady
		if ready {
			p = uint64(u32at(b[:], sOwner)) & 0xfff
		}
		where := fmt.Sprintf("slot %d", x.slot)
		if p >= uint64(len(table)) {
			c.fact(false, where, "it is %s by participant %d, there are %d", what, p, len(table))
			continue
		}
		gen := partGen(table[p].word)
		same := genOf(x.state) == gen&genMask
		if ready {
			same = ownerMark(p, gen) == u32at(b[:], sOwner)
		}
		alive, err := c.o.alive(int(p))
		if err != nil {
			return err
		}
		switch {
		case !same || partState(table[p].word) != partLive:
			c.fact(false, where, "it is %s by a handle that left participant %d before: it is lost", what, p)
		case !alive:
			c.debris(where, "it was %s by participant %d, which died; it is freed when the participant's place is taken", what, p)
		}
	}
	return nil
}

// duplicates checks that no two slots carry one message.
func (c *checker) duplicates() {
	slices.Sort(c.seqs)
	for i := 1; i < len(c.seqs); i++ {
		c.fact(c.seqs[i] != c.seqs[i-1], "slots", "two slots carry message %d", c.seqs[i])
	}
}
