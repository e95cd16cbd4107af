package sysv

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

func threads(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/task")
	want(t, err, nil)
	return len(names)
}

// A receiver sleeps over what is not for it, and is woken by what is.
func TestWakesByType(t *testing.T) {
	q := private(t, 0o600)
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	seven, low := receiveLater(ctx, q, 7, 0), receiveLater(ctx, q, -3, 0)
	other := receiveLater(ctx, q, 9, Except)
	sleeping(t, 3)
	put(t, q, 9, "nobody's")
	pending(t, seven)
	pending(t, low)
	pending(t, other)
	put(t, q, 7, "7")
	// Both 7 and "not 9" want it: one gets it, the other waits on.
	var r result
	select {
	case r = <-seven:
		seven = nil
	case r = <-other:
		other = nil
	case <-time.After(long):
		t.Fatal("nobody gets it")
	}
	if r.err != nil || r.body != "7" || r.mtype != 7 {
		t.Fatalf("%+v", r)
	}
	put(t, q, 3, "3")
	put(t, q, 7, "7")
	put(t, q, 2, "2")
	for _, c := range []<-chan result{seven, low, other} {
		if c != nil {
			want(t, get(t, c).err, nil)
		}
	}
}

// Who waits while messages of no bytes come gets each of them once, and what looking has taken is given out before all else.
func TestZeroLength(t *testing.T) {
	q := private(t, 0o600)
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	c := receiveLater(ctx, q, 4, 0)
	sleeping(t, 1)
	put(t, q, 4, "")
	if r := get(t, c); r.err != nil || r.body != "" || r.mtype != 4 {
		t.Fatalf("%+v", r)
	}
	woken := make(chan struct{})
	ready, stop, err := q.Ready(0, 0, func() { close(woken) })
	if err != nil || ready {
		t.Fatalf("ready %t, %v", ready, err)
	}
	defer stop()
	sleeping(t, 1)
	put(t, q, 5, "") // the thread that looks has taken it
	get(t, woken)
	put(t, q, 6, "x")
	if ready, _, err := q.Ready(5, 0, func() {}); err != nil || !ready {
		t.Fatalf("ready %t, %v", ready, err)
	}
	if st, err := (&handle{q: q}).Stat(ctx); err != nil || st.Messages != 2 {
		t.Fatalf("%d messages, %v", st.Messages, err)
	}
	gets(t, q, 6, 0, "x", 6)
	gets(t, q, 0, 0, "", 5)
	fails(t, q, 0, 0, unix.ENOMSG)
	// A handle that is closed gives back what was held for it.
	woken = make(chan struct{})
	p, err := FromID(q.ID())
	want(t, err, nil)
	want(t, q.Close(), nil)
	_, _, err = p.Ready(0, 0, func() { close(woken) })
	want(t, err, nil)
	sleeping(t, 1)
	var m [header]byte
	setMessageType(m[:], 8)
	if e := trySend(p.ID(), m[:]); e != 0 {
		t.Fatal(e)
	}
	get(t, woken)
	want(t, p.Close(), nil)
	p, err = FromID(p.ID())
	want(t, err, nil)
	defer p.Close()
	gets(t, p, 0, 0, "", 8)
}

// Cancelling ends a call within 10 ms, the best of some trials counts because the machine may be busy, and it has done nothing.
func TestCancellation(t *testing.T) {
	q := private(t, 0o600)
	roomFor(t, q, 10)
	measure := func(what string, call func(context.Context) error) {
		best := time.Hour
		for range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			c := make(chan error, 1)
			go func() { c <- call(ctx) }()
			sleeping(t, 1)
			begin := time.Now()
			cancel()
			want(t, get(t, c), context.Canceled)
			best = min(best, time.Since(begin))
			sleeping(t, 0) // and the thread is free
		}
		if best > 10*time.Millisecond {
			t.Errorf("cancelling %s took %v at best", what, best)
		}
		t.Logf("cancelling %s: %v at best", what, best)
	}
	measure("a receive", func(ctx context.Context) error { _, _, err := q.Receive(ctx, nil, 0, 0); return err })
	put(t, q, 1, "1234567890")
	measure("a send", func(ctx context.Context) error { return q.Send(ctx, 2, []byte("x"), 0) })
	gets(t, q, 0, 0, "1234567890", 1)
	fails(t, q, 0, 0, unix.ENOMSG)
	// Deadlines do not end early.
	for _, d := range []time.Duration{time.Millisecond, 50 * time.Millisecond} {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), d)
		r := get(t, receiveLater(ctx, q, 0, 0))
		took := time.Since(begin)
		cancel()
		want(t, r.err, driver.ErrTimeout, context.DeadlineExceeded)
		if took < d {
			t.Errorf("a receive of %v ended after %v", d, took)
		}
	}
}

// A send that is cancelled at any moment has sent its message, and says so, or has not: what is received is exactly what was said to
// be sent.
func TestCancelledSends(t *testing.T) {
	q := private(t, 0o600)
	roomFor(t, q, 4)
	const senders, each = 4, 300
	var said, got atomic.Int64
	seen := make([]atomic.Bool, senders*each)
	ctx, stop := context.WithCancel(t.Context())
	var receivers, wg sync.WaitGroup
	receivers.Go(func() {
		for {
			_, typ, err := q.Receive(ctx, make([]byte, 4), 0, 0)
			if err != nil {
				want(t, err, context.Canceled)
				return
			}
			if seen[typ-1].Swap(true) {
				t.Errorf("message %d came twice", typ)
			}
			got.Add(1)
			time.Sleep(50 * time.Microsecond) // so that senders wait
		}
	})
	sure := make([]atomic.Bool, senders*each)
	for i := range senders {
		wg.Go(func() {
			for k := range each {
				n := i*each + k
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(k%7)*40*time.Microsecond)
				err := q.Send(ctx, int64(n+1), []byte("1234")[:1+k%4], 0)
				cancel()
				if err == nil {
					said.Add(1)
					sure[n].Store(true)
				} else {
					want(t, err, driver.ErrTimeout)
				}
			}
		})
	}
	wg.Wait()
	until(t, "all are received", func() bool { return got.Load() >= said.Load() })
	time.Sleep(10 * time.Millisecond) // for one that should not be there
	stop()
	receivers.Wait()
	for n := range seen {
		if seen[n].Load() != sure[n].Load() {
			t.Errorf("message %d: received %t, said to be sent %t", n, seen[n].Load(), sure[n].Load())
		}
	}
	if said.Load() == 0 || said.Load() == senders*each {
		t.Errorf("%d of %d were sent: nothing was tested", said.Load(), senders*each)
	}
}

// Receives that are cancelled at any moment lose nothing.
func TestCancelledReceives(t *testing.T) {
	q := private(t, 0o600)
	const total = 1000
	var got atomic.Int64
	seen := make([]atomic.Int32, total)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				ctx, cancel := context.WithTimeout(ctx, time.Duration((i+k)%9)*30*time.Microsecond)
				_, typ, err := q.Receive(ctx, make([]byte, 8), []int64{0, -total, total + 1}[i%3], []int{0, 0, Except}[i%3])
				cancel()
				if err == nil {
					seen[typ-1].Add(1)
					got.Add(1)
				}
			}
		})
	}
	for n := range total {
		want(t, q.Send(t.Context(), int64(n+1), make([]byte, n%3), 0), nil) // those of no bytes are taken by looking
		if n%10 == 0 {
			time.Sleep(100 * time.Microsecond)
		}
	}
	until(t, "all are received", func() bool { return got.Load() >= total })
	stop()
	wg.Wait()
	for n := range seen {
		if c := seen[n].Load(); c != 1 {
			t.Errorf("message %d came %d times", n, c)
		}
	}
}

// Blocked calls on any number of queues keep no more threads than the pool has, and all of them are served, cancelled and told.
func TestManyQueues(t *testing.T) {
	queues := 100
	if l, _, err := GetLimits(); err != nil || l.MaxQueues < queues {
		t.Skipf("needs %d queues, kernel.msgmni is %d (%v)", queues, l.MaxQueues, err)
	}
	const each = 10
	var qs []*Queue
	for range queues {
		qs = append(qs, private(t, 0o600))
	}
	before := threads(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var cs []<-chan result
	for i := range queues * each {
		cs = append(cs, receiveLater(ctx, qs[i%queues], 0, 0))
	}
	until(t, "all wait", func() bool {
		pool.mu.Lock()
		defer pool.mu.Unlock()
		n := 0
		for _, q := range qs {
			for _, g := range q.s.groups {
				n += len(g.line)
			}
		}
		return n == len(cs)
	})
	sleeping(t, MaxThreads)
	// The runtime itself may start some threads for its own purposes.
	if n := threads(t); n > before+MaxThreads+2*runtime.GOMAXPROCS(0)+4 {
		t.Errorf("%d calls wait on %d queues with %d threads; %d were there before", len(cs), queues, n, before)
	}
	// Each queue gets half as many messages as calls that wait.
	slowest := time.Duration(0)
	for i, q := range slices.Backward(qs) {
		for range each / 2 {
			begin := time.Now()
			put(t, q, 1, "x")
			for k := i; ; k = (k + queues) % len(cs) {
				if cs[k] != nil {
					select {
					case r := <-cs[k]:
						want(t, r.err, nil)
						cs[k] = nil
						slowest = max(slowest, time.Since(begin))
					default:
						if time.Since(begin) > long {
							t.Fatalf("queue %d: nobody is woken", i)
						}
						runtime.Gosched()
						continue
					}
					break
				}
			}
		}
	}
	t.Logf("%d queues on %d threads: the slowest wake took %v", queues, MaxThreads, slowest)
	for _, q := range qs[:queues/2] { // removed: all are told
		want(t, q.Remove(), nil)
	}
	for i, c := range cs {
		if c != nil && i%queues < queues/2 {
			want(t, get(t, c).err, driver.ErrRemoved, unix.EIDRM)
		}
	}
	begin := time.Now()
	cancel()
	for i, c := range cs {
		if c != nil && i%queues >= queues/2 {
			want(t, get(t, c).err, context.Canceled)
		}
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("cancelling took %v", d)
	}
}

// Senders at more full queues than there are threads are let in when another process makes room, each once.
func TestManyFullQueues(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	var qs []*Queue
	var cs []<-chan error
	for range 2 * MaxThreads {
		q := private(t, 0o600)
		roomFor(t, q, 3)
		put(t, q, 1, "abc")
		qs = append(qs, q)
		cs = append(cs, sendLater(ctx, q, 2, "def"), sendLater(ctx, q, 3, "g"))
	}
	sleeping(t, MaxThreads)
	for _, q := range qs {
		until(t, "both wait", func() bool { return q.s.senders.Load() == 2 })
	}
	lengths := map[int64]int{1: 3, 2: 3, 3: 1}
	for i, q := range qs {
		seen := map[int64]bool{}
		for range lengths {
			m := make([]byte, header+3)
			n, e := 0, unix.ENOMSG
			until(t, "a message comes", func() bool { n, e = tryReceive(q.ID(), m, 0, 0); return e != unix.ENOMSG })
			if typ := messageType(m); e != 0 || n != lengths[typ] || seen[typ] {
				t.Fatalf("queue %d: %d bytes of type %d, %v, after %v", i, n, typ, e, seen)
			}
			seen[messageType(m)] = true
		}
		fails(t, q, 0, 0, unix.ENOMSG)
	}
	for _, c := range cs {
		want(t, get(t, c), nil)
	}
}

// The descriptor is readable when a message is there, not after a receive that found nothing, and for good once the queue is removed.
func TestFD(t *testing.T) {
	q := private(t, 0o600)
	fd, err := q.FD()
	want(t, err, nil)
	readable := func(wait int) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, wait)
			if err != unix.EINTR {
				want(t, err, nil)
				return n == 1
			}
		}
	}
	if readable(0) {
		t.Error("readable, and nothing is there")
	}
	for i := range 50 {
		put(t, q, 1+int64(i%3), "abc"[:i%4]) // those of no bytes are held until they are received
		if !readable(int(long.Milliseconds())) {
			t.Fatal("not readable, and a message is there")
		}
		fails(t, q, 9, 0, unix.ENOMSG) // finds nothing of that type: the message is told of again
		if !readable(int(long.Milliseconds())) {
			t.Fatal("not readable, and a message is there still")
		}
		gets(t, q, 0, 0, "abc"[:i%4], 1+int64(i%3))
		until(t, "it is clear", func() bool { fails(t, q, 0, 0, unix.ENOMSG); return !readable(0) })
	}
	want(t, q.Remove(), nil)
	if !readable(int(long.Milliseconds())) {
		t.Fatal("not readable, and the queue was removed")
	}
	fails(t, q, 0, 0, driver.ErrRemoved)
	if !readable(0) {
		t.Error("not readable any more")
	}
}

// A removal in another process wakes receivers and senders, those without a thread included.
func TestRemovedWakesAll(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	var qs []*Queue
	var cs []<-chan error
	for i := range MaxThreads + 8 {
		q := private(t, 0o600)
		qs = append(qs, q)
		if i%2 == 0 {
			roomFor(t, q, 1)
			put(t, q, 1, "x")
			cs = append(cs, sendLater(ctx, q, 1, "y"), sendLater(ctx, q, 1, ""))
			continue
		}
		c := make(chan error, 1)
		go func() { _, _, err := q.Receive(ctx, nil, 7, Except); c <- err }()
		cs = append(cs, c)
	}
	sleeping(t, MaxThreads)
	p := startPeer(t, "remove")
	for _, q := range qs {
		p.say("%d", q.ID())
	}
	for _, c := range cs {
		err := get(t, c)
		want(t, err, driver.ErrRemoved)
	}
}

func init() {
	roles["remove"] = func([]string) int {
		for {
			var id int
			if _, err := fmt.Scan(&id); err != nil {
				return 0
			}
			if err := removeID(id); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
	}
}

// Close ends the calls of its own handle and no others.
func TestClose(t *testing.T) {
	q := private(t, 0o600)
	roomFor(t, q, 1)
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	p, err := FromID(q.ID())
	want(t, err, nil)
	mine, other := receiveLater(ctx, p, 0, 0), receiveLater(ctx, q, 0, 0)
	sleeping(t, 1) // one thread for both
	until(t, "both wait", func() bool {
		pool.mu.Lock()
		defer pool.mu.Unlock()
		return len(q.s.groups[selector{}].line) == 2
	})
	want(t, p.Close(), nil)
	want(t, p.Close(), driver.ErrClosed, unix.EBADF)
	want(t, get(t, mine).err, driver.ErrClosed)
	pending(t, other)
	put(t, q, 1, "x")
	want(t, get(t, other).err, nil)
	p, err = FromID(q.ID())
	want(t, err, nil)
	put(t, q, 1, "x")
	s, o := sendLater(ctx, p, 1, "y"), sendLater(ctx, q, 1, "z")
	until(t, "both wait", func() bool { return q.s.senders.Load() == 2 })
	want(t, p.Close(), nil)
	want(t, get(t, s), driver.ErrClosed)
	pending(t, o)
	gets(t, q, 0, 0, "x", 1)
	want(t, get(t, o), nil)
	gets(t, q, 0, 0, "z", 1)
	for _, err := range []error{p.Send(ctx, 1, nil, 0), p.Remove(), p.Set(Change{})} {
		want(t, err, driver.ErrClosed)
	}
	_, _, err = p.Receive(ctx, nil, 0, 0)
	want(t, err, driver.ErrClosed)
	_, err = p.Stat()
	want(t, err, driver.ErrClosed)
	_, err = p.FD()
	want(t, err, driver.ErrClosed)
	_, _, err = p.Ready(0, 0, func() {})
	want(t, err, driver.ErrClosed)
}

// A long message that does not fit does not keep short ones out, and gets its turn.
func TestSendersOfAllLengths(t *testing.T) {
	q := private(t, 0o600)
	roomFor(t, q, 10)
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	put(t, q, 1, "12345678")
	put(t, q, 2, "ab")
	tall := sendLater(ctx, q, 3, "1234567890")
	sleeping(t, 1)
	short := sendLater(ctx, q, 4, "xy")
	until(t, "both wait", func() bool { return q.s.senders.Load() == 2 })
	pending(t, short)
	if n, e := tryReceive(q.ID(), make([]byte, header+10), 2, 0); n != 2 || e != 0 { // as another process would
		t.Fatal(n, e)
	}
	want(t, get(t, short), nil)
	pending(t, tall)
	gets(t, q, 1, 0, "12345678", 1)
	pending(t, tall)
	gets(t, q, 4, 0, "xy", 4)
	want(t, get(t, tall), nil)
	gets(t, q, 3, 0, "1234567890", 3)
}

// Goroutines, threads and descriptors are given back.
func TestNothingIsLeft(t *testing.T) {
	files := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		want(t, err, nil)
		return len(names)
	}
	until(t, "earlier tests have ended", func() bool { return asleep() == 0 })
	before, routines := files(), runtime.NumGoroutine()
	for range 50 {
		q := private(t, 0o600)
		_, err := q.FD()
		want(t, err, nil)
		_, _, err = q.Ready(3, 0, func() {})
		want(t, err, nil)
		ctx, cancel := context.WithCancel(t.Context())
		c := receiveLater(ctx, q, 2, 0)
		cancel()
		want(t, get(t, c).err, context.Canceled)
		want(t, q.Remove(), nil)
		want(t, q.Close(), nil)
	}
	until(t, "the goroutines have ended", func() bool { return runtime.NumGoroutine() <= routines })
	if n := files(); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if len(pool.queues) > 0 || len(pool.parked) > 0 || len(pool.workers) > 0 {
		t.Errorf("%d queues, %d parked, %d workers", len(pool.queues), len(pool.parked), len(pool.workers))
	}
}
