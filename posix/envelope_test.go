package posix_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/driver/drivertest"
	"github.com/kumquat-mq/kumquat/envelope"
	"github.com/kumquat-mq/kumquat/posix"
)

// enveloping opens all its queues with Options.Envelope, for the suite, which does not.
type enveloping struct{ driver.Driver }

func (e enveloping) Open(ctx context.Context, name string, o *driver.Options) (driver.Queue, error) {
	own := *o
	own.Envelope = true
	return e.Driver.Open(ctx, name, &own)
}

func init() { kumquat.Register("posix+envelope", enveloping{posix.Driver()}) }

// The whole suite with envelopes: metadata and types come back, and nothing else changes.
func TestConformanceEnvelope(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the suite becomes another user, and a user namespace made without root has only one")
	}
	if !posix.InNamespace(t, "msg_max=20", "msgsize_max=16384") {
		return
	}
	h := conformance()
	h.URL = func(testing.TB) string { return "posix+envelope:" + uniqueName() }
	h.MaxMessages, h.MaxSize = 20, 6000
	for i, a := range h.Cannot {
		if a == kumquat.Metadata {
			h.Cannot = append(h.Cannot[:i:i], h.Cannot[i+1:]...)
		}
	}
	drivertest.Run(t, h)
}

// A queue of bare bodies and one of envelopes are the same queue: who does not ask for envelopes sees their bytes, and who does
// gets bare bodies as they are.
func TestEnvelopeBesideBare(t *testing.T) {
	ctx := t.Context()
	url := "posix:" + uniqueName()
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Envelope: true, MaxMessages: 4, MaxSize: 100})
	is(t, err, nil)
	defer kumquat.Remove(ctx, url)
	defer q.Close()
	bare, err := kumquat.Open(ctx, url, nil)
	is(t, err, nil)
	defer bare.Close()
	for h, want := range map[*kumquat.Queue]struct {
		size     int
		metadata bool
	}{q: {100, true}, bare: {100 + envelope.Overhead, false}} {
		if st, err := h.Stat(ctx); err != nil || st.MaxSize != want.size || h.Can(kumquat.Metadata) != want.metadata {
			t.Errorf("%+v, %v, want MaxSize %d", st, err, want.size)
		}
	}

	is(t, q.TrySend(kumquat.Message{Body: []byte("body"), ID: "id", Type: 5, Priority: 3}), nil)
	m, err := bare.TryReceive()
	is(t, err, nil)
	e, err := envelope.Parse(m.Body)
	if err != nil || string(e.Body) != "body" || e.ID != "id" || e.Type != 5 || e.Priority != 0 || e.Sender != os.Getpid() || m.Priority != 3 {
		t.Errorf("%+v, %v", e, err)
	}
	is(t, bare.TrySend(kumquat.Message{Body: []byte("from C"), Priority: 9}), nil)
	if m, err = q.TryReceive(); err != nil || string(m.Body) != "from C" || m.Priority != 9 || m.Type != 1 || m.Sender != 0 {
		t.Errorf("%+v, %v", m, err)
	}

	// What cannot be read is said, with its bytes, and the queue goes on.
	good, err := envelope.Append(nil, &driver.Message{Body: []byte("x"), ID: "i"}, 0)
	is(t, err, nil)
	later := bytes.Clone(good)
	later[4] = 2
	for _, c := range []struct {
		b    []byte
		want error
	}{{good[:len(good)-1], envelope.ErrTruncated}, {later, envelope.ErrVersion}, {append(bytes.Clone(good), 0), envelope.ErrDamaged}} {
		is(t, bare.TrySend(kumquat.Message{Body: c.b, Priority: 1}), nil)
		is(t, q.TrySend(kumquat.Message{Body: []byte("next")}), nil)
		_, err := q.TryReceive()
		is(t, err, c.want)
		if e, ok := envelope.AsError(err); !ok || !bytes.Equal(e.Data, c.b) {
			t.Errorf("%v has other bytes", err)
		}
		if m, err := q.TryReceive(); err != nil || string(m.Body) != "next" {
			t.Errorf("%+v, %v", m, err)
		}
	}

	// Another program may send what expires; nobody gets it here.
	expired, err := envelope.Append(nil, &driver.Message{Body: []byte("gone"), Expires: time.Now()}, 0)
	is(t, err, nil)
	for range 3 {
		is(t, bare.TrySend(kumquat.Message{Body: expired, Priority: 7}), nil)
	}
	_, err = q.TryReceive()
	is(t, err, kumquat.ErrEmpty)
	is(t, bare.TrySend(kumquat.Message{Body: expired, Priority: 7}), nil)
	is(t, q.TrySend(kumquat.Message{Body: []byte("there")}), nil)
	if m, err := q.Receive(ctx); err != nil || string(m.Body) != "there" {
		t.Errorf("%+v, %v", m, err)
	}
	is(t, q.TrySend(kumquat.Message{Expires: time.Now().Add(time.Hour)}), kumquat.ErrUnsupported)
	is(t, q.TrySend(kumquat.Message{NotBefore: time.Now().Add(time.Hour)}), kumquat.ErrUnsupported)
}

// MaxSize counts the body alone, so the queue is made longer; one that is too short for envelopes says so.
func TestEnvelopeRoom(t *testing.T) {
	if !posix.InNamespace(t, "msgsize_default=9000", "msgsize_max=9000") {
		return
	}
	ctx := t.Context()
	open := func(o kumquat.Options) (*kumquat.Queue, int, error) {
		url := "posix:" + uniqueName()
		o.Create = true
		q, err := kumquat.Open(ctx, url, &o)
		if err != nil {
			return nil, 0, err
		}
		t.Cleanup(func() { q.Close(); kumquat.Remove(context.Background(), url) })
		st, err := q.Stat(ctx)
		is(t, err, nil)
		return q, st.MaxSize, nil
	}
	q, size, err := open(kumquat.Options{Envelope: true})
	is(t, err, nil)
	if size != 9000-envelope.Overhead {
		t.Errorf("by default it takes %d bytes", size)
	}
	// The longest body with the longest metadata.
	m := kumquat.Message{Body: bytes.Repeat([]byte("b"), size), ID: strings.Repeat("i", envelope.MaxNames-3), Type: 9}
	is(t, q.TrySend(m), nil)
	got, err := q.TryReceive()
	if err != nil || !bytes.Equal(got.Body, m.Body) || got.ID != m.ID || got.Type != 9 {
		t.Errorf("%d bytes, ID of %d, type %d, %v", len(got.Body), len(got.ID), got.Type, err)
	}
	m.Body = append(m.Body, 'b')
	is(t, q.TrySend(m), kumquat.ErrTooLarge)
	if posix.ReadLimits().Privileged {
		t.Log("the limit on MaxSize does not bind this process")
	} else {
		_, _, err = open(kumquat.Options{Envelope: true, MaxSize: 9000 - envelope.Overhead + 1})
		is(t, err, kumquat.ErrLimit)
	}
	if _, size, err = open(kumquat.Options{Envelope: true, MaxSize: 1}); err != nil || size != 1 {
		t.Errorf("%d, %v", size, err)
	}
	short, _, err := open(kumquat.Options{MaxSize: envelope.Overhead})
	is(t, err, nil)
	_, err = kumquat.Open(ctx, short.Name(), &kumquat.Options{Envelope: true})
	is(t, err, kumquat.ErrUnsupported)
	if want := fmt.Sprintf("messages of %d bytes", envelope.Overhead); !strings.Contains(err.Error(), want) || errors.Is(err, kumquat.ErrLimit) {
		t.Errorf("%v", err)
	}
}
