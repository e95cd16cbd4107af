package shm

import (
	"fmt"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// parcel is a message on its way into a slot.
type parcel struct {
	body, meta         []byte
	prio               uint64
	mtype              int64
	notBefore, expires int64 // ns, 0: none

	flags uint16 // where body and metadata go
	link  uint64 // the link word without next
	place bool   // the body lies in the slot's extent already
	size  uint64 // of the body then
}

// of makes p the parcel of m. It sets field by field: a literal would be built elsewhere and copied, which the processor does slowly
// right after it was written.
func (p *parcel) of(m *driver.Message, meta []byte) {
	p.body, p.meta, p.prio, p.mtype = m.Body, meta, uint64(m.Priority), m.Type
	p.notBefore, p.expires, p.place, p.size = nanos(m.NotBefore), nanos(m.Expires), false, 0
}

func (p *parcel) timed() bool { return p.notBefore|p.expires != 0 }

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	if y := t.Year(); y < 1970 {
		return 1
	} else if y > 2200 {
		return 1<<63 - 2
	}
	return max(1, t.UnixNano())
}

func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// plan decides where things go: inline what fits, metadata first.
func (p *parcel) plan(q *Queue) {
	room := inlineSize
	p.flags = 0
	p.link = linkWord(0, p.prio)
	if p.timed() {
		p.link |= linkTimed
		if p.notBefore > time.Now().UnixNano() {
			p.link |= linkDelayed
		}
		p.flags |= flagTimed
		room -= timesSize
	}
	size := len(p.body)
	if p.place {
		p.flags |= flagBodyOut
		size = 0
	}
	if len(p.meta)+size > room {
		switch {
		case len(p.meta) <= room && (size > room || len(p.meta) <= room/2):
			p.flags |= flagBodyOut
		case size <= room:
			p.flags |= flagMetaOut
		default:
			p.flags |= flagMetaOut | flagBodyOut
		}
	}
}

// fill writes the message into slot s, which is ours.
func (q *Queue) fill(s uint64, p *parcel) error {
	sl := q.slot(s)
	size := uint64(len(p.body))
	if p.place {
		size = p.size
	}
	if p.flags&flagBodyOut != 0 && !p.place {
		if err := q.backBody(s, size); err != nil {
			return err
		}
		copyBody(view(q.base, q.bodiesAt+s*q.stride, size), p.body)
	}
	if p.flags&flagMetaOut != 0 {
		if err := q.backMeta(s); err != nil {
			return err
		}
		copy(view(q.base, q.metaAt+s*metaBlock, uint64(len(p.meta))), p.meta)
	}
	*p32(sl, sSize) = uint32(size)
	*p16(sl, sMeta), *p16(sl, sFlags) = uint16(len(p.meta)), p.flags
	*p64(sl, sType), *p64(sl, sEnqueued) = uint64(p.mtype), uint64(stamps.now())
	*p32(sl, sSender), *p16(sl, sAttempt) = q.pid, 0
	store32(p32(sl, sOwner), ownerMark(q.me, q.gen))
	at := uint64(sInline)
	if p.flags&flagTimed != 0 {
		*p64(sl, at), *p64(sl, at+8) = uint64(p.notBefore), uint64(p.expires)
		at += timesSize
	}
	if n := uint64(len(p.meta)); p.flags&flagMetaOut == 0 && n > 0 {
		copy(view(sl, at, n), p.meta)
		at += n
	}
	if p.flags&flagBodyOut == 0 {
		copy(view(sl, at, size), p.body)
	}
	return nil
}

// content returns where the body and the metadata of slot s lie. What the slot says is checked: a peer may have written anything.
func (q *Queue) content(s uint64) (body, meta []byte, flags uint16, err error) {
	sl := q.slot(s)
	size, n, flags := uint64(load32(p32(sl, sSize))), uint64(*p16(sl, sMeta)), *p16(sl, sFlags)
	at := uint64(sInline)
	if flags&flagTimed != 0 {
		at += timesSize
	}
	switch {
	case size > q.maxSize || n > metaMax || flags > flagMetaOut|flagBodyOut|flagTimed:
		err = fmt.Errorf("slot %d says %d bytes of body and %d of metadata: %w", s, size, n, driver.ErrCorrupt)
		return
	case flags&flagMetaOut != 0:
		meta = view(q.base, q.metaAt+s*metaBlock, n)
	case at+n > slotSize:
		err = fmt.Errorf("slot %d has %d bytes of metadata inline: %w", s, n, driver.ErrCorrupt)
		return
	default:
		meta = view(sl, at, n)
		at += n
	}
	switch {
	case flags&flagBodyOut != 0:
		body = view(q.base, q.bodiesAt+s*q.stride, size)
	case at+size > slotSize:
		err = fmt.Errorf("slot %d has a body of %d bytes inline: %w", s, size, driver.ErrCorrupt)
	default:
		body = view(sl, at, size)
	}
	return
}

// read copies a claimed message into m. With lent the body stays where it is.
func (q *Queue) read(c *claimed, m *driver.Message, lent *[]byte) error {
	body, meta, flags, err := q.content(c.slot)
	if err != nil {
		return err
	}
	sl := q.slot(c.slot)
	m.Priority, m.Seq, m.Taken = int(c.prio), c.seq, c.stamp
	m.Type, m.Enqueued = int64(*p64(sl, sType)), time.Unix(0, int64(*p64(sl, sEnqueued)))
	m.Sender, m.Attempt = int(*p32(sl, sSender)), int(*p16(sl, sAttempt))
	if load(q.timed)&someLeases != 0 {
		m.Attempt += q.failures(c.slot, c.seq)
	}
	if flags&flagTimed != 0 {
		m.NotBefore, m.Expires = timeOf(int64(*p64(sl, sInline))), timeOf(int64(*p64(sl, sInline+8)))
	}
	if len(meta) > 0 {
		var own [metaMax]byte // what a peer changes while we read must not matter
		if err := decodeMeta(own[:copy(own[:], meta)], m); err != nil {
			return err
		}
	}
	if lent != nil {
		*lent = body
		m.Body = body
		return nil
	}
	if n := len(body); c.inside && 0 < n && n <= slabFor {
		m.Body = q.hold.cut(len(body))
	} else {
		m.Body = make([]byte, len(body))
	}
	copyBody(m.Body, body)
	return nil
}

const (
	slabFor  = 128
	slabSize = 1024
)

// cut cuts room for a short body from a slab. An allocation of its own would cost a quarter of a receive; who keeps one body keeps at
// most slabSize bytes.
func (h *holder) cut(n int) []byte {
	if len(h.slab) < n {
		h.slab = make([]byte, slabSize)
	}
	b := h.slab[:n:n]
	h.slab = h.slab[n:]
	return b
}

// readBody copies a claimed message's body into buf.
func (q *Queue) readBody(c *claimed, buf []byte) (int, error) {
	body, _, _, err := q.content(c.slot)
	if err != nil {
		return 0, err
	}
	if len(body) > len(buf) { // it was shorter when we looked, before we claimed it
		return 0, fmt.Errorf("slot %d changed its size to %d: %w", c.slot, len(body), driver.ErrCorrupt)
	}
	return copyBody(buf, body), nil
}
