package shm

import (
	"fmt"
	"time"
)

// An op says what a participant does, in its doing word, or did, in its record. The numbers stand in files and are never reused.
const (
	opIdle        = 0
	opSend        = 1
	opReceive     = 2
	opWaitReceive = 3 // blocked until a message comes
	opWaitSend    = 4 // blocked until there is room
	opLock        = 5 // has the lock
	opTakeover    = 6 // takes the lock over
	opRebuild     = 7 // builds the index anew after that
	opDrain       = 8
	opClaim       = 9 // slot and seq: the message claimed
	opDrop        = 10
	opPurge       = 11
	opOpen        = 12
	opClose       = 13 // closes cleanly: what ends without it died
	opSendBatch   = 14
	opRecvBatch   = 15
	opReserve     = 16
	opBorrow      = 17
	opPeek        = 18
	opPublish     = 19 // slot and seq: the message published
	opCommit      = 20 // publishes a reservation
	opAbort       = 21
	opRelease     = 22 // gives a loan back
	opExpire      = 23
	opReclaim     = 24 // clears what a dead participant left
	opUnlock      = 25
	opFenced      = 26 // found the lock taken over by another
	opNotify      = 27
	opRemove      = 28
	opLease       = 29
	opExtend      = 30
	opGiveBack    = 31 // a lease ended, and the message waits again
)

var opNames = [...]string{
	opIdle: "idle", opSend: "send", opReceive: "receive", opWaitReceive: "wait to receive", opWaitSend: "wait to send",
	opLock: "hold the lock", opTakeover: "take over", opRebuild: "rebuild the index", opDrain: "drain", opClaim: "claim",
	opDrop: "drop", opPurge: "purge", opOpen: "open", opClose: "close", opSendBatch: "send a batch", opRecvBatch: "receive a batch",
	opReserve: "reserve", opBorrow: "borrow", opPeek: "peek", opPublish: "publish", opCommit: "commit", opAbort: "abort",
	opRelease: "release", opExpire: "expire", opReclaim: "reclaim", opUnlock: "unlock", opFenced: "fenced", opNotify: "notify",
	opRemove: "remove", opLease: "lease", opExtend: "extend", opGiveBack: "give back",
}

// opName returns an op's name as Participant.Doing has it.
func opName(op uint64) string {
	if op < uint64(len(opNames)) && opNames[op] != "" {
		return opNames[op]
	}
	return fmt.Sprintf("operation %d", op)
}

const (
	opShift    = 56
	doingTime  = 1<<opShift - 1
	recordSeq  = 1<<32 - 1
	lastMillis = 253_402_300_799_000 // the end of year 9999, the last that JSON can say
)

// doingOf takes a doing word (op:8 | milliseconds of CLOCK_REALTIME:56) apart. A time that no clock of ours shows is the zero time.
func doingOf(w uint64) (op uint64, since time.Time) {
	if ms := int64(w & doingTime); ms != 0 && ms <= lastMillis {
		since = time.UnixMilli(ms)
	}
	return w >> opShift, since
}

// recordText says an entry of the record ring (op:8 | slot:24 | low 32 bits of seq) in words. A takeover has area and epoch in the
// places of slot and seq.
func recordText(w uint64) string {
	op, slot, seq := w>>opShift, w>>32&slotMask, w&recordSeq
	switch {
	case op == opTakeover:
		return fmt.Sprintf("%s: area %d, epoch %d", opName(op), slot, seq)
	case slot == noSlot || slot|seq == 0 && op != opPublish && op != opClaim:
		return opName(op)
	}
	return fmt.Sprintf("%s slot %d seq …%08x", opName(op), slot, seq)
}
