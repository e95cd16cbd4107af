package differ

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"

	"github.com/kumquat-mq/kumquat"
)

// The processes that take part, the calls that each may have under way at once, and the handles that each may have open.
const (
	procs = 3
	lanes = 2
	slots = 3
)

// pair is a kind of kernel queue beside the engine, and what the programs for it are made of.
type pair struct {
	name     string
	scheme   string // of the kernel's queue
	prios    []int
	types    []int64
	filters  []kumquat.Filter
	shapes   []shape
	modes    []uint32
	refused  []string // what the kernel's queue cannot do: see refusals
	envelope bool     // Options.Envelope, on both sides
	usual    int      // programs in make test
	into     bool     // ReceiveInto takes a buffer shorter than MaxSize
	revoking bool     // Remove ends open handles
	counted  bool     // processes count messages only if they opened the queue with its numbers (System V)
}

// shape is what a queue is made with.
type shape struct{ Max, Size int }

var pairs = []*pair{
	{
		name: "posix", scheme: "posix:/", usual: 900, prios: []int{0, 0, 1, 5, 31, 32766, 32767}, types: []int64{0, 0, 0, 1}, filters: []kumquat.Filter{{}},
		shapes: []shape{{1, 1}, {1, 8}, {2, 100}, {3, 8}, {5, 8192}, {10, 60}, {10, 2000}},
		modes:  []uint32{0, 0o600, 0o600, 0o666, 0o666, 0o666, 0o644, 0o622, 0o400, 0o200},
		refused: []string{"filter", "type", "metadata", "delay", "expiry", "batch", "peek", "reserve", "borrow", "short buffer", "drop", "headroom", "durable", "watch", "who",
			"priority filter"},
	},
	{
		// Its modes give the owner both rights: System V looks at each call, so that who made a queue may have no right to use it.
		name: "sysv", scheme: "sysv:", usual: 900, prios: []int{0}, types: []int64{0, 1, 1, 2, 3, 7, 1 << 40, 1<<63 - 1},
		filters: []kumquat.Filter{{}, {}, {}, {Type: 1}, {Type: 2}, {Type: 3}, {Type: 1 << 40}, {TypeAtMost: 1}, {TypeAtMost: 2}, {TypeAtMost: 6},
			{TypeAtMost: 1<<63 - 1}, {NotType: 1}, {NotType: 2}, {NotType: 7}, {TypeAtMost: 7, NotType: 7}, {Type: 2, TypeAtMost: 3}, {Type: 2, NotType: 3}},
		shapes: []shape{{1, 1}, {1, 8}, {2, 100}, {3, 8}, {2, 8192}, {10, 60}, {30, 11}},
		modes:  []uint32{0, 0o600, 0o666, 0o666, 0o666, 0o644, 0o622},
		refused: []string{"priority", "priority filter", "metadata", "delay", "expiry", "batch", "reserve", "borrow", "check", "drop", "headroom", "durable",
			"watch", "who", "notify", "hole"},
		into: true, revoking: true, counted: true,
	},
	{
		name: "sysv+priority", scheme: "sysv+priority:", usual: 400, prios: []int{0, 0, 1, 5, 31, 32766, 32767}, types: []int64{0, 0, 0, 1},
		filters: []kumquat.Filter{{}, {}, {}, {MinPriority: 1}, {MinPriority: 6}, {MinPriority: 32767}},
		shapes:  []shape{{1, 1}, {1, 8}, {2, 100}, {3, 8}, {2, 8192}, {10, 60}, {30, 11}},
		modes:   []uint32{0, 0o600, 0o666, 0o666, 0o666, 0o644, 0o622},
		refused: []string{"type", "filter", "metadata", "delay", "expiry", "batch", "reserve", "borrow", "check", "drop", "headroom", "durable", "watch",
			"who", "notify"},
		into: true, revoking: true, counted: true,
	},
	{
		name: "posix+envelope", scheme: "posix:/", usual: 400, prios: []int{0, 0, 1, 5, 31, 32766, 32767}, types: []int64{0, 1, 2, 7, 1<<63 - 1},
		filters:  []kumquat.Filter{{}},
		shapes:   []shape{{1, 1}, {1, 8}, {2, 100}, {3, 8}, {4, 60}, {3, 4000}},
		modes:    []uint32{0, 0o600, 0o666, 0o666, 0o644, 0o400, 0o200},
		refused:  []string{"filter", "delay", "expiry", "batch", "peek", "reserve", "borrow", "check", "drop", "headroom", "durable", "watch", "who", "priority filter"},
		envelope: true,
	},
	{
		name: "sysv+envelope", scheme: "sysv:", usual: 300, prios: []int{0}, types: []int64{0, 1, 1, 2, 3, 7, 1 << 40, 1<<63 - 1},
		filters: []kumquat.Filter{{}, {}, {Type: 1}, {Type: 2}, {TypeAtMost: 2}, {TypeAtMost: 6}, {NotType: 1}, {NotType: 7}, {Type: 2, NotType: 3}},
		shapes:  []shape{{1, 1}, {1, 8}, {2, 100}, {3, 8}, {2, 2000}, {3, 1000}},
		modes:   []uint32{0, 0o600, 0o666, 0o666, 0o644},
		refused: []string{"priority", "priority filter", "delay", "expiry", "batch", "reserve", "borrow", "check", "drop", "headroom", "durable", "watch", "who",
			"notify", "hole"},
		envelope: true, revoking: true, counted: true,
	},
}

// large is the pair with queues that the kernel's default limits do not allow.
func (p *pair) large() *pair {
	x := *p
	x.shapes = []shape{{11, 8192}, {40, 1500}, {3, 30_000}, {60, 20}}
	return &x
}

// The kinds of operations.
const (
	opOpen    = "open"
	opClose   = "close"
	opSend    = "send"
	opBytes   = "send bytes"
	opReceive = "receive"
	opInto    = "receive into"
	opBatch   = "receive batch"
	opPurge   = "purge"
	opStat    = "stat"
	opPeek    = "peek"
	opRemove  = "remove"
	opList    = "list"
	opCancel  = "cancel" // the call that waits in this lane
	opRefused = "refused"
	opRushOut = "rush to receive" // many wait to receive, fewer messages are sent
	opRushIn  = "rush to send"    // many wait to send, fewer places become free

	// Beside programs: calls of packages posix and sysv.
	opTimedReceive = "mq_timedreceive"
	opTimedSend    = "mq_timedsend"
	opWriteOnly    = "open to send only, and send"
	opFD           = "fd, and receive, which arms it"
)

// wait says what a send or a receive does when it cannot go on.
type wait uint8

const (
	waitTry      wait = iota // the call that never waits
	waitPast                 // its deadline is past
	waitCanceled             // its context is cancelled
	waitShort                // a deadline after some milliseconds, which passes
	waitBlock                // until another operation helps, or cancels it, or its deadline of minutes
)

var waitNames = [...]string{"try", "deadline past", "cancelled", "deadline soon", "wait"}

// op is an operation of a program. A field that its kind does not use is zero.
type op struct {
	ID      int // its number in the program as it was made: bodies are made from it
	Kind    string
	Proc    int
	Lane    int
	Slot    int
	Wait    wait
	Settle  bool // give a call that waits time to fall asleep
	Len     int
	Prio    int
	Type    int64
	Meta    int // which metadata a message has: see metadata
	Filter  kumquat.Filter
	N       int
	What    string // of opRefused
	Create  bool
	Excl    bool
	Observe bool
	Second  bool   // with the other shape
	Mode    uint32 // with Create
	Owner   int    // 0: nobody; else process Owner−1's user

	URL     string           // not empty: of opOpen, instead of the program's
	Options *kumquat.Options // not nil: of opOpen, instead of the above
	Nice    int              // of opTimedReceive and opTimedSend
}

func (o *op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "#%d process %d lane %d: %s", o.ID, o.Proc, o.Lane, o.Kind)
	switch o.Kind {
	case opRemove, opCancel, opList:
		return b.String()
	case opRushOut, opRushIn:
		fmt.Fprintf(&b, ", %d helped", o.N)
		return b.String()
	}
	fmt.Fprintf(&b, " handle %d", o.Slot)
	switch o.Kind {
	case opOpen:
		for _, x := range []struct {
			on   bool
			text string
		}{{o.Create, "Create"}, {o.Excl, "Exclusive"}, {o.Observe, "ReadOnly"}, {o.Second, "second shape"}} {
			if x.on {
				b.WriteString(" " + x.text)
			}
		}
		if o.Create {
			fmt.Fprintf(&b, " mode %#o", o.Mode)
		}
		if o.Owner > 0 {
			fmt.Fprintf(&b, " Owner of process %d", o.Owner-1)
		}
	case opSend, opBytes:
		fmt.Fprintf(&b, " (%s) %d bytes", waitNames[o.Wait], o.Len)
		if o.Prio != 0 {
			fmt.Fprintf(&b, " priority %d", o.Prio)
		}
		if o.Type != 0 {
			fmt.Fprintf(&b, " type %d", o.Type)
		}
		if o.Meta != 0 {
			fmt.Fprintf(&b, " metadata %d", o.Meta)
		}
	case opReceive, opBatch, opInto:
		fmt.Fprintf(&b, " (%s)", waitNames[o.Wait])
		if o.Kind == opInto {
			fmt.Fprintf(&b, " %d bytes", o.Len)
		}
		if o.Kind == opBatch {
			fmt.Fprintf(&b, " at most %d", o.N)
		}
		fallthrough
	case opPurge, opPeek:
		if o.Kind == opPeek {
			fmt.Fprintf(&b, " at most %d (0: all), but for the first %d", o.N, o.Len)
		}
		if !o.Filter.Any() {
			fmt.Fprintf(&b, " %+v", o.Filter)
		}
	case opRefused:
		b.WriteString(" " + o.What)
	}
	return b.String()
}

// fill makes the body of operation id in b. Bodies of one byte and more tell their operations apart as well as that can be.
func fill(b []byte, id int) {
	x := uint32(id)*2654435761 + 12345
	for i := range b {
		b[i] = byte(id + i)
		if i >= 2 {
			x = x*1664525 + 1013904223
			b[i] = byte(x >> 24)
		}
	}
}

// metadata adds the metadata of operation id to m.
func metadata(m *kumquat.Message, which, id int) {
	text := func(what string) string { return fmt.Sprint(what, " ", id) }
	switch which {
	case 1:
		m.ID, m.Key = text("ID"), text("key")
	case 2:
		m.Group, m.CorrelationID, m.ReplyTo, m.ContentType = text("group"), text("correlation"), "/"+text("reply"), "text/plain"
	case 3:
		m.Headers = map[string]string{text("a"): "", "b": text("b"), "c": strings.Repeat("c", 700)}
	case 4:
		m.Key, m.Headers = strings.Repeat("k", 1000), map[string]string{"": "\x00\xff"}
	}
}

// messageText is how a message stands in a result.
func messageText(m *kumquat.Message) string {
	text := fmt.Sprintf("%d bytes %08x priority %d type %d", len(m.Body), crc32.ChecksumIEEE(m.Body), m.Priority, m.Type)
	if meta := fmt.Sprint(m.ID, m.Key, m.Group, m.CorrelationID, m.ReplyTo, m.ContentType, m.Headers); meta != "map[]" {
		text += fmt.Sprintf(" metadata %08x", crc32.ChecksumIEEE([]byte(meta)))
	}
	return text
}

// program is what happens to one queue name.
type program struct {
	pair   *pair
	seed   uint64
	umask  int
	shapes [2]shape // what Create asks for, and with Second
	ops    []op
}

func (p *program) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "program %s/%d: umask %#o, shape %+v, second shape %+v\n", p.pair.name, p.seed, p.umask, p.shapes[0], p.shapes[1])
	for i := range p.ops {
		fmt.Fprintf(&b, "  %v\n", &p.ops[i])
	}
	return b.String()
}

// newProgram makes the program of a seed.
func newProgram(pr *pair, seed uint64) *program {
	r := rand.New(rand.NewPCG(seed, 0x6b756d71756174))
	p := &program{pair: pr, seed: seed, umask: pick(r, 0, 0, 0o22, 0o77)}
	p.shapes[0] = pick(r, pr.shapes...)
	for {
		p.shapes[1] = pick(r, pr.shapes...)
		// On System V only msg_qbytes, their product, tells shapes apart.
		if x, y := p.shapes[0], p.shapes[1]; x.Max*x.Size != y.Max*y.Size {
			break
		}
	}
	// Most programs open the queue in every process first; the others may find that it is not there, or belongs to somebody else.
	if r.IntN(5) > 0 {
		mode := pick(r, pr.modes...)
		if r.IntN(3) > 0 {
			mode = 0o666
			p.umask = 0
		}
		for i := range procs {
			p.ops = append(p.ops, op{Kind: opOpen, Proc: (i + int(seed)) % procs, Create: true, Mode: mode})
		}
	}
	// A program has its own mixture.
	sends, receives := 10+r.IntN(20), 10+r.IntN(20)
	waits := r.IntN(60)
	for n := 15 + r.IntN(45); n > 0; n-- {
		p.ops = append(p.ops, newOp(r, p, sends, receives, waits))
	}
	for i := range p.ops {
		p.ops[i].ID = i
	}
	return p
}

func pick[T any](r *rand.Rand, xs ...T) T { return xs[r.IntN(len(xs))] }

func newOp(r *rand.Rand, p *program, sends, receives, waits int) op {
	pr := p.pair
	o := op{Proc: r.IntN(procs), Lane: r.IntN(lanes), Slot: r.IntN(slots) * r.IntN(2), Settle: r.IntN(6) == 0}
	if r.IntN(100) < waits {
		o.Wait = pick(r, waitPast, waitCanceled, waitBlock, waitBlock, waitBlock, waitBlock)
		if r.IntN(20) == 0 {
			o.Wait = waitShort
		}
	}
	n := r.IntN(sends + receives + 31)
	switch {
	case n < sends:
		o.Kind = opSend
		o.Prio, o.Type = pick(r, pr.prios...), pick(r, pr.types...)
		size := p.shapes[0].Size
		if r.IntN(12) == 0 {
			size = p.shapes[1].Size
		}
		o.Len = pick(r, 0, 1, 1, size/2, size, min(size, 1+r.IntN(size)), min(size, 9))
		switch r.IntN(40) {
		case 0:
			o.Len = size + 1
		case 1:
			o.Prio = pick(r, 32768, -1, 1<<31, 1<<40)
		case 2:
			o.Type = pick[int64](r, -1, -1<<63)
		case 3, 4, 5, 6:
			o.Kind, o.Type = opBytes, 0
		}
		if pr.envelope && o.Kind == opSend {
			o.Meta = r.IntN(5)
		}
	case n < sends+receives:
		o.Kind, o.Filter = opReceive, pick(r, pr.filters...)
		switch r.IntN(12) {
		case 0, 1:
			o.Kind, o.N = opBatch, pick(r, 0, 1, 2, 5, 50, -1)
		case 2, 3:
			o.Kind, o.Filter, o.Len = opInto, kumquat.Filter{}, max(p.shapes[0].Size, p.shapes[1].Size)+r.IntN(2)
			if pr.into {
				o.Len = pick(r, o.Len, 0, 1, p.shapes[0].Size/2, p.shapes[0].Size)
			}
		case 4:
			if r.IntN(4) == 0 {
				o.Filter = pick(r, kumquat.Filter{Type: -1}, kumquat.Filter{MinPriority: 32768}, kumquat.Filter{NotType: -5}, kumquat.Filter{Type: 3, NotType: 3})
			}
		}
	default:
		switch n - sends - receives {
		case 0, 1, 2, 3, 4, 5:
			o.Kind, o.Create, o.Mode = opOpen, r.IntN(5) > 0, pick(r, pr.modes...)
			o.Excl = o.Create && r.IntN(5) == 0
			o.Observe = !o.Create && r.IntN(2) == 0
			o.Second = r.IntN(5) == 0
			if r.IntN(12) == 0 {
				o.Owner = 1 + r.IntN(procs)
			}
		case 6, 7, 8:
			o.Kind = opClose
		case 9, 10:
			o.Kind = opRemove
		case 11, 12:
			o.Kind = opPurge
			if r.IntN(2) == 0 {
				o.Filter = pick(r, pr.filters...)
			}
		case 13, 14, 15, 16:
			o.Kind = opCancel
		case 17, 18:
			o.Kind, o.What = opRefused, pick(r, pr.refused...)
		case 19:
			o.Kind, o.N = opRushOut, r.IntN(4)
		case 20:
			o.Kind, o.N = opRushIn, r.IntN(4)
		case 21, 22:
			o.Kind = opList
		case 23, 24:
			o.Kind, o.Filter, o.N, o.Len = opPeek, pick(r, pr.filters...), pick(r, 0, 0, 1, 3), pick(r, 0, 0, 1)
		default:
			o.Kind = opStat
		}
	}
	return o
}
