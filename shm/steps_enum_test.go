//go:build kumquat_step

package shm

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// A victim is an operation that is caught at a step.
type victim struct {
	name   string
	o      driver.Options
	stage  func(w *world)  // other clients, and what they left, before the victim opens
	before []func(*client) // what the victim did before
	set    func(w *world)  // what others do between that and the operation
	op     func(*client)   // the operation
	others func(w *world)  // what others do instead of a bit of everything
	second []func(*client) // what the second victim does, that takes over from the first; nil: receive and send
	least  int             // steps that it has at least
}

const (
	soon = time.Millisecond // until a timed message is due, or over
	past = -time.Second
)

// The operations. Creating a queue and reading a message in place have no step: the file gets its name when it is complete, and an
// observer writes nothing (see opPeekAll).
var victims = []victim{
	{name: "send", op: opSendOne(3, 8)},
	{name: "send big", op: opSendOne(3, 1000)},
	{name: "send full", before: full(), op: opSendOne(3, 8)},
	{name: "send again", before: []func(*client){opSendOne(3, 8), opTakeOne, opTakeOne}, op: opSendOne(3, 8)},
	{name: "send to a sleeper", set: sleeper, op: opSendOne(3, 8)},
	{name: "batch", before: []func(*client){opSendOne(1, 8)}, op: opSendMany(1, 3, 2)},
	{name: "reserve and commit", op: opReserveCommit(2, false)},
	{name: "reserve and abort", op: opReserveCommit(2, true)},
	{name: "receive", before: []func(*client){opSendMany(1, 3, 2)}, op: opTakeOne},
	{name: "receive big", before: []func(*client){opSendOne(1, 1000)}, op: opTakeOne},
	{name: "receive drained", before: []func(*client){opSendMany(1, 3, 2), opTakeOne}, op: opTakeOne},
	{name: "receive nothing", op: opTakeOne},
	{name: "receive batch", before: []func(*client){opSendMany(1, 3, 2)}, op: opTakeMany(3, driver.Filter{})},
	{name: "filtered", before: []func(*client){opSendMany(2, 3, 2)}, op: opTakeBy(driver.Filter{Type: 2})},
	{name: "filtered by ring", before: []func(*client){opSendMany(3, 3), opTakeBy(driver.Filter{Type: 2}), opSendMany(1, 3, 2)},
		op: opTakeBy(driver.Filter{Type: 2})},
	{name: "filtered by key", before: []func(*client){opSendMany(4, 3, 1)}, op: opTakeBy(driver.Filter{Key: "k"})},
	{name: "filtered type at most", before: []func(*client){opSendMany(1, 3, 2)}, op: opTakeBy(driver.Filter{TypeAtMost: 2})},
	// Its message is taken, when another has come, and the slot filled with one that the filter does not let through.
	{name: "filtered while its message is replaced", before: []func(*client){opSendOne(3, 8)}, op: opTakeBy(driver.Filter{Type: 2}), others: replace},
	{name: "filtered by scan while its message is replaced", before: []func(*client){opSendOne(1, 8)}, op: opTakeBy(driver.Filter{Type: 2, Key: "k"}), others: replace},
	{name: "borrow", before: []func(*client){opSendMany(2, 1)}, op: opBorrowOne},
	{name: "peek", before: []func(*client){opSendMany(1, 3, 2), opSendTimed(2, 8, soon, 0)}, op: opPeekAll},

	{name: "send delayed", before: []func(*client){opSendTimed(2, 8, time.Hour, 0)}, op: opSendTimed(3, 8, soon, 0)},
	{name: "send expiring", op: opSendTimed(3, 8, 0, soon)},
	{name: "send delayed and expiring", op: opSendTimed(3, 8, soon, 2*soon)},
	{name: "receive when none is due", before: []func(*client){opSendTimed(3, 8, soon, 0)}, op: opTakeOne},
	{name: "receive what falls due", before: []func(*client){opSendOne(2, 8), opSendTimed(3, 8, soon, time.Hour), opSendTimed(2, 8, soon, 0),
		opTakeOne, opSendOne(2, 8), opPass(2 * soon)}, op: opTakeOne},
	{name: "receive past what expired", before: []func(*client){opSendTimed(3, 8, 0, soon), opSendMany(1, 2), opTakeOne, opSendTimed(3, 8, 0, soon),
		opPass(2 * soon)}, op: opTakeOne},
	{name: "filtered past what expired", before: []func(*client){opSendManyTimed(0, soon, 3, 1), opSendManyTimed(0, time.Hour, 1, 2), opPass(2 * soon)},
		op: opTakeBy(driver.Filter{Type: 2})},
	{name: "expiry makes room", before: []func(*client){opSendManyTimed(0, soon, 1, 2, 3), opSendOne(1, 8), opPass(2 * soon)}, op: opSendOne(3, 8)},
	{name: "expiry of the delayed", before: []func(*client){opSendManyTimed(2*soon, soon, 1, 2), opSendMany(1, 1), opPass(2 * soon)}, op: opSendMany(3, 2)},

	{name: "purge", before: []func(*client){opSendMany(1, 3, 2)}, op: opPurgeBy(driver.Filter{})},
	{name: "purge some", before: []func(*client){opSendMany(1, 3, 2), opSendTimed(3, 8, soon, 0)}, op: opPurgeBy(driver.Filter{Type: 2})},
	{name: "drop oldest", o: driver.Options{Overflow: driver.DropOldest}, before: full(), op: opSendOne(3, 8)},
	{name: "drop oldest delayed", o: driver.Options{Overflow: driver.DropOldest}, before: []func(*client){opSendManyTimed(soon, 0, 1, 2),
		opSendMany(3, 2)}, op: opSendOne(3, 8)},
	{name: "drop oldest for a batch", o: driver.Options{Overflow: driver.DropOldest}, before: full(), op: opSendMany(1, 2, 3)},
	{name: "drop lowest", o: driver.Options{Overflow: driver.DropLowest}, before: full(), op: opSendOne(3, 8)},
	{name: "drop lowest delayed", o: driver.Options{Overflow: driver.DropLowest}, before: []func(*client){opSendMany(3, 2), opSendManyTimed(soon, 0, 1, 2)},
		op: opSendOne(3, 8)},

	{name: "open", before: []func(*client){opSendOne(1, 8)}, op: opOpenAnother},
	{name: "restart", before: []func(*client){opSendOne(1, 8), opTakeOne}, op: opRestart},
	{name: "close", before: []func(*client){opSendOne(1, 8), opTakeOne}, op: opCloseIt, least: 3},
	{name: "close after much", before: []func(*client){opSendMany(1, 2, 3), opTakeMany(2, driver.Filter{}), opSendOne(1, 1000)}, op: opCloseIt, least: 3},
	{name: "remove", before: []func(*client){opSendMany(1, 2)}, set: (*world).spare, op: opRemoveIt},
	{name: "remove under sleepers", before: []func(*client){opSendMany(1, 2)}, set: func(w *world) { w.spare(); sleeper(w) }, op: opRemoveIt},

	// Takeovers, each with the rebuild: of a holder that was stopped or died at several places.
	{name: "takeover, holder stopped at its claim", stage: holder1("claim", false), op: opTakeOne},
	{name: "takeover, holder died at its claim", stage: holder1("consumed", true), op: opTakeOne},
	{name: "takeover, holder stopped in its drain", stage: holder1("drained links", false), op: opTakeOne},
	{name: "takeover, holder died in its drain", stage: holder1("publish drained", true), op: opTakeOne},
	{name: "takeover, holder stopped at unlock", stage: holder1("unlock", false), op: opTakeOne},
	{name: "takeover, holder stopped at its look", stage: holder1("look", false), op: opTakeMany(2, driver.Filter{})},
	{name: "takeover by a filter", stage: holder1("claim", false), op: opTakeBy(driver.Filter{Type: 2})},
	{name: "takeover by a purge", stage: holder1("claim", false), op: opPurgeBy(driver.Filter{})},
	{name: "takeover by a sender", stage: func(w *world) {
		w.did(full()...)
		c := w.add(opTakeOne)
		w.runTo(c, "claim")
	}, op: opSendOne(3, 8)},
	{name: "takeover from a taker", stage: func(w *world) {
		holder1("claim", false)(w)
		c := w.add(opTakeOne)
		for w.runTo(c, "retag") && load(w.seen.lockw)>>45 == 0 {
		}
		w.run(c, true)
	}, op: opTakeOne},
	{name: "takeover from a taker that died", stage: func(w *world) {
		holder1("claim", true)(w)
		c := w.add(opTakeOne)
		w.runTo(c, "rebuilt")
		w.run(c, false)
	}, op: opTakeOne},
	{name: "rebuild with what is not published", stage: func(w *world) {
		w.runTo(w.add(opSendOne(3, 8)), "publish") // READY, and not sent
		w.did(opSendMany(1, 2))
		w.did(opTakeOne)
		c := w.add(opSendMany(3, 2))
		w.runTo(c, "publish")
		w.run(c, false)
		w.did(opSendOne(2, 8))
		w.runTo(w.add(opTakeOne), "claim")
	}, op: opTakeOne},
	{name: "rebuild with times", stage: func(w *world) {
		w.did(opSendTimed(3, 8, soon, 0), opSendTimed(2, 8, 0, soon), opTakeBy(driver.Filter{Type: 5}), opSendTimed(2, 8, soon, time.Hour), opSendOne(1, 8))
		w.runTo(w.add(opTakeOne), "claim")
	}, op: opTakeOne},
	{name: "rebuild under a second one", stage: holder1("claim", false), op: func(c *client) {
		opTakeOne(c)
	}, second: []func(*client){opTakeMany(2, driver.Filter{}), opOpenAnother}},

	// What a dead one holds is taken back by who opens in its place.
	{name: "reclaim what was reserved", stage: dead(opSendOne(3, 8), "reserve", 2), set: (*world).fill, op: opOpenAnother, second: openers},
	{name: "reclaim what was made ready", stage: dead(opSendMany(3, 2), "publish", 0), set: (*world).fill, op: opOpenAnother, second: openers},
	{name: "reclaim what was published", stage: dead(opSendMany(3, 2), "alert", 0), set: (*world).fill, op: opOpenAnother, second: openers},
	{name: "reclaim what was claimed", stage: func(w *world) {
		w.did(opSendMany(1, 2))
		dead(opTakeMany(2, driver.Filter{}), "free", 0)(w)
	}, set: (*world).fill, op: opOpenAnother, second: openers},
	{name: "reclaim from a dead holder", stage: func(w *world) {
		dead(opSendMany(3, 2), "alert", 0)(w)
		dead(opTakeOne, "drained links", 0)(w)
	}, set: (*world).fill, op: opOpenAnother, second: openers},
	// The dead one's ledger names a slot that another fills now, and has made READY, but not published.
	{name: "reclaim past another's slot", stage: func(w *world) {
		w.add(opSendOne(3, 8), opTakeOne, opTakeOne, opSendOne(3, 8))
		w.diesAfter(w.clients[0], 3)
		c := w.add(opSendOne(2, 8))
		w.runTo(c, "publish")
	}, set: (*world).fill, op: opOpenAnother, second: openers},
}

var openers = []func(*client){opOpenAnother, opTakeOne}

func full() []func(*client) { return []func(*client){opSendMany(1, 2), opSendMany(1, 2)} }

// sleeper announces somebody that sleeps on each word, as announce does, so that the wakers have something to do.
func sleeper(w *world) {
	announce(w.seen.recvWait, plainSleeper)
	announce(w.seen.sendWait, specialSleeper)
}

// holder1 leaves three messages and the lock held by one that is stopped, or died, at place.
func holder1(place string, dies bool) func(w *world) {
	return func(w *world) {
		w.did(opSendMany(1, 3), opSendOne(2, 8))
		c := w.add(opTakeOne)
		if !w.runTo(c, place) {
			w.fail("no step %q", place)
		}
		if dies {
			w.run(c, false)
		}
	}
}

// dead leaves one that died at op, some steps after place.
func dead(op func(*client), place string, steps int) func(w *world) {
	return func(w *world) {
		c := w.add(op)
		if !w.runTo(c, place) {
			w.fail("no step %q", place)
		}
		for range steps {
			w.run(c, true)
		}
		w.run(c, false)
	}
}

// diesAfter lets c die when it has ended n operations.
func (w *world) diesAfter(c *client, n int) {
	for ended := 0; ended < n; {
		if !w.run(c, true) {
			w.fail("client %d ended too soon", c.n)
		}
		ended = 0
		for _, e := range w.log {
			if e.c == c && e.done != 0 {
				ended++
			}
		}
	}
	w.run(c, false)
}

// catch runs the victim up to step k of its operation and then lets fate decide. It returns false when the operation has fewer steps.
func catch(t *testing.T, x *victim, what string, k int, fate func(w *world, c *client)) bool {
	o := x.o
	o.MaxMessages, o.MaxSize, o.MaxHandles = 4, 2000, 9
	w := newWorld(t, o, what)
	w.others = x.others
	if x.stage != nil {
		x.stage(w)
	}
	ready := false
	c := w.add(append(slices.Clone(x.before), func(c *client) {
		ready = true
		c.stop()
		c.steps = 0
		x.op(c)
	})...)
	for !ready {
		w.run(c, true)
	}
	if x.set != nil {
		x.set(w)
	}
	for more := w.run(c, true); more && c.steps < k; {
		more = w.run(c, true)
	}
	more := !c.ended
	if more {
		if x.set != nil {
			w.unfill()
		}
		fate(w, c)
	}
	w.settle()
	return more
}

// replace sends a message that is like the victim's, takes the victim's, and fills its slot with another.
func replace(w *world) {
	like := 3
	if w.log[0].sent[0].key != "" {
		like = 1
	}
	w.did(opSendOne(like, 8))
	w.did(opTakeOne)
	w.did(opSendOne(2, 8))
}

// others do a bit of everything beside the victim.
func others(w *world) {
	if w.others != nil {
		w.others(w)
		return
	}
	w.did(opTakeOne, opSendOne(1, 8), opSendOne(2, 1000), opTakeOne)
	if w.timed {
		w.pass(2 * soon)
	}
	w.did(opSendMany(3, 1), opTakeMany(2, driver.Filter{}), opOpenAnother, opTakeOne)
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
	for _, fate := range []struct {
		name string
		do   func(*world, *client)
	}{{"die", dieHere}, {"stop", stopHere}} {
		for v := range victims {
			x := &victims[v]
			t.Run(fate.name+"/"+x.name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					k := 0
					for ; catch(t, x, fmt.Sprintf("%s at step %d of %s", fate.name, k, x.name), k, fate.do); k++ {
					}
					t.Logf("%d steps", k)
					if k < max(x.least, 3) {
						t.Errorf("only %d steps", k)
					}
				})
			})
		}
	}
}

// A second client, that takes over what the first left, dies or stops at every step of that.
func TestEveryStepTwice(t *testing.T) {
	bubble(t, everyStepTwice)
}

func everyStepTwice(t *testing.T) {
	stride := fromEnv("KUMQUAT_STRIDE", 19) // of both steps; 1 takes all pairs, in half an hour
	total, seconds := 0, 0
	for v := range victims {
		x := &victims[v]
		second := x.second
		if second == nil {
			second = []func(*client){opTakeOne, opSendOne(2, 8)}
		}
		for fates := range 4 {
			first, again := fates&1 != 0, fates&2 != 0
			for k := 0; ; k += stride {
				more := true
				// The rows of pairs begin at different steps, so that no step of the second is left out.
				for j := (k/stride + fates) * 5 % stride; more; j += stride {
					what := fmt.Sprintf("%s, first dies %v at step %d, second dies %v at step %d", x.name, first, k, again, j)
					reached := false
					more = catch(t, x, what, k, func(w *world, c *client) {
						if first {
							w.run(c, false)
						}
						d := w.add(second...)
						for d.steps < j && w.run(d, true) {
						}
						reached = !d.ended
						if reached && again {
							w.run(d, false)
						}
						others(w)
						if j%2 == 0 {
							w.finish(d)
						}
						w.finish(c)
						w.finish(d)
					})
					total++
					if !reached {
						break
					}
					seconds++
				}
				if !more {
					break
				}
			}
		}
	}
	t.Logf("steps summary: %d operations, %d cases with a second death or stop, of %d", len(victims), seconds, total)
}
