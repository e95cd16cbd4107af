package shm

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// Sleeping and waking. One word per direction: counter:30 | special:1 | plain:1.
//
//	sleeper                                        waker
//	1 CAS word → counter+1, its bit set            1 the commit (publish, or consumed)
//	2 v = that word                                2 word has no bit: done
//	3 look at the queue again                      3 CAS word → counter+1 (special: both bits off)
//	4 futex_wait(word, v, slice)                   4 futex_wake
//	                                               5 plain and nobody woken: CAS that word → plain bit off
//
// Between 2 and 4 a waker changes the word, so 4 returns at once; before 1 the look at 3 sees the commit. A waker may die between 1
// and 4, and the one woken may die before it acts: therefore the slices. The bits clear themselves, so a dead sleeper leaves no
// count behind. Plain sleepers are alike and one is woken for each message; special ones (with a filter, a batch, Select, a
// descriptor, below the headroom) wait for something of their own and are all woken.
const (
	plainSleeper   = 1
	specialSleeper = 2
	anySleeper     = plainSleeper | specialSleeper
	sleepStep      = 4
	allSleepers    = 1 << 30

	rawSlice  = time.Millisecond       // how long a sleeper may keep its processor
	hubSlice  = 100 * time.Millisecond // how long a wake that never came can go unnoticed
	spinLeast = 256                    // PAUSE instructions; one takes 10 to 50 ns
	spinMost  = 6400

	smallQueue = 64 // up to this capacity a sender goes on at the first free place, in a larger one when half is free
)

// multiCPU: spinning only delays the other side where there is one processor.
var multiCPU = runtime.NumCPU() > 1

// announce registers a sleeper and returns the word to sleep on.
func announce(p *uint32, bit uint32) uint32 {
	for {
		w := load32(p)
		if n := (w + sleepStep) | bit; cas32(p, w, n) {
			return n
		}
	}
}

// wake wakes n plain sleepers and all special ones.
func wake(p *uint32, n int) {
	for {
		w := load32(p)
		if w&anySleeper == 0 || n == 0 && w&specialSleeper == 0 {
			return
		}
		if w&specialSleeper != 0 {
			if cas32(p, w, (w+sleepStep)&^anySleeper) {
				futexWake(p, allSleepers)
				return
			}
			continue
		}
		next := w + sleepStep
		if cas32(p, w, next) {
			step("woken")
			if futexWake(p, n) < n {
				cas32(p, next, next&^plainSleeper)
				return
			}
			// A special sleeper may have come after our look and been woken in place of a plain one: then all are woken.
			if n = 0; load32(p)&specialSleeper == 0 {
				return
			}
		}
	}
}

// wakeAll changes the word and wakes everybody, announced or not.
func wakeAll(p *uint32) {
	for {
		w := load32(p)
		if cas32(p, w, (w+sleepStep)&^anySleeper) {
			futexWake(p, allSleepers)
			return
		}
	}
}

func (q *Queue) wakeReceivers(n int) { wake(q.recvWait, n) }
func (q *Queue) wakeSenders(n int)   { wake(q.sendWait, n) }

// wakeSomeSenders wakes senders after n messages were received: none until half of the queue is free, since a sender woken for a
// single place would soon sleep again; one for each message where the queue is so small that half of it is nothing.
func (q *Queue) wakeSomeSenders(consumed uint64, n int) {
	w := load32(q.sendWait)
	if w&anySleeper == 0 {
		return
	}
	if q.max <= smallQueue {
		q.wakeSenders(n)
		return
	}
	if used := seqDiff(headSeq(load(q.head)), consumed); used > 0 && uint64(used) > q.max/2 && w&specialSleeper == 0 {
		return
	}
	q.wakeSenders(allSleepers)
}

// rawSleepers is how many goroutines of this process sleep without having told the runtime.
var rawSleepers atomic.Int32

// A sleep waits on one word of the queue until ready says that it is worth looking.
type sleep struct {
	word  *uint32
	bit   uint32
	ready func(slice bool) bool // slice: nobody woke us, look closely
	op    uint64                // for who
}

// sleepOn sleeps until woken, at most until due (ns, CLOCK_REALTIME; 0: no bound but slices of its own). It returns an error only
// if ctx is done or the handle closed.
func (q *Queue) sleepOn(ctx context.Context, s *sleep, due int64) (err error) {
	defer func() {
		// Who leaves may have been woken in place of another that still waits: the wake is passed on.
		if err != nil && s.bit == plainSleeper && s.ready(false) {
			wake(s.word, 1)
		}
	}()
	q.doing(s.op)
	defer q.doing(opIdle)
	limit := time.Duration(1<<63 - 1)
	if due != 0 {
		// A clock step must not make us sleep too long.
		limit = min(max(time.Duration(due-time.Now().UnixNano()), 0), 250*time.Millisecond)
		if limit == 0 {
			runtime.Gosched()
			return nil
		}
	}
	if n := rawSleepers.Add(1); int(n) < runtime.GOMAXPROCS(0) {
		v := announce(s.word, s.bit)
		if s.ready(false) {
			rawSleepers.Add(-1)
			return nil
		}
		d := min(limit, rawSlice)
		if t, ok := ctx.Deadline(); ok {
			d = min(d, max(time.Until(t), time.Microsecond))
		}
		e := futexWaitRaw(s.word, v, d)
		rawSleepers.Add(-1)
		if e != syscall.ETIMEDOUT || s.ready(false) {
			return q.afterSleep(ctx)
		}
		limit -= d
	} else {
		rawSleepers.Add(-1)
	}
	if err := q.afterSleep(ctx); err != nil || limit <= 0 {
		return err
	}
	return q.sleepInHub(ctx, s, limit)
}

func (q *Queue) afterSleep(ctx context.Context) error {
	if q.state.Load() != stateOpen {
		return q.usable()
	}
	if ctx.Err() != nil {
		return driver.ContextError(ctx)
	}
	return nil
}

func (q *Queue) sleepInHub(ctx context.Context, s *sleep, limit time.Duration) error {
	ch := make(chan struct{}, 1)
	w := hubWait(q, s.word, s.bit, s.ready, func() { ch <- struct{}{} })
	defer w.stop()
	var timeout <-chan time.Time
	if limit < time.Hour {
		t := time.NewTimer(limit)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case <-ch:
	case <-timeout:
	case <-ctx.Done():
		return driver.ContextError(ctx)
	case <-q.closing:
		return q.sentAway(ctx)
	}
	return nil
}

// spin waits a moment for ready without sleeping. How long adapts: twice of what it took when it helped, half after it did not. Two
// that sleep for each other's answer would go on so for ever, since a wake takes longer than either spins; so every eighth time that
// it did not help it is tried for longer than a wake takes, and one who spins is enough for both to find the fast way again.
func (q *Queue) spin(ready func(bool) bool) bool {
	if !multiCPU {
		return false
	}
	fails := q.spinFails.Load()
	most := uint64(max(q.spins.Load(), spinLeast))
	if fails%8 == 7 {
		most = spinMost
	}
	for spent := uint64(0); spent < most; spent += 4 {
		if ready(false) {
			q.spins.Store(uint32(max(most-most/8, min(2*spent+spinLeast, spinMost))))
			q.spinFails.Store(0)
			return true
		}
		pause(4)
	}
	q.spins.Store(uint32(most / 2))
	q.spinFails.Store(fails + 1)
	return false
}

// Two sides that run at full speed take the line of head from each other at every step: each look at it costs the sender more than a
// send, each send the receiver more than a receive. So where messages come fast, a receiver that keeps finding one or two at a look
// lets some gather before the next, and a sender that met a full queue lets half of it be emptied. Neither does anything where
// messages come slowly, as in an exchange of questions and answers: there the moment would only be lost.
type gather struct {
	taken uint64 // messages claimed by this handle at the last meagre look
	at    uint64 // ticks then
	due   bool   // the next receive waits a moment before it takes the lock

	waited        bool // the last look came after such a moment
	skip, skipped int  // after moments in which nothing gathered: so many meagre looks go by without one, so many went by
}

const (
	gatherFast   = 1200 // ticks a message: some two millions a second
	gatherEmpty  = 2    // microseconds to let messages gather in an empty queue
	gatherMixed  = 7    // and in one that has some, though none as urgent as what may come
	gatherWorth  = 4    // messages that make a moment worth it
	gatherSkip   = 1024
	gatherClaims = 8 // meagre looks within so many receives count as one after the other
	roomLook     = 4 // microseconds between two looks for room
	roomLooks    = 25
)

// isFast reports whether messages have been coming fast since it was last asked. taken is what this handle has claimed.
func (g *gather) isFast(taken, most uint64) bool {
	if !haveTicks || !multiCPU || simulated {
		return false
	}
	now := ticks()
	n, since := taken-g.taken, now-g.at
	g.taken, g.at = taken, now
	return n > 0 && n <= most && since < n*gatherFast
}

// drained notes how many messages a look found that was not the first on an empty index, and decides whether the next one waits.
// Where nothing gathers in such a moment, as when one goroutine sends and receives in turn, it is tried ever more rarely.
func (g *gather) drained(n, taken uint64) {
	if g.waited {
		g.waited = false
		if n < gatherWorth {
			g.skip = min(2*g.skip+1, gatherSkip)
		} else {
			g.skip = 0
		}
		g.skipped = 0
	}
	if n-1 >= 2 || !g.isFast(taken, gatherClaims) {
		return
	}
	if g.skipped++; g.skipped > g.skip {
		g.due = true
	}
}

// letGather waits a moment before an empty queue is looked at again.
func (q *Queue) letGather(taken uint64) {
	if q.gatherIdle.isFast(taken, 1<<32) {
		pauseFor(gatherEmpty)
		q.gatherIdle.at = ticks()
	}
}

// pausesInMicro is how many PAUSE instructions make a microsecond; one takes 4 to 50 ns.
var pausesInMicro = sync.OnceValue(func() uint32 {
	const n = 500
	start := time.Now()
	pause(n)
	return uint32(min(max(n*1000/(time.Since(start).Nanoseconds()+1), 10), 300))
})

func pauseFor(micros uint32) { pause(micros * pausesInMicro()) }

// waitForHalf waits, without sleeping, until half of the queue is free. It ends early when the receiver has stopped taking messages,
// and reports whether n fit then.
func (q *Queue) waitForHalf(limit, n uint64) bool {
	if !haveTicks || !multiCPU || simulated {
		return false
	}
	half := max(n, q.max/2)
	var last uint64
	for i, idle := 0, 0; i < roomLooks && idle < 3; i++ {
		pauseFor(roomLook)
		if q.fits(limit, half) || load(q.removed) != 0 {
			return true
		}
		c := load(q.areas[lockArea(load(q.lockw))].consumed)
		if c == last {
			idle++
		}
		last = c
	}
	return q.fits(limit, n)
}

// waitToClaim sleeps until a message can be claimed.
func (q *Queue) waitToClaim(ctx context.Context, f *driver.Filter, room int, c *claimed) error {
	if err := q.enter(); err != nil {
		return err
	}
	defer q.exit()
	bit := uint32(specialSleeper)
	if f == nil {
		// One plain receiver of a handle sleeps, the others wait their turn here.
		bit = plainSleeper
		if !q.recvTurn.lock(ctx, q.closing) {
			return q.sentAway(ctx)
		}
		defer q.recvTurn.unlock()
	}
	for {
		err := q.attempt(ctx, f, room, c)
		if err != errNothing {
			return err
		}
		if err := q.afterSleep(ctx); err != nil {
			return err
		}
		if f == nil {
			q.letGather(c.taken)
		}
		if q.spin(func(bool) bool { return q.hasNews(c.seen, c.back) }) {
			if s := headSlot(load(q.head)); s < q.slots {
				prefetch(q.linkOf(s)) // while we take the lock
				q.fetchMessage(s)
			}
			continue
		}
		if err := q.sleepForNews(ctx, bit, c); err != nil {
			return err
		}
	}
}

// hasNews reports whether something was sent since head was seen, or came back from a lease, or the queue was removed.
func (q *Queue) hasNews(seen, back uint64) bool {
	return headSeq(load(q.head)) != seen || load(q.returns) != back || load(q.removed) != 0
}

// sleepForNews is apart from waitToClaim because what a sleeper hands to the hub goes to the heap: who only spins does without.
func (q *Queue) sleepForNews(ctx context.Context, bit uint32, c *claimed) error {
	seen, back := c.seen, c.back
	s := sleep{word: q.recvWait, bit: bit, op: opWaitReceive, ready: func(slice bool) bool {
		return q.hasNews(seen, back) || slice && q.leasesMayBack()
	}}
	return q.sleepOn(ctx, &s, c.due)
}

// waitForRoom sleeps until n messages fit under limit, or seem to. It also takes over a stuck lock: where only producers live on,
// nobody else would (F8).
func (q *Queue) waitForRoom(ctx context.Context, limit, n uint64) error {
	bit := uint32(plainSleeper)
	if n > 1 || limit < q.max {
		bit = specialSleeper
	} else {
		if !q.sendTurn.lock(ctx, q.closing) {
			return q.sentAway(ctx)
		}
		defer q.sendTurn.unlock()
	}
	if q.max > smallQueue && limit >= q.max/2 {
		if q.waitForHalf(limit, n) {
			return q.usable()
		}
	} else if q.spin(func(bool) bool { return q.fits(limit, n) || load(q.removed) != 0 }) {
		return q.usable()
	}
	for {
		room, err := q.makeRoom(ctx, 0, n, limit, driver.Block)
		if room || err != nil {
			return err
		}
		if err := q.afterSleep(ctx); err != nil {
			return err
		}
		if err := q.sleepForRoom(ctx, bit, limit, n); err != nil {
			return err
		}
		if err := q.usable(); err != nil {
			return err
		}
		if q.fits(limit, n) {
			return nil
		}
	}
}

// fits reports whether n messages seem to fit under limit.
func (q *Queue) fits(limit, n uint64) bool {
	l := load(q.lockw)
	return uint64(seqDiff(headSeq(load(q.head))+n, load(q.areas[lockArea(l)].consumed))) <= limit
}

// sleepForRoom is apart from waitForRoom as sleepForNews is from waitToClaim.
func (q *Queue) sleepForRoom(ctx context.Context, bit uint32, limit, n uint64) error {
	s := sleep{word: q.sendWait, bit: bit, op: opWaitSend, ready: func(slice bool) bool {
		return q.fits(limit, n) || load(q.removed) != 0 || slice && lockIsHeld(load(q.lockw))
	}}
	return q.sleepOn(ctx, &s, q.nextDue())
}

// nextDue is when the first timed message wants attention, 0 for never. It is read without the lock: it only bounds a sleep.
func (q *Queue) nextDue() int64 {
	a := &q.areas[lockArea(load(q.lockw))]
	if load(a.heapLen) == 0 {
		return 0
	}
	return max(1, int64(load(a.heapTime(0))))
}
