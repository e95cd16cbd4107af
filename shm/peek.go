package shm

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// slotHead is what a slot says of its message.
type slotHead struct {
	size, metaLen, flags, bodyUp uint64
	typ, enqueued                int64
	sender                       uint32
	attempt                      uint16
	notBefore, expires           int64 // ns, 0: none
	inline                       []byte
}

func parseSlot(b []byte) slotHead {
	meta := u32at(b, sMeta) // and flags
	h := slotHead{size: uint64(u32at(b, sSize)), metaLen: uint64(meta & 0xffff), flags: uint64(meta >> 16), typ: int64(u64at(b, sType)),
		enqueued: int64(u64at(b, sEnqueued)), sender: u32at(b, sSender), attempt: uint16(u32at(b, sAttempt)), bodyUp: uint64(u32at(b, sBodyUp)) * 64,
		inline: b[sInline:slotSize]}
	if h.flags&flagTimed != 0 {
		h.notBefore, h.expires, h.inline = int64(u64at(h.inline, 0)), int64(u64at(h.inline, 8)), h.inline[timesSize:]
	}
	return h
}

// fault says what is wrong with a published message's header, or "".
func (h *slotHead) fault(l *layout) string {
	inline := uint64(0)
	if h.flags&flagMetaOut == 0 {
		inline += h.metaLen
	}
	if h.flags&flagBodyOut == 0 {
		inline += h.size
	}
	switch {
	case h.flags&^(flagMetaOut|flagBodyOut|flagTimed) != 0:
		return fmt.Sprintf("has the unknown flags %#x", h.flags)
	case h.size > l.maxSize:
		return fmt.Sprintf("says its body has %d bytes, the most is %d", h.size, l.maxSize)
	case h.metaLen > metaMax:
		return fmt.Sprintf("says its metadata has %d bytes, the most is %d", h.metaLen, metaMax)
	case inline > uint64(len(h.inline)):
		return fmt.Sprintf("says that %d bytes lie inline, there is room for %d", inline, len(h.inline))
	case h.flags&flagBodyOut != 0 && h.size > h.bodyUp:
		return fmt.Sprintf("has a body of %d bytes, but memory for %d only", h.size, h.bodyUp)
	case h.typ < 0:
		return fmt.Sprintf("has the type %d, types are positive", h.typ)
	case h.notBefore < 0 || h.expires < 0:
		return "has a negative time"
	}
	return ""
}

// linkFault says what is wrong with its link, or "".
func (h *slotHead) linkFault(link uint64) string {
	switch {
	case link&^(2*linkDelayed-1) != 0:
		return fmt.Sprintf("has a link %#x with bits that mean nothing", link)
	case linkIsTimed(link) != (h.flags&flagTimed != 0) || link&linkDelayed != 0 && h.notBefore == 0:
		return "is timed according to its link or to its flags, but not to both"
	}
	return ""
}

// key is a message's place in what Peek yields.
type key struct {
	major int64  // type with TypeAtMost; NotBefore of a delayed one
	minor uint64 // 32,767 − priority, then age
	slot  uint32
}

func compareKeys(a, b key) int {
	if a.major != b.major {
		return cmp.Compare(a.major, b.major)
	}
	return cmp.Compare(a.minor, b.minor)
}

func nanoTime(ns int64) time.Time {
	if ns <= 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// Peek yields the messages that wait, in the order in which they would be received, then the delayed ones by their time. It takes
// a snapshot of the order first and reads each message when it is asked for: one that was taken meanwhile is left out. A message
// that is damaged is yielded as an error that wraps ErrCorrupt; the next one follows it.
func (o *observer) Peek(ctx context.Context, p driver.PeekOptions) iter.Seq2[driver.Message, error] {
	return func(yield func(driver.Message, error) bool) {
		blind := p.Match == nil && p.Filter.Key == "" // what is skipped need not be read
		bound := 0
		if sum := p.Skip + p.Limit; blind && p.Limit > 0 && sum > 0 && sum < boundMost {
			bound = 2*sum + boundSpare
		}
		s, due, delayed, err := o.order(ctx, p.Filter, bound)
		if err != nil {
			yield(driver.Message{}, err)
			return
		}
		skip, left := p.Skip, p.Limit
		for n, k := range sorted(due, delayed, p.Limit > 0) {
			if blind && skip > 0 {
				skip--
				continue
			}
			if n%256 == 255 && ctx.Err() != nil {
				yield(driver.Message{}, driver.ContextError(ctx))
				return
			}
			m, ok, err := o.message(k, s, p.NoBody && p.Match == nil)
			switch {
			case err != nil:
				if !yield(m, err) {
					return
				}
				continue
			case !ok || !p.Filter.Match(&m) || p.Match != nil && !p.Match(m.Body):
				continue
			case skip > 0:
				skip--
				continue
			}
			if p.NoBody {
				m.Body = nil
			}
			if !yield(m, nil) {
				return
			}
			if left--; left == 0 {
				return
			}
		}
	}
}

// A peek that is limited keeps the first keys only: some more than it needs, since messages may be taken before they are read.
const (
	boundMost  = 1 << 20
	boundSpare = 1000
)

// firstKeys gathers keys; with a bound only the lowest, at least bound of them.
type firstKeys struct {
	keys  []key
	bound int
	worst key // of the bound that were kept last
	full  bool
}

func (f *firstKeys) add(k key) {
	if f.full && compareKeys(k, f.worst) > 0 {
		return
	}
	f.keys = append(f.keys, k)
	if f.bound > 0 && len(f.keys) >= 2*f.bound {
		slices.SortFunc(f.keys, compareKeys)
		f.keys = f.keys[:f.bound]
		f.worst, f.full = f.keys[f.bound-1], true
	}
}

// order returns the keys of the messages that may match f: those due and those delayed; if bound is not 0, of either the first
// bound at least.
func (o *observer) order(ctx context.Context, f driver.Filter, bound int) (s *snapshot, due, delayed []key, err error) {
	if err := o.gone(); err != nil {
		return nil, nil, nil, err
	}
	if s, err = o.snapshot(ctx); err != nil {
		return nil, nil, nil, err
	}
	now := time.Now().UnixNano()
	f.Key = "" // needs the metadata: Peek asks again
	dues, delays := firstKeys{bound: bound}, firstKeys{bound: bound}
	err = s.messages(ctx, func(e *seen) bool {
		h := parseSlot(e.head)
		h.notBefore = max(h.notBefore, e.retry)
		m := driver.Message{Type: h.typ, Priority: int(linkPrio(e.link))}
		if !f.Match(&m) || h.expires > 0 && h.expires <= now {
			return true
		}
		k := key{minor: (driver.MaxPriority-linkPrio(e.link))<<seqBits | (seqOf(e.state)-headSeq(s.head)-1)&seqMask, slot: uint32(e.slot)}
		if h.notBefore > now {
			k.major = h.notBefore
			delays.add(k)
			return true
		}
		if f.TypeAtMost > 0 {
			k.major = h.typ
		}
		dues.add(k)
		return true
	})
	return s, dues.keys, delays.keys, err
}

func (k *key) prio() uint64           { return driver.MaxPriority - k.minor>>seqBits }
func (k *key) seq(s *snapshot) uint64 { return (k.minor + headSeq(s.head) + 1) & seqMask }

// sorted yields due, then delayed, each in order. If only a few will be asked for it makes a heap instead of sorting them all.
func sorted(due, delayed []key, few bool) iter.Seq2[int, key] {
	return func(yield func(int, key) bool) {
		n := 0
		for _, keys := range [...][]key{due, delayed} {
			next := func() key { k := keys[0]; keys = keys[1:]; return k }
			if few {
				for i := len(keys)/2 - 1; i >= 0; i-- {
					siftDown(keys, i)
				}
				next = func() key {
					k := keys[0]
					keys[0] = keys[len(keys)-1]
					keys = keys[:len(keys)-1]
					siftDown(keys, 0)
					return k
				}
			} else {
				slices.SortFunc(keys, compareKeys)
			}
			for len(keys) > 0 {
				if !yield(n, next()) {
					return
				}
				n++
			}
		}
	}
}

func siftDown(h []key, i int) {
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && compareKeys(h[c+1], h[c]) < 0 {
			c++
		}
		if compareKeys(h[i], h[c]) <= 0 {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

// carries reports whether slot i still holds the published message seq: then nothing of it has changed.
func (o *observer) carries(i, seq uint64) (bool, error) {
	w, err := o.word(o.slotBase(i) + sState)
	return kindOf(w) == kindReady && seqOf(w) == seq, err
}

// message reads the message of k; false: it is no longer there. What was read counts only if the state word says the same
// afterwards. A takeover may have changed the tag: that is no change of the message. Nor can the link that k was made from have
// been another's: a slot that has carried another message since never carries this one again.
func (o *observer) message(k key, s *snapshot, noBody bool) (m driver.Message, ok bool, err error) {
	i, seq := uint64(k.slot), k.seq(s)
	var b [slotSize]byte
	if err := o.read(b[:], o.slotBase(i)); err != nil {
		return m, false, err
	}
	if w := u64at(b[:], sState); kindOf(w) != kindReady || seqOf(w) != seq {
		return m, false, nil
	}
	h := parseSlot(b[:])
	m = driver.Message{Priority: int(k.prio()), Type: h.typ, NotBefore: nanoTime(h.notBefore), Expires: nanoTime(h.expires),
		Enqueued: nanoTime(h.enqueued), Attempt: int(h.attempt), Sender: int(h.sender), Seq: seq}
	if i < s.records {
		var r [recordSize]byte
		if err := o.read(r[:], o.recordBase(i)); err != nil {
			return m, false, err
		}
		n, _ := recordOf(r[:], seq)
		m.Attempt += n
	}
	why := h.fault(&o.layout)
	if why == "" {
		why, err = o.contents(i, &h, &m, noBody)
		if err != nil {
			return m, false, err
		}
	}
	if ok, err := o.carries(i, seq); err != nil || !ok {
		return driver.Message{}, false, err
	}
	if why != "" {
		m.Body = nil
		return m, false, fmt.Errorf("the message %d in slot %d %s: %w", seq, i, why, driver.ErrCorrupt)
	}
	return m, true, nil
}

const largeBody = 1 << 20

// contents reads metadata and body, whose lengths fault has checked. It returns what is wrong with them.
func (o *observer) contents(i uint64, h *slotHead, m *driver.Message, noBody bool) (why string, err error) {
	rest := h.inline
	var meta []byte
	if h.flags&flagMetaOut == 0 {
		meta, rest = rest[:h.metaLen], rest[h.metaLen:]
	} else {
		meta = make([]byte, h.metaLen)
		if err := o.read(meta, o.metaAt+i*metaBlock); err != nil {
			return "", err
		}
	}
	if decodeMeta(meta, m) != nil {
		why = "has damaged metadata"
	}
	if noBody || why != "" {
		return why, nil
	}
	if h.size > largeBody { // before memory is asked for: is there so much at all?
		st, err := o.stat()
		if err != nil {
			return "", err
		}
		if h.size > uint64(st.Blocks)*512 {
			return fmt.Sprintf("says its body has %d bytes, the whole file has memory for %d", h.size, st.Blocks*512), nil
		}
	}
	m.Body = make([]byte, h.size)
	if h.flags&flagBodyOut == 0 {
		copy(m.Body, rest)
		return why, nil
	}
	return why, o.read(m.Body, o.bodiesAt+i*o.stride)
}
