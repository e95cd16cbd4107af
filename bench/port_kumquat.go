package bench

import (
	"context"
	"fmt"
	"os"

	"github.com/kumquat-mq/kumquat"
)

// sender opens queue number q for sending.
func (w *work) sender(q int) (sender, error) {
	switch w.Subject {
	case "cacheline":
		return &bounce{ctl: w.ctl, ping: w.Role == rolePing}, nil
	case "futex":
		return &bareFutex{ctl: w.ctl, out: offPing + 64*q}, nil
	case "gochan", "memcpy":
		return nil, nil
	case "posix", "sysv", "sysv-types", "pipe", "unix":
		return w.kernelSender(q)
	}
	k, err := w.kumquat(q)
	if err != nil {
		return nil, err
	}
	switch {
	case w.Batch > 1:
		return newBatchSender(k, w.Batch, w.Size), nil
	case w.Subject == "kumquat-message" || w.Filtered:
		return &messageSender{k, 1}, nil
	}
	return bytesSender{k}, nil
}

// receiver opens queue number q for receiving.
func (w *work) receiver(q int) (receiver, error) {
	switch w.Subject {
	case "cacheline":
		return &bounce{ctl: w.ctl, ping: w.Role == rolePing, body: make([]byte, w.Size)}, nil
	case "futex":
		return &bareFutex{ctl: w.ctl, in: offPing + 64*q, body: make([]byte, w.Size)}, nil
	case "gochan", "memcpy":
		return nil, nil
	case "posix", "sysv", "sysv-types", "pipe", "unix":
		return w.kernelReceiver(q)
	}
	k, err := w.kumquat(q)
	if err != nil {
		return nil, err
	}
	switch {
	case w.Batch > 1:
		return &batchReceiver{q: k, ms: make([]kumquat.Message, w.Batch)}, nil
	case w.Filtered:
		return filteredReceiver{k}, nil
	case w.Subject == "kumquat-message":
		return messageReceiver{k}, nil
	case w.Subject == "kumquat-try":
		return tryReceiver{k}, nil
	}
	return bytesReceiver{k}, nil
}

func (w *work) kumquat(q int) (*kumquat.Queue, error) {
	k, err := kumquat.Open(context.Background(), w.Names[q], nil)
	if err != nil {
		return nil, err
	}
	w.closer = append(w.closer, k.Close)
	return k, nil
}

// kumquatName returns a name for a queue that no other measurement uses.
func kumquatName(n int) string { return fmt.Sprintf("/kumquat-bench-%d-%d", os.Getpid(), n) }

type bytesSender struct{ q *kumquat.Queue }

func (s bytesSender) send(body []byte, priority int) error {
	return s.q.SendBytes(context.Background(), body, priority)
}

type bytesReceiver struct{ q *kumquat.Queue }

func (r bytesReceiver) receive(buf []byte) ([]byte, error) {
	n, _, err := r.q.ReceiveInto(context.Background(), buf)
	return buf[:n], err
}

// tryReceiver polls, for those who have a core to spare.
type tryReceiver struct{ q *kumquat.Queue }

func (r tryReceiver) receive(buf []byte) ([]byte, error) {
	for {
		n, _, err := r.q.TryReceiveInto(buf)
		if !isEmpty(err) {
			return buf[:n], err
		}
	}
}

type messageSender struct {
	q *kumquat.Queue
	t int64
}

func (s *messageSender) send(body []byte, priority int) error {
	return s.q.Send(context.Background(), kumquat.Message{Body: body, Priority: priority, Type: s.t})
}

func (s *messageSender) setType(t int64) { s.t = t }

type messageReceiver struct{ q *kumquat.Queue }

func (r messageReceiver) receive([]byte) ([]byte, error) {
	m, err := r.q.Receive(context.Background())
	return m.Body, err
}

type filteredReceiver struct{ q *kumquat.Queue }

func (r filteredReceiver) receive([]byte) ([]byte, error) {
	m, err := r.q.Receive(context.Background(), kumquat.Type(1))
	return m.Body, err
}

// batchSender sends its messages by the batch.
type batchSender struct {
	q  *kumquat.Queue
	ms []kumquat.Message
	n  int
}

func newBatchSender(q *kumquat.Queue, batch, size int) *batchSender {
	s := &batchSender{q: q, ms: make([]kumquat.Message, batch)}
	for i := range s.ms {
		s.ms[i].Body = make([]byte, size)
		s.ms[i].Type = 1
	}
	return s
}

func (s *batchSender) send(body []byte, priority int) error {
	m := &s.ms[s.n]
	copy(m.Body, body)
	m.Priority = priority
	if s.n++; s.n < len(s.ms) {
		return nil
	}
	s.n = 0
	return s.q.SendBatch(context.Background(), s.ms)
}

func (s *batchSender) flush() error {
	n := s.n
	s.n = 0
	return s.q.SendBatch(context.Background(), s.ms[:n])
}

type batchReceiver struct {
	q        *kumquat.Queue
	ms, rest []kumquat.Message
}

// giveBack sends what is left of the last batch: end marks that are for other consumers.
func (r *batchReceiver) giveBack() error {
	rest := r.rest
	r.rest = nil
	for _, m := range rest {
		if err := r.q.Send(context.Background(), kumquat.Message{Body: m.Body}); err != nil {
			return err
		}
	}
	return nil
}

func (r *batchReceiver) receive([]byte) ([]byte, error) {
	if len(r.rest) == 0 {
		n, err := r.q.ReceiveBatchInto(context.Background(), r.ms)
		if err != nil {
			return nil, err
		}
		r.rest = r.ms[:n]
	}
	b := r.rest[0].Body
	r.rest = r.rest[1:]
	return b, nil
}
