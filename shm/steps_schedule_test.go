//go:build kumquat_step

package shm

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// Random schedules: two to four clients are interleaved step by step, some die, some are stopped for long, time passes, and every
// client may call the lock's holder stuck at any moment. KUMQUAT_SEED repeats one, KUMQUAT_SCHEDULES says how many.
func TestSchedules(t *testing.T) {
	bubble(t, schedules)
}

func schedules(t *testing.T) {
	n := fromEnv("KUMQUAT_SCHEDULES", 30_000)
	seed := repeatable(t)
	if os.Getenv("KUMQUAT_SEED") != "" {
		n = 1
	}
	t.Logf("first seed %d", seed)
	var leased, returned int
	var steps, stops, died, pcts, timed, takeovers, retags, freed, sent, full, expired, dropped int
	for i := range n {
		s := newSchedule(t, seed+uint64(i))
		if i%1000 == 0 { // a seed says everything: the same again must go the same way, to the step
			first := s.traced()
			s.run()
			s.w.trace = nil
			s.w.settle()
			s = newSchedule(t, seed+uint64(i))
			again := s.traced()
			s.run()
			for k := range max(len(*first), len(*again)) {
				if k >= len(*first) || k >= len(*again) || (*first)[k] != (*again)[k] {
					s.w.fail("the schedule does not repeat: step %d was %q, now %q", k, (*first)[min(k, len(*first)):], (*again)[min(k, len(*again)):])
				}
			}
		} else {
			s.run()
		}
		w := s.w
		expired += int(load(w.seen.expired))
		dropped += int(load(w.seen.dropped))
		steps += w.tick
		w.settle()
		stops += s.stops
		died += w.deaths()
		takeovers += w.ledger.takeovers
		retags += w.ledger.retags
		freed += w.ledger.freed
		leased += len(w.ledger.tokens)
		returned += w.ledger.returned
		sent += int(w.ledger.sent)
		if s.pct {
			pcts++
		}
		if w.timed {
			timed++
		}
		for _, e := range w.log {
			if e.kind == opsSend && isFull(e.err) {
				full++
			}
		}
	}
	t.Logf("schedules summary: %d schedules (%d random, %d PCT, %d with times), %d steps, %d takeovers, %d messages re-tagged, %d deaths, %d stops, "+
		"%d slots of the dead taken back; %d messages sent, %d times full, %d dropped, %d expired; %d leases, %d ended by others",
		n, n-pcts, pcts, timed, steps, takeovers, retags, died, stops, freed, sent, full, dropped, expired, leased, returned)
}

// A schedule is a world, what its clients do, and the order in which they do it. All of it comes from the seed.
type schedule struct {
	w      *world
	r      *rand.Rand
	pct    bool
	stops  int
	deaths int // that may still come,
	mortal int // one in so many steps
	live   []*client
	frozen map[*client]int // stopped until that tick
	weight map[*client]int // PCT: the highest goes
	change []int           // PCT: the ticks at which the one that goes becomes the last
	lowest int
	leases int // 0: none; else how many of the operations are on leases, beside 21 others
}

const scheduleMost = 20_000 // steps; then all come to their ends one after the other

func newSchedule(t *testing.T, seed uint64) *schedule {
	r := rand.New(rand.NewPCG(seed, 2))
	n := 2 + r.IntN(3)
	o := driver.Options{MaxMessages: []int{1, 1, 2, 2, 3, 5, 10}[r.IntN(7)], MaxSize: 2000, MaxHandles: n + 4,
		Overflow: []driver.Overflow{driver.Reject, driver.Reject, driver.Reject, driver.DropOldest, driver.DropLowest}[r.IntN(5)]}
	tight := r.IntN(2) == 0
	if tight {
		o.MaxHandles = 1 + n // none to spare: who opens another uses the entry of a dead one
	}
	s := &schedule{r: r, pct: r.IntN(2) == 0, deaths: r.IntN(4), mortal: []int{60, 200, 600}[r.IntN(3)], frozen: map[*client]int{}, weight: map[*client]int{}}
	s.w = newWorld(t, o, fmt.Sprintf("KUMQUAT_SEED=%d", seed))
	times := r.IntN(3) == 0
	s.leases = []int{0, 7}[r.IntN(2)]
	for range n {
		var ops []func(*client)
		for range 1 + r.IntN(7) {
			if tight && r.IntN(5) == 0 {
				ops = append(ops, []func(*client){opOpenAnother, opRestart}[r.IntN(2)])
				continue
			}
			ops = append(ops, s.anyOp(o.MaxMessages, times))
		}
		s.live = append(s.live, s.w.add(ops...))
	}
	// PCT (Burckhardt and others, 2010): fixed weights, the highest goes, and at d random steps of about k the one that goes becomes
	// the last. A bug that needs d orderings is met with a probability of at least 1/(n·k^d).
	for i, p := range r.Perm(n) {
		s.weight[s.live[i]] = p
	}
	for range r.IntN(5) {
		s.change = append(s.change, 1+r.IntN(60*n))
	}
	odds := 1 + r.IntN(8)
	stuckRule = func(*world, *client) bool { return r.IntN(odds) == 0 }
	return s
}

var someFilters = []driver.Filter{{Type: 2}, {Type: 1}, {NotType: 1}, {TypeAtMost: 2}, {MinPriority: 2}, {Key: "k"}}

func (s *schedule) anyOp(most int, times bool) func(*client) {
	r := s.r
	prio := func() int { return r.IntN(4) }
	delay := func() time.Duration { return time.Duration(1+r.IntN(4)) * soon }
	switch r.IntN(21 + s.leases) {
	case 0, 1, 2, 3:
		return opSendOne(prio(), 8)
	case 4:
		return opSendOne(prio(), 1000)
	case 5, 6:
		if most == 1 {
			return opSendOne(prio(), 8)
		}
		return opSendMany(prio(), prio())
	case 7:
		return opReserveCommit(prio(), r.IntN(4) == 0)
	case 8:
		return opTakeMany(1+r.IntN(3), driver.Filter{})
	case 9:
		return opTakeBy(someFilters[r.IntN(len(someFilters))])
	case 10:
		return opTakeMany(1+r.IntN(3), someFilters[r.IntN(len(someFilters))])
	case 11:
		return opBorrowOne
	case 12:
		return opOpenAnother
	case 13:
		return opRestart
	case 14:
		return opPeekAll
	case 15:
		if r.IntN(4) == 0 {
			return opPurgeBy([]driver.Filter{{}, {Type: 2}, {MinPriority: 2}}[r.IntN(3)])
		}
		return opTakeOne
	case 21, 22, 23:
		return []func(*client){opLeaseOne, opLeaseMany(1 + r.IntN(3)), opLeaseBy(someFilters[r.IntN(len(someFilters))], time.Hour),
			opLeaseBy(driver.Filter{}, delay())}[r.IntN(4)]
	case 24, 25, 26, 27:
		return []func(*client){opAck, opAckAll, opLetGo, opAgain(0), opAgain(delay()), opLonger, opAck, opAckAll}[r.IntN(8)]
	case 16, 17:
		switch {
		case !times:
			return opSendOne(prio(), 8)
		case r.IntN(3) == 0:
			return opSendTimed(prio(), 8, delay(), 0)
		case r.IntN(2) == 0:
			return opSendTimed(prio(), 8, 0, delay())
		}
		return opSendTimed(prio(), 8, delay(), delay())
	}
	return opTakeOne
}

// traced makes the schedule write down every step.
func (s *schedule) traced() *[]string {
	lines := new([]string)
	s.w.trace = func(c *client, place string) {
		*lines = append(*lines, fmt.Sprint(c.n, place, c.dead, c.ended, " head ", *s.w.seen.head, " lock ", *s.w.seen.lockw, " ops ", len(s.w.log)))
	}
	return lines
}

// next picks who makes the next step: at random, or by PCT. Who waits for the lock gives way.
func (s *schedule) next() int {
	var can []int
	for i, c := range s.live {
		if s.frozen[c] <= s.w.tick {
			can = append(can, i)
		}
	}
	if len(can) == 0 { // all are stopped: the first goes on
		for i, c := range s.live {
			if len(can) == 0 || s.frozen[c] < s.frozen[s.live[can[0]]] {
				can = []int{i}
			}
		}
	}
	if !s.pct {
		return can[s.r.IntN(len(can))]
	}
	best := can[0]
	for _, i := range can {
		if s.weight[s.live[i]] > s.weight[s.live[best]] {
			best = i
		}
	}
	return best
}

func (s *schedule) demote(c *client) {
	s.lowest--
	s.weight[c] = s.lowest
}

func (s *schedule) run() {
	w, r := s.w, s.r
	for w.tick < scheduleMost && len(s.live) > 0 {
		i := s.next()
		c := s.live[i]
		alive := true
		if s.deaths > 0 && r.IntN(s.mortal) == 0 {
			s.deaths--
			alive = false
		}
		switch r.IntN(160) {
		case 0:
			s.frozen[c] = w.tick + 1<<(4+r.IntN(8))
			s.stops++
		case 1:
			if w.timed {
				w.pass(soon)
			}
		}
		if !w.run(c, alive) {
			s.live = append(s.live[:i], s.live[i+1:]...)
			continue
		}
		if w.waiting {
			s.demote(c)
		}
		for _, at := range s.change {
			if at == w.tick {
				s.demote(c)
			}
		}
	}
}
