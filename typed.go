package kumquat

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"mime"
	"strconv"
	"strings"
	"sync"
)

// Codec turns values into bodies and back. Package codec has those for JSON and raw bytes, codec/protobuf the one for Protobuf. Its
// methods may be called from many goroutines at once.
//
// A codec that also has a method SchemaName() string gives typed queues their schema's name where the options give none.
type Codec[T any] interface {
	// ContentType is the media type of the bodies, without parameters.
	ContentType() string
	// Append appends v's body to b.
	Append(b []byte, v T) ([]byte, error)
	// Decode reads a whole body. The value may keep parts of it. It must not panic, whatever the body is.
	Decode(body []byte) (T, error)
}

// Schema says what a body is. It travels in Message.ContentType, the name and version as parameters of the media type:
//
//	application/json; schema=shop.Order; version=2
type Schema struct {
	ContentType string // the media type alone, in lower case
	Name        string // of the type of the values, for all programs the same; empty: not said
	Version     int    // 1, 2, …; 0: not said
}

// String returns the schema as Message.ContentType has it.
func (s Schema) String() string {
	p := map[string]string{}
	if s.Name != "" {
		p["schema"] = s.Name
	}
	if s.Version != 0 {
		p["version"] = strconv.Itoa(s.Version)
	}
	if t := mime.FormatMediaType(s.ContentType, p); t != "" {
		return t
	}
	return s.ContentType
}

// ParseSchema reads a Message.ContentType. Other parameters than schema and version are passed over. ErrInvalid if it is no media
// type, or its version no number from 1 on.
func ParseSchema(contentType string) (Schema, error) {
	if contentType == "" {
		return Schema{}, nil
	}
	t, p, err := mime.ParseMediaType(contentType)
	if err != nil {
		return Schema{}, invalid("%q is not a media type: %v", short(contentType), err)
	}
	s := Schema{ContentType: t, Name: p["schema"]}
	if v, there := p["version"]; there {
		if s.Version, err = strconv.Atoi(v); err != nil || s.Version < 1 {
			return Schema{}, invalid("%q: the version is not a number from 1 on", short(contentType))
		}
	}
	return s, nil
}

// short cuts what a peer wrote to a length that an error's text can bear.
func short(s string) string {
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// DefaultTypedSize is the longest body, in bytes, that a typed queue encodes and decodes if its options say nothing: 16 MiB.
const DefaultTypedSize = 16 << 20

// TypedOptions says what a typed queue sends and accepts. The zero value, and nil, take the codec's content type and name, no
// version, and bodies up to DefaultTypedSize.
type TypedOptions struct {
	Name    string // of the schema; empty: the codec's, if it has one. Without a name only content types are compared
	Version int    // of the schema as T has it, from 1 on; 0: none, and none is looked at
	Oldest  int    // the oldest version that T can still read; 0: Version alone
	MaxSize int    // bytes of a body, looked at before it is decoded, and before it is sent; 0: DefaultTypedSize
	// Bare takes bodies that say no ContentType, as C programs send them, on trust. On queues without metadata, which need it, nothing
	// is said on sending either.
	Bare bool
}

// The errors of typed queues, beside those of Queue. They come as a *BodyError.
var (
	ErrSchema = errors.New("body of another schema") // of another content type, name or version than the queue is for
	ErrBody   = errors.New("unreadable body")        // the schema is right, and the codec refuses the body all the same
)

// BodyError tells of a message that was taken and whose body is no T.
type BodyError struct {
	Message Message // the message, so that it can be kept or sent elsewhere
	Got     string  // its ContentType
	Want    Schema
	Err     error // wraps ErrSchema, ErrBody or ErrTooLarge
}

// Error returns what is wrong with the body.
func (e *BodyError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *BodyError) Unwrap() error { return e.Err }

// Typed is a queue of values of one type. It does what a Queue does and is as safe for many goroutines.
type Typed[T any] struct {
	q      *Queue
	codec  Codec[T]
	want   Schema
	label  string // want as it travels; empty: the queue has no metadata
	oldest int
	max    int
	bare   bool
}

// TypedMessage is a message with its body decoded.
type TypedMessage[T any] struct {
	Message
	Value T
}

// NewTyped returns q as a queue of values of type T.
//
//	orders, err := kumquat.NewTyped(q, codec.JSON[Order]{}, &kumquat.TypedOptions{Name: "shop.Order", Version: 2, Oldest: 1})
//
// It shares q: closing stays with it, and its other calls can be used beside those of the Typed.
//
// Errors: ErrInvalid (no queue, no codec, options), ErrUnsupported (the queue carries no metadata, and so no schema: open it with
// Options.Envelope, or set Bare).
func NewTyped[T any](q *Queue, c Codec[T], o *TypedOptions) (*Typed[T], error) {
	const op = "typed"
	if o == nil {
		o = &TypedOptions{}
	}
	switch {
	case q == nil:
		return nil, &Error{Op: op, Err: invalid("the queue is nil")}
	case c == nil:
		return nil, q.fail(op, invalid("the codec is nil"))
	case o.Version < 0 || o.Oldest < 0 || o.Oldest > o.Version:
		return nil, q.fail(op, invalid("versions from %d to %d", o.Oldest, o.Version))
	case o.MaxSize < 0:
		return nil, q.fail(op, invalid("MaxSize %d is below 0", o.MaxSize))
	case !o.Bare && !q.Can(Metadata):
		return nil, q.fail(op, fmt.Errorf("%w: the driver of %q queues carries no metadata, and so no schema; open the queue with Options.Envelope, "+
			"or set TypedOptions.Bare", ErrUnsupported, q.scheme))
	}
	t := &Typed[T]{q: q, codec: c, want: Schema{ContentType: c.ContentType(), Name: o.Name, Version: o.Version}, oldest: o.Oldest, max: o.MaxSize, bare: o.Bare}
	if named, ok := c.(interface{ SchemaName() string }); ok && t.want.Name == "" {
		t.want.Name = named.SchemaName()
	}
	if t.oldest == 0 {
		t.oldest = o.Version
	}
	if t.max == 0 {
		t.max = DefaultTypedSize
	}
	label := t.want.String()
	if back, err := ParseSchema(label); err != nil || back != t.want {
		return nil, q.fail(op, invalid("%q with the schema %q is no media type in lower case", t.want.ContentType, t.want.Name))
	}
	if q.Can(Metadata) {
		t.label = label
	}
	return t, nil
}

// Queue returns the queue below.
func (t *Typed[T]) Queue() *Queue { return t.q }

// Schema returns what is sent, and what is expected.
func (t *Typed[T]) Schema() Schema { return t.want }

// Encode returns m with v as its Body and the schema as its ContentType. Send it by any call of Queue: in a batch, for instance.
//
// Errors: ErrTooLarge (beyond MaxSize), what the codec returns.
func (t *Typed[T]) Encode(v T, m Message) (Message, error) {
	var err error
	if m.Body, err = t.append(nil, v); err != nil {
		return Message{}, t.q.fail("encode", err)
	}
	m.ContentType = t.label
	return m, nil
}

func (t *Typed[T]) append(b []byte, v T) ([]byte, error) {
	b, err := t.codec.Append(b, v)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", t.want, err)
	}
	if len(b) > t.max {
		return nil, fmt.Errorf("%w: a body of %d bytes, the typed queue's MaxSize is %d", ErrTooLarge, len(b), t.max)
	}
	return b, nil
}

// Decode reads a message that came by any call of Queue: from a batch, a lease, Peek. The schema and the size are looked at before the
// body is.
//
// Errors: ErrSchema, ErrTooLarge, ErrBody, each in a *BodyError.
func (t *Typed[T]) Decode(m Message) (v T, err error) {
	fail := func(err error) (T, error) {
		var zero T
		return zero, t.q.fail("decode", &BodyError{Message: m, Got: m.ContentType, Want: t.want, Err: err})
	}
	if m.ContentType != t.label || t.label == "" {
		if err := t.check(m.ContentType); err != nil {
			return fail(err)
		}
	}
	if len(m.Body) > t.max {
		return fail(fmt.Errorf("%w: a body of %d bytes, the typed queue's MaxSize is %d", ErrTooLarge, len(m.Body), t.max))
	}
	if v, err = t.codec.Decode(m.Body); err != nil {
		return fail(fmt.Errorf("%w: %v: %w", ErrBody, t.want, err))
	}
	return v, nil
}

// check compares what a message says of its body with what is wanted.
func (t *Typed[T]) check(contentType string) error {
	mismatch := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format+"; wanted is %v", append(append([]any{ErrSchema}, args...), t.want)...)
	}
	if contentType == "" {
		if t.bare {
			return nil
		}
		return mismatch("the message says no content type")
	}
	got, err := ParseSchema(contentType)
	switch {
	case err != nil:
		return mismatch("%v", err)
	case got.ContentType != t.want.ContentType:
		return mismatch("content type %s", short(got.ContentType))
	case t.want.Name != "" && got.Name == "":
		return mismatch("no schema is said")
	case t.want.Name != "" && got.Name != t.want.Name:
		return mismatch("schema %q", short(got.Name))
	case t.want.Version == 0:
		return nil
	case got.Version == 0:
		return mismatch("no version is said")
	case got.Version < t.oldest || got.Version > t.want.Version:
		return mismatch("version %d of %q, readable are %d to %d", got.Version, short(got.Name), t.oldest, t.want.Version)
	}
	return nil
}

// Send sends v. The other fields of the message are those of m, but for Body and ContentType.
//
// Errors: those of Encode and of Queue.Send.
func (t *Typed[T]) Send(ctx context.Context, v T, m Message) error {
	return t.send(v, &m, func() error { return t.q.Send(ctx, m) })
}

// TrySend is Send that never waits: it returns ErrFull.
func (t *Typed[T]) TrySend(v T, m Message) error {
	return t.send(v, &m, func() error { return t.q.TrySend(m) })
}

// bodies are used for sends, of which the queue keeps nothing. Very long ones are not kept.
var bodies = sync.Pool{New: func() any { return new([]byte) }}

func (t *Typed[T]) send(v T, m *Message, send func() error) error {
	p := bodies.Get().(*[]byte)
	b, err := t.append((*p)[:0], v)
	if err != nil {
		bodies.Put(p)
		return t.q.fail("send", err)
	}
	m.Body, m.ContentType = b, t.label
	err = send()
	if *p = b; cap(b) <= 1<<20 {
		bodies.Put(p)
	}
	return err
}

// Receive takes the first message that matches all filters and decodes it. A message that is no T has been taken all the same: it is in
// the *BodyError.
//
// Errors: those of Queue.Receive and of Decode.
func (t *Typed[T]) Receive(ctx context.Context, filters ...Filter) (TypedMessage[T], error) {
	return t.received(t.q.Receive(ctx, filters...))
}

// TryReceive is Receive that never waits: it returns ErrEmpty.
func (t *Typed[T]) TryReceive(filters ...Filter) (TypedMessage[T], error) {
	return t.received(t.q.TryReceive(filters...))
}

func (t *Typed[T]) received(m Message, err error) (TypedMessage[T], error) {
	if err != nil {
		return TypedMessage[T]{}, err
	}
	v, err := t.Decode(m)
	if err != nil {
		return TypedMessage[T]{}, err
	}
	return TypedMessage[T]{m, v}, nil
}

// Messages receives for ever, as Queue.Messages does. A message that is no T is yielded as its *BodyError, and the loop goes on; any
// other error ends it.
func (t *Typed[T]) Messages(ctx context.Context, filters ...Filter) iter.Seq2[TypedMessage[T], error] {
	return func(yield func(TypedMessage[T], error) bool) {
		for {
			m, err := t.Receive(ctx, filters...)
			if !yield(m, err) {
				return
			}
			if _, unreadable := errors.AsType[*BodyError](err); err != nil && !unreadable {
				return
			}
		}
	}
}
