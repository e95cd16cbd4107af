// Package drivertest is the conformance suite of Kumquat's drivers. A driver's test calls Run with a Harness; what the driver
// cannot do is declared there, and the suite then checks that it fails as documented instead.
//
// The suite uses the public calls of package kumquat, as programs do, so it shows the driver and the library above it together.
// Each subtest states its reason in its comment. Those that measure the whole process (allocations, umask) run first and alone, the
// others in parallel. Waiting is by events or by conditions with a generous limit, so that a busy machine makes it slow, not red.
package drivertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// Harness tells the suite how to use a driver.
type Harness struct {
	// URL returns the name of a queue that is not there and that nobody else uses. The suite removes what it creates.
	URL func(testing.TB) string
	// Cannot lists what the driver cannot do. Leases, Transactions and Durable are left out of the suite, declared or not. Without
	// Priorities all is sent at priority 0, and the order to be seen is that of the sends.
	Cannot []kumquat.Ability
	// MaxMessages and MaxSize bound what the suite asks for, where the system has limits; 0: no bound.
	MaxMessages, MaxSize int
	// BadNames are names that Open and Remove must refuse with ErrInvalid.
	BadNames []string
	// NoCounts says that Stats does not know the blocked Receivers and Senders, nor Sent and Received.
	NoCounts bool
}

// patience is how long the suite waits for what must happen. It is never waited out when all is well.
const patience = 60 * time.Second

type suite struct {
	Harness
	rest []kumquat.Ability // what the driver can do, by its declaration
}

func (h Harness) can(as ...kumquat.Ability) bool {
	for _, a := range as {
		if slices.Contains(h.Cannot, a) {
			return false
		}
	}
	return true
}

type subtest struct {
	name  string
	needs []kumquat.Ability
	run   func(*suite, *testing.T)
}

func needs(as ...kumquat.Ability) []kumquat.Ability { return as }

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	s := &suite{Harness: h}
	for a := kumquat.Ability(0); a < kumquat.Leases; a++ {
		if h.can(a) {
			s.rest = append(s.rest, a)
		}
	}
	s.warmUp(t)
	files, routines := openFiles(t), runtime.NumGoroutine()
	for _, x := range alone {
		t.Run(x.name, func(t *testing.T) {
			s.skipUnless(t, x)
			x.run(s, t)
		})
	}
	t.Run("parallel", func(t *testing.T) {
		for _, x := range together {
			t.Run(x.name, func(t *testing.T) {
				s.skipUnless(t, x)
				t.Parallel()
				x.run(s, t)
			})
		}
	})
	// All handles are closed: neither descriptors nor goroutines may be left.
	t.Run("NoLeaks", func(t *testing.T) {
		routines++ // the one of this subtest
		if !holds(func() bool { return runtime.NumGoroutine() <= routines }) {
			all := make([]byte, 1<<20)
			t.Errorf("%d goroutines were there before, %d are now:\n%s", routines, runtime.NumGoroutine(), all[:runtime.Stack(all, true)])
		}
		if !holds(func() bool { return len(openFiles(t)) <= len(files) }) {
			t.Errorf("%d descriptors were open before, %d are now:\n%q", len(files), len(openFiles(t)), openFiles(t))
		}
	})
}

func (s *suite) skipUnless(t *testing.T, x subtest) {
	if !s.can(x.needs...) {
		t.Skipf("the driver declares that it cannot do this (it needs %v)", x.needs)
	}
}

// warmUp makes the runtime and the driver open what they keep for the life of the process, so that it is not taken for a leak.
func (s *suite) warmUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	url := s.URL(t)
	q, err := kumquat.Open(t.Context(), url, &kumquat.Options{Create: true})
	if err != nil {
		t.Fatalf("cannot create a queue: %v", err)
	}
	_, _ = q.FD()
	_, _ = q.Notify(ctx)
	_, _ = kumquat.Select(ctx, q)
	for range q.Watch(ctx) {
	}
	r, w, err := os.Pipe() // the runtime's own epoll
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	want(t, q.Close(), nil)
	want(t, kumquat.Remove(t.Context(), url), nil)
}

func openFiles(t testing.TB) []string {
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, n := range names {
		if to, err := os.Readlink(n); err == nil { // the one that Glob itself used is gone
			files = append(files, to)
		}
	}
	return files
}

// bounded returns o within the harness's bounds, to create a queue that was not there.
func (s *suite) bounded(o kumquat.Options) *kumquat.Options {
	o.Create, o.Exclusive = true, true
	if s.MaxMessages > 0 && (o.MaxMessages == 0 || o.MaxMessages > s.MaxMessages) {
		o.MaxMessages = s.MaxMessages
	}
	if s.MaxSize > 0 && (o.MaxSize == 0 || o.MaxSize > s.MaxSize) {
		o.MaxSize = s.MaxSize
	}
	return &o
}

// queue creates a queue. At the end of the test it must be sound; then it is closed and removed.
func (s *suite) queue(t testing.TB, o kumquat.Options) *kumquat.Queue {
	t.Helper()
	url := s.URL(t)
	q, err := kumquat.Open(context.Background(), url, s.bounded(o))
	if err != nil {
		t.Fatalf("create %s: %v", url, err)
	}
	t.Cleanup(func() {
		s.sound(t, url)
		if err := q.Close(); err != nil && !errors.Is(err, kumquat.ErrClosed) {
			t.Errorf("close: %v", err)
		}
		if err := kumquat.Remove(context.Background(), url); err != nil && !errors.Is(err, kumquat.ErrNotFound) {
			t.Errorf("remove: %v", err)
		}
	})
	return q
}

// again opens another handle of q's queue, closed at the end of the test.
func (s *suite) again(t testing.TB, q *kumquat.Queue) *kumquat.Queue {
	t.Helper()
	p, err := kumquat.Open(context.Background(), q.Name(), nil)
	if err != nil {
		t.Fatalf("open again: %v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil && !errors.Is(err, kumquat.ErrClosed) {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

// sound checks the queue if it is still there and the driver can.
func (s *suite) sound(t testing.TB, url string) {
	t.Helper()
	if !s.can(kumquat.Inspecting) {
		return
	}
	q, err := kumquat.Open(context.Background(), url, &kumquat.Options{ReadOnly: s.can(kumquat.Modes)})
	if errors.Is(err, kumquat.ErrNotFound) {
		return
	}
	if err != nil {
		t.Errorf("open to check: %v", err)
		return
	}
	defer q.Close()
	r, err := q.Check(context.Background())
	if err != nil {
		t.Errorf("check: %v", err)
	}
	if r.Checked == 0 {
		t.Errorf("check looked at nothing")
	}
	for _, p := range r.Problems {
		if p.Broken {
			t.Errorf("check: %s: %s", p.Where, p.Text)
		}
	}
}

// waiting bounds the calls of a test, so that one that hangs fails by itself.
func waiting(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// crew is for goroutines that report to t: at the end of the test, failed or not, their context is done and they are waited for.
func crew(t testing.TB) (context.Context, *sync.WaitGroup) {
	ctx, cancel := waitCancel(t)
	wg := new(sync.WaitGroup)
	t.Cleanup(func() { cancel(); wg.Wait() })
	return ctx, wg
}

func waitCancel(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithCancel(waiting(t))
}

// holds waits until cond holds and reports whether it came to that.
func holds(cond func() bool) bool {
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// blocked waits until calls wait on q: as many as are said, or at least one, since a driver may count handles instead of calls.
func (s *suite) blocked(t testing.TB, q *kumquat.Queue, receivers, senders int) {
	t.Helper()
	if s.NoCounts {
		time.Sleep(50 * time.Millisecond) // nothing tells: most likely they wait by then, and the test holds if not
		return
	}
	near := func(have, want int) bool { return have == want || 0 < have && have < want }
	var st kumquat.Stats
	if !holds(func() bool {
		st = stat(t, q)
		return near(st.Receivers, receivers) && near(st.Senders, senders)
	}) {
		t.Fatalf("%d receivers and %d senders are blocked, want %d and %d", st.Receivers, st.Senders, receivers, senders)
	}
}

// want checks an error: nil, or one that errors.Is the target.
func want(t testing.TB, err, target error) {
	t.Helper()
	if target == nil && err != nil || target != nil && !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

func stat(t testing.TB, q *kumquat.Queue) kumquat.Stats {
	t.Helper()
	st, err := q.Stat(context.Background())
	want(t, err, nil)
	return st
}

func send(t testing.TB, q *kumquat.Queue, ms ...kumquat.Message) {
	t.Helper()
	for _, m := range ms {
		if err := q.TrySend(m); err != nil {
			t.Fatalf("send %q: %v", m.Body, err)
		}
	}
}

// at is a priority as the driver has them: 0 where it has none, and then all is first in, first out.
func (s *suite) at(priority int) int {
	if !s.can(kumquat.Priorities) {
		return 0
	}
	return priority
}

func (s *suite) text(body string, priority int) kumquat.Message {
	return kumquat.Message{Body: []byte(body), Priority: s.at(priority)}
}

// order returns what is to be expected of messages that were sent with different priorities: byPriority, or, if the driver has
// none, fifo.
func (s *suite) order(byPriority, fifo []string) []string {
	if s.can(kumquat.Priorities) {
		return byPriority
	}
	return fifo
}

// letters is order for bodies of one letter.
func (s *suite) letters(byPriority, fifo string) string {
	return strings.Join(s.order([]string{byPriority}, []string{fifo}), "")
}

// takes checks that TryReceive gives these bodies in this order.
func takes(t testing.TB, q *kumquat.Queue, f kumquat.Filter, bodies ...string) {
	t.Helper()
	for i, b := range bodies {
		m, err := q.TryReceive(f)
		if err != nil {
			t.Fatalf("receive %d (%q): %v", i, b, err)
		}
		if string(m.Body) != b {
			t.Fatalf("receive %d gave %q, want %q", i, m.Body, b)
		}
	}
}

// empty checks that no message is there for f.
func empty(t testing.TB, q *kumquat.Queue, f kumquat.Filter) {
	t.Helper()
	if m, err := q.TryReceive(f); !errors.Is(err, kumquat.ErrEmpty) {
		t.Fatalf("receive gave %q, %v, want ErrEmpty", m.Body, err)
	}
}

// result is what a call in another goroutine returned.
type result struct {
	m   kumquat.Message
	err error
}

func receiveLater(ctx context.Context, q *kumquat.Queue, fs ...kumquat.Filter) <-chan result {
	c := make(chan result, 1)
	go func() {
		m, err := q.Receive(ctx, fs...)
		c <- result{m, err}
	}()
	return c
}

func sendLater(ctx context.Context, q *kumquat.Queue, m kumquat.Message) <-chan result {
	c := make(chan result, 1)
	go func() { c <- result{m, q.Send(ctx, m)} }()
	return c
}

// get waits for a result.
func get[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(2 * patience):
		t.Fatal("it never came")
		panic("not reached")
	}
}

// pending checks that no result has come.
func pending[T any](t testing.TB, c <-chan T) {
	t.Helper()
	select {
	case v := <-c:
		t.Fatalf("it came too early: %v", v)
	default:
	}
}

// pattern returns a body of n bytes that differs from those of other seeds and from its own shifts.
func pattern(n, seed int) []byte {
	b := make([]byte, n)
	x := uint64(seed)*2 + 1
	for i := range b {
		x = x*6364136223846793005 + 1442695040888963407
		b[i] = byte(x >> 56)
	}
	return b
}

func numbered(format string, from, to int) []string {
	var s []string
	for i := from; i < to; i++ {
		s = append(s, fmt.Sprintf(format, i))
	}
	return s
}
