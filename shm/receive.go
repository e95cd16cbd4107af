package shm

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/kumquat-mq/kumquat/driver"
)

// claimed is a message that is ours (TAKEN), or what a try that found nothing saw.
type claimed struct {
	slot, prio, seq uint64
	stamp           uint64 // how many messages had left the queue when this one did, it included
	pos             uint64 // its place in the ledger
	lend            bool   // in: it is borrowed, so it needs a place of the pool
	inside          bool   // lk is still held: the message is small and will be copied at once
	lease           int64  // in: it is leased for so long (ns); 0: taken for good
	token           uint64 // of the lease
	until           int64  // when that ends (ns)

	seen  uint64 // nothing found: the seq of head then
	back  uint64 // and how many had come back from leases
	taken uint64 // how many this handle has claimed
	due   int64  // and when the first delayed message is due, 0: none waits
}

const (
	posDirect = 4 // ledger position of a short message, copied under lk
	posDrop   = 5 // of a message that a holder removes
	posAck    = 7 // of one that is acknowledged and gives its memory back
	posInside = 6 // of a long one when the pool is empty: copied under lk as well
)

// errNothing: there is no message that the filter lets through.
var errNothing = errors.New("nothing there")

// Receive takes the first message that f lets through. See driver.Queue.
func (q *Queue) Receive(ctx context.Context, f driver.Filter, try bool) (m driver.Message, err error) {
	if err = q.ReceiveMessage(ctx, &f, try, &m); err != nil {
		return driver.Message{}, err
	}
	return m, nil
}

// ReceiveMessage is Receive into *m, which must be zero. A nil f lets every message through. After an error *m says nothing.
func (q *Queue) ReceiveMessage(ctx context.Context, f *driver.Filter, try bool, m *driver.Message) (err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	var c claimed
	if err := q.claim(ctx, chosen(f), -1, try, &c); err != nil {
		return err
	}
	err = q.read(&c, m, nil)
	q.finish(&c)
	return err
}

// ReceiveInto copies the first message's body into buf. See driver.ByteQueue.
func (q *Queue) ReceiveInto(ctx context.Context, buf []byte, try bool) (n, priority int, err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	var c claimed
	if err := q.claim(ctx, nil, len(buf), try, &c); err != nil {
		return 0, 0, err
	}
	n, err = q.readBody(&c, buf)
	q.finish(&c)
	return n, int(c.prio), err
}

// chosen returns f, or nil if f lets every message through: that is what the hot path asks.
func chosen(f *driver.Filter) *driver.Filter {
	if f == nil || f.Any() {
		return nil
	}
	return f
}

// claim takes a message, waiting for one unless try is set. f may be nil, for any.
func (q *Queue) claim(ctx context.Context, f *driver.Filter, room int, try bool, c *claimed) error {
	err := q.attempt(ctx, f, room, c)
	for {
		switch {
		case err == errNothing && try:
			q.fd.clear(q)
			return driver.ErrEmpty
		case err == errNothing:
			err = q.waitToClaim(ctx, f, room, c)
		case err == errLent && !try && uint64(q.loans.Load()) < q.pool:
			// A batch under way gives its places back at once; loans and reservations may never.
			var pos [1]uint64
			if err := q.takePositions(ctx, 1, pos[:], false); err != nil {
				return err
			}
			q.givePosition(pos[0])
			err = q.attempt(ctx, f, room, c)
		default:
			return err
		}
	}
}

// attempt takes the lock, looks and claims, once. errNothing: c says what was seen.
func (q *Queue) attempt(ctx context.Context, f *driver.Filter, room int, c *claimed) error {
	if !q.lk.tryLock() && !q.lk.lock(ctx, q.closing) {
		return q.sentAway(ctx)
	}
	err := q.usable()
	if q.gather.due {
		q.gather.due, q.gather.waited = false, true
		pauseFor(gatherMixed)
	}
	for err == nil {
		if err = q.acquire(ctx); err != nil {
			break
		}
		if c.lease != 0 {
			err = q.countAcked()
		}
		if err == nil {
			err = q.choose(f, room, c)
		}
		if err == nil {
			q.unlock()
			q.wakeSomeSenders(c.stamp, 1) // after the CAS of unlock: a sender that it does not see sees what we consumed
			if !c.inside {
				q.lk.unlock()
			}
			return nil
		}
		if err == errNothing || errors.Is(err, driver.ErrTooLarge) || errors.Is(err, driver.ErrLimit) {
			q.unlock()
			break
		}
		err = q.abandon(err)
	}
	if err == errNothing {
		q.flushHints(freedWorth)
		q.wakeSenders(allSleepers)
	}
	q.lk.unlock()
	return err
}

// errLent: a loan needs a place of the ledger's pool, and all are taken.
var errLent = fmt.Errorf("this handle's batches, reservations and loans hold all the slots that it may: release some: %w", driver.ErrLimit)

// choose finds the message and claims it. We hold the lock.
func (q *Queue) choose(f *driver.Filter, room int, c *claimed) error {
	if f == nil {
		top, err := q.look()
		if err != nil {
			return err
		}
		if top < 0 {
			return q.sawNothing(c)
		}
		s, err := q.hold.a.first(uint64(top))
		if err != nil {
			return err
		}
		return q.claimNode(uint64(top), s, room, c)
	}
	prio, s, err := q.find(f)
	if err != nil {
		return err
	}
	if s == noSlot {
		return q.sawNothing(c)
	}
	return q.claimNode(prio, s, room, c)
}

func (q *Queue) sawNothing(c *claimed) error {
	c.seen, c.back, c.taken = q.hold.drained, load(q.returns), q.hold.taken
	t, _, _, ok, err := q.hold.a.heapTop()
	if err != nil {
		return err
	}
	if c.due = 0; ok {
		c.due = int64(t)
	}
	return errNothing
}

// look returns the priority to claim from, −1 for none. It reads head only when a message above the best one may have come.
//
// Who:   the holder.
// Order: cur is read after we hold the lock; the alert is cleared, and cur lowered, BEFORE head is read: a sender that did not see
//
//	this had published before we read head.
//
// Dies:  an alert cleared and not acted upon: the takeover drains everything anyway.
func (q *Queue) look() (int, error) {
	h := &q.hold
	a := h.a
	if load(a.heapLen) != 0 {
		if err := q.collectDue(); err != nil {
			return 0, err
		}
	}
	best := a.top()
	c := load(q.cur)
	if best >= 0 && c&curAlert == 0 && uint64(best) >= curPrio(c) && curEpoch(c) == lockEpoch(h.my) {
		return best, nil
	}
	alerted := c&curAlert != 0
	for {
		if curEpoch(c) != lockEpoch(h.my) {
			if err := q.takeCur(); err != nil { // not ours: we are fenced, or somebody else wrote there
				return 0, err
			}
			c = load(q.cur)
			continue
		}
		prio := curPrio(c)
		if best >= 0 && uint64(best) < prio {
			if h.low++; h.low == 1 || uint64(best) > h.lowBest {
				h.lowBest = uint64(best)
			}
			if h.low >= lookAgain {
				prio, h.low = min(prio, h.lowBest), 0
			}
		}
		n := curWord(curEpoch(c), prio)
		if n == c || cas(q.cur, c, n) {
			c = n
			break
		}
		c = load(q.cur)
	}
	step("look")
	before := h.drained
	if err := q.drainAndCollect(); err != nil { // what came may be due, or over, already
		return 0, err
	}
	if best >= 0 {
		q.gather.drained(h.drained-before, h.taken)
	}
	if best = a.top(); alerted && best >= 0 && uint64(best) > curPrio(c) {
		cas(q.cur, c, curWord(curEpoch(c), uint64(best))) // fewer alerts; failing is as good
	}
	return best, nil
}

// drain moves what was published since the last drain into the index.
//
// Who:   the holder.
// Order: the links are read privately; only the verify after them makes them true (F3, F4); nodes are written after it; drained
//
//	goes up before anything of it is claimed (F1).
//
// Dies:  before drained goes up: the next holder drains again, its nodes say the same. After: it is in the index, or found by a
//
//	rebuild with our nodes as evidence.
func (q *Queue) drain() error {
	h := &q.hold
	hd := load(q.head)
	n := seqDiff(headSeq(hd), h.drained)
	if n == 0 {
		return nil
	}
	if n < 0 || uint64(n) > q.max {
		if q.isFenced() {
			return errFenced
		}
		return fmt.Errorf("head says %d messages are new, the queue takes %d: %w", n, q.max, driver.ErrCorrupt)
	}
	buf := h.buf[:0]
	s := headSlot(hd)
	if s < q.slots { // else the chain is broken, as will be found
		q.fetchMessage(s) // while its link is on the way
	}
	var mixed, last uint64
	for ; n > 0; n-- {
		if s >= q.slots {
			return q.brokenChain(s)
		}
		l := load(q.linkOf(s))
		buf = append(buf, l&^slotMask|s)
		if last != 0 {
			mixed |= l ^ last
		}
		last = l | 1<<63
		s = linkNext(l)
		if n%4096 == 0 {
			h.a.step()
		}
	}
	h.buf = buf
	step("drained links")
	if q.isFenced() {
		return errFenced
	}
	a := h.a
	if a.k >= 2 {
		if err := q.backDrain(a.k, buf); err != nil {
			return err
		}
	}
	seq, atOnce, leases := h.drained, len(buf), load(q.timed)&someLeases != 0
	if linkPrio(mixed) == 0 {
		atOnce = fetchDrained
	}
	for i := len(buf) - 1; i >= 0; i-- {
		seq = (seq + 1) & seqMask
		l := buf[i]
		s := l & slotMask
		if len(buf)-i <= atOnce {
			q.fetchMessage(s)
		}
		var err error
		if leases {
			err = q.settleReused(a, s)
		}
		if err != nil {
			return err
		}
		if linkIsTimed(l) {
			err = q.enlist(a, l, s, readyWord(0, seq), seq)
		} else {
			err = a.push(s, linkPrio(l), readyWord(0, seq), seq)
		}
		if err != nil {
			return err
		}
		if i%4096 == 4095 {
			a.step()
		}
	}
	my := h.my&^uint64(seqMask) | headSeq(hd)
	step("publish drained")
	if !cas(q.lockw, h.my, my) {
		return errFenced
	}
	h.my, h.drained = my, headSeq(hd)
	if cap(h.buf) > 1<<18 {
		h.buf = nil
	}
	return nil
}

const (
	fetchDrained = 24 // messages of one priority that are asked into the cache when they are drained
	fetchLead    = 16 // and how far ahead of the claims the others are
)

// ahead runs along a priority's list in front of the claims and asks what will be claimed into the cache: in a deep queue it lies in
// memory, and after a large drain in another processor's cache, which cannot be asked for all at once. It only guesses: what it reads
// may be of yesterday.
type ahead struct {
	prio, slot uint64
	lead       int // 0: it stands nowhere
}

func (q *Queue) runAhead(a *area, prio, claimed uint64) {
	r := &q.hold.ahead
	if r.prio != prio || r.lead == 0 {
		r.prio, r.slot, r.lead = prio, claimed, 1
	}
	r.lead--
	for range 2 {
		if r.lead >= fetchLead {
			return
		}
		next := nodeNext(load(a.node(r.slot)))
		if next >= a.slots {
			return
		}
		q.fetchMessage(next)
		r.slot = next
		r.lead++
	}
}

func (q *Queue) fetchMessage(s uint64) {
	prefetch(q.stateOf(s))
	prefetch(p64(q.slot(s), 64))
}

// backDrain makes sure of pages in an area that sends do not provide for. A sender may have read the lock before the takeover.
func (q *Queue) backDrain(k uint64, links []uint64) error {
	var top, pages uint64
	for _, l := range links {
		top = max(top, l&slotMask+1)
		pages |= 1 << (linkPrio(l) / listsPerPage)
	}
	if err := q.backNodes(k, top); err != nil {
		return err
	}
	for p := uint64(0); p < 64; p++ {
		if pages>>p&1 != 0 {
			if err := q.backList(k, p*listsPerPage); err != nil {
				return err
			}
		}
	}
	return nil
}

// claimNode claims the message of slot s, and decides from where it will be copied. room ≥ 0: only if its body is no longer.
func (q *Queue) claimNode(prio, s uint64, room int, c *claimed) error {
	sl := q.slot(s)
	size := load32(p32(sl, sSize))
	if room >= 0 && uint64(size) > uint64(room) && load(q.stateOf(s)) == load(q.hold.a.expected(s)) {
		return fmt.Errorf("the first message has %d bytes, the buffer %d: %w", size, room, driver.ErrTooLarge)
	}
	c.inside = true
	if c.lease != 0 {
		return q.leaseAt(prio, s, c)
	}
	pos := uint64(posDirect)
	if c.lend || size > shortBody {
		switch pos = q.takePosition(); {
		case pos != 0:
			c.inside = false
		case c.lend:
			return errLent
		default:
			pos = posInside
		}
	}
	err := q.claimAt(prio, s, pos, c)
	if err != nil && !c.inside {
		q.givePosition(pos)
	}
	return err
}

// claimAt claims the message of slot s and takes it out of the index.
//
// Who:   the holder.
// Order: ledger before the CAS; the index after it. The CAS decides: it fails only if somebody took the lock over and tagged or
//
//	claimed this message, never because it is gone otherwise. So failing means fenced, not "try the next".
//
// Dies:  after the CAS: the message is in the hand of the dead: lost, as a receive at most once may lose it.
func (q *Queue) claimAt(prio, s, pos uint64, c *claimed) error {
	a := q.hold.a
	w := load(a.expected(s))
	store32(p32(q.ledger, pos*4), uint32(s+1))
	step("claim")
	if !cas(q.stateOf(s), w, q.taken) {
		if q.isFenced() {
			return errFenced
		}
		return errDamaged
	}
	c.slot, c.prio, c.seq, c.pos = s, prio, seqOf(w), pos
	q.runAhead(a, prio, s)
	q.hold.taken++
	if err := q.retire(a, prio, s); err != nil {
		_ = q.takeover(q.hold.my) // the claim is good, the index is not: a new one will not hold this message
	}
	c.stamp = load(q.hold.a.consumed)
	q.record(opReceive, s, c.seq)
	return nil
}

// retire takes a claimed message out of the index and counts it.
func (q *Queue) retire(a *area, prio, s uint64) error {
	err := a.unlink(prio, s)
	if err == nil && load(a.heapLen) != 0 && q.mayBeTimed(s) {
		err = a.heapRemove(s)
	}
	step("consumed")
	store(a.consumed, (load(a.consumed)+1)&seqMask)
	return err
}

// mayBeTimed reports whether slot s's message may stand in the heap: the others' places may have no page, and are not looked at.
func (q *Queue) mayBeTimed(s uint64) bool {
	return linkIsTimed(load(q.linkOf(s))) || load(q.timed)&someLeases != 0
}

// takePosition takes a ledger position from the pool, 0 if there is none.
func (q *Queue) takePosition() uint64 {
	if m := q.takeSome(1); m != 0 {
		return fixedLedger + uint64(bits.TrailingZeros64(m))
	}
	return 0
}

func (q *Queue) givePosition(pos uint64) { q.giveSome(1 << (pos - fixedLedger)) }

// takeSome takes up to n positions of the pool, as a mask.
func (q *Queue) takeSome(n int) uint64 {
	for {
		w := q.positions.Load()
		rest := w
		for i := 0; i < n && rest != 0; i++ {
			rest &= rest - 1
		}
		if w == rest || q.positions.CompareAndSwap(w, rest) {
			return w &^ rest
		}
	}
}

func (q *Queue) giveSome(mask uint64) {
	if mask == 0 {
		return
	}
	q.positions.Or(mask)
	select {
	case q.poolFreed <- struct{}{}:
	default:
	}
}

// finish gives a claimed message's slot back.
func (q *Queue) finish(c *claimed) {
	if c.inside {
		if c.pos == posDirect {
			q.freeSlot(c.slot)
		} else {
			q.freeBig(c.slot)
		}
		store(p64(q.entry, pReceived), load(p64(q.entry, pReceived))+1)
		q.lk.unlock()
		return
	}
	q.freeBig(c.slot)
	q.count(pReceived, 1)
	q.givePosition(c.pos)
}

// ReceiveBatch takes what is there, up to max. See driver.Batcher.
func (q *Queue) ReceiveBatch(ctx context.Context, dst []driver.Message, f driver.Filter, max int, try bool) (out []driver.Message, err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	return q.receiveBatch(ctx, dst, &f, max, try, false)
}

// ReceiveBatchInto is ReceiveBatch into ms, whose Bodies are used again. It returns how many messages it took.
func (q *Queue) ReceiveBatchInto(ctx context.Context, ms []driver.Message, f driver.Filter, try bool) (n int, err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	out, err := q.receiveBatch(ctx, ms[:0], &f, len(ms), try, true)
	return len(out), err
}

// receiveBatch appends to dst. With reuse the Bodies of the messages that stand behind dst are overwritten.
func (q *Queue) receiveBatch(ctx context.Context, dst []driver.Message, f *driver.Filter, max int, try, reuse bool) (out []driver.Message, err error) {
	out = dst
	cs := claims.Get().(*[poolMax]claimed)
	defer claims.Put(cs)
	for len(out)-len(dst) < max {
		n, places := q.claimMany(ctx, chosen(f), cs[:min(poolMax, max-(len(out)-len(dst)))])
		if n == 0 {
			if len(out) > len(dst) {
				break
			}
			c := &cs[0] // nothing is there: wait for the first
			*c = claimed{}
			if err := q.claim(ctx, chosen(f), -1, try, c); err != nil {
				return out, err
			}
			out, err = q.readMany(cs[:1], out, reuse)
			q.finish(c)
			if err != nil {
				return out, err
			}
			continue
		}
		out, err = q.readMany(cs[:n], out, reuse)
		q.freeMany(cs[:n])
		q.giveSome(places)
		q.count(pReceived, uint64(n))
		if err != nil {
			break
		}
	}
	if len(out) > len(dst) {
		err = nil // what we have is the caller's; the error comes again
	}
	return out, err
}

// The claims of a batch are many; their memory is used again.
var claims = sync.Pool{New: func() any { return new([poolMax]claimed) }}

// claimMany claims messages into cs under one hold of the lock, without waiting, as many as the ledger has places for. places are
// those used.
func (q *Queue) claimMany(ctx context.Context, f *driver.Filter, cs []claimed) (n int, places uint64) {
	if !q.lk.lock(ctx, q.closing) {
		return 0, 0
	}
	defer q.lk.unlock()
	if q.usable() != nil || q.acquire(ctx) != nil {
		return 0, 0
	}
	free := q.takeSome(len(cs))
	var err error
	for free != 0 {
		if err = q.chooseAt(f, fixedLedger+uint64(bits.TrailingZeros64(free)), &cs[n]); err != nil {
			break
		}
		places |= free & -free
		free &= free - 1
		n++
	}
	q.giveSome(free)
	if err == nil || err == errNothing {
		q.unlock()
	} else {
		_ = q.abandon(err) // the next call meets it again
	}
	if n > 0 {
		q.wakeSomeSenders(cs[n-1].stamp, n)
	}
	return n, places
}

// readMany appends the claimed messages to out. Small bodies share one allocation, or with reuse each goes where the Body was that
// stood there.
func (q *Queue) readMany(cs []claimed, out []driver.Message, reuse bool) ([]driver.Message, error) {
	if !reuse {
		out = slices.Grow(out, len(cs))
	}
	var room []byte
	var failed error
	for i := range cs {
		out = out[:len(out)+1]
		m := &out[len(out)-1]
		old := m.Body
		*m = driver.Message{}
		var lent []byte
		if err := q.read(&cs[i], m, &lent); err != nil {
			m.Body = old
			out, failed = out[:len(out)-1], err
			continue
		}
		switch {
		case reuse:
			m.Body = append(old[:0], lent...)
		case len(lent) > inlineSize:
			m.Body = slices.Clone(lent)
		default:
			if len(room) < len(lent) {
				room = make([]byte, inlineSize*(len(cs)-i))
			}
			m.Body = room[:copy(room, lent):len(lent)]
			room = room[len(lent):]
		}
	}
	return out, failed
}

// freeMany gives the slots of claimed messages back.
func (q *Queue) freeMany(cs []claimed) {
	if q.lk.tryLock() {
		for i := range cs {
			if q.stride >= punchFrom {
				q.punch(cs[i].slot)
			}
			q.freeSlot(cs[i].slot)
		}
		q.lk.unlock()
		return
	}
	for i := range cs {
		q.freeBig(cs[i].slot)
	}
}

// chooseAt is choose with a ledger position of the caller's.
func (q *Queue) chooseAt(f *driver.Filter, pos uint64, c *claimed) error {
	var prio, s uint64
	var err error
	if f == nil {
		top, e := q.look()
		if e != nil {
			return e
		}
		if top < 0 {
			return errNothing
		}
		prio = uint64(top)
		s, err = q.hold.a.first(prio)
	} else if prio, s, err = q.find(f); err == nil && s == noSlot {
		return errNothing
	}
	if err != nil {
		return err
	}
	if c.lease != 0 {
		return q.leaseAt(prio, s, c)
	}
	return q.claimAt(prio, s, pos, c)
}
