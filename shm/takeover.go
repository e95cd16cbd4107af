package shm

import (
	"fmt"

	"github.com/kumquat-mq/kumquat/driver"
)

// errRebuilt: what a rebuild wrote was changed while it ran.
var errRebuilt = fmt.Errorf("the index breaks while it is rebuilt: somebody else writes to the file: %w", driver.ErrCorrupt)

// takeover takes the held lock l from its holder and builds the index anew, in an area that nobody may still touch. On success we
// hold the lock. errFenced: somebody else was faster, or took over from us.
//
// Who:   anybody who found the lock stuck, or its own index damaged. It holds lk.
// Order: pages and mark of the new area before the CAS (F9); cur after the CAS and before the rebuild reads head, so that an alert
//
//	either is in the word that we leave or belongs to a message that the rebuild finds.
//
// Dies:  before the CAS: nothing happened. After: the lock is held by the dead, and taken over in turn; the scan's new tags are
//
//	adopted by the next rebuild as they are.
func (q *Queue) takeover(l uint64) error {
	h := &q.hold
	area, epoch, err := q.spareArea(l)
	if err != nil {
		return err
	}
	store(q.mark, markWord(area, epoch))
	step("takeover mark")
	my := lockWord(epoch, area, true, lockDrained(l))
	if !cas(q.lockw, l, my) {
		store(q.mark, 0)
		return errFenced
	}
	q.doing(opTakeover)
	q.record(opTakeover, area, epoch)
	q.count(pTakeovers, 1)
	h.my, h.a, h.drained = my, &q.areas[area], lockDrained(l)
	if err := q.rebuild(tagOfEpoch(epoch)); err != nil {
		// The lock stays held: the index is not whole, so the next one has to build it again.
		store(q.mark, 0)
		h.my = 0 // and we hold nothing
		q.doing(opIdle)
		if err == errDamaged {
			err = errRebuilt
		}
		return err
	}
	q.doing(opIdle)
	wakeAll(q.sendWait)
	wakeAll(q.recvWait)
	return nil
}

// spareArea returns an area that is neither l's nor marked, with pages, and the next epoch whose tag no mark carries. The two areas
// whose pages every send keeps ready are preferred, so that a takeover works on a full file system.
func (q *Queue) spareArea(l uint64) (area, epoch uint64, err error) {
	var used [areaCount]bool
	used[lockArea(l)] = true
	epoch = (lockEpoch(l) + 1) & epochMask
	n := q.partsUp()
	for p := uint64(0); p < n; p++ {
		m := load(p64(q.entryOf(p), pMark))
		if m&markUsed != 0 && p != q.me {
			used[markArea(m)] = true
		}
	}
	for tries := 0; tries < maxParts+1; tries++ {
		again := false
		for p := uint64(0); p < n; p++ {
			m := load(p64(q.entryOf(p), pMark))
			again = again || m&markUsed != 0 && p != q.me && markEpoch(m) == epoch
		}
		if !again {
			break
		}
		epoch = (epoch + 1) & epochMask
	}
	for k := uint64(0); k < areaCount; k++ {
		if used[k] {
			continue
		}
		if k >= 2 {
			if err = q.backArea(k); err != nil {
				continue
			}
		}
		return k, epoch, nil
	}
	// Marks of the dead do not count, but asking costs a system call each: only now.
	for p := uint64(0); p < n; p++ {
		if e := q.entryOf(p); p != q.me && load(p64(e, pMark))&markUsed != 0 && !q.alive(p) {
			if k := markArea(load(p64(e, pMark))); k != lockArea(l) && q.onlyDead(k) && q.backArea(k) == nil {
				return k, epoch, nil
			}
		}
	}
	if err == nil {
		err = fmt.Errorf("%d handles were stopped while they held the lock: kill or continue them (kumquat who %s): %w", areaCount, q.name, driver.ErrLimit)
	}
	return 0, 0, err
}

// onlyDead reports whether all marks on area k belong to the dead.
func (q *Queue) onlyDead(k uint64) bool {
	for p, n := uint64(0), q.partsUp(); p < n; p++ {
		m := load(p64(q.entryOf(p), pMark))
		if m&markUsed != 0 && markArea(m) == k && p != q.me && q.alive(p) {
			return false
		}
	}
	return true
}

// backArea gives area k all the pages that a rebuild of the present queue needs.
func (q *Queue) backArea(k uint64) error {
	if err := allocate(q.f, q.areas[k].at, aLists); err != nil {
		return q.driver.sysError("allocate in", q.path, err)
	}
	if err := q.backNodes(k, min(load(q.backed), q.slots)); err != nil {
		return err
	}
	if err := q.backHeap(k, min(load(p64(q.base, offHeapUp)), q.slots)); err != nil {
		return err
	}
	for lists, page := load(p64(q.base, offListsUp)), uint64(0); page < 64; page++ {
		if lists>>page&1 != 0 {
			if err := q.backList(k, page*listsPerPage); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebuild fills our empty area from the slots.
//
// Every message that it adopts gets a new state word with our tag, by a CAS: that is what makes old claims fail. READY with tag 0
// is adopted only with evidence: a node, in any area, that says the slot carried published message seq. Messages published after
// drained need none: they hang on head. Messages are enlisted in the order of their seqs, after both scans.
func (q *Queue) rebuild(tag uint64) error {
	h := &q.hold
	a, d := h.a, h.drained
	if err := q.takeCur(); err != nil {
		return err
	}
	a.clear()
	keys := h.buf[:0]
	h.lapsed = h.lapsed[:0]
	high := min(load(q.high), q.slots)
	var witnesses [areaCount]uint64 // nodes with pages, per area
	for k := range witnesses {
		witnesses[k] = min(load(p64(q.base, offNodesUp+uint64(k)*8)), q.slots)
	}
	for i := uint64(0); i < high; i++ {
		if i+16 < high {
			prefetchWrite(q.stateOf(i + 16))
		}
		if i%1024 == 1023 {
			a.step()
		}
		for tries := 0; ; tries++ {
			w := load(q.stateOf(i))
			if kindOf(w) == kindLeased {
				again, err := q.adoptLease(a, tag, i, w)
				if err != nil {
					return err
				}
				if again && tries <= maxFenced {
					continue
				}
				break
			}
			if kindOf(w) != kindReady || seqDiff(seqOf(w), d) > 0 {
				break
			}
			known := tagOf(w) != 0 || q.witnessed(&witnesses, i, seqOf(w))
			if q.isFenced() {
				return errFenced
			}
			if !known {
				break
			}
			step("retag")
			if cas(q.stateOf(i), w, readyWord(tag, seqOf(w))) {
				keys = append(keys, rebuildKey(seqOf(w), d, i))
				break
			}
			if tries > maxFenced {
				return fmt.Errorf("the state of slot %d changes all the time: %w", i, driver.ErrCorrupt)
			}
		}
	}
	hd := load(q.head)
	n := seqDiff(headSeq(hd), d)
	if n < 0 || uint64(n) > q.max {
		if q.isFenced() {
			return errFenced
		}
		return fmt.Errorf("head says %d messages are new, the queue takes %d: %w", n, q.max, driver.ErrCorrupt)
	}
	s := headSlot(hd)
	for k := headSeq(hd); n > 0; n-- {
		if s >= q.slots {
			return q.brokenChain(s)
		}
		if n%1024 == 0 {
			a.step()
		}
		next := linkNext(load(q.linkOf(s)))
		for tries := 0; ; tries++ {
			w := load(q.stateOf(s))
			if q.isFenced() {
				return errFenced
			}
			if kindOf(w) != kindReady || seqOf(w) != k || tries > maxFenced {
				return q.brokenChain(s)
			}
			step("retag")
			if cas(q.stateOf(s), w, readyWord(tag, k)) {
				break
			}
		}
		keys = append(keys, rebuildKey(k, d, s))
		s, k = next, (k-1)&seqMask
	}
	h.buf = keys
	keys = h.sortKeys(keys, a)
	for _, l := range h.lapsed { // before what may stand in their slots by now
		if err := a.heapPush(leasedTime(l.until), l.seq, l.slot); err != nil {
			return err
		}
	}
	leased := uint64(len(h.lapsed))
	for i, key := range keys {
		if i%1024 == 1023 {
			a.step()
		}
		s := key & slotMask
		if leased != 0 {
			again, err := q.isReused(a, s)
			if err != nil {
				return err
			}
			if again {
				leased--
			}
		}
		seq := (key>>slotBits + d - 1<<(seqBits-1)) & seqMask
		if err := q.enlist(a, load(q.linkOf(s)), s, readyWord(tag, seq), seq); err != nil {
			return err
		}
	}
	store(a.consumed, (headSeq(hd)-uint64(len(keys))-leased)&seqMask)
	step("rebuilt")
	my := h.my&^uint64(seqMask) | headSeq(hd)
	if !cas(q.lockw, h.my, my) {
		return errFenced
	}
	h.my, h.drained = my, headSeq(hd)
	if cap(h.buf) > 1<<16 { // a rebuild of a deep queue is rare; its memory is not kept
		h.buf, h.spare = nil, nil
	}
	return nil
}

func (q *Queue) brokenChain(s uint64) error {
	if q.isFenced() {
		return errFenced
	}
	return fmt.Errorf("the chain of published messages breaks at slot %d: %w", s, driver.ErrCorrupt)
}

// rebuildKey packs a seq, relative to drained, and a slot, so that sorting keys sorts by seq.
func rebuildKey(seq, drained, slot uint64) uint64 {
	return (seq-drained+1<<(seqBits-1))&seqMask<<slotBits | slot
}

// sortKeys sorts by seq: a radix sort over the bits that differ, 11 at a time, since a million messages must not take long.
func (h *holder) sortKeys(keys []uint64, a *area) []uint64 {
	if len(keys) < 2 {
		return keys
	}
	lo, hi := keys[0], keys[0]
	for _, k := range keys {
		lo, hi = min(lo, k), max(hi, k)
	}
	if cap(h.spare) < len(keys) {
		h.spare = make([]uint64, len(keys))
	}
	from, to := keys, h.spare[:len(keys)]
	for shift := uint(slotBits); shift < 64 && (hi-lo&^uint64(slotMask))>>shift != 0; shift += 11 {
		var n [1 << 11]int
		for _, k := range from {
			n[(k-lo&^uint64(slotMask))>>shift&(1<<11-1)]++
		}
		sum := 0
		for i, c := range n {
			n[i] = sum
			sum += c
		}
		for i, k := range from {
			b := (k - lo&^uint64(slotMask)) >> shift & (1<<11 - 1)
			to[n[b]] = k
			n[b]++
			if i%65536 == 65535 {
				a.step()
			}
		}
		from, to = to, from
	}
	return from
}

// evidence reports whether some area says that slot s carried published message seq.
func (q *Queue) evidence(s, seq uint64) bool {
	for k := range uint64(areaCount) {
		if s < min(load(p64(q.base, offNodesUp+k*8)), q.slots) && nodeSeq(load(q.areas[k].node(s))) == seq {
			return true
		}
	}
	return false
}

func (q *Queue) witnessed(up *[areaCount]uint64, s, seq uint64) bool {
	for k := range up {
		if s < up[k] && nodeSeq(load(q.areas[k].node(s))) == seq {
			return true
		}
	}
	return false
}

// takeCur puts our epoch into cur, with the alert set.
//
// Who:   a holder that has just taken over.
// Order: cur is read before the verify: a taker after us that has written cur already makes the CAS fail, one that has not yet
//
//	will overwrite what we write.
func (q *Queue) takeCur() error {
	e := lockEpoch(q.hold.my)
	for {
		c := load(q.cur)
		if q.isFenced() {
			return errFenced
		}
		if step("take cur"); cas(q.cur, c, curWord(e, driver.MaxPriority)|curAlert) {
			return nil
		}
	}
}
