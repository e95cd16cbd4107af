package kumquat_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/codec"
	"github.com/kumquat-mq/kumquat/codec/protobuf"
)

type order struct {
	Fruit string `json:"fruit"`
	Count int    `json:"count"`
}

func typedQueue(t testing.TB, url string, o kumquat.Options) *kumquat.Queue {
	t.Helper()
	o.Create, o.Exclusive = true, true
	q, err := kumquat.Open(context.Background(), url, &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		q.Close()
		if err := kumquat.Remove(context.Background(), url); err != nil {
			t.Error(err)
		}
	})
	return q
}

func newTyped[T any](t testing.TB, q *kumquat.Queue, c kumquat.Codec[T], o *kumquat.TypedOptions) *kumquat.Typed[T] {
	t.Helper()
	x, err := kumquat.NewTyped(q, c, o)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func there(t testing.TB, err, want error) {
	t.Helper()
	if want == nil && err != nil || want != nil && !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// JSON, Protobuf and raw bodies come back as they were, on the engine and in envelopes on the kernel's queues, with the metadata that
// the sender gave and the schema in the content type.
func TestTypedRoundTrips(t *testing.T) {
	for _, url := range []string{
		"/typed", fmt.Sprintf("posix:/kumquat-typed-%d", os.Getpid()), fmt.Sprintf("sysv:0x4b54%04x", os.Getpid()&0xffff),
	} {
		t.Run(url, func(t *testing.T) {
			q := typedQueue(t, url, kumquat.Options{Envelope: true, MaxMessages: 3, MaxSize: 1000})
			roundTrip(t, q, codec.JSON[order]{}, &kumquat.TypedOptions{Name: "shop.Order", Version: 2}, order{"pear", 2}, "application/json; schema=shop.Order; version=2")
			roundTrip(t, q, codec.JSON[*order]{Strict: true}, nil, &order{"<fig>", -1}, "application/json")
			roundTrip(t, q, codec.Raw[string]{Media: "text/plain"}, nil, "two pears", "text/plain")
			roundTrip(t, q, codec.Raw[json.RawMessage]{}, &kumquat.TypedOptions{Version: 1}, json.RawMessage("[1]"), "application/octet-stream; version=1")

			p := newTyped(t, q, protobuf.Codec[*timestamppb.Timestamp]{}, &kumquat.TypedOptions{Version: 3})
			sent := &timestamppb.Timestamp{Seconds: 1, Nanos: 2}
			there(t, p.Send(t.Context(), sent, kumquat.Message{}), nil)
			m, err := p.Receive(t.Context())
			there(t, err, nil)
			if want := "application/protobuf; schema=google.protobuf.Timestamp; version=3"; !proto.Equal(m.Value, sent) || m.ContentType != want {
				t.Errorf("got %v, %q", m.Value, m.ContentType)
			}
		})
	}
}

func roundTrip[T any](t *testing.T, q *kumquat.Queue, c kumquat.Codec[T], o *kumquat.TypedOptions, v T, label string) {
	t.Helper()
	x := newTyped(t, q, c, o)
	there(t, x.Send(t.Context(), v, kumquat.Message{ID: "i", Headers: map[string]string{"a": "b"}, Body: []byte("ignored"), ContentType: "ignored"}), nil)
	m, err := x.Receive(t.Context())
	there(t, err, nil)
	if !reflect.DeepEqual(m.Value, v) || m.ContentType != label || m.ID != "i" || m.Headers["a"] != "b" {
		t.Errorf("sent %+v, got %+v", v, m)
	}
	there(t, x.TrySend(v, kumquat.Message{}), nil)
	m, err = x.TryReceive()
	there(t, err, nil)
	if !reflect.DeepEqual(m.Value, v) {
		t.Errorf("sent %+v, got %+v", v, m)
	}
	if _, err = x.TryReceive(); !errors.Is(err, kumquat.ErrEmpty) {
		t.Errorf("%v", err)
	}
}

// A body of something else is refused with both names before it is decoded, and is not lost.
func TestTypedMismatch(t *testing.T) {
	q := typedQueue(t, "/typed-mismatch", kumquat.Options{MaxMessages: 10})
	x := newTyped(t, q, codec.JSON[order]{}, &kumquat.TypedOptions{Name: "shop.Order", Version: 3, Oldest: 2, MaxSize: 40})
	const want = "; wanted is application/json; schema=shop.Order; version=3"
	for _, c := range []struct {
		contentType, body string
		err               error
		text              string
	}{
		{"application/json; schema=shop.Order; version=3", `{}`, nil, ""},
		{"application/json; schema=shop.Order; version=2", `{}`, nil, ""},
		{`APPLICATION/json;version=2;charset=utf-8;  schema="shop.Order"`, `{}`, nil, ""},
		{"application/json; schema=shop.Order; version=1", `{}`, kumquat.ErrSchema, `version 1 of "shop.Order", readable are 2 to 3` + want},
		{"application/json; schema=shop.Order; version=4", `{}`, kumquat.ErrSchema, `version 4 of "shop.Order", readable are 2 to 3` + want},
		{"application/json; schema=shop.Order", `{}`, kumquat.ErrSchema, "no version is said" + want},
		{"application/json; schema=shop.Order; version=x", `{}`, kumquat.ErrSchema, "the version is not a number from 1 on" + want},
		{"application/json; schema=shop.Order; version=-1", `{}`, kumquat.ErrSchema, "not a number"},
		{"application/json; schema=shop.Bill; version=3", `{}`, kumquat.ErrSchema, `schema "shop.Bill"` + want},
		{"application/json; version=3", `{}`, kumquat.ErrSchema, "no schema is said" + want},
		{"application/protobuf; schema=shop.Order; version=3", `{}`, kumquat.ErrSchema, "content type application/protobuf" + want},
		{"", `{}`, kumquat.ErrSchema, "the message says no content type" + want},
		{"a;b;;c" + strings.Repeat("x", 3000), `{}`, kumquat.ErrSchema, "is not a media type"},
		{"application/json; schema=shop.Order; version=3", `{"fruit":1}`, kumquat.ErrBody, "cannot unmarshal number"},
		{"application/json; schema=shop.Order; version=3", ``, kumquat.ErrBody, "unreadable body: application/json; schema=shop.Order; version=3"},
		{"application/json; schema=shop.Order; version=3", strings.Repeat(" ", 39) + `{}`, kumquat.ErrTooLarge, "a body of 41 bytes, the typed queue's MaxSize is 40"},
		{"application/xml", strings.Repeat("x", 41), kumquat.ErrSchema, "application/xml"},
	} {
		there(t, q.TrySend(kumquat.Message{Body: []byte(c.body), ContentType: c.contentType, ID: "kept"}), nil)
		m, err := x.TryReceive()
		if c.err == nil {
			if err != nil || m.ID != "kept" {
				t.Errorf("%s: %+v, %v", c.contentType, m, err)
			}
			continue
		}
		e, ok := errors.AsType[*kumquat.BodyError](err)
		if !ok || !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) || !strings.HasPrefix(err.Error(), "kumquat: decode /typed-mismatch: ") {
			t.Errorf("%s: %v", c.contentType, err)
			continue
		}
		if len(err.Error()) > 600 || string(e.Message.Body) != c.body || e.Got != c.contentType || e.Want.Name != "shop.Order" || m.Value != (order{}) {
			t.Errorf("%s: %+v", c.contentType, e)
		}
		for _, other := range []error{kumquat.ErrSchema, kumquat.ErrBody, kumquat.ErrTooLarge} {
			if other != c.err && errors.Is(err, other) {
				t.Errorf("%s: %v is %v too", c.contentType, err, other)
			}
		}
	}
	// Nothing longer than MaxSize is sent either, and nothing that cannot be encoded.
	there(t, x.TrySend(order{strings.Repeat("x", 40), 1}, kumquat.Message{}), kumquat.ErrTooLarge)
	y := newTyped(t, q, codec.JSON[any]{}, nil)
	if err := y.TrySend(func() {}, kumquat.Message{}); err == nil || !strings.Contains(err.Error(), "unsupported type") {
		t.Errorf("%v", err)
	}
	if _, err := q.TryReceive(); !errors.Is(err, kumquat.ErrEmpty) {
		t.Errorf("%v", err)
	}
}

// Without names only the content types are compared; with Bare a message without one is taken on trust, and only that.
func TestTypedLoose(t *testing.T) {
	q := typedQueue(t, "/typed-loose", kumquat.Options{MaxMessages: 10})
	x := newTyped(t, q, codec.JSON[order]{}, nil)
	there(t, q.TrySend(kumquat.Message{Body: []byte(`{"count":1,"more":2}`), ContentType: "application/json; schema=other; version=9"}), nil)
	if m, err := x.TryReceive(); err != nil || m.Value.Count != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	bare := newTyped(t, q, codec.JSON[order]{Strict: true}, &kumquat.TypedOptions{Bare: true})
	for _, c := range []struct {
		contentType, body string
		err               error
	}{
		{"", `{"count":1}`, nil}, {"text/plain", `{"count":1}`, kumquat.ErrSchema}, {"", `{"count":1,"more":2}`, kumquat.ErrBody}, {"", `{} {}`, kumquat.ErrBody},
		{"", `{} x`, kumquat.ErrBody}, {"", "", kumquat.ErrBody},
	} {
		there(t, q.TrySend(kumquat.Message{Body: []byte(c.body), ContentType: c.contentType}), nil)
		_, err := bare.TryReceive()
		there(t, err, c.err)
	}

	// A bare POSIX queue has no place for a schema.
	url := fmt.Sprintf("posix:/kumquat-loose-%d", os.Getpid())
	p := typedQueue(t, url, kumquat.Options{MaxMessages: 2, MaxSize: 100})
	_, err := kumquat.NewTyped(p, codec.JSON[order]{}, nil)
	there(t, err, kumquat.ErrUnsupported)
	y := newTyped(t, p, codec.JSON[order]{}, &kumquat.TypedOptions{Bare: true, Name: "shop.Order"})
	there(t, y.TrySend(order{"fig", 3}, kumquat.Message{Priority: 4}), nil)
	if m, err := p.TryReceive(); err != nil || string(m.Body) != `{"fruit":"fig","count":3}` {
		t.Errorf("%s, %v", m.Body, err)
	}
}

func TestTypedArguments(t *testing.T) {
	q := typedQueue(t, "/typed-arguments", kumquat.Options{MaxMessages: 1})
	bad := func(q *kumquat.Queue, c kumquat.Codec[order], o kumquat.TypedOptions) {
		t.Helper()
		_, err := kumquat.NewTyped(q, c, &o)
		there(t, err, kumquat.ErrInvalid)
	}
	j := codec.JSON[order]{}
	bad(nil, j, kumquat.TypedOptions{})
	bad(q, nil, kumquat.TypedOptions{})
	bad(q, j, kumquat.TypedOptions{Version: -1})
	bad(q, j, kumquat.TypedOptions{Version: 1, Oldest: 2})
	bad(q, j, kumquat.TypedOptions{Oldest: 1})
	bad(q, j, kumquat.TypedOptions{MaxSize: -1})
	for _, media := range []string{"Text/Plain", "text plain", "text/plain; a=b", "/"} {
		_, err := kumquat.NewTyped(q, codec.Raw[string]{Media: media}, nil)
		there(t, err, kumquat.ErrInvalid)
	}
	x := newTyped(t, q, j, &kumquat.TypedOptions{Name: `names "with" spaces; and more`, Version: 1})
	there(t, x.TrySend(order{}, kumquat.Message{}), nil)
	_, err := x.TryReceive()
	there(t, err, nil)
	if x.Queue() != q || x.Schema() != (kumquat.Schema{ContentType: "application/json", Name: `names "with" spaces; and more`, Version: 1}) {
		t.Errorf("%+v", x.Schema())
	}
	for _, s := range []string{"x; version=0", "x; version=1e9", ";", "a/b; version=99999999999999999999"} {
		if _, err := kumquat.ParseSchema(s); !errors.Is(err, kumquat.ErrInvalid) {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// A protobuf body that is damaged, nests without end or belongs to an interface is an error, not a panic.
func TestTypedProtobuf(t *testing.T) {
	q := typedQueue(t, "/typed-protobuf", kumquat.Options{MaxMessages: 2})
	x := newTyped(t, q, protobuf.Codec[*durationpb.Duration]{}, nil)
	y := newTyped(t, q, protobuf.Codec[*timestamppb.Timestamp]{}, nil)
	there(t, x.TrySend(durationpb.New(time.Minute), kumquat.Message{}), nil)
	_, err := y.TryReceive()
	there(t, err, kumquat.ErrSchema)
	if text := err.Error(); !strings.Contains(text, `schema "google.protobuf.Duration"; wanted is application/protobuf; schema=google.protobuf.Timestamp`) {
		t.Error(text)
	}
	m, err := x.Encode(durationpb.New(time.Minute), kumquat.Message{ID: "i"})
	there(t, err, nil)
	m.Body = m.Body[:1]
	_, err = x.Decode(m)
	there(t, err, kumquat.ErrBody)
	if err := x.TrySend(nil, kumquat.Message{}); err == nil || !strings.Contains(err.Error(), "the message is nil") {
		t.Errorf("%v", err)
	}
	any := newTyped(t, q, protobuf.Codec[proto.Message]{}, nil)
	if err := any.TrySend(durationpb.New(1), kumquat.Message{}); err == nil {
		t.Error("an interface was encoded")
	}
	_, err = any.Decode(kumquat.Message{ContentType: "application/protobuf"})
	there(t, err, kumquat.ErrBody)
}

// The iterator passes over what it cannot read, and ends with the queue.
func TestTypedMessages(t *testing.T) {
	q := typedQueue(t, "/typed-messages", kumquat.Options{MaxMessages: 10})
	x := newTyped(t, q, codec.Raw[string]{Media: "text/plain"}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, s := range []string{"a", "b"} {
		there(t, x.TrySend(s, kumquat.Message{Priority: 5}), nil)
	}
	there(t, q.TrySend(kumquat.Message{Body: []byte("?"), Priority: 3}), nil)
	there(t, x.TrySend("end", kumquat.Message{}), nil)
	var got []string
	for m, err := range x.Messages(ctx) {
		e, unreadable := errors.AsType[*kumquat.BodyError](err)
		switch {
		case unreadable:
			got = append(got, string(e.Message.Body))
		case err != nil:
			there(t, err, context.Canceled)
			got = append(got, "canceled")
		default:
			if got = append(got, m.Value); m.Value == "end" {
				cancel()
			}
		}
	}
	if s := strings.Join(got, " "); s != "a b ? end canceled" {
		t.Error(s)
	}
}

// Goroutines share a Typed and its buffers: no body may be that of another.
func TestTypedConcurrent(t *testing.T) {
	q := typedQueue(t, "/typed-concurrent", kumquat.Options{MaxMessages: 50})
	x := newTyped(t, q, codec.JSON[order]{}, &kumquat.TypedOptions{Name: "shop.Order"})
	const senders, each = 4, 300
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for k := range each {
				if err := x.Send(t.Context(), order{strings.Repeat(string(rune('a'+i)), k), k}, kumquat.Message{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	seen := [senders]int{}
	for range senders * each {
		m, err := x.Receive(t.Context())
		there(t, err, nil)
		v := m.Value
		if v.Count == 0 {
			continue
		}
		i := v.Fruit[0] - 'a'
		if seen[i]++; v.Count != seen[i] || v.Fruit != strings.Repeat(string(rune('a'+i)), v.Count) {
			t.Fatalf("%+v after %d of its sender", v, seen[i]-1)
		}
	}
	wg.Wait()
}

// What a hostile sender writes into a content type or a body ends in an error of this package.
func FuzzTyped(f *testing.F) {
	q, err := kumquat.Open(context.Background(), "/typed-fuzz", &kumquat.Options{Create: true, MaxMessages: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		q.Close()
		_ = kumquat.Remove(context.Background(), "/typed-fuzz") // by the last of several processes
	})
	x := newTyped(f, q, codec.JSON[order]{Strict: true}, &kumquat.TypedOptions{Name: "shop.Order", Version: 2, Oldest: 1})
	y := newTyped(f, q, protobuf.Codec[*timestamppb.Timestamp]{}, &kumquat.TypedOptions{Bare: true})
	f.Add("application/json; schema=shop.Order; version=2", []byte(`{"fruit":"fig","count":1}`))
	f.Add("application/protobuf; schema=google.protobuf.Timestamp", []byte("\x08\x01\x10\x02"))
	f.Add("application/json;;;=", bytes.Repeat([]byte("["), 1000))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		m := kumquat.Message{ContentType: contentType, Body: body}
		v, err := x.Decode(m)
		if err == nil {
			again, err := x.Encode(v, kumquat.Message{})
			there(t, err, nil)
			w, err := x.Decode(again)
			if there(t, err, nil); w != v {
				t.Fatalf("%+v became %+v", v, w)
			}
		} else if _, ok := errors.AsType[*kumquat.BodyError](err); !ok || len(err.Error()) > 2000+len(body) {
			t.Fatalf("%v", err)
		}
		if _, err := y.Decode(m); err != nil && !errors.Is(err, kumquat.ErrSchema) && !errors.Is(err, kumquat.ErrBody) {
			t.Fatalf("%v", err)
		}
	})
}

func BenchmarkTyped(b *testing.B) {
	q := typedQueue(b, "/typed-benchmark", kumquat.Options{MaxMessages: 10})
	x := newTyped(b, q, codec.JSON[order]{}, &kumquat.TypedOptions{Name: "shop.Order", Version: 1})
	b.ReportAllocs()
	for b.Loop() {
		if err := x.TrySend(order{"pear", 2}, kumquat.Message{}); err != nil {
			b.Fatal(err)
		}
		if _, err := x.TryReceive(); err != nil {
			b.Fatal(err)
		}
	}
}
