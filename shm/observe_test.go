package shm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// A handmade queue is written word by word as docs/format.md says, without the engine.
type handmade struct {
	t    testing.TB
	f    *os.File
	o    *observer
	used uint64
}

func putSum(b []byte) { binary.LittleEndian.PutUint64(b[offSum:], headerSum(b)) }

// makeQueue makes an empty queue and opens it read-only for the observer.
func makeQueue(t testing.TB, opt driver.Options) *handmade {
	t.Helper()
	l, err := newLayout(&opt)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kmq.hand")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	h := &handmade{t: t, f: f}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(int64(l.size)); err != nil {
		t.Fatal(err)
	}
	h.bytes(0, l.encode())
	ro, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ro.Close() })
	page := make([]byte, pageSize)
	if _, err := ro.ReadAt(page, 0); err != nil {
		t.Fatal(err)
	}
	if l, err = decodeLayout(page, int64(l.size)); err != nil {
		t.Fatal(err)
	}
	h.o = &observer{f: ro, layout: l, name: "/hand", path: path, self: -1}
	h.word(offCur, curWord(0, driver.MaxPriority))
	h.word(offPartHigh, pageSize/partSize)
	return h
}

func (h *handmade) bytes(off uint64, b []byte) {
	h.t.Helper()
	if _, err := h.f.WriteAt(b, int64(off)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *handmade) word(off, v uint64) {
	h.t.Helper()
	h.bytes(off, binary.LittleEndian.AppendUint64(nil, v))
}

func (h *handmade) u32(off uint64, v uint32) {
	h.t.Helper()
	h.bytes(off, binary.LittleEndian.AppendUint32(nil, v))
}

func (h *handmade) get(off uint64) uint64 {
	h.t.Helper()
	w, err := h.o.word(off)
	if err != nil {
		h.t.Fatal(err)
	}
	return w
}

// use raises the marks of what is in use, so that slot i is.
func (h *handmade) use(i uint64) {
	if h.used = max(h.used, i+1); h.get(offHigh) < h.used {
		h.word(offBacked, h.used)
		h.word(offHigh, h.used)
		h.word(offNodesUp, h.used)
		h.word(offNodesUp+8, h.used)
		h.word(offHeapUp, h.used)
		h.word(offHeapUp+8, h.used)
	}
}

// fill writes message m into slot i, up to its state.
func (h *handmade) fill(i uint64, m driver.Message, next uint64) {
	h.t.Helper()
	h.use(i)
	b := make([]byte, slotSize)
	flags, inline := uint16(0), []byte(nil)
	if !m.NotBefore.IsZero() || !m.Expires.IsZero() {
		flags |= flagTimed
		for _, at := range []time.Time{m.NotBefore, m.Expires} {
			ns := uint64(0)
			if !at.IsZero() {
				ns = uint64(at.UnixNano())
			}
			inline = binary.LittleEndian.AppendUint64(inline, ns)
		}
	}
	meta, err := encodeMeta(nil, &m)
	if err != nil {
		h.t.Fatal(err)
	}
	if len(inline)+len(meta) <= inlineSize {
		inline = append(inline, meta...)
	} else {
		flags |= flagMetaOut
		binary.LittleEndian.PutUint16(b[sMetaUp:], 1)
		h.bytes(h.o.metaAt+i*metaBlock, meta)
	}
	if len(inline)+len(m.Body) <= inlineSize {
		inline = append(inline, m.Body...)
	} else {
		flags |= flagBodyOut
		binary.LittleEndian.PutUint32(b[sBodyUp:], uint32((len(m.Body)+63)/64))
		h.bytes(h.o.bodiesAt+i*h.o.stride, m.Body)
	}
	typ := m.Type
	if typ == 0 {
		typ = 1
	}
	binary.LittleEndian.PutUint32(b[sSize:], uint32(len(m.Body)))
	binary.LittleEndian.PutUint16(b[sMeta:], uint16(len(meta)))
	binary.LittleEndian.PutUint16(b[sFlags:], flags)
	binary.LittleEndian.PutUint64(b[sType:], uint64(typ))
	binary.LittleEndian.PutUint64(b[sEnqueued:], uint64(m.Enqueued.UnixNano()))
	binary.LittleEndian.PutUint32(b[sSender:], uint32(m.Sender))
	binary.LittleEndian.PutUint16(b[sAttempt:], uint16(m.Attempt))
	copy(b[sInline:], inline)
	h.bytes(h.o.slotBase(i), b)
	link := linkWord(next, uint64(m.Priority))
	if flags&flagTimed != 0 {
		link |= linkTimed
	}
	h.word(h.o.linkBase(i), link)
}

// send publishes m in slot i as a producer does: not drained.
func (h *handmade) send(i uint64, m driver.Message) (seq uint64) {
	h.t.Helper()
	head := h.get(offHead)
	seq = (headSeq(head) + 1) & seqMask
	h.fill(i, m, headSlot(head))
	h.word(h.o.slotBase(i), readyWord(0, seq))
	h.word(offHead, headWord(seq, i))
	return seq
}

// index makes area k hold exactly what waits according to the arguments, drained up to head: list members per priority in order of
// seq, and heap entries.
func (h *handmade) index(k uint64, lists map[uint64][]uint64, heap [][2]uint64) {
	h.t.Helper()
	o := h.o
	base := o.areaBase(k)
	level0, level1, level2 := make([]uint64, 512), make([]uint64, 8), uint64(0)
	n, up := uint64(0), uint64(0)
	node := func(s, next uint64) {
		state := h.get(o.slotBase(s))
		h.word(o.nodeBase(k, s), state)
		h.word(o.nodeBase(k, s)+8, nodeWord(seqOf(state), next))
		n++
	}
	for p, slots := range lists {
		level0[p/64] |= 1 << (p % 64)
		level1[p/4096] |= 1 << (p / 64 % 64)
		level2 |= 1 << (p / 4096)
		up |= 1 << (p / listsPerPage)
		h.word(base+aLists+8*p, slots[0]|slots[len(slots)-1]<<slotBits)
		for i, s := range slots {
			if i > 0 {
				h.u32(base+o.beforeIn+4*s, uint32(slots[i-1]))
			}
			next := uint64(noSlot)
			if i+1 < len(slots) {
				next = slots[i+1]
			}
			node(s, next)
		}
	}
	for i, e := range heap { // time, slot
		listed := false
		for _, slots := range lists {
			for _, s := range slots {
				listed = listed || s == e[1]
			}
		}
		if !listed {
			node(e[1], noSlot)
		}
		h.word(base+o.heapIn+uint64(i)*heapSize, e[0])
		h.word(base+o.heapIn+uint64(i)*heapSize+8, headWord(seqOf(h.get(o.slotBase(e[1]))), e[1]))
		h.u32(base+o.placeIn+4*e[1], uint32(i+1))
	}
	h.word(base+aHeapLen, uint64(len(heap)))
	h.word(base+aLevel2, level2)
	for i, w := range level1 {
		h.word(base+aLevel1+8*uint64(i), w)
	}
	for i, w := range level0 {
		h.word(base+aLevel0+8*uint64(i), w)
	}
	h.word(offListsUp+8*k, up)
	head := headSeq(h.get(offHead))
	h.word(base+aConsumed, (head-n)&seqMask)
	lock := h.get(offLock)
	h.word(offLock, lockWord(lockEpoch(lock), k, false, head))
}

// join writes entry p as this process would and, if it is to live, takes its lock on a descriptor of its own.
func (h *handmade) join(p int, gen uint64, doing uint64, lives bool) (leave func()) {
	h.t.Helper()
	at := h.o.entryBase(p)
	_, start, ok := processState(os.Getpid())
	if !ok {
		h.t.Fatal("no /proc here")
	}
	h.u32(at+pPID, uint32(os.Getpid()))
	h.u32(at+pUID, uint32(os.Getuid()))
	h.word(at+pNamespace, namespaceInode())
	h.word(at+pStart, start)
	h.word(at+pOpened, uint64(time.Now().UnixNano()))
	h.word(at+pDoing, doing<<opShift|uint64(time.Now().UnixMilli()))
	h.bytes(at+pCommand, append([]byte("worker --fast \xff"), make([]byte, 16)...))
	leave = func() {}
	if lives {
		f, err := os.OpenFile(h.f.Name(), os.O_RDWR, 0)
		if err != nil {
			h.t.Fatal(err)
		}
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: lockBase + int64(p), Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
			h.t.Fatal(err)
		}
		leave = func() { _ = f.Close() }
		h.t.Cleanup(leave)
	}
	h.word(at+pWord, partWord(gen, partLive))
	return leave
}

func (h *handmade) peek(p driver.PeekOptions) (ms []driver.Message) {
	h.t.Helper()
	for m, err := range h.o.Peek(context.Background(), p) {
		if err != nil {
			h.t.Fatal(err)
		}
		ms = append(ms, m)
	}
	return ms
}

func bodies(ms []driver.Message) string {
	s := ""
	for _, m := range ms {
		s += string(m.Body) + " "
	}
	return s
}

func (h *handmade) wantBodies(p driver.PeekOptions, want string) {
	h.t.Helper()
	if got := bodies(h.peek(p)); got != want {
		h.t.Errorf("peek %+v: got %q, want %q", p, got, want)
	}
}

// check returns the report; it fails the test unless the broken invariants are as expected.
func (h *handmade) check(wantBroken bool) driver.Report {
	h.t.Helper()
	r, err := h.o.Check(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	broken := false
	for _, p := range r.Problems {
		broken = broken || p.Broken
	}
	if broken != wantBroken {
		h.t.Errorf("broken is %v, want %v: %+v", broken, wantBroken, r.Problems)
	}
	return r
}

func msg(body string, prio int) driver.Message {
	return driver.Message{Body: []byte(body), Priority: prio, Enqueued: time.Now()}
}

func TestPeekUndrained(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 100, MaxSize: 1000})
	h.wantBodies(driver.PeekOptions{}, "")
	h.check(false)
	h.send(3, msg("a", 1))
	h.send(0, msg("b", 7))
	h.send(70, msg("c", 1))
	h.wantBodies(driver.PeekOptions{}, "b a c ")
	// A producer that is about to publish, and one that lost the race: neither is there.
	for i, seq := range map[uint64]uint64{5: 4, 6: 2} {
		h.fill(i, msg("x", 9), 70)
		h.word(h.o.slotBase(i), readyWord(0, seq))
	}
	h.wantBodies(driver.PeekOptions{}, "b a c ")
	h.wantBodies(driver.PeekOptions{Skip: 1, Limit: 1}, "a ")
	h.wantBodies(driver.PeekOptions{Limit: 2}, "b a ")
	h.wantBodies(driver.PeekOptions{Filter: driver.Filter{MinPriority: 2}}, "b ")
	if s, err := h.o.Stat(context.Background()); err != nil || s.Messages != 3 || s.Bytes != 3 || s.Sent != 3 || s.HighestPriority != 7 || s.LowestPriority != 1 {
		t.Errorf("stat: %+v, %v", s, err)
	}
}

func TestPeekDrained(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 100, MaxSize: 1000})
	for i, b := range []string{"a", "b", "c", "d", "e"} {
		h.send(uint64(i), msg(b, i%2))
	}
	h.index(0, map[uint64][]uint64{0: {0, 2, 4}, 1: {1, 3}}, nil)
	h.send(10, msg("f", 1))
	h.wantBodies(driver.PeekOptions{}, "b d f a c e ")
	h.check(false)

	// b is taken; a takeover gives the rest a new tag in area 3.
	h.word(h.o.slotBase(1), ownerWord(kindTaken, 0, 9))
	for _, i := range []uint64{0, 2, 3, 4, 10} {
		h.word(h.o.slotBase(i), readyWord(tagOfEpoch(6), seqOf(h.get(h.o.slotBase(i)))))
	}
	h.word(offLock, lockWord(6, 3, false, 0))
	h.word(offCur, curWord(6, driver.MaxPriority))
	h.word(offNodesUp+8*3, h.used)
	h.index(3, map[uint64][]uint64{0: {0, 2, 4}, 1: {3, 10}}, nil)
	h.wantBodies(driver.PeekOptions{}, "d f a c e ")
	h.join(0, 9, opReceive, true)
	h.check(false)
	if s, err := h.o.Stat(context.Background()); err != nil || s.Messages != 5 || s.Received != 1 || s.Takeovers != 6 || s.Handles != 1 {
		t.Errorf("stat: %+v, %v", s, err)
	}
}

func TestPeekFields(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 100, MaxSize: 100_000})
	big := make([]byte, 70_000)
	for i := range big {
		big[i] = byte(i / 251)
	}
	want := []driver.Message{
		{Body: big, Priority: 32767, Type: 1 << 40, ID: "id", Key: "key", Group: "group", CorrelationID: "corr", ReplyTo: "/reply", ContentType: "text/plain",
			Headers: map[string]string{"a": "1", "empty": ""}, Expires: time.Unix(0, 4e18), Enqueued: time.UnixMilli(1.7e12), Attempt: 3, Sender: 77},
		{Body: []byte("small with some metadata"), Type: 5, Key: "k2", Enqueued: time.UnixMilli(1.7e12)},
		{Body: []byte{}, Type: 1, Enqueued: time.UnixMilli(1.7e12)},
	}
	for i := range want {
		want[i].Seq = h.send(uint64(i), want[i])
	}
	got := h.peek(driver.PeekOptions{})
	for i := range want {
		if g, w := fmt.Sprintf("%+v", got[i]), fmt.Sprintf("%+v", want[i]); g != w {
			t.Errorf("message %d:\n got %.300s\nwant %.300s", i, g, w)
		}
	}
	if ms := h.peek(driver.PeekOptions{Filter: driver.Filter{Key: "k2"}, NoBody: true}); len(ms) != 1 || ms[0].Body != nil || ms[0].Key != "k2" {
		t.Errorf("key k2: %+v", ms)
	}
	n := 0
	if ms := h.peek(driver.PeekOptions{NoBody: true, Match: func(b []byte) bool { n += len(b); return len(b) > 30 }}); len(ms) != 1 || ms[0].Body != nil || n < 70_000 {
		t.Errorf("match: %d messages, %d bytes seen", len(ms), n)
	}
	h.check(false)
}

func TestPeekTimedAndTypes(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 100, MaxSize: 100})
	now := time.Now()
	in := func(m driver.Message, delay, ttl time.Duration, typ int64) driver.Message {
		m.Type = typ
		if delay != 0 {
			m.NotBefore = now.Add(delay)
		}
		if ttl != 0 {
			m.Expires = now.Add(ttl)
		}
		return m
	}
	h.send(0, in(msg("late", 9), 2*time.Hour, 0, 1))
	h.send(1, in(msg("soon", 1), time.Hour, 3*time.Hour, 1))
	h.send(2, in(msg("old", 9), 0, -time.Hour, 1))
	h.send(3, in(msg("due", 0), -time.Hour, 4*time.Hour, 3))
	h.send(4, in(msg("plain", 5), 0, 0, 7))
	h.send(5, in(msg("two", 1), 0, 0, 2))
	h.wantBodies(driver.PeekOptions{}, "plain two due soon late ")
	h.wantBodies(driver.PeekOptions{Limit: 10}, "plain two due soon late ")
	h.wantBodies(driver.PeekOptions{Filter: driver.Filter{TypeAtMost: 3}}, "two due soon late ")
	h.wantBodies(driver.PeekOptions{Filter: driver.Filter{NotType: 1}}, "plain two due ")
	h.wantBodies(driver.PeekOptions{Filter: driver.Filter{Type: 1}}, "soon late ")
	s, err := h.o.Stat(context.Background())
	if err != nil || s.Messages != 6 || s.Delayed != 2 {
		t.Errorf("stat: %+v, %v", s, err)
	}
	at := func(d time.Duration, listed bool) uint64 {
		if listed {
			return listedTime(now.Add(d).UnixNano())
		}
		return delayedTime(now.Add(d).UnixNano())
	}
	h.index(0, map[uint64][]uint64{0: {3}, 5: {4}, 1: {5}, 9: {2}}, [][2]uint64{{at(-time.Hour, true), 2}, {at(time.Hour, false), 1}, {at(4*time.Hour, true), 3}, {at(2*time.Hour, false), 0}})
	h.check(false)
	h.wantBodies(driver.PeekOptions{}, "plain two due soon late ")
}

// Seqs wrap at 2^40: nothing may depend on their size.
func TestObserveWrap(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 100, MaxSize: 100})
	h.word(offHead, headWord(seqMask-2, 0))
	h.word(offLock, lockWord(epochMask, 0, false, seqMask-2))
	h.word(offCur, curWord(epochMask, driver.MaxPriority))
	h.word(h.o.areaBase(0)+aConsumed, seqMask-2)
	for i, b := range []string{"a", "b", "c", "d", "e", "f"} {
		h.send(uint64(9-i), msg(b, 0))
	}
	h.wantBodies(driver.PeekOptions{}, "a b c d e f ")
	h.check(false)
	h.index(0, map[uint64][]uint64{0: {9, 8, 7, 6, 5, 4}}, nil)
	h.wantBodies(driver.PeekOptions{}, "a b c d e f ")
	h.check(false)
}

func TestObserverErrors(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 100, MaxSize: 100})
	h.send(0, msg("a", 0))
	h.word(offRemoved, 1)
	if s, err := h.o.Stat(context.Background()); !errors.Is(err, driver.ErrRemoved) || !s.Removed || s.Messages != 1 {
		t.Errorf("stat of a removed queue: %+v, %v", s, err)
	}
	for m, err := range h.o.Peek(context.Background(), driver.PeekOptions{}) {
		if !errors.Is(err, driver.ErrRemoved) {
			t.Errorf("peek of a removed queue: %+v, %v", m, err)
		}
	}
	if err := h.f.Truncate(pageSize + 5); err != nil {
		t.Fatal(err)
	}
	if _, err := h.o.Stat(context.Background()); !errors.Is(err, driver.ErrCorrupt) {
		t.Errorf("stat of a truncated file: %v", err)
	}
	h.check(true)
	_ = h.o.f.Close()
	ctx := context.Background()
	_, stat := h.o.Stat(ctx)
	_, who := h.o.Who(ctx)
	_, check := h.o.Check(ctx)
	var peek, watch error
	for _, peek = range h.o.Peek(ctx, driver.PeekOptions{}) {
	}
	for _, watch = range h.o.Watch(ctx) {
	}
	for i, err := range []error{stat, who, check, peek, watch} {
		if !errors.Is(err, driver.ErrClosed) {
			t.Errorf("call %d on a closed handle: %v", i, err)
		}
	}
}

// Looking must not give holes memory: an idle queue stays small, whoever looks at it.
func TestObserverKeepsHoles(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 1_000_000})
	h.word(offHigh, 300_000)
	h.word(offBacked, 300_000)
	h.word(offNodesUp, 300_000)
	before, err := h.o.stat()
	if err != nil {
		t.Fatal(err)
	}
	h.peek(driver.PeekOptions{})
	h.check(false)
	if _, err := h.o.Stat(context.Background()); err != nil {
		t.Fatal(err)
	}
	if after, err := h.o.stat(); err != nil || after.Blocks != before.Blocks {
		t.Errorf("the file had %d blocks, now it has %d (%v)", before.Blocks, after.Blocks, err)
	}
}

// Of a queue with very many slots Stat reads the bitmap only.
func TestStatOfLargeQueue(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 5_000_000})
	for i, p := range []int{7, 4097, 64} {
		h.send(uint64(i), msg("x", p))
	}
	h.index(0, map[uint64][]uint64{7: {0}, 4097: {1}, 64: {2}}, nil)
	h.word(offHigh, statScan+1)
	s, err := h.o.Stat(context.Background())
	if err != nil || s.Messages != 3 || s.Bytes != -1 || s.LowestPriority != 7 || s.HighestPriority != 4097 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A body that nobody ever wrote is not believed, however large the queue lets it be.
func TestPeekClaimedBody(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 2, MaxSize: 1 << 30, MaxHandles: 1})
	h.send(0, msg("x", 0))
	h.send(1, msg("fine", 0))
	h.u32(h.o.slotBase(0)+sSize, 1<<30)
	h.u32(h.o.slotBase(0)+sMeta, flagBodyOut<<16)
	h.u32(h.o.slotBase(0)+sBodyUp, 1<<24)
	var got []string
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for m, err := range h.o.Peek(context.Background(), driver.PeekOptions{}) {
		got = append(got, fmt.Sprintf("%.10s %v", m.Body, errors.Is(err, driver.ErrCorrupt)))
	}
	runtime.ReadMemStats(&after)
	allocs := after.TotalAlloc - before.TotalAlloc
	if len(got) != 2 || got[0] != " true" || got[1] != "fine false" || allocs > 4<<20 {
		t.Errorf("%q, %d bytes allocated", got, allocs)
	}
}
