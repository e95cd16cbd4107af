package shm

// This file describes every 64-bit word that processes share, before any code that changes one.
//
//	state[i]   slot i's owner and phase      head   last published message: its seq and slot
//	link[i]    slot i's elder and priority   lock   who is fenced: epoch, area, held, drained
//	mark[p]    area that p may still touch   cur    the priority above which a send must alert
//
// All seqs are 40 bits and wrap, epochs 19 bits and wrap: they are compared by modular difference.

const (
	seqBits  = 40
	seqMask  = 1<<seqBits - 1
	slotBits = 24
	slotMask = 1<<slotBits - 1
	noSlot   = slotMask // the last slot number is never used, so it can mean none

	epochBits = 19
	epochMask = 1<<epochBits - 1
)

// seqDiff returns a − b for two seqs that are less than 2^39 apart.
func seqDiff(a, b uint64) int64 { return int64((a-b)<<(64-seqBits)) >> (64 - seqBits) }

// epochDiff returns a − b for two epochs that are less than 2^18 apart.
func epochDiff(a, b uint64) int64 { return int64((a-b)<<(64-epochBits)) >> (64 - epochBits) }

// A state word is kind:3 | tag:20 | seq:41 for a message, kind:3 | participant:20 | generation:41 for an owner.
//
//	FREE ──CAS──▶ RESERVED(p,gen) ──▶ READY(0,seq) ──CAS of head: published──▶ READY(0,seq)
//	  ▲                   ▲   its owner alone │                                     │ takeover: CAS
//	  │                   └───────────────────┘ lost the race for head              ▼
//	  └───────────────── TAKEN(p,gen) ◀──CAS by a holder: claimed or dropped── READY(tag,seq)
//
//	READY(·,seq) ──CAS by a holder: leased──▶ LEASED(tag,token) ──CAS by a holder: over, or given back──▶ READY(tag,seq)
//	FREE ◀──CAS by its owner, without the lock: acknowledged── LEASED(·,token) ──takeover: CAS──▶ LEASED(newer tag,token)
//
// READY with tag 0 was never rebuilt. A word is never the same twice: a slot's seq strictly grows (it is reserved before head is
// read), a takeover's tag is new, an owner's generation is new, a lease's token is new. (A message that was leased and given back under one tag
// has its word again; whoever could have expected it then was fenced by a newer tag, or held the lock in between.) So a CAS that succeeds met the very state that was read.
const (
	kindFree     = 0
	kindReserved = 1 // a producer fills it
	kindReady    = 2 // published, or (tag 0 only) about to be
	kindTaken    = 3 // a consumer copies it out
	kindLeased   = 4 // delivered for a time
	kindPrepared = 5 // kept for transactions

	tagBits = 20
	tagMask = 1<<tagBits - 1
)

func kindOf(w uint64) uint64  { return w & 7 }
func tagOf(w uint64) uint64   { return w >> 3 & tagMask }
func seqOf(w uint64) uint64   { return w >> 23 & seqMask }
func ownerOf(w uint64) uint64 { return w >> 3 & tagMask }
func genOf(w uint64) uint64   { return w >> 23 }

func readyWord(tag, seq uint64) uint64     { return kindReady | tag<<3 | seq<<23 }
func ownerWord(kind, p, gen uint64) uint64 { return kind | p<<3 | gen<<23 }

// A token names a lease: participant:12 | a counter of its own:29.
const (
	tokenParts   = 12
	tokenCounter = 1<<29 - 1
)

func leasedWord(tag, token uint64) uint64 { return kindLeased | tag<<3 | token<<23 }
func tokenOf(w uint64) uint64             { return w >> 23 }
func tokenOwner(token uint64) uint64      { return token & (1<<tokenParts - 1) }
func tokenWord(p, n uint64) uint64        { return p | n&tokenCounter<<tokenParts }

func isOwnedBy(w uint64, p, gen uint64) bool {
	return w>>3 == p|gen<<20 && (kindOf(w) == kindReserved || kindOf(w) == kindTaken)
}
func tagOfEpoch(epoch uint64) uint64   { return epoch + 1 }
func headWord(seq, slot uint64) uint64 { return seq<<slotBits | slot }
func headSeq(h uint64) uint64          { return h >> slotBits }
func headSlot(h uint64) uint64         { return h & slotMask }

// A link word is next:24 | priority:15 | timed:1 | delayed:1 | rest 0. The producer that has the slot reserved writes it. Timed: the
// slot has NotBefore and Expires. Delayed: NotBefore had not come when it was sent.
const (
	linkTimed   = 1 << 39
	linkDelayed = 1 << 40
)

func linkWord(next, prio uint64) uint64 { return next | prio<<24 }
func linkNext(w uint64) uint64          { return w & slotMask }
func linkPrio(w uint64) uint64          { return w >> 24 & 0x7fff }
func linkIsTimed(w uint64) bool         { return w&linkTimed != 0 }

// The lock word is epoch:19 | area:4 | held:1 | drained:40. It names no holder: who may touch the area says so in its mark.
const lockHeld = 1 << seqBits

func lockWord(epoch, area uint64, held bool, drained uint64) uint64 {
	w := epoch<<45 | area<<41 | drained
	if held {
		w |= lockHeld
	}
	return w
}
func lockEpoch(w uint64) uint64   { return w >> 45 }
func lockArea(w uint64) uint64    { return w >> 41 & 15 }
func lockIsHeld(w uint64) bool    { return w&lockHeld != 0 }
func lockDrained(w uint64) uint64 { return w & seqMask }

// The cur word is epoch:19 | alert:1 | priority:16 (epoch from bit 32, alert bit 16). Only a CAS changes it. A producer sets alert
// when it published something above the priority; the holder of epoch looks at head when it sees alert; a takeover puts its own
// epoch in, so that what a fenced holder still does to this word fails.
const curAlert = 1 << 16

func curWord(epoch, prio uint64) uint64 { return epoch<<32 | prio }
func curEpoch(w uint64) uint64          { return w >> 32 & epochMask }
func curPrio(w uint64) uint64           { return w & 0xffff }

// A mark is used:1 | area:4 | epoch:19. The epoch keeps a tag from being used again while somebody may still act under it.
const markUsed = 1 << 63

func markWord(area, epoch uint64) uint64 { return markUsed | area<<epochBits | epoch }
func markArea(m uint64) uint64           { return m >> epochBits & 15 }
func markEpoch(m uint64) uint64          { return m & epochMask }

// A node is two words: the state word that a claim expects, and seq:40 | next:24. It is written only after a verify, so
// "slot i carried the published message seq" stays true for ever: that is the evidence that a later takeover looks for.
func nodeWord(seq, next uint64) uint64 { return seq<<slotBits | next }
func nodeSeq(n uint64) uint64          { return n >> slotBits }
func nodeNext(n uint64) uint64         { return n & slotMask }

// A participant's word is generation:56 | state:8.
const (
	partClosed = 0 // never used, or closed cleanly
	partLive   = 1 // registered; alive while the lock on its byte is held
)

func partWord(gen, state uint64) uint64 { return gen<<8 | state }
func partGen(w uint64) uint64           { return w >> 8 }
func partState(w uint64) uint64         { return w & 255 }

const genMask = 1<<41 - 1
