package shm

import (
	"context"
	"sync"
	"sync/atomic"
)

// turn is a mutex whose waiters can give up: first come, first served, one atomic step when nobody contends.
// state: 0 free, 1 held, 2 held and perhaps waited for (changed from and to 2 only under mu).
type turn struct {
	state   atomic.Int32
	mu      sync.Mutex
	waiters []chan struct{}
}

func (t *turn) tryLock() bool { return t.state.CompareAndSwap(0, 1) }

// lock waits for the turn. It returns false if ctx or closed ended first.
func (t *turn) lock(ctx context.Context, closed <-chan struct{}) bool {
	if t.tryLock() {
		return true
	}
	t.mu.Lock()
	for {
		if t.state.CompareAndSwap(0, 1) {
			t.mu.Unlock()
			return true
		}
		if t.state.Load() == 2 || t.state.CompareAndSwap(1, 2) {
			break
		}
	}
	ch := make(chan struct{})
	t.waiters = append(t.waiters, ch)
	t.mu.Unlock()
	select {
	case <-ch:
		return true
	case <-ctx.Done():
	case <-closed:
	}
	t.mu.Lock()
	for i, w := range t.waiters {
		if w == ch {
			t.waiters = append(t.waiters[:i], t.waiters[i+1:]...)
			t.mu.Unlock()
			return false
		}
	}
	t.mu.Unlock()
	t.unlock() // it was given to us while we left
	return false
}

func (t *turn) unlock() {
	if t.state.CompareAndSwap(1, 0) {
		return
	}
	t.mu.Lock()
	if len(t.waiters) == 0 {
		t.state.Store(0)
		t.mu.Unlock()
		return
	}
	ch := t.waiters[0]
	t.waiters = t.waiters[1:]
	close(ch) // stays at 2: handed over
	t.mu.Unlock()
}

// mustLock waits for the turn without giving up; for holders that only work, never sleep.
func (t *turn) mustLock() { t.lock(context.Background(), nil) }
