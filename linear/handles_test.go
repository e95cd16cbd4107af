package linear

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/kumquat-mq/kumquat"
)

var sender = os.Getpid()

// mostHeld is how many reservations and loans a handle has in these programs. It may have more: 64, less its batches under way.
const mostHeld = 3

func (p *program) reserve(t *rapid.T) {
	h, q, bad := p.on(t)
	if len(h.held) == mostHeld {
		return
	}
	size := rapid.IntRange(0, p.o.MaxSize+1).Draw(t, "size")
	switch {
	case size <= p.o.MaxSize:
	case bad != nil:
		bad = either{bad, kumquat.ErrTooLarge}
	default:
		bad = kumquat.ErrTooLarge
	}
	r, err := q.Reserve(context.Background(), size)
	p.errs(t, "reserve", err, bad)
	if bad != nil {
		return
	}
	if len(r.Bytes()) != size || cap(r.Bytes()) != size {
		p.wrong(t, "a buffer of %d bytes with room for %d, not of %d", len(r.Bytes()), cap(r.Bytes()), size)
	}
	h.held = append(h.held, held{r: r, size: size})
}

// holder draws one of the reservations, or of the loans.
func (p *program) holder(t *rapid.T, loans bool) (*handle, int) {
	type place struct {
		h *handle
		i int
	}
	var places []place
	for _, h := range p.handles {
		for i := range h.held {
			if (h.held[i].l != nil) == loans {
				places = append(places, place{h, i})
			}
		}
	}
	if len(places) == 0 {
		t.Skip("none is open")
	}
	x := rapid.SampledFrom(places).Draw(t, "which")
	return x.h, x.i
}

// commit ends a reservation, or tries to.
func (p *program) commit(t *rapid.T) {
	h, i := p.holder(t, false)
	r := h.held[i].r
	if rapid.IntRange(0, 4).Draw(t, "abort") == 0 {
		p.errs(t, "abort", r.Abort(), nil)
	} else {
		x, wait := p.message(t), rapid.Bool().Draw(t, "waits")
		body := bytes.Repeat([]byte{byte(x.id)}, h.held[i].size)
		copy(r.Bytes(), body)
		x.m.Body = []byte("this is ignored")
		given := x.m
		x.m.Body = body
		var bad error
		if p.removed {
			bad = kumquat.ErrRemoved
		}
		if p.sends(t, bad, wait, []*parcel{x}, func(ctx context.Context) error {
			if wait {
				return r.Commit(ctx, given)
			}
			return r.TryCommit(given)
		}) != nil {
			return // it goes on
		}
	}
	p.errs(t, "commit after the end", r.TryCommit(kumquat.Message{}), kumquat.ErrInvalid)
	p.errs(t, "abort after the end", r.Abort(), kumquat.ErrInvalid)
	h.held = slices.Delete(h.held, i, i+1)
}

func (p *program) borrow(t *rapid.T) {
	h, q, bad := p.on(t)
	if len(h.held) == mostHeld {
		return
	}
	fs, f, cannot := filter(t)
	if cannot != nil {
		bad = cannot
	}
	wait := rapid.Bool().Draw(t, "waits")
	var l *kumquat.Loan
	x := p.takes(t, bad, f, wait, func(ctx context.Context) (m kumquat.Message, err error) {
		if wait {
			l, err = q.Borrow(ctx, fs...)
		} else {
			l, err = q.TryBorrow(fs...)
		}
		if err == nil {
			m = l.Message()
		}
		return m, err
	})
	if x != nil {
		h.held = append(h.held, held{l: l, want: x})
	}
}

func (p *program) release(t *rapid.T) {
	h, i := p.holder(t, true)
	x := h.held[i]
	p.same(t, x.l.Message(), x.want, false) // nobody has written there meanwhile
	p.errs(t, "release", x.l.Release(), nil)
	p.errs(t, "release after the end", x.l.Release(), kumquat.ErrInvalid)
	h.held = slices.Delete(h.held, i, i+1)
}

func (p *program) close(t *rapid.T) {
	h := rapid.SampledFrom(p.handles).Draw(t, "handle")
	switch {
	case h.q == nil:
		p.errs(t, "close again", h.last.Close(), kumquat.ErrClosed)
	case len(h.held) > 0:
		p.errs(t, "close with something held", h.q.Close(), kumquat.ErrInvalid)
	default:
		p.errs(t, "close", h.q.Close(), nil)
		h.q, h.last = nil, h.q
	}
}

func (p *program) open(t *rapid.T) {
	i := slices.IndexFunc(p.handles, func(h *handle) bool { return h.q == nil })
	if i < 0 {
		t.Skip("all are open")
	}
	h := p.handles[i]
	q, err := kumquat.Open(context.Background(), p.name, nil)
	if p.removed {
		p.errs(t, "open a removed queue", err, kumquat.ErrNotFound)
		return
	}
	p.errs(t, "open", err, nil)
	h.q = q
}

// remake removes the queue, or, if it is removed, makes another one of its name.
func (p *program) remake(t *rapid.T) {
	if !p.removed {
		if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
			return // programs should get somewhere first
		}
		p.errs(t, "remove", kumquat.Remove(context.Background(), p.name), nil)
		p.errs(t, "remove again", kumquat.Remove(context.Background(), p.name), kumquat.ErrNotFound)
		p.removed = true
		return
	}
	for _, h := range p.handles {
		for _, x := range h.held {
			if x.r != nil {
				p.errs(t, "abort", x.r.Abort(), nil)
			} else {
				p.errs(t, "release", x.l.Release(), nil)
			}
		}
		if h.held = nil; h.q != nil {
			p.errs(t, "close", h.q.Close(), nil)
			h.q, h.last = nil, h.q
		}
	}
	p.errs(t, "close", p.look.Close(), nil)
	p.create(t)
}

// wait lets the next thing happen that happens soon.
func (p *program) wait(t *rapid.T) {
	d := time.Until(p.until)
	if d > 2*soon {
		t.Skip("nothing happens soon")
	}
	time.Sleep(d + tick)
	p.settle()
}

// nonsense makes calls that must be refused whatever the queue holds.
func (p *program) nonsense(t *rapid.T) {
	_, q, _ := p.on(t)
	bad := rapid.SampledFrom([]kumquat.Message{{Priority: -1}, {Priority: kumquat.MaxPriority + 1}, {Type: -1}}).Draw(t, "message")
	p.errs(t, "send", q.TrySend(bad), kumquat.ErrInvalid)
	p.errs(t, "send batch", q.TrySendBatch([]kumquat.Message{{}, bad}), kumquat.ErrInvalid)
	_, err := q.TryReceive(kumquat.Filter{MinPriority: kumquat.MaxPriority + 1})
	p.errs(t, "receive", err, kumquat.ErrInvalid)
	if !p.removed {
		p.errs(t, "send by an observer", p.look.TrySend(kumquat.Message{}), kumquat.ErrPermission)
		_, err = p.look.TryReceive()
		p.errs(t, "receive by an observer", err, kumquat.ErrPermission)
		_, err = p.look.Purge(context.Background())
		p.errs(t, "purge by an observer", err, kumquat.ErrPermission)
		_, err = kumquat.Open(context.Background(), p.name, &p.o)
		p.errs(t, "create it again", err, kumquat.ErrExists)
	}
}

// stat compares the queue's numbers with the reference's. It is made after every step.
func (p *program) stat(t *rapid.T) {
	s, err := p.look.Stat(context.Background())
	if p.removed {
		p.errs(t, "stat", err, kumquat.ErrRemoved)
		return
	}
	p.errs(t, "stat", err, nil)
	var bytes int64
	delayed, open, low, high := 0, 0, -1, -1
	for _, x := range p.info {
		bytes += int64(len(x.m.Body))
		if !x.due(p.now) {
			delayed++
		}
		if low < 0 || x.prio < low {
			low = x.prio
		}
		high = max(high, x.prio)
	}
	for _, h := range p.handles {
		if h.q != nil {
			open++
		}
	}
	over := uint64(len(p.lapsed))
	unseen := int(over - s.Expired) // expired, but still there
	switch {
	case s.Sent != p.sent, s.Received != p.received, s.Dropped != p.dropped, s.Expired > over:
		p.wrong(t, "%d sent, %d received, %d dropped, %d expired; should be %d, %d, %d, at most %d",
			s.Sent, s.Received, s.Dropped, s.Expired, p.sent, p.received, p.dropped, over)
	case s.Messages != len(p.items)+unseen:
		p.wrong(t, "%d messages instead of %d, and %d that have expired", s.Messages, len(p.items), unseen)
	case unseen == 0 && (s.Bytes != bytes || s.Delayed != delayed || s.LowestPriority != low || s.HighestPriority != high):
		p.wrong(t, "%d bytes, %d delayed, priorities %d to %d; should be %d, %d, %d to %d",
			s.Bytes, s.Delayed, s.LowestPriority, s.HighestPriority, bytes, delayed, low, high)
	case s.Handles != open, s.Receivers != 0, s.Senders != 0, s.Takeovers != 0:
		p.wrong(t, "%d handles, %d receivers and %d senders that wait, %d takeovers; should be %d and none", s.Handles, s.Receivers, s.Senders, s.Takeovers, open)
	case s.MaxMessages != p.o.MaxMessages || s.MaxSize != p.o.MaxSize || s.MaxHandles != p.o.MaxHandles || s.Overflow != p.o.Overflow || s.Headroom != p.o.Headroom:
		p.wrong(t, "the queue's options are %+v, should be %+v", s, p.o)
	}
	r, err := p.look.Check(context.Background())
	p.errs(t, "check", err, nil)
	var broken error
	for _, x := range r.Problems {
		if x.Broken {
			broken = errors.Join(broken, errors.New(x.Where+": "+x.Text))
		}
	}
	if broken != nil {
		t.Fatalf("check: %v", broken)
	}
}
