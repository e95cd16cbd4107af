package shm

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// Leases. A message that is leased is its owner's for a time: its slot is LEASED, with a token that no other lease has. It counts as
// being in the queue, and stands in the heap by the end of the lease.
//
//	Ack      the owner, without the lock: CAS LEASED(·, token) → FREE. Whoever holds the lock finds out that the word is not what the
//	         index expects, and counts it (collect.go): only holders count, by comparing words.
//	others   Extend, Retry and Release change the record and the index, so they hold the lock, and look for the token under it.
//
// A token that is gone is ErrLeaseLost, and nothing was changed.

// leaseAt leases the message of slot s.
//
// Who:   the holder.
// Order: record before the CAS, index after it. Failing means fenced, as for a claim.
// Dies:  before the CAS: a record that says nothing of a message that waits. After: the owner is dead, so it comes back at once.
func (q *Queue) leaseAt(prio, s uint64, c *claimed) error {
	h := &q.hold
	a := h.a
	if s >= load(q.recordsUp) || s >= load(a.heapUpTo) || load(q.timed)&someLeases == 0 {
		if err := q.backRecords(a.k, min(load(q.high), q.slots)); err != nil {
			return err
		}
	}
	if !h.leasing {
		storeSync(p64(q.entry, pLeasing), q.gen+1)
		h.leasing = true
	}
	w := load(a.expected(s))
	seq := seqOf(w)
	fresh := false
	err := q.setRecord(s, 0, recVersion0, func(r uint64) uint64 {
		if fresh = recSeq(r) != seq; fresh {
			return seq
		}
		return r &^ recCounted
	})
	if err != nil {
		return err
	}
	if fresh {
		store(q.recordOf(s, 2), 0)
		store(q.recordOf(s, 3), 0)
	}
	ms := recMillisOf(time.Now().UnixNano() + c.lease)
	if err := q.setRecord(s, 1, recVersion1, func(uint64) uint64 { return ms &^ recDelays }); err != nil {
		return err
	}
	n := load(p64(q.entry, pTokens)) + 1
	store(p64(q.entry, pTokens), n)
	token := tokenWord(q.me, n)
	leased := leasedWord(tagOfEpoch(lockEpoch(h.my)), token)
	if step("lease"); !cas(q.stateOf(s), w, leased) {
		if q.isFenced() {
			return errFenced
		}
		return errDamaged
	}
	c.slot, c.prio, c.seq, c.token, c.until = s, prio, seq, token, int64(ms)*int64(time.Millisecond)
	store(a.expected(s), leased)
	q.runAhead(a, prio, s)
	if err = a.unlink(prio, s); err == nil {
		if err = a.heapRemove(s); err == nil {
			err = a.heapPush(leasedTime(c.until), seq, s)
		}
	}
	if err != nil {
		_ = q.takeover(h.my) // the lease is good, the index is not
	}
	c.stamp = load(h.a.consumed)
	q.record(opLease, s, seq)
	return nil
}

// Lease takes the first message that f lets through, for d. See driver.Leaser.
func (q *Queue) Lease(ctx context.Context, f driver.Filter, d time.Duration, try bool) (l driver.Lease, err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	for {
		c := claimed{lease: int64(min(max(d, leaseLeast), leaseMost))}
		if err := q.claim(ctx, chosen(&f), -1, try, &c); err != nil {
			return driver.Lease{}, err
		}
		ok, err := q.readLease(&c, &l)
		q.lk.unlock()
		if ok || err != nil {
			return l, err
		}
	}
}

// readLease copies a leased message. false: the lease was over before that, so what was copied is nothing.
func (q *Queue) readLease(c *claimed, l *driver.Lease) (bool, error) {
	*l = driver.Lease{Slot: c.slot, Token: c.token, Until: time.Unix(0, c.until)}
	err := q.read(c, &l.Message, nil)
	if l.Message.Taken = 0; !q.isLeased(c.slot, c.token) {
		return false, nil
	}
	return true, err
}

func (q *Queue) isLeased(s, token uint64) bool {
	w := load(q.stateOf(s))
	return kindOf(w) == kindLeased && tokenOf(w) == token
}

// LeaseBatch leases what is there, up to max. See driver.Leaser.
func (q *Queue) LeaseBatch(ctx context.Context, dst []driver.Lease, f driver.Filter, d time.Duration, max int, try bool) (out []driver.Lease, err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	out = dst
	cs := claims.Get().(*[poolMax]claimed)
	defer func() {
		for i := range cs {
			cs[i].lease = 0 // whoever takes for good relies on it
		}
		claims.Put(cs)
	}()
	for len(out)-len(dst) < max {
		n, err := q.leaseMany(ctx, chosen(&f), d, cs[:min(poolMax, max-(len(out)-len(dst)))], &out)
		if err == nil && n > 0 {
			continue
		}
		if len(out) > len(dst) {
			break // what we have is the caller's; the error comes again
		}
		if err != nil && err != errNothing {
			return out, err
		}
		l, err := q.Lease(ctx, f, d, try)
		if err != nil {
			return out, err
		}
		out = append(out, l)
	}
	return out, nil
}

// leaseMany leases messages under one hold of the lock, without waiting, and appends them to out.
func (q *Queue) leaseMany(ctx context.Context, f *driver.Filter, d time.Duration, cs []claimed, out *[]driver.Lease) (n int, err error) {
	if !q.lk.lock(ctx, q.closing) {
		return 0, q.sentAway(ctx)
	}
	defer q.lk.unlock()
	if err := q.usable(); err != nil {
		return 0, err
	}
	if err := q.acquire(ctx); err != nil {
		return 0, err
	}
	err = q.countAcked()
	for n < len(cs) && err == nil {
		cs[n] = claimed{lease: int64(min(max(d, leaseLeast), leaseMost)), inside: true}
		if err = q.chooseAt(f, 0, &cs[n]); err == nil {
			n++
		}
	}
	consumed := load(q.hold.a.consumed)
	if err == nil || err == errNothing {
		q.unlock()
	} else if err = q.abandon(err); err == nil {
		err = errNothing // fenced: what was leased is ours
	}
	q.wakeSomeSenders(consumed, 1)
	*out = slices.Grow(*out, n)
	for i := range cs[:n] {
		var l driver.Lease
		ok, e := q.readLease(&cs[i], &l)
		if e != nil {
			return n, e
		}
		if ok {
			*out = append(*out, l)
		}
	}
	return n, err
}

// Ack removes a leased message. See driver.Leaser.
//
// Who:   the owner, without the queue's lock.
// Order: the CAS decides; the count of acknowledgements after it, so that who has seen the count finds the word.
// Dies:  after the CAS: acknowledged. It is counted when its lease would have been over, or its owner is found dead.
func (q *Queue) Ack(ctx context.Context, l *driver.Lease) (err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	one := [1]driver.Lease{{Slot: l.Slot, Token: l.Token}}
	_, err = q.ack(ctx, one[:])
	return err
}

// AckBatch acknowledges all of ls. See driver.Leaser.
func (q *Queue) AckBatch(ctx context.Context, ls []driver.Lease) (n int, err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	return q.ack(ctx, ls)
}

const ackedMost = 64 // acknowledgements that this handle leaves uncounted

func (q *Queue) ack(ctx context.Context, ls []driver.Lease) (n int, err error) {
	mine := q.lk.tryLock()
	if !mine {
		if q.stride >= punchFrom { // a place of the ledger is needed
			if !q.lk.lock(ctx, q.closing) {
				return 0, q.sentAway(ctx)
			}
			mine = true
		} else if err := q.enter(); err != nil {
			return 0, err
		}
	}
	defer func() {
		if mine {
			q.lk.unlock()
		} else {
			q.exit()
		}
	}()
	if err := q.usable(); err != nil {
		return 0, err
	}
	var word, mask uint64
	for i := range ls {
		s := ls[i].Slot
		if !q.ackOne(s, ls[i].Token) {
			err = driver.ErrLeaseLost
			continue
		}
		n++
		if s/64 != word && mask != 0 {
			q.giveHints(word, mask)
			mask = 0
		}
		word = s / 64
		mask |= 1 << (s % 64)
		if mine && len(q.hold.acked) < 2*ackedMost {
			q.hold.acked = append(q.hold.acked, s)
		}
	}
	if n == 0 {
		return 0, err
	}
	q.giveHints(word, mask)
	q.count(pReceived, uint64(n))
	add(q.acks, uint64(n))
	step("acked")
	if load32(q.sendWait)&anySleeper == 0 && load32(q.edge)&countEdges == 0 && !(mine && len(q.hold.acked) >= ackedMost) {
		return n, err
	}
	// Somebody waits for what only holders count.
	if !mine {
		if !q.lk.lock(ctx, q.closing) {
			return n, err
		}
		defer q.lk.unlock()
	}
	if e := q.underLock(ctx, q.collectAcked); e == nil {
		q.wakeSomeSenders(load(q.areas[lockArea(load(q.lockw))].consumed), n)
	}
	return n, err
}

// ackOne frees slot s if it is leased by token. lk is held if bodies are so large that they give their memory back.
func (q *Queue) ackOne(s, token uint64) bool {
	if s >= min(load(q.high), q.slots) || tokenOwner(token) != q.me {
		return false
	}
	for range maxFenced {
		w := load(q.stateOf(s))
		if kindOf(w) != kindLeased || tokenOf(w) != token {
			return false
		}
		if q.stride < punchFrom {
			if step("ack"); cas(q.stateOf(s), w, kindFree) {
				return true
			}
			continue
		}
		store32(p32(q.ledger, posAck*4), uint32(s+1))
		if step("ack"); cas(q.stateOf(s), w, q.taken) {
			q.punch(s)
			store(q.stateOf(s), kindFree)
			return true
		}
	}
	return false
}

// underLock runs f with the queue's lock, again when it is fenced. The caller holds lk.
func (q *Queue) underLock(ctx context.Context, f func() error) error {
	for {
		if err := q.usable(); err != nil {
			return err
		}
		if err := q.acquire(ctx); err != nil {
			return err
		}
		err := f()
		if err == nil || errors.Is(err, driver.ErrLeaseLost) {
			q.unlock()
			return err
		}
		if err = q.abandon(err); err != nil {
			return err
		}
	}
}

// withLease runs f with the queue's lock if token still has slot s. f gets the seq of the message.
func (q *Queue) withLease(ctx context.Context, s, token uint64, f func(seq uint64) error) error {
	if !q.lk.lock(ctx, q.closing) {
		return q.sentAway(ctx)
	}
	defer q.lk.unlock()
	return q.underLock(ctx, func() error {
		if s >= min(load(q.high), q.slots) || tokenOwner(token) != q.me || !q.isLeased(s, token) {
			return driver.ErrLeaseLost // for good, whether or not we still hold
		}
		a := q.hold.a
		if q.isFenced() {
			return errFenced
		}
		if load(a.expected(s)) != load(q.stateOf(s)) && q.isLeased(s, token) {
			if q.isFenced() {
				return errFenced
			}
			return errDamaged
		}
		return f(nodeSeq(load(a.node(s))))
	})
}

// Extend makes a lease end d from now. See driver.Leaser.
//
// Who:   the owner, as holder.
// Order: the record by CAS, then the verify: if we still hold, everybody who takes over from here on reads the new end; if not,
//
//	somebody may have read the old one, and we begin again.
//
// Dies:  the owner is dead.
func (q *Queue) Extend(ctx context.Context, l *driver.Lease, d time.Duration) (err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	ms := recMillisOf(time.Now().UnixNano() + int64(min(max(d, leaseLeast), leaseMost)))
	until := int64(ms) * int64(time.Millisecond)
	err = q.withLease(ctx, l.Slot, l.Token, func(seq uint64) error {
		if err := q.setRecord(l.Slot, 1, recVersion1, func(uint64) uint64 { return ms }); err != nil {
			return err
		}
		if step("extend"); q.isFenced() {
			return errFenced
		}
		a := q.hold.a
		if err := a.heapRemove(l.Slot); err != nil {
			return err
		}
		q.record(opExtend, l.Slot, seq)
		return a.heapPush(leasedTime(until), seq, l.Slot)
	})
	if err == nil {
		l.Until = time.Unix(0, until)
	}
	return err
}

// Retry gives a leased message back, as one whose delivery failed. See driver.Leaser.
func (q *Queue) Retry(ctx context.Context, l *driver.Lease, delay time.Duration) (err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	at := int64(0)
	if delay > 0 {
		at = time.Now().UnixNano() + int64(min(delay, leaseMost))
	}
	return q.endLease(ctx, l, true, at)
}

// Release gives a leased message back as if it had not been leased. See driver.Leaser.
func (q *Queue) Release(ctx context.Context, l *driver.Lease) (err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	return q.endLease(ctx, l, false, 0)
}

// endLease gives a leased message back. With a delay the lease ends then, should we be stopped for long before we are done.

func (q *Queue) endLease(ctx context.Context, l *driver.Lease, failed bool, at int64) error {
	gave := false
	err := q.withLease(ctx, l.Slot, l.Token, func(seq uint64) error {
		back, err := q.giveBack(l.Slot, failed, at)
		gave = gave || back
		if err == nil && !back {
			return driver.ErrLeaseLost // another goroutine acknowledged it
		}
		return err
	})
	if gave && errors.Is(err, driver.ErrLeaseLost) { // fenced after it was done
		return nil
	}
	return err
}

// releaseAll gives back what this handle has leased: it closes.
func (q *Queue) releaseAll() (err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if !q.lk.lock(ctx, q.closing) {
		return q.sentAway(ctx)
	}
	defer q.lk.unlock()
	if !q.hold.leasing {
		return nil
	}
	err = q.underLock(ctx, func() error { return q.collectFrom(q.me, false) })
	if err == nil {
		storeSync(p64(q.entry, pLeasing), 0)
		q.hold.leasing = false
		q.wakeSenders(allSleepers)
		return nil
	}
	return fmt.Errorf("give back what is leased: %w", err)
}
