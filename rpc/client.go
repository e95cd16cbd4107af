package rpc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/kumquat-mq/kumquat"
)

// ClientOptions shapes a client. The zero value, and nil, mean the defaults.
type ClientOptions struct {
	// Owner is the user whose server is wanted: any user may run one under a name that is free. nil: this process's user or root.
	Owner *int
	// Outstanding is how many calls may be under way at once, 1 … 8,192; 0: 1,024. More wait their turn.
	Outstanding int
	// Interceptors stand around every call, the first outermost.
	Interceptors []Interceptor
}

const (
	maxOutstanding     = 8192
	defaultOutstanding = 1024
	staleReplies       = 64 // to calls that were given up: so many may lie there before they are cleared away
)

// Client calls the methods of one service. Dial makes one; its methods may be called from many goroutines at once. When the server
// dies or stops, its calls fail, and the next ones try to connect to a server that has come in its place.
type Client struct {
	name  string
	o     ClientOptions
	do    Handler
	mu    sync.Mutex // of those who connect
	cur   atomic.Pointer[conn]
	old   []*conn // to servers that stop, which still have calls of ours. Under mu
	ended atomic.Bool
}

// Dial connects to the service called name.
//
// Errors: kumquat.ErrNotFound (no server of it is running), ErrInvalid (name, options), ErrPermission (the socket's mode; the server
// belongs to another user than ClientOptions.Owner says), ErrLimit, ErrTimeout, context.Canceled; an *Error if the server turned
// this client away.
func Dial(ctx context.Context, name string, o *ClientOptions) (*Client, error) {
	c := &Client{name: name}
	if ctx == nil {
		return nil, fmt.Errorf("rpc: dial %s: %w", name, errNilContext)
	}
	if o != nil {
		c.o = *o
	}
	if c.o.Outstanding == 0 {
		c.o.Outstanding = defaultOutstanding
	}
	if c.o.Outstanding < 1 || c.o.Outstanding > maxOutstanding {
		return nil, fmt.Errorf("rpc: dial %s: %w: Outstanding %d is not from 1 to %d", name, kumquat.ErrInvalid, c.o.Outstanding, maxOutstanding)
	}
	c.do = chain(c.o.Interceptors, c.send)
	if _, err := c.connection(ctx); err != nil {
		return nil, fmt.Errorf("rpc: dial %s: %w", name, err)
	}
	return c, nil
}

// Do makes the call r and waits for its reply; a one-way call it only puts into the server's queue, and returns nil. It is the common
// ground of Call and Send.
//
// Errors: an *Error is the server's answer. ErrDied, ErrStopped: there is no answer, and whether the call was carried out is unknown.
// The deadline of ctx gives kumquat.ErrTimeout, its cancellation context.Canceled; the handler's context ends too. kumquat.ErrInvalid
// (no method, a reserved header, the priority), ErrTooLarge (the body, or all that is in Headers), ErrClosed, and from connecting
// again those of Dial: the call was not carried out.
func (c *Client) Do(ctx context.Context, r *Request) (*Reply, error) {
	if r == nil || r.Method == "" {
		return nil, fmt.Errorf("rpc: call %s: %w: there is no method", c.name, kumquat.ErrInvalid)
	}
	if ctx == nil {
		return nil, fmt.Errorf("rpc: call %s %s: %w", c.name, r.Method, errNilContext)
	}
	own := *r // interceptors may change it
	own.Priority = PriorityFrom(ctx)
	reply, err := c.do(ctx, &own)
	if err != nil {
		return nil, fmt.Errorf("rpc: call %s %s: %w", c.name, r.Method, err)
	}
	return reply, nil
}

// send is what the innermost interceptor calls.
func (c *Client) send(ctx context.Context, r *Request) (*Reply, error) {
	if err := errors.Join(checkHeaders(r.Headers), checkPriority(r.Priority)); err != nil {
		return nil, err
	}
	if r.Object != "" && !r.Oneway {
		return nil, fmt.Errorf("%w: only one-way calls have an object", kumquat.ErrInvalid)
	}
	n, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	if r.Oneway {
		return nil, n.post(ctx, r)
	}
	return n.call(ctx, r)
}

// connection returns one that lives, as far as is known.
func (c *Client) connection(ctx context.Context) (*conn, error) {
	if n := c.cur.Load(); n != nil && n.open() {
		return n, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended.Load() {
		return nil, kumquat.ErrClosed
	}
	old := c.cur.Load()
	if old != nil && old.open() {
		return old, nil // somebody else was faster
	}
	n, err := connect(ctx, c.name, &c.o)
	if err != nil {
		return nil, err
	}
	c.old = slices.DeleteFunc(c.old, (*conn).isOver)
	if old != nil && !old.isOver() {
		c.old = append(c.old, old)
	}
	c.cur.Store(n)
	return n, nil
}

// Server returns the process that serves, as the kernel states it: the one that the last connection was made to. Its Gone is closed
// when that connection ends.
func (c *Client) Server() *Peer { return c.cur.Load().peer }

// Err returns why the last connection ended: ErrDied, ErrStopped, kumquat.ErrClosed, or what broke it; nil while it stands.
func (c *Client) Err() error {
	n := c.cur.Load()
	select {
	case <-n.peer.gone:
		return n.why()
	default:
		return nil
	}
}

// Close ends the client: calls that are under way return kumquat.ErrClosed, their handlers' contexts end; one-way calls that were sent
// are carried out. A second Close is kumquat.ErrClosed.
func (c *Client) Close() error {
	if c.ended.Swap(true) {
		return fmt.Errorf("rpc: close %s: %w", c.name, kumquat.ErrClosed)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range append(c.old, c.cur.Load()) {
		n.close()
	}
	return nil
}

var errNilContext = fmt.Errorf("%w: the context is nil", kumquat.ErrInvalid)

// acceptable says whether a server of this user is wanted.
func (o *ClientOptions) acceptable(uid int) error {
	switch {
	case o.Owner != nil && *o.Owner != uid:
		return fmt.Errorf("the server belongs to user %d, ClientOptions.Owner wants user %d: %w", uid, *o.Owner, kumquat.ErrPermission)
	case o.Owner == nil && uid != 0 && uid != os.Geteuid():
		return fmt.Errorf("the server belongs to user %d, neither root nor this process's; say so in ClientOptions.Owner if that is right: %w",
			uid, kumquat.ErrPermission)
	}
	return nil
}
