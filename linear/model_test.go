package linear

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/kumquat-mq/kumquat"
)

// kind is what a call of a history did.
type kind uint8

const (
	sent    kind = iota // its items went in, with neighbouring places
	full                // there was no room for its items
	took                // it took its one item
	empty               // nothing was there that its filter lets through
	maySend             // killed in the middle: its items went in, or none
	mayTake             // killed in the middle: it took one message, or none
)

// call is one step of a history, in the form that the checker orders: between began and ended it happened, at once.
type call struct {
	who          int
	kind         kind
	items        []item         // sent, full, took, maySend
	filter       kumquat.Filter // took, empty, mayTake
	batch, place int            // took: the place in the receive's batch, if batch is not 0
	began, ended int64
}

func (c *call) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "process %d ", c.who)
	switch c.kind {
	case sent:
		b.WriteString("sent")
	case full:
		b.WriteString("found it full for")
	case took:
		b.WriteString("took")
	case empty:
		b.WriteString("found nothing")
	case maySend:
		b.WriteString("died sending")
	case mayTake:
		b.WriteString("died receiving")
	}
	for _, x := range c.items {
		fmt.Fprintf(&b, " %d(priority %d type %d)", x.id>>32, x.prio, x.typ)
	}
	if !c.filter.Any() {
		fmt.Fprintf(&b, " by %+v", c.filter)
	}
	if c.batch != 0 {
		fmt.Fprintf(&b, " as number %d of batch %d", c.place+1, c.batch)
	}
	return b.String()
}

// state is the reference and how far each batch has come that is being received: its messages were taken in its order.
type state struct {
	reference
	open []progress
}

type progress struct{ batch, next int }

// follow returns the states that c leads to from s, none if it cannot have happened there.
func (s *state) follow(c *call) []any {
	low := 0
	for i, x := range c.items {
		if i == 0 || x.prio < low {
			low = x.prio
		}
	}
	switch c.kind {
	case sent, maySend:
		var next []any
		if s.room(len(c.items), low) {
			next = append(next, state{s.with(c.items...), s.open})
		}
		if c.kind == maySend {
			next = append(next, *s)
		}
		return next
	case full:
		if !s.room(len(c.items), low) {
			return []any{*s}
		}
	case empty:
		if s.first(c.filter, nil) < 0 {
			return []any{*s}
		}
	case took:
		i := s.first(c.filter, nil)
		open, inOrder := s.advance(c)
		if inOrder && i >= 0 && s.items[i] == c.items[0] {
			return []any{state{s.without(i), open}}
		}
	case mayTake:
		next := []any{*s}
		if i := s.first(c.filter, nil); i >= 0 {
			next = append(next, state{s.without(i), s.open})
		}
		return next
	}
	return nil
}

// advance notes that a batch has come to c. false: it is not c's turn.
func (s *state) advance(c *call) ([]progress, bool) {
	if c.batch == 0 {
		return s.open, true
	}
	i, found := slices.BinarySearchFunc(s.open, c.batch, func(p progress, b int) int { return cmp.Compare(p.batch, b) })
	if !found {
		return slices.Insert(slices.Clone(s.open), i, progress{c.batch, 1}), c.place == 0
	}
	open := slices.Clone(s.open)
	open[i].next++
	return open, s.open[i].next == c.place
}

func (s *state) hash() uint64 {
	h := uint64(14695981039346656037)
	for _, x := range s.items {
		h = (h ^ x.id) * 1099511628211
	}
	for _, p := range s.open {
		h = (h ^ uint64(p.batch<<8+p.next)) * 1099511628211
	}
	return h
}

// model is the reference in the form that the checker wants.
func model(max int, headroom kumquat.Headroom) porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{state{reference: reference{max: max, headroom: headroom}}} },
		Step: func(from, in, _ any) []any {
			s := from.(state)
			return s.follow(in.(*call))
		},
		Equal: func(a, b any) bool {
			x, y := a.(state), b.(state)
			return slices.Equal(x.items, y.items) && slices.Equal(x.open, y.open)
		},
		Hash: func(a any) uint64 {
			s := a.(state)
			return s.hash()
		},
		DescribeOperation: func(in, _ any) string { return in.(*call).String() },
		DescribeState: func(a any) string {
			var b strings.Builder
			for _, x := range a.(state).items {
				fmt.Fprintf(&b, "%d(%d, %d) ", x.id>>32, x.prio, x.typ)
			}
			return b.String()
		},
	}
	return m.ToModel()
}

// history is what a round has left: calls of all processes, in any order.
type history struct {
	max      int
	headroom kumquat.Headroom
	calls    []*call
}

func (h *history) operations() []porcupine.Operation {
	ops := make([]porcupine.Operation, len(h.calls))
	for i, c := range h.calls {
		ops[i] = porcupine.Operation{ClientId: c.who, Input: c, Call: c.began, Return: c.ended}
	}
	return ops
}

// checkPatience is far more than a round of the sizes here takes: milliseconds.
const checkPatience = 30 * time.Second

// check looks for an order of the calls that the reference could have gone through.
func (h *history) check() porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(model(h.max, h.headroom), h.operations(), checkPatience)
}
