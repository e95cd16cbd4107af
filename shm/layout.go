package shm

import (
	"encoding/binary"
	"fmt"
	"hash/crc64"
	"math"
	"math/bits"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// The file, in order: header page, page of hot words, participants, slots, links, hints (two levels), metadata blocks, bodies,
// records, areas. docs/format.md specifies every byte; the constants here are its source, and layout_test.go holds the two together.
const (
	magic         = "KUMQUAT\x00"
	formatVersion = 2
	pageSize      = 4096

	// header page
	offMagic       = 0
	offVersion     = 8
	offHeaderSize  = 12
	offSum         = 16 // CRC-64/ECMA of bytes 24…255
	offMax         = 24
	offMaxSize     = 32
	offSlotCount   = 40
	offParts       = 48 // u32: participants
	offPool        = 52 // u32: ledger positions beyond the fixed ones = largest batch
	offAreas       = 56 // u32
	offOverflow    = 60 // u32
	offHeadPercent = 64 // u32
	offHeadPrio    = 68 // u32
	offStride      = 72
	offCreated     = 80
	offPartsAt     = 96
	offSlotsAt     = 104
	offLinksAt     = 112
	offHintsAt     = 120
	offSummaryAt   = 128
	offMetaAt      = 136
	offBodiesAt    = 144
	offAreasAt     = 152
	offAreaStride  = 160
	offNodesIn     = 168 // offsets inside an area
	offHeapIn      = 176
	offPlaceIn     = 184
	offFileSize    = 192
	offBeforeIn    = 200
	offRingIn      = 208
	offRingSize    = 216
	offRecordsAt   = 224
	sumEnd         = 256
	offRemoved     = 256 // u64, the only word of this page that changes

	// hot words, 128 bytes apart because the hardware fetches lines in pairs
	offHead     = pageSize + 0
	offLock     = pageSize + 128
	offCur      = pageSize + 256
	offRecvWait = pageSize + 384  // u32
	offSendWait = pageSize + 512  // u32
	offEdge     = pageSize + 640  // u32
	offEdges    = pageSize + 704  // u64: times the queue went from empty to not empty, counted once somebody asks
	offHigh     = pageSize + 768  // u64: slots below this one have been used
	offBacked   = pageSize + 776  // u64: slots below this one have pages
	offPartHigh = pageSize + 784  // u64: participants below this one have pages
	offTimed    = pageSize + 792  // u64: bit 0: a timed message was sent; bit 1: a message was leased
	offReturns  = pageSize + 800  // u64: messages that came back from a lease
	offRecords  = pageSize + 808  // u64: slots below this one have memory for their records
	offNodesUp  = pageSize + 896  // [16]u64: nodes below this one have pages, per area
	offHeapUp   = pageSize + 1024 // [16]u64: likewise heap and places
	offListsUp  = pageSize + 1152 // [16]u64: bit b: list heads of priorities 512·b … 512·b+511 have pages
	offDropped  = pageSize + 1280 // u64: removed by overflow policy and purge
	offExpired  = pageSize + 1288 // u64
	offWanted   = pageSize + 1408 // u32: 1 if somebody sleeps until the lock is given back
	offRingsUp  = pageSize + 1416 // u64: bit k: the ring of area k has pages
	offAcks     = pageSize + 1536 // u64: messages acknowledged
	hotEnd      = 2 * pageSize

	// participant entry
	partSize    = 1024
	pWord       = 0
	pMark       = 8
	pDoing      = 16 // op:8 | milliseconds of CLOCK_REALTIME:56
	pPID        = 24 // u32
	pUID        = 28 // u32
	pNamespace  = 32 // inode of its PID namespace
	pStart      = 40 // start time of the process, in clock ticks since boot
	pOpened     = 48 // ns, CLOCK_REALTIME
	pSent       = 64
	pReceived   = 72
	pSentBytes  = 80 // not counted yet, 0
	pRecvBytes  = 88 // likewise
	pTakeovers  = 96
	pFenced     = 104
	pRecord     = 128 // [8]u64: the last operations, op:8 | slot:24 | seq:32
	pRecordNext = 192
	pLedger     = 256 // [ledgerMax]u32: slot + 1
	pCommand    = 576 // 128 bytes, zero padded
	pTokens     = 704 // leases that this entry ever took, of all its generations
	pLeasing    = 712 // not 0: its generation may have leases
	commandSize = 128
	fixedLedger = 8 // ledger positions 0…7 belong to lanes and to the receiver
	poolMax     = 64
	ledgerMax   = fixedLedger + poolMax

	// slot
	slotSize   = 128
	sState     = 0
	sSize      = 8  // u32: bytes of the body
	sMeta      = 12 // u16: bytes of metadata
	sFlags     = 14 // u16
	sType      = 16
	sEnqueued  = 24 // ns, CLOCK_REALTIME
	sSender    = 32 // u32: process id
	sAttempt   = 36 // u16
	sMetaUp    = 38 // u16: 1: the metadata block has a page
	sBodyUp    = 40 // u32: units of 64 bytes of the body extent that have pages
	sOwner     = 44 // u32: participant:12 | generation:20 of who fills it
	sInline    = 48
	inlineSize = slotSize - sInline
	timesSize  = 16 // NotBefore and Expires in front of the inline bytes, if flagTimed

	flagMetaOut = 1 // metadata lies in the slot's metadata block, else inline
	flagBodyOut = 2 // the body lies in the slot's extent, else inline behind the metadata
	flagTimed   = 4 // NotBefore and Expires are there

	metaBlock = 4096
	metaMax   = 4000

	// area
	areaCount    = 16
	aConsumed    = 0
	aProgress    = 128
	aHeapLen     = 256          // u64
	aFiltering   = 264          // u64: 1: what is enlisted is written to the ring too
	aRingPos     = 272          // u64: how many entries were written to it
	aLevel2      = 512          // u64: bit i: level 1 word i is not 0
	aLevel1      = 576          // [8]u64
	aLevel0      = pageSize     // [512]u64
	aLists       = 2 * pageSize // [32768]u64: tail slot:24 <<24 | head slot:24
	listsSize    = (driver.MaxPriority + 1) * 8
	nodeSize     = 16
	heapSize     = 16 // time ns, slot
	listsPerPage = pageSize / 8
	ringMost     = 1 << 16

	defaultMax     = 65536
	defaultMaxSize = 64 << 10
	defaultParts   = 256
	maxParts       = 4096
	maxMessages    = 16_000_000
	maxBody        = 4<<30 - pageSize
	maxAddresses   = 16 << 40

	lockBase = int64(1) << 60 // byte lockBase+p is locked while participant p lives
	nameLock = lockBase - 1   // held while the name is unlinked
)

// layout is what the header says, checked, and kept outside the mapping: no peer can change it afterwards.
type layout struct {
	max, maxSize, slots       uint64
	parts, pool               uint64
	overflow                  driver.Overflow
	headroom                  driver.Headroom
	stride                    uint64
	created                   time.Time
	partsAt, slotsAt, linksAt uint64
	hintsAt, summaryAt        uint64
	metaAt, bodiesAt          uint64
	areasAt, areaStride       uint64
	nodesIn, heapIn, placeIn  uint64
	beforeIn, ringIn, ring    uint64 // ring: entries of an area's ring, a power of two
	recordsAt                 uint64
	size                      uint64
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// newLayout computes the layout of a queue from its options.
func newLayout(o *driver.Options) (layout, error) {
	var l layout
	bad := func(format string, a ...any) (layout, error) {
		return l, fmt.Errorf("%s: %w", fmt.Sprintf(format, a...), driver.ErrInvalid)
	}
	pick := func(v, def int) uint64 {
		if v == 0 {
			return uint64(def)
		}
		return uint64(v)
	}
	switch {
	case o.MaxMessages < 0 || o.MaxMessages > maxMessages:
		return bad("MaxMessages is %d, must be 1 … %d", o.MaxMessages, maxMessages)
	case o.MaxSize < 0 || o.MaxSize > maxBody:
		return bad("MaxSize is %d, must be 1 … %d", o.MaxSize, int64(maxBody))
	case o.MaxHandles < 0 || o.MaxHandles > maxParts:
		return bad("MaxHandles is %d, must be 1 … %d", o.MaxHandles, maxParts)
	case o.Overflow > driver.DropLowest:
		return bad("unknown overflow policy %d", o.Overflow)
	case o.Headroom.Percent < 0 || o.Headroom.Percent > 99 || o.Headroom.Priority < 0 || o.Headroom.Priority > driver.MaxPriority:
		return bad("headroom is %d%%@%d, must be 0 … 99 %% at a priority of 0 … %d", o.Headroom.Percent, o.Headroom.Priority, driver.MaxPriority)
	}
	l.max, l.maxSize, l.parts = pick(o.MaxMessages, defaultMax), pick(o.MaxSize, defaultMaxSize), pick(o.MaxHandles, defaultParts)
	l.overflow, l.headroom, l.created = o.Overflow, o.Headroom, time.Now()
	l.stride = roundUp(l.maxSize, 64)
	if l.stride > pageSize {
		l.stride = roundUp(l.maxSize, pageSize)
	}
	// Spare slots cost addresses only, but a queue of huge messages has none to waste: its handles hold fewer at once.
	for l.pool = poolMax; l.pool > 1; l.pool /= 2 {
		if n := l.parts * (fixedLedger + l.pool); l.max+n < 1<<slotBits-1 && n*l.stride <= maxAddresses/8 {
			break
		}
	}
	l.place()
	if l.slots >= noSlot {
		return bad("MaxMessages %d and MaxHandles %d need %d slots, the most is %d", l.max, l.parts, l.slots, noSlot-1)
	}
	if l.slots*l.stride > maxAddresses || l.size > 2*maxAddresses {
		return l, fmt.Errorf("MaxMessages %d × MaxSize %d needs %d TiB of addresses, the most is 16: choose a smaller MaxMessages, MaxSize or MaxHandles: %w",
			l.max, l.maxSize, l.slots*l.stride>>40+1, driver.ErrLimit)
	}
	return l, nil
}

// place fills in what follows from max, maxSize, parts, pool and stride.
func (l *layout) place() {
	l.slots = l.max + l.parts*(fixedLedger+l.pool)
	at := uint64(hotEnd)
	next := func(n uint64) uint64 {
		a := at
		at += roundUp(n, pageSize)
		return a
	}
	l.partsAt = next(l.parts * partSize)
	l.slotsAt = next(l.slots * slotSize)
	l.linksAt = next(l.slots * 8)
	l.hintsAt = next((l.slots + 63) / 64 * 8)
	l.summaryAt = next((l.slots + 4095) / 4096 * 8)
	l.metaAt = next(l.slots * metaBlock)
	l.bodiesAt = next(l.slots * l.stride)
	l.recordsAt = next(l.slots * recordSize)
	l.areasAt = at
	at = aLists + listsSize
	l.nodesIn = next(l.slots * nodeSize)
	l.heapIn = next(l.slots * heapSize)
	l.placeIn = next(l.slots * 4)
	l.beforeIn = next(l.slots * 4)
	l.ring = min(uint64(1)<<bits.Len64(l.slots-1), ringMost)
	l.ringIn = next(l.ring * 8)
	l.areaStride = at
	l.size = l.areasAt + areaCount*l.areaStride
}

// encode writes the header page.
func (l *layout) encode() []byte {
	b := make([]byte, pageSize)
	copy(b, magic)
	p32 := func(off int, v uint64) { binary.LittleEndian.PutUint32(b[off:], uint32(v)) }
	p64 := func(off int, v uint64) { binary.LittleEndian.PutUint64(b[off:], v) }
	p32(offVersion, formatVersion)
	p32(offHeaderSize, pageSize)
	p64(offMax, l.max)
	p64(offMaxSize, l.maxSize)
	p64(offSlotCount, l.slots)
	p32(offParts, l.parts)
	p32(offPool, l.pool)
	p32(offAreas, areaCount)
	p32(offOverflow, uint64(l.overflow))
	p32(offHeadPercent, uint64(l.headroom.Percent))
	p32(offHeadPrio, uint64(l.headroom.Priority))
	p64(offStride, l.stride)
	p64(offCreated, uint64(l.created.UnixNano()))
	for off, v := range map[int]uint64{offPartsAt: l.partsAt, offSlotsAt: l.slotsAt, offLinksAt: l.linksAt, offHintsAt: l.hintsAt,
		offSummaryAt: l.summaryAt, offMetaAt: l.metaAt, offBodiesAt: l.bodiesAt, offAreasAt: l.areasAt, offAreaStride: l.areaStride,
		offNodesIn: l.nodesIn, offHeapIn: l.heapIn, offPlaceIn: l.placeIn, offBeforeIn: l.beforeIn,
		offRingIn: l.ringIn, offRingSize: l.ring, offRecordsAt: l.recordsAt, offFileSize: l.size} {
		p64(off, v)
	}
	p64(offSum, headerSum(b))
	return b
}

var sumTable = crc64.MakeTable(crc64.ECMA)

func headerSum(b []byte) uint64 { return crc64.Checksum(b[offMax:sumEnd], sumTable) }

// decodeLayout reads a header page and refuses whatever this version would not have written: the offsets are computed anew and
// compared, so that a header that passes describes a file whose every index lies inside.
func decodeLayout(b []byte, fileSize int64) (layout, error) {
	var l layout
	corrupt := func(format string, a ...any) (layout, error) {
		return l, fmt.Errorf("%s: %w", fmt.Sprintf(format, a...), driver.ErrCorrupt)
	}
	if len(b) < pageSize {
		return corrupt("the file has %d bytes, a queue has more: it was truncated, or is not a queue", fileSize)
	}
	u32 := func(off int) uint64 { return uint64(binary.LittleEndian.Uint32(b[off:])) }
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	if string(b[:8]) != magic {
		return corrupt("the file is not a kumquat queue (it does not begin with %q)", magic)
	}
	if v := u32(offVersion); v != formatVersion {
		return corrupt("the file has format version %d, this program knows %d: use the program that made it, or remove the queue", v, formatVersion)
	}
	if u64(offSum) != headerSum(b) || u32(offHeaderSize) != pageSize || u32(offAreas) != areaCount {
		return corrupt("the header is damaged (its checksum does not match): remove the queue")
	}
	l = layout{max: u64(offMax), maxSize: u64(offMaxSize), parts: u32(offParts), pool: u32(offPool), stride: u64(offStride),
		overflow: driver.Overflow(u32(offOverflow)), headroom: driver.Headroom{Percent: int(u32(offHeadPercent)), Priority: int(u32(offHeadPrio))},
		created: time.Unix(0, int64(u64(offCreated)))}
	if l.max < 1 || l.max > maxMessages || l.maxSize < 1 || l.maxSize > maxBody || l.parts < 1 || l.parts > maxParts ||
		l.pool < 1 || l.pool > poolMax || l.stride < l.maxSize || l.stride > roundUp(l.maxSize, pageSize) || l.stride%64 != 0 ||
		l.overflow > driver.DropLowest || l.headroom.Percent > 99 || l.headroom.Priority > driver.MaxPriority || u64(offCreated) > math.MaxInt64 {
		return corrupt("the header has values out of bounds: remove the queue")
	}
	l.place()
	if l.slots != u64(offSlotCount) || l.slots >= noSlot || l.partsAt != u64(offPartsAt) || l.slotsAt != u64(offSlotsAt) || l.linksAt != u64(offLinksAt) ||
		l.hintsAt != u64(offHintsAt) || l.summaryAt != u64(offSummaryAt) || l.metaAt != u64(offMetaAt) || l.bodiesAt != u64(offBodiesAt) ||
		l.areasAt != u64(offAreasAt) || l.areaStride != u64(offAreaStride) || l.nodesIn != u64(offNodesIn) || l.heapIn != u64(offHeapIn) ||
		l.placeIn != u64(offPlaceIn) || l.beforeIn != u64(offBeforeIn) ||
		l.recordsAt != u64(offRecordsAt) || l.ringIn != u64(offRingIn) || l.ring != u64(offRingSize) || l.size != u64(offFileSize) || l.slots*l.stride > maxAddresses {
		return corrupt("the header's layout is not the one of this version: remove the queue")
	}
	if uint64(fileSize) < l.size {
		return corrupt("the file has %d bytes, its header says %d: it was truncated; remove the queue", fileSize, l.size)
	}
	return l, nil
}

// maxBatch is the largest batch: it must fit the queue, and its slots the handle.
func (l *layout) maxBatch() int { return int(min(l.max, l.pool)) }

// limitFor returns how many messages may be in the queue when one of priority prio comes in.
func (l *layout) limitFor(prio uint64) uint64 {
	if l.headroom.Percent > 0 && prio < uint64(l.headroom.Priority) {
		return l.max - l.max*uint64(l.headroom.Percent)/100
	}
	return l.max
}
