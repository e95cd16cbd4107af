package linear

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/kumquat-mq/kumquat"
)

// actions are the steps of a program.
func (p *program) actions() map[string]func(*rapid.T) {
	acts := map[string]func(*rapid.T){
		"": p.stat, "send": p.sendOne, "send again": p.sendOne, "send once more": p.sendOne, "send bytes": p.sendBytes, "send batch": p.sendBatch, "receive": p.receive,
		"receive into": p.receiveInto, "receive batch": p.receiveBatch, "receive what is not due yet": p.receiveLater, "peek": p.peek,
		"purge": p.purge, "reserve": p.reserve, "commit": p.commit, "borrow": p.borrow, "release": p.release, "close": p.close, "open": p.open,
		"remove": p.remake, "wait": p.wait, "nonsense": p.nonsense, "routine": p.routine,
	}
	for name, f := range acts {
		acts[name] = p.step(f)
	}
	return acts
}

// on draws a handle. If it is closed, or the queue removed, the error that every call on it returns comes with it.
func (p *program) on(t *rapid.T) (*handle, *kumquat.Queue, error) {
	h := rapid.SampledFrom(p.handles).Draw(t, "handle")
	switch {
	case h.q != nil && p.removed:
		return h, h.q, kumquat.ErrRemoved
	case h.q != nil:
		return h, h.q, nil
	}
	return h, h.last, kumquat.ErrClosed
}

// done draws a context that is done, and the error that a call with it returns if it would have to wait.
func done(t *rapid.T) (context.Context, error) {
	if rapid.Bool().Draw(t, "cancelled") {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return ctx, context.Canceled
	}
	ctx, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	cancel() // its deadline has passed already, and that is its error
	return ctx, kumquat.ErrTimeout
}

var words = rapid.SampledFrom([]string{"", "", "", "a", "b", "a longer one, with ü and \x00", strings.Repeat("x", 300)})

// message draws a message.
func (p *program) message(t *rapid.T) *parcel {
	size := rapid.IntRange(0, p.o.MaxSize).Draw(t, "size")
	if rapid.IntRange(0, 30).Draw(t, "too long") == 30 {
		size = p.o.MaxSize + 1
	}
	id := serial.Add(1)
	x := &parcel{m: kumquat.Message{Body: bytes.Repeat([]byte{byte(id)}, size)}}
	x.m.Priority = rapid.SampledFrom([]int{0, 0, 0, 1, 5, 5, kumquat.MaxPriority}).Draw(t, "priority")
	x.m.Type = rapid.Int64Range(0, 3).Draw(t, "type")
	if rapid.IntRange(0, 3).Draw(t, "metadata") == 0 {
		x.m.ID, x.m.Key, x.m.Group = words.Draw(t, "id"), words.Draw(t, "key"), words.Draw(t, "group")
		x.m.CorrelationID, x.m.ReplyTo, x.m.ContentType = words.Draw(t, "correlation"), words.Draw(t, "reply to"), words.Draw(t, "content type")
		x.m.Headers = rapid.MapOfN(words, words, 0, 2).Draw(t, "headers")
	} else {
		x.m.Key = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "key")
	}
	if rapid.IntRange(0, 2).Draw(t, "timed") == 0 {
		times := rapid.SampledFrom([]time.Duration{0, -remote, remote, remote, soon / 2, soon})
		x.m.NotBefore, x.m.Expires = later(times.Draw(t, "not before")), later(times.Draw(t, "expires"))
	}
	x.item = item{id, x.m.Priority, max(x.m.Type, 1), x.m.Key}
	return x
}

func later(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// sends makes a call that sends ms and compares its outcome. wait: it is one that waits for room.
func (p *program) sends(t *rapid.T, bad error, wait bool, ms []*parcel, f func(ctx context.Context) error) error {
	ctx, over := context.Background(), error(nil)
	if wait {
		ctx, over = done(t)
	}
	waiting, gone := p.reference, p.dropped
	before := time.Now()
	err := f(ctx)
	for _, x := range ms {
		x.before, x.after = before, time.Now()
	}
	if bad != nil {
		if slices.ContainsFunc(ms, func(x *parcel) bool { return len(x.m.Body) > p.o.MaxSize }) || len(ms) > p.maxBatch {
			bad = either{bad, kumquat.ErrTooLarge} // which of the two comes is not promised
		}
		p.errs(t, "send", err, bad)
		return err
	}
	kept := map[uint64]*parcel{}
	for _, x := range waiting.items {
		kept[x.id] = p.info[x.id]
	}
	want := p.send(ms, over)
	p.errs(t, "send", err, want)
	if want != nil && p.dropped != gone {
		// What gave way to a message that found no room after all: whether it did is the queue's affair, but it must be told.
		s, err := p.look.Stat(context.Background())
		if p.errs(t, "stat", err, nil); s.Dropped == gone {
			p.reference, p.dropped, p.info = waiting, gone, kept
		}
	}
	return err
}

func (p *program) sendOne(t *rapid.T) {
	_, q, bad := p.on(t)
	x, wait := p.message(t), rapid.Bool().Draw(t, "waits")
	_ = p.sends(t, bad, wait, []*parcel{x}, func(ctx context.Context) error {
		if wait {
			return q.Send(ctx, x.m)
		}
		return q.TrySend(x.m)
	})
}

func (p *program) sendBytes(t *rapid.T) {
	_, q, bad := p.on(t)
	x, wait := p.message(t), rapid.Bool().Draw(t, "waits")
	x.m = kumquat.Message{Body: x.m.Body, Priority: x.m.Priority}
	x.typ, x.key = 1, ""
	_ = p.sends(t, bad, wait, []*parcel{x}, func(ctx context.Context) error {
		if wait {
			return q.SendBytes(ctx, x.m.Body, x.m.Priority)
		}
		return q.TrySendBytes(x.m.Body, x.m.Priority)
	})
}

func (p *program) sendBatch(t *rapid.T) {
	_, q, bad := p.on(t)
	var xs []*parcel
	var ms []kumquat.Message
	for range rapid.IntRange(1, 6).Draw(t, "messages") {
		xs = append(xs, p.message(t))
		ms = append(ms, xs[len(xs)-1].m)
	}
	wait := rapid.Bool().Draw(t, "waits")
	_ = p.sends(t, bad, wait, xs, func(ctx context.Context) error {
		if wait {
			return q.SendBatch(ctx, ms)
		}
		return q.TrySendBatch(ms)
	})
}

// filter draws filters, what they come to together, and whether they can.
func filter(t *rapid.T) (fs []kumquat.Filter, f kumquat.Filter, bad error) {
	if rapid.Bool().Draw(t, "no filter") {
		return nil, kumquat.Filter{}, nil
	}
	// Which fields it has, as bits: alone, and in the pairs that are of use, more often than by chance.
	has := rapid.SampledFrom([]int{1, 2, 4, 8, 16, 1 + 8, 2 + 8, 2 + 8, 4 + 8, 2 + 4, 16 + 1, 16 + 8, 31}).Draw(t, "fields")
	few := func(bit int, what string) int64 {
		if has&bit == 0 {
			return 0
		}
		return rapid.Int64Range(1, 3).Draw(t, what)
	}
	f = kumquat.Filter{Type: few(1, "type"), TypeAtMost: few(2, "type at most"), NotType: few(4, "not type")}
	if has&8 != 0 {
		f.MinPriority = rapid.SampledFrom([]int{1, 5, 6}).Draw(t, "least priority")
	}
	if has&16 != 0 {
		f.Key = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key")
	}
	fs = []kumquat.Filter{kumquat.Type(f.Type), kumquat.TypeAtMost(f.TypeAtMost), kumquat.Not(f.NotType), kumquat.MinPriority(f.MinPriority), kumquat.Key(f.Key)}
	if f.Type != 0 && (f.Type == f.NotType || f.TypeAtMost != 0 && f.Type > f.TypeAtMost) || f.TypeAtMost == 1 && f.NotType == 1 {
		bad = kumquat.ErrInvalid
	}
	return fs, f, bad
}

// takes makes a call that receives one message and compares it with what must come.
func (p *program) takes(t *rapid.T, bad error, f kumquat.Filter, wait bool, call func(ctx context.Context) (kumquat.Message, error)) *parcel {
	ctx, over := context.Background(), kumquat.ErrEmpty
	if wait {
		ctx, over = done(t)
	}
	m, err := call(ctx)
	i := p.next(f)
	switch {
	case bad != nil:
	case i >= 0:
		p.errs(t, "receive", err, nil)
		x := p.remove(i)
		p.received++
		p.same(t, m, x, true)
		return x
	default:
		bad = over
	}
	p.errs(t, "receive", err, bad)
	return nil
}

func (p *program) receive(t *rapid.T) {
	_, q, bad := p.on(t)
	fs, f, cannot := filter(t)
	if cannot != nil {
		bad = cannot
	}
	wait := rapid.Bool().Draw(t, "waits")
	p.takes(t, bad, f, wait, func(ctx context.Context) (kumquat.Message, error) {
		if wait {
			return q.Receive(ctx, fs...)
		}
		return q.TryReceive(fs...)
	})
}

// routine sends and receives the same thing many times: receivers trust to be told of news only after a while.
func (p *program) routine(t *rapid.T) {
	prio := rapid.SampledFrom([]int{0, 2, 5}).Draw(t, "priority")
	h := p.handles[0]
	if h.q == nil || p.removed || !p.room(1, prio) || p.next(kumquat.Filter{}) < 0 || p.now.Add(soon).After(p.until) {
		return
	}
	for range 40 { // always with something waiting
		x := &parcel{item: item{serial.Add(1), prio, 1, ""}, m: kumquat.Message{Priority: prio}}
		if p.sends(t, nil, false, []*parcel{x}, func(context.Context) error { return h.q.TrySend(x.m) }) != nil {
			return
		}
		p.takes(t, nil, kumquat.Filter{}, false, func(context.Context) (kumquat.Message, error) { return h.q.TryReceive() })
	}
}

func (p *program) receiveInto(t *rapid.T) {
	_, q, bad := p.on(t)
	buf := make([]byte, rapid.IntRange(0, p.o.MaxSize).Draw(t, "buffer"))
	wait := rapid.Bool().Draw(t, "waits")
	i := p.next(kumquat.Filter{})
	if bad == nil && i >= 0 && len(p.info[p.items[i].id].m.Body) > len(buf) {
		bad = kumquat.ErrTooLarge
	}
	p.takes(t, bad, kumquat.Filter{}, wait, func(ctx context.Context) (m kumquat.Message, err error) {
		if i >= 0 && bad == nil {
			m = p.info[p.items[i].id].m // what is not told
			m.Type, m.Taken, m.Sender, m.Enqueued = max(m.Type, 1), p.taken+1, sender, p.info[p.items[i].id].after
		}
		n := 0
		if wait {
			n, m.Priority, err = q.ReceiveInto(ctx, buf)
		} else {
			n, m.Priority, err = q.TryReceiveInto(buf)
		}
		m.Body = buf[:n]
		return m, err
	})
}

func (p *program) receiveBatch(t *rapid.T) {
	_, q, bad := p.on(t)
	fs, f, cannot := filter(t)
	if cannot != nil {
		bad = cannot
	}
	most, wait := rapid.IntRange(1, 8).Draw(t, "at most"), rapid.Bool().Draw(t, "waits")
	ctx, over := done(t)
	var ms []kumquat.Message
	var err error
	if wait {
		ms, err = q.ReceiveBatch(ctx, most, fs...)
	} else {
		ms, err = q.TryReceiveBatch(most, fs...)
		over = kumquat.ErrEmpty
	}
	if bad == nil && p.next(f) < 0 {
		bad = over
	}
	p.errs(t, "receive batch", err, bad)
	if bad != nil {
		return
	}
	n := 0
	for i := p.next(f); i >= 0 && n < most; i = p.next(f) {
		x := p.remove(i)
		p.received++
		if n++; n > len(ms) {
			p.wrong(t, "a batch of %d messages, and there are more", len(ms))
			return
		}
		p.same(t, ms[n-1], x, true)
	}
	if n < len(ms) {
		p.wrong(t, "a batch of %d messages instead of %d", len(ms), n)
	}
}

// receiveLater waits for a message that becomes due soon.
func (p *program) receiveLater(t *rapid.T) {
	h := p.handles[0]
	if h.q == nil || p.removed || p.next(kumquat.Filter{}) >= 0 {
		t.Skip("it would not wait, or for ever")
	}
	var next *parcel
	for _, x := range p.info {
		if at := x.m.NotBefore.Sub(p.now); at < remote/2 {
			if next != nil || !x.m.Expires.IsZero() && x.m.Expires.Sub(p.now) < remote/2 {
				t.Skip("more than one thing will happen")
			}
			next = x
		}
	}
	if next == nil {
		t.Skip("nothing will be due")
	}
	p.until = p.now.Add(remote / 2) // it is this transition that we wait for, and the only one
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	m, err := h.q.Receive(ctx)
	at := time.Now()
	p.errs(t, "receive", err, nil)
	for i, x := range p.items {
		if x.id == next.id {
			p.remove(i)
			break
		}
	}
	p.received++
	p.same(t, m, next, true)
	if at.Before(next.m.NotBefore) {
		p.wrong(t, "received %v before its time", next.m.NotBefore.Sub(at))
	}
	if late := at.Sub(next.m.NotBefore); late > 5*time.Second {
		p.wrong(t, "received %v after its time", late)
	}
}

func (p *program) peek(t *rapid.T) {
	_, q, bad := p.on(t)
	if rapid.Bool().Draw(t, "by an observer") {
		q = p.look
		if bad = nil; p.removed {
			bad = kumquat.ErrRemoved
		}
	}
	_, f, cannot := filter(t)
	if cannot != nil {
		bad = cannot
	}
	o := kumquat.PeekOptions{Filter: f, Skip: rapid.IntRange(0, 3).Draw(t, "skip"), Limit: rapid.IntRange(0, 5).Draw(t, "limit"),
		NoBody: rapid.Bool().Draw(t, "without bodies")}
	want := p.order(f)
	if rapid.Bool().Draw(t, "match") {
		o.Match = func(b []byte) bool { return len(b)%2 == 0 }
		var some []*parcel
		for _, x := range want {
			if o.Match(x.m.Body) {
				some = append(some, x)
			}
		}
		want = some
	}
	if want = want[min(o.Skip, len(want)):]; o.Limit > 0 {
		want = want[:min(o.Limit, len(want))]
	}
	n := 0
	for m, err := range q.Peek(context.Background(), o) {
		if bad != nil || err != nil {
			p.errs(t, "peek", err, bad)
			return
		}
		if n == len(want) {
			p.wrong(t, "peek shows more than %d messages: %+v", n, m)
			return
		}
		x := *want[n]
		if o.NoBody {
			x.m.Body = nil
		}
		p.same(t, m, &x, false)
		n++
	}
	if bad != nil || n != len(want) {
		p.wrong(t, "peek shows %d messages instead of %d; error %v", n, len(want), bad)
	}
}

func (p *program) purge(t *rapid.T) {
	_, q, bad := p.on(t)
	fs, f, cannot := filter(t)
	if cannot != nil {
		bad = cannot
	}
	n, err := q.Purge(context.Background(), fs...)
	p.errs(t, "purge", err, bad)
	if bad != nil {
		return
	}
	want := 0
	for i := 0; i < len(p.items); i++ {
		if lets(f, p.items[i]) {
			p.remove(i)
			p.dropped++
			want++
			i--
		}
	}
	if n != want {
		p.wrong(t, "purge removed %d messages instead of %d", n, want)
	}
}
