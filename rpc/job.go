package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// job is a request that was taken from a lane.
type job struct {
	s      *Server
	l      *lane
	x      *session
	method *method
	m      kumquat.Message
	id     uint64 // of a call
	name   string // of the method
}

// take makes a job of a message. nil: there is nothing to run, or who runs the object's calls will run it.
func (s *Server) take(l *lane, m *kumquat.Message) *job {
	x := s.sessionOf(l, m.ReplyTo)
	if x == nil {
		s.o.Log.Debug("rpc: a message of nobody was dropped", "service", s.name, "replyTo", m.ReplyTo)
		return nil
	}
	j := &job{s: s, l: l, x: x, m: *m, name: m.Headers[headerMethod]}
	switch m.Type {
	case typeCall:
		id, err := strconv.ParseUint(m.CorrelationID, 36, 64)
		if err != nil || x.ctx.Err() != nil {
			return nil // nobody waits
		}
		j.id = id
	case typeOneway:
	case typeEnd:
		s.mu.Lock()
		ended := x.ended && l.only == nil
		s.mu.Unlock()
		if ended {
			s.forget(x)
		}
		return nil
	default:
		return nil
	}
	if j.method = (*s.methods.Load())[j.name]; j.method == nil {
		j.method = noMethod
	}
	if m.Type == typeOneway && m.Key != "" && !s.objects.enter(j) {
		return nil
	}
	return j
}

// noMethod answers to methods that the server does not have.
var noMethod = &method{call: func(_ context.Context, r *Request) (*Reply, error) {
	return nil, &Error{Code: Unimplemented, Message: "the server has no method " + strconv.Quote(r.Method)}
}}

// run carries the job out, and after it those that have been waiting for its object.
func (j *job) run() {
	for {
		j.carryOut()
		if j.m.Type != typeOneway || j.m.Key == "" {
			return
		}
		if j = j.s.objects.next(j.m.Key); j == nil {
			return
		}
	}
}

func (j *job) carryOut() {
	start := time.Now()
	if !j.m.Expires.IsZero() && !start.Before(j.m.Expires) {
		return // it has expired while it waited for its object
	}
	oneway := j.m.Type == typeOneway
	base := j.x.ctx
	if oneway {
		base = j.s.ctx
	}
	var ctx context.Context
	var cancel context.CancelFunc
	if j.m.Expires.IsZero() {
		ctx, cancel = context.WithCancel(base)
	} else {
		ctx, cancel = context.WithDeadline(base, j.m.Expires)
	}
	defer cancel()
	if !oneway {
		if !j.x.begin(j.id, cancel) {
			return
		}
		defer j.x.finish(j.id)
	}
	r := &Request{Method: j.name, Object: j.m.Key, Oneway: oneway, Body: j.m.Body, ContentType: j.m.ContentType, Headers: j.m.Headers,
		Priority: j.m.Priority}
	delete(r.Headers, headerMethod)
	reply, err := j.call(&callContext{ctx, j.x.peer, r}, r)
	j.method.took(time.Since(start))
	if oneway {
		if err != nil {
			j.s.o.Log.Warn("rpc: a one-way call failed", "service", j.s.name, "method", j.name, "object", j.m.Key, "error", err)
		}
		return
	}
	if ctx.Err() != nil {
		return // nobody waits any more
	}
	j.answer(reply, err)
}

// call runs the handler, and makes an error of its panic.
func (j *job) call(ctx context.Context, r *Request) (reply *Reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			j.s.o.Log.Error("rpc: a handler panicked", "service", j.s.name, "method", j.name, "panic", p, "stack", string(debug.Stack()))
			reply, err = nil, &Error{Code: Internal, Message: fmt.Sprintf("the handler of %s panicked: %v", j.name, p)}
		}
	}()
	return j.method.call(ctx, r)
}

// answer sends the reply. It does not wait: an honest client has room for the replies to all that it may ask at once, so one whose
// queue is full must not hold up the others.
func (j *job) answer(reply *Reply, err error) {
	m := kumquat.Message{Type: typeReply, Priority: j.m.Priority, CorrelationID: j.m.CorrelationID}
	if err == nil && reply != nil {
		if err = checkHeaders(reply.Headers); err == nil {
			m.Body, m.ContentType, m.Headers = reply.Body, reply.ContentType, reply.Headers
		}
	}
	if err == nil {
		if err = j.x.replies.TrySend(m); err == nil {
			return
		}
		if !errors.Is(err, kumquat.ErrTooLarge) {
			j.giveUp(err)
			return
		}
		err = &Error{Code: OutOfRange, Message: "the result: " + err.Error()}
	}
	e := *asError(err)
	m = kumquat.Message{Type: typeFailure, Priority: j.m.Priority, CorrelationID: j.m.CorrelationID, ContentType: contentJSON}
	for {
		if m.Body, err = json.Marshal(e); err == nil {
			err = j.x.replies.TrySend(m)
		}
		if !errors.Is(err, kumquat.ErrTooLarge) || e.Message == "" && e.Details == nil {
			break
		}
		if e.Details != nil {
			e.Details = nil
		} else {
			e.Message = e.Message[:len(e.Message)/2] // cut characters become U+FFFD in JSON
		}
	}
	if err != nil {
		j.giveUp(err)
	}
}

// giveUp ends the session of a client that cannot be answered.
func (j *job) giveUp(err error) {
	if j.x.ctx.Err() != nil {
		return // it is gone, that is why
	}
	j.s.o.Log.Warn("rpc: a client cannot be answered and is disconnected", "service", j.s.name, "pid", j.x.peer.PID, "uid", j.x.peer.UID, "error", err)
	tell(j.x.conn, []byte{packetBye})
	_ = j.x.conn.Close()
}
