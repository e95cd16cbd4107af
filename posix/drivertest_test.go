package posix_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/driver/drivertest"
	"github.com/kumquat-mq/kumquat/posix"
)

var names atomic.Int64

// uniqueName is a name that no other test, nor another run, uses.
func uniqueName() string { return fmt.Sprintf("/kumquat-test-%d-%d", os.Getpid(), names.Add(1)) }

// conformance is the harness within the kernel's default limits: 10 messages, and 819,200 bytes for all queues of the user.
func conformance() drivertest.Harness {
	return drivertest.Harness{
		URL: func(testing.TB) string { return "posix:" + uniqueName() },
		Cannot: []kumquat.Ability{
			kumquat.Batches, kumquat.Bytes, kumquat.ZeroCopy, kumquat.Peeking, kumquat.Selecting, kumquat.Watching, kumquat.Inspecting,
			kumquat.Filters, kumquat.Metadata, kumquat.Delays, kumquat.Expiry, kumquat.Dropping, kumquat.Headrooms, kumquat.Revoking,
		},
		MaxMessages: 10,
		MaxSize:     4096,
		BadNames: []string{
			"posix:", "posix:/", "posix:x", "posix:/.", "posix:/..", "posix:/a/b", "posix://a", "posix:/a/", "posix:/a\x00b",
			"posix:/" + strings.Repeat("x", 256),
		},
		NoCounts: true,
	}
}

func TestConformance(t *testing.T) { drivertest.Run(t, conformance()) }

// The same with the limits raised: queues of some hundred messages, one subtest at a time, since the bytes of all queues of a user
// stay limited.
func TestConformanceLarge(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the suite becomes another user, and a user namespace made without root has only one")
	}
	if !posix.InNamespace(t, "msg_max=300") {
		return
	}
	h := conformance()
	h.MaxMessages, h.MaxSize = 300, 1100
	drivertest.Run(t, h)
}

func BenchmarkConformance(b *testing.B) { drivertest.Benchmark(b, conformance()) }

// What the kernel cannot do is refused by name, and what concerns only other kinds of queues is let pass.
func TestRefused(t *testing.T) {
	ctx := t.Context()
	url := "posix:" + uniqueName()
	for _, o := range []kumquat.Options{
		{Overflow: kumquat.DropOldest}, {Overflow: kumquat.DropLowest}, {Headroom: kumquat.Headroom{Percent: 1, Priority: 1}},
		{Durability: kumquat.Always}, {Durability: kumquat.Interval},
	} {
		o.Create = true
		_, err := kumquat.Open(ctx, url, &o)
		is(t, err, kumquat.ErrUnsupported)
		if !strings.Contains(err.Error(), "POSIX queues have no ") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	_, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, ReadOnly: true})
	is(t, err, kumquat.ErrInvalid)
	other := os.Geteuid() + 1
	_, err = kumquat.Open(ctx, url, &kumquat.Options{Create: true, Owner: &other})
	is(t, err, kumquat.ErrPermission)
	_, err = kumquat.Open(ctx, url, nil)
	is(t, err, kumquat.ErrNotFound) // none of these made it

	_, err = kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, Owner: &other})
	is(t, err, kumquat.ErrPermission)

	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, MaxMessages: 3, MaxHandles: 7})
	is(t, err, nil)
	defer kumquat.Remove(ctx, url)
	defer q.Close()
	_, err = kumquat.Open(ctx, url, &kumquat.Options{Create: true, Owner: &other})
	is(t, err, kumquat.ErrPermission)
	_, err = kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, Owner: &other}) // that it is there comes first
	is(t, err, kumquat.ErrExists)
	is(t, err, syscall.EEXIST)
	for _, m := range []kumquat.Message{
		{Type: 2}, {ID: "x"}, {Key: "x"}, {Group: "x"}, {CorrelationID: "x"}, {ReplyTo: "/x"}, {ContentType: "x"}, {Headers: map[string]string{"a": "b"}},
		{NotBefore: time.Now()}, {Expires: time.Now().Add(time.Hour)},
	} {
		is(t, q.TrySend(m), kumquat.ErrUnsupported)
	}
	is(t, q.TrySend(kumquat.Message{Type: 1, Body: []byte("x")}), nil)
	_, err = q.TryReceive(kumquat.MinPriority(1))
	is(t, err, kumquat.ErrUnsupported)
	_, err = q.Purge(ctx, kumquat.Type(1))
	is(t, err, kumquat.ErrUnsupported)
	done, cancel := context.WithCancel(ctx)
	cancel()
	is(t, q.TrySend(kumquat.Message{Body: []byte("y")}), nil)
	if n, err := q.Purge(done); err != nil || n != 2 {
		t.Errorf("a purge, which never waits, under a context that is done: %d, %v", n, err)
	}
	is(t, q.TrySend(kumquat.Message{Body: []byte("x")}), nil)
	if m, err := q.TryReceive(); err != nil || string(m.Body) != "x" || m.Type != 1 {
		t.Errorf("received %+v, %v", m, err)
	}
	// The default size is the kernel's where only one of the two is given.
	l := posix.ReadLimits()
	if st, err := q.Stat(ctx); err != nil || st.MaxMessages != 3 || st.MaxSize != l.DefaultSize || st.Removed {
		t.Errorf("stat %+v, %v", st, err)
	}
}

func is(t *testing.T, err, target error) {
	t.Helper()
	if target == nil && err != nil || target != nil && !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

// A queue beyond the limits says which one and how it is raised, through package kumquat as well.
func TestLimitByName(t *testing.T) {
	l := posix.ReadLimits()
	if l.Privileged {
		t.Skip("this process has CAP_SYS_RESOURCE: the limits do not bind it")
	}
	_, err := kumquat.Open(t.Context(), "posix:"+uniqueName(), &kumquat.Options{Create: true, MaxMessages: l.MaxMessages + 1, MaxSize: 8})
	is(t, err, kumquat.ErrLimit)
	is(t, err, syscall.EINVAL)
	if want := fmt.Sprintf("sysctl -w fs.mqueue.msg_max=%d", l.MaxMessages+1); !strings.Contains(err.Error(), want) {
		t.Errorf("%v does not say %q", err, want)
	}
}

// Patterns: '*' and '?' and "**", which is no more than '*' where there are no folders; a wrong one is ErrInvalid.
func TestPatterns(t *testing.T) {
	if !posix.InNamespace(t) {
		return
	}
	ctx := t.Context()
	for _, n := range []string{"/ab", "/ac", "/b"} {
		q, err := kumquat.Open(ctx, "posix:"+n, &kumquat.Options{Create: true, MaxMessages: 1, MaxSize: 1})
		is(t, err, nil)
		is(t, q.Close(), nil)
	}
	for pattern, want := range map[string]string{
		"posix:": "posix:/ab posix:/ac posix:/b", "posix:/*": "posix:/ab posix:/ac posix:/b", "posix:/**": "posix:/ab posix:/ac posix:/b",
		"posix:/a?": "posix:/ab posix:/ac", "posix:/[b]": "posix:/b", "posix:/b": "posix:/b", "posix:/x": "", "posix:/x*": "",
	} {
		list, err := kumquat.List(ctx, pattern)
		if errors.Is(err, kumquat.ErrUnsupported) {
			t.Skipf("no right to see the list: %v", err)
		}
		is(t, err, nil)
		var names []string
		for _, x := range list {
			names = append(names, x.Name)
			if x.MaxMessages != 1 || x.Err != nil {
				t.Errorf("%+v", x)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s lists %q, want %q", pattern, got, want)
		}
	}
	_, err := kumquat.List(ctx, "posix:/[")
	is(t, err, kumquat.ErrInvalid)
}

// Select serves POSIX queues by their descriptors, together with queues of the engine.
func TestSelectMixed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t.Setenv("KUMQUAT_SHM", t.TempDir())
	var qs []*kumquat.Queue
	for _, url := range []string{"posix:" + uniqueName(), "/engine", "posix:" + uniqueName()} {
		q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, MaxMessages: 3, MaxSize: 8})
		is(t, err, nil)
		defer kumquat.Remove(ctx, url)
		defer q.Close()
		qs = append(qs, q)
	}
	for i := range 60 {
		q := qs[i%3]
		go func() {
			time.Sleep(time.Duration(i%5) * 100 * time.Microsecond)
			_ = q.Send(ctx, kumquat.Message{Body: []byte("x")}) // a failure is seen below: nothing comes
		}()
		got, err := kumquat.Select(ctx, qs...)
		is(t, err, nil)
		if got != q {
			t.Fatalf("round %d: %s, want %s", i, got.Name(), q.Name())
		}
		_, err = got.TryReceive()
		is(t, err, nil)
	}
}

// A message longer than what the scheduler is not told of, and one of the longest that fit.
func TestLongMessages(t *testing.T) {
	if !posix.InNamespace(t, "msgsize_max=16777216") {
		return
	}
	ctx := t.Context()
	for _, size := range []int{64<<10 - 1, 64 << 10, 64<<10 + 1, 700_000} {
		url := "posix:" + uniqueName()
		q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, MaxMessages: 1, MaxSize: size})
		is(t, err, nil)
		body := bytes.Repeat([]byte("0123456789a"), size/11+1)[:size]
		is(t, q.Send(ctx, kumquat.Message{Body: body, Priority: 9}), nil)
		is(t, q.TrySend(kumquat.Message{Body: body}), kumquat.ErrFull)
		m, err := q.Receive(ctx)
		is(t, err, nil)
		if !bytes.Equal(m.Body, body) || m.Priority != 9 {
			t.Errorf("%d bytes came back changed", size)
		}
		_, err = q.TryReceive()
		is(t, err, kumquat.ErrEmpty)
		is(t, q.TrySend(kumquat.Message{Body: append(body, 0)}), kumquat.ErrTooLarge)
		is(t, q.Close(), nil)
		is(t, kumquat.Remove(ctx, url), nil)
	}
}

// A removed queue lives on for those who have it open: the declared difference from the engine.
func TestRemovedLivesOn(t *testing.T) {
	ctx := t.Context()
	url := "posix:" + uniqueName()
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, MaxMessages: 2, MaxSize: 8})
	is(t, err, nil)
	defer q.Close()
	told, err := q.Notify(ctx)
	is(t, err, nil)
	got := make(chan error, 1)
	go func() { _, err := q.Receive(ctx); got <- err }()
	is(t, kumquat.Remove(ctx, url), nil)
	for range told { // closed by the removal
	}
	is(t, q.Send(ctx, kumquat.Message{}), nil)
	is(t, <-got, nil)
	if st, err := q.Stat(ctx); err != nil || !st.Removed {
		t.Errorf("stat %+v, %v", st, err)
	}
	// Notify on a queue without a name works, until its handle is closed.
	told, err = q.Notify(ctx)
	is(t, err, nil)
	is(t, q.Send(ctx, kumquat.Message{}), nil)
	<-told
	is(t, q.Close(), nil)
	for range told {
	}
}
