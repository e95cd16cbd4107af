// Package client is for programs that use many queues by name: it keeps handles open (pool), tries again what failed without having done
// anything (retry), logs to a slog.Logger, and calls hooks before and after every operation, for metrics and traces. Each is an option; the
// zero Options have the pool and the retries. It uses the public calls of package kumquat only.
//
//	c := client.New(&client.Options{Open: &kumquat.Options{Create: true}, Logger: slog.Default()})
//	defer c.Close()
//	err := c.Send(ctx, "/orders", kumquat.Message{Body: b})
//	m, err := c.Receive(ctx, "/orders")
//
// A program with a few queues needs none of it: a kumquat.Queue is safe for any number of goroutines, and stays open.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// Options says how a client works. The zero value, and nil, are a pool of 64 handles, each closed after a minute without use, five
// attempts, no logging and no hooks.
type Options struct {
	Open       *kumquat.Options // how each queue is opened; nil: it must be there
	MaxHandles int              // open at once; beyond, the one unused for longest is closed, and if all are in use a call waits. 0: 64
	Idle       time.Duration    // after which a handle that nobody uses is closed; 0: a minute; below 0: never
	Retry      Retry
	Logger     *slog.Logger // retries at Info, failures at Warn, the rest at Debug, never bodies or headers; nil: nothing
	Hooks      []Hook       // Before in this order, After in the opposite one
}

// Retry says how often, and how long after each other, an operation is tried. The waits grow from First by the factor 2 up to Max, and
// each is shortened by up to half of it at random, so that many clients do not come back together. The context ends a wait.
type Retry struct {
	Attempts int              // the first included; 0: 5; 1: no retry
	First    time.Duration    // 0: 10 ms
	Max      time.Duration    // 0: 1 s
	On       func(error) bool // nil: Retriable
}

// Retriable reports whether err is one that may pass, and means that nothing was done: the queue is full and does not wait (ErrFull),
// memory or handles are used up (ErrNoSpace, ErrLimit), or it is not there any more or not yet (ErrRemoved, ErrNotFound). The end of a
// context never is.
func Retriable(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	for _, x := range []error{kumquat.ErrFull, kumquat.ErrNoSpace, kumquat.ErrLimit, kumquat.ErrRemoved, kumquat.ErrNotFound} {
		if errors.Is(err, x) {
			return true
		}
	}
	return false
}

// Hook is told of every operation. Either function may be nil. They run in the goroutine of the call and should be quick.
type Hook struct {
	// Before may change Operation.Message (a message to be sent), but not the map of its Headers, which is the caller's. The
	// operation, and After, get the context it returns; nil keeps the one it was given.
	Before func(ctx context.Context, o *Operation) context.Context
	// After sees Duration, Attempts and Err.
	After func(ctx context.Context, o *Operation)
}

// Operation is one call of a client.
type Operation struct {
	Name     string           // "send", "receive", or as Do was told
	Queue    string           // its URL
	Message  *kumquat.Message // to be sent; after a receive what came; else nil
	Start    time.Time
	Duration time.Duration
	Attempts int
	Err      error
}

// Client is a pool of queues with what surrounds their calls. New makes one. Its methods may be called from many goroutines at once.
type Client struct {
	o    Options
	pool pool
}

// New returns a client. It opens nothing yet. New panics if a number in o is below 0 (Idle apart), since a program writes it as a constant.
func New(o *Options) *Client {
	c := &Client{}
	if o != nil {
		c.o = *o
	}
	r := &c.o.Retry
	if c.o.MaxHandles < 0 || r.Attempts < 0 || r.First < 0 || r.Max < 0 {
		panic(fmt.Sprintf("client: New: MaxHandles %d, Attempts %d, First %v or Max %v is below 0", c.o.MaxHandles, r.Attempts, r.First, r.Max))
	}
	set(&c.o.MaxHandles, 64)
	set(&c.o.Idle, time.Minute)
	set(&r.Attempts, 5)
	set(&r.First, 10*time.Millisecond)
	set(&r.Max, time.Second)
	if r.On == nil {
		r.On = Retriable
	}
	if c.o.Logger == nil {
		c.o.Logger = slog.New(slog.DiscardHandler)
	}
	c.pool.init(c)
	return c
}

func set[T comparable](x *T, value T) {
	var zero T
	if *x == zero {
		*x = value
	}
}

// Close closes all queues, also those in use: calls that wait on them return ErrClosed, as does every later call of the client.
func (c *Client) Close() error { return c.pool.close() }

// Send sends m to the queue that url names, as Queue.Send does.
//
// Errors: those of kumquat.Open and Queue.Send, of the last attempt.
func (c *Client) Send(ctx context.Context, url string, m kumquat.Message) error {
	return c.do(ctx, &Operation{Name: "send", Queue: url, Message: &m}, func(ctx context.Context, q *kumquat.Queue, o *Operation) error {
		return q.Send(ctx, *o.Message)
	})
}

// Receive takes a message from the queue that url names, as Queue.Receive does.
//
// Errors: those of kumquat.Open and Queue.Receive, of the last attempt.
func (c *Client) Receive(ctx context.Context, url string, filters ...kumquat.Filter) (m kumquat.Message, err error) {
	err = c.do(ctx, &Operation{Name: "receive", Queue: url}, func(ctx context.Context, q *kumquat.Queue, o *Operation) (err error) {
		if m, err = q.Receive(ctx, filters...); err == nil {
			o.Message = &m
		}
		return err
	})
	return m, err
}

// Do calls f with the queue that url names, with all that surrounds Send and Receive. name is what hooks and log call it. f may run
// several times: where it returns an error that Retry.On accepts, it must have done nothing. It must not keep the queue.
func (c *Client) Do(ctx context.Context, name, url string, f func(context.Context, *kumquat.Queue) error) error {
	return c.do(ctx, &Operation{Name: name, Queue: url}, func(ctx context.Context, q *kumquat.Queue, _ *Operation) error { return f(ctx, q) })
}

func (c *Client) do(ctx context.Context, o *Operation, f func(context.Context, *kumquat.Queue, *Operation) error) error {
	if ctx == nil {
		return &kumquat.Error{Op: o.Name, Queue: o.Queue, Err: fmt.Errorf("%w: the context is nil", kumquat.ErrInvalid)}
	}
	o.Start = time.Now()
	for _, h := range c.o.Hooks {
		if h.Before == nil {
			continue
		}
		if own := h.Before(ctx, o); own != nil {
			ctx = own
		}
	}
	for o.Attempts = 1; ; o.Attempts++ {
		o.Err = c.once(ctx, o, f)
		if o.Err == nil || o.Attempts >= c.o.Retry.Attempts || !c.o.Retry.On(o.Err) {
			break
		}
		wait := c.wait(o.Attempts)
		c.log(ctx, slog.LevelInfo, "queue operation is tried again", o, slog.Duration("wait", wait))
		if !c.pool.sleep(ctx, wait) {
			break // with the error that there was: it says more than that the time is over
		}
	}
	o.Duration = time.Since(o.Start)
	if o.Err != nil {
		c.log(ctx, slog.LevelWarn, "queue operation failed", o)
	} else {
		c.log(ctx, slog.LevelDebug, "queue operation", o)
	}
	for i := len(c.o.Hooks) - 1; i >= 0; i-- {
		if h := c.o.Hooks[i]; h.After != nil {
			h.After(ctx, o)
		}
	}
	return o.Err
}

// once is one attempt.
func (c *Client) once(ctx context.Context, o *Operation, f func(context.Context, *kumquat.Queue, *Operation) error) error {
	e, err := c.pool.take(ctx, o)
	if err != nil {
		return err
	}
	defer c.pool.give(e)
	err = f(ctx, e.q, o)
	if errors.Is(err, kumquat.ErrRemoved) || errors.Is(err, kumquat.ErrClosed) {
		c.pool.forget(e) // another queue of this name may be there, or come
	}
	return err
}

// wait returns how long to wait after attempt n.
func (c *Client) wait(n int) time.Duration {
	d := c.o.Retry.Max
	if n < 32 {
		d = min(d, c.o.Retry.First<<(n-1))
	}
	if d <= 0 { // shifted out
		d = c.o.Retry.Max
	}
	return d - rand.N(d/2+1)
}

func (c *Client) log(ctx context.Context, level slog.Level, text string, o *Operation, more ...slog.Attr) {
	if !c.o.Logger.Enabled(ctx, level) {
		return
	}
	as := append(make([]slog.Attr, 0, 6), slog.String("operation", o.Name), slog.String("queue", o.Queue), slog.Int("attempts", o.Attempts))
	if o.Duration > 0 {
		as = append(as, slog.Duration("duration", o.Duration))
	}
	if o.Err != nil {
		as = append(as, slog.Any("error", o.Err))
	}
	c.o.Logger.LogAttrs(ctx, level, text, append(as, more...)...)
}
