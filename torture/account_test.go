package torture

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// simulated is the records of a round on a queue without fault: three producers, consumers of all kinds, one of which is killed with a
// message in its hand. Times are ticks of 1 ms.
type simulated struct {
	plan  Plan
	lives []*life
	stats kumquat.Stats
}

const (
	simPlain    = 10 // numbers of the consumers
	simFiltered = 11
	simInto     = 12
	simBatch    = 13
	simKilled   = 14
)

func simulate(steps int) *simulated {
	s := &simulated{plan: Plan{Seed: 5, MaxMessages: 10, MaxSize: 64, Priorities: 8, Types: 3}}
	lives := map[uint16]*life{}
	for _, n := range []uint16{1, 2, 3, simPlain, simFiltered, simInto, simBatch, simKilled} {
		l := &life{order: actorOrder{Number: n, Sends: n < 10, Plain: n != simFiltered, Record: "x"}}
		lives[n] = l
		s.lives = append(s.lives, l)
	}
	type waiting struct {
		id   uint64
		prio int
		typ  int64
		seq  uint64
	}
	var queue []waiting
	r := rand.New(rand.NewPCG(1, 1))
	tick, seq, taken := int64(0), uint64(0), uint64(0)
	now := func() int64 { tick += 1_000_000; return tick }
	next := map[uint16]uint32{}
	pop := func(f kumquat.Filter) (waiting, bool) {
		at := -1
		for i, w := range queue {
			m := kumquat.Message{Priority: w.prio, Type: w.typ}
			if !f.Match(&m) {
				continue
			}
			if at < 0 || f.TypeAtMost > 0 && w.typ != queue[at].typ && w.typ < queue[at].typ ||
				(f.TypeAtMost == 0 || w.typ == queue[at].typ) && w.prio > queue[at].prio {
				at = i
			}
		}
		if at < 0 {
			return waiting{}, false
		}
		w := queue[at]
		queue = slices.Delete(queue, at, at+1)
		taken++
		return w, true
	}
	stamp := func(e *entry, w waiting) {
		e.id, e.prio, e.typ, e.seq, e.taken = w.id, uint16(w.prio), uint8(w.typ), w.seq, taken
	}
	for range steps {
		if n := 1 + r.IntN(3); len(queue)+n <= s.plan.MaxMessages && r.IntN(2) == 0 {
			p := uint16(1 + r.IntN(3))
			o := opSend
			if n > 1 {
				o = opSendBatch
			}
			e := entry{head: kindCall | uint32(o)<<8, n: uint32(n), id: messageID(p, next[p]), began: now(), res: resOK}
			if r.IntN(10) == 0 { // full, it says
				e.res, e.ended = resNothing, now()
				next[p] += uint32(n)
				lives[p].entries = append(lives[p].entries, e)
				continue
			}
			for range n {
				id := messageID(p, next[p])
				next[p]++
				seq++
				x := s.plan.traits(id)
				queue = append(queue, waiting{id, x.prio, x.typ, seq})
			}
			e.ended = now()
			lives[p].entries = append(lives[p].entries, e)
			continue
		}
		n := []uint16{simPlain, simPlain, simFiltered, simInto, simBatch}[r.IntN(5)]
		l := lives[n]
		e := entry{head: kindCall | uint32(opReceive)<<8, n: 1, began: now(), res: resOK, got: 1}
		switch n {
		case simFiltered:
			k := 1 + r.IntN(len(filters)-1)
			e.head |= uint32(k) << 16
			w, ok := pop(filters[k])
			if !ok {
				continue
			}
			stamp(&e, w)
			e.ended = now()
			l.entries = append(l.entries, e)
		case simBatch:
			e.head = kindCall | uint32(opReceiveBatch)<<8
			e.n, e.got = 4, 0
			var ms []entry
			for range 4 {
				if w, ok := pop(kumquat.Filter{}); ok {
					m := entry{head: kindMessage}
					stamp(&m, w)
					ms = append(ms, m)
					e.got++
				}
			}
			if e.got > 0 {
				e.ended = now()
				l.entries = append(append(l.entries, e), ms...)
			}
		default:
			w, ok := pop(kumquat.Filter{})
			if !ok {
				continue
			}
			stamp(&e, w)
			if n == simInto {
				e.head = kindCall | uint32(opReceiveInto)<<8
				e.seq, e.taken = 0, 0
			}
			e.ended = now()
			l.entries = append(l.entries, e)
		}
		if k := lives[simKilled]; k.died == 0 && tick > int64(steps)*500_000 && len(queue) > 0 {
			k.entries = append(k.entries, entry{head: kindCall | uint32(opReceive)<<8, n: 1, began: now()})
			pop(kumquat.Filter{})
			k.died = now()
		}
	}
	for len(queue) > 0 {
		e := entry{head: kindCall | uint32(opReceive)<<8, n: 1, began: now(), res: resOK, got: 1}
		w, _ := pop(kumquat.Filter{})
		stamp(&e, w)
		e.ended = now()
		lives[simPlain].entries = append(lives[simPlain].entries, e)
	}
	s.stats = kumquat.Stats{Sent: seq, Received: taken}
	return s
}

func (s *simulated) of(n uint16) *life {
	for _, l := range s.lives {
		if l.order.Number == n {
			return l
		}
	}
	return nil
}

// nth returns the n-th message entry of a consumer with this stamp order, from all consumers that tell stamps.
func (s *simulated) takes() (es []*entry) {
	for _, l := range s.lives {
		for i := range l.entries {
			if e := &l.entries[i]; e.taken != 0 {
				es = append(es, e)
			}
		}
	}
	slices.SortFunc(es, func(a, b *entry) int { return int(a.taken) - int(b.taken) })
	return es
}

func (s *simulated) findings() (Tally, string) {
	var t Tally
	h := newHistory(&s.plan, s.lives, s.stats)
	return t, strings.Join(h.account(&t), "\n")
}

// TestAccounting spoils the records of a sound round in one way each: the accounts must tell.
func TestAccounting(t *testing.T) {
	if _, w := simulate(3000).findings(); w != "" {
		t.Fatalf("sound records: %s", w)
	}
	remove := func(l *life, i int) { l.entries = slices.Delete(l.entries, i, i+1) }
	for name, c := range map[string]struct {
		spoil func(s *simulated)
		want  string
	}{
		"lost":            {func(s *simulated) { remove(s.of(simPlain), 100) }, "lost"},
		"lost, no stamp":  {func(s *simulated) { remove(s.of(simInto), 50) }, "lost"},
		"lost in a batch": {func(s *simulated) { e := s.of(simBatch); e.entries[0].got--; remove(e, 1) }, "lost"},
		// As many are missing as the killed one can have had, but not when it died.
		"lost, someone died later": {func(s *simulated) {
			remove(s.of(simPlain), 5)
			s.of(simKilled).entries[0].n = 2
		}, "lost: Taken"},
		"counted, not there": {func(s *simulated) { s.stats.Sent++ }, "invented"},
		"there, not counted": {func(s *simulated) { s.stats.Sent -= 2 }, "lost"},
		"doubled":            {func(s *simulated) { l := s.of(simInto); l.entries = append(l.entries, l.entries[7]) }, "doubled"},
		"Taken twice":        {func(s *simulated) { es := s.takes(); es[9].taken = es[8].taken }, "Taken"},
		"Seq twice":          {func(s *simulated) { es := s.takes(); es[9].seq = es[8].seq }, "Seq"},
		"never attempted":    {func(s *simulated) { s.of(simPlain).entries[3].id = messageID(2, 1<<20) }, "was never sent"},
		"said not sent": {func(s *simulated) {
			for i := range s.of(1).entries {
				if e := &s.of(1).entries[i]; e.res == resNothing {
					s.of(simPlain).entries[3].id = e.id
					return
				}
			}
		}, "said that it was not sent"},
		"damaged":           {func(s *simulated) { s.of(simPlain).entries[3].bad = badBody }, "damaged: message"},
		"living, no return": {func(s *simulated) { s.of(simPlain).entries[3].ended = 0 }, "did not return"},
		"sender, no return": {func(s *simulated) { s.of(1).entries[3].ended = 0 }, "did not return"},
		"before its send":   {func(s *simulated) { e := &s.of(simPlain).entries[3]; e.began, e.ended = 1, 2 }, "before its send began"},
		"over capacity":     {func(s *simulated) { s.plan.MaxMessages-- }, "over capacity"},
		"over capacity, stamps only": {func(s *simulated) {
			s.plan.MaxMessages--
			s.plan.Timed = true // so that the occupancy is not counted
		}, "over capacity: Seq"},
		"not FIFO": {func(s *simulated) {
			es := s.takes()
			for i := range es {
				for k := i + 1; k < len(es); k++ {
					if es[i].prio == es[k].prio && es[i].typ == es[k].typ {
						es[i].id, es[k].id = es[k].id, es[i].id
						es[i].seq, es[k].seq = es[k].seq, es[i].seq
						return
					}
				}
			}
		}, "out of order: priority"},
		"stamps against time": {func(s *simulated) {
			es := s.takes()
			es[20].taken, es[600].taken = es[600].taken, es[20].taken
		}, "returned"},
		"batch torn": {func(s *simulated) {
			for _, e := range s.takes() {
				if e.seq > 30 {
					e.seq += 5000
					s.stats.Sent += 5000
					return
				}
			}
		}, "out of order: producer"},
	} {
		t.Run(name, func(t *testing.T) {
			s := simulate(3000)
			c.spoil(s)
			if _, w := s.findings(); !strings.Contains(w, c.want) {
				t.Errorf("found %q, should have found %q", w, c.want)
			}
		})
	}
}

// TestPassedOver has a receiver take a lower message while a higher one was there, for each way in which that can be known.
func TestPassedOver(t *testing.T) {
	for name, c := range map[string]struct {
		first, second uint8 // filters
		into          bool  // the first receive tells no stamps
		passed        bool  // should it be found?
	}{
		"no filter":                   {0, 0, false, true},
		"known by time alone":         {0, 0, true, true},
		"a filter that lets it pass":  {5, 0, false, true},
		"a filter that keeps it away": {3, 0, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := Plan{Seed: 9, MaxMessages: 10, MaxSize: 64, Priorities: 8, Types: 3}
			var low, high uint32 // of type 1 and 3
			for low = 0; p.traits(messageID(1, low)).typ != 1 || p.traits(messageID(1, low)).prio == 0 || p.traits(messageID(1, low)).prio > 20000; low++ {
			}
			for high = low + 1; p.traits(messageID(1, high)).typ != 3 || p.traits(messageID(1, high)).prio <= p.traits(messageID(1, low)).prio; high++ {
			}
			entryOf := func(counter uint32, at int64, filter uint8, seq, taken uint64) entry {
				x := p.traits(messageID(1, counter))
				return entry{head: kindCall | uint32(opReceive)<<8 | uint32(filter)<<16, id: messageID(1, counter), began: at, ended: at + 1,
					prio: uint16(x.prio), typ: uint8(x.typ), seq: seq, taken: taken, res: resOK, got: 1, n: 1}
			}
			sends := &life{order: actorOrder{Number: 1, Sends: true}}
			for i, counter := range []uint32{low, high} {
				sends.entries = append(sends.entries, entry{head: kindCall | uint32(opSend)<<8, n: 1, id: messageID(1, counter), began: int64(10 * i), ended: int64(10*i + 5), res: resOK})
			}
			takes := &life{order: actorOrder{Number: 2, Plain: true}, entries: []entry{entryOf(low, 30, c.first, 1, 1), entryOf(high, 40, c.second, 2, 2)}}
			if c.into {
				takes.entries[0].head = kindCall | uint32(opReceiveInto)<<8
				takes.entries[0].seq, takes.entries[0].taken = 0, 0
			}
			h := newHistory(&p, []*life{sends, takes}, kumquat.Stats{Sent: 2})
			var tally Tally
			w := strings.Join(h.account(&tally), "\n")
			if got := tally.PassedOver > 0; got != c.passed || !c.passed && w != "" {
				t.Errorf("passed over: %v, should be %v; findings %q", got, c.passed, w)
			}
			takes.entries[0].began = 14 // now the higher one may have come during the call
			takes.entries[0].ended = 50
			takes.entries[1].ended = 60
			tally = Tally{}
			newHistory(&p, []*life{sends, takes}, kumquat.Stats{Sent: 2}).account(&tally)
			if tally.PassedOver > 0 {
				t.Error("a message whose send had not returned when the receive began counts as passed over")
			}
		})
	}
}

// TestHoldUp: what counts is the time without any success while a producer and a plain consumer are at work and not stopped.
func TestHoldUp(t *testing.T) {
	const ms = int64(time.Millisecond)
	at := func(l *life, op op, when ...int64) {
		for _, w := range when {
			l.entries = append(l.entries, entry{head: kindCall | uint32(op)<<8, began: (w - 1) * ms, ended: w * ms, res: resOK, n: 1, got: 1})
		}
	}
	p, c := &life{order: actorOrder{Number: 1, Sends: true, Plain: true, Record: "x"}}, &life{order: actorOrder{Number: 2, Plain: true, Record: "x"}}
	at(p, opSend, 10, 20, 30, 100, 400)
	at(c, opReceiveInto, 15, 25, 405)
	h := &history{plan: &Plan{}, lives: []*life{p, c}}
	for _, l := range h.lives {
		for _, e := range l.entries {
			h.completed = append(h.completed, e.ended)
		}
	}
	slices.Sort(h.completed)
	for _, x := range []struct {
		away []span
		want int64
	}{
		{nil, 300},
		{[]span{{150 * ms, 350 * ms}}, 70}, // from 30 to 100; 100 to 150 and 350 to 400 are shorter
		{[]span{{50 * ms, 60 * ms}, {150 * ms, 380 * ms}}, 50}, // from 100 to 150
		{[]span{{150 * ms, forever}}, 70},
	} {
		c.away = x.away
		if got := h.holdUp(); int64(got) != x.want*ms {
			t.Errorf("stopped %v: %v, should be %d ms", x.away, got, x.want)
		}
	}
}

// TestRecord: what was written before a death is read, and what had not returned shows as such.
func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	if es, err := readRecord(path); err != nil || len(es) != 0 {
		t.Fatalf("no file: %v, %v", es, err)
	}
	const n = 3000
	r, err := newRecord(path, n)
	if err != nil {
		t.Fatal(err)
	}
	r.atWork()
	for i := range 1000 {
		e := r.begin(opReceiveBatch, 3, 0, 7)
		if i%3 == 0 {
			e.end(now(), resNothing, 0)
			r.forget()
			continue
		}
		r.message().id = uint64(i)
		e.end(now(), resOK, 1)
	}
	r.begin(opSend, 0, 42, 1)
	es, err := readRecord(path)
	if err != nil || len(es) != 1+2*666+1 {
		t.Fatalf("%d entries, %v", len(es), err)
	}
	if last := es[len(es)-1]; last.kind() != kindCall || last.op() != opSend || last.id != 42 || last.ended != 0 || last.began == 0 {
		t.Errorf("the call that did not return: %+v", last)
	}
	if e := es[1]; e.op() != opReceiveBatch || e.filter() != 3 || e.n != 7 || e.res != resOK || e.got != 1 || es[2].id != 1 || es[2].kind() != kindMessage {
		t.Errorf("a batch: %+v %+v", e, es[2])
	}
	if r.room(n) || !r.room(1) {
		t.Error("room is wrong")
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
}

// TestBodies: every byte of a body is checked, and who sent it.
func TestBodies(t *testing.T) {
	for _, size := range sizes {
		p := Plan{Seed: 3, MaxSize: size, Priorities: 8, Types: 1}
		body := make([]byte, size)
		id := messageID(517, 70_000)
		p.fill(body, id)
		if got, ok := p.identify(body); got != id || !ok {
			t.Fatalf("%d bytes: %x, %v", size, got, ok)
		}
		for _, at := range []int{0, 4, 7, size / 2, size - 1} {
			body[at] ^= 4
			if _, ok := p.identify(body); ok {
				t.Errorf("%d bytes: byte %d is another and nobody notices", size, at)
			}
			body[at] ^= 4
		}
	}
	p, other := Plan{Seed: 3, MaxSize: 8}, Plan{Seed: 4, MaxSize: 8}
	body := make([]byte, 8)
	p.fill(body, 1)
	if _, ok := other.identify(body); ok {
		t.Error("a message of another queue passes")
	}
}

// TestStale: folders of runs whose process is gone are removed, others are not.
func TestStale(t *testing.T) {
	dir := t.TempDir()
	gone, here := filepath.Join(dir, folderPrefix+"2147483646"), filepath.Join(dir, folderPrefix+"1")
	for _, d := range []string{gone, here} {
		if err := os.MkdirAll(filepath.Join(d, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	removeStale(dir)
	if _, err := os.Stat(gone); err == nil {
		t.Error("the folder of a dead process stays")
	}
	if _, err := os.Stat(here); err != nil {
		t.Error("the folder of a living process is gone")
	}
}
