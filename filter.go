package kumquat

import "github.com/kumquat-mq/kumquat/driver"

// Filter selects messages. All fields that are set must match; the zero Filter matches every message.
//
// Calls that take several filters want messages that match them all. Filters that no message can match together, and more than
// one Not, are ErrInvalid.
type Filter = driver.Filter

// Type selects messages of type n, first by priority, then FIFO. 0 means every type.
func Type(n int64) Filter { return Filter{Type: n} }

// TypeAtMost selects messages of the lowest type that is there and not above n, then by priority, then FIFO: what msgrcv(2) does
// with a negative type. 0 means every type, in the usual order.
func TypeAtMost(n int64) Filter { return Filter{TypeAtMost: n} }

// Not selects messages of any type but n (MSG_EXCEPT of msgrcv(2)). 0 means every type.
func Not(n int64) Filter { return Filter{NotType: n} }

// MinPriority selects messages of priority n or higher.
func MinPriority(n int) Filter { return Filter{MinPriority: n} }

// Key selects messages whose key is k. The empty string means every message.
func Key(k string) Filter { return Filter{Key: k} }

// merge makes one filter of fs.
func merge(fs []Filter) (Filter, error) {
	if len(fs) == 0 {
		return Filter{}, nil
	}
	return mergeSome(fs)
}

func mergeSome(fs []Filter) (Filter, error) {
	var m Filter
	for i := range fs {
		f := &fs[i]
		if !f.Valid() {
			return m, invalid("filter: types are not below 0, priorities are from 0 to %d", MaxPriority)
		}
		switch {
		case f.Type != 0 && m.Type != 0 && f.Type != m.Type:
			return m, invalid("filter: no message has both type %d and type %d", m.Type, f.Type)
		case f.Key != "" && m.Key != "" && f.Key != m.Key:
			return m, invalid("filter: no message has both key %q and key %q", m.Key, f.Key)
		case f.NotType != 0 && m.NotType != 0 && f.NotType != m.NotType:
			return m, invalid("filter: only one type can be left out, not both %d and %d", m.NotType, f.NotType)
		}
		m.Type = max(m.Type, f.Type)
		m.NotType = max(m.NotType, f.NotType)
		m.MinPriority = max(m.MinPriority, f.MinPriority)
		if m.TypeAtMost == 0 || f.TypeAtMost != 0 && f.TypeAtMost < m.TypeAtMost {
			m.TypeAtMost = f.TypeAtMost
		}
		if m.Key == "" {
			m.Key = f.Key
		}
	}
	switch {
	case m.Type != 0 && m.Type == m.NotType:
		return m, invalid("filter: type %d is both wanted and left out", m.Type)
	case m.TypeAtMost != 0 && m.Type > m.TypeAtMost:
		return m, invalid("filter: type %d is above the highest wanted, %d", m.Type, m.TypeAtMost)
	case m.TypeAtMost == 1 && m.NotType == 1:
		return m, invalid("filter: type 1 is the highest wanted and left out")
	}
	return m, nil
}
