package shm

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/kumquat-mq/kumquat/driver"
)

// Metadata is a sequence of fields: tag u8, length u16, bytes. A header is one field whose bytes are key length u16, key, value.
// Headers are written sorted by key, so that equal messages have equal bytes. A reader skips tags it does not know.
const (
	tagID            = 1
	tagKey           = 2
	tagGroup         = 3
	tagCorrelationID = 4
	tagReplyTo       = 5
	tagContentType   = 6
	tagHeader        = 7
)

func hasMeta(m *driver.Message) bool {
	return len(m.ID)|len(m.Key)|len(m.Group)|len(m.CorrelationID)|len(m.ReplyTo)|len(m.ContentType)|len(m.Headers) != 0
}

// encodeMeta appends m's metadata to b. ErrTooLarge if it has more than metaMax bytes.
func encodeMeta(b []byte, m *driver.Message) ([]byte, error) {
	start := len(b)
	over := func() ([]byte, error) {
		return b[:start], fmt.Errorf("the message's metadata has more than %d bytes: %w", metaMax, driver.ErrTooLarge)
	}
	for _, f := range [...]struct {
		tag byte
		s   string
	}{{tagID, m.ID}, {tagKey, m.Key}, {tagGroup, m.Group}, {tagCorrelationID, m.CorrelationID}, {tagReplyTo, m.ReplyTo}, {tagContentType, m.ContentType}} {
		if f.s == "" {
			continue
		}
		if len(b)-start+3+len(f.s) > metaMax {
			return over()
		}
		b = append(b, f.tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(f.s)))
		b = append(b, f.s...)
	}
	if len(m.Headers) == 0 {
		return b, nil
	}
	keys := make([]string, 0, len(m.Headers))
	for k := range m.Headers {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		v := m.Headers[k]
		if len(b)-start+5+len(k)+len(v) > metaMax {
			return over()
		}
		b = append(b, tagHeader)
		b = binary.LittleEndian.AppendUint16(b, uint16(2+len(k)+len(v)))
		b = binary.LittleEndian.AppendUint16(b, uint16(len(k)))
		b = append(b, k...)
		b = append(b, v...)
	}
	return b, nil
}

// decodeMeta sets m's fields from b. ErrCorrupt if b is not what encodeMeta writes (unknown tags apart).
func decodeMeta(b []byte, m *driver.Message) error {
	bad := fmt.Errorf("the metadata of a message is damaged: %w", driver.ErrCorrupt)
	for len(b) > 0 {
		if len(b) < 3 {
			return bad
		}
		tag, n := b[0], int(binary.LittleEndian.Uint16(b[1:]))
		if len(b) < 3+n {
			return bad
		}
		f := b[3 : 3+n]
		b = b[3+n:]
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
		case tagHeader:
			if n < 2 {
				return bad
			}
			k := 2 + int(binary.LittleEndian.Uint16(f))
			if k > n {
				return bad
			}
			if m.Headers == nil {
				m.Headers = map[string]string{}
			}
			m.Headers[string(f[2:k])] = string(f[k:])
		}
	}
	return nil
}

// findKey returns the Key of metadata b without allocating.
func findKey(b []byte) []byte {
	for len(b) >= 3 {
		n := int(binary.LittleEndian.Uint16(b[1:]))
		if len(b) < 3+n {
			return nil
		}
		if b[0] == tagKey {
			return b[3 : 3+n]
		}
		b = b[3+n:]
	}
	return nil
}
