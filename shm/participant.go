package shm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// A participant is one handle. Its number stands for it in state words and marks; the lock on byte lockBase+number says that it
// lives: the kernel drops that lock when the handle's descriptor goes, at death too.
//
// A number is used again, with a new generation, by whoever gets the lock on its byte. If the one before died, the slots that it
// held are taken back first. They stand in its ledger: the number of every slot is written there before the CAS that makes the
// slot RESERVED or TAKEN, so the ledger names at least what is held. It may name more (a place is overwritten only when it is used
// again), so each slot's own word decides.

func (q *Queue) entryOf(p uint64) unsafe.Pointer { return unsafe.Add(q.base, q.partsAt+p*partSize) }

// partsUp is how many entries have pages; those beyond were never used.
func (q *Queue) partsUp() uint64 { return min(load(p64(q.base, offPartHigh)), q.parts) }

// register finds an entry and makes it ours.
//
// Who:   anybody who opens the queue; the byte lock gives each entry to one at a time.
// Order: byte lock, reclaim, generation, fields, live. Nobody believes an entry that is not live.
// Dies:  anywhere: the kernel drops the byte lock, the next registrant does the rest again.
func (q *Queue) register() error {
	busy := uint64(0)
	for _, wantDead := range []bool{false, true} {
		for p := uint64(0); p < q.parts; p++ {
			if p >= q.partsUp() {
				if err := allocate(q.f, q.partsAt+p*partSize, partSize); err != nil {
					return q.driver.sysError("allocate in", q.path, err)
				}
				raise(p64(q.base, offPartHigh), min(roundUp(p+1, pageSize/partSize), q.parts))
			}
			w := load(p64(q.entryOf(p), pWord))
			if (partState(w) == partLive) != wantDead {
				continue
			}
			if byteLock(q.f, lockBase+int64(p), unix.F_WRLCK) != nil {
				busy++
				continue
			}
			if q.adopt(p) {
				return nil
			}
			_ = byteLock(q.f, lockBase+int64(p), unix.F_UNLCK)
		}
	}
	return fmt.Errorf("%d handles have the queue open, MaxHandles is %d: close some (kumquat who %s), or create the queue with more: %w",
		busy, q.parts, q.name, driver.ErrLimit)
}

// adopt makes entry p ours. The caller holds its byte lock.
func (q *Queue) adopt(p uint64) bool {
	e := q.entryOf(p)
	w := load(p64(e, pWord))
	q.me, q.entry, q.mark, q.ledger = p, e, p64(e, pMark), unsafe.Add(e, pLedger)
	if partState(w) == partLive && !q.reclaim(p) && !(q.drainOnce() && q.reclaim(p)) {
		return false
	}
	gen := partGen(w) + 1
	q.gen, q.self = gen&genMask, int(p)
	q.reserved, q.taken = ownerWord(kindReserved, p, q.gen), ownerWord(kindTaken, p, q.gen)
	for off := uint64(pMark); off < pCommand; off += 8 {
		storeSync(p64(e, off), 0)
	}
	store32(p32(e, pPID), q.pid)
	store32(p32(e, pUID), uint32(os.Getuid()))
	store(p64(e, pNamespace), self.namespace)
	store(p64(e, pStart), self.start)
	store(p64(e, pOpened), uint64(time.Now().UnixNano()))
	copy(view(q.base, q.partsAt+p*partSize+pCommand, commandSize), make([]byte, commandSize))
	copy(view(q.base, q.partsAt+p*partSize+pCommand, commandSize-1), self.command)
	if !q.orphans() {
		return false
	}
	storeSync(p64(e, pWord), partWord(gen, partLive))
	return true
}

// drainOnce drains the queue, as the dead participant whose entry we have locked could have: its mark serves for ours. After it
// every message is decided that was not when reclaim looked.
func (q *Queue) drainOnce() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	q.lk.mustLock()
	defer q.lk.unlock()
	for {
		if q.acquire(ctx) != nil {
			return false
		}
		err := q.drain()
		if err == nil {
			q.unlock()
			return true
		}
		if q.abandon(err) != nil {
			return false
		}
	}
}

// reclaim frees what dead participant p held. It reports false if a message of p's is neither surely published nor surely not:
// then somebody has to drain the queue first.
//
// Who:   the holder of p's byte lock, so one at a time; p is dead.
// Order: ledger, then the slot's word, then (for READY) its writer, drained, head and evidence. An owner's word names its
//
//	generation and is never written again after its death. READY(0,k) of p that was not published stays until we free it,
//	because only we may: so it may be freed though another producer could use the same k, in another slot.
//
// Dies:  the byte lock goes to the next, who finds what is left.
func (q *Queue) reclaim(p uint64) bool {
	e := q.entryOf(p)
	gen := partGen(load(p64(e, pWord))) & genMask
	undecided := false
	for i := uint64(0); i < fixedLedger+q.pool; i++ {
		s := uint64(load32(p32(e, pLedger+4*i)))
		if s == 0 || s > min(load(q.high), q.slots) {
			continue
		}
		s--
		w := load(q.stateOf(s))
		switch {
		case isOwnedBy(w, p, gen):
			if cas(q.stateOf(s), w, kindFree) {
				q.giveHints(s/64, 1<<(s%64))
			}
		case kindOf(w) == kindReady && tagOf(w) == 0:
			k := seqOf(w)
			drained := lockDrained(load(q.lockw))
			ahead := seqDiff(k, headSeq(load(q.head)))
			switch {
			case !q.writerIs(s, p, gen):
				// An old ledger place: the slot is another producer's now.
			case ahead > 0, seqDiff(k, drained) <= 0 && !q.evidence(s, k):
				if cas(q.stateOf(s), w, kindFree) {
					q.giveHints(s/64, 1<<(s%64))
				}
			case seqDiff(k, drained) > 0:
				undecided = true
			}
		}
	}
	storeSync(p64(e, pMark), 0)
	return !undecided
}

// writerIs reports whether the READY(0, ·) slot s was filled by participant p of generation gen. A producer says so before it makes
// the slot READY.
func (q *Queue) writerIs(s, p, gen uint64) bool {
	return load32(p32(q.slot(s), sOwner)) == ownerMark(p, gen)
}

func ownerMark(p, gen uint64) uint32 { return uint32(p | gen<<12) }

// self describes this process once.
var self = func() (s struct {
	namespace, start uint64
	command          []byte
}) {
	var st syscall.Stat_t
	if syscall.Stat("/proc/self/ns/pid", &st) == nil {
		s.namespace = st.Ino
	}
	if b, err := os.ReadFile("/proc/self/stat"); err == nil {
		if i := bytes.LastIndexByte(b, ')'); i >= 0 {
			if f := bytes.Fields(b[i+1:]); len(f) > 19 { // field 22 of proc(5), counted from field 3
				s.start, _ = strconv.ParseUint(string(f[19]), 10, 64)
			}
		}
	}
	s.command, _ = os.ReadFile("/proc/self/cmdline")
	s.command = bytes.ReplaceAll(bytes.TrimRight(s.command, "\x00"), []byte{0}, []byte{' '})
	if len(s.command) > commandSize-1 {
		s.command = s.command[:commandSize-1]
	}
	return s
}()

// alive reports whether participant p lives. Our own entry is not asked for: a lock does not report itself.
func (q *Queue) alive(p uint64) bool {
	return p == q.me || byteLocked(q.f, lockBase+int64(p))
}

// unregister signs off. All slots were given back before.
func (q *Queue) unregister() {
	for i := range q.lanes {
		l := &q.lanes[i]
		if l.hints != 0 {
			q.giveHints(l.hintWord, l.hints)
			l.hints = 0
		}
	}
	q.flushHints(1)
	store(q.mark, 0)
	storeSync(p64(q.entry, pWord), partWord(q.gen, partClosed))
}

// doing says what the handle is at, for who.
func (q *Queue) doing(op uint64) {
	store(p64(q.entry, pDoing), op<<56|uint64(stamps.now()/1e6)&(1<<56-1))
}

// record puts an operation into the flight recorder, for check.
func (q *Queue) record(op, slot, seq uint64) {
	n := load(p64(q.entry, pRecordNext))
	store(p64(q.entry, pRecord+n%8*8), op<<56|slot<<32|seq&0xffffffff)
	store(p64(q.entry, pRecordNext), n+1)
}

func (q *Queue) count(off uint64, n uint64) { add(p64(q.entry, off), n) }
