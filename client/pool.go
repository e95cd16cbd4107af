package client

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// pool holds one handle for each URL: handles serve any number of goroutines at once. It has no goroutine of its own; a timer runs
// while there are handles that nobody uses.
type pool struct {
	c      *Client
	closed chan struct{}

	mu      sync.Mutex
	handles map[string]*handle // those that may be taken
	open    int                // handles that are open, being opened or being closed, those forgotten included
	waiting int                // calls that wait for freed
	freed   chan struct{}      // closed, and made anew, when a handle may have become free and some wait
	timer   *time.Timer        // nil: not running
	ended   bool
	inUse   map[*handle]struct{} // forgotten ones that somebody still uses
	shuts   sync.WaitGroup       // of handles that are about to be closed, for which close waits
}

type handle struct {
	url   string
	ready chan struct{} // closed when q or err is set
	q     *kumquat.Queue
	err   error

	users     int // guarded by pool.mu, as are the following
	last      time.Time
	forgotten bool
	leaving   bool // counted in shuts
}

func (p *pool) init(c *Client) {
	p.c, p.closed, p.freed = c, make(chan struct{}), make(chan struct{})
	p.handles, p.inUse = map[string]*handle{}, map[*handle]struct{}{}
}

func closedError(o *Operation) error {
	return &kumquat.Error{Op: o.Name, Queue: o.Queue, Err: kumquat.ErrClosed}
}

// take returns a handle of o's queue, to be given back. It waits while as many are open as may be, and all in use.
func (p *pool) take(ctx context.Context, o *Operation) (*handle, error) {
	for {
		p.mu.Lock()
		if p.ended {
			p.mu.Unlock()
			return nil, closedError(o)
		}
		h := p.handles[o.Queue]
		if h != nil {
			h.users++
			p.mu.Unlock()
			select {
			case <-h.ready: // opened by another, whose context the opening had
				if h.err != nil && ctx.Err() == nil && (errors.Is(h.err, context.Canceled) || errors.Is(h.err, context.DeadlineExceeded)) {
					p.give(h)
					continue
				}
			case <-ctx.Done():
				p.give(h)
				return nil, &kumquat.Error{Op: o.Name, Queue: o.Queue, Err: contextError(ctx)}
			}
			if h.err != nil {
				err := h.err
				p.give(h)
				return nil, err
			}
			return h, nil
		}
		if p.open < p.c.o.MaxHandles {
			h = &handle{url: o.Queue, ready: make(chan struct{}), users: 1}
			p.handles[o.Queue] = h
			p.open++
			p.mu.Unlock()
			return p.opened(ctx, h, o)
		}
		if victim := p.idlest(); victim != nil {
			p.drop(victim)
			p.leave(victim)
			p.mu.Unlock()
			p.shut(victim)
			continue
		}
		freed := p.freed
		p.waiting++
		p.mu.Unlock()
		over := false
		select {
		case <-freed:
		case <-p.closed:
		case <-ctx.Done():
			over = true
		}
		p.mu.Lock()
		p.waiting--
		p.mu.Unlock()
		if over {
			return nil, &kumquat.Error{Op: o.Name, Queue: o.Queue, Err: contextError(ctx)}
		}
	}
}

func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return kumquat.ErrTimeout
	}
	return ctx.Err()
}

// opened opens the queue of h, which is in the pool already so that others wait for it instead of opening it too.
func (p *pool) opened(ctx context.Context, h *handle, o *Operation) (*handle, error) {
	q, err := kumquat.Open(ctx, h.url, p.c.o.Open)
	p.mu.Lock()
	if err == nil && p.ended {
		err = closedError(o)
	} else if err == nil {
		h.q, q = q, nil
	}
	if h.err = err; err != nil {
		p.drop(h)
	}
	p.mu.Unlock()
	if q != nil {
		_ = q.Close()
	}
	close(h.ready)
	if err != nil {
		p.give(h)
		return nil, err
	}
	p.c.o.Logger.LogAttrs(ctx, slog.LevelDebug, "queue opened", slog.String("queue", h.url))
	return h, nil
}

// give takes a handle back.
func (p *pool) give(h *handle) {
	p.mu.Lock()
	h.users--
	h.last = time.Now()
	last := h.users == 0
	shut := last && h.forgotten
	if shut {
		delete(p.inUse, h)
		p.leave(h)
	} else if last {
		p.wake()
		if idle := p.c.o.Idle; idle > 0 && p.timer == nil && !p.ended {
			p.timer = time.AfterFunc(idle, p.sweep)
		}
	}
	p.mu.Unlock()
	if shut {
		p.shut(h)
	}
}

// forget takes h out of the pool, so that the next one opens the queue anew. The last user closes it.
func (p *pool) forget(h *handle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drop(h)
}

// drop is forget with mu held.
func (p *pool) drop(h *handle) {
	if h.forgotten {
		return
	}
	h.forgotten = true
	delete(p.handles, h.url)
	if h.users > 0 {
		p.inUse[h] = struct{}{}
	}
}

// leave announces that h will be shut. mu is held.
func (p *pool) leave(h *handle) {
	if !p.ended { // else close has begun to wait, and closes h itself if it was in use
		p.shuts.Add(1)
		h.leaving = true
	}
}

// shut closes a handle that nobody uses and that is out of the pool.
func (p *pool) shut(h *handle) {
	if h.q != nil {
		_ = h.q.Close() // ErrClosed if the client was closed meanwhile
	}
	p.mu.Lock()
	p.open--
	p.wake()
	p.mu.Unlock()
	if h.leaving {
		p.shuts.Done()
	}
}

// wake tells those that wait for a handle. mu is held.
func (p *pool) wake() {
	if p.waiting > 0 {
		close(p.freed)
		p.freed = make(chan struct{})
	}
}

// idlest returns the handle that nobody has used for longest. mu is held.
func (p *pool) idlest() (x *handle) {
	for _, h := range p.handles {
		if h.users == 0 && (x == nil || h.last.Before(x.last)) {
			x = h
		}
	}
	return x
}

// sweep closes what nobody has used for long, and comes again while there is something that nobody uses.
func (p *pool) sweep() {
	var shut []*handle
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return
	}
	next := time.Duration(-1)
	for _, h := range p.handles {
		if h.users > 0 {
			continue
		}
		if left := p.c.o.Idle - time.Since(h.last); left <= 0 {
			p.drop(h)
			p.leave(h)
			shut = append(shut, h)
		} else if next < 0 || left < next {
			next = left
		}
	}
	if p.timer = nil; next >= 0 {
		p.timer = time.AfterFunc(next, p.sweep)
	}
	p.mu.Unlock()
	for _, h := range shut {
		p.shut(h)
	}
}

// sleep waits between attempts. It reports whether the next may begin.
func (p *pool) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-p.closed:
	}
	return false
}

func (p *pool) close() error {
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return kumquat.ErrClosed
	}
	p.ended = true
	close(p.closed)
	if p.timer != nil {
		p.timer.Stop()
	}
	var all []*handle
	for _, h := range p.handles {
		all = append(all, h)
	}
	for h := range p.inUse {
		all = append(all, h)
	}
	p.mu.Unlock()
	var errs []error
	for _, h := range all {
		p.mu.Lock()
		q := h.q // nil while it is being opened: opened sees ended
		p.mu.Unlock()
		if q == nil {
			continue
		}
		if err := q.Close(); err != nil && !errors.Is(err, kumquat.ErrClosed) {
			errs = append(errs, err)
		}
	}
	p.shuts.Wait()
	return errors.Join(errs...)
}
