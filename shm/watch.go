package shm

import (
	"context"
	"iter"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

const watchEvery = 100 * time.Millisecond

// Watch samples the queue every 100 ms and yields what happened since: counts of messages, and each opening, end and death of a
// handle. A handle that comes and goes between two samples is missed, counts are not. It ends after EventRemoved, without an
// error when ctx is done, and with ErrClosed when the handle is closed.
func (o *observer) Watch(ctx context.Context) iter.Seq2[driver.Event, error] {
	return func(yield func(driver.Event, error) bool) {
		w := newWatcher(o)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			err := w.look()
			if err != nil {
				yield(driver.Event{}, err)
				return
			}
			for _, e := range w.events {
				if ctx.Err() != nil || !yield(e, nil) {
					return
				}
			}
			if w.removed {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// watcher remembers the last sample. The words in the file wrap, and consumed may lag or fall back for a while; the sums do not
// wrap, and told only grows.
type watcher struct {
	o       *observer
	users   userNames
	started bool
	removed bool
	events  []driver.Event
	now     time.Time
	waiting int

	head, consumed, drop, expire, epoch uint64 // as read last
	sent, taken, dropped, expired       int64  // since the first sample
	takeovers                           int64
	told                                map[driver.EventKind]int64

	table []byte
	parts []seenPart
}

// seenPart is a participant as Watch saw it last, described when it came: afterwards its entry may be another's.
type seenPart struct {
	word  uint64
	alive bool
	who   driver.Participant
}

func newWatcher(o *observer) *watcher {
	return &watcher{o: o, users: userNames{}, told: map[driver.EventKind]int64{}}
}

// look takes a sample. The first one is the base line and makes no events, unless the queue is gone already.
func (w *watcher) look() error {
	w.now, w.events = time.Now(), w.events[:0]
	s, n, _, err := w.o.waiting()
	if err != nil {
		return err
	}
	w.waiting = int(n)
	drop, expire, err := w.o.losses() // after consumed: else what is dropped in between would seem received
	if err != nil {
		return err
	}
	if w.started {
		w.sent += max(0, seqDiff(headSeq(s.head), w.head))
		w.taken += seqDiff(s.consumed, w.consumed)
		w.dropped += seqDiff(drop, w.drop)
		w.expired += seqDiff(expire, w.expire)
		w.takeovers += epochDiff(lockEpoch(s.lock), w.epoch)
	}
	w.head, w.consumed, w.drop, w.expire, w.epoch = headSeq(s.head), s.consumed, drop, expire, lockEpoch(s.lock)
	left, err := w.participants()
	if err != nil {
		return err
	}
	w.count(driver.EventSent, w.sent)
	w.count(driver.EventReceived, w.taken-w.dropped-w.expired)
	w.count(driver.EventDropped, w.dropped)
	w.count(driver.EventExpired, w.expired)
	w.count(driver.EventTakeover, w.takeovers)
	w.events = append(w.events, left...)
	w.started = true
	return w.end()
}

// end adds the last event if the queue is gone: flagged as removed, or its file unlinked by hand.
func (w *watcher) end() error {
	err := w.o.gone()
	if err != nil && err != driver.ErrRemoved {
		return err
	}
	st, e := w.o.stat()
	if e != nil {
		return e
	}
	if w.removed = err != nil || st.Nlink == 0; w.removed {
		w.add(driver.EventRemoved, 0, nil)
	}
	return nil
}

func (w *watcher) add(kind driver.EventKind, n uint64, p *driver.Participant) {
	w.events = append(w.events, driver.Event{Time: w.now, Kind: kind, N: n, Messages: w.waiting, Participant: p})
}

// count tells what a sum has grown by since it was told of last.
func (w *watcher) count(kind driver.EventKind, sum int64) {
	if d := sum - w.told[kind]; d > 0 {
		w.told[kind] = sum
		w.add(kind, uint64(d), nil)
	}
}

// participants compares the table with what it was. Openings go to the events at once; it returns the ends, which come after the
// counts.
func (w *watcher) participants() (left []driver.Event, err error) {
	n, err := w.o.word(offPartHigh)
	if err != nil {
		return nil, err
	}
	n = min(n, w.o.parts)
	for uint64(len(w.parts)) < n {
		w.parts, w.table = append(w.parts, seenPart{}), append(w.table, make([]byte, partSize)...)
	}
	if err := w.o.read(w.table[:n*partSize], w.o.partsAt); err != nil {
		return nil, err
	}
	for p := range int(n) {
		b, was := w.table[p*partSize:][:partSize], w.parts[p]
		is := seenPart{word: u64at(b, pWord)}
		live := partState(is.word) == partLive
		if live {
			if is.alive, err = w.o.alive(p); err != nil {
				return nil, err
			}
		}
		is.who = was.who
		if is.word != was.word || is.alive != was.alive {
			if live {
				e := parseEntry(p, b)
				if is.who, err = w.o.describe(&e, is.alive, w.users); err != nil {
					return nil, err
				}
			}
			left = w.compare(&was, &is, left)
		}
		w.parts[p] = is
	}
	return left, nil
}

// compare makes the events of one entry that changed. Only its owner ever makes an entry closed; a dead one's stays live until
// another takes it.
func (w *watcher) compare(was, is *seenPart, left []driver.Event) []driver.Event {
	if !w.started {
		return left
	}
	end := func(kind driver.EventKind, p driver.Participant) {
		p.Alive = false
		left = append(left, driver.Event{Time: w.now, Kind: kind, Messages: w.waiting, Participant: &p})
	}
	came := partState(is.word) == partLive && is.word != was.word
	switch {
	case !was.alive || is.alive && !came: // there was nobody, or its death was told
	case came: // another has the entry already: nothing tells how the last one went
		end(driver.EventClosed, was.who)
	case partState(is.word) != partLive:
		end(driver.EventClosed, was.who)
	default:
		end(driver.EventDied, was.who)
	}
	if came {
		who := is.who
		w.add(driver.EventOpened, 0, &who)
		if !is.alive {
			end(driver.EventDied, who)
		}
	}
	return left
}
