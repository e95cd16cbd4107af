package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

func TestCallsAndErrors(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(&ServerOptions{Log: quiet, MaxSize: 1000})
	addMethods(s, func(string, ...any) {})
	Handle(s, "panic", func(context.Context, int) (int, error) { panic("dropped the fruit") })
	Handle(s, "fail", func(_ context.Context, code int) (int, error) {
		return 0, &Error{Code(code), "no more figs", []byte{1, 0, 2}}
	})
	Handle(s, "wrapped", func(context.Context, int) (int, error) { return 0, fmt.Errorf("the shelf: %w", kumquat.ErrNotFound) })
	Handle(s, "plain", func(context.Context, int) (int, error) { return 0, errors.New("rotten") })
	Handle(s, "large", func(_ context.Context, n int) ([]byte, error) { return make([]byte, n), nil })
	Handle(s, "talkative", func(context.Context, int) (int, error) { return 0, errors.New(strings.Repeat("very ", 1000)) })
	s.Register("reserved", func(context.Context, *Request) (*Reply, error) {
		return &Reply{Headers: map[string]string{"rpc-x": ""}}, nil
	})
	s.Register("nothing", func(context.Context, *Request) (*Reply, error) { return nil, nil })
	serve(t, s, "/fruit")
	c := dial(t, "/fruit", nil)

	if v := must[int](t)(Call[int](ctx, c, "add", []int{2, 3, 4})); v != 9 {
		t.Errorf("2+3+4 = %d", v)
	}
	if v := must[[]byte](t)(Call[[]byte](ctx, c, "echo", []byte("\x00\xff"))); string(v) != "\x00\xff" {
		t.Errorf("bytes came back as %q", v)
	}
	if r := must[*Reply](t)(c.Do(ctx, &Request{Method: "nothing"})); len(r.Body) != 0 {
		t.Errorf("nothing came back as %q", r.Body)
	}
	for _, x := range []struct {
		what   string
		arg    any
		code   Code
		target error
		text   string
	}{
		{"missing", 0, Unimplemented, kumquat.ErrUnsupported, `no method "missing"`},
		{"panic", 0, Internal, nil, "dropped the fruit"},
		{"fail", int(Aborted), Aborted, nil, "no more figs"},
		{"fail", int(OK), Unknown, nil, "no more figs"},
		{"fail", int(DeadlineExceeded), DeadlineExceeded, context.DeadlineExceeded, "no more figs"},
		{"fail", int(Canceled), Canceled, context.Canceled, "no more figs"},
		{"wrapped", 0, NotFound, unix.ENOENT, ""},
		{"plain", 0, Unknown, nil, "rotten"},
		{"large", 1001, OutOfRange, kumquat.ErrTooLarge, "1001"},
		{"talkative", 0, Unknown, nil, "very"},
		{"add", "no list", InvalidArgument, kumquat.ErrInvalid, "argument of add"},
		{"reserved", 0, InvalidArgument, kumquat.ErrInvalid, "rpc-x"},
	} {
		_, err := Call[int](ctx, c, x.what, x.arg)
		var e *Error
		if !errors.As(err, &e) || e.Code != x.code || !strings.Contains(e.Message, x.text) || x.target != nil && !errors.Is(err, x.target) {
			t.Errorf("%s: %v", x.what, err)
		}
		if errors.Is(err, ErrDied) {
			t.Errorf("%s: an answer passes for a death: %v", x.what, err)
		}
		if x.what == "fail" && e != nil && string(e.Details) != "\x01\x00\x02" {
			t.Errorf("the details came as %q", e.Details)
		}
	}
	for _, x := range []struct {
		ctx  context.Context
		r    *Request
		want error
	}{
		{ctx, &Request{}, kumquat.ErrInvalid},
		{ctx, nil, kumquat.ErrInvalid},
		{ctx, &Request{Method: "echo", Headers: map[string]string{"rpc-method": "x"}}, kumquat.ErrInvalid},
		{ctx, &Request{Method: "echo", Object: "o"}, kumquat.ErrInvalid},
		{WithPriority(ctx, -1), &Request{Method: "echo"}, kumquat.ErrInvalid},
		{WithPriority(ctx, kumquat.MaxPriority+1), &Request{Method: "echo"}, kumquat.ErrInvalid},
		{ctx, &Request{Method: "echo", Body: make([]byte, 1001)}, kumquat.ErrTooLarge},
		{ctx, &Request{Method: "echo", Headers: map[string]string{"h": strings.Repeat("x", 5000)}}, kumquat.ErrTooLarge},
	} {
		if _, err := c.Do(x.ctx, x.r); !errors.Is(err, x.want) {
			t.Errorf("%+.60v: %v", x.r, err)
		}
	}
	if _, err := Call[int](ctx, c, "echo", []byte("no number")); !errors.Is(err, kumquat.ErrInvalid) {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Call[int](ctx, c, "add", []int{1}); !errors.Is(err, kumquat.ErrClosed) {
		t.Error(err)
	}
	if err := c.Close(); !errors.Is(err, kumquat.ErrClosed) {
		t.Error(err)
	}
}

// Interceptors of both sides stand around the call in their order and see what passes; headers travel both ways.
func TestInterceptorsAndHeaders(t *testing.T) {
	ctx := withTime(t)
	var mu sync.Mutex
	var seen []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, s)
	}
	around := func(name string) Interceptor {
		return func(ctx context.Context, r *Request, next Handler) (*Reply, error) {
			note(name + " " + r.Method)
			reply, err := next(ctx, r)
			note(name + " back")
			return reply, err
		}
	}
	refuse := func(ctx context.Context, r *Request, next Handler) (*Reply, error) {
		if r.Headers["pass"] != "word" {
			return nil, &Error{Code: Unauthenticated, Message: "who are you?"}
		}
		return next(ctx, r)
	}
	s := NewServer(&ServerOptions{Interceptors: []Interceptor{around("s1"), nil, around("s2"), refuse}})
	s.Register("hello", func(ctx context.Context, r *Request) (*Reply, error) {
		if RequestFrom(ctx) != r || len(r.Headers) != 1 || r.ContentType != "text/plain" || r.Priority != 7 {
			return nil, fmt.Errorf("it came as %+v", r)
		}
		return &Reply{Body: append([]byte("hello "), r.Body...), ContentType: "text/x", Headers: map[string]string{"n": "1"}}, nil
	})
	serve(t, s, "/intercepted")
	password := func(ctx context.Context, r *Request, next Handler) (*Reply, error) {
		r.Headers = map[string]string{"pass": "word"}
		return next(ctx, r)
	}
	c := dial(t, "/intercepted", &ClientOptions{Interceptors: []Interceptor{around("c1"), password}})
	r := must[*Reply](t)(c.Do(WithPriority(ctx, 7), &Request{Method: "hello", Body: []byte("fig"), ContentType: "text/plain"}))
	if string(r.Body) != "hello fig" || r.ContentType != "text/x" || r.Headers["n"] != "1" || len(r.Headers) != 1 {
		t.Errorf("the reply is %+v", r)
	}
	if got := strings.Join(seen, ", "); got != "c1 hello, s1 hello, s2 hello, s2 back, s1 back, c1 back" {
		t.Error(got)
	}
	var e *Error
	if _, err := dial(t, "/intercepted", nil).Do(ctx, &Request{Method: "hello"}); !errors.As(err, &e) || e.Code != Unauthenticated {
		t.Error(err)
	}
}

// The caller's deadline is the handler's, to the nanosecond; both end at it.
func TestDeadline(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(nil)
	ends := make(chan error, 1)
	Handle(s, "deadline", func(ctx context.Context, wait bool) (int64, error) {
		d, _ := ctx.Deadline()
		if wait {
			<-ctx.Done()
			ends <- ctx.Err()
		}
		return d.UnixNano(), nil
	})
	serve(t, s, "/deadline")
	c := dial(t, "/deadline", nil)
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	want, _ := short.Deadline()
	if got := must[int64](t)(Call[int64](short, c, "deadline", false)); got != want.UnixNano() {
		t.Errorf("the handler's deadline is %d, the caller's %d", got, want.UnixNano())
	}
	_, err := Call[int64](short, c, "deadline", true)
	if late := time.Since(want); !errors.Is(err, kumquat.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) || late < 0 || late > soon {
		t.Errorf("%v after the deadline: %v", late, err)
	}
	select {
	case err := <-ends:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(soon):
		t.Error("the handler did not hear of the deadline")
	}
	if _, err := Call[int64](short, c, "deadline", false); !errors.Is(err, kumquat.ErrTimeout) {
		t.Errorf("a call after its deadline: %v", err)
	}
	if got := must[int64](t)(Call[int64](context.Background(), c, "deadline", false)); got != (time.Time{}).UnixNano() {
		t.Errorf("a call without a deadline has %d", got)
	}
}

// A cancelled caller returns at once, and its handler's context ends; a request that still waits is not carried out.
func TestCancel(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(&ServerOptions{Workers: 1})
	var ran atomic.Int32
	started, ended := make(chan struct{}), make(chan error, 1)
	Handle(s, "block", func(ctx context.Context, _ int) (int, error) {
		close(started)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return 0, nil
	})
	Handle(s, "run", func(context.Context, int) (int32, error) { return ran.Add(1), nil })
	serve(t, s, "/cancel")
	c := dial(t, "/cancel", nil)

	first, cancelFirst := context.WithCancel(ctx)
	second, cancelSecond := context.WithCancel(ctx)
	errs := make(chan error, 2)
	go func() { _, err := Call[int](first, c, "block", 0); errs <- err }()
	<-started
	go func() { _, err := Call[int](second, c, "run", 0); errs <- err }() // the one worker is busy: it waits
	eventually(t, 5*time.Second, "in the queue", func() bool {
		st, err := s.shared.q.Stat(ctx)
		return err == nil && st.Messages == 1
	})
	cancelSecond()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	at := time.Now()
	cancelFirst()
	if err := <-errs; !errors.Is(err, context.Canceled) || time.Since(at) > soon {
		t.Error(err, time.Since(at))
	}
	select {
	case err := <-ended:
		if err != context.Canceled {
			t.Error(err)
		}
	case <-time.After(soon):
		t.Error("the handler was not told")
	}
	if n := must[int32](t)(Call[int32](ctx, c, "run", 0)); n != 1 {
		t.Errorf("the cancelled request was carried out: this is run %d", n)
	}
}

// Calls wait behind those of higher priority, and handlers' own calls have the priority and the deadline of the call they serve.
func TestPriority(t *testing.T) {
	ctx := withTime(t)
	inner := NewServer(nil)
	addMethods(inner, func(string, ...any) {})
	Handle(inner, "until", func(ctx context.Context, _ int) (int64, error) {
		d, _ := ctx.Deadline()
		return d.UnixNano(), nil
	})
	serve(t, inner, "/inner")
	ci := dial(t, "/inner", nil)

	outer := NewServer(&ServerOptions{Workers: 1})
	started, goOn := make(chan struct{}), make(chan struct{})
	var order []int // by the one worker
	Handle(outer, "hold", func(context.Context, int) (int, error) { close(started); <-goOn; return 0, nil })
	Handle(outer, "run", func(ctx context.Context, n int) (int, error) {
		order = append(order, n)
		return Call[int](ctx, ci, "priority", 0)
	})
	Handle(outer, "raised", func(ctx context.Context, _ int) (int, error) {
		return Call[int](WithPriority(ctx, 99), ci, "priority", 0)
	})
	Handle(outer, "until", func(ctx context.Context, _ int) (int64, error) { return Call[int64](ctx, ci, "until", 0) })
	serve(t, outer, "/outer")
	c := dial(t, "/outer", nil)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = Call[int](ctx, c, "hold", 0) })
	<-started
	for i, p := range []int{3, 32767, 0, 20, 28} {
		wg.Go(func() {
			if v, err := Call[int](WithPriority(ctx, p), c, "run", p); err != nil || v != p {
				t.Errorf("a call of priority %d made one of %d, %v", p, v, err)
			}
		})
		eventually(t, 5*time.Second, "in the queue", func() bool {
			st, err := outer.shared.q.Stat(ctx)
			return err == nil && st.Messages == i+1
		})
	}
	close(goOn)
	wg.Wait()
	if fmt.Sprint(order) != "[32767 28 20 3 0]" {
		t.Errorf("the order was %v", order)
	}
	if v := must[int](t)(Call[int](WithPriority(ctx, 5), c, "raised", 0)); v != 99 {
		t.Errorf("a handler that says 99 calls with %d", v)
	}
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	want, _ := short.Deadline()
	if got := must[int64](t)(Call[int64](short, c, "until", 0)); got != want.UnixNano() {
		t.Errorf("the nested call's deadline is %d, the caller's %d", got, want.UnixNano())
	}
}

// One-way calls to an object run one at a time and in order, those to others at the same time.
func TestOneway(t *testing.T) {
	ctx := withTime(t)
	const senders, calls, objects = 4, 300, 3
	s := NewServer(nil)
	var busy [objects]atomic.Int32
	var last [objects][senders]int
	var got, together atomic.Int32
	done := make(chan struct{})
	Handle(s, "step", func(ctx context.Context, v [3]int) (int, error) {
		o, from, n := v[0], v[1], v[2]
		if busy[o].Add(1) != 1 {
			t.Errorf("object %d has two calls at once", o)
		}
		if n != last[o][from]+1 {
			t.Errorf("object %d: %d of sender %d after %d", o, n, from, last[o][from])
		}
		last[o][from] = n
		for other := range busy {
			if other != o && busy[other].Load() > 0 {
				together.Add(1)
			}
		}
		if n%50 == 0 {
			time.Sleep(time.Millisecond)
		}
		busy[o].Add(-1)
		if got.Add(1) == senders*calls*objects {
			close(done)
		}
		return 0, nil
	})
	serve(t, s, "/oneway")
	for from := range senders {
		c := dial(t, "/oneway", nil)
		go func() {
			for n := range calls {
				for o := range objects {
					if err := Send(ctx, c, "step", fmt.Sprint(o), [3]int{o, from, n + 1}); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	closesWithin(t, done, 30*time.Second, "all calls")
	if together.Load() == 0 {
		t.Error("calls to different objects never ran at the same time")
	}
	eventually(t, time.Second, "all objects forgotten", func() bool {
		s.objects.mu.Lock()
		defer s.objects.mu.Unlock()
		return len(s.objects.busy) == 0 && len(s.shared.waiting) == 0
	})
}

// A thousand calls at once through one client: each gets its own reply. The limits are passed through on the way.
func TestThousandCalls(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(nil)
	Handle(s, "double", func(ctx context.Context, n int) (int, error) {
		if n%10 == 0 {
			time.Sleep(time.Duration(n%7) * time.Millisecond)
		}
		return 2 * n, nil
	})
	serve(t, s, "/thousand")
	for _, o := range []*ClientOptions{nil, {Outstanding: 3}} {
		c := dial(t, "/thousand", o)
		var wg sync.WaitGroup
		for n := range 1000 {
			wg.Go(func() {
				for k := range 3 {
					v, err := Call[int](WithPriority(ctx, n%4), c, "double", n+k)
					if err != nil || v != 2*(n+k) {
						t.Errorf("twice %d is %d, %v", n+k, v, err)
						return
					}
				}
			})
		}
		wg.Wait()
		n := c.cur.Load()
		if len(n.waiting)+len(n.followers) != 0 || n.leading || len(n.slots) != 0 {
			t.Errorf("left: %d waiting, %d followers, leading %v, %d slots", len(n.waiting), len(n.followers), n.leading, len(n.slots))
		}
	}
}

// A method that has been quick, and so runs in the goroutine that receives, does not stop the others when it is slow for once.
func TestQuickMethodBlocks(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(nil)
	goOn, entered := make(chan struct{}), make(chan struct{})
	var block atomic.Bool
	Handle(s, "mostly", func(ctx context.Context, _ int) (int, error) {
		if block.Load() {
			close(entered)
			<-goOn
		}
		return 1, nil
	})
	Handle(s, "other", func(ctx context.Context, _ int) (int, error) { return 2, nil })
	serve(t, s, "/quick")
	c := dial(t, "/quick", nil)
	m := (*s.methods.Load())["mostly"]
	eventually(t, 10*time.Second, "quick", func() bool {
		must[int](t)(Call[int](ctx, c, "mostly", 0))
		return m.isQuick()
	})
	block.Store(true)
	over := make(chan error, 1)
	go func() { _, err := Call[int](ctx, c, "mostly", 0); over <- err }()
	closesWithin(t, entered, 5*time.Second, "the slow call")
	for range 20 {
		at := time.Now()
		must[int](t)(Call[int](ctx, c, "other", 0))
		if d := time.Since(at); d > soon {
			t.Errorf("another call took %v", d)
		}
	}
	close(goOn)
	if err := <-over; err != nil {
		t.Error(err)
	}
	if m.isQuick() {
		t.Error("the method still counts as quick")
	}
}

// Replies to calls that were given up pile up behind calls of higher priority and do not fill the queue.
func TestGivenUpCalls(t *testing.T) {
	ctx := withTime(t)
	s := NewServer(&ServerOptions{Log: quiet})
	addMethods(s, func(string, ...any) {})
	serve(t, s, "/givenup")
	c := dial(t, "/givenup", &ClientOptions{Outstanding: 4})
	for i := range 600 {
		short, cancel := context.WithCancel(ctx)
		time.AfterFunc(time.Duration(i%40)*5*time.Microsecond, cancel)
		if _, err := Call[[]byte](short, c, "echo", []byte("x")); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if i%3 == 0 {
			must[int](t)(Call[int](WithPriority(ctx, 20), c, "add", []int{1}))
		}
		cancel()
	}
	if v := must[int](t)(Call[int](ctx, c, "add", []int{20, 3})); v != 23 {
		t.Error(v)
	}
	if st := must[kumquat.Stats](t)(c.cur.Load().replies.Stat(ctx)); st.Messages > st.MaxMessages/2 {
		t.Errorf("%d of %d replies lie there", st.Messages, st.MaxMessages)
	}
}
