package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// target is a queue that messages are moved or copied into.
type target struct {
	q       *kumquat.Queue
	kind    string
	maxSize int
	strip   bool           // leave out what the queue cannot carry
	try     bool           // never wait for room
	timeout *time.Duration // of one wait for room; nil: for ever
}

func newTarget(ctx context.Context, q *kumquat.Queue, strip bool) (*target, error) {
	s, err := q.Stat(ctx)
	if err != nil {
		return nil, err
	}
	return &target{q: q, kind: kindOf(q.Name()), maxSize: s.MaxSize, strip: strip}, nil
}

// anyType reports whether it takes messages of every type.
func (t *target) anyType() bool {
	return t.kind == engineKind || t.kind == sysvKind && !t.byPriority() || t.strip
}

func (t *target) byPriority() bool { return isByPriority(t.q.Name()) }

// isByPriority reports whether a name is that of a System V queue whose types are priorities.
func isByPriority(name string) bool { return strings.HasPrefix(name, "sysv+priority:") }

// fit returns the message as it can be sent, or why it cannot.
func (t *target) fit(m *kumquat.Message) (kumquat.Message, error) {
	out := *m
	out.Enqueued, out.Attempt, out.Sender, out.Seq, out.Taken = time.Time{}, 0, 0, 0, 0
	if !out.NotBefore.After(time.Now()) {
		out.NotBefore = time.Time{}
	}
	if len(m.Body) > t.maxSize {
		return out, tooLongFor{len(m.Body), t}
	}
	if t.kind == engineKind {
		return out, nil
	}
	var lost []string
	if t.kind == sysvKind && !t.byPriority() {
		if out.Priority > 0 {
			lost = append(lost, fmt.Sprintf("its priority %d (sysv+priority:… carries it)", out.Priority))
		}
		out.Priority = 0
	} else {
		if out.Type > 1 {
			lost = append(lost, fmt.Sprintf("its type %d", out.Type))
		}
		out.Type = 1
	}
	if !bare(&out) {
		lost = append(lost, "its metadata ("+shorten(metaText(&out), 60)+")")
		out = kumquat.Message{Body: out.Body, Priority: out.Priority, Type: out.Type}
	}
	if len(lost) > 0 && !t.strip {
		return out, fmt.Errorf("%w: %s cannot carry the next message whole: not %s; --strip leaves that out", kumquat.ErrUnsupported, t.q.Name(),
			strings.Join(lost, ", nor "))
	}
	return out, nil
}

// tooLongFor says that a message is longer than a queue takes.
type tooLongFor struct {
	n int
	t *target
}

func (e tooLongFor) Error() string {
	return fmt.Sprintf("the next message is %d bytes long, and %s takes %d at most", e.n, e.t.q.Name(), e.t.maxSize)
}

func (e tooLongFor) Unwrap() error { return kumquat.ErrTooLarge }

// send sends m and waits for room as the flags say.
func (t *target) send(ctx context.Context, m kumquat.Message) error {
	if t.try {
		return t.q.TrySend(m)
	}
	ctx, cancel := bounded(ctx, t.timeout)
	defer cancel()
	return t.q.Send(ctx, m)
}
