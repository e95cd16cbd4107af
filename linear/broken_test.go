package linear

import (
	"math/rand/v2"
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/kumquat-mq/kumquat"
)

// must fails the test unless the checker says want.
func must(t *testing.T, what string, h *history, want porcupine.CheckResult) {
	t.Helper()
	if got := h.check(); got != want {
		t.Errorf("%s: %s, not %s", what, got, want)
		for _, c := range h.calls {
			t.Logf("%d to %d: %v", c.began, c.ended, c)
		}
	}
}

func msg(id uint32, prio int, typ int64) item { return newToken(id, prio, typ).item() }

// at makes a call that lasts from began to ended.
func at(began, ended int64, k kind, f kumquat.Filter, xs ...item) *call {
	return &call{who: int(began) % 7, kind: k, filter: f, items: xs, began: began, ended: ended}
}

// TestBrokenHistories shows the checker histories that are wrong in one point, each beside one that differs in that point only and is
// right: so it is that point that the checker finds.
func TestBrokenHistories(t *testing.T) {
	any := kumquat.Filter{}
	a, b, c, high := msg(1, 0, 1), msg(2, 0, 2), msg(3, 0, 3), msg(4, 5, 1)
	batch := func(began, ended int64, n, place int, x item) *call {
		c := at(began, ended, took, any, x)
		c.batch, c.place = n, place
		return c
	}
	room := kumquat.Headroom{Percent: 50, Priority: 3}
	for _, x := range []struct {
		name         string
		max          int
		headroom     kumquat.Headroom
		right, wrong []*call
	}{
		{name: "a priority is passed over", max: 4,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, high), at(5, 6, took, any, high), at(7, 8, took, any, a)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, high), at(5, 6, took, any, a), at(7, 8, took, any, high)}},
		{name: "a priority is passed over whose send had returned", max: 4, // but not one whose send may have come later
			right: []*call{at(1, 2, sent, any, a), at(3, 6, sent, any, high), at(5, 7, took, any, a), at(8, 9, took, any, high)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, high), at(5, 7, took, any, a), at(8, 9, took, any, high)}},
		{name: "FIFO is broken", max: 4,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, b), at(5, 6, took, any, a), at(7, 8, took, any, b)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, b), at(5, 6, took, any, b), at(7, 8, took, any, a)}},
		{name: "FIFO is broken between two receivers that come one after the other", max: 4,
			right: []*call{at(1, 4, sent, any, a), at(2, 5, sent, any, b), at(6, 7, took, any, b), at(8, 9, took, any, a)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 5, sent, any, b), at(6, 7, took, any, b), at(8, 9, took, any, a)}},
		{name: "full with room", max: 2,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, b), at(5, 6, full, any, c), at(7, 8, took, any, a)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, b), at(5, 6, took, any, a), at(7, 8, full, any, c)}},
		{name: "more than the capacity", max: 1,
			right: []*call{at(1, 2, sent, any, a), at(3, 6, sent, any, b), at(4, 5, took, any, a)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, b), at(5, 6, took, any, a)}},
		{name: "full though another took one before", max: 1,
			right: []*call{at(1, 2, sent, any, a), at(3, 6, took, any, a), at(4, 7, full, any, b)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, took, any, a), at(5, 7, full, any, b)}},
		{name: "nothing there with something there", max: 4,
			right: []*call{at(1, 4, sent, any, a), at(2, 3, empty, any), at(5, 6, took, any, a)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, empty, any), at(5, 6, took, any, a)}},
		{name: "nothing by a filter that lets something through", max: 4,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, empty, kumquat.Type(2))},
			wrong: []*call{at(1, 2, sent, any, b), at(3, 4, empty, kumquat.Type(2))}},
		{name: "what a filter does not let through", max: 4,
			right: []*call{at(1, 2, sent, any, a, b), at(3, 4, took, kumquat.Not(1), b)},
			wrong: []*call{at(1, 2, sent, any, a, b), at(3, 4, took, kumquat.Not(1), a)}},
		{name: "not the lowest type", max: 4,
			right: []*call{at(1, 2, sent, any, c, b), at(3, 4, took, kumquat.TypeAtMost(3), b)},
			wrong: []*call{at(1, 2, sent, any, c, b), at(3, 4, took, kumquat.TypeAtMost(3), c)}},
		{name: "a priority below the least", max: 4,
			right: []*call{at(1, 2, sent, any, a, high), at(3, 4, took, kumquat.MinPriority(5), high), at(5, 6, empty, kumquat.MinPriority(5))},
			wrong: []*call{at(1, 2, sent, any, a, high), at(3, 4, took, kumquat.MinPriority(5), high), at(5, 6, took, kumquat.MinPriority(5), a)}},
		{name: "doubled", max: 4,
			right: []*call{at(1, 2, sent, any, a), at(3, 6, took, any, a), at(4, 7, empty, any)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 6, took, any, a), at(4, 7, took, any, a)}},
		{name: "lost", max: 4,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, took, any, a), at(5, 6, empty, any)},
			wrong: []*call{at(1, 2, sent, any, a), at(5, 6, empty, any)}},
		{name: "invented", max: 4,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, took, any, a)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, took, any, b)}},
		{name: "received before it was sent", max: 4,
			right: []*call{at(1, 4, took, any, a), at(2, 3, sent, any, a)},
			wrong: []*call{at(1, 2, took, any, a), at(3, 4, sent, any, a)}},
		{name: "a place lost for ever", max: 1,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, took, any, a), at(5, 6, sent, any, b), at(7, 8, full, any, c)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, took, any, a), at(5, 6, full, any, b), at(7, 8, full, any, c)}},
		{name: "a torn batch", max: 4,
			right: []*call{at(1, 8, sent, any, a, b), at(2, 3, empty, any), at(4, 5, took, any, a), at(6, 7, took, any, b)},
			wrong: []*call{at(1, 8, sent, any, a, b), at(2, 3, took, any, a), at(4, 5, empty, any), at(6, 7, took, any, b)}},
		{name: "a message between those of a batch", max: 4,
			right: []*call{at(1, 9, sent, any, a, b), at(2, 8, sent, any, c), at(10, 11, took, any, c), at(12, 13, took, any, a), at(14, 15, took, any, b)},
			wrong: []*call{at(1, 9, sent, any, a, b), at(2, 8, sent, any, c), at(10, 11, took, any, a), at(12, 13, took, any, c), at(14, 15, took, any, b)}},
		{name: "a batch that is full in part", max: 2,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, full, any, b, c), at(5, 6, sent, any, b)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, b, c), at(5, 6, took, any, a)}},
		{name: "a batch received in the wrong order", max: 4,
			right: []*call{at(1, 2, sent, any, a, b), batch(3, 4, 1, 0, a), batch(3, 4, 1, 1, b)},
			wrong: []*call{at(1, 2, sent, any, a, b), batch(3, 4, 1, 0, b), batch(3, 4, 1, 1, a)}},
		{name: "headroom taken by what has no right to it", max: 2, headroom: room,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, full, any, b), at(5, 6, sent, any, high)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, sent, any, b), at(5, 6, full, any, high)}},
		{name: "killed in a send: what it sent comes and goes", max: 4, // it may have happened, or not, but not both
			right: []*call{at(1, 3, maySend, any, a), at(4, 5, took, any, a), at(6, 7, empty, any)},
			wrong: []*call{at(1, 3, maySend, any, a), at(4, 5, empty, any), at(6, 7, took, any, a)}},
		{name: "killed in the send of a batch: half of it", max: 4,
			right: []*call{at(1, 3, maySend, any, a, b), at(4, 5, empty, any)},
			wrong: []*call{at(1, 3, maySend, any, a, b), at(4, 5, took, any, a), at(6, 7, empty, any)}},
		{name: "killed in a send to a full queue: it took a place", max: 1,
			right: []*call{at(1, 2, sent, any, a), at(3, 4, maySend, any, b), at(5, 6, took, any, a), at(7, 8, sent, any, c)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, maySend, any, b), at(5, 6, took, any, a), at(7, 8, full, any, c)}},
		{name: "killed in a receive: two are gone", max: 4,
			right: []*call{at(1, 2, sent, any, a, b), at(3, 4, mayTake, any), at(5, 6, took, any, b), at(7, 8, empty, any)},
			wrong: []*call{at(1, 2, sent, any, a, b), at(3, 4, mayTake, any), at(5, 6, empty, any)}},
		{name: "killed in a receive: what its filter does not let through is gone", max: 4,
			right: []*call{at(1, 2, sent, any, b), at(3, 4, mayTake, kumquat.Type(2)), at(5, 6, empty, any)},
			wrong: []*call{at(1, 2, sent, any, b), at(3, 4, mayTake, kumquat.Type(1)), at(5, 6, empty, any)}},
		{name: "killed in a receive: gone after its death", max: 4,
			right: []*call{at(1, 2, sent, any, a), at(3, 7, mayTake, any), at(4, 5, full, any, b, b, b, b), at(8, 9, empty, any)},
			wrong: []*call{at(1, 2, sent, any, a), at(3, 4, mayTake, any), at(5, 6, full, any, b, b, b, b), at(8, 9, empty, any)}},
	} {
		must(t, x.name+": right", &history{x.max, x.headroom, x.right}, porcupine.Ok)
		must(t, x.name+": wrong", &history{x.max, x.headroom, x.wrong}, porcupine.Illegal)
	}
}

// spoilReal makes a real history wrong, at random places, and shows it to the checker: one that accepts everything would be found
// out by every round.
func spoilReal(t *testing.T, h *history) {
	var taken, sends []int
	for i, c := range h.calls {
		switch c.kind {
		case took:
			if c.batch == 0 {
				taken = append(taken, i)
			}
		case sent:
			sends = append(sends, i)
		case maySend, mayTake:
			return // these allow much
		}
	}
	if len(taken) < 2 || len(sends) == 0 {
		return
	}
	with := func(cs ...*call) *history { return &history{h.max, h.headroom, cs} }
	i := taken[rand.IntN(len(taken))]
	lost := append(append([]*call(nil), h.calls[:i]...), h.calls[i+1:]...)
	must(t, "a real history without one receive", with(lost...), porcupine.Illegal)
	twice := *h.calls[i]
	must(t, "a real history with one receive twice", with(append(lost, h.calls[i], &twice)...), porcupine.Illegal)
	other := *h.calls[i]
	other.items = []item{newToken(1<<31, other.items[0].prio, other.items[0].typ).item()}
	must(t, "a real history with a message that nobody sent", with(append(lost, &other)...), porcupine.Illegal)
	j := sends[rand.IntN(len(sends))]
	unsent := append(append([]*call(nil), h.calls[:j]...), h.calls[j+1:]...)
	must(t, "a real history without one send", with(unsent...), porcupine.Illegal)
}
