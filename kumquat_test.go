package kumquat

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/shm"
)

var other = shm.Driver{Dir: "/other"}

func TestMain(m *testing.M) {
	Register("x-test+1.0", other)
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-test-")
	if err != nil {
		panic(err)
	}
	os.Setenv(shm.EnvDir, dir)
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// open creates a queue of the engine that is removed at the end of the test.
func open(t *testing.T, name string, o Options) *Queue {
	t.Helper()
	o.Create, o.Exclusive = true, true
	q, err := Open(t.Context(), name, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if err := Remove(context.Background(), name); err != nil && !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	})
	return q
}

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		url, scheme, prefix, name string
	}{
		{"/orders", "shm", "", "/orders"},
		{"/a/b:c", "shm", "", "/a/b:c"},
		{"shm:/orders", "shm", "", "/orders"},
		{"x-test+1.0:/orders", "x-test+1.0", "x-test+1.0:", "/orders"},
		{"x-test+1.0://host/orders?a=b", "x-test+1.0", "x-test+1.0:", "//host/orders?a=b"},
		{"x-test+1.0:", "x-test+1.0", "x-test+1.0:", ""},
	} {
		a, err := resolve(c.url)
		if err != nil || a.scheme != c.scheme || a.prefix != c.prefix || a.name != c.name || (a.driver == other) != (c.prefix != "") {
			t.Errorf("%s: %+v, %v", c.url, a, err)
		}
	}
	for _, url := range []string{"", "orders", ":", ":/x", "X:/x", "1x:/x", "x_y:/x", "nats://host/x", "é:/x"} {
		_, err := resolve(url)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "posix, shm, sysv, sysv+priority, x-test+1.0") {
			t.Errorf("%q: %v", url, err)
		}
	}
	if s := Schemes(); !slices.Equal(s, []string{"posix", "shm", "sysv", "sysv+priority", "x-test+1.0"}) {
		t.Errorf("schemes %q", s)
	}
	for _, f := range []func(){
		func() { Register("shm", other) }, func() { Register("y", nil) }, func() { Register("No", other) }, func() { Register("", other) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("Register did not panic")
				}
			}()
			f()
		}()
	}
}

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		fs   []Filter
		want Filter
		bad  bool
	}{
		{nil, Filter{}, false},
		{[]Filter{{}, {}}, Filter{}, false},
		{[]Filter{Type(3), Key("k"), MinPriority(4)}, Filter{Type: 3, Key: "k", MinPriority: 4}, false},
		{[]Filter{Type(3), Type(3), Type(0)}, Filter{Type: 3}, false},
		{[]Filter{TypeAtMost(5), TypeAtMost(3), TypeAtMost(4)}, Filter{TypeAtMost: 3}, false},
		{[]Filter{{}, TypeAtMost(5)}, Filter{TypeAtMost: 5}, false},
		{[]Filter{MinPriority(3), MinPriority(9), MinPriority(1)}, Filter{MinPriority: 9}, false},
		{[]Filter{Not(2), TypeAtMost(3)}, Filter{NotType: 2, TypeAtMost: 3}, false},
		{[]Filter{Type(3), TypeAtMost(3), Not(2)}, Filter{Type: 3, TypeAtMost: 3, NotType: 2}, false},
		{[]Filter{Type(3), Type(4)}, Filter{}, true},
		{[]Filter{Key("a"), Key("b")}, Filter{}, true},
		{[]Filter{Not(1), Not(2)}, Filter{}, true},
		{[]Filter{Type(3), Not(3)}, Filter{}, true},
		{[]Filter{Type(4), TypeAtMost(3)}, Filter{}, true},
		{[]Filter{TypeAtMost(1), Not(1)}, Filter{}, true},
		{[]Filter{{Type: 3, NotType: 3}}, Filter{}, true},
		{[]Filter{Type(-1)}, Filter{}, true},
		{[]Filter{MinPriority(MaxPriority + 1)}, Filter{}, true},
	} {
		f, err := merge(c.fs)
		if c.bad != (err != nil) || !c.bad && f != c.want || c.bad && !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %+v, %v", c.fs, f, err)
		}
	}
}

func TestPriorities(t *testing.T) {
	for s, want := range map[string]int{"critical": 28, "High": 20, "normal": 10, "LOW": 2, "0": 0, "17": 17, "32767": 32767} {
		if p, err := ParsePriority(s); err != nil || p != want {
			t.Errorf("%s: %d, %v", s, p, err)
		}
	}
	for _, s := range []string{"", "urgent", "-1", "32768", "1.5", "99999999999999999999", " 1"} {
		if _, err := ParsePriority(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for p, want := range map[int]string{-1: "", 0: "low", 4: "low", 5: "normal", 14: "normal", 15: "high", 24: "high", 25: "critical", 31: "critical", 32: ""} {
		if b := BandOf(p); b != want {
			t.Errorf("%d: %q, want %q", p, b, want)
		}
	}
	for _, p := range []int{Low, Normal, High, Critical} {
		if q, err := ParsePriority(BandOf(p)); err != nil || q != p {
			t.Errorf("%d lies in %q, which reads as %d, %v", p, BandOf(p), q, err)
		}
	}
}

func TestErrors(t *testing.T) {
	q := open(t, "/errors", Options{MaxMessages: 1})
	_, err := q.TryReceive()
	var e *Error
	if !errors.As(err, &e) || e.Op != "receive" || e.Queue != "/errors" || !errors.Is(err, ErrEmpty) || !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("%#v", err)
	}
	if err := q.TrySend(Message{}); err != nil {
		t.Fatal(err)
	}
	err = q.TrySend(Message{})
	if !strings.HasPrefix(err.Error(), "kumquat: send /errors: ") || !strings.Contains(err.Error(), "queue full") || strings.Count(err.Error(), "kumquat") != 1 {
		t.Errorf("%v", err)
	}
	if s := (&Error{"open", "/a\x1b[2J\n", ErrNotFound}).Error(); s != `kumquat: open "/a\x1b[2J\n": no such queue` {
		t.Errorf("%s", s)
	}
	if s := (&Error{Op: "select", Err: ErrTimeout}).Error(); s != "kumquat: select: timed out" {
		t.Errorf("%s", s)
	}
}

// The checks must not depend on the driver: what they let pass is what drivers rely on.
func TestOptions(t *testing.T) {
	minus := -1
	for _, o := range []Options{
		{}, {Create: true}, {Create: true, Exclusive: true, Mode: 0o777, MaxMessages: maxMessages, MaxSize: maxSize, MaxHandles: maxHandles,
			Overflow: DropLowest, Durability: Always, Headroom: Headroom{Percent: 99, Priority: MaxPriority}}, {MaxMessages: -1, Mode: fs.ModeDir}, // ignored: not created
	} {
		if err := checkOptions(&o); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, o := range []Options{
		{Exclusive: true}, {Owner: &minus}, {Create: true, Mode: fs.ModeDir | 0o600}, {Create: true, MaxMessages: maxMessages + 1}, {Create: true, MaxMessages: -1},
		{Create: true, MaxSize: maxSize + 1}, {Create: true, MaxSize: -1}, {Create: true, MaxHandles: maxHandles + 1}, {Create: true, MaxHandles: -1},
		{Create: true, Overflow: DropLowest + 1}, {Create: true, Durability: Always + 1}, {Create: true, Headroom: Headroom{Percent: 100, Priority: 0}},
		{Create: true, Headroom: Headroom{Percent: -1, Priority: 0}}, {Create: true, Headroom: Headroom{Percent: 1, Priority: -1}}, {Create: true, Headroom: Headroom{Percent: 1, Priority: MaxPriority + 1}},
	} {
		if err := checkOptions(&o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestList(t *testing.T) {
	open(t, "/list/a", Options{MaxMessages: 3})
	open(t, "/list/deep/b", Options{MaxMessages: 4})
	for pattern, want := range map[string][]string{
		"/list/*": {"/list/a"}, "/list/**": {"/list/a", "/list/deep/b"}, "/list/?": {"/list/a"}, "shm:/list/a": {"/list/a"}, "/list/none": nil,
	} {
		l, err := List(t.Context(), pattern)
		var names []string
		for _, i := range l {
			names = append(names, i.Name)
		}
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("%s: %q, %v, want %q", pattern, names, err, want)
		}
	}
	if l, err := List(t.Context(), ""); err != nil || len(l) < 2 {
		t.Errorf("all: %+v, %v", l, err)
	}
	if _, err := List(t.Context(), "nosuch:*"); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
}

// Every call that takes a context must refuse nil instead of crashing in a driver, at a place far from the caller's mistake.
func TestNilContext(t *testing.T) {
	q := open(t, "/nil", Options{MaxMessages: 3})
	r, err := q.Reserve(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	var none context.Context
	for name, f := range map[string]func() error{
		"Open":         func() error { _, err := Open(none, "/nil", nil); return err },
		"Remove":       func() error { return Remove(none, "/nil") },
		"List":         func() error { _, err := List(none, ""); return err },
		"Select":       func() error { _, err := Select(none, q); return err },
		"Send":         func() error { return q.Send(none, Message{}) },
		"Receive":      func() error { _, err := q.Receive(none); return err },
		"SendBatch":    func() error { return q.SendBatch(none, nil) },
		"ReceiveBatch": func() error { _, err := q.ReceiveBatch(none, 1); return err },
		"SendBytes":    func() error { return q.SendBytes(none, nil, 0) },
		"ReceiveInto":  func() error { _, _, err := q.ReceiveInto(none, nil); return err },
		"Reserve":      func() error { _, err := q.Reserve(none, 1); return err },
		"Commit":       func() error { return r.Commit(none, Message{}) },
		"Borrow":       func() error { _, err := q.Borrow(none); return err },
		"Purge":        func() error { _, err := q.Purge(none); return err },
		"Notify":       func() error { _, err := q.Notify(none); return err },
		"Who":          func() error { _, err := q.Who(none); return err },
		"Check":        func() error { _, err := q.Check(none); return err },
		"Stat":         func() error { _, err := q.Stat(none); return err },
		"Lease":        func() error { _, err := q.Lease(none, LeaseOptions{}); return err },
		"Messages": func() (err error) {
			for _, err = range q.Messages(none) {
			}
			return err
		},
		"Peek": func() (err error) {
			for _, err = range q.Peek(none, PeekOptions{}) {
			}
			return err
		},
		"Watch": func() (err error) {
			for _, err = range q.Watch(none) {
			}
			return err
		},
	} {
		if err := f(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.Abort(); err != nil {
		t.Error(err)
	}
	if s, err := q.Stat(t.Context()); err != nil || s.Messages != 0 {
		t.Errorf("%d messages, %v", s.Messages, err)
	}
}

func TestEngineIsStatic(t *testing.T) {
	q := open(t, "/static", Options{MaxMessages: 3})
	if q.engine == nil || driver.Queue(q.engine) != q.d {
		t.Fatal("calls on a queue of the engine go through the interface")
	}
	for a := Ability(0); a < Leases; a++ {
		if !q.Can(a) {
			t.Errorf("the engine cannot do %v", a)
		}
	}
	if !q.Can(Leases) || q.Can(Transactions) || q.Can(Durable) {
		t.Error("Can says too much")
	}
}

// What is asked wrongly is refused, and a delivery that nobody leased can do nothing.
func TestLeaseArguments(t *testing.T) {
	q := open(t, "/lease", Options{MaxMessages: 3})
	ctx := t.Context()
	for _, o := range []LeaseOptions{{For: -1}, {Filter: Type(-1)}} {
		if _, err := q.Lease(ctx, o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	var d Delivery
	for _, err := range []error{d.Ack(ctx), d.Retry(ctx, 0), d.Dead(ctx, ""), d.Extend(ctx, 0)} {
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("%v", err)
		}
	}
}
