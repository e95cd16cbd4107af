package shm

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// Collecting: a holder looks which leases are over, acknowledged, or of the dead, and puts the index right. What failed goes back to the
// place of its send.

// lapsed is a lease that a holder found.
type lapsed struct {
	prio, seq, slot uint64
	until           int64
}

const askDead = int64(50 * time.Millisecond) // how often a handle asks whether who has leases lives

// giveBack makes leased slot s a message that waits, from time at on (0: at once). false: it was acknowledged, and is counted now.
//
// Who:   the holder.
// Order: the record before the CAS (record.go), the index after it.
// Dies:  before the CAS: still leased, and over. After: the next one takes over, and the rebuild finds a message that waits.
func (q *Queue) giveBack(s uint64, failed bool, at int64) (bool, error) {
	h := &q.hold
	a := h.a
	seq := nodeSeq(load(a.node(s)))
	if !q.hasRecord(s) {
		return false, errDamaged
	}
	counted := false
	err := q.setRecord(s, 0, recVersion0, func(r uint64) uint64 {
		n := recFailures(r)
		counted = false
		switch {
		case failed && r&recCounted == 0:
			counted = true
			return r&^(failuresMost<<failuresAt) | min(n+1, failuresMost)<<failuresAt | recCounted
		case !failed && r&recCounted != 0: // by one who was fenced before he gave it back
			return r&^(failuresMost<<failuresAt|recCounted) | (max(n, 1)-1)<<failuresAt
		}
		return r
	})
	if err != nil {
		return false, err
	}
	if counted {
		now := uint64(time.Now().UnixMilli())
		if load(q.recordOf(s, 2)) == 0 {
			store(q.recordOf(s, 2), now)
		}
		store(q.recordOf(s, 3), now)
	}
	if err := q.setRecord(s, 1, recVersion1, func(r uint64) uint64 {
		if at == 0 {
			return r &^ recDelays // if we get no further, the lease is as long as it was
		}
		return recMillisOf(at) | recDelays
	}); err != nil {
		return false, err
	}
	ready := readyWord(tagOfEpoch(lockEpoch(h.my)), seq)
	if step("give back"); !cas(q.stateOf(s), load(a.expected(s)), ready) {
		return false, q.countOne(s)
	}
	h.returned++
	if err := a.heapRemove(s); err != nil {
		return true, err
	}
	q.record(opGiveBack, s, seq)
	return true, q.enlist(a, load(q.linkOf(s)), s, ready, seq)
}

// countOne takes slot s, which was leased and is not as the index expects, out of the index: it was acknowledged.
func (q *Queue) countOne(s uint64) error {
	a := q.hold.a
	if q.isFenced() { // else a takeover has given it another tag
		return errFenced
	}
	if err := a.heapRemove(s); err != nil {
		return err
	}
	step("consumed")
	store(a.consumed, (load(a.consumed)+1)&seqMask)
	return nil
}

// isReused reports whether slot s stands in the index as leased, and takes it out: who enlists another message of the slot knows
// that the one before was acknowledged.
func (q *Queue) isReused(a *area, s uint64) (bool, error) {
	if kind, _, ok := a.heapEntry(s); !ok || kind != heapLeased {
		return false, nil
	}
	return true, a.heapRemove(s)
}

// settleReused counts it too.
func (q *Queue) settleReused(a *area, s uint64) error {
	was, err := q.isReused(a, s)
	if was {
		store(a.consumed, (load(a.consumed)+1)&seqMask)
	}
	return err
}

// adoptLease gives leased slot i, whose word is w, the taker's tag, and notes it. true: the word has changed, look again.
func (q *Queue) adoptLease(a *area, tag, i, w uint64) (again bool, err error) {
	h := &q.hold
	if !q.hasRecord(i) {
		if q.isFenced() {
			return false, errFenced
		}
		return false, nil // no lease that we know of
	}
	seq, until := recSeq(load(q.recordOf(i, 0))), recTime(load(q.recordOf(i, 1)))
	if q.isFenced() {
		return false, errFenced
	}
	leased := leasedWord(tag, tokenOf(w))
	if step("retag"); !cas(q.stateOf(i), w, leased) {
		return true, nil
	}
	store(a.expected(i), leased)
	store(a.node(i), nodeWord(seq, noSlot))
	h.lapsed = append(h.lapsed, lapsed{slot: i, seq: seq, until: until})
	return false, nil
}

// leaseDue looks at a lease whose time has come.
func (q *Queue) leaseDue(s, seq uint64, now int64) error {
	a := q.hold.a
	if load(q.stateOf(s)) != load(a.expected(s)) {
		return q.countOne(s)
	}
	if until := recTime(load(q.recordOf(s, 1))); until > now { // the index is older than the record
		if q.isFenced() {
			return errFenced
		}
		if err := a.heapRemove(s); err != nil {
			return err
		}
		return a.heapPush(leasedTime(until), seq, s)
	}
	_, err := q.giveBack(s, true, 0)
	return err
}

// countAcked counts what this handle acknowledged.
func (q *Queue) countAcked() error {
	h := &q.hold
	for len(h.acked) > 0 {
		s := h.acked[len(h.acked)-1]
		if kind, _, ok := h.a.heapEntry(s); ok && kind == heapLeased && load(q.stateOf(s)) != load(h.a.expected(s)) {
			if err := q.countOne(s); err != nil {
				return err
			}
		}
		h.acked = h.acked[:len(h.acked)-1]
	}
	return nil
}

// collectAcked counts all that were acknowledged, unless none was since this handle did so.
func (q *Queue) collectAcked() error {
	h := &q.hold
	n, e := load(q.acks)+1, lockEpoch(h.my)
	if n == h.acksSeen && e == h.acksEpoch {
		return nil
	}
	found, err := q.leased(func(s, expected uint64) bool { return load(q.stateOf(s)) != expected })
	if err != nil {
		return err
	}
	for i := range found {
		if err := q.countOne(found[i].slot); err != nil {
			return err
		}
	}
	h.acked = h.acked[:0]
	h.acksSeen, h.acksEpoch = n, e
	return nil
}

// leased returns the slots that stand in the index as leased and that which accepts.
func (q *Queue) leased(which func(s, expected uint64) bool) ([]lapsed, error) {
	h := &q.hold
	a := h.a
	out := h.lapsed[:0]
	n := load(a.heapLen)
	if n > a.slots {
		return nil, errDamaged
	}
	for i := uint64(0); i < n; i++ {
		if i%1024 == 1023 {
			a.step()
		}
		if load(a.heapTime(i))&heapKind != heapLeased {
			continue
		}
		item := load(a.heapItem(i))
		s := headSlot(item)
		if s >= a.slots {
			return nil, errDamaged
		}
		if which(s, load(a.expected(s))) {
			out = append(out, lapsed{prio: linkPrio(load(q.linkOf(s))), seq: headSeq(item), slot: s})
		}
	}
	h.lapsed = out
	return out, nil
}

// collectDead gives back at once what the dead had leased. It asks for each handle that may have leases whether it lives.
//
// Who:   the holder. While it holds, nobody else can lease under a dead one's number.
func (q *Queue) collectDead(now int64) error {
	h := &q.hold
	if d := now - h.deadAsked; !simulated && d >= 0 && d < askDead {
		return nil
	}
	h.deadAsked = now
	for p, n := uint64(0), q.partsUp(); p < n; p++ {
		f := p64(q.entryOf(p), pLeasing)
		w := load(f)
		if w == 0 || q.alive(p) {
			continue
		}
		if err := q.collectFrom(p, true); err != nil {
			return err
		}
		if q.isFenced() {
			return errFenced
		}
		cas(f, w, 0)
	}
	return nil
}

// collectFrom gives back all that participant p has leased. They are enlisted in their order, each from where the last one was.
func (q *Queue) collectFrom(p uint64, failed bool) error {
	h := &q.hold
	found, err := q.leased(func(_, expected uint64) bool { return tokenOwner(tokenOf(expected)) == p })
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(x, y lapsed) int {
		if x.prio != y.prio {
			return cmp.Compare(y.prio, x.prio)
		}
		return int(seqDiff(x.seq, y.seq))
	})
	defer func() { h.hint = lapsed{} }()
	for i := range found {
		if i%256 == 255 {
			h.a.step()
		}
		l := &found[i]
		if load(q.stateOf(l.slot)) != load(h.a.expected(l.slot)) {
			if err := q.countOne(l.slot); err != nil {
				return err
			}
			continue
		}
		back, err := q.giveBack(l.slot, failed, 0)
		if err != nil {
			return err
		}
		if kind, _, ok := h.a.heapEntry(l.slot); back && !(ok && kind == heapDelayed) {
			h.hint = lapsed{prio: l.prio, slot: l.slot + 1}
		}
	}
	return nil
}

// orphans gives back what was leased under our number before it was ours. We have registered, and nobody has leased since.
func (q *Queue) orphans() bool {
	f := p64(q.entry, pLeasing)
	if load(f) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	q.lk.mustLock()
	defer q.lk.unlock()
	for {
		if q.acquire(ctx) != nil {
			return false
		}
		err := q.collectFrom(q.me, true)
		if err == nil {
			q.unlock()
			storeSync(f, 0)
			return true
		}
		if q.abandon(err) != nil {
			return false
		}
	}
}

// waitsForRetry reports whether the message of slot s is in the heap alone.
func (q *Queue) waitsForRetry(a *area, s uint64) bool {
	if load(q.timed)&someLeases == 0 {
		return false
	}
	kind, _, ok := a.heapEntry(s)
	return ok && kind == heapDelayed
}

// leasesMayBack is what a sleeper asks at the end of a slice: may something have come back that nobody woke it for? It reads without
// the lock: a yes only means that it is worth looking.
func (q *Queue) leasesMayBack() bool {
	if load(q.timed)&someLeases == 0 {
		return false
	}
	if q.areas[lockArea(load(q.lockw))].top() >= 0 {
		return true
	}
	now := time.Now().UnixNano()
	if last := q.deadAsked.Load(); now-last < askDead && now >= last || !q.deadAsked.CompareAndSwap(last, now) {
		return false
	}
	for p, n := uint64(0), q.partsUp(); p < n; p++ {
		if load(p64(q.entryOf(p), pLeasing)) != 0 && !q.alive(p) {
			return true
		}
	}
	return false
}

// tellReturned wakes those who wait for what came back, after the lock was given back.
func (q *Queue) tellReturned() {
	n := q.hold.returned
	q.hold.returned = 0
	add(q.returns, uint64(n))
	if load32(q.edge)&countEdges != 0 {
		q.countEdge()
	}
	if load32(q.recvWait)&anySleeper != 0 {
		q.wakeReceivers(n)
	}
}
