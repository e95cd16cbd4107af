package shm

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"math/bits"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// A field of the file: what the code and docs/format.md must agree on.
type field struct {
	name             string
	off, size, align uint64
}

// The sections of the file, by the prefix of their constants.
var sections = []struct {
	title, prefix string
	from, to      uint64
	fields        []field
}{
	{"Header page", "off", 0, pageSize, []field{
		{"offMagic", offMagic, 8, 1}, {"offVersion", offVersion, 4, 4}, {"offHeaderSize", offHeaderSize, 4, 4}, {"offSum", offSum, 8, 8},
		{"offMax", offMax, 8, 8}, {"offMaxSize", offMaxSize, 8, 8}, {"offSlotCount", offSlotCount, 8, 8}, {"offParts", offParts, 4, 4},
		{"offPool", offPool, 4, 4}, {"offAreas", offAreas, 4, 4}, {"offOverflow", offOverflow, 4, 4}, {"offHeadPercent", offHeadPercent, 4, 4},
		{"offHeadPrio", offHeadPrio, 4, 4}, {"offStride", offStride, 8, 8}, {"offCreated", offCreated, 8, 8}, {"offPartsAt", offPartsAt, 8, 8},
		{"offSlotsAt", offSlotsAt, 8, 8}, {"offLinksAt", offLinksAt, 8, 8}, {"offHintsAt", offHintsAt, 8, 8}, {"offSummaryAt", offSummaryAt, 8, 8},
		{"offMetaAt", offMetaAt, 8, 8}, {"offBodiesAt", offBodiesAt, 8, 8}, {"offAreasAt", offAreasAt, 8, 8}, {"offAreaStride", offAreaStride, 8, 8},
		{"offNodesIn", offNodesIn, 8, 8}, {"offHeapIn", offHeapIn, 8, 8}, {"offPlaceIn", offPlaceIn, 8, 8}, {"offFileSize", offFileSize, 8, 8},
		{"offBeforeIn", offBeforeIn, 8, 8}, {"offRingIn", offRingIn, 8, 8}, {"offRingSize", offRingSize, 8, 8}, {"offRecordsAt", offRecordsAt, 8, 8},
		{"offRemoved", offRemoved, 8, 8}}},
	{"Hot words", "off", pageSize, hotEnd, []field{
		{"offHead", offHead, 8, 128}, {"offLock", offLock, 8, 128}, {"offCur", offCur, 8, 128}, {"offRecvWait", offRecvWait, 4, 128},
		{"offSendWait", offSendWait, 4, 128}, {"offEdge", offEdge, 4, 128}, {"offEdges", offEdges, 8, 64}, {"offHigh", offHigh, 8, 128}, {"offBacked", offBacked, 8, 8},
		{"offPartHigh", offPartHigh, 8, 8}, {"offTimed", offTimed, 8, 8}, {"offReturns", offReturns, 8, 8}, {"offRecords", offRecords, 8, 8}, {"offNodesUp", offNodesUp, 8 * areaCount, 8}, {"offHeapUp", offHeapUp, 8 * areaCount, 8},
		{"offListsUp", offListsUp, 8 * areaCount, 8}, {"offDropped", offDropped, 8, 8}, {"offExpired", offExpired, 8, 8}, {"offWanted", offWanted, 4, 4}, {"offRingsUp", offRingsUp, 8, 8}, {"offAcks", offAcks, 8, 128}}},
	{"Participants", "p", 0, partSize, []field{
		{"pWord", pWord, 8, 8}, {"pMark", pMark, 8, 8}, {"pDoing", pDoing, 8, 8}, {"pPID", pPID, 4, 4}, {"pUID", pUID, 4, 4},
		{"pNamespace", pNamespace, 8, 8}, {"pStart", pStart, 8, 8}, {"pOpened", pOpened, 8, 8}, {"pSent", pSent, 8, 8}, {"pReceived", pReceived, 8, 8},
		{"pSentBytes", pSentBytes, 8, 8}, {"pRecvBytes", pRecvBytes, 8, 8}, {"pTakeovers", pTakeovers, 8, 8}, {"pFenced", pFenced, 8, 8},
		{"pRecord", pRecord, 64, 8}, {"pRecordNext", pRecordNext, 8, 8}, {"pLedger", pLedger, 4 * ledgerMax, 4}, {"pCommand", pCommand, commandSize, 1}, {"pTokens", pTokens, 8, 8}, {"pLeasing", pLeasing, 8, 8}}},
	{"Slots", "s", 0, slotSize, []field{
		{"sState", sState, 8, 8}, {"sSize", sSize, 4, 4}, {"sMeta", sMeta, 2, 2}, {"sFlags", sFlags, 2, 2}, {"sType", sType, 8, 8},
		{"sEnqueued", sEnqueued, 8, 8}, {"sSender", sSender, 4, 4}, {"sAttempt", sAttempt, 2, 2}, {"sMetaUp", sMetaUp, 2, 2},
		{"sBodyUp", sBodyUp, 4, 4}, {"sOwner", sOwner, 4, 4}, {"sInline", sInline, inlineSize, 8}}},
	{"Areas", "a", 0, aLists + listsSize, []field{
		{"aConsumed", aConsumed, 8, 8}, {"aProgress", aProgress, 8, 128}, {"aHeapLen", aHeapLen, 8, 128}, {"aFiltering", aFiltering, 8, 8}, {"aRingPos", aRingPos, 8, 8}, {"aLevel2", aLevel2, 8, 8},
		{"aLevel1", aLevel1, 64, 8}, {"aLevel0", aLevel0, 4096, pageSize}, {"aLists", aLists, listsSize, pageSize}}},
}

var constants = map[string]uint64{
	"formatVersion": formatVersion, "pageSize": pageSize, "hotEnd": hotEnd, "partSize": partSize, "commandSize": commandSize,
	"fixedLedger": fixedLedger, "poolMax": poolMax, "ledgerMax": ledgerMax, "slotSize": slotSize, "inlineSize": inlineSize, "timesSize": timesSize,
	"flagMetaOut": flagMetaOut, "flagBodyOut": flagBodyOut, "flagTimed": flagTimed, "metaBlock": metaBlock, "metaMax": metaMax, "areaCount": areaCount, "recordSize": recordSize,
	"listsSize": listsSize, "nodeSize": nodeSize, "heapSize": heapSize, "listsPerPage": listsPerPage, "maxParts": maxParts, "maxMessages": maxMessages,
	"maxBody": maxBody, "maxAddresses": maxAddresses, "lockBase": uint64(lockBase), "nameLock": uint64(nameLock), "sumEnd": sumEnd,
}

// rows returns the cells of the table rows of a section of docs/format.md.
func rows(t *testing.T, title string) (out [][]string) {
	t.Helper()
	doc, err := os.ReadFile("../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(doc), "\n## "+title+"\n")
	if !found {
		t.Fatalf("docs/format.md has no section %q", title)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "|") {
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			out = append(out, cells)
		}
	}
	return out
}

func number(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestLayoutFields(t *testing.T) {
	for _, s := range sections {
		end := s.from
		fields := slices.Clone(s.fields)
		slices.SortFunc(fields, func(a, b field) int { return int(a.off) - int(b.off) })
		for _, f := range fields {
			if f.off < end || f.off+f.size > s.to {
				t.Errorf("%s, bytes %d … %d, overlaps its neighbour or leaves its section", f.name, f.off, f.off+f.size-1)
			}
			if f.off%f.align != 0 {
				t.Errorf("%s, at %d, is not aligned to %d", f.name, f.off, f.align)
			}
			end = f.off + f.size
		}
	}
	if partSize%64 != 0 || slotSize != 128 || pLedger+4*ledgerMax > pCommand {
		t.Error("entries or slots do not fill whole cache lines, or the ledger does not fit")
	}
}

// The lists above name every constant of layout.go that is an offset.
func TestLayoutComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "layout.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, s := range sections {
		for _, f := range s.fields {
			known[f.name] = true
		}
	}
	isOffset := regexp.MustCompile(`^(off|p|s|a)[A-Z]`)
	ast.Inspect(file, func(n ast.Node) bool {
		if d, ok := n.(*ast.GenDecl); ok && d.Tok == token.CONST {
			for _, spec := range d.Specs {
				for _, id := range spec.(*ast.ValueSpec).Names {
					if isOffset.MatchString(id.Name) && !known[id.Name] {
						t.Errorf("layout.go has %s, the test and docs/format.md do not", id.Name)
					}
				}
			}
			return false
		}
		_, isFunc := n.(*ast.FuncDecl)
		return !isFunc
	})
}

func TestFormatDocument(t *testing.T) {
	for _, s := range sections {
		want := map[string]field{}
		for _, f := range s.fields {
			want[f.name] = f
		}
		for _, r := range rows(t, s.title) {
			if len(r) != 5 || !strings.HasPrefix(r[0], "`") {
				continue
			}
			f, ok := want[strings.Trim(r[0], "`")]
			if !ok {
				t.Errorf("%s: %s is no field, or stands there twice", s.title, r[0])
				continue
			}
			if number(t, r[1]) != f.off || number(t, r[2]) != f.size {
				t.Errorf("%s: the document has it at %s, %s bytes; the code at %d, %d bytes", f.name, r[1], r[2], f.off, f.size)
			}
			delete(want, f.name)
		}
		for name := range want {
			t.Errorf("docs/format.md, %s: %s is missing", s.title, name)
		}
	}
	seen := 0
	for _, r := range rows(t, "Ranges") {
		if strings.HasPrefix(r[0], "`") {
			name := strings.Trim(r[0], "`")
			if v, ok := constants[name]; !ok || v != number(t, r[1]) {
				t.Errorf("%s is %d, the document says %s", name, v, r[1])
			}
			seen++
		}
	}
	if seen != len(constants) {
		t.Errorf("the document has %d constants, the test %d", seen, len(constants))
	}
	ops := 0
	for _, r := range rows(t, "Participants") {
		if len(r) != 2 || strings.Trim(r[0], "0123456789") != "" {
			continue
		}
		if n := number(t, r[0]); opName(n) != r[1] {
			t.Errorf("operation %d is %q, the document says %q", n, opName(n), r[1])
		}
		ops++
	}
	if ops != len(opNames) {
		t.Errorf("the document has %d operations, the code %d", ops, len(opNames))
	}
}

// Each row of the table of words is compared with what the code's constructor makes of a field that is all ones.
func TestFormatWords(t *testing.T) {
	const all = 1<<64 - 1
	ones := func(n int) uint64 { return 1<<n - 1 }
	code := map[string][]uint64{
		"`state` READY":                    {kindReady | 1, readyWord(ones(tagBits), 0) &^ 7, readyWord(0, ones(seqBits)) &^ 7},
		"`state` RESERVED, TAKEN":          {kindReserved | kindTaken, ownerWord(0, ones(20), 0), ownerWord(0, 0, genMask)},
		"`state` LEASED":                   {kindLeased, leasedWord(ones(tagBits), 0) &^ 7, leasedWord(0, tokenWord(ones(tokenParts), 0)) &^ 7, leasedWord(0, tokenWord(0, tokenCounter)) &^ 7},
		"record, word 0":                   {seqMask, failuresMost << failuresAt, recCounted, all &^ (recVersion0 - 1)},
		"record, word 1":                   {recMillis, recDelays, all &^ (recVersion1 - 1)},
		"`link`":                           {linkWord(slotMask, 0), linkWord(0, driver.MaxPriority), linkTimed, linkDelayed},
		"`head`":                           {headWord(0, slotMask), headWord(seqMask, 0)},
		"`lock`":                           {lockWord(0, 0, false, seqMask), lockWord(0, 0, true, 0), lockWord(0, areaCount-1, false, 0), lockWord(epochMask, 0, false, 0)},
		"`cur`":                            {curWord(0, 0xffff), curAlert, curWord(epochMask, 0)},
		"`mark`":                           {markWord(0, epochMask) &^ markUsed, markWord(areaCount-1, 0) &^ markUsed, markWord(0, 0)},
		"`list`":                           {ones(slotBits), ones(slotBits) << slotBits},
		"`node`":                           {nodeWord(0, slotMask), nodeWord(seqMask, 0)},
		"`participant`":                    {partWord(0, 255), partWord(ones(56), 0)},
		"`wait`: recvWait, sendWait, edge": {plainSleeper, specialSleeper, 1<<32 - sleepStep},
		"`doing`":                          {doingTime, all ^ doingTime},
		"`record`":                         {recordSeq, slotMask << 32, all &^ (1<<opShift - 1)},
	}
	var word string
	for _, r := range rows(t, "Words") {
		if len(r) != 4 || strings.Trim(r[2], "0123456789") != "" {
			continue
		}
		if r[0] != "" {
			if len(code[word]) != 0 {
				t.Errorf("the document lacks fields of %s", word)
			}
			word = r[0]
		}
		if len(code[word]) == 0 {
			t.Errorf("the code has no field %q of %s", r[1], word)
			continue
		}
		mask := code[word][0]
		code[word] = code[word][1:]
		if strings.HasPrefix(r[1], "kind") { // numbers, not a mask
			mask = 7
		}
		if from, n := number(t, r[2]), number(t, r[3]); uint64(bits.TrailingZeros64(mask)) != from || uint64(bits.OnesCount64(mask)) != n || mask != ones(int(n))<<from {
			t.Errorf("%s, %s: the document says %d bits from %d, the code has %#x", word, r[1], n, from, mask)
		}
	}
	for w, left := range code {
		if len(left) != 0 {
			t.Errorf("the document lacks fields of %s", w)
		}
	}
}

var layouts = []driver.Options{
	{},
	{MaxMessages: 1, MaxSize: 1, MaxHandles: 1},
	{MaxMessages: 10, MaxSize: 4097, MaxHandles: 2, Overflow: driver.DropLowest, Headroom: driver.Headroom{Percent: 10, Priority: 25}},
	{MaxMessages: 10_000_000, MaxSize: 64},
	{MaxMessages: 4, MaxSize: 1 << 30, MaxHandles: 8},
	{MaxMessages: maxMessages, MaxSize: 8, MaxHandles: maxParts},
}

func TestLayoutRoundTrip(t *testing.T) {
	for _, o := range layouts {
		l, err := newLayout(&o)
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		got, err := decodeLayout(l.encode(), int64(l.size))
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		if !got.created.Equal(l.created) {
			t.Errorf("%+v: created %v, was %v", o, got.created, l.created)
		}
		l.created, got.created = time.Time{}, time.Time{}
		if got != l {
			t.Errorf("%+v:\n got %+v\nwant %+v", o, got, l)
		}
		if l.slots-l.max < l.parts*(fixedLedger+1) {
			t.Errorf("%+v: %d slots for %d messages and %d handles", o, l.slots, l.max, l.parts)
		}
		if _, err := decodeLayout(l.encode(), int64(l.size)-1); !errors.Is(err, driver.ErrCorrupt) {
			t.Errorf("%+v: a file that is a byte too short gives %v", o, err)
		}
	}
}

// The ranges follow each other without a gap beyond a page, in the order of the document.
func TestLayoutRanges(t *testing.T) {
	for _, o := range layouts {
		l, err := newLayout(&o)
		if err != nil {
			t.Fatal(err)
		}
		for _, ranges := range [][][2]uint64{
			{{0, hotEnd}, {l.partsAt, l.parts * partSize}, {l.slotsAt, l.slots * slotSize}, {l.linksAt, l.slots * 8}, {l.hintsAt, (l.slots + 63) / 64 * 8},
				{l.summaryAt, (l.slots + 4095) / 4096 * 8}, {l.metaAt, l.slots * metaBlock}, {l.bodiesAt, l.slots * l.stride},
				{l.recordsAt, l.slots * recordSize}, {l.areasAt, areaCount * l.areaStride}, {l.size, 0}},
			{{0, aLists + listsSize}, {l.nodesIn, l.slots * nodeSize}, {l.heapIn, l.slots * heapSize}, {l.placeIn, l.slots * 4},
				{l.beforeIn, l.slots * 4}, {l.ringIn, l.ring * 8}, {l.areaStride, 0}},
		} {
			for i := 1; i < len(ranges); i++ {
				if end := ranges[i-1][0] + ranges[i-1][1]; ranges[i][0] != (end+pageSize-1)/pageSize*pageSize {
					t.Errorf("%+v: range %d ends at %d, the next begins at %d", o, i-1, end, ranges[i][0])
				}
			}
		}
	}
}

func TestLayoutFlippedBits(t *testing.T) {
	l, err := newLayout(&layouts[2])
	if err != nil {
		t.Fatal(err)
	}
	sound := l.encode()
	for bit := range sumEnd * 8 {
		b := bytes.Clone(sound)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := decodeLayout(b, int64(l.size)); !errors.Is(err, driver.ErrCorrupt) {
			t.Errorf("bit %d of byte %d flipped: %v", bit%8, bit/8, err)
		}
	}
	for n := range pageSize {
		if _, err := decodeLayout(sound[:n], int64(l.size)); !errors.Is(err, driver.ErrCorrupt) {
			t.Fatalf("a header of %d bytes: %v", n, err)
		}
	}
}

// Of headers with a right checksum only those pass that this version could have written.
func TestLayoutHostile(t *testing.T) {
	l, err := newLayout(&driver.Options{})
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for _, f := range sections[0].fields {
		if f.off < offMax || f.off >= sumEnd {
			continue
		}
		for _, v := range []uint64{0, 1, 2, 128, 1<<31 + 7, 1<<32 - 1, 1<<63 - 1, 1<<64 - 1} {
			b := l.encode()
			for i := range f.size {
				b[f.off+i] = byte(v >> (8 * i))
			}
			putSum(b)
			got, err := decodeLayout(b, 1<<62)
			switch {
			case err == nil && (!bytes.Equal(got.encode()[:sumEnd], b[:sumEnd]) || got.size > 2*maxAddresses || got.slots >= noSlot):
				t.Errorf("%s = %d passes as %+v", f.name, v, got)
			case err == nil:
				passed++
			case !errors.Is(err, driver.ErrCorrupt):
				t.Errorf("%s = %d: %v", f.name, v, err)
			}
		}
	}
	if passed == 0 {
		t.Error("none passed: the checksum of the test is wrong")
	}
}
