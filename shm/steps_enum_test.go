//go:build kumquat_step

package shm

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

func unmap(q *Queue) { _ = unix.MunmapPtr(q.base, uintptr(q.size)) }

// The operations that a victim is caught in, each with what was done before.
var victims = []struct {
	name   string
	o      driver.Options
	before []func(*client)
	op     func(*client)
}{
	{"send", driver.Options{}, nil, opSendOne(3, 8)},
	{"send big", driver.Options{}, nil, opSendOne(3, 1000)},
	{"send full", driver.Options{}, []func(*client){opSendMany(1, 2), opSendMany(1, 2)}, opSendOne(3, 8)},
	{"batch", driver.Options{}, []func(*client){opSendOne(1, 8)}, opSendMany(1, 3, 2)},
	{"reserve and commit", driver.Options{}, nil, opReserveCommit(2, false)},
	{"reserve and abort", driver.Options{}, nil, opReserveCommit(2, true)},
	{"receive", driver.Options{}, []func(*client){opSendMany(1, 3, 2)}, opTakeOne},
	{"receive big", driver.Options{}, []func(*client){opSendOne(1, 1000)}, opTakeOne},
	{"receive drained", driver.Options{}, []func(*client){opSendMany(1, 3, 2), opTakeOne}, opTakeOne},
	{"receive nothing", driver.Options{}, nil, opTakeOne},
	{"receive batch", driver.Options{}, []func(*client){opSendMany(1, 3, 2)}, opTakeMany(3)},
	{"receive filtered", driver.Options{}, []func(*client){opSendMany(2, 3, 2)}, opTakeOdd},
	{"borrow", driver.Options{}, []func(*client){opSendMany(2, 1)}, opBorrowOne},
	{"purge", driver.Options{}, []func(*client){opSendMany(1, 3, 2)}, opPurgeAll},
	{"drop oldest", driver.Options{Overflow: driver.DropOldest}, []func(*client){opSendMany(1, 2), opSendMany(1, 2)}, opSendOne(3, 8)},
	{"drop lowest", driver.Options{Overflow: driver.DropLowest}, []func(*client){opSendMany(1, 2), opSendMany(1, 2)}, opSendOne(3, 8)},
	{"open", driver.Options{}, []func(*client){opSendOne(1, 8)}, opOpenAnother},
	{"close", driver.Options{}, []func(*client){opSendOne(1, 8), opTakeOne}, opCloseIt},
}

// catch runs the victim up to step k of its operation and then lets fate decide. It returns false when the operation has fewer steps.
func catch(t *testing.T, v int, what string, k int, fate func(w *world, c *client)) bool {
	x := victims[v]
	o := x.o
	o.MaxMessages, o.MaxSize, o.MaxHandles = 4, 2000, 8
	w := newWorld(t, o, what)
	c := w.add(append(append([]func(*client){}, x.before...), func(c *client) { c.steps = 0; x.op(c) })...)
	setup := len(x.before)
	inside := func() bool { return setup == 0 || len(w.log) > setup }
	for !inside() || c.steps < k {
		if !w.run(c, true) {
			w.settle()
			return false
		}
	}
	fate(w, c)
	w.settle()
	return true
}

// others do a bit of everything beside the victim.
func others(w *world) {
	a := w.add(opTakeOne, opSendOne(1, 8), opSendOne(2, 1000), opTakeOne)
	w.finish(a)
	b := w.add(opSendMany(3, 1), opTakeMany(2), opOpenAnother, opTakeOne)
	w.finish(b)
}

func dieHere(w *world, c *client) {
	w.run(c, false)
	others(w)
}

func stopHere(w *world, c *client) {
	others(w)
	w.finish(c)
}

// Every operation dies at every step, and is stopped at every step while others work past it.
func TestEveryStep(t *testing.T) {
	stepSetup(t)
	for _, fate := range []struct {
		name string
		do   func(*world, *client)
	}{{"die", dieHere}, {"stop", stopHere}} {
		for v := range victims {
			t.Run(fate.name+"/"+victims[v].name, func(t *testing.T) {
				k := 0
				for ; catch(t, v, fmt.Sprintf("%s at step %d of %s", fate.name, k, victims[v].name), k, fate.do); k++ {
				}
				t.Logf("%d steps", k)
				if k < 3 {
					t.Errorf("only %d steps", k)
				}
			})
		}
	}
}

// A second client, that takes over what the first left, dies or stops at every step of that.
func TestEveryStepTwice(t *testing.T) {
	stepSetup(t)
	stride := 7 // every seventh step of both; KUMQUAT_STRIDE=1 takes all, in a quarter of an hour
	if s := os.Getenv("KUMQUAT_STRIDE"); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n > 0 {
			stride = n
		}
	}
	total := 0
	for v := range victims {
		for _, first := range []bool{false, true} {
			for _, second := range []bool{false, true} {
				for k := 0; ; k += stride {
					more, j := false, 0
					for ; ; j += stride {
						again := false
						what := fmt.Sprintf("%s, first dies %v at step %d, second dies %v at step %d", victims[v].name, first, k, second, j)
						more = catch(t, v, what, k, func(w *world, c *client) {
							if first {
								w.run(c, false)
							}
							d := w.add(opTakeOne, opSendOne(2, 8))
							for d.steps < j {
								if !w.run(d, true) {
									break
								}
							}
							again = !d.ended
							if again && second {
								w.run(d, false)
							}
							others(w)
							if !c.dead {
								w.finish(c)
							}
							w.finish(d)
						})
						total++
						if !more || !again {
							break
						}
					}
					if !more {
						break
					}
				}
			}
		}
	}
	t.Logf("%d cases", total)
}

// Random schedules: clients are interleaved step by step, some die, some stop for long, and every client may call the lock's holder
// stuck at any moment. KUMQUAT_SEED repeats one, KUMQUAT_SCHEDULES says how many.
func TestSchedules(t *testing.T) {
	stepSetup(t)
	n := 20_000
	if s := os.Getenv("KUMQUAT_SCHEDULES"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	seed := repeatable(t)
	if os.Getenv("KUMQUAT_SEED") != "" {
		n = 1
	}
	t.Logf("first seed %d", seed)
	steps, takeovers, died := 0, 0, 0
	for i := range n {
		w := schedule(t, seed+uint64(i))
		steps += w.tick
		takeovers += int(lockEpoch(load(w.seen.lockw)))
		w.settle()
		for _, c := range w.clients {
			if c.dead {
				died++
			}
		}
	}
	t.Logf("schedules summary: %d schedules, %d steps, %d takeovers, %d deaths", n, steps, takeovers, died)
}

func schedule(t *testing.T, seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 2))
	o := driver.Options{MaxMessages: []int{1, 2, 3, 5}[r.IntN(4)], MaxSize: 2000, MaxHandles: 16,
		Overflow: []driver.Overflow{driver.Reject, driver.Reject, driver.Reject, driver.DropOldest, driver.DropLowest}[r.IntN(5)]}
	n := 2 + r.IntN(3)
	if r.IntN(2) == 0 {
		o.MaxHandles = 1 + n // none to spare: who opens another uses the entry of a dead one
	}
	w := newWorld(t, o, fmt.Sprintf("KUMQUAT_SEED=%d", seed))
	any := func() func(*client) {
		switch r.IntN(13) {
		case 12:
			return opOpenAnother
		case 0, 1, 2:
			return opSendOne(r.IntN(4), 8)
		case 3:
			return opSendOne(r.IntN(4), 1000)
		case 4:
			if o.MaxMessages >= 2 {
				return opSendMany(r.IntN(4), r.IntN(4))
			}
			return opSendOne(1, 8)
		case 5:
			return opReserveCommit(r.IntN(4), r.IntN(4) == 0)
		case 6:
			return opTakeMany(1 + r.IntN(3))
		case 7:
			return opTakeOdd
		case 8:
			return opBorrowOne
		default:
			return opTakeOne
		}
	}
	var live []*client
	for range n {
		var ops []func(*client)
		for range 1 + r.IntN(4) {
			ops = append(ops, any())
		}
		live = append(live, w.add(ops...))
	}
	// Two ways: at each step anyone may go, or (PCT) the one with the highest weight goes, and weights change at a few places.
	stuckOdds := 1 + r.IntN(20)
	stuckRule = func(w *world, c *client) bool { return r.IntN(stuckOdds) == 0 }
	t.Cleanup(func() { stuckRule = eager })
	deaths := r.IntN(3)
	pct := r.IntN(2) == 0
	order := r.Perm(len(live))
	change := 1 + r.IntN(60)
	for n := 0; len(live) > 0 && n < 20_000; n++ {
		i := r.IntN(len(live))
		if pct {
			i = order[0] % len(live)
			if n%change == change-1 {
				r.Shuffle(len(order), func(a, b int) { order[a], order[b] = order[b], order[a] })
			}
		}
		c := live[i]
		alive := true
		if deaths > 0 && r.IntN(80) == 0 {
			deaths--
			alive = false
		}
		if !w.run(c, alive) {
			live = append(live[:i], live[i+1:]...)
		}
	}
	stuckRule = eager
	return w
}
