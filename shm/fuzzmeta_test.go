package shm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/kumquat-mq/kumquat/driver"
)

// FuzzMeta takes any bytes for the metadata of a message. They are refused as damaged, or mean something that is written and read
// again the same.
func FuzzMeta(f *testing.F) {
	whole, err := encodeMeta(nil, &driver.Message{ID: "i", Key: "k", Group: "g", CorrelationID: "c", ReplyTo: "r", ContentType: "t",
		Headers: map[string]string{"": "", "a": "b", "a longer one": "\x00\xff"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	for n := range whole {
		if n%7 == 0 {
			f.Add(whole[:n])
		}
	}
	f.Add(whole)
	f.Add(append(append([]byte(nil), whole...), whole...))                   // everything twice
	f.Add([]byte{99, 2, 0, 1, 2, tagKey, 1, 0, 'k'})                         // an unknown tag first
	f.Add([]byte{tagHeader, 1, 0, 0})                                        // too short for a key's length
	f.Add([]byte{tagHeader, 3, 0, 2, 0, 'k'})                                // a key longer than its field
	f.Add([]byte{tagID, 255, 255, 1})                                        // a field longer than all
	f.Add([]byte{tagHeader, 3, 0, 1, 0, 'k', tagHeader, 4, 0, 1, 0, 'k', 0}) // a key twice
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		var m driver.Message
		err := decodeMeta(b, &m)
		key := findKey(b)
		if !bytes.Equal(b, before) {
			t.Fatal("reading has changed the bytes")
		}
		if key != nil && !bytes.Contains(b, key) {
			t.Errorf("the key %q is none of the bytes", key)
		}
		if err != nil {
			if !errors.Is(err, driver.ErrCorrupt) {
				t.Errorf("decode: %v", err)
			}
			return
		}
		again, err := encodeMeta(nil, &m)
		if len(b) <= metaMax && err != nil {
			t.Fatalf("what was read from %d bytes cannot be written: %v", len(b), err)
		}
		if err == nil {
			mustMean(t, again, &m)
		}
		if len(again) > len(b) {
			t.Errorf("%d bytes became %d", len(b), len(again))
		}
	})
}

// FuzzMetaFields takes any values for the metadata of a message: they come back, or are too long together.
func FuzzMetaFields(f *testing.F) {
	f.Add("", "", "", "", "", "", "", "", "", "", uint16(0))
	f.Add("id", "key", "group", "correlation", "reply to", "text/plain", "a", "b", "c", "d", uint16(0))
	f.Add("", "", "", "", "", "", "a", "1", "a", "2", uint16(1))
	f.Add("", "", "", "", "", "", "", "", "", "", uint16(metaMax-3)) // as long as may be
	f.Add("", "", "", "", "", "", "", "", "", "", uint16(metaMax-3+1))
	f.Add("", "k", "", "", "", "", "h", "", "i", "", uint16(metaMax-3-4-2*6))
	f.Add("", "k", "", "", "", "", "h", "", "i", "", uint16(metaMax-3-4-2*6+1))
	f.Add("", "", "", "", "", "", strings.Repeat("h", 300), "v", "i", strings.Repeat("v", 300), uint16(0))
	f.Add("", "k", "", "", "", "", "h", "", "i", "", uint16(65_535))
	f.Fuzz(func(t *testing.T, id, key, group, correlation, reply, content, k1, v1, k2, v2 string, stretch uint16) {
		id += strings.Repeat("x", int(stretch)) // long values that keep the inputs short
		m := driver.Message{ID: id, Key: key, Group: group, CorrelationID: correlation, ReplyTo: reply, ContentType: content,
			Headers: map[string]string{}}
		if k1+v1+k2+v2 != "" {
			m.Headers = map[string]string{k1: v1, k2: v2}
		}
		size := 0
		for _, s := range []string{id, key, group, correlation, reply, content} {
			if s != "" {
				size += 3 + len(s)
			}
		}
		for k, v := range m.Headers {
			size += 5 + len(k) + len(v)
		}
		front := []byte("front")
		b, err := encodeMeta(front, &m)
		if !bytes.HasPrefix(b, front) {
			t.Fatal("what was there before is gone")
		}
		if size > metaMax {
			if !errors.Is(err, driver.ErrTooLarge) || len(b) != len(front) {
				t.Errorf("%d bytes of metadata: %v, %d bytes written", size, err, len(b)-len(front))
			}
			return
		}
		if b = b[len(front):]; err != nil || len(b) != size {
			t.Fatalf("%d bytes of metadata: %v, %d bytes written", size, err, len(b))
		}
		mustMean(t, b, &m)
		unknown := binary.LittleEndian.AppendUint16([]byte{200}, uint16(len(id)))
		mustMean(t, append(append(append(unknown, id...), b...), append(unknown, id...)...), &m)
		// What is cut off in the middle of a field is no metadata; elsewhere the fields before the cut are left.
		for n := range min(len(b), 200) {
			if err := decodeMeta(b[:n], new(driver.Message)); err != nil && !errors.Is(err, driver.ErrCorrupt) {
				t.Errorf("cut to %d bytes: %v", n, err)
			}
		}
	})
}

// mustMean fails the test unless b is read as m's metadata.
func mustMean(t *testing.T, b []byte, m *driver.Message) {
	t.Helper()
	var got driver.Message
	if err := decodeMeta(b, &got); err != nil {
		t.Fatalf("decode: %v", err)
	}
	want := driver.Message{ID: m.ID, Key: m.Key, Group: m.Group, CorrelationID: m.CorrelationID, ReplyTo: m.ReplyTo, ContentType: m.ContentType,
		Headers: m.Headers}
	if len(got.Headers) == 0 && len(want.Headers) == 0 {
		got.Headers, want.Headers = nil, nil
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v became %+v", want, got)
	}
	if k := findKey(b); string(k) != m.Key {
		t.Errorf("filters see the key %q, receivers %q", k, m.Key)
	}
	if !hasMeta(m) && len(b) > 0 && b[0] < 100 {
		t.Errorf("%d bytes for no metadata", len(b))
	}
}
