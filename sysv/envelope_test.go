package sysv_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/driver/drivertest"
	"github.com/kumquat-mq/kumquat/envelope"
	"github.com/kumquat-mq/kumquat/sysv"
)

// enveloping opens all its queues with Options.Envelope, for the suite, which does not.
type enveloping struct{ driver.Driver }

func (e enveloping) Open(ctx context.Context, name string, o *driver.Options) (driver.Queue, error) {
	own := *o
	own.Envelope = true
	return e.Driver.Open(ctx, name, &own)
}

func init() { kumquat.Register("sysv+envelope", enveloping{sysv.PriorityDriver()}) }

// sealed is the harness with envelopes: metadata and Peek then work, bytes without allocation do not.
func sealed(t testing.TB) drivertest.Harness {
	l, _, err := sysv.GetLimits()
	if err != nil {
		t.Fatal(err)
	}
	if l.MaxSize < 6000+envelope.Overhead {
		t.Skipf("needs kernel.msgmax of %d and more: it is %d, and there is no right to raise it", 6000+envelope.Overhead, l.MaxSize)
	}
	h := conformance(t, "sysv+priority")
	h.URL = func(testing.TB) string { return fmt.Sprintf("sysv+envelope:0x%08x", 0x4b520000+keys.Add(1)) }
	h.Cannot = append(slices.DeleteFunc(h.Cannot, func(a kumquat.Ability) bool {
		return a == kumquat.Metadata
	}), kumquat.Bytes)
	h.MaxMessages = 500
	h.MaxSize = min(h.MaxSize, l.MaxSize-envelope.Overhead)
	return h
}

// canCopy reports whether the kernel has MSG_COPY.
func canCopy(t testing.TB) bool {
	q, err := sysv.Get(sysv.Private, sysv.Create, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	defer q.Remove()
	_, _, err = q.Receive(context.Background(), nil, 0, sysv.NoWait|sysv.Copy)
	return !errors.Is(err, kumquat.ErrUnsupported)
}

func TestConformanceEnvelope(t *testing.T) { drivertest.Run(t, sealed(t)) }

func is(t testing.TB, err, target error) {
	t.Helper()
	if target == nil && err != nil || target != nil && !errors.Is(err, target) {
		t.Fatalf("error %v, want %v", err, target)
	}
}

// opened makes a queue, and opens it a second time without envelopes.
func opened(t *testing.T, scheme string, o kumquat.Options) (q, bare *kumquat.Queue) {
	t.Helper()
	url := fmt.Sprintf("%s:0x%08x", scheme, 0x4b530000+keys.Add(1))
	o.Create, o.Exclusive, o.Envelope = true, true, true
	q, err := kumquat.Open(context.Background(), url, &o)
	is(t, err, nil)
	bare, err = kumquat.Open(context.Background(), url, nil)
	is(t, err, nil)
	t.Cleanup(func() {
		bare.Close()
		q.Close()
		if err := kumquat.Remove(context.Background(), url); err != nil {
			t.Error(err)
		}
	})
	return q, bare
}

// Who does not ask for envelopes sees their bytes, who does gets bare bodies as they are, on queues of types and of priorities. What
// the kernel has stays with it: the type in one case, the priority in the other.
func TestEnvelopeBesideBare(t *testing.T) {
	for _, scheme := range []string{"sysv", "sysv+priority"} {
		t.Run(scheme, func(t *testing.T) {
			q, bare := opened(t, scheme, kumquat.Options{MaxMessages: 3, MaxSize: 100})
			types := scheme == "sysv"
			sent := kumquat.Message{Body: []byte("body"), ID: "id", Key: "key", Headers: map[string]string{"a": "b"}, Type: 7, Priority: 4}
			if types {
				is(t, q.TrySend(sent), kumquat.ErrUnsupported) // it would not be sorted by priority
				sent.Priority = 0
			}
			is(t, q.TrySend(sent), nil)
			m, err := bare.TryReceive()
			is(t, err, nil)
			e, err := envelope.Parse(m.Body)
			if err != nil || string(e.Body) != "body" || e.ID != "id" || e.Sender != os.Getpid() || e.Priority != 0 {
				t.Errorf("%+v, %v", e, err)
			}
			if types && (e.Type != 0 || m.Type != 7) || !types && (e.Type != 7 || m.Priority != 4) {
				t.Errorf("%+v in %+v", e, m)
			}
			is(t, q.TrySend(sent), nil)
			m, err = q.TryReceive()
			if err != nil || m.Type != 7 || m.Priority != sent.Priority || m.ID != "id" || m.Key != "key" || m.Headers["a"] != "b" || time.Since(m.Enqueued) > time.Minute {
				t.Errorf("%+v, %v", m, err)
			}
			for _, body := range []string{"", "from C"} {
				is(t, bare.TrySend(kumquat.Message{Body: []byte(body)}), nil)
				if m, err = q.TryReceive(); err != nil || string(m.Body) != body || m.Type != 1 || m.Sender != 0 {
					t.Errorf("%+v, %v", m, err)
				}
			}
			_, err = q.TryReceive(kumquat.Key("key"))
			is(t, err, kumquat.ErrUnsupported)
			is(t, q.TrySend(kumquat.Message{Type: 9}), nil)
			if _, err = q.TryReceive(kumquat.Type(9)); types {
				is(t, err, nil) // msgrcv has it
			} else {
				is(t, err, kumquat.ErrUnsupported)
				_, err = q.TryReceive(kumquat.TypeAtMost(9))
				is(t, err, kumquat.ErrUnsupported)
				_, err = q.TryReceive(kumquat.MinPriority(0))
				is(t, err, nil)
			}
			is(t, q.TrySend(kumquat.Message{Expires: time.Now().Add(time.Hour)}), kumquat.ErrUnsupported)
			is(t, q.TrySend(kumquat.Message{NotBefore: time.Now().Add(time.Hour)}), kumquat.ErrUnsupported)
		})
	}
}

// What cannot be read is said, with its bytes, and the queue goes on; what has expired is passed over. Peek shows the first as they
// lie there, and not the second.
func TestEnvelopeUnreadable(t *testing.T) {
	q, bare := opened(t, "sysv", kumquat.Options{MaxMessages: 10, MaxSize: 100})
	good, err := envelope.Append(nil, &driver.Message{Body: []byte("x"), ID: "i"}, 0)
	is(t, err, nil)
	later := bytes.Clone(good)
	later[4] = 2
	expired, err := envelope.Append(nil, &driver.Message{Body: []byte("gone"), Expires: time.Now()}, 0)
	is(t, err, nil)
	bad := []struct {
		b    []byte
		want error
	}{{good[:len(good)-1], envelope.ErrTruncated}, {later, envelope.ErrVersion}, {append(bytes.Clone(good), 0), envelope.ErrDamaged}}
	for _, c := range bad {
		is(t, bare.TrySend(kumquat.Message{Body: c.b}), nil)
	}
	is(t, bare.TrySend(kumquat.Message{Body: expired}), nil)
	is(t, bare.TrySend(kumquat.Message{Body: expired}), nil)
	is(t, q.TrySend(kumquat.Message{Body: []byte("next")}), nil)
	if q.Can(kumquat.Peeking) {
		var seen []string
		for m, err := range q.Peek(t.Context(), kumquat.PeekOptions{}) {
			is(t, err, nil)
			seen = append(seen, string(m.Body))
		}
		if want := []string{string(bad[0].b), string(bad[1].b), string(bad[2].b), "next"}; !slices.Equal(seen, want) {
			t.Errorf("peek shows %q", seen)
		}
	}
	for _, c := range bad {
		_, err := q.TryReceive()
		is(t, err, c.want)
		if e, ok := envelope.AsError(err); !ok || !bytes.Equal(e.Data, c.b) {
			t.Errorf("%v has other bytes", err)
		}
	}
	if m, err := q.Receive(t.Context()); err != nil || string(m.Body) != "next" {
		t.Errorf("%+v, %v", m, err)
	}
	is(t, bare.TrySend(kumquat.Message{Body: expired}), nil)
	_, err = q.TryReceive()
	is(t, err, kumquat.ErrEmpty)
}

// Within kernel.msgmnb the longest metadata fit beside the longest body; where it is too small for that, a queue of so many messages
// is made all the same, and long metadata fill it sooner.
func TestEnvelopeRoom(t *testing.T) {
	l, _, err := sysv.GetLimits()
	is(t, err, nil)
	size := min(l.MaxSize-envelope.Overhead, 3000)
	q, bare := opened(t, "sysv", kumquat.Options{MaxMessages: 2, MaxSize: size})
	long := kumquat.Message{Body: bytes.Repeat([]byte("b"), size), ID: strings.Repeat("i", envelope.MaxNames-3), Type: 9}
	for range 2 {
		is(t, q.TrySend(long), nil)
	}
	is(t, q.TrySend(kumquat.Message{}), kumquat.ErrFull)
	for range 2 {
		m, err := q.TryReceive()
		if err != nil || !bytes.Equal(m.Body, long.Body) || m.ID != long.ID || m.Type != 9 {
			t.Errorf("%d bytes, ID of %d, type %d, %v", len(m.Body), len(m.ID), m.Type, err)
		}
	}
	if st, err := q.Stat(t.Context()); err != nil || st.MaxSize != size || st.MaxMessages != 2 || st.Bytes != -1 || st.Messages != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if st, err := bare.Stat(t.Context()); err != nil || st.Bytes != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	long.Body = append(long.Body, 'b')
	is(t, q.TrySend(long), kumquat.ErrTooLarge)
	is(t, q.Send(t.Context(), kumquat.Message{ID: strings.Repeat("i", 4000)}), kumquat.ErrTooLarge)

	// A queue that is too short for envelopes says so.
	url := fmt.Sprintf("sysv:0x%08x", 0x4b530000+keys.Add(1))
	short, err := kumquat.Open(t.Context(), url, &kumquat.Options{Create: true, MaxMessages: 1, MaxSize: envelope.Overhead})
	is(t, err, nil)
	defer kumquat.Remove(context.Background(), url)
	defer short.Close()
	_, err = kumquat.Open(t.Context(), url, &kumquat.Options{Envelope: true})
	is(t, err, kumquat.ErrUnsupported)
	if !strings.Contains(err.Error(), "messages of 4096 bytes") {
		t.Errorf("%v", err)
	}
}

// With the limits that Linux comes with, and no right to go beyond, a queue for 100 messages is made for short envelopes, and another
// process that opens it with the same numbers keeps to them.
func TestEnvelopeTight(t *testing.T) {
	const msgmnb = "/proc/sys/kernel/msgmnb"
	if os.Getenv("KUMQUAT_TEST_IPC") != "own" || os.Geteuid() != 0 {
		t.Skip("needs root in an IPC namespace of the tests: it lowers kernel.msgmnb")
	}
	before, err := os.ReadFile(msgmnb)
	is(t, err, nil)
	is(t, os.WriteFile(msgmnb, []byte("16384"), 0), nil)
	defer func() { is(t, os.WriteFile(msgmnb, before, 0), nil) }()
	is(t, syscall.Setreuid(-1, unprivileged), nil)
	defer func() { is(t, syscall.Setreuid(-1, 0), nil) }()
	const n = 100
	q, bare := opened(t, "sysv", kumquat.Options{MaxMessages: n, MaxSize: 32})
	if st, err := bare.Stat(t.Context()); err != nil || st.MaxMessages != n {
		t.Errorf("%+v, %v", st, err)
	}
	for i := range n {
		if err := q.TrySend(kumquat.Message{Body: make([]byte, 32), ID: fmt.Sprint("a short name ", i)}); err != nil {
			t.Fatalf("send %d of %d: %v", i+1, n, err)
		}
	}
	is(t, q.TrySend(kumquat.Message{}), kumquat.ErrFull)
	if k, err := q.Purge(t.Context()); err != nil || k != n {
		t.Errorf("%d, %v", k, err)
	}
	for range 4 { // long names fill it sooner
		is(t, q.TrySend(kumquat.Message{ID: strings.Repeat("i", 3900)}), nil)
	}
	is(t, q.TrySend(kumquat.Message{ID: strings.Repeat("i", 3900)}), kumquat.ErrFull)
	// The shape is known anew to whoever opens it so, after all handles of this process are closed.
	url := q.Name()
	is(t, bare.Close(), nil)
	is(t, q.Close(), nil)
	q, err = kumquat.Open(t.Context(), url, &kumquat.Options{Create: true, Envelope: true, MaxMessages: n, MaxSize: 32})
	is(t, err, nil)
	defer q.Close()
	if st, err := q.Stat(t.Context()); err != nil || st.MaxMessages != n || st.MaxSize != 32 {
		t.Errorf("%+v, %v", st, err)
	}
	// What does not fit even so is refused with the limit's name.
	_, err = kumquat.Open(t.Context(), "sysv:0x4b53ffff", &kumquat.Options{Create: true, Envelope: true, MaxMessages: 1000, MaxSize: 32})
	is(t, err, kumquat.ErrLimit)
}

func BenchmarkEnvelope(b *testing.B) {
	for _, enveloped := range []bool{false, true} {
		b.Run(fmt.Sprint(enveloped), func(b *testing.B) {
			url := fmt.Sprintf("sysv:0x%08x", 0x4b530000+keys.Add(1))
			q, err := kumquat.Open(b.Context(), url, &kumquat.Options{Create: true, Envelope: enveloped})
			is(b, err, nil)
			defer kumquat.Remove(context.Background(), url)
			defer q.Close()
			m := kumquat.Message{Body: make([]byte, 64)}
			b.ReportAllocs()
			for b.Loop() {
				if err := q.TrySend(m); err != nil {
					b.Fatal(err)
				}
				if _, err := q.TryReceive(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
