package rpc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// ServerOptions shapes a server. The zero value, and nil, mean the defaults.
type ServerOptions struct {
	// Mode is the socket's: 0600 (the default, 0) lets processes of the server's user and root connect, 0660 those of its group too,
	// 0666 everybody.
	Mode fs.FileMode
	// Allow, if not nil, is asked about every client that connects. Its error is what Dial returns there, as an *Error of code
	// PermissionDenied unless it has another.
	Allow func(*Peer) error
	// Isolate gives every client a queue of its own for its requests, not only those of other users. The priorities of requests then
	// count among those of one client only.
	Isolate bool
	// Workers is how many calls run at once, 1 or more; 0: 256. A client with a queue of its own has as many for itself, at most 16.
	Workers int
	// MaxClients is how many clients may be connected, 1 … 4,000; 0: 1,000. One user other than the server's own may have a quarter.
	MaxClients int
	// MaxRequests is how many requests may wait in a queue, 1 or more; 0: 4,096. Then callers wait.
	MaxRequests int
	// MaxSize is the longest argument and result in bytes; 0: 64 KiB.
	MaxSize int
	// Drain is how long Serve, when its context is done, lets the calls that have come in go on, before it ends their contexts;
	// 0: 5 s, negative: not at all.
	Drain time.Duration
	// Interceptors stand around every handler, the first outermost.
	Interceptors []Interceptor
	// Log gets what no caller is told: panics, one-way calls that failed, clients that were turned away. nil: slog.Default().
	Log *slog.Logger
}

const (
	isolatedWorkers = 16
	handlerGrace    = time.Second // for handlers to notice that their contexts have ended
)

func (o *ServerOptions) fill() error {
	set := func(v *int, least, most, def int, what string) error {
		if *v == 0 {
			*v = def
		}
		if *v < least || *v > most {
			return fmt.Errorf("%w: %s %d is not from %d to %d", kumquat.ErrInvalid, what, *v, least, most)
		}
		return nil
	}
	if o.Mode == 0 {
		o.Mode = 0o600
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Drain == 0 {
		o.Drain = 5 * time.Second
	}
	if o.Mode&^fs.ModePerm != 0 {
		return fmt.Errorf("%w: Mode %v has more than permission bits", kumquat.ErrInvalid, o.Mode)
	}
	return errors.Join(set(&o.Workers, 1, 1<<20, 256, "Workers"), set(&o.MaxClients, 1, 4000, 1000, "MaxClients"),
		set(&o.MaxRequests, 1, 1<<20, 4096, "MaxRequests"), set(&o.MaxSize, 1, 1<<30, 64<<10, "MaxSize"))
}

// Server has handlers for methods and serves them to clients. NewServer makes one; it serves once.
type Server struct {
	o       ServerOptions
	wrong   error      // of the options
	starts  sync.Mutex // held by Listen, and by Close
	mu      sync.Mutex
	methods atomic.Pointer[map[string]*method] // replaced as a whole: read for every call

	name   string
	folder string
	ln     *net.UnixListener
	lock   *os.File
	shared *lane // of the clients of our own user

	ctx      context.Context // of the handlers
	cancel   context.CancelCauseFunc
	listens  bool
	leaving  bool
	sessions map[string]*session    // by their queue of replies
	greeting map[*net.UnixConn]bool // connections that have no session yet
	perUser  map[int]int
	clients  int            // connections, greeted or not
	next     uint64         // number of the next session's queues
	wg       sync.WaitGroup // of the sessions' goroutines
	failed   chan error     // what ends Serve early
	stopped  chan struct{}  // closed when all is over

	objects objects
}

// method is a handler and what is known of the time it takes.
type method struct {
	call  Handler
	quick atomic.Int32 // calls in a row that were quick
}

// NewServer returns a server without methods. Mistakes in the options are told by Listen.
func NewServer(o *ServerOptions) *Server {
	s := &Server{objects: objects{busy: map[string][]*job{}}, sessions: map[string]*session{}, perUser: map[int]int{}, greeting: map[*net.UnixConn]bool{}, failed: make(chan error, 1), stopped: make(chan struct{})}
	if o != nil {
		s.o = *o
	}
	s.wrong = s.o.fill()
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.methods.Store(&map[string]*method{})
	return s
}

// Register makes h the handler of method, in place of any that was there; a nil h takes that away. It may be called at any time.
func (s *Server) Register(name string, h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := maps.Clone(*s.methods.Load())
	if h == nil {
		delete(m, name)
	} else {
		m[name] = &method{call: chain(s.o.Interceptors, h)}
	}
	s.methods.Store(&m)
}

// Listen makes the socket and the queue of requests of the service called name ("/calculator", names as of queues): when it
// returns nil, clients can connect, and Serve or Close must follow. What a server of this name that was killed left behind is
// removed.
//
// Errors: kumquat.ErrExists (a server of this name is running), ErrInvalid (name, options, called before), ErrPermission, ErrLimit,
// ErrNoSpace.
func (s *Server) Listen(ctx context.Context, name string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("rpc: listen %s: %w", name, err)
		}
	}()
	if ctx == nil {
		return errNilContext
	}
	if s.wrong != nil {
		return s.wrong
	}
	s.starts.Lock()
	defer s.starts.Unlock()
	s.mu.Lock()
	if s.listens || s.leaving {
		s.mu.Unlock()
		return fmt.Errorf("%w: a server serves once", kumquat.ErrInvalid)
	}
	s.listens = true
	s.mu.Unlock()
	fail := func(err error) error {
		s.mu.Lock()
		s.listens = false
		s.mu.Unlock()
		return err
	}
	s.name, s.folder = name, queueFolder(name)+"/"+rand.Text()[:12]
	ln, lock, err := listenSocket(ctx, name, s.o.Mode)
	if err != nil {
		return fail(err)
	}
	sweep(ctx, name, 0) // we have the lock: no other server makes queues
	q, err := s.open(ctx, s.folder+"/requests", s.o.MaxRequests, s.o.MaxClients+8)
	if err != nil {
		_ = ln.Close()
		_ = os.Remove(ln.Addr().String())
		dropLock(lock)
		return fail(err)
	}
	s.mu.Lock()
	s.ln, s.lock = ln, lock
	s.shared = newLane(s, q, nil, s.o.Workers)
	s.mu.Unlock()
	return nil
}

// open makes a queue of ours.
func (s *Server) open(ctx context.Context, name string, messages, handles int) (*kumquat.Queue, error) {
	return kumquat.Open(ctx, name, &kumquat.Options{Create: true, Exclusive: true, Mode: 0o600, MaxMessages: messages, MaxSize: s.o.MaxSize,
		MaxHandles: handles})
}

// Serve serves until ctx is done or Close is called, then it stops in order: no more clients, the calls that have come in are carried
// out within ServerOptions.Drain, then the contexts of the rest end, and the queues and the socket are removed. It returns nil
// after that.
//
// Errors: kumquat.ErrInvalid (Listen was not called), kumquat.ErrTimeout (handlers did not return after their contexts had ended;
// they go on, nobody hears of what they return), and what broke the queue of requests.
func (s *Server) Serve(ctx context.Context) error {
	if ctx == nil {
		return fmt.Errorf("rpc: serve: %w", errNilContext)
	}
	s.mu.Lock()
	ln := s.ln
	if ln == nil || s.leaving {
		s.mu.Unlock()
		return fmt.Errorf("rpc: serve: %w: Listen comes first, and a server serves once", kumquat.ErrInvalid)
	}
	s.shared.start()
	s.wg.Add(1)
	s.mu.Unlock()
	go s.accept(ln)
	var why error
	select {
	case <-ctx.Done():
	case why = <-s.failed:
	}
	err := s.stop(s.o.Drain)
	if errors.Is(err, kumquat.ErrClosed) { // Close was faster
		<-s.stopped
		err = nil
	}
	if err = errors.Join(why, err); err != nil {
		return fmt.Errorf("rpc: serve %s: %w", s.name, err)
	}
	return nil
}

// Close ends the server without waiting for the calls that it has: their contexts end, their callers get ErrStopped. Serve, if it
// runs, returns. A second Close is kumquat.ErrClosed.
func (s *Server) Close() error {
	s.starts.Lock()
	defer s.starts.Unlock()
	s.mu.Lock()
	listens, left := s.listens, s.leaving
	if !listens && !left {
		s.leaving = true
		close(s.stopped)
	}
	s.mu.Unlock()
	if !listens && !left {
		s.cancel(ErrStopped)
		return nil
	}
	err := s.stop(-1)
	select {
	case s.failed <- nil:
	default:
	}
	if err != nil {
		return fmt.Errorf("rpc: close %s: %w", s.name, err)
	}
	return nil
}

// Peers returns the clients that are connected now.
func (s *Server) Peers() []*Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ps []*Peer
	for _, x := range s.sessions {
		if !x.ended {
			ps = append(ps, x.peer)
		}
	}
	return ps
}

func (s *Server) accept(ln *net.UnixListener) {
	defer s.wg.Done()
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// No descriptors left, most likely: others may give some back.
			s.o.Log.Warn("rpc: a client could not connect", "service", s.name, "error", err)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-s.ctx.Done():
				return
			}
			continue
		}
		s.mu.Lock()
		if s.leaving {
			s.mu.Unlock()
			_ = c.Close()
			return
		}
		if len(s.greeting) >= s.o.MaxClients+64 {
			s.mu.Unlock()
			_ = c.Close() // a crowd that connects and says nothing
			continue
		}
		s.greeting[c] = true
		s.wg.Add(1)
		s.mu.Unlock()
		go func() {
			defer s.wg.Done()
			s.greet(c)
		}()
	}
}

// stop ends everything, in order: it leaves nothing in the folder of the queues.
func (s *Server) stop(drain time.Duration) error {
	s.mu.Lock()
	if s.leaving {
		s.mu.Unlock()
		return kumquat.ErrClosed
	}
	s.leaving = true
	defer close(s.stopped)
	lanes := []*lane{s.shared}
	for c := range s.greeting {
		_ = c.CloseRead() // who says nothing must not hold up the end
	}
	for _, x := range s.sessions {
		tell(x.conn, []byte{packetBye})
		if x.lane != s.shared {
			lanes = append(lanes, x.lane)
		}
	}
	s.mu.Unlock()
	_ = s.ln.Close()
	_ = os.Remove(s.ln.Addr().String())
	dropLock(s.lock)

	// What has come in is carried out; those that wait for the lanes of other users wait here too.
	idle := make(chan struct{})
	go func() {
		for _, l := range lanes {
			l.stop()
		}
		for _, l := range lanes {
			l.wait()
		}
		close(idle)
	}()
	var err error
	if !within(idle, drain) {
		s.cancel(ErrStopped)
		if !within(idle, handlerGrace) {
			err = fmt.Errorf("handlers did not return %v after their contexts had ended: %w", handlerGrace, kumquat.ErrTimeout)
		}
	}
	s.cancel(ErrStopped)
	// The clients see the end, take the replies that are there and close the connection; a stopped one does not.
	s.eachSession(func(x *session) { _ = x.conn.CloseWrite() })
	taken := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(taken)
	}()
	if !within(taken, handlerGrace) {
		s.eachSession(func(x *session) { _ = x.conn.Close() })
		<-taken
	}
	return errors.Join(err, discard(s.shared.q))
}

func (s *Server) eachSession(f func(*session)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.sessions {
		f(x)
	}
}

// within reports whether done is closed before d has passed.
func within(done <-chan struct{}, d time.Duration) bool {
	if d <= 0 {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// discard closes and removes a queue. That another has done it already is as good.
func discard(q *kumquat.Queue) error {
	err := kumquat.Remove(context.Background(), q.Name())
	if errors.Is(err, kumquat.ErrNotFound) {
		err = nil
	}
	return errors.Join(q.Close(), err)
}
