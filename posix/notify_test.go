package posix

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

func pending(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// One registration per queue and one shot per registration, by each way of being told.
func TestNotifyRules(t *testing.T) {
	q := fresh(t, 3, 8)
	registered := func() int {
		t.Helper()
		x, err := q.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return x.NotifyPID
	}
	if err := q.NotifyNone(); err != nil || registered() != os.Getpid() {
		t.Fatalf("SIGEV_NONE: %v", err)
	}
	if err := q.NotifyNone(); !errors.Is(err, ErrBusy) || !errors.Is(err, unix.EBUSY) {
		t.Errorf("twice: %v", err)
	}
	isErrno(t, "another kind", q.NotifyFunc(func() {}), unix.EBUSY)
	send(t, q, "x", 0)
	if registered() != 0 {
		t.Error("SIGEV_NONE is still there after a message")
	}
	take(t, q, "x", 0)
	isErrno(t, "a bad signal", q.NotifySignal(-1, 0), unix.EINVAL)
	isErrno(t, "a bad signal", q.NotifySignal(1000, 0), unix.EINVAL)
	if err := q.NotifyFunc(nil); !errors.Is(err, driver.ErrInvalid) {
		t.Errorf("no function: %v", err)
	}
	isErrno(t, "cancelling nothing", q.NotifyCancel(), 0)

	// On a queue that is not empty it does not fire; only the next change from empty does.
	send(t, q, "x", 0)
	fired := make(chan struct{}, 10)
	if err := q.NotifyFunc(func() { fired <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	send(t, q, "y", 0)
	take(t, q, "x", 0)
	if registered() != os.Getpid() || pending(fired) {
		t.Error("it fired on a queue that was not empty")
	}
	take(t, q, "y", 0)
	send(t, q, "z", 0)
	<-fired
	take(t, q, "z", 0)
	send(t, q, "z", 0) // it was one shot
	take(t, q, "z", 0)
	if pending(fired) || registered() != 0 {
		t.Error("it fired twice")
	}
	// Cancelled, it does not fire.
	if err := q.NotifyFunc(func() { fired <- struct{}{} }); err != nil {
		t.Fatal(err)
	}
	isErrno(t, "cancel", q.NotifyCancel(), 0)
	send(t, q, "z", 0)
	if registered() != 0 {
		t.Error("the registration is there after it was cancelled")
	}
	take(t, q, "z", 0)
	// The function may register anew.
	var again func()
	count := make(chan int, 10)
	n := 0
	again = func() {
		n++
		k := n
		if err := q.NotifyFunc(again); err != nil { // from here on the next call may run
			t.Error(err)
		}
		count <- k
	}
	if err := q.NotifyFunc(again); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 5; i++ {
		send(t, q, "z", 0)
		if got := <-count; got != i {
			t.Fatalf("call %d, want %d", got, i)
		}
		take(t, q, "z", 0)
	}
	if pending(fired) {
		t.Error("a cancelled function was called")
	}
}

func TestNotifySignal(t *testing.T) {
	c := make(chan os.Signal, 4)
	signal.Notify(c, unix.SIGUSR2)
	defer signal.Stop(c)
	q := fresh(t, 3, 8)
	for range 3 {
		if err := q.NotifySignal(unix.SIGUSR2, 7); err != nil {
			t.Fatal(err)
		}
		send(t, q, "x", 0)
		if s := <-c; s != unix.SIGUSR2 {
			t.Fatalf("signal %v", s)
		}
		take(t, q, "x", 0)
	}
}

// A registration ends when its process closes any descriptor of the queue, even one that it got by opening the file. List and Stat
// read the queue and do not end it; another process's closing does not either; Arrivals registers anew.
func TestNotifyOwnerCloses(t *testing.T) {
	q := fresh(t, 3, 8)
	registered := func() bool {
		x, err := q.Stat()
		return err == nil && x.NotifyPID == os.Getpid()
	}
	if err := q.NotifyNone(); err != nil {
		t.Fatal(err)
	}
	if _, err := Stat(q.Name()); err != nil {
		t.Fatal(err)
	}
	if _, err := List(); err != nil && !errors.Is(err, ErrNotMounted) {
		t.Fatal(err)
	}
	if _, err := ReadHolders(); err != nil {
		t.Fatal(err)
	}
	ReadLimits()
	p := startRole(t, "open-and-close", nil, q.Name())
	p.expect("closed")
	if !registered() {
		t.Fatal("looking at the queue removed the registration")
	}
	other := open(t, q.Name(), ReadOnly, 0, nil)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if registered() {
		t.Fatal("closing another handle left the registration: the kernel has other rules than documented")
	}
	c, err := q.Arrivals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		other := open(t, q.Name(), ReadOnly, 0, nil)
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		send(t, q, "x", 0)
		<-c
		take(t, q, "x", 0)
	}
	until(t, "registered anew", registered)
}

func init() {
	roles["open-and-close"] = func(args []string) int {
		q, err := Open(args[0], ReadWrite, 0, nil)
		if err == nil {
			err = q.Close()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println("closed")
		return 0
	}
}

// Arrivals loses none: the sender sends the next message only when the last was taken, so that one value lost is a hang.
func TestArrivals(t *testing.T) {
	q := fresh(t, 5, 16)
	send(t, q, "before", 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := q.Arrivals(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = q.Arrivals(ctx)
	isErrno(t, "a second channel", err, unix.EBUSY)
	if pending(c) {
		t.Error("a message that was there before gave a value")
	}
	take(t, q, "before", 0)
	taken := make(chan string)
	go func() {
		defer close(taken)
		buf := make([]byte, 16)
		for range c {
			for {
				n, _, err := q.TryReceive(buf)
				if err != nil {
					break
				}
				taken <- string(buf[:n])
			}
		}
	}()
	for i := range 2000 {
		want := fmt.Sprint(i)
		if err := q.Send([]byte(want), 0); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-taken:
			if got != want {
				t.Fatalf("took %s, want %s", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("message %d was never told of", i)
		}
	}
	cancel()
	if s, open := <-taken; open {
		t.Errorf("took %q after the end", s)
	}
	until(t, "the registration is given back", func() bool { x, err := q.Stat(); return err == nil && x.NotifyPID == 0 })

	// NotifyCancel and Close end it as well.
	for _, end := range []func() error{q.NotifyCancel, q.Close} {
		c, err := q.Arrivals(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		for range c {
		}
	}
}

// When another process takes the registration between two shots, the channel goes on without it.
func TestArrivalsWithoutRegistration(t *testing.T) {
	q := fresh(t, 5, 16)
	n, err := q.listen()
	if err != nil {
		t.Fatal(err)
	}
	send(t, q, "x", 0)
	if fired, err := n.wait(); !fired || err != nil {
		t.Fatal(fired, err)
	}
	if err := q.NotifyNone(); err != nil { // as the other process would
		t.Fatal(err)
	}
	if err := n.again(); err != ErrBusy {
		t.Fatalf("registered anew: %v", err)
	}
	c := make(chan struct{}, 1)
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { defer close(done); n.poll(ctx, c) }()
	<-c
	take(t, q, "x", 0)
	for range 100 {
		send(t, q, "y", 0)
		<-c
		take(t, q, "y", 0)
	}
	cancel()
	<-done
	n.end()
}

// Handles that come and go with everything in use leave neither goroutines nor descriptors.
func TestNoLeaks(t *testing.T) {
	q := fresh(t, 3, 8)
	use := func() {
		h := open(t, q.Name(), ReadWrite, 0, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Millisecond)
		defer cancel()
		_, _, err := h.ReceiveContext(ctx, make([]byte, 8))
		if !errors.Is(err, driver.ErrTimeout) {
			t.Fatal(err)
		}
		_, _, _ = h.TimedReceive(make([]byte, 8), time.Now().Add(time.Millisecond))
		if _, err := h.watch.subscribe(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Arrivals(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err = Open(q.Name(), ReadWrite|CreateFlag|ExclusiveFlag, 0o600, nil)
		isErrno(t, "exclusive", err, unix.EEXIST)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	use()
	files, routines := len(mustGlob("/proc/self/fd/*")), runtime.NumGoroutine()
	for range 50 {
		use()
	}
	until(t, "descriptors given back", func() bool { return len(mustGlob("/proc/self/fd/*")) <= files })
	until(t, "goroutines ended", func() bool { return runtime.NumGoroutine() <= routines })
	noticed.Lock()
	defer noticed.Unlock()
	for h := range noticed.m {
		if h.users.Load() >= closedBit {
			t.Errorf("a closed handle is remembered")
		}
	}
}
