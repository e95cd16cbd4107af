package kumquat

import (
	"context"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// Select waits until one of the queues has something to receive and returns it. It takes nothing: follow it by TryReceive, which
// may find the queue empty if another receiver was faster, or, on queues that cannot do Selecting and whose descriptor serves
// instead, if that was readable for nothing. Where several have something, they take turns over the calls. The queues
// may be of different drivers. It waits by events, never by polling.
//
// A queue that fails (closed, removed) ends Select with its error. Other errors: ErrInvalid (no queues), ErrUnsupported (a queue
// whose driver can neither tell nor has a descriptor), ErrTimeout, context.Canceled.
func Select(ctx context.Context, queues ...*Queue) (*Queue, error) {
	const op = "select"
	switch {
	case ctx == nil:
		return nil, &Error{Op: op, Err: errNilContext}
	case len(queues) == 0:
		return nil, &Error{Op: op, Err: invalid("no queues were given: it would wait for ever")}
	}
	for _, q := range queues {
		if q == nil {
			return nil, &Error{Op: op, Err: invalid("a queue is nil")}
		}
		if q.ready == nil && q.fd == nil {
			return nil, q.unsupported(op, Selecting)
		}
	}
	s := selection{queues: queues, wake: make(chan struct{}, 1), asks: make([]ask, len(queues))}
	defer s.stop()
	for i := range s.asks {
		s.asks[i].again.Store(true)
	}
	turn := int(turns.Add(1) % uint64(len(queues)))
	for {
		for k := range queues {
			i := (turn + k) % len(queues)
			if !s.asks[i].again.Swap(false) {
				continue
			}
			ready, err := s.look(i)
			if err != nil {
				return nil, queues[i].fail(op, err)
			}
			if ready {
				return queues[i], nil
			}
		}
		if err := s.watch(); err != nil {
			return nil, err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, &Error{Op: op, Err: driver.ContextError(ctx)}
		}
	}
}

// turns shifts the queue that Select looks at first, so that a busy one cannot hide the others.
var turns atomic.Uint64

// selection is one running Select. Queues with a Readier call wake themselves; for the others one goroutine polls the descriptors.
type selection struct {
	queues []*Queue
	asks   []ask
	wake   chan struct{}
	poll   *poller
}

type ask struct {
	again atomic.Bool // look at this queue (again)
	stop  func()
}

func (s *selection) woken(i int) {
	s.asks[i].again.Store(true)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// look reports whether queue i has something. If not, woken(i) will be called when it should be looked at again, for descriptors
// once watch runs.
func (s *selection) look(i int) (bool, error) {
	q, a := s.queues[i], &s.asks[i]
	if q.ready != nil {
		if a.stop != nil {
			a.stop()
		}
		ready, stop, err := q.ready.Ready(Filter{}, func() { s.woken(i) })
		a.stop = stop
		return ready, err
	}
	fd, err := q.fd.FD()
	if err != nil {
		return false, err
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := pollFDs(fds, 0)
	return n > 0, err
}

// watch starts the poller if some queue needs it and it does not run.
func (s *selection) watch() error {
	if s.poll != nil && !s.poll.ended() {
		return nil
	}
	s.poll = nil
	for i, q := range s.queues {
		if q.ready != nil {
			continue
		}
		fd, err := q.fd.FD()
		if err == nil && s.poll == nil {
			s.poll, err = newPoller(s.woken)
		}
		if err != nil {
			return q.fail("select", err)
		}
		s.poll.add(i, fd, q.closed)
	}
	if s.poll != nil {
		s.poll.start()
	}
	return nil
}

func (s *selection) stop() {
	for i := range s.asks {
		if s.asks[i].stop != nil {
			s.asks[i].stop()
		}
	}
	if s.poll != nil {
		s.poll.stop()
	}
}
