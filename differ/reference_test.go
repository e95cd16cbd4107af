package differ

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kumquat-mq/kumquat"
)

// world is the reference: what a queue name, its queues and the handles of all processes look like while a program goes on. From it
// the scheduler knows which call will wait and which operation ends that, and so which answer it has to wait for. It foretells
// every answer besides.
type world struct {
	*program
	kernel  bool // of the two sides
	who     *users
	queue   *box // that the name leads to; nil: none
	handles [procs][slots]*hand
	waiting []*waiter
}

// box is a queue.
type box struct {
	shape
	owner  int // process whose user made it
	mode   uint32
	items  []item // in the order of sends
	orphan bool   // removed
}

type item struct {
	id, len, prio int
	typ           int64
	meta          int
}

type hand struct {
	q       *box
	observe bool
	closed  bool
}

// waiter is a call that waits.
type waiter struct {
	op   *op
	h    *hand
	item item // of a send
}

// want is the answer that an operation has to give.
type want struct {
	text string
	err  string // the name of the sentinel
	// The operation is on a queue that was removed. Where a removed kernel queue lives on, that is a declared difference: each side
	// must do as the reference says of it, and they are not compared.
	orphan   bool
	declared bool // what it tells is a declared difference: likewise
}

// move is what the scheduler has to do for an operation.
type move struct {
	skip  bool
	do    op // as it is carried out
	wait  bool
	want  want
	back  []back // calls that end because of it
	rush  *rush
	alone bool // the kernel's side only
}

type back struct {
	op     *op
	want   want
	cancel bool // the scheduler has to cancel it
}

// rush is the set of calls that wait together.
type rush struct {
	before []op // what brings the queue into the state in which they have to wait
	calls  []op // all waiting; which of them are served is not compared
	helps  []op // each serves one
	drains int  // receives afterwards, at most
}

func ok(text string) want   { return want{text: text} }
func fails(err string) want { return want{err: err} }

// revokes reports whether Remove ends open handles on this side.
func (w *world) revokes() bool { return !w.kernel || w.pair.revoking }

func (q *box) bytes() (n int) {
	for _, x := range q.items {
		n += x.len
	}
	return n
}

// first is the place of the message that a receive with f takes; −1: none.
func (q *box) first(f kumquat.Filter) int {
	best := -1
	for i, x := range q.items {
		if !f.Match(&kumquat.Message{Priority: x.prio, Type: x.typ}) {
			continue
		}
		if best < 0 {
			best = i
			continue
		}
		y := q.items[best]
		if byType := f.TypeAtMost > 0 && x.typ != y.typ; byType && x.typ < y.typ || !byType && x.prio > y.prio {
			best = i
		}
	}
	return best
}

func (q *box) take(i int) item {
	x := q.items[i]
	q.items = slices.Delete(q.items, i, i+1)
	return x
}

// text is how it stands in the result of a receive; short: of ReceiveInto, which leaves out all but body and priority.
func (x item) text(short bool) string {
	m := kumquat.Message{Body: make([]byte, x.len), Priority: x.prio}
	fill(m.Body, x.id)
	if !short {
		m.Type = max(x.typ, 1)
		metadata(&m, x.meta, x.id)
	}
	return messageText(&m)
}

// step makes the operation at place i of the program.
func (w *world) step(i int) move {
	o := &w.ops[i]
	m := move{do: *o}
	if o.Kind != opCancel && o.Kind != opRemove && w.waiterOf(o.Proc, o.Lane) != nil {
		m.skip = true // it waits
		return m
	}
	h := w.handles[o.Proc][o.Slot]
	switch o.Kind {
	case opOpen:
		if h != nil && !h.closed {
			m.skip = true
			return m
		}
		m.want = w.open(o)
	case opRemove:
		// Where the owner may not read and write, the engine refuses what the kernel's queues do: see TestRemoveOfUnreadable.
		if q := w.queue; w.waiterOf(o.Proc, o.Lane) != nil || q != nil && w.who.uid(o.Proc) == w.who.uid(q.owner) && !w.may(o.Proc, q, 6) {
			m.skip = true
			return m
		}
		m.want = w.remove(o, &m)
	case opCancel:
		x := w.waiterOf(o.Proc, o.Lane)
		if x == nil {
			m.skip = true
			return m
		}
		w.forget(x)
		m.back = append(m.back, back{op: x.op, want: fails("canceled"), cancel: true})
		m.want = ok("")
	case opList:
		m.want = w.list(o)
	case opRushOut, opRushIn:
		w.rush(o, &m)
	default:
		if h == nil {
			m.skip = true
			return m
		}
		w.call(&m, o, h)
	}
	if !m.skip {
		w.settle(&m)
	}
	return m
}

func (w *world) waiterOf(proc, lane int) *waiter {
	for _, x := range w.waiting {
		if x.op.Proc == proc && x.op.Lane == lane {
			return x
		}
	}
	return nil
}

func (w *world) forget(x *waiter) {
	w.waiting = slices.DeleteFunc(w.waiting, func(y *waiter) bool { return y == x })
}

// may reports whether the mode of q gives the user of a process all of these rights (4 read, 2 write).
func (w *world) may(proc int, q *box, rights uint32) bool {
	if w.who.all {
		return true
	}
	bits := q.mode
	if w.who.uid(proc) == w.who.uid(q.owner) {
		bits >>= 6
	}
	return bits&rights == rights
}

func (w *world) open(o *op) want {
	foreign := o.Owner > 0 && w.who.uid(o.Owner-1) != w.who.uid(o.Proc)
	q := w.queue
	switch {
	case q == nil && !o.Create:
		return fails("not found")
	case q == nil && foreign:
		return fails("permission")
	case q == nil:
		mode := o.Mode
		if mode == 0 {
			mode = 0o600
		}
		q = &box{shape: w.shapes[0], owner: o.Proc, mode: mode &^ uint32(w.umask)}
		if o.Second {
			q.shape = w.shapes[1]
		}
		w.queue = q
	case o.Excl:
		return fails("exists")
	case !w.may(o.Proc, q, 6) && !(o.Observe && w.may(o.Proc, q, 4)):
		return fails("permission")
	case o.Owner > 0 && w.who.uid(o.Owner-1) != w.who.uid(q.owner):
		return fails("permission")
	}
	w.handles[o.Proc][o.Slot] = &hand{q: q, observe: o.Observe}
	return ok("")
}

func (w *world) remove(o *op, m *move) want {
	q := w.queue
	switch {
	case q == nil:
		return fails("not found")
	case !w.who.all && w.who.uid(o.Proc) != w.who.uid(q.owner):
		return fails("permission")
	}
	w.queue, q.orphan = nil, true
	for _, x := range slices.Clone(w.waiting) {
		w.forget(x)
		b := back{op: x.op, want: want{err: "removed", orphan: true}}
		if !w.revokes() {
			b = back{op: x.op, want: want{err: "canceled", orphan: true}, cancel: true}
		}
		m.back = append(m.back, b)
	}
	return ok("")
}

// list foretells List of the one name.
func (w *world) list(o *op) want {
	q := w.queue
	switch {
	case q == nil:
		return ok("nothing")
	case !w.may(o.Proc, q, 4) && !(w.kernel && w.pair.counted): // System V shows all to all
		return want{text: "one that may not be read: permission", declared: w.pair.counted}
	}
	x := ok(fmt.Sprintf("%d messages, mode %#o, user %d", len(q.items), q.mode, w.who.uid(q.owner)))
	x.declared = !w.may(o.Proc, q, 4)
	return x
}

// call makes an operation on a handle.
func (w *world) call(m *move, o *op, h *hand) {
	q := h.q
	if q.orphan && o.Wait >= waitShort {
		m.do.Wait = waitTry // a call that waits at a queue that lives on would wait on one side only
	}
	m.want.orphan = q.orphan
	set := func(x want) { m.want.text, m.want.err = x.text, x.err }
	bad := func(usable bool) bool { // the answers that have nothing to do with messages
		switch {
		case h.closed:
			set(fails("closed"))
		case usable && h.observe:
			set(fails("permission"))
		case q.orphan && w.revokes():
			set(fails("removed"))
		default:
			return false
		}
		return true
	}
	switch o.Kind {
	case opClose:
		if h.closed {
			set(fails("closed"))
			return
		}
		h.closed = true
		for _, x := range slices.Clone(w.waiting) {
			if x.h == h {
				w.forget(x)
				m.back = append(m.back, back{op: x.op, want: fails("closed")})
			}
		}
	case opStat:
		if bad(false) {
			return
		}
		bytes := q.bytes()
		if w.pair.envelope && w.kernel {
			bytes = -1 // it counts the envelopes, too
		}
		text := fmt.Sprintf("%d messages, %d bytes, mode %#o, user %d", len(q.items), bytes, q.mode, w.who.uid(q.owner))
		m.want.declared = bytes < 0
		if !w.pair.counted || !h.observe {
			m.do.N = 1
			text += fmt.Sprintf(", room for %d of %d bytes", q.Max, q.Size)
		}
		set(ok(text))
	case opPeek:
		if slices.Contains(w.pair.refused, "peek") || w.pair.counted && !canCopy() {
			m.skip = true
			return
		}
		if bad(false) {
			return
		}
		var texts []string
		left := &box{items: slices.Clone(q.items)}
		for i := left.first(o.Filter); i >= 0 && (o.N == 0 || len(texts) < o.Len+o.N); i = left.first(o.Filter) {
			texts = append(texts, left.take(i).text(false))
		}
		set(ok("[" + strings.Join(texts[min(o.Len, len(texts)):], "; ") + "]"))
	case opPurge:
		if w.senderWaits(q) {
			m.skip = true // it may or may not take what that one sends
			return
		}
		if bad(true) {
			return
		}
		n := 0
		for i := q.first(o.Filter); i >= 0; i = q.first(o.Filter) {
			q.take(i)
			n++
		}
		set(ok(fmt.Sprint(n)))
	case opRefused:
		if h.closed || h.observe || q.orphan || o.What == "short buffer" && q.Size < 2 {
			m.skip = true
			return
		}
		m.do.Len = q.Size - 1
		m.alone = true
		set(fails("unsupported"))
	case opSend, opBytes:
		x := item{o.ID, o.Len, o.Prio, max(o.Type, 1), o.Meta}
		switch {
		case o.Prio < 0 || o.Prio > kumquat.MaxPriority || o.Type < 0:
			set(fails("invalid"))
		case !h.closed && !h.observe && o.Len > q.Size:
			set(fails("too large")) // before anybody looks whether the queue was removed, as msgsnd has it
		case bad(true):
		case len(q.items) < q.Max:
			q.items = append(q.items, x)
		default:
			w.stuck(m, o, h, "full", x)
		}
	case opReceive, opInto, opBatch:
		f := o.Filter
		switch {
		case !f.Valid() || f.Type != 0 && f.Type == f.NotType:
			set(fails("invalid"))
			return
		case o.Kind == opBatch && o.N < 0:
			set(fails("invalid"))
			return
		case o.Kind == opBatch && o.N == 0:
			set(ok("[]"))
			return
		case o.Kind == opBatch && w.senderWaits(q):
			m.skip = true // it may or may not get what that one sends
			return
		case o.Kind == opInto && !w.pair.into && (o.Len < q.Size || w.pair.counted && h.observe):
			m.skip = true // the buffer is too short, or for all that this process knows it may be
			return
		case bad(true):
			return
		}
		if x, done := w.receive(o, q); done {
			set(x)
		} else {
			w.stuck(m, o, h, "empty", item{})
		}
	}
}

func (w *world) senderWaits(q *box) bool {
	return slices.ContainsFunc(w.waiting, func(x *waiter) bool { return x.h.q == q && x.sends() })
}

func (x *waiter) sends() bool { return x.op.Kind == opSend || x.op.Kind == opBytes }

// receive makes a receive that finds something; else done is false.
func (w *world) receive(o *op, q *box) (_ want, done bool) {
	i := q.first(o.Filter)
	switch {
	case i < 0:
		return want{}, false
	case o.Kind == opInto && q.items[i].len > o.Len:
		return fails("too large"), true // it stays
	case o.Kind == opInto:
		return ok(q.take(i).text(true)), true
	case o.Kind == opReceive:
		return ok(q.take(i).text(false)), true
	}
	var ms []string
	for ; i >= 0 && len(ms) < o.N; i = q.first(o.Filter) {
		ms = append(ms, q.take(i).text(false))
	}
	return ok("[" + strings.Join(ms, "; ") + "]"), true
}

// stuck says what becomes of a call that cannot go on.
func (w *world) stuck(m *move, o *op, h *hand, try string, x item) {
	if m.do.Wait == waitBlock && w.competes(o, h) {
		m.do.Wait = waitPast // which of the two would be served is not promised
	}
	switch m.do.Wait {
	case waitTry:
		m.want.err = try
	case waitPast, waitShort:
		m.want.err = "timeout"
	case waitCanceled:
		m.want.err = "canceled"
	case waitBlock:
		m.wait = true
		w.waiting = append(w.waiting, &waiter{op: o, h: h, item: x})
	}
}

// competes reports whether somebody waits for the same.
func (w *world) competes(o *op, h *hand) bool {
	me := waiter{op: o, h: h}
	return slices.ContainsFunc(w.waiting, func(x *waiter) bool {
		if x.h.q != h.q || x.sends() != me.sends() {
			return false
		}
		a, b := x.op.Filter.Type, o.Filter.Type
		return me.sends() || a == 0 || b == 0 || a == b
	})
}

// settle lets those go on who can: at most one at a time, since nobody competes.
func (w *world) settle(m *move) {
	for again := true; again; {
		again = false
		for _, x := range w.waiting {
			q := x.h.q
			var got want
			done := false
			if !x.sends() {
				got, done = w.receive(x.op, q)
			} else if done = len(q.items) < q.Max; done {
				q.items = append(q.items, x.item)
			}
			if done {
				w.forget(x)
				m.back = append(m.back, back{op: x.op, want: got})
				again = true
				break
			}
		}
	}
}

// end cancels what still waits.
func (w *world) end() (all []back) {
	for _, x := range w.waiting {
		all = append(all, back{op: x.op, want: fails("canceled"), cancel: true})
	}
	w.waiting = nil
	return all
}

// rush has many wait for the same at once. It begins only where nobody waits yet, empties the queue, or fills it, by its helper, and
// leaves it empty. Messages that fill it are as long as they may be: of shorter ones a System V queue may take one more than it should
// when several processes send at the same moment, a declared difference.
func (w *world) rush(o *op, m *move) {
	m.skip = true
	q := w.queue
	if q == nil || len(w.waiting) > 0 || o.Kind == opRushIn && w.pair.counted && w.pair.envelope { // no message is known to be the longest
		return
	}
	usable := func(proc int) int {
		return slices.IndexFunc(w.handles[proc][:], func(h *hand) bool { return h != nil && h.q == q && !h.closed && !h.observe })
	}
	help := usable(o.Proc)
	if help < 0 {
		return
	}
	number := 0
	call := func(kind string, proc, lane, slot, length int) op {
		number++
		return op{ID: 1000*(o.ID+1) + number, Kind: kind, Proc: proc, Lane: lane, Slot: slot, Len: length}
	}
	helper := func(kind string, length int) op { return call(kind, o.Proc, o.Lane, help, length) }
	r := &rush{before: []op{helper(opPurge, 0)}}
	for i := range procs * lanes {
		proc, lane := i%procs, i/procs
		slot := usable(proc)
		if slot < 0 || proc == o.Proc && lane == o.Lane {
			continue
		}
		c := call(opReceive, proc, lane, slot, 0)
		c.Wait = waitBlock
		if o.Kind == opRushIn {
			c.Kind, c.Len = opSend, q.Size
		}
		r.calls = append(r.calls, c)
	}
	if len(r.calls) < 2 {
		return
	}
	texts := []string{fmt.Sprint(len(q.items))}
	q.items = nil
	n := min(o.N, len(r.calls))
	if o.Kind == opRushIn {
		n = min(n, q.Max)
		r.drains = q.Max + 1
		for range q.Max {
			f := helper(opSend, q.Size)
			r.before = append(r.before, f)
			texts = append(texts, item{id: f.ID, len: f.Len}.text(false))
		}
	}
	for range n {
		h := helper(opReceive, 0)
		if o.Kind == opRushOut {
			h = helper(opSend, min(2, q.Size))
			texts = append(texts, item{id: h.ID, len: h.Len}.text(false))
		}
		r.helps = append(r.helps, h)
	}
	m.skip, m.rush = false, r
	m.want = ok(fmt.Sprintf("%d waited, %d served, %d cancelled: %s", len(r.calls), n, len(r.calls)-n, strings.Join(texts, "; ")))
}
