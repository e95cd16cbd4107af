package torture

import (
	"cmp"
	"slices"
	"time"
)

// holdUp is the longest time in which nobody got anything done although work was possible: a producer and a consumer without filter
// were both at work and not stopped, so either the queue had a message to take or room for one. It is an upper bound: what the
// scheduler took is in it, and the pauses that workers make.
func (h *history) holdUp() time.Duration {
	type edge struct {
		at       int64
		producer int
		consumer int
	}
	var es []edge
	for _, l := range h.lives {
		if len(l.entries) == 0 || l.order.Record == "" || !l.order.Plain {
			continue
		}
		from, to := l.entries[0].began, int64(0)
		for i := range l.entries {
			e := &l.entries[i]
			to = max(to, e.began, e.ended)
		}
		if l.died != 0 && l.entries[len(l.entries)-1].kind() != kindAtWork {
			to = max(to, l.died) // it was at work until it died
		}
		add := func(a, b int64) {
			if a >= b {
				return
			}
			e := edge{at: a, consumer: 1}
			if l.order.Sends {
				e = edge{at: a, producer: 1}
			}
			es = append(es, e, edge{b, -e.producer, -e.consumer})
		}
		at := from
		for _, s := range l.away {
			if s.from < at { // it was stopped before it began
				at = max(at, s.to)
				continue
			}
			add(at, min(s.from, to))
			at = s.to
		}
		add(at, to)
	}
	slices.SortFunc(es, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	longest, producers, consumers := int64(0), 0, 0
	since := int64(forever) // when work became possible, or was last done
	next := 0
	for _, e := range es {
		for ; next < len(h.completed) && h.completed[next] <= e.at; next++ {
			if since < h.completed[next] {
				longest = max(longest, h.completed[next]-since)
				since = h.completed[next]
			}
		}
		if since < e.at {
			longest = max(longest, e.at-since)
		}
		producers, consumers = producers+e.producer, consumers+e.consumer
		switch possible := producers > 0 && consumers > 0; {
		case !possible:
			since = forever
		case since == forever:
			since = e.at
		}
	}
	return time.Duration(longest)
}
