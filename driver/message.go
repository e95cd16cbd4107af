package driver

import "time"

// MaxPriority is the highest priority; there are 32,768, as Linux has for mq_send.
const MaxPriority = 32767

// Message is one message: what the sender gives and what the queue adds. A zero field means its default and costs nothing.
type Message struct {
	Body     []byte // the message itself; may be empty
	Priority int    // 0 … 32767, higher first, FIFO among equals
	Type     int64  // System V mtype, > 0; 0 on send means 1

	ID            string            // names the message; the queue does not interpret it
	Key           string            // messages of one key belong together, in order
	Group         string            // for fair service between groups
	CorrelationID string            // ties a reply to its request
	ReplyTo       string            // the queue that wants the reply
	ContentType   string            // media type of Body
	Headers       map[string]string // anything else; all metadata together is at most 4,000 bytes

	NotBefore time.Time // not delivered earlier (CLOCK_REALTIME); zero: at once
	Expires   time.Time // never delivered at or after this time; zero: never expires

	// Set by the queue, ignored on send.
	Enqueued time.Time // when it was sent, to some milliseconds
	Attempt  int       // failed deliveries before this one
	Sender   int       // process id of the sender, as the sender states it; 0: unknown
	Seq      uint64    // place in the one order of all sends to this queue; 0: the driver has none
	Taken    uint64    // place in the one order of all takes from this queue (claims and removals); 0: the driver has none, or not taken
}

// Filter selects messages. All fields that are set must match; the zero Filter matches every message.
type Filter struct {
	Type        int64  // > 0: this type only
	TypeAtMost  int64  // > 0: the lowest type ≤ this one, then priority, then FIFO (msgrcv(2) with a negative msgtyp)
	NotType     int64  // > 0: any type but this one (MSG_EXCEPT)
	MinPriority int    // > 0: this priority or higher
	Key         string // not empty: this key only
}

// Any reports whether f is the zero Filter.
func (f Filter) Any() bool { return f == Filter{} }

// Match reports whether m passes f.
func (f Filter) Match(m *Message) bool {
	t := m.Type
	if t == 0 {
		t = 1
	}
	return (f.Type == 0 || t == f.Type) && (f.TypeAtMost == 0 || t <= f.TypeAtMost) && (f.NotType == 0 || t != f.NotType) &&
		m.Priority >= f.MinPriority && (f.Key == "" || m.Key == f.Key)
}

// Valid reports whether f's fields are in their bounds.
func (f Filter) Valid() bool {
	return f.Type >= 0 && f.TypeAtMost >= 0 && f.NotType >= 0 && f.MinPriority >= 0 && f.MinPriority <= MaxPriority
}
