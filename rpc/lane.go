package rpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// A lane is a queue of requests and the goroutines that carry them out. One of them leads: it alone takes requests from the queue, so
// that they are told apart in the order in which the queue gave them. A leader that has a call to run first makes another one the
// leader: one that is idle, or a new one; if all are busy nobody leads, and the first that is free again takes over.
//
// To wake another costs more than many a handler. So a method that has been quick some times in a row runs in the leader, which goes
// on leading. If it is slow for once, the guard takes the lead from it:
//
//	leader                                          guard, every millisecond
//	1 turn = odd: call n runs                       1 turn is odd and as it was: n has run for a tick
//	2 the handler                                   2 CAS turn → even: the lead is the guard's
//	3 CAS turn → even: still the leader             3 gives it to another
//	  failed: it is a worker like the others
//
// One of the two CAS succeeds, so one of the two leads on.
type lane struct {
	s       *Server
	q       *kumquat.Queue
	only    *session // whose lane it is; nil: all clients' of our own user
	most    int      // goroutines
	ctx     context.Context
	stop    context.CancelFunc // from now on only what is there
	left    int                // messages taken after that; the leader's
	turn    atomic.Uint64      // the call that the leader runs, see above
	guarded atomic.Bool        // a guard runs
	waiting chan struct{}      // one for each one-way call of this lane that waits for its object
	wg      sync.WaitGroup

	mu      sync.Mutex
	over    bool // nobody will lead any more
	vacant  bool // nobody leads: all are busy
	workers int
	idle    []chan bool // who waits to lead: true, or to end: closed
}

const (
	idleWorkers = 8                     // that are kept; more go when they have nothing to do
	quickCalls  = 16                    // in a row, and the method counts as quick
	quickTime   = 25 * time.Microsecond // at most
	guardTick   = time.Millisecond
	guardIdle   = 200 // ticks in which nothing ran in the leader, then the guard goes
)

func newLane(s *Server, q *kumquat.Queue, only *session, most int) *lane {
	l := &lane{s: s, q: q, only: only, most: most, waiting: make(chan struct{}, waitingCalls)}
	l.ctx, l.stop = context.WithCancel(s.ctx)
	return l
}

func (l *lane) start() {
	l.workers = 1
	l.wg.Add(1)
	go l.work()
}

// wait waits, after stop, until all that was there is done.
func (l *lane) wait() { l.wg.Wait() }

// work is the life of a goroutine of the lane. It begins as the leader.
func (l *lane) work() {
	defer l.wg.Done()
	for {
		j, on := l.lead()
		if !on {
			l.end()
			return
		}
		if j != nil {
			j.run()
		}
		if !l.follow() {
			return
		}
	}
}

// lead takes requests until one is to be run by this goroutine when another leads, or, with a nil job, another leads already. false:
// there will be no more requests.
func (l *lane) lead() (*job, bool) {
	for {
		var m kumquat.Message
		if !l.receive(&m) {
			return nil, false
		}
		j := l.s.take(l, &m)
		if j == nil {
			continue
		}
		if !j.method.isQuick() || l.ctx.Err() != nil {
			l.passOn()
			return j, true
		}
		w := l.turn.Load() + 1
		l.turn.Store(w)
		if !l.guarded.Load() && l.guarded.CompareAndSwap(false, true) {
			l.wg.Add(1)
			go l.guard()
		}
		j.run()
		if !l.turn.CompareAndSwap(w, w+1) {
			return nil, true
		}
	}
}

// receive takes the next request.
func (l *lane) receive(m *kumquat.Message) bool {
	var err error
	if l.ctx.Err() == nil {
		*m, err = l.q.Receive(l.ctx)
		if err == nil {
			return true
		}
		if l.ctx.Err() == nil {
			l.s.laneBroke(l, err)
			return false
		}
	}
	// The lane has been stopped: what is in the queue is still served, and no more than it can hold, since a peer may go on sending.
	if l.left++; l.left > l.s.o.MaxRequests || l.s.ctx.Err() != nil {
		return false
	}
	*m, err = l.q.TryReceive()
	return err == nil
}

// laneBroke: the queue was removed or damaged. That of one client ends its session, the common one the server.
func (s *Server) laneBroke(l *lane, err error) {
	if l.only != nil {
		s.o.Log.Warn("rpc: the queue of a client broke", "service", s.name, "pid", l.only.peer.PID, "uid", l.only.peer.UID, "error", err)
		_ = l.only.conn.Close()
		return
	}
	select {
	case s.failed <- err:
	default:
	}
}

// passOn makes another goroutine the leader.
func (l *lane) passOn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch n := len(l.idle); {
	case n > 0:
		l.idle[n-1] <- true
		l.idle = l.idle[:n-1]
	case l.workers < l.most:
		l.workers++
		l.wg.Add(1)
		go l.work()
	default:
		l.vacant = true
	}
}

// follow waits to be the leader. false: this goroutine is not needed any more.
func (l *lane) follow() bool {
	l.mu.Lock()
	if l.over || !l.vacant && len(l.idle) >= idleWorkers {
		l.workers--
		l.mu.Unlock()
		return false
	}
	if l.vacant {
		l.vacant = false
		l.mu.Unlock()
		return true
	}
	ch := make(chan bool, 1)
	l.idle = append(l.idle, ch)
	l.mu.Unlock()
	return <-ch
}

func (l *lane) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	for _, ch := range l.idle {
		close(ch)
	}
	l.idle = nil
}

// guard takes the lead from a leader that has been in one call for a tick.
func (l *lane) guard() {
	defer l.wg.Done()
	t := time.NewTicker(guardTick)
	defer t.Stop()
	last := l.turn.Load()
	for idle := 0; idle < guardIdle; {
		select {
		case <-t.C:
		case <-l.ctx.Done():
			// A leader that runs a call now comes back from it, or its context ends; guarded stays set: no other guard.
			l.guardLast()
			return
		}
		w := l.turn.Load()
		if w != last {
			last, idle = w, 0
			continue
		}
		idle++
		if w%2 == 1 && l.turn.CompareAndSwap(w, w+1) {
			last, idle = w+1, 0
			l.passOn()
		}
	}
	l.guarded.Store(false)
}

// guardLast lets others empty the queue if the leader is in a slow call when the lane stops.
func (l *lane) guardLast() {
	time.Sleep(guardTick)
	if w := l.turn.Load(); w%2 == 1 {
		time.Sleep(guardTick)
		if l.turn.CompareAndSwap(w, w+1) {
			l.passOn()
		}
	}
}

// isQuick reports whether calls may run in the leader.
func (m *method) isQuick() bool { return m.quick.Load() >= quickCalls }

// took notes how long a call ran.
func (m *method) took(d time.Duration) {
	switch n := m.quick.Load(); {
	case d > quickTime:
		if n != 0 {
			m.quick.Store(0)
		}
	case n < quickCalls:
		m.quick.Store(n + 1)
	}
}

// objects keeps the one-way calls of each object in a row.
type objects struct {
	mu   sync.Mutex
	busy map[string][]*job // by object: those that wait for the one that runs
}

// waitingCalls is how many one-way calls of a lane may wait for their objects outside of the queue. Then nothing is taken from the
// queue until some are done.
const waitingCalls = 4096

// enter returns true if j may run now. Else who runs its object's call will run it. Only j's lane waits here, if it must: another
// user's has no part in it.
func (o *objects) enter(j *job) bool {
	o.mu.Lock()
	if _, busy := o.busy[j.m.Key]; !busy {
		o.busy[j.m.Key] = nil
		o.mu.Unlock()
		return true
	}
	o.mu.Unlock()
	select {
	case j.l.waiting <- struct{}{}:
	case <-j.s.ctx.Done(): // the end: it may be one too many
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	list, busy := o.busy[j.m.Key]
	if !busy {
		o.busy[j.m.Key] = nil
		j.release()
		return true
	}
	o.busy[j.m.Key] = append(list, j)
	return false
}

// next returns the job that follows the one that ended; nil: the object is idle.
func (o *objects) next(object string) *job {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.busy[object]
	if len(list) == 0 {
		delete(o.busy, object)
		return nil
	}
	j := list[0]
	list[0] = nil
	o.busy[object] = list[1:]
	j.release()
	return j
}

// release gives the place of one that waited back.
func (j *job) release() {
	select {
	case <-j.l.waiting:
	default: // it came in at the end without one
	}
}
