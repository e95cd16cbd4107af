package shm

import "time"

// Records. A slot that was leased has a record beside it: what must outlive the lease, and the state word has no room for.
//
//	word 0   seq:40 | failures:10 | counted:1 | version:13    which message it is of; its failed deliveries
//	word 1   milliseconds:42 | delays:1 | version:21          when the lease is over; with delays: not to be delivered before
//	words 2, 3                                                milliseconds of the first and the last failure
//
// Who:   holders only. Words 0 and 1 are read, then the lock is verified, then they are changed by CAS; every change raises the
//
//	version, and who gives a message back writes both even if they say so already: then what a fenced holder is still about to
//	write fails.
//
// Order: before the CAS of the state word that makes it true. So a lease always has its end, a message that waits for its retry its
//
//	time, and whoever goes on after a death finds the failure counted once (counted is cleared by the next claim).
//
// Dies:  a record that was written and not made true: a lease ends when its owner wanted the message to be delivered again; of a message that
//
//	waits it says nothing, since a lease's end is no delay.
const (
	recordSize = 32

	recCounted    = 1 << 50
	recVersion0   = 1 << 51
	failuresAt    = 40
	failuresMost  = 1<<10 - 1
	recMillis     = 1<<42 - 1
	recDelays     = 1 << 42
	recVersion1   = 1 << 43
	someTimes     = 1 // bits of offTimed: a timed message was sent,
	someLeases    = 2 // a message was leased
	recordsAtOnce = 512
	leaseLeast    = time.Millisecond
	leaseMost     = 100 * 365 * 24 * time.Hour
)

func recSeq(r uint64) uint64      { return r & seqMask }
func recFailures(r uint64) uint64 { return r >> failuresAt & failuresMost }
func recTime(r uint64) int64      { return int64(r&recMillis) * int64(time.Millisecond) }

// recMillisOf is a time rounded up to what a record holds.
func recMillisOf(ns int64) uint64 {
	return min(uint64(max(ns, 0)+int64(time.Millisecond)-1)/uint64(time.Millisecond), recMillis)
}

func (q *Queue) recordOf(s, word uint64) *uint64 { return p64(q.base, q.recordsAt+s*recordSize+word*8) }

// hasRecord reports whether slot s has memory for its record.
func (q *Queue) hasRecord(s uint64) bool { return s < load(q.recordsUp) }

// backRecords makes sure that the first n slots have records, and that their leases have a place in the heaps of areas 0, 1 and k.
func (q *Queue) backRecords(k, n uint64) error {
	if from := min(load(q.recordsUp), q.slots); n > from {
		to := min(roundUp(n, recordsAtOnce), q.slots)
		if err := allocate(q.f, q.recordsAt+from*recordSize, (to-from)*recordSize); err != nil {
			return q.driver.sysError("allocate in", q.path, err)
		}
		raise(q.recordsUp, to)
	}
	for _, k := range [...]uint64{0, 1, k} {
		if err := q.backHeap(k, n); err != nil {
			return err
		}
	}
	if load(q.timed)&someLeases == 0 {
		or(q.timed, someLeases)
	}
	return nil
}

// setRecord changes word i of slot s's record to what f makes of it.
func (q *Queue) setRecord(s, i, version uint64, f func(uint64) uint64) error {
	p := q.recordOf(s, i)
	for range maxFenced {
		r := load(p)
		if q.isFenced() {
			return errFenced
		}
		if step("record"); cas(p, r, f(r&(version-1))|(r&^(version-1)+version)) {
			return nil
		}
	}
	if q.isFenced() {
		return errFenced
	}
	return errDamaged
}

// failures is how often the delivery of message seq in slot s has failed.
func (q *Queue) failures(s, seq uint64) int {
	if !q.hasRecord(s) {
		return 0
	}
	if r := load(q.recordOf(s, 0)); recSeq(r) == seq {
		return int(recFailures(r))
	}
	return 0
}

// retryAt is when message seq in slot s may be delivered again (ns), 0 if nothing delays it.
func (q *Queue) retryAt(s, seq uint64) int64 {
	if !q.hasRecord(s) || recSeq(load(q.recordOf(s, 0))) != seq {
		return 0
	}
	if r := load(q.recordOf(s, 1)); r&recDelays != 0 {
		return recTime(r)
	}
	return 0
}
