package shm

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Many goroutines take turns; some give up. Nobody is inside together with another, and nobody is forgotten: a plain store gives a
// turn back, and what it may run over has to be found.
func TestTurn(t *testing.T) {
	var tn turn
	var inside, gaveUp atomic.Int64
	var done [16]int
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	end := time.Now().Add(2 * time.Second)
	var wg sync.WaitGroup
	for g := range done {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for time.Now().Before(end) {
				waitCtx, stop := ctx, func() {}
				if r.IntN(4) == 0 {
					waitCtx, stop = context.WithTimeout(ctx, time.Duration(r.IntN(20))*time.Microsecond)
				}
				if !tn.lock(waitCtx, nil) {
					if ctx.Err() != nil {
						t.Error("a goroutine waited for a minute")
					}
					gaveUp.Add(1)
					stop()
					continue
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d goroutines have the turn", n)
				}
				for range r.IntN(50) {
					pause(1)
				}
				inside.Add(-1)
				done[g]++
				tn.unlock()
				stop()
			}
		})
	}
	wg.Wait()
	if !tn.tryLock() {
		t.Error("all are gone, and the turn is not free")
	}
	if len(tn.waiters) != 0 {
		t.Errorf("%d waiters are left", len(tn.waiters))
	}
	for g, n := range done {
		if n == 0 {
			t.Errorf("goroutine %d never had the turn", g)
		}
	}
	t.Logf("turns %v, given up %d", done, gaveUp.Load())
}

// The waiter whose mark was run over has given up meanwhile: the next one finds out as well.
func TestTurnOverrunThenLeft(t *testing.T) {
	var tn turn
	tn.tryLock()
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	a, b := make(chan bool), make(chan bool)
	go func() { a <- tn.lock(ctx, nil) }()
	for atomic.LoadUint32(&tn.state) != 2 {
		time.Sleep(time.Millisecond)
	}
	go func() {
		tn.mustLock()
		b <- true
	}()
	time.Sleep(5 * time.Millisecond)
	if <-a {
		t.Fatal("the turn was given twice")
	}
	release(&tn.state) // as by a holder that looked before anybody waited
	select {
	case <-b:
	case <-time.After(5 * time.Second):
		t.Fatal("the second waiter is forgotten")
	}
}
