package shm

import (
	"fmt"
	"math/bits"
	"unsafe"

	"github.com/kumquat-mq/kumquat/driver"
)

// Free slots. A slot's state word is the truth; two levels of bitmaps hint where to look first. Hints may be lost or doubled:
// whoever follows one still needs the CAS FREE → RESERVED, and who finds none takes a fresh slot from beyond the high-water mark, or
// scans all states. There are more slots than messages, by what every handle may hold, so there is always one.
//
// The lowest free slot is taken first, so that the slots and bodies of a short queue stay in the cache.

const (
	laneCount   = 4
	freshBatch  = 16   // fresh slots that a lane takes at once
	shortBody   = 4096 // longer bodies are copied without lk, and to the lowest free slot: staying in the cache counts more
	fetchAhead  = 8    // slots whose lines are asked for before they are filled
	backedChunk = 512  // slots that get pages at once
)

// A lane is what one sending goroutine needs for itself. Sends of one handle run in parallel, each in a lane.
type lane struct {
	turn
	hints    uint64 // free slots, perhaps: bits of …
	hintWord uint64 // … slots hintWord·64 …
	ahead    uint64 // those of them that were not fetched into the cache yet
	consumed uint64 // a lower bound of how much was consumed
	full     bool   // the last try met a full queue
	stamped  uint8  // sends, as far as it goes
	unpaced  int    // so many sends are not held back
	_        [64]byte
}

// reserve takes a free slot for us and notes it at ledger position pos. big says that the body lies outside the slot: then
// the lowest slot counts more than the cost of finding it.
//
// Who:   a producer, in its lane.
// Order: ledger before the CAS; the CAS before head is read (so that a slot's seq strictly grows).
// Dies:  before the CAS: nothing. After: the ledger names the slot, the next to use our number frees it.
func (q *Queue) reserve(l *lane, pos uint64, big bool) (uint64, error) {
	ledger := (*uint32)(unsafe.Add(q.ledger, pos*4))
	for tries := 0; tries < 100_000; tries++ { // bounded: a peer may write any state
		if l.hints == 0 {
			if err := q.fetchHints(l, big, tries); err != nil {
				return 0, err
			}
			l.ahead = l.hints
			for range fetchAhead {
				q.fetchNext(l)
			}
		}
		b := uint64(bits.TrailingZeros64(l.hints))
		l.hints &= l.hints - 1
		s := l.hintWord*64 + b
		store32(ledger, uint32(s+1))
		if step("reserve"); cas(q.stateOf(s), kindFree, q.reserved) {
			return s, nil
		}
	}
	return 0, errNoSlot
}

// fetchNext asks for the lines of a slot that will be filled some sends later. Waiting for them would take as long as the rest of a send.
func (q *Queue) fetchNext(l *lane) {
	if l.ahead == 0 {
		return
	}
	s := l.hintWord*64 + uint64(bits.TrailingZeros64(l.ahead))
	l.ahead &= l.ahead - 1
	prefetchWrite(q.stateOf(s))
	prefetchWrite(p64(q.slot(s), 64))
	prefetchWrite(q.linkOf(s))
}

// reserveBacked takes a free slot that has the pages for a body of size bytes, and a metadata block if meta is set, from earlier
// messages: on a full file system only such a slot will do.
func (q *Queue) reserveBacked(pos, size uint64, meta bool) (uint64, bool) {
	for s, n := uint64(0), min(load(q.high), q.slots); s < n; s++ {
		sl := q.slot(s)
		if load(q.stateOf(s)) != kindFree || uint64(load32(p32(sl, sBodyUp)))*64 < size || meta && *p16(sl, sMetaUp) == 0 {
			continue
		}
		store32(p32(q.ledger, pos*4), uint32(s+1))
		if step("reserve"); cas(q.stateOf(s), kindFree, q.reserved) {
			return s, true
		}
	}
	return 0, false
}

// fetchHints fills the lane's hints.
func (q *Queue) fetchHints(l *lane, big bool, tries int) error {
	high := load(q.high)
	if high > q.slots {
		return fmt.Errorf("the high-water mark is %d of %d slots: %w", high, q.slots, driver.ErrCorrupt)
	}
	if tries < 64 {
		summary, words := (q.slots+4095)/4096, (q.slots+63)/64
		for i := uint64(0); i < summary && i*4096 < high; i++ {
			sum := p64(q.base, q.summaryAt+i*8)
			for try := 0; try < 64; try++ {
				m := load(sum)
				if m == 0 {
					break
				}
				b := uint64(bits.TrailingZeros64(m))
				w := i*64 + b
				if w >= words {
					break
				}
				p := p64(q.base, q.hintsAt+w*8)
				got := q.takeHints(p, big)
				if got == 0 || load(p) == 0 {
					and(sum, ^(uint64(1) << b)) // a hint given meanwhile is lost: harmless
				}
				if top := w*64 + 64; top > high { // a hint for a slot that nobody used yet is a lie
					got &= 1<<(64-min(64, top-high)) - 1
				}
				if got != 0 {
					l.hintWord, l.hints = w, got
					return nil
				}
			}
		}
	}
	for high < q.slots {
		n := min(freshBatch, q.slots-high, 64-high%64)
		if err := q.back(high + n); err != nil {
			if q.scanFree(l, high) {
				return nil
			}
			return err
		}
		if cas(q.high, high, high+n) {
			l.hintWord, l.hints = high/64, (1<<n-1)<<(high%64)
			return nil
		}
		high = load(q.high)
	}
	if q.scanFree(l, high) {
		return nil
	}
	return errNoSlot
}

// scanFree looks at the states of the first n slots: hints get lost with those who die, or are kept by those who freed the slots.
func (q *Queue) scanFree(l *lane, n uint64) bool {
	for s := uint64(0); s < n; s += 64 {
		var found uint64
		for b := uint64(0); b < 64 && s+b < n; b++ {
			if load(q.stateOf(s+b)) == kindFree {
				found |= 1 << b
			}
		}
		if found != 0 {
			l.hintWord, l.hints = s/64, found
			return true
		}
	}
	return false
}

// errNoSlot: for a moment others hold more than they should (the dead do, until their numbers are used again). It is like full.
var errNoSlot = fmt.Errorf("all slots are held by handles that died or stopped: %w", driver.ErrFull)

// takeHints takes a word of hints, or for big bodies the lowest one.
func (q *Queue) takeHints(p *uint64, big bool) uint64 {
	if !big {
		return swap(p, 0)
	}
	for {
		w := load(p)
		low := w & -w
		if w == 0 || cas(p, w, w&^low) {
			return low
		}
	}
}

// giveHints says that the slots of bits in hint word w are free.
func (q *Queue) giveHints(w, mask uint64) {
	or(p64(q.base, q.hintsAt+w*8), mask)
	sum, b := p64(q.base, q.summaryAt+w/64*8), uint64(1)<<(w%64)
	if load(sum)&b == 0 {
		or(sum, b)
	}
}

// freeSlot gives a slot back whose body lay inside it. The hint is kept until a word's worth is there. The caller holds lk.
func (q *Queue) freeSlot(s uint64) {
	step("free")
	store(q.stateOf(s), kindFree)
	h := &q.hold
	w := s / 64
	f := &h.freed[w%freedWords]
	if f.word != w {
		q.giveFreed(f)
		f.word = w
	}
	if f.mask |= 1 << (s % 64); f.mask == 1<<64-1 {
		q.giveFreed(f)
	}
}

// freed is a word's worth of slots that are free and not hinted yet.
type freed struct{ word, mask uint64 }

// freedWords: with many priorities slots come free in any order; this many words of them are filled at the same time.
const (
	freedWords = 16
	freedWorth = 8 // fewer in a word are not worth the trip between the caches when the queue is empty
)

func (q *Queue) giveFreed(f *freed) {
	if f.mask != 0 {
		q.giveHints(f.word, f.mask)
		f.mask = 0
	}
}

// flushHints gives the words with at least so many slots.
func (q *Queue) flushHints(least int) {
	for i := range q.hold.freed {
		if f := &q.hold.freed[i]; bits.OnesCount64(f.mask) >= least {
			q.giveFreed(f)
		}
	}
}

// freeBig gives a slot back at once; from any goroutine.
func (q *Queue) freeBig(s uint64) {
	q.punch(s)
	step("free")
	store(q.stateOf(s), kindFree)
	q.giveHints(s/64, 1<<(s%64))
}

// A hole of the file gets its page when it is first touched, and if there is no memory then, the process gets SIGBUS. So pages are
// asked for (fallocate) before anything is touched, and words say up to where that was done. Raising such a word twice, or asking
// for pages twice, does no harm.

// back makes sure that the first n slots, their links, hints and nodes in areas 0 and 1 have pages.
func (q *Queue) back(n uint64) error {
	if n <= q.backedSeen.Load() {
		return nil
	}
	from := min(load(q.backed), q.slots)
	if n > from {
		to := min(roundUp(n, backedChunk), q.slots)
		if err := q.backTo(from, to); err != nil {
			to = n // on a nearly full file system the exact number may still fit
			if err := q.backTo(from, to); err != nil {
				return err
			}
		}
		raise(q.backed, to)
		from = to
	}
	q.backedSeen.Store(from)
	return nil
}

func (q *Queue) backTo(from, to uint64) error {
	for _, r := range [...][2]uint64{{q.slotsAt, slotSize}, {q.linksAt, 8}} {
		if err := allocate(q.f, r[0]+from*r[1], (to-from)*r[1]); err != nil {
			return q.driver.sysError("allocate in", q.path, err)
		}
	}
	for _, r := range [...][2]uint64{{q.hintsAt, 64}, {q.summaryAt, 4096}} {
		if err := allocate(q.f, r[0]+from/r[1]*8, (to+r[1]-1)/r[1]*8-from/r[1]*8); err != nil {
			return q.driver.sysError("allocate in", q.path, err)
		}
	}
	for k := range uint64(2) {
		if err := q.backNodes(k, to); err != nil {
			return err
		}
	}
	return nil
}

// backNodes makes sure that the nodes of the first n slots in area k have pages.
func (q *Queue) backNodes(k, n uint64) error {
	up := p64(q.base, offNodesUp+k*8)
	from := load(up)
	if n <= from {
		return nil
	}
	a := &q.areas[k]
	for _, r := range [...][2]uint64{{q.nodesIn, nodeSize}, {q.beforeIn, 4}} {
		if err := allocate(q.f, a.at+r[0]+from*r[1], (n-from)*r[1]); err != nil {
			return q.driver.sysError("allocate in", q.path, err)
		}
	}
	raise(up, n)
	return nil
}

// backHeap makes sure that the heap of area k has pages for n entries. n is the number of slots in use when a timed message is
// sent, so there is room for all timed messages that can be there then.
func (q *Queue) backHeap(k, n uint64) error {
	up := p64(q.base, offHeapUp+k*8)
	from := load(up)
	if n = min(roundUp(n, backedChunk), q.slots); n <= from {
		return nil
	}
	a := &q.areas[k]
	for _, r := range [...][2]uint64{{q.heapIn, heapSize}, {q.placeIn, 4}} {
		if err := allocate(q.f, a.at+r[0]+from*r[1], (n-from)*r[1]); err != nil {
			return q.driver.sysError("allocate in", q.path, err)
		}
	}
	raise(up, n)
	return nil
}

// backList makes sure that priority prio's list heads in area k have a page.
func (q *Queue) backList(k, prio uint64) error {
	up := p64(q.base, offListsUp+k*8)
	page := prio / listsPerPage
	if load(up)>>page&1 != 0 {
		return nil
	}
	if err := allocate(q.f, q.areas[k].at+aLists+page*pageSize, pageSize); err != nil {
		return q.driver.sysError("allocate in", q.path, err)
	}
	or(up, 1<<page)
	return nil
}

// backSend makes sure of the pages that a message of priority prio needs besides its slot's.
func (q *Queue) backSend(prio uint64, timed bool) error {
	if bit := uint64(1) << (prio / listsPerPage); q.listsSeen.Load()&bit == 0 {
		for k := range uint64(2) {
			if err := q.backList(k, prio); err != nil {
				return err
			}
		}
		q.listsSeen.Or(bit)
	}
	if timed {
		if load(q.timed)&someTimes == 0 {
			or(q.timed, someTimes)
		}
		for k := range uint64(2) {
			if err := q.backHeap(k, load(q.high)); err != nil {
				return err
			}
		}
	}
	return nil
}

const punchFrom = 8 << 20 // bodies from this size on give their memory back when they are done

// backBody makes sure that the first n bytes of slot s's extent have pages. The caller owns the slot.
func (q *Queue) backBody(s, n uint64) error {
	up := p32(q.slot(s), sBodyUp)
	if units := (n + 63) / 64; units > uint64(load32(up)) {
		if err := allocate(q.f, q.bodiesAt+s*q.stride, n); err != nil {
			return q.driver.sysError("allocate in", q.path, err)
		}
		store32(up, uint32(units))
	}
	return nil
}

func (q *Queue) backMeta(s uint64) error {
	up := p16(q.slot(s), sMetaUp)
	if *up == 0 {
		if err := allocate(q.f, q.metaAt+s*metaBlock, metaBlock); err != nil {
			return q.driver.sysError("allocate in", q.path, err)
		}
		*up = 1
	}
	return nil
}

// punch gives a large body's memory back. The caller owns the slot.
//
// Order: the mark "has pages" goes first, so that no owner ever trusts pages that are gone.
func (q *Queue) punch(s uint64) {
	up := p32(q.slot(s), sBodyUp)
	if uint64(load32(up))*64 >= punchFrom {
		storeSync32(up, 0)
		punchHole(q.f, q.bodiesAt+s*q.stride, q.stride)
	}
}
