package rpc

import (
	"context"
	"fmt"

	"github.com/kumquat-mq/kumquat"
)

// Peer is the process on the other side as the kernel states it: what SO_PEERCRED says of its socket. The numbers are seen from
// here: a process that this one cannot see, being in another PID namespace, has PID 0.
type Peer struct {
	PID, UID, GID int
	gone          chan struct{}
}

// Gone is closed when the peer has closed the connection or its process has ended. Whoever keeps something for a client lets go
// of it then.
func (p *Peer) Gone() <-chan struct{} { return p.gone }

type (
	priorityKey struct{}
	callKey     struct{}
)

// WithPriority returns a context whose calls have priority p, from 0 to kumquat.MaxPriority; calls with another p fail with
// kumquat.ErrInvalid.
func WithPriority(ctx context.Context, p int) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

// PriorityFrom returns the priority of calls made with ctx: what WithPriority said, in a handler the priority of the call that it
// serves, else 0.
func PriorityFrom(ctx context.Context) int {
	p, _ := ctx.Value(priorityKey{}).(int)
	return p
}

// PeerFrom returns the caller, in a handler and in what has its context; else nil.
func PeerFrom(ctx context.Context) *Peer {
	if c, ok := ctx.Value(callKey{}).(*callContext); ok {
		return c.peer
	}
	return nil
}

// RequestFrom returns the call that is being handled, in a handler and in what has its context; else nil.
func RequestFrom(ctx context.Context) *Request {
	if c, ok := ctx.Value(callKey{}).(*callContext); ok {
		return c.request
	}
	return nil
}

// callContext is a handler's context. It is no deeper than the context it stands on: those derived from it find its end without a
// goroutine of their own.
type callContext struct {
	context.Context
	peer    *Peer
	request *Request
}

// Value has the call and its priority.
func (c *callContext) Value(key any) any {
	switch key.(type) {
	case callKey:
		return c
	case priorityKey:
		return c.request.Priority
	}
	return c.Context.Value(key)
}

func checkPriority(p int) error {
	if uint(p) > kumquat.MaxPriority {
		return fmt.Errorf("%w: priority %d is not from 0 to %d", kumquat.ErrInvalid, p, kumquat.MaxPriority)
	}
	return nil
}
