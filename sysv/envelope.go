package sysv

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/envelope"
)

// What a handle with Options.Envelope does otherwise (docs/envelope.md).

// leastEnvelope is the room in bytes that is set aside for each message's envelope where the limits allow no more: its header, time and
// sender, and some short names.
const leastEnvelope = 128

// sealing is how much longer than MaxSize messages may be.
func sealing(o *driver.Options) int {
	if o.Envelope {
		return envelope.Overhead
	}
	return 0
}

// tight reports whether a queue of this shape, too large for kernel.msgmnb with the longest envelopes, has room there with short
// ones. Then it is made as large as every queue, and long metadata fill it before its messages are counted.
func tight(o *driver.Options) bool {
	most := int64(sysctl("msgmnb"))
	n, each := int64(o.MaxMessages), int64(o.MaxSize)
	return o.Envelope && n > 0 && each > 0 && n <= most && n*(each+leastEnvelope) <= most && n*(each+envelope.Overhead) > most
}

// madeFor reports whether a queue of these bytes was made with MaxMessages and MaxSize as o says.
func madeFor(o *driver.Options, bytes int64) bool {
	return o.MaxMessages > 0 && o.MaxSize > 0 &&
		(int64(o.MaxMessages)*int64(o.MaxSize+sealing(o)) == bytes || tight(o) && bytes == int64(sysctl("msgmnb")))
}

// sealed makes h one of envelopes.
func (h *handle) sealed(st *Status) error {
	longest := st.QBytes
	if most := sysctl("msgmax"); most >= 0 {
		longest = min(longest, int64(most))
	}
	if longest <= envelope.Overhead {
		return unsupported("the queue takes messages of %d bytes (msg_qbytes, kernel.msgmax), and an envelope may need %d: make one with a larger MaxSize",
			longest, envelope.Overhead)
	}
	h.envelope = true
	return nil
}

func (h *handle) sealedStats(s *driver.Stats) {
	if sh := h.q.s.shape.Load(); sh == nil || sh.size == 0 {
		s.MaxSize = max(0, s.MaxSize-envelope.Overhead)
	}
	s.Bytes = -1 // the kernel counts envelopes and bodies together
}

func (h *handle) sendSealed(ctx context.Context, typ int64, m *driver.Message, try bool) error {
	if err := h.mayPut(len(m.Body)); err != nil {
		return err
	}
	if most := sysctl("msgmax"); most >= 0 && len(m.Body) > most { // before it is copied
		return failure(driver.ErrTooLarge, unix.EINVAL, "%d bytes, and kernel.msgmax = %d", len(m.Body), most)
	}
	has := envelope.HasType
	if h.priorities {
		has = envelope.HasPriority
	}
	b := h.q.take(len(m.Body) + envelope.Overhead)
	defer h.q.put(b)
	sealed, err := envelope.Seal(b.b[:0], m, has)
	if err != nil {
		return err
	}
	return h.put(ctx, typ, sealed, try)
}

// message is what the kernel gave, taken out of its envelope if there is one. live is false for a message that has expired.
func (h *handle) message(b []byte, mtype int64) (m driver.Message, live bool, err error) {
	if !h.envelope {
		m.Body = slices.Clone(b)
	} else if m, live, err = envelope.Unseal(b); err != nil || !live {
		return driver.Message{}, false, err
	}
	h.received(&m, mtype)
	return m, true, nil
}

// expiredAtOnce bounds what one receive discards: only somebody who sends expired messages without end gets there.
const expiredAtOnce = 1 << 17

func (h *handle) receiveSealed(ctx context.Context, typ int64, flags int) (driver.Message, error) {
	for range expiredAtOnce {
		if m, live, err := h.receive(ctx, typ, flags); err != nil || live {
			return m, err
		}
	}
	return driver.Message{}, fmt.Errorf("%w: nothing but messages that have expired came", driver.ErrCorrupt)
}
