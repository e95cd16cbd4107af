package shm

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// turn is a mutex whose waiters can give up: first come, first served, one atomic step when nobody contends.
// state: 0 free, 1 held, 2 held and waited for (changed from and to 2 only under mu).
//
// Giving it back is a plain store, since an atomic one would cost as much again as taking it. It can run over the 2 of a waiter that
// came in that very moment; so that waiter looks at the state again once such a store must have arrived, and now and then after that,
// since the holder may have been interrupted just before its store.
type turn struct {
	state   uint32
	mu      sync.Mutex
	waiters []chan struct{}
}

const (
	turnSettles = 100 // PAUSE instructions: longer than a store can be under way
	turnSlice   = 20 * time.Millisecond
	turnRarely  = 10 * time.Second
	turnWatch   = 2 // waiters who look after turnSlice: the first may give up
)

func (t *turn) tryLock() bool { return atomic.CompareAndSwapUint32(&t.state, 0, 1) }

// lock waits for the turn. It returns false if ctx or closed ended first.
func (t *turn) lock(ctx context.Context, closed <-chan struct{}) bool {
	if t.tryLock() {
		return true
	}
	t.mu.Lock()
	if t.claim() {
		t.mu.Unlock()
		return true
	}
	ch := make(chan struct{})
	place := len(t.waiters) // first: the 2 is ours
	t.waiters = append(t.waiters, ch)
	t.mu.Unlock()
	if place == 0 {
		pause(turnSettles)
		if t.overrun(ch) {
			return true
		}
	}
	slice := turnRarely
	if place < turnWatch {
		slice = turnSlice
	}
	timer := time.NewTimer(slice)
	defer timer.Stop()
	for {
		select {
		case <-ch:
			return true
		case <-timer.C:
			if t.overrun(ch) {
				return true
			}
			slice = min(4*slice, turnRarely)
			timer.Reset(slice)
			continue
		case <-ctx.Done():
		case <-closed:
		}
		break
	}
	t.mu.Lock()
	there := t.forget(ch)
	t.mu.Unlock()
	if !there {
		t.unlock() // it was given to us while we left
	}
	return false
}

// claim takes the turn if it is free, else makes its state say that somebody waits. The caller holds mu.
func (t *turn) claim() bool {
	for {
		if atomic.CompareAndSwapUint32(&t.state, 0, 1) {
			return true
		}
		if atomic.LoadUint32(&t.state) == 2 || atomic.CompareAndSwapUint32(&t.state, 1, 2) {
			return false
		}
	}
}

// overrun takes the turn for the waiter of ch if nobody will hand it over, because the state does not say that somebody waits.
func (t *turn) overrun(ch chan struct{}) bool {
	if atomic.LoadUint32(&t.state) == 2 {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.claim() {
		return false
	}
	t.forget(ch) // it is there: who is handed the turn finds a state of 2
	if len(t.waiters) > 0 {
		atomic.StoreUint32(&t.state, 2)
	}
	return true
}

// forget takes ch off the list of waiters and reports whether it was there. The caller holds mu.
func (t *turn) forget(ch chan struct{}) bool {
	for i, w := range t.waiters {
		if w == ch {
			t.waiters = append(t.waiters[:i], t.waiters[i+1:]...)
			return true
		}
	}
	return false
}

func (t *turn) unlock() {
	if atomic.LoadUint32(&t.state) == 1 {
		release(&t.state)
		return
	}
	t.handOver()
}

func (t *turn) handOver() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiters) == 0 {
		atomic.StoreUint32(&t.state, 0)
		return
	}
	ch := t.waiters[0]
	t.waiters = t.waiters[1:]
	close(ch) // stays at 2
}

// mustLock waits for the turn without giving up; for holders that only work, never sleep.
func (t *turn) mustLock() { t.lock(context.Background(), nil) }
