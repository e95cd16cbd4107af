package envelope

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// full is a message that has everything.
func full() driver.Message {
	return driver.Message{
		Body: []byte("body"), Priority: 7, Type: 3, ID: "i", Key: "k", Group: "g", CorrelationID: "c", ReplyTo: "/r", ContentType: "text/plain",
		Headers: map[string]string{"b": "2", "a": "1", "": ""}, NotBefore: time.Unix(1, 2), Expires: time.Unix(0, -1), Enqueued: time.Unix(1700000000, 5e6),
		Attempt: 2, Sender: 4711,
	}
}

// The bytes of docs/envelope.md, one by one: another program must be able to rely on them.
const (
	fullHex = "f54b5145" + "01" + "00" + "6900" + "04000000" + "0300000000000000" +
		"010100" + "69" + "020100" + "6b" + "030100" + "67" + "040100" + "63" + "050200" + "2f72" + "060a00" + "746578742f706c61696e" +
		"070200" + "0000" + "070400" + "0100" + "61" + "31" + "070400" + "0100" + "62" + "32" +
		"080200" + "0700" +
		"090800" + "02ca9a3b00000000" + "0a0800" + "ffffffffffffffff" + "0b0800" + "404b7636fe9c9717" +
		"0c0400" + "02000000" + "0d0400" + "67120000" +
		"626f6479"
	leastHex = "f54b5145" + "01" + "00" + "0000" + "00000000" + "0000000000000000"
)

func TestBytes(t *testing.T) {
	m := full()
	want, _ := hex.DecodeString(fullHex)
	if got, err := Append(nil, &m, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v, want\n%x", got, err, want)
	}
	if got, err := Append([]byte("x"), &driver.Message{}, 0); err != nil || hex.EncodeToString(got[1:]) != leastHex || got[0] != 'x' {
		t.Errorf("%x, %v", got, err)
	}
}

func TestRoundTrip(t *testing.T) {
	long := strings.Repeat("x", MaxNames-3)
	for name, m := range map[string]driver.Message{
		"full": full(), "least": {}, "body": {Body: bytes.Repeat([]byte{0xf5}, 70_000)}, "type": {Type: math.MaxInt64},
		"long": {ID: long, Priority: driver.MaxPriority, NotBefore: time.Unix(1, 0), Expires: time.Unix(0, 0), Enqueued: time.Unix(2, 0),
			Attempt: math.MaxInt32, Sender: math.MaxInt32, Type: 9, Body: []byte("b")},
		"times":   {NotBefore: time.Unix(0, math.MinInt64), Expires: time.Unix(0, math.MaxInt64)},
		"headers": {Headers: map[string]string{"k": long[5-3+1:]}}, "binary": {ID: "\x00\xff", Headers: map[string]string{"\n": "\x1b[2J"}},
	} {
		b, err := Append(nil, &m, 0)
		if err != nil || !Is(b) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if n := len(b) - len(m.Body); n > HeaderSize+MaxMeta || n > Overhead {
			t.Errorf("%s: the envelope takes %d bytes", name, n)
		}
		if name == "long" && len(b)-1 != HeaderSize+MaxMeta {
			t.Errorf("the longest envelope has %d bytes, MaxMeta is wrong", len(b)-1)
		}
		got, err := Parse(b)
		if len(m.Body) == 0 {
			m.Body, got.Body = nil, got.Body[:0:0]
			got.Body = nil
		}
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s:\n%+v, %v, want\n%+v", name, got, err, m)
		}
		// The body must not reach into what lies behind it.
		if cap(got.Body) != len(got.Body) {
			t.Errorf("%s: the body has room for %d bytes behind it", name, cap(got.Body)-len(got.Body))
		}
	}
}

// What the carrier has is not sent twice.
func TestCarrier(t *testing.T) {
	for has, want := range map[Carrier]driver.Message{
		0: {Priority: 5, Type: 6}, HasPriority: {Type: 6}, HasType: {Priority: 5}, HasPriority | HasType: {},
	} {
		b, err := Append(nil, &driver.Message{Priority: 5, Type: 6, Seq: 1, Taken: 2}, has)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := Parse(b); err != nil || m.Priority != want.Priority || m.Type != want.Type || m.Seq != 0 || m.Taken != 0 {
			t.Errorf("%d: %+v, %v", has, m, err)
		}
	}
}

// What does not fit is refused, and the buffer is as it was.
func TestRefused(t *testing.T) {
	long := strings.Repeat("x", MaxNames)
	many := map[string]string{}
	for i := range MaxNames {
		many[strings.Repeat("y", i%50)+string(rune('a'+i%26))+string(rune(0x4e00+i))] = ""
	}
	for name, c := range map[string]struct {
		m    driver.Message
		want error
	}{
		"id": {driver.Message{ID: long}, driver.ErrTooLarge}, "together": {driver.Message{ID: long[:2000], Key: long[:2000]}, driver.ErrTooLarge},
		"header": {driver.Message{Headers: map[string]string{"": long}}, driver.ErrTooLarge}, "headers": {driver.Message{Headers: many}, driver.ErrTooLarge},
		"very long": {driver.Message{ID: strings.Repeat(long, 20)}, driver.ErrTooLarge},
		"type":      {driver.Message{Type: -1}, driver.ErrInvalid}, "priority": {driver.Message{Priority: driver.MaxPriority + 1}, driver.ErrInvalid},
		"low": {driver.Message{Priority: -1}, driver.ErrInvalid}, "attempt": {driver.Message{Attempt: -1}, driver.ErrInvalid},
		"sender": {driver.Message{Sender: -1}, driver.ErrInvalid}, "late": {driver.Message{Expires: time.Date(2263, 1, 1, 0, 0, 0, 0, time.UTC)}, driver.ErrInvalid},
		"early": {driver.Message{NotBefore: time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC)}, driver.ErrInvalid},
	} {
		if b, err := Append([]byte("before"), &c.m, 0); !errors.Is(err, c.want) || string(b) != "before" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// Every envelope that lacks bytes, at whatever place, is refused as truncated, one with more as damaged, and so is every header
// that lies.
func TestUnreadable(t *testing.T) {
	m := full()
	good, err := Append(nil, &m, 0)
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		want, kind := ErrTruncated, driver.ErrCorrupt
		if n < len(magic) {
			want = ErrNone
		}
		_, err := Parse(good[:n])
		if e, ok := AsError(err); !ok || !errors.Is(err, want) || !errors.Is(err, kind) || len(e.Data) != n {
			t.Errorf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	change := func(at int, x ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], x)
		return b
	}
	field := func(fields ...byte) []byte {
		b, _ := Append(nil, &driver.Message{}, 0)
		b[offMeta] = byte(len(fields))
		return append(b, fields...)
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
		text string
	}{
		"nothing":         {nil, ErrNone, "not an envelope (0 bytes)"},
		"text":            {[]byte(`{"a":1}`), ErrNone, ""},
		"later":           {change(offVersion, 2), ErrVersion, "unknown version of envelope: 2, this program knows version 1"},
		"version 0":       {change(offVersion, 0), ErrVersion, ""},
		"later and short": {change(offVersion, 9)[:5], ErrVersion, ""},
		"flags":           {change(offFlags, 1), ErrDamaged, "flags 0x1"},
		"longer":          {append(bytes.Clone(good), 0), ErrDamaged, "there are more"},
		"meta":            {change(offMeta, 0xff, 0xff), ErrDamaged, "65535 bytes of metadata"},
		"body":            {change(offBody, 0xff, 0xff, 0xff, 0xff), ErrTruncated, "says 4294967420 bytes"},
		"type":            {change(offType, 0, 0, 0, 0, 0, 0, 0, 0x80), ErrDamaged, "the type -9223372036854775808"},
		"no length":       {field(1, 1), ErrDamaged, "ends before its length"},
		"long field":      {field(1, 2, 0, 'x'), ErrDamaged, "field 1 of the metadata says 2 bytes, 1 are left"},
		"twice":           {field(1, 1, 0, 'x', 1, 1, 0, 'x'), ErrDamaged, "field 1 of the metadata after field 1"},
		"order":           {field(2, 1, 0, 'x', 1, 1, 0, 'x'), ErrDamaged, "field 1 of the metadata after field 2"},
		"zero":            {field(0, 1, 0, 'x'), ErrDamaged, "field 0"},
		"unknown":         {field(14, 1, 0, 'x'), ErrDamaged, "unknown field 14"},
		"empty":           {field(1, 0, 0), ErrDamaged, "field 1 of the metadata is empty"},
		"key":             {field(7, 3, 0, 2, 0, 'x'), ErrDamaged, "shorter than its key"},
		"short header":    {field(7, 1, 0, 0), ErrDamaged, "shorter than its key"},
		"same header":     {field(7, 2, 0, 0, 0, 7, 2, 0, 0, 0), ErrDamaged, `the header "" after ""`},
		"priority size":   {field(8, 1, 0, 1), ErrDamaged, "field 8 of the metadata has 1 bytes, not 2"},
		"priority":        {field(8, 2, 0, 0, 0x80), ErrDamaged, "the priority 32768"},
		"priority 0":      {field(8, 2, 0, 0, 0), ErrDamaged, "the priority 0"},
		"attempt":         {field(12, 4, 0, 0, 0, 0, 0), ErrDamaged, "the attempt 0"},
		"sender":          {field(13, 4, 0, 0, 0, 0, 0x80), ErrDamaged, "the sender 2147483648"},
	} {
		_, err := Parse(c.b)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse(change(offVersion, 2)); !errors.Is(err, driver.ErrUnsupported) || errors.Is(err, driver.ErrCorrupt) {
		t.Errorf("a later version: %v", err)
	}
	// Fields that a reader may skip.
	if m, err := Parse(field(1, 1, 0, 'x', 128, 0, 0, 200, 2, 0, 1, 2, 200, 0, 0)); err != nil || m.ID != "x" {
		t.Errorf("optional fields: %+v, %v", m, err)
	}
	// More names than Append writes, though the length would do.
	over := driver.Message{ID: strings.Repeat("x", MaxNames-3)}
	b, _ := Append(nil, &over, 0)
	b = append(b, 7, 2, 0, 0, 0)
	binary.LittleEndian.PutUint16(b[offMeta:], uint16(len(b)-HeaderSize))
	if _, err := Parse(b); !errors.Is(err, ErrDamaged) {
		t.Errorf("too many names: %v", err)
	}
}

// Parse must neither panic nor allocate beyond the metadata, and what it accepts comes out of Append as it was.
func FuzzEnvelope(f *testing.F) {
	m := full()
	good, _ := Append(nil, &m, 0)
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			e, ok := AsError(err)
			if !ok || !bytes.Equal(e.Data, b) || !errors.Is(err, driver.ErrCorrupt) && !errors.Is(err, driver.ErrUnsupported) {
				t.Fatalf("%v", err)
			}
			return
		}
		again, err := Append(nil, &m, 0)
		if err != nil {
			t.Fatalf("%+v was accepted and cannot be written: %v", m, err)
		}
		if len(again) == len(b) && !bytes.Equal(again, b) || len(again) > len(b) {
			t.Fatalf("\n%x became\n%x", b, again)
		}
		if len(again) < len(b) { // only by optional fields
			if n, err := Parse(again); err != nil || !reflect.DeepEqual(m, n) {
				t.Fatalf("%+v, %v, want %+v", n, err, m)
			}
		}
	})
}

func BenchmarkEnvelope(b *testing.B) {
	for name, m := range map[string]driver.Message{
		"least": {Body: make([]byte, 64), Enqueued: time.Unix(1, 0), Sender: 1}, "full": full(),
	} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 0, 8192)
			b.ReportAllocs()
			for b.Loop() {
				e, err := Append(buf, &m, HasPriority)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := Parse(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
