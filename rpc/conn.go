package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// conn is a client's connection to one server's life.
//
// Nobody is there to receive only: one of those who wait for replies leads, receives in its own goroutine, and hands out what is for
// others. When it has its own, or gives up, it makes another one the leader. So a single caller is woken by nobody but the queue.
type conn struct {
	name     string
	sock     *net.UnixConn
	peer     *Peer
	requests *kumquat.Queue
	replies  *kumquat.Queue
	slots    chan struct{} // one for each call that is under way
	bye      atomic.Bool   // the server wants no more calls
	closing  atomic.Bool   // by us
	next     atomic.Uint64 // number of the last call
	stale    atomic.Int32  // calls that were given up since their replies were last cleared away
	watched  sync.WaitGroup

	mu        sync.Mutex
	err       error // why it ended
	leading   bool
	waiting   map[uint64]*waiter // who gets a reply
	followers map[uint64]*waiter // of them, who may be made the leader
}

// waiter is a call that waits. Its channel has room for a reply and for the lead.
type waiter struct {
	id uint64
	ch chan event
}

// event is what a waiter is told: a reply, the end, or, if both are nil, that it leads now.
type event struct {
	m   *kumquat.Message
	err error
}

// connect shakes hands with the server of a service.
func connect(ctx context.Context, name string, o *ClientOptions) (_ *conn, err error) {
	sock, err := dialSocket(ctx, name)
	if errors.Is(err, kumquat.ErrNotFound) {
		sweep(ctx, name, freshTime) // what a server and its last clients left that were killed together
	}
	if err != nil {
		return nil, err
	}
	n := &conn{name: name, sock: sock, slots: make(chan struct{}, o.Outstanding), waiting: map[uint64]*waiter{},
		followers: map[uint64]*waiter{}}
	defer func() {
		if err != nil {
			_ = sock.Close()
			for _, q := range []*kumquat.Queue{n.requests, n.replies} {
				if q != nil {
					_ = q.Close()
				}
			}
		}
	}()
	if n.peer, err = peerOf(sock); err != nil {
		return nil, err
	}
	if err := o.acceptable(n.peer.UID); err != nil {
		return nil, err
	}
	w, err := greet(ctx, sock, o)
	if err != nil {
		return nil, err
	}
	for _, q := range []string{w.Requests, w.Replies} {
		if !strings.HasPrefix(q, queueFolder(name)+"/") {
			return nil, fmt.Errorf("the server names %q, which is not below %s: %w", q, queueFolder(name), kumquat.ErrCorrupt)
		}
	}
	// Only the server's user can have made these, whoever put what under the name.
	pinned := &kumquat.Options{Owner: &n.peer.UID}
	if n.requests, err = kumquat.Open(ctx, w.Requests, pinned); err != nil {
		return nil, err
	}
	if n.replies, err = kumquat.Open(ctx, w.Replies, pinned); err != nil {
		return nil, err
	}
	n.watched.Add(1)
	go n.watch()
	return n, nil
}

func greet(ctx context.Context, sock *net.UnixConn, o *ClientOptions) (w welcome, err error) {
	until := time.Now().Add(greetTime)
	if t, ok := ctx.Deadline(); ok && t.Before(until) {
		until = t
	}
	_ = sock.SetDeadline(until)
	undo := context.AfterFunc(ctx, func() { _ = sock.SetDeadline(time.Now()) })
	defer undo()
	// A server that turns this client away before it has read what the client says closes the socket at once: its answer is there.
	werr := writePacket(sock, hello{Protocol: protocol, Outstanding: o.Outstanding})
	if err = readPacket(sock, &w); err != nil {
		switch {
		case ctx.Err() != nil:
			err = contextError(ctx)
		case werr != nil, errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			err = fmt.Errorf("the server ended the handshake: %w", ErrDied)
		default:
			err = fmt.Errorf("the server does not answer within %v: %w: %w", greetTime, kumquat.ErrTimeout, err)
		}
		return w, err
	}
	switch {
	case w.Error != nil:
		return w, w.Error
	case w.Protocol != protocol:
		return w, fmt.Errorf("the server speaks version %d of the protocol, this client %d: %w", w.Protocol, protocol, kumquat.ErrUnsupported)
	}
	if !undo() {
		return w, contextError(ctx)
	}
	return w, sock.SetDeadline(time.Time{})
}

// open reports whether calls may still be made.
func (n *conn) open() bool { return !n.bye.Load() && !n.isOver() }

func (n *conn) isOver() bool {
	select {
	case <-n.peer.gone:
		return true
	default:
		return false
	}
}

// why returns what ended the connection.
func (n *conn) why() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// watch waits for the end of the socket, which is that of the server.
func (n *conn) watch() {
	defer n.watched.Done()
	var b [16]byte
	for {
		k, err := n.sock.Read(b[:])
		if err != nil || k == 0 {
			break
		}
		if b[0] == packetBye {
			n.bye.Store(true)
		}
	}
	cause := ErrDied
	switch {
	case n.closing.Load():
		cause = kumquat.ErrClosed
	case n.bye.Load():
		cause = ErrStopped
	}
	n.end(cause)
}

// end tells all who wait. Replies that came before the end are still handed out.
func (n *conn) end(cause error) {
	for cause != kumquat.ErrClosed {
		m, err := n.replies.TryReceive()
		if err != nil {
			break
		}
		n.deliver(&m)
	}
	n.mu.Lock()
	n.err = cause
	for id, w := range n.waiting {
		delete(n.waiting, id)
		delete(n.followers, id)
		w.ch <- event{err: cause}
	}
	n.mu.Unlock()
	close(n.peer.gone)
	if errors.Is(cause, ErrDied) {
		// Nobody else can need them: their server is gone. Where they are another user's, the next server removes them.
		for _, q := range []*kumquat.Queue{n.requests, n.replies} {
			_ = kumquat.Remove(context.Background(), q.Name())
		}
	}
	_ = n.requests.Close() // these wake who is inside
	_ = n.replies.Close()
	_ = n.sock.Close()
}

// close ends the connection from this side.
func (n *conn) close() {
	n.closing.Store(true)
	tell(n.sock, []byte{packetBye})
	_ = n.sock.CloseRead() // the watcher comes back; the server sees the end when it has closed the rest
	n.watched.Wait()
}

// message makes the request's message.
func (n *conn) message(ctx context.Context, r *Request) kumquat.Message {
	m := kumquat.Message{Type: typeCall, Body: r.Body, Priority: r.Priority, ReplyTo: n.replies.Name(), ContentType: r.ContentType,
		Headers: make(map[string]string, len(r.Headers)+1)}
	for k, v := range r.Headers {
		m.Headers[k] = v
	}
	m.Headers[headerMethod] = r.Method
	if t, ok := ctx.Deadline(); ok {
		m.Expires = t
	}
	return m
}

// post sends a one-way call.
func (n *conn) post(ctx context.Context, r *Request) error {
	m := n.message(ctx, r)
	m.Type, m.Key = typeOneway, r.Object
	return n.explain(n.requests.Send(ctx, m))
}

// explain replaces the error of a queue that was closed because the connection ended.
func (n *conn) explain(err error) error {
	if (errors.Is(err, kumquat.ErrClosed) || errors.Is(err, kumquat.ErrRemoved)) && n.waitOver() {
		return n.why()
	}
	return err
}

// waitOver gives the watcher a moment to learn why the queues are gone.
func (n *conn) waitOver() bool { return within(n.peer.gone, deathTime) }

// deathTime is more than it takes to hear of a death.
const deathTime = 250 * time.Millisecond

// call makes a call and waits for the reply.
func (n *conn) call(ctx context.Context, r *Request) (*Reply, error) {
	select {
	case n.slots <- struct{}{}:
	default:
		select {
		case n.slots <- struct{}{}:
		case <-n.peer.gone:
			return nil, n.why()
		case <-ctx.Done():
			return nil, contextError(ctx)
		}
	}
	defer func() { <-n.slots }()
	w := &waiter{n.next.Add(1), make(chan event, 2)}
	n.mu.Lock()
	if n.err != nil {
		defer n.mu.Unlock()
		return nil, n.err
	}
	n.waiting[w.id] = w
	n.mu.Unlock()
	m := n.message(ctx, r)
	m.CorrelationID = strconv.FormatUint(w.id, 36)
	if err := n.requests.Send(ctx, m); err != nil {
		n.leave(w)
		return nil, n.explain(err)
	}
	e, err := n.await(ctx, w)
	if err != nil {
		if n.leave(w) {
			n.stale.Add(1)
			if m.Expires.IsZero() || time.Now().Before(m.Expires) { // else the server knows it as well
				n.cancel(w.id)
			}
		}
		return nil, err
	}
	if e.err != nil {
		return nil, e.err
	}
	if e.m.Type == typeFailure {
		return nil, decodeError(e.m.Body)
	}
	return &Reply{Body: e.m.Body, ContentType: e.m.ContentType, Headers: e.m.Headers}, nil
}

// cancel tells the server that nobody waits for a call any more.
func (n *conn) cancel(id uint64) {
	tell(n.sock, binary.LittleEndian.AppendUint64([]byte{packetCancel}, id))
}

// await waits until w is told its end, leading or not. An error is that of the wait itself.
func (n *conn) await(ctx context.Context, w *waiter) (event, error) {
	n.mu.Lock()
	lead := !n.leading
	if n.leading = true; !lead && n.waiting[w.id] == w {
		n.followers[w.id] = w
	}
	n.mu.Unlock()
	if lead {
		return n.lead(ctx, w)
	}
	select {
	case e := <-w.ch:
		if e.m != nil || e.err != nil {
			return e, nil
		}
		return n.lead(ctx, w)
	case <-ctx.Done():
		return event{}, contextError(ctx)
	}
}

// lead receives replies until w's own comes.
func (n *conn) lead(ctx context.Context, w *waiter) (event, error) {
	defer n.passOn()
	receive := n.replies.Receive
	if n.stale.Load() >= staleReplies {
		// Replies to calls that were given up may lie behind those of higher priority: once in a while the queue is emptied.
		n.stale.Store(0)
		receive = func(ctx context.Context, _ ...kumquat.Filter) (kumquat.Message, error) { return n.replies.TryReceive() }
	}
	for {
		select {
		case e := <-w.ch: // handed out by the one who led before, or the end
			if e.m != nil || e.err != nil {
				return e, nil
			}
		default:
		}
		m, err := receive(ctx)
		if errors.Is(err, kumquat.ErrEmpty) {
			receive = n.replies.Receive
			continue
		}
		if err != nil {
			if ctx.Err() != nil && !n.isOver() {
				return event{}, contextError(ctx)
			}
			if n.isOver() || (errors.Is(err, kumquat.ErrClosed) || errors.Is(err, kumquat.ErrRemoved)) && n.waitOver() {
				select { // the end has told all who wait
				case e := <-w.ch:
					return e, nil
				default:
					return event{err: n.why()}, nil
				}
			}
			return event{}, err // the queue is damaged: each who waits will meet it
		}
		if id, ok := replyTo(&m); ok && id == w.id {
			n.mu.Lock()
			delete(n.waiting, id)
			n.mu.Unlock()
			return event{m: &m}, nil
		}
		n.deliver(&m)
	}
}

// replyTo returns the number of the call that m answers.
func replyTo(m *kumquat.Message) (uint64, bool) {
	if m.Type != typeReply && m.Type != typeFailure {
		return 0, false
	}
	id, err := strconv.ParseUint(m.CorrelationID, 36, 64)
	return id, err == nil
}

// deliver hands a reply to who waits for it; that of a call that was given up is dropped.
func (n *conn) deliver(m *kumquat.Message) {
	id, ok := replyTo(m)
	if !ok {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.waiting[id]; w != nil {
		delete(n.waiting, id) // so it is told no more than this, and perhaps that it leads
		delete(n.followers, id)
		w.ch <- event{m: m}
	}
}

// passOn makes another one the leader, if anybody waits.
func (n *conn) passOn() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, w := range n.followers {
		delete(n.followers, id)
		w.ch <- event{}
		return
	}
	n.leading = false
}

// leave takes w from those who wait; if it has been made the leader meanwhile, another is. false: its reply or its end had come.
func (n *conn) leave(w *waiter) bool {
	n.mu.Lock()
	_, there := n.waiting[w.id]
	delete(n.waiting, w.id)
	delete(n.followers, w.id)
	n.mu.Unlock()
	for {
		select {
		case e := <-w.ch:
			if e.m == nil && e.err == nil {
				n.passOn()
			}
		default:
			return there
		}
	}
}
