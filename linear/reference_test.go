package linear

import (
	"slices"

	"github.com/kumquat-mq/kumquat"
)

// item is a message as the reference knows it. The id is unique and stands for everything else.
type item struct {
	id   uint64
	prio int
	typ  int64
	key  string
}

// reference is the small queue: messages in the order of their sends. It is a value: what changes it returns another one.
type reference struct {
	max      int
	headroom kumquat.Headroom
	items    []item
}

// limit is how many messages may be there once one of priority prio has come in.
func (r *reference) limit(prio int) int {
	if r.headroom.Percent > 0 && prio < r.headroom.Priority {
		return r.max - r.max*r.headroom.Percent/100
	}
	return r.max
}

// room reports whether n messages, the lowest of priority low, fit.
func (r *reference) room(n, low int) bool { return len(r.items)+n <= r.limit(low) }

// first returns the place of the message that a receive with f takes, −1 if there is none: the lowest type if f has TypeAtMost, then
// the highest priority, then the oldest. ready, if not nil, says which messages are due.
func (r *reference) first(f kumquat.Filter, ready func(item) bool) int {
	best := -1
	for i, x := range r.items {
		if !lets(f, x) || ready != nil && !ready(x) {
			continue
		}
		if best < 0 || before(f, x, r.items[best]) {
			best = i
		}
	}
	return best
}

// before reports whether f takes x and not y, which is older.
func before(f kumquat.Filter, x, y item) bool {
	if f.TypeAtMost != 0 && x.typ != y.typ {
		return x.typ < y.typ
	}
	return x.prio > y.prio
}

// lets reports whether f lets x through. It stands here again, and is not Filter.Match, so that it can tell when that one is wrong.
func lets(f kumquat.Filter, x item) bool {
	switch {
	case f.Type != 0 && x.typ != f.Type, f.NotType != 0 && x.typ == f.NotType, f.TypeAtMost != 0 && x.typ > f.TypeAtMost:
		return false
	}
	return x.prio >= f.MinPriority && (f.Key == "" || x.key == f.Key)
}

func (r *reference) with(xs ...item) reference {
	return reference{r.max, r.headroom, append(r.items[:len(r.items):len(r.items)], xs...)}
}

func (r *reference) without(i int) reference {
	return reference{r.max, r.headroom, slices.Concat(r.items[:i], r.items[i+1:])}
}
