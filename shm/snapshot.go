package shm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// An observer looks at a queue from outside: it uses pread only. It maps nothing, locks nothing, marks nothing and never writes, so
// that it needs read permission only, and holes of the file stay holes. The users of the queue do not wait for it and cannot
// be disturbed by it. What it reads may change under it and may be hostile: every number is checked before it is used, every
// loop is bounded by the layout.
//
// It is part of every Queue, whose handle may be a participant of the queue itself.
type observer struct {
	layout
	f    *os.File
	name string // "/orders"
	path string // of the file
	self int    // our own participant number, −1: none. A process never sees its own lock.
}

// read fills b from the file.
func (o *observer) read(b []byte, off uint64) error {
	looks()
	n, err := o.f.ReadAt(b, int64(off))
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, os.ErrClosed):
		return driver.ErrClosed
	case err == io.EOF:
		return fmt.Errorf("%s ends at byte %d, it should have %d: it was truncated; remove the queue: %w", o.path, off+uint64(n), o.size, driver.ErrCorrupt)
	}
	return fmt.Errorf("read %s: %w", o.path, err)
}

// word reads one aligned word. The kernel copies such a word in one piece.
func (o *observer) word(off uint64) (uint64, error) {
	var b [8]byte
	err := o.read(b[:], off)
	return binary.LittleEndian.Uint64(b[:]), err
}

func (o *observer) areaBase(k uint64) uint64    { return o.areasAt + k*o.areaStride }
func (o *observer) slotBase(i uint64) uint64    { return o.slotsAt + i*slotSize }
func (o *observer) linkBase(i uint64) uint64    { return o.linksAt + i*8 }
func (o *observer) nodeBase(k, i uint64) uint64 { return o.areaBase(k) + o.nodesIn + i*nodeSize }
func (o *observer) recordBase(i uint64) uint64  { return o.recordsAt + i*recordSize }
func (o *observer) entryBase(p int) uint64      { return o.partsAt + uint64(p)*partSize }
func u32at(b []byte, off int) uint32            { return binary.LittleEndian.Uint32(b[off:]) }
func u64at(b []byte, off int) uint64            { return binary.LittleEndian.Uint64(b[off:]) }
func clampInt(n int64, top uint64) uint64       { return uint64(min(max(n, 0), int64(top))) }
func (o *observer) stat() (st unix.Stat_t, e error) {
	c, err := o.f.SyscallConn()
	if err == nil {
		err = c.Control(func(fd uintptr) { e = unix.Fstat(int(fd), &st) })
	}
	if err != nil {
		return st, driver.ErrClosed
	}
	return st, e
}

// alive reports whether the participant holds its lock: the kernel drops it when the process dies, whatever its PID namespace.
func (o *observer) alive(p int) (bool, error) {
	if p == o.self {
		return true, nil
	}
	c, err := o.f.SyscallConn()
	if err != nil {
		return false, driver.ErrClosed
	}
	lk := unix.Flock_t{Type: unix.F_RDLCK, Start: lockBase + int64(p), Len: 1} // a read lock: our descriptor may be read-only
	var e error
	if err := c.Control(func(fd uintptr) { e = unix.FcntlFlock(fd, unix.F_OFD_GETLK, &lk) }); err != nil {
		return false, driver.ErrClosed
	}
	if e != nil {
		return false, fmt.Errorf("ask for the lock of participant %d: %w", p, e)
	}
	return lk.Type != unix.F_UNLCK, nil
}

// gone returns ErrRemoved if the queue was removed.
func (o *observer) gone() error {
	w, err := o.word(offRemoved)
	if err == nil && w != 0 {
		return driver.ErrRemoved
	}
	return err
}

// A stamp is the words that tell a queue's state. Two equal stamps around a look, with the lock free, mean that no holder was at
// work in between.
type stamp struct{ lock, consumed, progress, cur, head uint64 }

// stamp reads lock before head, so that its drained is never beyond head.
func (o *observer) stamp() (s stamp, err error) {
	if s.lock, err = o.word(offLock); err != nil {
		return s, err
	}
	a := o.areaBase(lockArea(s.lock))
	for _, r := range [...]struct {
		w   *uint64
		off uint64
	}{{&s.consumed, a + aConsumed}, {&s.progress, a + aProgress}, {&s.cur, offCur}, {&s.head, offHead}} {
		if *r.w, err = o.word(r.off); err != nil {
			return s, err
		}
	}
	return s, nil
}

// waiting returns how many messages wait. It is exact if for one moment nobody held the lock and nothing was sent or taken;
// else, after some tries, it is the best there is: consumed only lags behind.
func (o *observer) waiting() (s stamp, n uint64, exact bool, err error) {
	const tries = 64
	for try := range tries {
		if s, err = o.stamp(); err != nil {
			return s, 0, false, err
		}
		if !lockIsHeld(s.lock) {
			again, err := o.stamp()
			if err != nil {
				return s, 0, false, err
			}
			if exact = again == s; exact {
				break
			}
		}
		if try > tries/4 {
			time.Sleep(50 * time.Microsecond)
		}
	}
	return s, clampInt(seqDiff(headSeq(s.head), s.consumed), o.max), exact, nil
}

// A snapshot is the set of messages that were published and not taken when head was read, less those that are taken while it is
// looked at.
type snapshot struct {
	o *observer
	stamp
	high    uint64   // slots below it have been used
	drained uint64   // what was drained when the chain had been read
	chain   []uint64 // bit per slot: met on the way from head back. It counts for seqs beyond drained only
	chained uint64   // how many
	broken  string   // why the chain ended early
	nodesUp [areaCount]uint64
	leases  bool   // some message was leased: slots may be LEASED, and have records
	records uint64 // slots below it have records
	leased  uint64 // LEASED slots that messages has come by
}

// snapshot follows the chain of what nobody drained yet, from head back. Before it was drained a slot cannot be claimed and its
// link cannot change, so whatever is beyond drained as it stands afterwards was read truly. What was drained meanwhile has its
// evidence in a node by then.
func (o *observer) snapshot(ctx context.Context) (*snapshot, error) {
	s := &snapshot{o: o}
	var err error
	if s.stamp, err = o.stamp(); err != nil {
		return nil, err
	}
	if s.high, err = o.word(offHigh); err != nil {
		return nil, err
	}
	s.high = min(s.high, o.slots)
	timed, err := o.word(offTimed)
	if err != nil {
		return nil, err
	}
	if s.leases = timed&someLeases != 0; s.leases {
		if s.records, err = o.word(offRecords); err != nil {
			return nil, err
		}
		s.records = min(s.records, o.slots)
	}
	ups := make([]byte, areaCount*8)
	if err := o.read(ups, offNodesUp); err != nil {
		return nil, err
	}
	for k := range s.nodesUp {
		s.nodesUp[k] = min(u64at(ups, 8*k), o.slots)
	}
	n := clampInt(seqDiff(headSeq(s.head), lockDrained(s.lock)), o.max)
	if n > 0 {
		s.chain = make([]uint64, (s.high+63)/64)
		links := pages{o: o}
		at := headSlot(s.head)
		for ; s.chained < n; s.chained++ {
			if at >= s.high {
				s.broken = fmt.Sprintf("leads to slot %d, only %d are in use", at, s.high)
				break
			}
			if s.chain[at/64]&(1<<(at%64)) != 0 {
				s.broken = fmt.Sprintf("comes to slot %d twice", at)
				break
			}
			s.chain[at/64] |= 1 << (at % 64)
			l, err := links.word(o.linkBase(at))
			if err != nil {
				return nil, err
			}
			at = linkNext(l)
			if s.chained%65536 == 65535 && ctx.Err() != nil {
				return nil, driver.ContextError(ctx)
			}
		}
	}
	lock, err := o.word(offLock)
	s.drained = lockDrained(lock)
	return s, err
}

// A seen slot carries a published message; link and head (its slotSize bytes) were read after or with the state.
type seen struct {
	slot, state, link uint64
	head              []byte
	failures          int   // failed deliveries in this queue
	retry             int64 // not to be delivered before (ns), 0: no failure delays it
}

const scanBlock = 256 << 10 / slotSize // slots read at once

// blocks is what scan has read of one block of slots.
type blocks struct {
	s           *snapshot
	first, end  uint64
	slots       []byte
	links       []byte
	nodes       [areaCount][]byte
	haveLinks   bool
	records     []byte // of the block, if there are leases
	haveNodes   [areaCount]bool
	linkSpace   []byte
	nodesSpaces [areaCount][]byte
}

func (b *blocks) load(first, end uint64) error {
	b.first, b.end, b.haveLinks, b.haveNodes = first, end, false, [areaCount]bool{}
	if err := b.s.o.read(b.slots[:(end-first)*slotSize], b.s.o.slotBase(first)); err != nil {
		return err
	}
	if b.records = b.records[:0]; first < b.s.records {
		b.records = slices.Grow(b.records, recordSize*scanBlock)[:recordSize*(min(end, b.s.records)-first)]
		return b.s.o.read(b.records, b.s.o.recordBase(first))
	}
	return nil
}

// record returns what the record of slot i says of message seq.
func (b *blocks) record(i, seq uint64) (failures int, retry int64) {
	at := int(recordSize * (i - b.first))
	if at >= len(b.records) {
		return 0, 0
	}
	return recordOf(b.records[at:], seq)
}

// recordOf reads a record: message seq's failed deliveries, and the time (ns) before which it is not to be delivered again.
func recordOf(b []byte, seq uint64) (failures int, retry int64) {
	r := u64at(b, 0)
	if recSeq(r) != seq {
		return 0, 0
	}
	if t := u64at(b, 8); t&recDelays != 0 {
		retry = recTime(t)
	}
	return int(recFailures(r)), retry
}

func (b *blocks) link(i uint64) (uint64, error) {
	if !b.haveLinks {
		if b.linkSpace == nil {
			b.linkSpace = make([]byte, 8*len(b.slots)/slotSize)
		}
		b.links, b.haveLinks = b.linkSpace[:8*(b.end-b.first)], true
		if err := b.s.o.read(b.links, b.s.o.linkBase(b.first)); err != nil {
			return 0, err
		}
	}
	return u64at(b.links, int(8*(i-b.first))), nil
}

// evidence reports whether any area has a node that says: slot i carried the published message seq. Nodes are never cleared,
// and a slot's seq only grows, so what is found stays true.
func (b *blocks) evidence(i, seq uint64) (bool, error) {
	current := lockArea(b.s.lock)
	for j := range uint64(areaCount) {
		k := (current + j) % areaCount
		if b.s.nodesUp[k] <= i {
			continue
		}
		if !b.haveNodes[k] {
			if b.nodesSpaces[k] == nil {
				b.nodesSpaces[k] = make([]byte, nodeSize*len(b.slots)/slotSize)
			}
			b.nodes[k], b.haveNodes[k] = b.nodesSpaces[k][:nodeSize*(min(b.end, b.s.nodesUp[k])-b.first)], true
			if err := b.s.o.read(b.nodes[k], b.s.o.nodeBase(k, b.first)); err != nil {
				return false, err
			}
		}
		if nodeSeq(u64at(b.nodes[k], int(nodeSize*(i-b.first)+8))) == seq {
			return true, nil
		}
	}
	return false, nil
}

// published reports whether the READY word w of slot i stands for a message of the snapshot.
func (b *blocks) published(i, w uint64) (bool, error) {
	seq := seqOf(w)
	if seqDiff(seq, headSeq(b.s.head)) > 0 {
		return false, nil // younger than the snapshot, or about to be published
	}
	if tagOf(w) != 0 {
		return true, nil
	}
	if seqDiff(seq, b.s.drained) > 0 && b.s.chain != nil && b.s.chain[i/64]&(1<<(i%64)) != 0 {
		return true, nil
	}
	return b.evidence(i, seq)
}

// scan calls f for every slot in use, in ascending order, until f returns false. It reads blocks, so that ten million slots are a
// matter of a second.
func (s *snapshot) scan(ctx context.Context, f func(b *blocks, i, w uint64) (bool, error)) error {
	b := blocks{s: s, slots: make([]byte, slotSize*min(scanBlock, max(s.high, 1)))}
	for first := uint64(0); first < s.high; first += scanBlock {
		if first > 0 && ctx.Err() != nil {
			return driver.ContextError(ctx)
		}
		if err := b.load(first, min(first+scanBlock, s.high)); err != nil {
			return err
		}
		for i := b.first; i < b.end; i++ {
			if more, err := f(&b, i, u64at(b.slots, int(slotSize*(i-b.first)))); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// messages calls f for every message of the snapshot until f returns false. e is valid during the call only.
func (s *snapshot) messages(ctx context.Context, f func(e *seen) bool) error {
	var e seen
	return s.scan(ctx, func(b *blocks, i, w uint64) (bool, error) {
		if kindOf(w) != kindReady {
			if kindOf(w) == kindLeased && s.leases {
				s.leased++
			}
			return true, nil
		}
		ok, err := b.published(i, w)
		if err != nil || !ok {
			return err == nil, err
		}
		e = seen{slot: i, state: w, head: b.slots[slotSize*(i-b.first):][:slotSize]}
		if e.link, err = b.link(i); err != nil {
			return false, err
		}
		e.failures, e.retry = b.record(i, seqOf(w))
		return f(&e), nil
	})
}

// pages reads single words through a small direct-mapped cache of pages: chains and lists mostly run through neighbours. What it
// returns may be as old as the cache; use a new one for every look.
type pages struct {
	o    *observer
	tags [cachePages]uint64 // page number + 1
	buf  []byte
}

const cachePages = 256

func (p *pages) at(off uint64) ([]byte, error) {
	if p.buf == nil {
		p.buf = make([]byte, cachePages*pageSize)
	}
	page := off / pageSize
	b := p.buf[page%cachePages*pageSize:][:pageSize]
	if p.tags[page%cachePages] != page+1 {
		p.tags[page%cachePages] = 0
		if err := p.o.read(b, page*pageSize); err != nil {
			return nil, err
		}
		p.tags[page%cachePages] = page + 1
	}
	return b[off%pageSize:], nil
}

func (p *pages) word(off uint64) (uint64, error) {
	b, err := p.at(off)
	if err != nil {
		return 0, err
	}
	return u64at(b, 0), nil
}
