package rpc

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// session is one client that is connected.
type session struct {
	s       *Server
	peer    *Peer
	conn    *net.UnixConn
	replies *kumquat.Queue
	lane    *lane           // where its requests come from: the shared one, or its own
	ctx     context.Context // of its calls: ends with the client
	cancel  context.CancelCauseFunc
	ended   bool // the client is gone; one-way calls of it may still wait. Under Server.mu

	mu      sync.Mutex
	calls   map[uint64]context.CancelFunc // that run
	early   map[uint64]bool               // cancelled before they came
	earlier [earlyCancels]uint64          // those, to forget the oldest
	earlyAt int
}

// earlyCancels is how many cancellations of requests that still wait are remembered for each client. Of more, the oldest call runs and
// nobody hears of its result.
const earlyCancels = 256

// greet makes a session of a connection and serves it until its end.
func (s *Server) greet(c *net.UnixConn) {
	defer func() {
		s.mu.Lock()
		delete(s.greeting, c)
		s.mu.Unlock()
		_ = c.Close()
	}()
	_ = c.SetDeadline(time.Now().Add(greetTime))
	p, err := peerOf(c)
	var h hello
	if err == nil {
		if err = s.count(p, 1); err == nil {
			defer func() { _ = s.count(p, -1) }()
		}
		// It is read in any case: what is closed with something unread takes the answer with it.
		if e := readPacket(c, &h); err == nil {
			err = e
		}
	}
	if err == nil && s.o.Allow != nil {
		if err = s.o.Allow(p); err != nil {
			if e := asError(err); e.Code == Unknown {
				err = &Error{PermissionDenied, e.Message, e.Details}
			}
		}
	}
	var x *session
	if err == nil {
		x, err = s.newSession(c, p, h)
	}
	if err != nil {
		if p != nil {
			s.o.Log.Warn("rpc: a client was turned away", "service", s.name, "pid", p.PID, "uid", p.UID, "error", err)
		}
		_ = writePacket(c, welcome{Protocol: protocol, Error: asError(err)}) // it may be gone
		return
	}
	err = writePacket(c, welcome{Protocol: protocol, Requests: x.lane.q.Name(), Replies: x.replies.Name()})
	_ = c.SetDeadline(time.Time{})
	cause := ErrDied
	if err == nil {
		cause = x.listen()
	}
	x.end(cause)
}

// count keeps the number of connections in its bounds, in all and for each user other than ours. There is room for one at least.
func (s *Server) count(p *Peer, n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 {
		if s.leaving {
			return ErrStopped
		}
		if s.clients >= s.o.MaxClients {
			return fmt.Errorf("%d clients are connected, MaxClients allows no more: %w", s.clients, kumquat.ErrLimit)
		}
		if most := max(1, s.o.MaxClients/4); p.UID != os.Geteuid() && s.perUser[p.UID] >= most {
			return fmt.Errorf("user %d has %d clients connected, a quarter of MaxClients: %w", p.UID, most, kumquat.ErrLimit)
		}
	}
	s.clients += n
	if s.perUser[p.UID] += n; s.perUser[p.UID] == 0 {
		delete(s.perUser, p.UID)
	}
	return nil
}

// newSession makes the queues of a client.
func (s *Server) newSession(c *net.UnixConn, p *Peer, h hello) (_ *session, err error) {
	if h.Protocol != protocol {
		return nil, fmt.Errorf("the client speaks version %d of the protocol, the server %d: %w", h.Protocol, protocol, kumquat.ErrUnsupported)
	}
	if h.Outstanding < 1 || h.Outstanding > maxOutstanding {
		return nil, fmt.Errorf("%w: Outstanding %d is not from 1 to %d", kumquat.ErrInvalid, h.Outstanding, maxOutstanding)
	}
	s.mu.Lock()
	s.next++
	base := s.folder + "/" + strconv.FormatUint(s.next, 10)
	s.mu.Unlock()
	stranger := p.UID != os.Geteuid()
	if stranger && p.UID == overflowUID() {
		return nil, fmt.Errorf("the client's user cannot be named here, it lives in another user namespace: %w", kumquat.ErrPermission)
	}
	var made []*kumquat.Queue
	defer func() {
		if err != nil {
			for _, q := range made {
				_ = discard(q)
			}
		}
	}()
	private := func(name string, messages int) (*kumquat.Queue, error) {
		q, err := s.open(s.ctx, name, messages, 4)
		if err != nil {
			return nil, err
		}
		made = append(made, q)
		if !stranger {
			return q, nil
		}
		st, err := q.Stat(s.ctx)
		if err != nil {
			return nil, err
		}
		return q, admit(st.Path, p.UID)
	}
	x := &session{s: s, peer: p, conn: c, lane: s.shared, calls: map[uint64]context.CancelFunc{}, early: map[uint64]bool{}}
	// Twice as many as can be asked for: replies to calls that were given up lie there for a while.
	if x.replies, err = private(base, 2*h.Outstanding+staleReplies); err != nil {
		return nil, err
	}
	x.ctx, x.cancel = context.WithCancelCause(s.ctx)
	var own *lane
	if stranger || s.o.Isolate {
		q, err := private(base+"-requests", s.o.MaxRequests)
		if err != nil {
			x.cancel(err)
			return nil, err
		}
		own = newLane(s, q, x, min(s.o.Workers, isolatedWorkers))
		x.lane = own
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		x.cancel(ErrStopped)
		return nil, ErrStopped
	}
	s.sessions[x.replies.Name()] = x
	delete(s.greeting, c)
	if own != nil {
		own.start()
	}
	return x, nil
}

// overflowUID is what the kernel calls a user that has no number in our user namespace.
var overflowUID = sync.OnceValue(func() int {
	b, err := os.ReadFile("/proc/sys/kernel/overflowuid")
	if err != nil {
		return 65534
	}
	var n int
	if _, err := fmt.Sscan(string(b), &n); err != nil {
		return 65534
	}
	return n
})

// listen reads cancellations until the client has closed the connection, or its process has ended: the cause.
func (x *session) listen() error {
	cause := ErrDied
	var b [16]byte
	for {
		n, err := x.conn.Read(b[:])
		switch {
		case err != nil || n == 0:
			return cause
		case b[0] == packetBye:
			cause = kumquat.ErrClosed
		case b[0] == packetCancel && n == 9:
			x.cancelCall(binary.LittleEndian.Uint64(b[1:]))
		}
	}
}

func (x *session) cancelCall(id uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if f := x.calls[id]; f != nil {
		f()
		return
	}
	// It waits yet, or it is over: then the entry is in vain, and ages.
	delete(x.early, x.earlier[x.earlyAt])
	x.early[id] = true
	x.earlier[x.earlyAt] = id
	x.earlyAt = (x.earlyAt + 1) % earlyCancels
}

// begin notes a call that starts, and false if it was cancelled before.
func (x *session) begin(id uint64, f context.CancelFunc) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.early) > 0 && x.early[id] {
		delete(x.early, id)
		return false
	}
	x.calls[id] = f
	return true
}

func (x *session) finish(id uint64) {
	x.mu.Lock()
	delete(x.calls, id)
	x.mu.Unlock()
}

// end tells the handlers that the client is gone and removes its queues. One-way calls that it has sent are still carried out: behind
// them, in the shared queue, comes a message that ends the session; a lane of its own is emptied.
func (x *session) end(cause error) {
	s := x.s
	s.mu.Lock()
	x.ended = true
	s.mu.Unlock()
	x.cancel(cause)
	close(x.peer.gone)
	_ = discard(x.replies) // what goes wrong there harms only the one that is gone
	if x.lane != s.shared {
		x.lane.stop()
		idle := make(chan struct{})
		go func() {
			x.lane.wait()
			close(idle)
		}()
		select {
		case <-idle:
		case <-s.ctx.Done():
			within(idle, handlerGrace)
		}
		s.forget(x)
		_ = discard(x.lane.q)
		return
	}
	end := kumquat.Message{Type: typeEnd, ReplyTo: x.replies.Name()}
	if err := s.shared.q.Send(s.ctx, end); err != nil {
		s.forget(x) // the server ends: nobody will ask
	}
}

func (s *Server) forget(x *session) {
	s.mu.Lock()
	delete(s.sessions, x.replies.Name())
	s.mu.Unlock()
}

// sessionOf finds who sent a message. A lane of one client has its own only, whatever the message says.
func (s *Server) sessionOf(l *lane, replyTo string) *session {
	if l.only != nil {
		return l.only
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[replyTo]
}
