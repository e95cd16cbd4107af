// Package envelope is the format in which a message travels with its metadata where the carrier knows bare bodies only: on the
// kernel's queues (Options.Envelope), in files, over sockets. docs/envelope.md specifies every byte. It knows no queue and no codec.
//
// An envelope says its version, the message's type and the lengths of what follows, then has the metadata and the body:
//
//	b, err := envelope.Append(nil, &m, envelope.HasPriority) // the carrier keeps the priority itself
//	…
//	if envelope.Is(b) {
//		m, err = envelope.Parse(b) // m.Body lies in b
//	}
//
// What Parse accepts is canonical: Append of the parsed message gives the same bytes again, optional fields of later writers apart.
// It checks all lengths before it looks at what they measure, allocates no more than the metadata's 4,052 bytes need, and never
// panics. An envelope is as trustworthy as its writer: there is no signature in it.
package envelope

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// Version is the only version there is. A reader refuses every other.
const Version = 1

// Sizes in bytes.
const (
	HeaderSize = 20   // what every envelope begins with
	MaxNames   = 4000 // of ID, Key, Group, CorrelationID, ReplyTo, ContentType and Headers, with 3 for each and 5 for a header, as the engine has it
	MaxMeta    = 4052 // of all metadata: MaxNames and the fields of fixed size
	Overhead   = 4096 // what a carrier sets aside for any envelope: HeaderSize + MaxMeta, rounded up
	MaxBody    = 1<<32 - 1
)

// The header.
const (
	offVersion = 4  // u8
	offFlags   = 5  // u8, 0
	offMeta    = 6  // u16: bytes of metadata
	offBody    = 8  // u32: bytes of body
	offType    = 12 // i64: Message.Type; 0: the carrier has it
)

// magic begins with a byte that no UTF-8 text has, so that no text, JSON or XML body is taken for an envelope.
var magic = [4]byte{0xf5, 'K', 'Q', 'E'}

// The tags of metadata, in the order in which they are written. Those up to 7 are the engine's. A reader must know the tags below
// optional and skips those it does not know from there on.
const (
	tagID            = 1
	tagKey           = 2
	tagGroup         = 3
	tagCorrelationID = 4
	tagReplyTo       = 5
	tagContentType   = 6
	tagHeader        = 7 // any number, by ascending key
	tagPriority      = 8
	tagNotBefore     = 9
	tagExpires       = 10
	tagEnqueued      = 11
	tagAttempt       = 12
	tagSender        = 13

	optional = 128
)

// Carrier says what the carrier transports by itself, which the envelope then leaves out.
type Carrier uint8

// What a carrier may have.
const (
	HasPriority Carrier = 1 << iota // Message.Priority: POSIX queues
	HasType                         // Message.Type: System V queues
)

// What can be wrong with an envelope. Parse's errors are of type *Error and wrap one of these, each of which wraps ErrCorrupt or
// ErrUnsupported of package driver.
var (
	ErrNone      error = &sentinel{"not an envelope", driver.ErrCorrupt}                 // it does not begin as one
	ErrVersion   error = &sentinel{"unknown version of envelope", driver.ErrUnsupported} // written by a later program
	ErrTruncated error = &sentinel{"truncated envelope", driver.ErrCorrupt}              // bytes are missing at its end
	ErrDamaged   error = &sentinel{"damaged envelope", driver.ErrCorrupt}                // it contradicts itself
)

type sentinel struct {
	text string
	kind error
}

func (s *sentinel) Error() string { return s.text }
func (s *sentinel) Unwrap() error { return s.kind }

// Error is what Parse returns.
type Error struct {
	Err  error  // wraps ErrNone, ErrVersion, ErrTruncated or ErrDamaged, with the particulars
	Data []byte // the whole of what was given to Parse; drivers, which have taken the message out of the queue, put a copy here
}

// Error returns what is wrong and how long the data is.
func (e *Error) Error() string { return e.Err.Error() + " (" + strconv.Itoa(len(e.Data)) + " bytes)" }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether b begins as an envelope does. It may be one of a later version, or damaged: Parse tells.
func Is(b []byte) bool { return len(b) >= len(magic) && [4]byte(b) == magic }

// Append appends m in an envelope to b. What the carrier has is left out, and so are the fields that are zero; Seq and Taken belong
// to one queue and do not travel. If it fails it returns b as it was.
//
// Errors: ErrTooLarge (metadata beyond MaxNames, a body beyond MaxBody), ErrInvalid (a Type below 0, a Priority, Attempt or Sender out
// of bounds, a time before 1678 or after 2262).
func Append(b []byte, m *driver.Message, has Carrier) ([]byte, error) {
	start := len(b)
	if uint64(len(m.Body)) > MaxBody {
		return b, fmt.Errorf("%w: a body of %d bytes, an envelope holds %d", driver.ErrTooLarge, len(m.Body), int64(MaxBody))
	}
	if uint(m.Priority) > driver.MaxPriority || m.Type < 0 || uint64(m.Attempt) > math.MaxInt32 ||
		uint64(m.Sender) > math.MaxInt32 {
		return b, fmt.Errorf("%w: priority %d, type %d, attempt %d or sender %d is out of its bounds", driver.ErrInvalid, m.Priority, m.Type, m.Attempt, m.Sender)
	}
	var header [HeaderSize]byte
	copy(header[:], magic[:])
	header[offVersion] = Version
	binary.LittleEndian.PutUint32(header[offBody:], uint32(len(m.Body)))
	if has&HasType == 0 {
		binary.LittleEndian.PutUint64(header[offType:], uint64(m.Type))
	}
	b = append(b, header[:]...)
	b, err := appendNames(b, m)
	if err == nil && has&HasPriority == 0 && m.Priority > 0 {
		b = appendField(b, tagPriority, 2, uint64(m.Priority))
	}
	for _, f := range [...]struct {
		tag byte
		t   time.Time
	}{{tagNotBefore, m.NotBefore}, {tagExpires, m.Expires}, {tagEnqueued, m.Enqueued}} {
		if err != nil || f.t.IsZero() {
			continue
		}
		n := f.t.UnixNano()
		if !time.Unix(0, n).Equal(f.t) {
			err = fmt.Errorf("%w: %v does not fit into 64 bits of nanoseconds since 1970", driver.ErrInvalid, f.t)
			continue
		}
		b = appendField(b, f.tag, 8, uint64(n))
	}
	if err != nil {
		return b[:start], err
	}
	if m.Attempt > 0 {
		b = appendField(b, tagAttempt, 4, uint64(m.Attempt))
	}
	if m.Sender > 0 {
		b = appendField(b, tagSender, 4, uint64(m.Sender))
	}
	binary.LittleEndian.PutUint16(b[start+offMeta:], uint16(len(b)-start-HeaderSize))
	return append(b, m.Body...), nil
}

// appendField appends a number of size bytes, which n fits into.
func appendField(b []byte, tag byte, size int, n uint64) []byte {
	b = append(b, tag, byte(size), 0)
	b = binary.LittleEndian.AppendUint64(b, n)
	return b[:len(b)-8+size]
}

// appendNames appends the fields that are texts.
func appendNames(b []byte, m *driver.Message) ([]byte, error) {
	room := MaxNames
	take := func(n int) bool { room -= n; return room >= 0 }
	for _, f := range [...]struct {
		tag byte
		s   string
	}{{tagID, m.ID}, {tagKey, m.Key}, {tagGroup, m.Group}, {tagCorrelationID, m.CorrelationID}, {tagReplyTo, m.ReplyTo}, {tagContentType, m.ContentType}} {
		if f.s == "" {
			continue
		}
		if !take(3 + len(f.s)) {
			return b, errMeta
		}
		b = append(b, f.tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(f.s)))
		b = append(b, f.s...)
	}
	if len(m.Headers) == 0 {
		return b, nil
	}
	if len(m.Headers) > MaxNames/5 {
		return b, errMeta
	}
	var few [16]string // on the stack
	keys := few[:0]
	for k := range m.Headers {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		v := m.Headers[k]
		if !take(5 + len(k) + len(v)) {
			return b, errMeta
		}
		b = append(b, tagHeader)
		b = binary.LittleEndian.AppendUint16(b, uint16(2+len(k)+len(v)))
		b = binary.LittleEndian.AppendUint16(b, uint16(len(k)))
		b = append(b, k...)
		b = append(b, v...)
	}
	return b, nil
}

var errMeta = fmt.Errorf("%w: the message's metadata has more than %d bytes", driver.ErrTooLarge, MaxNames)

// Parse takes an envelope apart. The message's Body lies in b; everything else is copied. Type and Priority are 0 if the carrier has
// them. The error is an *Error whose Data is b.
func Parse(b []byte) (driver.Message, error) {
	var m driver.Message
	if err := parse(b, &m); err != nil {
		return driver.Message{}, &Error{err, b}
	}
	return m, nil
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

func parse(b []byte, m *driver.Message) error {
	// Magic and version come first and in every version, so that an envelope of a later one is told from a damaged one.
	switch {
	case !Is(b):
		return ErrNone
	case len(b) <= offVersion:
		return fmt.Errorf("%w: it ends before its version", ErrTruncated)
	case b[offVersion] != Version:
		return fmt.Errorf("%w: %d, this program knows version %d", ErrVersion, b[offVersion], Version)
	case len(b) < HeaderSize:
		return fmt.Errorf("%w: %d bytes of a header of %d", ErrTruncated, len(b), HeaderSize)
	case b[offFlags] != 0:
		return damaged("flags %#x, version %d has none", b[offFlags], Version)
	}
	meta, body := int(binary.LittleEndian.Uint16(b[offMeta:])), int64(binary.LittleEndian.Uint32(b[offBody:]))
	m.Type = int64(binary.LittleEndian.Uint64(b[offType:]))
	switch have, want := int64(len(b)), HeaderSize+int64(meta)+body; {
	case meta > MaxMeta:
		return damaged("%d bytes of metadata, the most is %d", meta, MaxMeta)
	case have < want:
		return fmt.Errorf("%w: its header says %d bytes", ErrTruncated, want)
	case have > want:
		return damaged("its header says %d bytes, there are more", want)
	case m.Type < 0:
		return damaged("the type %d", m.Type)
	}
	m.Body = b[HeaderSize+meta : len(b) : len(b)]
	return parseMeta(b[HeaderSize:HeaderSize+meta], m)
}

func parseMeta(b []byte, m *driver.Message) error {
	var last byte
	var lastKey string
	names := 0
	for at := 0; at < len(b); {
		if len(b)-at < 3 {
			return damaged("a field of the metadata at %d ends before its length", at)
		}
		tag, n := b[at], int(binary.LittleEndian.Uint16(b[at+1:]))
		if len(b)-at-3 < n {
			return damaged("field %d of the metadata says %d bytes, %d are left", tag, n, len(b)-at-3)
		}
		f := b[at+3 : at+3+n]
		if tag == 0 || tag < last || tag == last && tag != tagHeader && tag < optional {
			return damaged("field %d of the metadata after field %d", tag, last)
		}
		if tag <= tagHeader {
			names += 3 + n
			if n == 0 {
				return damaged("field %d of the metadata is empty", tag)
			}
		}
		if tag == tagHeader {
			k, v, err := parseHeader(f)
			switch {
			case err != nil:
				return err
			case last == tagHeader && k <= lastKey:
				return damaged("the header %q after %q", k, lastKey)
			case m.Headers == nil:
				m.Headers = map[string]string{}
			}
			m.Headers[k] = v
			lastKey = k
		} else if err := parseField(tag, f, m); err != nil {
			return err
		}
		last = tag
		at += 3 + n
	}
	if names > MaxNames {
		return damaged("%d bytes of names and headers, the most is %d", names, MaxNames)
	}
	return nil
}

func parseHeader(f []byte) (k, v string, err error) {
	if len(f) < 2 || len(f)-2 < int(binary.LittleEndian.Uint16(f)) {
		return "", "", damaged("a header is shorter than its key")
	}
	n := 2 + int(binary.LittleEndian.Uint16(f))
	return string(f[2:n]), string(f[n:]), nil
}

// sizes are those of the fields that are numbers.
var sizes = [...]int{tagPriority: 2, tagNotBefore: 8, tagExpires: 8, tagEnqueued: 8, tagAttempt: 4, tagSender: 4}

func parseField(tag byte, f []byte, m *driver.Message) error {
	var n uint64
	if tag >= tagPriority && tag <= tagSender {
		if len(f) != sizes[tag] {
			return damaged("field %d of the metadata has %d bytes, not %d", tag, len(f), sizes[tag])
		}
		for i, x := range f {
			n |= uint64(x) << (8 * i)
		}
	}
	switch tag {
	case tagID:
		m.ID = string(f)
	case tagKey:
		m.Key = string(f)
	case tagGroup:
		m.Group = string(f)
	case tagCorrelationID:
		m.CorrelationID = string(f)
	case tagReplyTo:
		m.ReplyTo = string(f)
	case tagContentType:
		m.ContentType = string(f)
	case tagPriority:
		if m.Priority = int(n); n == 0 || n > driver.MaxPriority {
			return damaged("the priority %d", n)
		}
	case tagNotBefore:
		m.NotBefore = time.Unix(0, int64(n))
	case tagExpires:
		m.Expires = time.Unix(0, int64(n))
	case tagEnqueued:
		m.Enqueued = time.Unix(0, int64(n))
	case tagAttempt:
		if m.Attempt = int(n); n == 0 || n > math.MaxInt32 {
			return damaged("the attempt %d", n)
		}
	case tagSender:
		if m.Sender = int(n); n == 0 || n > math.MaxInt32 {
			return damaged("the sender %d", n)
		}
	default:
		if tag < optional {
			return damaged("the unknown field %d of the metadata", tag)
		}
	}
	return nil
}

// AsError returns the *Error in err's tree: what a driver that had already taken the message out of the queue could not read, and the
// bytes of it.
func AsError(err error) (*Error, bool) { return errors.AsType[*Error](err) }
