package shm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// A sample is a queue's file with messages of every kind in every state, kept as the pages that are not holes, so that it can be
// written again thousands of times.
type sample struct {
	layout  layout
	extents []extent
	ranges  [][2]uint64 // offset, length: where a change has a meaning, the most telling first
}

type extent struct {
	off  int64
	data []byte
}

var sampleOptions = driver.Options{Create: true, MaxMessages: 24, MaxSize: 300, MaxHandles: 4, Headroom: driver.Headroom{Percent: 10, Priority: 20}}

// takeSample makes the queue with the engine itself: drained and undrained, delayed and expiring messages, bodies and metadata in
// and out of the slots, a loan, a reservation, an index that was built anew once.
func takeSample(t testing.TB, overflow driver.Overflow) *sample {
	t.Helper()
	d := shmDir(t)
	ctx := context.Background()
	o := sampleOptions
	o.Overflow = overflow
	q := openQueue(t, d, "/sample", &o)
	other := openQueue(t, d, "/sample", nil)
	send := func(m driver.Message) {
		t.Helper()
		if m.Type == 0 {
			m.Type = 1
		}
		if err := q.Send(ctx, m, true); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	all := func(n int) {
		for i := range n {
			p := i * 4000
			send(driver.Message{Body: []byte("inline"), Priority: p, Type: int64(i + 1)})
			send(driver.Message{Body: bytes.Repeat([]byte{byte(i)}, 250), Priority: p})
			send(driver.Message{Body: []byte("m"), Priority: 7, ID: "id", Key: "k", Headers: map[string]string{"a": strings.Repeat("b", 200), "c": "d"}})
			send(driver.Message{Body: []byte("later"), Priority: p, NotBefore: now.Add(time.Hour), Expires: now.Add(2 * time.Hour)})
			send(driver.Message{Body: []byte("expires"), Priority: p, Expires: now.Add(time.Hour)})
		}
	}
	all(2)
	tryBody(t, q)
	loan, err := q.Borrow(ctx, driver.Filter{}, true)
	if err != nil {
		t.Fatal(err)
	}
	place, err := q.Reserve(ctx, 100)
	if err != nil {
		t.Fatal(err)
	}
	takeOver(t, q, other)
	tryBody(t, other)
	all(2)
	s := &sample{layout: q.layout}
	s.extents = dataOf(t, q.f)
	l := &s.layout
	used := load(q.high)
	s.ranges = [][2]uint64{{offHead, 8}, {offLock, 8}, {offCur, 8}, {offHigh, 24}, {l.slotsAt, used * slotSize}, {l.linksAt, used * 8}, {pageSize, 1300},
		{l.partsAt, l.parts * partSize}, {l.partsAt, 64}, {l.hintsAt, 64}, {l.summaryAt, 8}, {l.metaAt, used * metaBlock}}
	for k := range uint64(2) {
		a := l.areasAt + k*l.areaStride
		s.ranges = append(s.ranges, [][2]uint64{{a, 640}, {a + aLevel0, 64}, {a + aLevel0, 4096}, {a + aLists, 128}, {a + aLists, listsSize},
			{a + l.nodesIn, used * nodeSize}, {a + l.heapIn, 10 * heapSize}, {a + l.placeIn, used * 4},
			{a + l.beforeIn, used * 4}, {a + aFiltering, 16}, {a + l.ringIn, 64}}...)
	}
	s.ranges = append(s.ranges, [2]uint64{0, l.size}, [2]uint64{0, pageSize})
	_, _ = loan.Release(), place.Abort()
	return s
}

// dataOf reads what of a file is not a hole.
func dataOf(t testing.TB, f *os.File) (es []extent) {
	t.Helper()
	for off := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return es
		}
		if err != nil {
			t.Fatal(err)
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, to-from)
		if _, err := f.ReadAt(b, from); err != nil {
			t.Fatal(err)
		}
		es = append(es, extent{from, b})
		off = to
	}
}

// write makes f the sample again.
func (s *sample) write(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	return s.restore(f)
}

func (s *sample) restore(f *os.File) error {
	if err := f.Truncate(int64(s.layout.size)); err != nil {
		return err
	}
	for _, e := range s.extents {
		if _, err := f.WriteAt(e.data, e.off); err != nil {
			return err
		}
	}
	return nil
}

// mutate writes what a stranger might: mostly an aligned word in a telling range, with a telling value.
func (s *sample) mutate(f *os.File, r *rand.Rand) {
	rg := s.ranges[r.IntN(len(s.ranges))]
	off := rg[0] + r.Uint64N(rg[1])
	var old [8]byte
	if r.IntN(8) > 0 {
		off &^= 7
	}
	_, _ = f.ReadAt(old[:], int64(off))
	w := binary.LittleEndian.Uint64(old[:])
	l := &s.layout
	switch r.IntN(12) {
	case 0, 1:
		w ^= 1 << r.IntN(64)
	case 2:
		w = r.Uint64()
	case 3:
		w = r.Uint64N(64)
	case 4:
		w = ^uint64(0) >> r.IntN(64)
	case 5:
		w += r.Uint64N(5) - 2
	case 6: // another word of the file
		o := s.ranges[r.IntN(len(s.ranges))]
		_, _ = f.ReadAt(old[:], int64((o[0]+r.Uint64N(o[1]))&^7))
		w = binary.LittleEndian.Uint64(old[:])
	case 7: // a slot number, at both ends of its bounds, in the places where words have one
		n := []uint64{0, 1, l.slots - 1, l.slots, noSlot, 1 << 23}[r.IntN(6)]
		w = w&^slotMask | n
		if r.IntN(2) == 0 {
			w = w&^(slotMask<<24) | n<<24
		}
	case 8: // a state of some kind, a seq near those in use
		w = uint64(r.IntN(8)) | uint64(r.IntN(3))<<3 | r.Uint64N(60)<<23
	case 9: // head or lock with all fields plausible
		w = []uint64{headWord(r.Uint64N(80), r.Uint64N(40)), lockWord(r.Uint64N(4), r.Uint64N(16), r.IntN(2) == 0, r.Uint64N(80)),
			markWord(r.Uint64N(16), r.Uint64N(4)), curWord(r.Uint64N(4), r.Uint64N(70000))}[r.IntN(4)]
	case 10:
		w = w&^0xffffffff | r.Uint64N(1<<32)
	case 11:
		w = 0
	}
	binary.LittleEndian.PutUint64(old[:], w)
	n := 8
	if r.IntN(6) == 0 {
		n = 1 + r.IntN(8)
	}
	if off+uint64(n) > l.size {
		return
	}
	_, _ = f.WriteAt(old[:n], int64(off))
}

// A caller calls the engine's operations and judges how they end: in time, and with one of the sentinels.
type caller struct {
	q       *Queue
	f       *os.File // its own opening of the file
	r       *rand.Rand
	buf     []byte
	started atomic.Int64 // ns, of the operation under way; 0: none
	doing   atomic.Pointer[string]
	fail    func(format string, a ...any)
	done    [32]int // how often each operation ended well
	slowest time.Duration
	slow    string
}

const callLimit = 5 * time.Second

// watch ends the process with all stacks when a call takes too long.
func (u *caller) watch(stop <-chan struct{}) {
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
			if s := u.started.Load(); s != 0 && time.Now().UnixNano()-s > int64(callLimit) {
				b := make([]byte, 1<<20)
				fmt.Fprintf(os.Stderr, "%s hangs\n%s\n", *u.doing.Load(), b[:runtime.Stack(b, true)])
				os.Exit(3)
			}
		}
	}
}

// call runs one operation under the watch.
func (u *caller) call(name string, f func() error) error {
	u.doing.Store(&name)
	begun := time.Now()
	u.started.Store(begun.UnixNano())
	err := f()
	u.started.Store(0)
	if d := time.Since(begun); d > u.slowest {
		u.slowest, u.slow = d, name
	}
	if kindOfError(err) == "" {
		u.fail("%s: an error of no kind: %v", name, err)
	}
	return err
}

var gone, cancelGone = context.WithCancel(context.Background())

func init() { cancelGone() }

// short is a context that lets a call wait a moment, or not at all.
func (u *caller) short() (context.Context, context.CancelFunc) {
	if u.r.IntN(2) == 0 {
		return gone, func() {}
	}
	return context.WithTimeout(context.Background(), 300*time.Microsecond)
}

func (u *caller) body() []byte { return u.buf[:u.r.IntN(len(u.buf))] }

func (u *caller) filter() driver.Filter {
	return []driver.Filter{{}, {Type: 1}, {TypeAtMost: 9}, {NotType: 1}, {MinPriority: 8}, {Key: "k"}}[u.r.IntN(6)]
}

func (u *caller) message() driver.Message {
	m := driver.Message{Body: u.body(), Type: 1 + u.r.Int64N(3), Priority: u.r.IntN(driver.MaxPriority + 1)}
	if u.r.IntN(2) == 0 {
		m.Priority = u.r.IntN(8)
	}
	switch u.r.IntN(6) {
	case 0:
		m.Key, m.ID = "k", strings.Repeat("i", u.r.IntN(300))
	case 1:
		m.NotBefore = time.Now().Add(time.Duration(u.r.IntN(1000)) * time.Microsecond)
	case 2:
		m.Expires = time.Now().Add(time.Duration(u.r.IntN(1000)) * time.Microsecond)
	}
	return m
}

func (u *caller) got(m *driver.Message) {
	if len(m.Body) > u.q.maxBodyBytes() || m.Priority < 0 || m.Priority > driver.MaxPriority {
		u.fail("a message of %d bytes with priority %d", len(m.Body), m.Priority)
	}
	sum := byte(0)
	for _, b := range m.Body {
		sum += b
	}
	sink.Store(uint32(sum))
}

var sink atomic.Uint32

func (q *Queue) maxBodyBytes() int { return int(q.maxSize) }

// operations is every operation of the engine on an open handle.
var operations = []struct {
	name string
	rare int // done in one of so many rounds: what is slow by itself
	do   func(u *caller) error
}{
	{"send", 1, func(u *caller) error { return u.q.Send(gone, u.message(), true) }},
	{"send and wait", 2, func(u *caller) error {
		ctx, cancel := u.short()
		defer cancel()
		return u.q.Send(ctx, u.message(), false)
	}},
	{"send bytes", 1, func(u *caller) error { return u.q.SendBytes(gone, u.body(), u.r.IntN(100), true) }},
	{"send batch", 1, func(u *caller) error {
		return u.q.SendBatch(gone, []driver.Message{u.message(), u.message(), u.message()}[:u.r.IntN(4)], true)
	}},
	{"send batch and wait", 4, func(u *caller) error {
		ctx, cancel := u.short()
		defer cancel()
		return u.q.SendBatch(ctx, []driver.Message{u.message(), u.message()}, false)
	}},
	{"receive", 1, func(u *caller) error {
		m, err := u.q.Receive(gone, driver.Filter{}, true)
		u.got(&m)
		return err
	}},
	{"receive filtered", 1, func(u *caller) error {
		m, err := u.q.Receive(gone, u.filter(), true)
		u.got(&m)
		return err
	}},
	{"receive and wait", 2, func(u *caller) error {
		ctx, cancel := u.short()
		defer cancel()
		m, err := u.q.Receive(ctx, u.filter(), false)
		u.got(&m)
		return err
	}},
	{"receive into", 1, func(u *caller) error {
		n, p, err := u.q.ReceiveInto(gone, u.body(), true)
		if n > len(u.buf) || p < 0 || p > driver.MaxPriority {
			u.fail("received %d bytes, priority %d", n, p)
		}
		return err
	}},
	{"receive batch", 1, func(u *caller) error {
		ctx, cancel := u.short()
		defer cancel()
		ms, err := u.q.ReceiveBatch(ctx, nil, u.filter(), 1+u.r.IntN(8), u.r.IntN(2) == 0)
		for i := range ms {
			u.got(&ms[i])
		}
		return err
	}},
	{"borrow", 1, func(u *caller) error {
		l, err := u.q.Borrow(gone, u.filter(), true)
		if err != nil {
			return err
		}
		m := l.Message()
		if u.f != nil { // a fault would be the caller's own
			u.got(&m)
		}
		return l.Release()
	}},
	{"reserve", 1, func(u *caller) error {
		p, err := u.q.Reserve(gone, u.r.IntN(len(u.buf)))
		if err != nil {
			return err
		}
		copy(p.Bytes(), u.buf)
		if u.r.IntN(2) == 0 {
			err = p.Commit(gone, u.message(), true)
		}
		if e := p.Abort(); err != nil || e != nil && !errors.Is(e, driver.ErrInvalid) {
			return errors.Join(err, e)
		}
		return nil
	}},
	{"peek", 6, func(u *caller) error {
		n := 0
		for m, err := range u.q.Peek(context.Background(), driver.PeekOptions{Filter: u.filter(), Skip: u.r.IntN(3)}) {
			if err != nil && kindOfError(err) == "" {
				return err
			}
			u.got(&m)
			if n++; n > int(u.q.slots)+1 {
				u.fail("peek yields %d messages", n)
				break
			}
		}
		return nil
	}},
	{"purge", 12, func(u *caller) error {
		_, err := u.q.Purge(context.Background(), u.filter())
		return err
	}},
	{"stat", 3, func(u *caller) error {
		s, err := u.q.Stat(context.Background())
		if s.Messages < 0 || s.Messages > s.MaxMessages {
			u.fail("stat says %d messages of %d", s.Messages, s.MaxMessages)
		}
		return err
	}},
	{"who", 16, func(u *caller) error {
		ps, err := u.q.Who(context.Background())
		if len(ps) > int(u.q.parts) {
			u.fail("%d participants", len(ps))
		}
		return err
	}},
	{"check", 12, func(u *caller) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_, err := u.q.Check(ctx)
		return err
	}},
	{"watch", 12, func(u *caller) (last error) {
		for _, err := range u.q.Watch(gone) {
			last = err
		}
		return last
	}},
	{"notify", 6, func(u *caller) error {
		ctx, cancel := u.short()
		defer cancel()
		c, err := u.q.Notify(ctx)
		if err == nil {
			for range c {
			}
		}
		return err
	}},
	{"ready", 4, func(u *caller) error {
		_, stop, err := u.q.Ready(u.filter(), func() {})
		stop()
		stop()
		return err
	}},
	{"descriptor", 6, func(u *caller) error {
		fd, err := u.q.FD()
		if err == nil {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		}
		return err
	}},
}

// round does every operation once in an order of its own; with all set the rare ones too.
func (u *caller) round(all bool) {
	for _, i := range u.r.Perm(len(operations)) {
		op := &operations[i]
		if !all && op.rare > 1 && u.r.IntN(op.rare) > 0 {
			continue
		}
		if u.call(op.name, func() error { return op.do(u) }) == nil {
			u.done[i]++
		}
	}
}

// reopen makes a new handle of a file that may be damaged.
func (u *caller) reopen(d Driver, name string) {
	u.q = nil
	_ = u.call("open", func() error {
		q, err := d.OpenQueue(context.Background(), name, nil)
		if err == nil {
			u.q = q
		}
		return err
	})
}

func (u *caller) close() {
	if u.q != nil {
		_ = u.call("close", u.q.Close)
		u.q = nil
	}
}

// fence leaves a hole of exactly n bytes between two stretches of addresses that nobody may touch, and sees to it that the next
// mapping of that size goes there. So an access outside the mapping faults.
func fence(n uint64) (hole unsafe.Pointer) {
	const margin = 64 << 30
	nobody := func(n uint64) unsafe.Pointer {
		p, err := unix.MmapPtr(-1, 0, nil, uintptr(n), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return nil
		}
		return p
	}
	n = roundUp(n, pageSize)
	p := nobody(2*margin + n)
	if p == nil {
		return nil
	}
	hole = unsafe.Add(p, uint64(margin))
	_ = unix.MunmapPtr(hole, uintptr(n))
	for range 1000 { // other gaps that would do are filled
		if at := nobody(n); at == hole {
			_ = unix.MunmapPtr(hole, uintptr(n))
			return hole
		}
	}
	return nil
}
