package shm

import (
	"math/bits"
	"unsafe"
)

// An area is one copy of the index: a bitmap of the priorities that have messages (three levels of 64-bit words), a FIFO list for
// each, a node for every slot, and a heap of the messages that wait for a time. It belongs to the holder of the lock whose word
// names it; nobody else writes to it, and of a fenced holder's area nothing is believed but the nodes' seqs.
//
// Methods here run under the lock. They check every number that they read, since a stray or hostile writer may have been there, and
// return errDamaged; the caller then rebuilds the index from the slots.
type area struct {
	k, at          uint64 // number, offset in the file
	slots          uint64
	consumed       *uint64 // how many messages ever left the queue, by this area's account
	progress       *uint64
	heapLen        *uint64
	heapUpTo       *uint64 // entries and places below this one have pages
	level2         *uint64
	level1, level0 unsafe.Pointer
	lists          unsafe.Pointer
	nodes          unsafe.Pointer
	heap, place    unsafe.Pointer
	before         unsafe.Pointer // u32 per slot: the one before it in its list; of a first one it says nothing
	filtering      *uint64
	ringPos        *uint64
	ring           unsafe.Pointer
	ringMask       uint64
}

func (a *area) locate(q *Queue, k uint64) {
	a.k, a.at, a.slots = k, q.areasAt+k*q.areaStride, q.slots
	at := unsafe.Add(q.base, a.at)
	a.heapUpTo = p64(q.base, offHeapUp+k*8)
	a.consumed, a.progress, a.heapLen, a.level2 = p64(at, aConsumed), p64(at, aProgress), p64(at, aHeapLen), p64(at, aLevel2)
	a.level1, a.level0, a.lists = unsafe.Add(at, aLevel1), unsafe.Add(at, aLevel0), unsafe.Add(at, aLists)
	a.nodes, a.heap, a.place = unsafe.Add(at, q.nodesIn), unsafe.Add(at, q.heapIn), unsafe.Add(at, q.placeIn)
	a.before, a.ring, a.ringMask = unsafe.Add(at, q.beforeIn), unsafe.Add(at, q.ringIn), q.ring-1
	a.filtering, a.ringPos = p64(at, aFiltering), p64(at, aRingPos)
}

func (a *area) expected(s uint64) *uint64 { return p64(a.nodes, s*nodeSize) }
func (a *area) node(s uint64) *uint64     { return p64(a.nodes, s*nodeSize+8) }
func (a *area) list(prio uint64) *uint64  { return p64(a.lists, prio*8) }
func (a *area) prev(s uint64) *uint32     { return p32(a.before, s*4) }

func listHead(w uint64) uint64          { return w & slotMask }
func listTail(w uint64) uint64          { return w >> slotBits & slotMask }
func listWord(head, tail uint64) uint64 { return head | tail<<slotBits }

// clear empties bitmap and heap. List heads count only where the bitmap says so; nodes are evidence and stay.
func (a *area) clear() {
	store(a.level2, 0)
	clear(view(a.level1, 0, 8*8))
	clear(view(a.level0, 0, 512*8))
	store(a.heapLen, 0)
	store(a.filtering, 0)
}

func (a *area) has(prio uint64) bool { return load(p64(a.level0, prio/64*8))>>(prio%64)&1 != 0 }

func (a *area) setBit(prio uint64) {
	p := p64(a.level0, prio/64*8)
	w := load(p)
	store(p, w|1<<(prio%64))
	if w == 0 {
		p = p64(a.level1, prio/4096*8)
		w = load(p)
		store(p, w|1<<(prio/64%64))
		if w == 0 {
			store(a.level2, load(a.level2)|1<<(prio/4096))
		}
	}
}

func (a *area) clearBit(prio uint64) {
	p := p64(a.level0, prio/64*8)
	w := load(p) &^ (1 << (prio % 64))
	store(p, w)
	if w == 0 {
		p = p64(a.level1, prio/4096*8)
		w = load(p) &^ (1 << (prio / 64 % 64))
		store(p, w)
		if w == 0 {
			store(a.level2, load(a.level2)&^(1<<(prio/4096)))
		}
	}
}

// top returns the highest priority that has messages, or −1.
func (a *area) top() int {
	w2 := load(a.level2) & 0xff
	if w2 == 0 {
		return -1
	}
	i := uint64(bits.Len64(w2)) - 1
	w1 := load(p64(a.level1, i*8))
	j := i*64 + uint64(bits.Len64(w1)-1)&63
	w0 := load(p64(a.level0, j*8))
	return int(j*64 + uint64(bits.Len64(w0)-1)&63)
}

// below returns the highest priority under prio that has messages, or −1. With prio = 32768 it is top.
func (a *area) below(prio int) int {
	for j := (prio - 1) / 64; prio > 0 && j >= 0; j-- {
		w := load(p64(a.level0, uint64(j)*8))
		if j == (prio-1)/64 {
			w &= 1<<(uint(prio-1)%64+1) - 1
		}
		if w != 0 {
			return j*64 + bits.Len64(w) - 1
		}
		if j%64 == 0 { // skip empty stretches of 4,096 by level 1
			for j > 0 && load(p64(a.level1, uint64(j/64-1)*8)) == 0 {
				j -= 64
			}
		}
	}
	return -1
}

// lowest returns the lowest priority that has messages, or −1.
func (a *area) lowest() int {
	for j := uint64(0); j < 512; j++ {
		if w := load(p64(a.level0, j*8)); w != 0 {
			return int(j*64) + bits.TrailingZeros64(w)
		}
	}
	return -1
}

// push appends message seq in slot s to its priority's list.
func (a *area) push(s, prio, expected, seq uint64) error {
	store(a.expected(s), expected)
	store(a.node(s), nodeWord(seq, noSlot))
	if load(a.filtering) != 0 {
		a.journal(s, seq)
	}
	l := a.list(prio)
	if !a.has(prio) {
		store(l, listWord(s, s))
		a.setBit(prio)
		return nil
	}
	w := load(l)
	tail := listTail(w)
	if tail >= a.slots {
		return errDamaged
	}
	n := a.node(tail)
	store(n, nodeWord(nodeSeq(load(n)), s))
	store32(a.prev(s), uint32(tail))
	store(l, listWord(listHead(w), s))
	return nil
}

// journal writes an enlisted message to the ring, from which handles that filter keep their own index (filter.go).
func (a *area) journal(s, seq uint64) {
	pos := load(a.ringPos)
	store(p64(a.ring, pos&a.ringMask*8), headWord(seq, s))
	store(a.ringPos, pos+1)
}

// first returns the slot of the oldest message of prio.
func (a *area) first(prio uint64) (uint64, error) {
	s := listHead(load(a.list(prio)))
	if s >= a.slots {
		return 0, errDamaged
	}
	return s, nil
}

// unlink takes slot s out of prio's list.
func (a *area) unlink(prio, s uint64) error {
	l := a.list(prio)
	w := load(l)
	if s == listHead(w) {
		if s == listTail(w) {
			a.clearBit(prio)
			return nil
		}
		next := nodeNext(load(a.node(s)))
		if next >= a.slots {
			return errDamaged
		}
		store(l, listWord(next, listTail(w)))
		return nil
	}
	prev, next := uint64(load32(a.prev(s))), nodeNext(load(a.node(s)))
	if prev >= a.slots || nodeNext(load(a.node(prev))) != s {
		return errDamaged
	}
	n := a.node(prev)
	if s == listTail(w) {
		store(n, nodeWord(nodeSeq(load(n)), noSlot))
		store(l, listWord(listHead(w), prev))
		return nil
	}
	if next >= a.slots {
		return errDamaged
	}
	store(n, nodeWord(nodeSeq(load(n)), next))
	store32(a.prev(next), uint32(prev))
	return nil
}

// insert puts message seq in slot s at its place among the others of its priority.
func (a *area) insert(s, prio, expected, seq uint64) error {
	return a.insertFrom(noSlot, s, prio, expected, seq)
}

// insertFrom is insert that need not look at what stands before slot from, which is of the same list and older.
func (a *area) insertFrom(from, s, prio, expected, seq uint64) error {
	if !a.has(prio) {
		return a.push(s, prio, expected, seq)
	}
	w := load(a.list(prio))
	if t := listTail(w); t >= a.slots {
		return errDamaged
	} else if seqDiff(nodeSeq(load(a.node(t))), seq) < 0 {
		return a.push(s, prio, expected, seq)
	}
	store(a.expected(s), expected)
	prev, at := uint64(noSlot), listHead(w)
	if from != noSlot {
		prev, at = from, nodeNext(load(a.node(from)))
	}
	for n := uint64(0); ; n++ {
		if at >= a.slots || n > a.slots {
			return errDamaged
		}
		x := load(a.node(at))
		if seqDiff(nodeSeq(x), seq) > 0 {
			break
		}
		prev, at = at, nodeNext(x)
		if n%1024 == 1023 {
			a.step()
		}
	}
	store(a.node(s), nodeWord(seq, at))
	store32(a.prev(at), uint32(s))
	if load(a.filtering) != 0 {
		a.journal(s, seq)
	}
	if prev == noSlot {
		store(a.list(prio), listWord(s, listTail(w)))
	} else {
		n := a.node(prev)
		store(n, nodeWord(nodeSeq(load(n)), s))
		store32(a.prev(s), uint32(prev))
	}
	return nil
}

// step shows those who wait for the lock that work goes on.
func (a *area) step() { store(a.progress, load(a.progress)+1) }

// The heap holds messages by the time at which something is to be done with them: delivered from then on (NotBefore), or dropped
// (Expires). place[slot] is the position + 1 of the slot's entry.

func (a *area) heapTime(i uint64) *uint64 { return p64(a.heap, i*heapSize) }
func (a *area) heapItem(i uint64) *uint64 { return p64(a.heap, i*heapSize+8) }
func (a *area) placeOf(s uint64) *uint32  { return p32(a.place, s*4) }

func (a *area) heapSet(i, t, item uint64) {
	store(a.heapTime(i), t)
	store(a.heapItem(i), item)
	store32(a.placeOf(headSlot(item)), uint32(i+1))
}

// heapPush adds the message seq in slot s. Its time is ≥ 0.
func (a *area) heapPush(t, seq, s uint64) error {
	n := load(a.heapLen)
	if n >= a.slots {
		return errDamaged
	}
	store(a.heapLen, n+1)
	return a.heapUp(n, t, headWord(seq, s))
}

func (a *area) heapUp(i, t, item uint64) error {
	for i > 0 {
		p := (i - 1) / 2
		pt, pi := load(a.heapTime(p)), load(a.heapItem(p))
		if headSlot(pi) >= a.slots {
			return errDamaged
		}
		if pt <= t {
			break
		}
		a.heapSet(i, pt, pi)
		i = p
	}
	a.heapSet(i, t, item)
	return nil
}

func (a *area) heapDown(i, n, t, item uint64) error {
	for {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && load(a.heapTime(c+1)) < load(a.heapTime(c)) {
			c++
		}
		ct, ci := load(a.heapTime(c)), load(a.heapItem(c))
		if headSlot(ci) >= a.slots {
			return errDamaged
		}
		if t <= ct {
			break
		}
		a.heapSet(i, ct, ci)
		i = c
	}
	a.heapSet(i, t, item)
	return nil
}

// heapTop returns the earliest entry; ok is false if there is none.
func (a *area) heapTop() (t, seq, s uint64, ok bool, err error) {
	n := load(a.heapLen)
	if n == 0 {
		return 0, 0, 0, false, nil
	}
	item := load(a.heapItem(0))
	if n > a.slots || headSlot(item) >= a.slots {
		return 0, 0, 0, false, errDamaged
	}
	return load(a.heapTime(0)), headSeq(item), headSlot(item), true, nil
}

// heapEntry returns the kind of slot s's entry in the heap and the seq that it names; ok is false if it has none.
func (a *area) heapEntry(s uint64) (kind, seq uint64, ok bool) {
	n := load(a.heapLen)
	if n == 0 || n > a.slots || s >= load(a.heapUpTo) {
		return 0, 0, false
	}
	i := uint64(load32(a.placeOf(s)))
	if i == 0 || i > n {
		return 0, 0, false
	}
	item := load(a.heapItem(i - 1))
	return load(a.heapTime(i-1)) & heapKind, headSeq(item), headSlot(item) == s
}

// heapRemove takes slot s out, if it is in.
func (a *area) heapRemove(s uint64) error {
	n := load(a.heapLen)
	if n == 0 || s >= load(a.heapUpTo) {
		return nil
	}
	i := uint64(load32(a.placeOf(s)))
	if i == 0 {
		return nil
	}
	i--
	if n > a.slots || i >= n || headSlot(load(a.heapItem(i))) != s {
		return nil // an old place: this slot's message is not in the heap
	}
	store32(a.placeOf(s), 0)
	n--
	store(a.heapLen, n)
	if i == n {
		return nil
	}
	t, item := load(a.heapTime(n)), load(a.heapItem(n))
	if headSlot(item) >= a.slots {
		return errDamaged
	}
	if i > 0 && t < load(a.heapTime((i-1)/2)) {
		return a.heapUp(i, t, item)
	}
	return a.heapDown(i, n, t, item)
}
