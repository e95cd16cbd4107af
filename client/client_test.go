package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/client"
	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/shm"
)

// counting is the engine with its opens and closes counted.
type counting struct {
	driver.Driver
	opened, open, most atomic.Int64
}

type counted struct {
	driver.Queue
	c    *counting
	once sync.Once
}

func (c *counting) Open(ctx context.Context, name string, o *driver.Options) (driver.Queue, error) {
	q, err := c.Driver.Open(ctx, name, o)
	if err != nil {
		return nil, err
	}
	c.opened.Add(1)
	if n := c.open.Add(1); n > c.most.Load() {
		c.most.Store(n) // nearly: only the tests with one opener at a time compare it
	}
	return &counted{Queue: q, c: c}, nil
}

func (q *counted) Close() error {
	err := q.Queue.Close()
	if err == nil {
		q.once.Do(func() { q.c.open.Add(-1) })
	}
	return err
}

var engine = &counting{Driver: shm.Driver{}}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-test-")
	if err != nil {
		panic(err)
	}
	os.Setenv(shm.EnvDir, dir)
	kumquat.Register("counting", engine)
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

func is(t testing.TB, err, target error) {
	t.Helper()
	if target == nil && err != nil || target != nil && !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

var create = &kumquat.Options{Create: true, MaxMessages: 4}

func newClient(t testing.TB, o client.Options) *client.Client {
	c := client.New(&o)
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, kumquat.ErrClosed) {
			t.Error(err)
		}
		if n := engine.open.Load(); n != 0 {
			t.Errorf("%d handles are open after Close", n)
		}
	})
	return c
}

var named sync.Map

// url names a queue of this test, which is removed at its end.
func url(t testing.TB, i int) string {
	u := fmt.Sprintf("counting:/%s-%d", t.Name(), i)
	if _, there := named.LoadOrStore(u, true); !there {
		t.Cleanup(func() {
			named.Delete(u)
			if err := kumquat.Remove(context.Background(), u); err != nil && !errors.Is(err, kumquat.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	return u
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: it did not come to that", what)
		}
	}
}

// One handle serves all calls of many goroutines, and is opened once though they all begin at the same time.
func TestPoolShares(t *testing.T) {
	c := newClient(t, client.Options{Open: create})
	before := engine.opened.Load()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				if err := c.Send(t.Context(), url(t, 0), kumquat.Message{Priority: i}); err != nil {
					t.Error(err)
					return
				}
				if _, err := c.Receive(t.Context(), url(t, 0)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := engine.opened.Load() - before; n != 1 {
		t.Errorf("the queue was opened %d times", n)
	}
}

// No more handles than said are open: the one unused for longest goes; and where all are in use, a call waits, until one is free or
// its context done.
func TestPoolBound(t *testing.T) {
	c := newClient(t, client.Options{Open: create, MaxHandles: 2, Retry: client.Retry{Attempts: 1}})
	engine.most.Store(0)
	before := engine.opened.Load()
	send := func(i int) {
		t.Helper()
		is(t, c.Send(t.Context(), url(t, i), kumquat.Message{}), nil)
	}
	for _, i := range []int{0, 1, 0, 1, 0, 2, 0, 1} { // 2 takes the place of 1, then 1 that of 2
		send(i)
	}
	if n, most := engine.opened.Load()-before, engine.most.Load(); n != 4 || most != 2 {
		t.Errorf("%d were opened, %d at once, want 4 and 2", n, most)
	}
	var in sync.WaitGroup
	var out sync.WaitGroup
	leave := make(chan struct{})
	for i := range 2 {
		in.Add(1)
		out.Go(func() {
			if err := c.Do(t.Context(), "hold", url(t, i), func(context.Context, *kumquat.Queue) error { in.Done(); <-leave; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	in.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	is(t, c.Send(ctx, url(t, 9), kumquat.Message{}), kumquat.ErrTimeout)
	waited := make(chan error, 1)
	go func() { waited <- c.Send(t.Context(), url(t, 9), kumquat.Message{}) }()
	select {
	case err := <-waited:
		t.Errorf("a third handle while two are in use: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(leave)
	is(t, <-waited, nil)
	out.Wait()
}

// Handles that nobody uses are closed after a while, and opened again when they are needed.
func TestPoolIdle(t *testing.T) {
	c := newClient(t, client.Options{Open: create, Idle: 5 * time.Millisecond})
	for range 3 {
		for i := range 3 {
			is(t, c.Send(t.Context(), url(t, i), kumquat.Message{}), nil)
		}
		until(t, "all idle handles are closed", func() bool { return engine.open.Load() == 0 })
	}
	// One that is in use stays.
	err := c.Do(t.Context(), "look", url(t, 0), func(ctx context.Context, q *kumquat.Queue) error {
		time.Sleep(20 * time.Millisecond)
		_, err := q.Stat(ctx)
		return err
	})
	is(t, err, nil)
}

// A full queue that does not wait is tried again until there is room; the message is there once.
func TestRetry(t *testing.T) {
	o := *create
	o.Overflow, o.MaxMessages = kumquat.Reject, 1
	var log bytes.Buffer
	c := newClient(t, client.Options{
		Open: &o, Retry: client.Retry{Attempts: 1000, First: time.Millisecond, Max: 5 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	u := url(t, 0)
	is(t, c.Send(t.Context(), u, kumquat.Message{Body: []byte("first")}), nil)
	sent := make(chan error, 1)
	go func() { sent <- c.Send(t.Context(), u, kumquat.Message{Body: []byte("secret second")}) }()
	time.Sleep(20 * time.Millisecond)
	m, err := c.Receive(t.Context(), u)
	if is(t, err, nil); string(m.Body) != "first" {
		t.Errorf("%q", m.Body)
	}
	is(t, <-sent, nil)
	if m, err = c.Receive(t.Context(), u); err != nil || string(m.Body) != "secret second" {
		t.Errorf("%q, %v", m.Body, err)
	}
	if s := log.String(); !strings.Contains(s, "is tried again") || !strings.Contains(s, "attempts=1") || !strings.Contains(s, "queue full") || strings.Contains(s, "secret") {
		t.Errorf("the log:\n%s", s)
	}

	// A queue that was removed, and one that is made later, are found.
	is(t, kumquat.Remove(t.Context(), u), nil)
	is(t, c.Send(t.Context(), u, kumquat.Message{}), nil)
	waits := client.New(&client.Options{Retry: client.Retry{Attempts: 1000, First: time.Millisecond, Max: 2 * time.Millisecond}})
	later := url(t, 1)
	got := make(chan error, 1)
	go func() { _, err := waits.Receive(t.Context(), later); got <- err }()
	time.Sleep(5 * time.Millisecond)
	is(t, c.Send(t.Context(), later, kumquat.Message{}), nil)
	is(t, <-got, nil)
	is(t, waits.Close(), nil)
}

// What would not pass, or may have done something, is not tried again, and attempts end.
func TestRetryEnds(t *testing.T) {
	var attempts []int
	c := newClient(t, client.Options{
		Open: create, Retry: client.Retry{Attempts: 3, First: time.Millisecond},
		Hooks: []client.Hook{{After: func(_ context.Context, o *client.Operation) { attempts = append(attempts, o.Attempts) }}},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := c.Receive(ctx, url(t, 0))
	is(t, err, context.DeadlineExceeded)
	is(t, c.Send(t.Context(), "nowhere", kumquat.Message{}), kumquat.ErrInvalid)
	is(t, c.Send(t.Context(), url(t, 0), kumquat.Message{Priority: -1}), kumquat.ErrInvalid)
	is(t, c.Do(t.Context(), "x", url(t, 0), func(context.Context, *kumquat.Queue) error { return kumquat.ErrNoSpace }), kumquat.ErrNoSpace)
	n := 0
	is(t, c.Do(t.Context(), "x", url(t, 0), func(context.Context, *kumquat.Queue) error {
		if n++; n < 3 {
			return kumquat.ErrFull
		}
		return nil
	}), nil)
	var none context.Context
	is(t, c.Send(none, url(t, 0), kumquat.Message{}), kumquat.ErrInvalid)
	if s := fmt.Sprint(attempts); s != "[1 1 1 3 3]" {
		t.Errorf("attempts %s", s)
	}
	for err, want := range map[error]bool{
		kumquat.ErrFull: true, kumquat.ErrRemoved: true, kumquat.ErrNotFound: true, kumquat.ErrLimit: true, kumquat.ErrTimeout: false, context.Canceled: false,
		kumquat.ErrClosed: false, kumquat.ErrCorrupt: false, kumquat.ErrEmpty: false, fmt.Errorf("%w: %w", kumquat.ErrFull, context.Canceled): false,
	} {
		if client.Retriable(err) != want {
			t.Errorf("%v: %t", err, !want)
		}
	}
}

// Hooks run around every operation, nested, with the context of Before, and may give headers to a message that is sent.
func TestHooks(t *testing.T) {
	type key struct{}
	var got []string
	hook := func(name string) client.Hook {
		return client.Hook{
			Before: func(ctx context.Context, o *client.Operation) context.Context {
				if o.Name == "send" {
					o.Message.Headers = map[string]string{"by": name}
				}
				got = append(got, "before "+name)
				return context.WithValue(ctx, key{}, name)
			},
			After: func(ctx context.Context, o *client.Operation) {
				body := "nothing"
				if o.Message != nil {
					body = string(o.Message.Body) + o.Message.Headers["by"]
				}
				got = append(got, fmt.Sprintf("after %s: %s %s in %v, %v, %t", name, o.Name, body, ctx.Value(key{}), o.Err, o.Duration > 0))
			},
		}
	}
	c := newClient(t, client.Options{Open: create, Hooks: []client.Hook{hook("a"), {}, hook("b")}})
	m := kumquat.Message{Body: []byte("x")}
	is(t, c.Send(t.Context(), url(t, 0), m), nil)
	m, err := c.Receive(t.Context(), url(t, 0))
	if err != nil || m.Headers["by"] != "b" {
		t.Errorf("%+v, %v", m, err)
	}
	want := "before a|before b|after b: send xb in b, <nil>, true|after a: send xb in b, <nil>, true|" +
		"before a|before b|after b: receive xb in b, <nil>, true|after a: receive xb in b, <nil>, true"
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("\n%s, want\n%s", s, want)
	}
}

// Close ends calls that wait: in a queue, for a handle, between attempts.
func TestClose(t *testing.T) {
	c := client.New(&client.Options{Open: create, MaxHandles: 1, Retry: client.Retry{First: time.Hour, Max: time.Hour}})
	inQueue, forHandle := make(chan error, 1), make(chan error, 1)
	go func() { _, err := c.Receive(t.Context(), url(t, 0)); inQueue <- err }()
	until(t, "a receiver waits", func() bool { return engine.open.Load() == 1 })
	go func() { forHandle <- c.Send(t.Context(), url(t, 1), kumquat.Message{}) }()
	time.Sleep(10 * time.Millisecond)
	is(t, c.Close(), nil)
	is(t, <-inQueue, kumquat.ErrClosed)
	is(t, <-forHandle, kumquat.ErrClosed)
	is(t, c.Close(), kumquat.ErrClosed)
	is(t, c.Send(t.Context(), url(t, 0), kumquat.Message{}), kumquat.ErrClosed)

	c = client.New(&client.Options{Retry: client.Retry{First: time.Hour, Max: time.Hour}})
	between := make(chan error, 1)
	go func() { _, err := c.Receive(t.Context(), url(t, 2)); between <- err }()
	time.Sleep(10 * time.Millisecond)
	is(t, c.Close(), nil)
	if err := <-between; !errors.Is(err, kumquat.ErrNotFound) && !errors.Is(err, kumquat.ErrClosed) {
		t.Error(err)
	}
	if n := engine.open.Load(); n != 0 {
		t.Errorf("%d handles are open", n)
	}
}

// Many goroutines, few handles, queues that vanish: the bound holds, nothing hangs, all is closed in the end.
func TestPoolStress(t *testing.T) {
	c := newClient(t, client.Options{Open: create, MaxHandles: 3, Idle: time.Millisecond, Retry: client.Retry{Attempts: 50, First: 100 * time.Microsecond}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				u := url(t, (g+i)%6)
				err := c.Do(ctx, "both", u, func(ctx context.Context, q *kumquat.Queue) error {
					if n := engine.open.Load(); n > 4 { // one may be closed while its successor is opened
						t.Errorf("%d handles are open", n)
					}
					if err := q.TrySend(kumquat.Message{}); err != nil {
						return err
					}
					_, err := q.TryReceive()
					return err
				})
				if err != nil && !errors.Is(err, kumquat.ErrRemoved) && !errors.Is(err, kumquat.ErrEmpty) {
					t.Errorf("%v", err)
					return
				}
				if i%25 == 0 {
					if err := kumquat.Remove(ctx, u); err != nil && !errors.Is(err, kumquat.ErrNotFound) {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func TestNewPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("New took a number below 0")
		}
	}()
	client.New(&client.Options{MaxHandles: -1})
}

// What the client adds to a send and a receive of the queue itself.
func BenchmarkClient(b *testing.B) {
	c := newClient(b, client.Options{Open: create})
	m := kumquat.Message{Body: make([]byte, 64)}
	const u = "/client-benchmark"
	run := func(name string, send func() error, receive func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := errors.Join(send(), receive()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	ctx := b.Context()
	run("client", func() error { return c.Send(ctx, u, m) }, func() error { _, err := c.Receive(ctx, u); return err })
	q, err := kumquat.Open(ctx, u, nil)
	is(b, err, nil)
	defer q.Close()
	run("queue", func() error { return q.Send(ctx, m) }, func() error { _, err := q.Receive(ctx); return err })
}
