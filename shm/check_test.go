package shm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// sampleQueue has of everything: lists of several messages at two priorities, a heap, messages not drained, one taken, one being
// filled, one about to be published.
func sampleQueue(t testing.TB) *handmade {
	h := makeQueue(t, driver.Options{MaxMessages: 100, MaxSize: 1000, MaxHandles: 8})
	now := time.Now()
	later, expiry := now.Add(time.Hour), now.Add(2*time.Hour)
	h.join(0, 1, opWaitReceive, true)
	h.join(1, 4, opSend, true)
	for i := range uint64(4) {
		h.send(i, msg("plain", 5))
	}
	h.send(4, driver.Message{Body: []byte("delayed"), Priority: 6000, NotBefore: later, Key: "k", Enqueued: now})
	h.send(5, driver.Message{Body: []byte("expires"), Priority: 6000, Expires: expiry, Enqueued: now})
	h.send(6, driver.Message{Body: make([]byte, 500), Priority: 6000, ID: strings.Repeat("i", 200), Enqueued: now})
	h.index(0, map[uint64][]uint64{5: {0, 1, 2, 3}, 6000: {5, 6}}, [][2]uint64{{delayedTime(later.UnixNano()), 4}, {listedTime(expiry.UnixNano()), 5}})
	h.send(7, msg("fresh", 5))
	h.send(8, msg("fresh too", 7))
	h.use(20)
	h.word(h.o.slotBase(9), ownerWord(kindTaken, 0, 1))
	h.word(h.o.slotBase(10), ownerWord(kindReserved, 1, 4))
	h.fill(11, msg("about to", 1), 8)
	h.u32(h.o.slotBase(11)+sOwner, ownerMark(1, 4))
	h.word(h.o.slotBase(11), readyWord(0, 10))
	return h
}

func TestCheckSound(t *testing.T) {
	h := sampleQueue(t)
	r := h.check(false)
	if len(r.Problems) != 0 || r.Busy || len(r.Dead) != 0 || r.Checked < 900 || r.Name != "/hand" {
		t.Errorf("%+v", r)
	}
}

// Every invariant is broken once, and Check must say so where it was broken.
func TestCheckFindsBroken(t *testing.T) {
	area := func(h *handmade, off uint64) uint64 { return h.o.areaBase(0) + off }
	state := func(h *handmade, i uint64) uint64 { return h.o.slotBase(i) }
	slot := func(h *handmade, i uint64, off uint64) uint64 { return h.o.slotBase(i) + off }
	cases := map[string]struct {
		breakIt     func(h *handmade)
		where, text string
	}{
		"header":            {func(h *handmade) { h.word(offMax, 99) }, "header", "checksum"},
		"removed flag":      {func(h *handmade) { h.word(offRemoved, 2) }, "header", "removed flag"},
		"high":              {func(h *handmade) { h.word(offHigh, 1<<40) }, "hot words", "high-water"},
		"backed":            {func(h *handmade) { h.word(offBacked, 3) }, "hot words", "have memory"},
		"participants":      {func(h *handmade) { h.word(offPartHigh, 9) }, "hot words", "participants"},
		"cur bits":          {func(h *handmade) { h.word(offCur, 1<<20) }, "cur", "mean nothing"},
		"cur epoch":         {func(h *handmade) { h.word(offCur, curWord(3, 5)) }, "cur", "epoch"},
		"nodes up":          {func(h *handmade) { h.word(offNodesUp+24, 1<<30) }, "area 3", "memory"},
		"drained beyond":    {func(h *handmade) { h.word(offLock, lockWord(0, 0, false, 12)) }, "lock", "drained"},
		"head slot":         {func(h *handmade) { h.word(offHead, headWord(9, 1<<23)) }, "head", "leads to slot"},
		"consumed too much": {func(h *handmade) { h.word(area(h, aConsumed), 30) }, "lock", "left"},
		"consumed too few":  {func(h *handmade) { h.word(area(h, aConsumed), 1<<39+1) }, "head", "can wait"},
		"one not counted":   {func(h *handmade) { h.word(area(h, aConsumed), 1) }, "head", "8 messages wait"},
		"participant state": {func(h *handmade) { h.word(h.o.entryBase(2)+pWord, partWord(1, 7)) }, "participant 2", "state is 7"},
		"mark":              {func(h *handmade) { h.word(h.o.entryBase(0)+pMark, markUsed|1<<40) }, "participant 0", "mark"},
		"mark of closed":    {func(h *handmade) { h.word(h.o.entryBase(3)+pMark, markWord(2, 1)) }, "participant 3", "keeps area 2"},
		"ledger":            {func(h *handmade) { h.u32(h.o.entryBase(0)+pLedger+8, 1<<31) }, "participant 0", "ledger"},
		"kind":              {func(h *handmade) { h.word(state(h, 15), 6) }, "slot 15", "of no kind"},
		"kind of leases":    {func(h *handmade) { h.word(state(h, 15), kindLeased) }, "slot 15", "of no kind"},
		"never sent":        {func(h *handmade) { h.word(state(h, 15), readyWord(1, 77)) }, "slot 15", "only 9 were sent"},
		"owner number":      {func(h *handmade) { h.word(state(h, 9), ownerWord(kindTaken, 4000, 1)) }, "slot 9", "participant 4000"},
		"owner left":        {func(h *handmade) { h.word(state(h, 9), ownerWord(kindTaken, 0, 2)) }, "slot 9", "lost"},
		"owner closed":      {func(h *handmade) { h.word(state(h, 9), ownerWord(kindReserved, 3, 0)) }, "slot 9", "lost"},
		"writer left":       {func(h *handmade) { h.u32(slot(h, 11, sOwner), ownerMark(1, 3)) }, "slot 11", "lost"},
		"size":              {func(h *handmade) { h.u32(slot(h, 2, sSize), 1001) }, "slot 2", "body has 1001"},
		"inline":            {func(h *handmade) { h.u32(slot(h, 2, sSize), 81) }, "slot 2", "inline"},
		"body memory":       {func(h *handmade) { h.u32(slot(h, 6, sBodyUp), 3) }, "slot 6", "memory for 192"},
		"flags":             {func(h *handmade) { h.u32(slot(h, 2, sMeta), 8<<16) }, "slot 2", "flags"},
		"metadata length":   {func(h *handmade) { h.u32(slot(h, 6, sMeta), 4001|3<<16) }, "slot 6", "metadata has 4001"},
		"metadata":          {func(h *handmade) { h.bytes(h.o.metaAt+6*metaBlock+1, []byte{255, 255}) }, "slot 6", "damaged metadata"},
		"inline metadata":   {func(h *handmade) { h.bytes(slot(h, 4, sInline+timesSize+1), []byte{99}) }, "slot 4", "damaged metadata"},
		"type":              {func(h *handmade) { h.word(slot(h, 2, sType), 1<<63) }, "slot 2", "type"},
		"link timed":        {func(h *handmade) { h.word(h.o.linkBase(4), linkWord(3, 6000)) }, "slot 4", "timed"},
		"link bits":         {func(h *handmade) { h.word(h.o.linkBase(2), linkWord(1, 5)|1<<50) }, "slot 2", "mean nothing"},
		"link delayed":      {func(h *handmade) { h.word(h.o.linkBase(5), linkWord(4, 6000)|linkTimed|linkDelayed) }, "slot 5", "timed"},
		"heap listed": {func(h *handmade) {
			h.word(h.o.areaBase(0)+h.o.heapIn+16, h.get(h.o.areaBase(0)+h.o.heapIn+16)&^heapListed)
		}, "area 0, heap", "is due"},
		"negative time":      {func(h *handmade) { h.word(slot(h, 5, sInline+8), 1<<63) }, "slot 5", "negative"},
		"chain":              {func(h *handmade) { h.word(h.o.linkBase(8), linkWord(1<<22, 7)) }, "head", "leads to slot"},
		"chain circle":       {func(h *handmade) { h.word(h.o.linkBase(8), linkWord(8, 7)) }, "head", "twice"},
		"chain astray":       {func(h *handmade) { h.word(h.o.linkBase(8), linkWord(15, 7)) }, "head", "are found"},
		"one seq twice":      {func(h *handmade) { h.word(state(h, 15), readyWord(1, 3)) }, "slots", "two slots"},
		"level 2":            {func(h *handmade) { h.word(area(h, aLevel2), 1) }, "area 0", "levels 2 and 1"},
		"level 2 high bits":  {func(h *handmade) { h.word(area(h, aLevel2), 1<<9|3) }, "area 0", "level 2"},
		"level 1":            {func(h *handmade) { h.word(area(h, aLevel1), 0) }, "area 0", "levels 1 and 0"},
		"level 0":            {func(h *handmade) { h.word(area(h, aLevel0), 1<<6|1<<5) }, "area 0, priority 6", "twice"},
		"lists up":           {func(h *handmade) { h.word(offListsUp, 1) }, "area 0", "list head has no memory"},
		"list head":          {func(h *handmade) { h.word(area(h, aLists+8*5), 1|3<<slotBits) }, "slot 0", "in no list"},
		"list tail":          {func(h *handmade) { h.word(area(h, aLists+8*5), 0|2<<slotBits) }, "slot 3", "in no list"},
		"list bits":          {func(h *handmade) { h.word(area(h, aLists+8*5), 0|3<<slotBits|1<<60) }, "area 0, priority 5", "mean nothing"},
		"list head far":      {func(h *handmade) { h.word(area(h, aLists+8*5), 1<<23|3<<slotBits) }, "area 0, priority 5", "leads to slot"},
		"circle":             {func(h *handmade) { h.word(h.o.nodeBase(0, 2)+8, nodeWord(3, 0)) }, "area 0, priority 5", "twice"},
		"order":              {func(h *handmade) { h.swapList() }, "area 0, priority 5", "comes after"},
		"back link":          {func(h *handmade) { h.u32(h.o.areaBase(0)+h.o.beforeIn+4*2, 9) }, "area 0, priority 5", "stands before it"},
		"foreign priority":   {func(h *handmade) { h.word(h.o.linkBase(2), linkWord(1, 6)) }, "area 0, priority 5", "is of priority 6"},
		"expected":           {func(h *handmade) { h.word(h.o.nodeBase(0, 2), readyWord(5, 3)) }, "area 0, priority 5", "expects"},
		"node seq":           {func(h *handmade) { h.word(state(h, 2), readyWord(1, 3)); h.word(h.o.nodeBase(0, 2)+8, nodeWord(4, 3)) }, "area 0, priority 5", "message 4"},
		"listed but taken":   {func(h *handmade) { h.word(state(h, 2), ownerWord(kindTaken, 0, 1)) }, "area 0, priority 5", "no message that waits"},
		"fresh and listed":   {func(h *handmade) { h.word(offLock, lockWord(0, 0, false, 6)) }, "slot 6", "not drained"},
		"nodes without page": {func(h *handmade) { h.word(offNodesUp, 6) }, "area 0, priority 6000", "leads to slot 6"},
		"heap too long":      {func(h *handmade) { h.word(area(h, aHeapLen), 1<<33) }, "area 0", "heap has"},
		"heap shorter":       {func(h *handmade) { h.word(area(h, aHeapLen), 1) }, "slot 5", "never expire"},
		"heap empty":         {func(h *handmade) { h.word(area(h, aHeapLen), 0) }, "slot 4", "in no list"},
		"heap order":         {func(h *handmade) { h.word(h.o.areaBase(0)+h.o.heapIn, 1<<62) }, "area 0, heap", "above"},
		"heap time":          {func(h *handmade) { h.word(h.o.areaBase(0)+h.o.heapIn, 5) }, "area 0, heap", "is due at 5"},
		"heap seq":           {func(h *handmade) { h.word(h.o.areaBase(0)+h.o.heapIn+8, headWord(9, 4)) }, "area 0, heap", "entry 0 has message 9"},
		"heap slot":          {func(h *handmade) { h.word(h.o.areaBase(0)+h.o.heapIn+8, headWord(5, 1<<23)) }, "area 0, heap", "leads to slot"},
		"heap twice":         {func(h *handmade) { h.word(h.o.areaBase(0)+h.o.heapIn+24, headWord(5, 4)) }, "area 0, heap", "twice"},
		"place":              {func(h *handmade) { h.u32(h.o.areaBase(0)+h.o.placeIn+4*4, 9) }, "area 0, heap", "says it is entry 8"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			h := sampleQueue(t)
			c.breakIt(h)
			r := h.check(true)
			for _, p := range r.Problems {
				if p.Broken && strings.HasPrefix(p.Where, c.where) && strings.Contains(p.Text, c.text) {
					return
				}
			}
			t.Errorf("no problem at %q says %q: %+v", c.where, c.text, r.Problems)
		})
	}
}

// swapList puts the first two messages of priority 5 into the wrong order.
func (h *handmade) swapList() {
	h.word(h.o.areaBase(0)+aLists+8*5, 1|3<<slotBits)
	h.word(h.o.nodeBase(0, 1)+8, nodeWord(2, 0))
	h.word(h.o.nodeBase(0, 0)+8, nodeWord(1, 2))
}

// What the dead leave is debris, not damage, and the report says what they were doing.
func TestCheckDebris(t *testing.T) {
	h := sampleQueue(t)
	h.join(2, 8, opSendBatch, false)
	h.word(h.o.slotBase(12), ownerWord(kindReserved, 2, 8))
	h.word(h.o.slotBase(13), ownerWord(kindTaken, 2, 8))
	h.fill(14, msg("never published", 1), 8)
	h.u32(h.o.slotBase(14)+sOwner, ownerMark(2, 8))
	h.word(h.o.slotBase(14), readyWord(0, 10))
	for i, s := range []uint32{13, 14, 0, 99} {
		h.u32(h.o.entryBase(2)+pLedger+4*uint64(i), s)
	}
	h.word(h.o.entryBase(2)+pRecord+8*7, opReceive<<opShift|13<<32|4711)
	h.word(h.o.entryBase(2)+pRecord, opTakeover<<opShift|2<<32|6)
	h.word(h.o.entryBase(2)+pRecordNext, 9)
	r := h.check(false)
	texts := ""
	for _, p := range r.Problems {
		texts += p.Where + ": " + p.Text + "\n"
	}
	for _, want := range []string{"participant 2: process", "at: send a batch", "slot 12: it was being filled", "slot 13: it was being read", "slot 14: it was about to be published"} {
		if !strings.Contains(texts, want) {
			t.Errorf("%q is missing in:\n%s", want, texts)
		}
	}
	if len(r.Dead) != 1 || r.Dead[0].Number != 2 || r.Dead[0].Holds != 2 || r.Dead[0].Alive {
		t.Fatalf("dead: %+v", r.Dead)
	}
	if l := r.Dead[0].Last; len(l) != 2 || l[0] != "take over: area 2, epoch 6" || l[1] != "receive slot 13 seq …00001267" {
		t.Errorf("last: %q", l)
	}
}

// A lock that stays held is no damage: by the dead it is debris, by the living it means busy.
func TestCheckHeldLock(t *testing.T) {
	for name, alive := range map[string]bool{"alive": true, "dead": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each takes as long as Check is patient
			h := sampleQueue(t)
			h.join(2, 1, opLock, alive)
			h.word(h.o.entryBase(2)+pMark, markWord(0, 0))
			h.word(offLock, h.get(offLock)|lockHeld)
			r := h.check(false)
			if r.Busy != alive {
				t.Errorf("busy is %v, %+v", r.Busy, r.Problems)
			}
			if held := len(r.Problems) > 0 && r.Problems[len(r.Problems)-1].Where == "lock"; held == alive {
				t.Errorf("%+v", r.Problems)
			}
		})
	}
}

// A look that falls into somebody's change must not take it for damage.
func TestCheckWhileChanging(t *testing.T) {
	h := sampleQueue(t)
	free := h.get(offLock)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := uint64(1); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			h.word(offLock, free|lockHeld)
			h.word(h.o.areaBase(0)+aProgress, n)
			h.word(h.o.areaBase(0)+aLists+8*5, 2|3<<slotBits)
			h.word(h.o.areaBase(0)+aLists+8*5, 0|3<<slotBits)
			h.word(offLock, free)
		}
	}()
	for range 5 {
		h.check(false)
	}
	close(stop)
	<-done
}

func TestCheckContext(t *testing.T) {
	h := sampleQueue(t)
	h.word(offLock, h.get(offLock)|lockHeld)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	start := time.Now()
	if _, err := h.o.Check(ctx); !errors.Is(err, context.Canceled) || time.Since(start) > checkFor/2 {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}
