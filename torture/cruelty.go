package torture

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// lockOffset is where the lock word lies in the file, and epochShift where its epoch begins in it (docs/format.md). They only serve
// to catch takers in the act: what is judged comes from the library.
const (
	lockOffset = 4224
	lockHeld   = 1 << 40
	epochShift = 45
)

func (r *round) later(d time.Duration, do func() error) {
	r.todo = append(r.todo, task{time.Now().Add(d), do})
}

// chaos sends signals until the round's time is over.
func (r *round) chaos(ctx context.Context) error {
	end := time.Now().Add(r.plan.Length)
	next := time.Now().Add(r.between(5, 30))
	for time.Now().Before(end) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := errors.Join(r.overheard(), r.sprung()); err != nil {
			return err
		}
		if r.plan.Hunt {
			if err := r.hunt(ctx); err != nil {
				return err
			}
		}
		wake := min(time.Until(next), time.Until(end))
		for _, t := range r.todo {
			wake = min(wake, time.Until(t.at))
		}
		wake = min(wake, time.Millisecond)
		if r.plan.Hunt {
			wake = min(wake, 200*time.Microsecond)
		}
		if wake > 0 && time.Now().After(r.poll) {
			time.Sleep(wake)
		}
		if err := r.due(); err != nil {
			return err
		}
		if time.Now().Before(next) {
			continue
		}
		next = time.Now().Add(r.between(1, 30) * time.Duration(r.plan.Pace) / 4)
		if err := r.strike(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *round) between(from, to int) time.Duration {
	return time.Duration(from*1000+r.rng.IntN((to-from)*1000)) * time.Microsecond
}

// due does the tasks whose time has come.
func (r *round) due() error {
	var rest []task
	todo := r.todo
	r.todo = nil
	for _, t := range todo {
		if time.Now().Before(t.at) {
			rest = append(rest, t)
			continue
		}
		if err := t.do(); err != nil {
			return err
		}
	}
	r.todo = append(r.todo, rest...)
	return nil
}

// anyMember chooses one that is at work and, if running is set, not stopped.
func (r *round) anyMember(running bool) *member {
	var ms []*member
	for _, m := range r.members {
		if m.busy && !(running && m.stopped) {
			ms = append(ms, m)
		}
	}
	if len(ms) == 0 {
		return nil
	}
	return ms[r.rng.IntN(len(ms))]
}

// strike does one cruel thing.
func (r *round) strike(ctx context.Context) error {
	if err := r.lay(); err != nil {
		return err
	}
	switch k := r.rng.IntN(24); {
	case k == 23:
		if r.observed == nil { // it takes up to seconds, and what happens meanwhile must not wait for it
			r.observed = make(chan error, 1)
			go func() { r.observed <- r.observe(ctx) }()
		}
	case k >= 20:
		return r.trap()
	case k < 8:
		if m := r.anyMember(true); m != nil {
			r.stop(m, r.stopLength())
		}
	case k < 13:
		return r.kill(r.anyMember(false))
	case k < 15: // the taker is the one that is left, or one that goes on while the others still stand
		left := r.anyMember(true)
		for _, m := range r.members {
			if m.busy && !m.stopped && m != left {
				r.stop(m, r.between(20, 120))
			}
		}
	case k < 17: // everybody, and they go on at different times
		for _, m := range r.members {
			if m.busy && !m.stopped {
				r.stop(m, r.between(1, 60))
			}
		}
	case k < 18: // a short stop, which nobody may notice
		if m := r.anyMember(true); m != nil {
			r.stop(m, r.between(5, 20))
		}
	default:
		if err := r.kill(r.anyMember(true)); err != nil {
			return err
		}
		return r.kill(r.anyMember(true))
	}
	return nil
}

// stopLength is from 5 to 400 ms, mostly short.
func (r *round) stopLength() time.Duration {
	return time.Duration(5<<r.rng.IntN(6))*time.Millisecond + r.between(0, 240)
}

func (r *round) stop(m *member, d time.Duration) {
	r.halt(m)
	r.later(d, func() error { r.cont(m); return nil })
}

// halt stops a worker.
func (r *round) halt(m *member) {
	m.stopped = true
	m.away = append(m.away, span{from: now(), to: forever})
	m.p.signal(unix.SIGSTOP)
	r.tally.Stopped++
}

func (r *round) cont(m *member) {
	if m.stopped {
		m.p.signal(unix.SIGCONT)
		m.stopped = false
		m.away[len(m.away)-1].to = now()
	}
}

// kill kills a worker and has it replaced.
func (r *round) kill(m *member) error {
	if m == nil || !m.busy {
		return nil
	}
	r.crew.stock()
	m.p.kill()
	m.died = now()
	m.busy, m.stopped = false, false
	r.tally.Killed++
	r.later(r.between(0, 50), func() error { return r.replace(m) })
	return nil
}

// mostMembers bounds the rounds in which workers are soon done.
const mostMembers = 60

// replace has another worker do what m did.
func (r *round) replace(m *member) error {
	switch {
	case m.sends:
		return r.join(true)
	case m.looker:
		return r.joinLooker()
	}
	return r.joinConsumer(m.plain)
}

func (r *round) lockWord() (uint64, error) {
	var b [8]byte
	_, err := r.file.ReadAt(b[:], lockOffset)
	return binary.LittleEndian.Uint64(b[:]), err
}

// hunt stops all when a takeover has just begun. If that catches the taker before it has given the lock back, it is killed or
// stays stopped for a while: the others must take over from the taker.
func (r *round) hunt(ctx context.Context) error {
	w, err := r.lockWord()
	if err != nil || w>>epochShift == r.epoch {
		return err
	}
	r.epoch = w >> epochShift
	if v := r.victim; v != nil {
		if v.stopped || v.died != 0 {
			r.tally.Nested++
		}
		r.victim = nil
	}
	var frozen []*member
	for _, m := range r.members {
		if m.busy && !m.stopped {
			r.halt(m)
			frozen = append(frozen, m)
		}
	}
	time.Sleep(500 * time.Microsecond)
	v, err := r.taker(ctx)
	if err != nil {
		return err
	}
	for _, m := range frozen {
		if m != v {
			r.cont(m)
		}
	}
	if v == nil {
		return nil
	}
	r.victim = v
	if r.rng.IntN(2) == 0 {
		return r.kill(v)
	}
	r.later(r.between(25, 300), func() error { r.cont(v); return nil })
	return nil
}

// observe looks at the queue while it is in use: nothing may seem broken, and no message torn.
func (r *round) observe(ctx context.Context) error {
	rep, err := r.look.Check(ctx)
	if err != nil {
		return failure("checking the file during the round: %v", err)
	}
	for _, p := range rep.Problems {
		if p.Broken {
			return failure("check during the round: %s: %s", p.Where, p.Text)
		}
	}
	for m, err := range r.look.Peek(ctx, kumquat.PeekOptions{Limit: 40}) {
		if err != nil {
			return failure("peeking during the round: %v", err)
		}
		id, ok := r.plan.identify(m.Body)
		if t := r.plan.traits(id); !ok || len(m.Body) != t.size || m.Priority != t.prio || m.Type != t.typ {
			return failure("Peek shows a message that was not sent: Seq %d, priority %d, type %d, %d bytes", m.Seq, m.Priority, m.Type, len(m.Body))
		}
	}
	return nil
}

// trap stops a looker for a moment, over and over, until it holds the lock.
func (r *round) trap() error {
	for range 20 {
		var m *member
		for _, x := range r.members {
			if x.looker && x.busy && !x.stopped {
				m = x
			}
		}
		if m == nil {
			return nil
		}
		r.halt(m)
		time.Sleep(50 * time.Microsecond)
		holds, err := r.holdsLock()
		if err != nil {
			return err
		}
		if holds {
			return r.caught(m)
		}
		r.cont(m)
	}
	return nil
}

// caught deals with a stopped worker that holds the lock: it stays stopped long enough to be taken over from, or is killed.
func (r *round) caught(m *member) error {
	r.tally.Holders++
	if r.rng.IntN(3) == 0 {
		return r.kill(m)
	}
	r.later(r.between(22, 120), func() error { r.cont(m); return nil })
	if r.plan.Hunt {
		r.poll = time.Now().Add(35 * time.Millisecond)
	}
	return nil
}

// lay has some workers stop themselves while they are at work.
func (r *round) lay() error {
	for _, m := range r.members {
		if m.busy && !m.stopped && !m.ambush && r.rng.IntN(4) > 0 {
			if err := m.p.say(lineAmbush); err != nil {
				return failure("worker %d takes no orders: %v", m.p.pid(), err)
			}
			m.ambush, m.looked = true, now()
		}
	}
	return nil
}

// sprung looks who fell into its ambush. Most of those that do not hold the lock go on at once, and into the next one.
func (r *round) sprung() error {
	for _, m := range r.members {
		if !m.busy || !m.ambush {
			continue
		}
		if !m.p.stoppedItself() {
			m.looked = now()
			continue
		}
		if m.stopped { // from outside, or both: whoever stopped it has it go on
			continue
		}
		m.ambush, m.stopped = false, true
		m.away = append(m.away, span{from: m.looked, to: forever})
		r.tally.Stopped++
		holds, err := r.holdsLock()
		switch {
		case err != nil:
			return err
		case holds:
			if err := r.caught(m); err != nil {
				return err
			}
		case r.rng.IntN(8) == 0:
			if err := r.kill(m); err != nil {
				return err
			}
		case r.rng.IntN(4) == 0:
			r.later(r.between(1, 60), func() error { r.cont(m); return nil })
		default:
			r.cont(m)
			if m.p.say(lineAmbush) == nil {
				m.ambush, m.looked = true, now()
			}
		}
	}
	return nil
}

// holdsLock reports whether the lock is held by somebody who does not move.
func (r *round) holdsLock() (bool, error) {
	a, err := r.lockWord()
	if err != nil || a&lockHeld == 0 {
		return false, err
	}
	time.Sleep(200 * time.Microsecond)
	b, err := r.lockWord()
	return a == b, err
}

// taker returns the stopped worker that holds the lock since its takeover, nil if there is none.
func (r *round) taker(ctx context.Context) (*member, error) {
	ps, err := r.look.Who(ctx)
	if err != nil {
		return nil, err
	}
	if w, err := r.lockWord(); err != nil || w&lockHeld == 0 || w>>epochShift != r.epoch {
		return nil, err
	}
	for _, p := range ps {
		if p.Doing != "take over" {
			continue
		}
		for _, m := range r.members {
			if m.busy && m.stopped && m.p.pid() == p.PID {
				return m, nil
			}
		}
	}
	return nil, nil
}
