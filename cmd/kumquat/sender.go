package main

import (
	"context"
	"errors"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// sender sends the bodies it is given with the same metadata, in batches.
type sender struct {
	q          *kumquat.Queue
	like       kumquat.Message // what all of them have but the body
	delay, ttl time.Duration   // 0: none
	try        bool            // never wait for room
	timeout    *time.Duration  // of one wait for room; nil: for ever

	batch []kumquat.Message
	full  int // of batch: sent when it has this many
	sent  int
	tell  *progress
}

// maxGather bounds a batch that is gathered from a stream.
const maxGather = 4096

func newSender(q *kumquat.Queue, like kumquat.Message) *sender {
	s := &sender{q: q, like: like, full: min(q.MaxBatch(), maxGather)}
	s.batch = make([]kumquat.Message, 0, s.full)
	return s
}

// message returns the message of a body, its times counted from now.
func (s *sender) message(body []byte, now time.Time) kumquat.Message {
	m := s.like
	m.Body = body
	if s.delay > 0 {
		m.NotBefore = now.Add(s.delay)
	}
	if s.ttl > 0 {
		m.Expires = now.Add(s.ttl)
	}
	return m
}

// one sends a single body.
func (s *sender) one(ctx context.Context, body []byte) error {
	return s.wait(ctx, s.message(body, time.Now()))
}

// wait sends m and waits for room as the flags say.
func (s *sender) wait(ctx context.Context, m kumquat.Message) error {
	if s.try {
		return s.q.TrySend(m)
	}
	ctx, cancel := bounded(ctx, s.timeout)
	defer cancel()
	return s.q.Send(ctx, m)
}

// add takes body into the batch and sends the batch when it is full. The body may be changed only after flush.
func (s *sender) add(ctx context.Context, body []byte) error {
	// A batch is used again: all of its messages but the new ones have their metadata already.
	n := len(s.batch)
	s.batch = s.batch[:n+1]
	if m := &s.batch[n]; m.Type == 0 {
		*m = s.like
	}
	s.batch[n].Body = body
	if n+1 == s.full {
		return s.flush(ctx)
	}
	return nil
}

// flush sends what is in the batch, in order. Where the queue has no room for all of it, it sends half of it, then half of that;
// it waits with one message only, so that a queue with some room always gets what fits.
func (s *sender) flush(ctx context.Context) error {
	rest := s.batch
	s.batch = s.batch[:0]
	if s.delay > 0 || s.ttl > 0 {
		now := time.Now()
		for i := range rest {
			rest[i] = s.message(rest[i].Body, now)
		}
	}
	for size := len(rest); len(rest) > 0; size = min(size, len(rest)) {
		var err error
		if size > 1 {
			err = s.q.TrySendBatch(rest[:size])
			// Too large is a batch for the room that headroom leaves, and a body that is too long: the single sends tell.
			if errors.Is(err, kumquat.ErrFull) || errors.Is(err, kumquat.ErrTooLarge) {
				size /= 2
				continue
			}
		} else {
			err = s.wait(ctx, rest[0])
		}
		if err != nil {
			return err
		}
		s.sent += size
		rest = rest[size:]
		// After a wait there is often much room, after a batch that had to be halved perhaps.
		size = len(rest)
		s.tell.show(s.sent)
		if err := ctx.Err(); err != nil && len(rest) > 0 {
			return err
		}
	}
	return nil
}

// bounded returns ctx with one wait's timeout; nil: none.
func bounded(ctx context.Context, timeout *time.Duration) (context.Context, context.CancelFunc) {
	if timeout == nil {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, *timeout)
}
