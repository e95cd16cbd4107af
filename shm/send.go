package shm

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime/debug"
	"sync"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// errNoRoom: the queue looked full. Whether it is, only the lock tells (whenFull).
var errNoRoom = errors.New("no room")

// Send puts m into the queue. See driver.Queue.
func (q *Queue) Send(ctx context.Context, m driver.Message, try bool) error {
	return q.SendMessage(ctx, &m, try)
}

// SendMessage is Send of *m, which it does not keep.
func (q *Queue) SendMessage(ctx context.Context, m *driver.Message, try bool) (err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	var p parcel
	p.of(m, nil)
	if hasMeta(m) {
		return q.sendWithMeta(ctx, &p, m, try)
	}
	return q.send(ctx, &p, try)
}

// sendWithMeta is apart so that who sends no metadata does not pay for their room.
func (q *Queue) sendWithMeta(ctx context.Context, p *parcel, m *driver.Message, try bool) (err error) {
	var buf [256]byte
	if p.meta, err = encodeMeta(buf[:0], m); err != nil {
		return err
	}
	return q.send(ctx, p, try)
}

// SendBytes is Send without metadata. See driver.ByteQueue.
func (q *Queue) SendBytes(ctx context.Context, body []byte, priority int, try bool) (err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	var p parcel
	p.body, p.prio, p.mtype = body, uint64(priority), 1
	return q.send(ctx, &p, try)
}

// send sends one message.
func (q *Queue) send(ctx context.Context, p *parcel, try bool) error {
	if uint64(len(p.body)) > q.maxSize {
		return q.tooLarge(len(p.body))
	}
	for {
		l, pos, err := q.takeLane(ctx)
		if err != nil {
			return err
		}
		if err = q.usable(); err == nil {
			err = q.sendIn(l, pos, p)
		}
		l.unlock()
		if err == nil || !errors.Is(err, errNoRoom) && err != errNoSlot {
			return err
		}
		if err = q.whenFull(ctx, p.prio, 1, try); err != nil {
			return err
		}
	}
}

func (q *Queue) tooLarge(n int) error {
	if q.state.Load() != stateOpen || q.base == nil { // a closed handle says so, and an observer's, whatever the length
		return q.usable()
	}
	return fmt.Errorf("the body has %d bytes, the queue takes %d: %w", n, q.maxSize, driver.ErrTooLarge)
}

// sendIn sends one message in a lane of ours. errNoRoom leaves nothing behind.
func (q *Queue) sendIn(l *lane, pos uint64, p *parcel) error {
	if l.full && uint64(seqDiff(headSeq(load(q.head))+1, load(q.areas[lockArea(load(q.lockw))].consumed))) > q.limitOf(p.prio) {
		return errNoRoom // it was full the last time and still is: the body need not be copied to find out
	}
	if len(p.body) >= paceFrom {
		q.pace(l, uint64(len(p.body)))
	}
	s, err := q.prepare(l, pos, p)
	if err != nil {
		return err
	}
	one := [1]uint64{s}
	ones := [1]uint64{p.link}
	if err := q.publish(l, one[:], ones[:], p.prio, p.prio); err != nil {
		q.putBack(s)
		return err
	}
	n := p64(q.entry, pSent)
	if pos == 0 { // lane 0 is nearly always the only one
		store(n, load(n)+1)
	} else {
		q.count(pSent, 1)
	}
	return nil
}

// pace holds the sender of large bodies back for about as long as its copy takes when so much waits that it falls out of the cache
// while somebody takes messages as fast as they come: memory, not the queue, is the limit then, and both sides are faster for it.
func (q *Queue) pace(l *lane, size uint64) {
	if l.unpaced > 0 {
		l.unpaced--
		return
	}
	if !multiCPU || simulated {
		return
	}
	consumed := func() uint64 { return load(q.areas[lockArea(load(q.lockw))].consumed) }
	c := consumed()
	if n := seqDiff(headSeq(load(q.head)), c); n <= 0 || uint64(n)*size < paceDepth {
		return
	}
	for range 1 + min(size, paceMost)/paceCopy {
		pauseFor(1)
		if consumed() != c {
			return
		}
	}
	l.unpaced = 64
}

const (
	paceFrom  = 16 << 10
	paceDepth = 1 << 20 // of bodies waiting
	paceCopy  = 8 << 10 // a microsecond's
	paceMost  = 1 << 20 // what is larger falls out of the cache by itself, and TrySend must not wait long
)

// takeLane finds a lane that no other goroutine is in.
func (q *Queue) takeLane(ctx context.Context) (*lane, uint64, error) {
	for i := range q.lanes {
		if q.lanes[i].tryLock() {
			return &q.lanes[i], uint64(i), nil
		}
	}
	i := uint64(q.lanePick.Add(1)) % laneCount
	if !q.lanes[i].lock(ctx, q.closing) {
		return nil, 0, q.sentAway(ctx)
	}
	return &q.lanes[i], i, nil
}

// sentAway is why a wait inside this process ended: the handle was closed, or ctx is done.
func (q *Queue) sentAway(ctx context.Context) error {
	if q.state.Load() != stateOpen {
		return q.usable()
	}
	if ctx.Err() != nil {
		return driver.ContextError(ctx)
	}
	return driver.ErrClosed
}

// prepare reserves a slot and fills it.
func (q *Queue) prepare(l *lane, pos uint64, p *parcel) (uint64, error) {
	p.plan(q)
	if l.stamped++; l.stamped%64 == 0 {
		stamps.check()
	}
	s, err := q.reserve(l, pos, len(p.body) > shortBody || p.place)
	if err != nil {
		return 0, err
	}
	q.fetchNext(l)
	if err = q.backSend(p.prio, p.timed()); err == nil {
		err = q.fill(s, p)
	}
	if err == nil {
		return s, nil
	}
	q.putBack(s)
	if errors.Is(err, driver.ErrNoSpace) {
		q.giveHints(l.hintWord, l.hints)
		l.hints = 0
		size := uint64(0)
		if p.flags&flagBodyOut != 0 {
			size = uint64(len(p.body))
		}
		if s, ok := q.reserveBacked(pos, size, p.flags&flagMetaOut != 0); ok {
			if e := q.backSend(p.prio, p.timed()); e == nil && q.fill(s, p) == nil {
				return s, nil
			}
			q.putBack(s)
		}
	}
	return 0, err
}

// putBack frees a slot that we have RESERVED.
func (q *Queue) putBack(s uint64) {
	store(q.stateOf(s), kindFree)
	q.giveHints(s/64, 1<<(s%64))
}

// publish makes the reserved and filled slots ss the next messages, all or none. links hold their priorities; low and top are the
// lowest and highest of them.
//
// Who:   a producer, in its lane.
// Order: link and state before the CAS on head, which is the commit. cur, edge and recvWait are read after it.
// Dies:  before the CAS: slots RESERVED or READY(0, …) that no chain holds: the next to use our number frees them.
//
//	After: the messages are sent. An alert not given: a receive that runs now may pass them over as if they came a moment later,
//	the next takeover or look at head finds them. A wake not given: sleepers look by themselves every 100 ms.
func (q *Queue) publish(l *lane, ss, links []uint64, low, top uint64) error {
	n := uint64(len(ss))
	limit := q.limitOf(low)
	var h uint64
	for {
		h = load(q.head)
		if uint64(seqDiff(headSeq(h)+n, l.consumed)) > limit {
			l.consumed = load(q.areas[lockArea(load(q.lockw))].consumed) & seqMask
			if uint64(seqDiff(headSeq(h)+n, l.consumed)) > limit {
				l.full = true
				return errNoRoom
			}
			l.full = false
		}
		if (headSeq(h)+n)>>32 != headSeq(h)>>32 {
			if err := q.checkAge(); err != nil {
				return err
			}
		}
		next, seq := headSlot(h), headSeq(h)
		for i, s := range ss {
			seq = (seq + 1) & seqMask
			store(q.linkOf(s), links[i]|next)
			store(q.stateOf(s), readyWord(0, seq))
			next = s
		}
		step("publish")
		if cas(q.head, h, headWord(seq, next)) {
			break
		}
		step("revert")
		for _, s := range ss {
			store(q.stateOf(s), q.reserved)
		}
	}
	q.record(opSend, headSlot(h), headSeq(h)+1)
	step("alert")
	for {
		c := load(q.cur)
		if top <= curPrio(c) || c&curAlert != 0 || cas(q.cur, c, c|curAlert) {
			break
		}
	}
	if load32(q.edge)&countEdges != 0 && !allDelayed(links) {
		q.tellEdge(headSeq(h))
	}
	step("wake")
	if load32(q.recvWait)&anySleeper != 0 {
		q.wakeReceivers(len(ss))
	}
	return nil
}

func allDelayed(links []uint64) bool {
	for _, l := range links {
		if l&linkDelayed == 0 {
			return false
		}
	}
	return true
}

// limitOf is how many messages may be there once one of priority prio has come in.
func (q *Queue) limitOf(prio uint64) uint64 {
	if prio < q.headroomPriority {
		return q.limit[0]
	}
	return q.limit[1]
}

// SendBatch sends all of ms or none. See driver.Batcher.
func (q *Queue) SendBatch(ctx context.Context, ms []driver.Message, try bool) (err error) {
	defer q.guard(debug.SetPanicOnFault(true), &err)
	if len(ms) == 0 {
		if err := q.enter(); err != nil {
			return err
		}
		defer q.exit()
		return q.usable()
	}
	if len(ms) > q.maxBatch() {
		if q.state.Load() != stateOpen {
			return q.usable()
		}
		return fmt.Errorf("the batch has %d messages, the queue takes %d at once: %w", len(ms), q.maxBatch(), driver.ErrTooLarge)
	}
	b := batches.Get().(*batch)
	defer b.done()
	b.n, b.low, b.top = len(ms), driver.MaxPriority, 0
	var room []byte // metadata of all
	for i := range ms {
		m, p := &ms[i], &b.parcels[i]
		if uint64(len(m.Body)) > q.maxSize {
			return q.tooLarge(len(m.Body))
		}
		var meta []byte
		if hasMeta(m) {
			at := len(room)
			if room, err = encodeMeta(room, m); err != nil {
				return err
			}
			meta = room[at:]
		}
		p.of(m, meta)
		b.low, b.top = min(b.low, p.prio), max(b.top, p.prio)
	}
	for {
		if err := q.takePositions(ctx, b.n, b.pos[:], try); err != nil {
			return err
		}
		err = q.sendBatch(ctx, b)
		var used uint64
		for _, pos := range b.pos[:b.n] {
			used |= 1 << (pos - fixedLedger)
		}
		q.giveSome(used)
		if err == nil || !errors.Is(err, errNoRoom) && err != errNoSlot {
			return err
		}
		if err := q.whenFull(ctx, b.low, uint64(b.n), try); err != nil {
			return err
		}
	}
}

type batch struct {
	n        int
	low, top uint64
	parcels  [poolMax]parcel
	pos      [poolMax]uint64
	slots    [poolMax]uint64
	links    [poolMax]uint64
}

// A batch is large; it is used again.
var batches = sync.Pool{New: func() any { return new(batch) }}

func (b *batch) done() {
	clear(b.parcels[:b.n]) // the bodies are the caller's
	batches.Put(b)
}

func (q *Queue) sendBatch(ctx context.Context, b *batch) error {
	l, _, err := q.takeLane(ctx)
	if err != nil {
		return err
	}
	defer l.unlock()
	if err := q.usable(); err != nil {
		return err
	}
	done := 0
	for ; done < b.n && err == nil; done++ {
		if b.slots[done], err = q.prepare(l, b.pos[done], &b.parcels[done]); err != nil {
			break
		}
		b.links[done] = b.parcels[done].link
	}
	if err == nil {
		err = q.publish(l, b.slots[:b.n], b.links[:b.n], b.low, b.top)
	}
	if err != nil {
		for _, s := range b.slots[:done] {
			q.putBack(s)
		}
		return err
	}
	q.count(pSent, uint64(b.n))
	return nil
}

// takePositions takes n places of the ledger, or waits without any until they may be there.
func (q *Queue) takePositions(ctx context.Context, n int, pos []uint64, try bool) error {
	if err := q.enter(); err != nil {
		return err
	}
	defer q.exit()
	var slice *time.Ticker
	for {
		if err := q.usable(); err != nil {
			return err
		}
		mask := q.takeSome(n)
		if bits.OnesCount64(mask) == n {
			for i := range n {
				pos[i] = fixedLedger + uint64(bits.TrailingZeros64(mask))
				mask &= mask - 1
			}
			return nil
		}
		q.giveSome(mask)
		if try {
			return fmt.Errorf("this handle's other batches, reservations and loans hold too many slots: %w", driver.ErrFull)
		}
		if slice == nil { // nobody tells us of a removal
			slice = time.NewTicker(hubSlice)
			defer slice.Stop()
		}
		select {
		case <-q.poolFreed:
		case <-slice.C:
		case <-ctx.Done():
			return driver.ContextError(ctx)
		case <-q.closing:
			return q.sentAway(ctx)
		}
	}
}

// checkAge refuses a send when the oldest waiting message is nearly half the range of seqs behind. It runs once in 2^32 sends.
func (q *Queue) checkAge() error {
	const oldest = 1 << 38
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if !q.lk.lock(ctx, q.closing) {
		return q.sentAway(ctx)
	}
	defer q.lk.unlock()
	for {
		if err := q.acquire(ctx); err != nil {
			return err
		}
		err := q.drain()
		if err == nil {
			var s, seq uint64
			if _, s, seq, _, err = q.oldest(); err == nil {
				q.unlock()
				if s != noSlot && seqDiff(headSeq(load(q.head)), seq) >= oldest-1<<33 {
					return fmt.Errorf("the oldest message has waited while 2^38 others were sent: receive or purge it: %w", driver.ErrLimit)
				}
				return nil
			}
		}
		if err = q.abandon(err); err != nil {
			return err
		}
	}
}

// MaxBatch is the largest batch the queue takes: the smaller of its capacity and what a handle may hold.
func (q *Queue) MaxBatch() int { return q.maxBatch() }
