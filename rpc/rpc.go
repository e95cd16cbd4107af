// Package rpc calls functions of other processes of this machine through queues.
//
//	s := rpc.NewServer(nil)
//	rpc.Handle(s, "add", func(ctx context.Context, v []int) (int, error) { return v[0] + v[1], nil })
//	if err := s.Listen(ctx, "/calculator"); err != nil {
//		return err
//	}
//	return s.Serve(ctx) // until ctx is done
//
//	c, err := rpc.Dial(ctx, "/calculator", nil)
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	sum, err := rpc.Call[int](ctx, c, "add", []int{2, 3})
//
// # How a call travels
//
//	client                                                   server
//	Dial ──── hello ──────────► socket ─────────────────────► who is it? (the kernel says)            (socket.go, session.go)
//	      ◄── names of two queues ──────────────────────────  makes a queue for the replies
//	Call ──── message ────────► requests, a queue ──────────► leader of the lane takes it             (conn.go, lane.go)
//	                                                          handler runs, in a context of its own   (job.go)
//	      ◄── message ───────── replies, this client's queue ◄ reply
//	      ···· cancelled ·····► socket ······················► the handler's context ends
//	death ···· end of file ···► socket ······················► both sides know at once
//
// The socket carries no calls. It is where the kernel tells each side who the other is, where a cancellation overtakes the
// calls that wait, and whose end is the death notice: the kernel closes it when a process ends, however it ends.
//
// A request is a message: Type 1 (a call) or 2 (one-way), ReplyTo the client's queue, CorrelationID the call's number, Key the
// object, Expires the deadline, Headers what the caller gave and "rpc-method". A reply has Type 3, or 4 with the error as JSON,
// and the CorrelationID and priority of its request.
//
// # What it promises
//
// A call is carried out at most once. The deadline of the caller's context is the handler's too: a request that waits past it is
// never delivered. The end of the caller's context ends the handler's. If the server dies, every call ends at once with ErrDied; if
// a client dies, the contexts of its handlers end at once, their cause is ErrDied. A process that is stopped is not dead: calls to
// it wait for their deadline, and the server goes on without waiting for a stopped client.
//
// One-way calls return when the request is in the queue. Those to one object run one at a time in the order in which they were
// sent (higher priority first), over all clients; they outlive their caller.
//
// Calls have priorities (WithPriority). A handler runs at its caller's priority: the calls that it makes with its context have it
// too, unless it says otherwise. Among requests that wait, the higher one is served first.
//
// # Who trusts whom
//
// Clients of the server's own user share one queue of requests. A client of another user, or every client if
// ServerOptions.Isolate says so, gets a queue for its requests that nobody else may open: mode 0600 and an access control
// list that admits that one user. Each side pins the queues to their owner, the server's user. What such a peer writes into its
// queues can end its own connection only. Who a caller is, PeerFrom tells, as the kernel states it (SO_PEERCRED).
//
// Package grpcrpc, a module of its own, lets stubs made by protoc-gen-go-grpc use such a connection unchanged.
package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/kumquat-mq/kumquat"
)

// Types of messages, part of the protocol.
const (
	typeCall    = 1
	typeOneway  = 2
	typeReply   = 3
	typeFailure = 4
	typeEnd     = 5 // of a session: the server's own message to itself
)

// headerMethod names the method in a request. Keys that begin as it does are the protocol's.
const (
	headerReserved = "rpc-"
	headerMethod   = headerReserved + "method"
)

// ErrDied: the process on the other side ended without saying goodbye. Whether a call that was under way has been carried out is
// unknown. It matches ECONNRESET.
var ErrDied error = &sentinel{"the peer died", syscall.ECONNRESET}

// ErrStopped: the server stopped in order, or is about to, and did not carry the call out to its end. It matches ECONNREFUSED.
var ErrStopped error = &sentinel{"the server stopped", syscall.ECONNREFUSED}

type sentinel struct {
	text  string
	errno syscall.Errno
}

func (e *sentinel) Error() string        { return e.text }
func (e *sentinel) Is(target error) bool { return target == e.errno }

// Request is one call as handlers and interceptors see it.
type Request struct {
	Method      string // what to call; not empty
	Object      string // one-way calls to one object run one after the other; empty: in no order
	Oneway      bool   // no reply is wanted
	Body        []byte // the argument
	ContentType string // media type of Body; may be empty
	// Headers is what else the caller tells; with all other metadata at most 4,000 bytes. Keys that begin with "rpc-" are refused.
	Headers map[string]string
	// Priority is the call's, from 0 to kumquat.MaxPriority. It is for reading: WithPriority sets it.
	Priority int
}

// Reply is what a call returns. The zero value is an empty reply.
type Reply struct {
	Body        []byte
	ContentType string            // media type of Body; may be empty
	Headers     map[string]string // what else the server tells; bounds as in Request
}

// Handler carries out a call. Handlers run concurrently. The context ends with the deadline or cancellation of the call, and, but
// for one-way calls, with the client. The Request and what it holds are the handler's. An error goes to the caller as an *Error;
// a nil Reply is an empty one. A panic becomes an error of code Internal.
type Handler func(ctx context.Context, r *Request) (*Reply, error)

// Interceptor stands around calls, on either side: it calls next, or not, and may change what goes in and out. On the client next
// sends the request and waits for the reply; of one-way calls the reply is nil.
type Interceptor func(ctx context.Context, r *Request, next Handler) (*Reply, error)

// chain puts interceptors around h, the first outermost.
func chain(is []Interceptor, h Handler) Handler {
	for i := len(is) - 1; i >= 0; i-- {
		x, next := is[i], h
		if x == nil {
			continue
		}
		h = func(ctx context.Context, r *Request) (*Reply, error) { return x(ctx, r, next) }
	}
	return h
}

// Code says what kind of error a server answered with. The numbers are those of gRPC.
type Code uint32

// The codes.
const (
	OK Code = iota
	Canceled
	Unknown // the handler's error says nothing of its kind
	InvalidArgument
	DeadlineExceeded
	NotFound
	AlreadyExists
	PermissionDenied
	ResourceExhausted
	FailedPrecondition
	Aborted
	OutOfRange
	Unimplemented // the server does not have this method
	Internal
	Unavailable
	DataLoss
	Unauthenticated
)

var codeNames = [...]string{"ok", "canceled", "unknown", "invalid argument", "deadline exceeded", "not found", "already exists",
	"permission denied", "resource exhausted", "failed precondition", "aborted", "out of range", "unimplemented", "internal",
	"unavailable", "data loss", "unauthenticated"}

// String returns the code's name in lower case, or its number.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint32(c))
}

// codeOf pairs codes with the errors that mean the same: a handler's error gets the code of the first that it matches, and an
// *Error matches all errors of its code.
var codeOf = []struct {
	err  error
	code Code
}{
	{context.Canceled, Canceled},
	{kumquat.ErrTimeout, DeadlineExceeded},
	{context.DeadlineExceeded, DeadlineExceeded},
	{kumquat.ErrInvalid, InvalidArgument},
	{kumquat.ErrNotFound, NotFound},
	{kumquat.ErrExists, AlreadyExists},
	{kumquat.ErrPermission, PermissionDenied},
	{kumquat.ErrLimit, ResourceExhausted},
	{kumquat.ErrFull, ResourceExhausted},
	{kumquat.ErrTooLarge, OutOfRange},
	{kumquat.ErrUnsupported, Unimplemented},
	{ErrDied, Unavailable},
	{ErrStopped, Unavailable},
	{kumquat.ErrCorrupt, DataLoss},
}

// Error is an error that the server answered with: the handler's own, or one of the server itself. A handler that wants a code or
// details of its own returns one; of other errors the text is sent, and the code that fits best.
//
// It matches the errors of its code: errors.Is(err, kumquat.ErrUnsupported) holds for Unimplemented, context.DeadlineExceeded
// for DeadlineExceeded.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`           // for people
	Details []byte `json:"details,omitempty"` // for programs; what they mean is between caller and handler
}

// Error returns the message and the code.
func (e *Error) Error() string { return e.Message + " (" + e.Code.String() + ")" }

// Is reports whether target is an error of the same code. A wrong reply is never taken for the death of the server.
func (e *Error) Is(target error) bool {
	for _, c := range codeOf {
		if c.code == e.Code && e.Code != Unavailable && errors.Is(c.err, target) {
			return true
		}
	}
	return false
}

// asError is what of a handler's error travels.
func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) && e != nil {
		if e.Code == OK { // an error with the code of success would be lost on the way
			return &Error{Unknown, e.Message, e.Details}
		}
		return e
	}
	code := Unknown
	for _, c := range codeOf {
		if errors.Is(err, c.err) {
			code = c.code
			break
		}
	}
	return &Error{Code: code, Message: err.Error()}
}

// decodeError reads the body of a failure.
func decodeError(b []byte) error {
	e := new(Error)
	if err := json.Unmarshal(b, e); err != nil || e.Code == OK {
		return fmt.Errorf("the server answered with an error that cannot be read: %w", kumquat.ErrCorrupt)
	}
	return e
}

// checkHeaders refuses keys of the protocol's own.
func checkHeaders(h map[string]string) error {
	for k := range h {
		if strings.HasPrefix(k, headerReserved) {
			return fmt.Errorf("%w: header %q: keys that begin with %q are the protocol's", kumquat.ErrInvalid, k, headerReserved)
		}
	}
	return nil
}
