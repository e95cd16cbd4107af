package posix

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

func threads(t testing.TB) int {
	all, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// A call that is blocked in the poller holds no thread: a thousand of them, receivers and senders, add none beyond what the runtime
// starts for a few goroutines that run. Then all are served, or end with their context.
func TestBlockedCallsAddNoThread(t *testing.T) {
	const each = 500
	empty, full := fresh(t, 1, 8), fresh(t, 1, 8)
	send(t, full, "x", 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := threads(t)
	errs := make(chan error, 2*each)
	for range each {
		go func() { _, _, err := empty.ReceiveContext(ctx, make([]byte, 8)); errs <- err }()
		go func() { errs <- full.SendContext(ctx, []byte("y"), 0) }()
	}
	// Each has had its turn to sleep when the turn is taken and all the others wait for it.
	until(t, "all blocked", func() bool { return len(empty.in.turn) == 1 && len(full.out.turn) == 1 })
	time.Sleep(50 * time.Millisecond) // for those that have not begun yet; more of them blocked can only make the number larger
	after := threads(t)
	if after-before > 10 {
		t.Errorf("%d threads before, %d with %d calls blocked", before, after, 2*each)
	}
	for range 100 {
		if err := empty.SendContext(ctx, []byte("z"), 0); err != nil {
			t.Fatal(err)
		}
		if _, _, err := full.ReceiveContext(ctx, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	for range 2*each - 200 {
		if err := <-errs; err != context.Canceled {
			t.Fatal(err)
		}
	}
	t.Logf("%d threads before, %d with %d calls blocked", before, after, 2*each)
}

// Cancelling ends a blocked call within 10 ms, whether it has the turn or waits for it. The best of some trials counts: the machine
// may have other things to do.
func TestCancellation(t *testing.T) {
	empty, full := fresh(t, 1, 8), fresh(t, 1, 8)
	send(t, full, "x", 0)
	for name, c := range map[string]struct {
		call func(context.Context) error
		side *side
	}{
		"receive": {func(ctx context.Context) error { _, _, err := empty.ReceiveContext(ctx, make([]byte, 8)); return err }, &empty.in},
		"send":    {func(ctx context.Context) error { return full.SendContext(ctx, nil, 0) }, &full.out},
	} {
		for _, second := range []bool{false, true} {
			best := time.Hour
			for range 30 {
				first, cancelFirst := context.WithCancel(t.Context())
				done := make(chan error, 2)
				if second {
					go func() { done <- c.call(first) }()
					until(t, "the first waits", func() bool { return len(c.side.turn) == 1 })
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- c.call(ctx) }()
				until(t, "blocked", func() bool { return len(c.side.turn) == 1 })
				time.Sleep(2 * time.Millisecond)
				begin := time.Now()
				cancel()
				if err := <-ended; err != context.Canceled {
					t.Fatalf("%s: %v", name, err)
				}
				best = min(best, time.Since(begin))
				cancelFirst()
				if second {
					<-done
				}
			}
			if best > 10*time.Millisecond {
				t.Errorf("%s, second %v: cancelling took %v at best", name, second, best)
			}
		}
	}
	// The cancelled calls left nothing behind: no deadline, no turn, no message.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() { time.Sleep(5 * time.Millisecond); _ = empty.Send([]byte("late"), 0) }()
	if n, _, err := empty.ReceiveContext(ctx, make([]byte, 8)); err != nil || n != 4 {
		t.Errorf("a receive after cancelled ones: %d, %v", n, err)
	}
	if a, _ := full.Attr(); a.Messages != 1 {
		t.Errorf("%d messages", a.Messages)
	}
}

// Close ends every kind of blocked call with ErrClosed, those in the kernel as well, and all later calls.
func TestCloseWakesAll(t *testing.T) {
	for range 20 {
		empty, full := fresh(t, 1, 8), fresh(t, 1, 8)
		send(t, full, "x", 0)
		other := open(t, empty.Name(), ReadWrite, 0, nil)
		buf := make([]byte, 8)
		errs := make(chan error, 20)
		for _, call := range []func() error{
			func() error { _, _, err := empty.Receive(make([]byte, 8)); return err },
			func() error { _, _, err := empty.ReceiveContext(t.Context(), make([]byte, 8)); return err },
			func() error { _, _, err := empty.TimedReceive(make([]byte, 8), time.Time{}); return err },
			func() error {
				_, _, err := empty.TimedReceive(make([]byte, 8), time.Now().Add(time.Hour))
				return err
			},
			func() error { return full.Send(nil, 0) },
			func() error { return full.SendContext(t.Context(), nil, 0) },
			func() error { return full.TimedSend(nil, 0, time.Time{}) },
			func() error { return full.TimedSend(nil, 0, time.Now().Add(time.Hour)) },
		} {
			go func() { errs <- call() }()
		}
		inside(t, os.Getpid(), unix.SYS_MQ_TIMEDRECEIVE, 2)
		inside(t, os.Getpid(), unix.SYS_MQ_TIMEDSEND, 2)
		until(t, "blocked", func() bool { return len(empty.in.turn) == 1 && len(full.out.turn) == 1 })
		for _, q := range []*Queue{empty, full} {
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for range 8 {
			if err := <-errs; err != driver.ErrClosed {
				t.Fatalf("a blocked call: %v", err)
			}
		}
		// Nobody took anything: the queue goes on for others.
		send(t, other, "y", 0)
		take(t, other, "y", 0)
		_, _, rerr := empty.Receive(buf)
		_, _, terr := empty.TimedReceive(buf, time.Time{})
		_, aerr := empty.Attr()
		_, serr := empty.SetNonblock(true)
		_, ferr := empty.FD()
		_, nerr := empty.Arrivals(t.Context())
		_, oerr := empty.Stat()
		for i, err := range []error{rerr, terr, aerr, serr, ferr, nerr, oerr, empty.Send(nil, 0), empty.TrySend(nil, 0), empty.NotifyNone(),
			empty.NotifyCancel(), empty.NotifyFunc(func() {}), empty.Close()} {
			if !errors.Is(err, driver.ErrClosed) {
				t.Errorf("call %d on a closed queue: %v", i, err)
			}
		}
	}
}

// Close in the middle of everything: no crash, no hang, no call that meets a file which has the number next, no message lost.
func TestCloseRaces(t *testing.T) {
	for round := range 60 {
		name := freshName(t)
		keep := open(t, name, ReadWrite|CreateFlag, 0o600, &Attr{MaxMessages: 10, MaxSize: 8})
		q := open(t, name, ReadWrite, 0, nil)
		var wg sync.WaitGroup
		var mu sync.Mutex
		sent, received := 0, 0
		count := func(n *int) { mu.Lock(); *n++; mu.Unlock() }
		for i := range 6 {
			wg.Go(func() {
				for {
					var err error
					if i%2 == 0 {
						err = q.SendContext(t.Context(), []byte("x"), i)
					} else {
						err = q.TimedSend([]byte("x"), i, time.Now().Add(time.Minute))
					}
					if err != nil {
						if !errors.Is(err, driver.ErrClosed) {
							t.Errorf("send: %v", err)
						}
						return
					}
					count(&sent)
				}
			})
			wg.Go(func() {
				buf := make([]byte, 8)
				for {
					var err error
					if i%2 == 0 {
						_, _, err = q.ReceiveContext(t.Context(), buf)
					} else {
						_, _, err = q.TimedReceive(buf, time.Now().Add(time.Minute))
					}
					if err != nil {
						if !errors.Is(err, driver.ErrClosed) {
							t.Errorf("receive: %v", err)
						}
						return
					}
					count(&received)
				}
			})
		}
		time.Sleep(time.Duration(round%7) * 300 * time.Microsecond)
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		a, err := keep.Attr()
		if err != nil || a.Messages != sent-received {
			t.Fatalf("%d sent, %d received, %d are there, %v", sent, received, a.Messages, err)
		}
		_ = Unlink(name)
	}
}

// Signals in the middle of a wait, of which the runtime gets many, are not seen by the caller: the wait goes on to the same
// deadline, in the kernel and in the poller.
func TestSignalsDoNotEndWaits(t *testing.T) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGUSR1)
	defer signal.Stop(c)
	q := fresh(t, 1, 8)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				for _, d := range mustGlob("/proc/self/task/*") {
					var tid int
					if _, err := fmt.Sscanf(filepath.Base(d), "%d", &tid); err == nil {
						_ = unix.Tgkill(os.Getpid(), tid, unix.SIGUSR1) // the thread may have ended
					}
				}
			}
		}
	})
	begin := time.Now()
	_, _, err := q.TimedReceive(make([]byte, 8), begin.Add(150*time.Millisecond))
	isErrno(t, "timed receive", err, unix.ETIMEDOUT)
	if d := time.Since(begin); d < 150*time.Millisecond {
		t.Errorf("it ended after %v", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	begin = time.Now()
	if _, _, err := q.ReceiveContext(ctx, make([]byte, 8)); !errors.Is(err, driver.ErrTimeout) || time.Since(begin) < 149*time.Millisecond {
		t.Errorf("receive: %v after %v", err, time.Since(begin))
	}
	close(stop)
	wg.Wait()
}

func mustGlob(pattern string) []string {
	l, err := filepath.Glob(pattern)
	if err != nil {
		panic(err)
	}
	return l
}

// The kernel's line: of the threads that wait in timed calls, the first to come is the first to be served.
func TestKernelServesInOrder(t *testing.T) {
	q := fresh(t, 1, 8)
	got := make(chan int, 5)
	for i := range 5 {
		go func() {
			if _, _, err := q.TimedReceive(make([]byte, 8), time.Time{}); err != nil {
				t.Error(err)
			}
			got <- i
		}()
		inside(t, os.Getpid(), unix.SYS_MQ_TIMEDRECEIVE, i+1)
	}
	for i := range 5 {
		send(t, q, "x", 0)
		if g := <-got; g != i {
			t.Errorf("receiver %d was served, want %d", g, i)
		}
	}
}

// A receiver in the poller, of another process than the sender, wakes for each message; two processes exchange many.
func TestPingPong(t *testing.T) {
	a, b := fresh(t, 1, 16), fresh(t, 1, 16)
	p := startRole(t, "echo", nil, a.Name(), b.Name())
	buf := make([]byte, 16)
	const n = 3000
	for i := range n {
		body := fmt.Appendf(nil, "%d", i)
		if err := a.SendContext(t.Context(), body, i); err != nil {
			t.Fatal(err)
		}
		k, prio, err := b.ReceiveContext(t.Context(), buf)
		if err != nil || string(buf[:k]) != string(body) || prio != i {
			t.Fatalf("round %d: %q at %d, %v", i, buf[:k], prio, err)
		}
	}
	send(t, a, "", 0)
	p.expect("done")
}

func init() {
	roles["echo"] = func(args []string) int {
		fail := func(err error) int { fmt.Fprintln(os.Stderr, err); return 1 }
		in, err := Open(args[0], ReadOnly, 0, nil)
		if err != nil {
			return fail(err)
		}
		out, err := Open(args[1], WriteOnly, 0, nil)
		if err != nil {
			return fail(err)
		}
		buf := make([]byte, in.MaxSize())
		for {
			n, prio, err := in.Receive(buf)
			if err != nil {
				return fail(err)
			}
			if n == 0 {
				fmt.Println("done")
				return 0
			}
			if err := out.Send(buf[:n], prio); err != nil {
				return fail(err)
			}
		}
	}
}
