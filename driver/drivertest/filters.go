package drivertest

import (
	"fmt"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// Each filter and some together: what comes out, in which order, and that the rest stays in its order.
func filters(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 200})
	for _, fs := range [][]kumquat.Filter{
		nil,
		{kumquat.Type(2)},
		{kumquat.Type(99)},
		{kumquat.TypeAtMost(3)},
		{kumquat.TypeAtMost(1 << 62)},
		{kumquat.Not(1)},
		{kumquat.MinPriority(2)},
		{kumquat.Key("k1")},
		{kumquat.Type(3), kumquat.Key("k0")},
		{kumquat.TypeAtMost(4), kumquat.Not(2)},
		{kumquat.TypeAtMost(5), kumquat.MinPriority(1), kumquat.Key("k2")},
		{kumquat.Not(4), kumquat.MinPriority(3)},
		{{Type: 1, MinPriority: 1, Key: "k1"}},
	} {
		w := &oracle{max: 1000}
		for i := range 60 {
			m := kumquat.Message{Body: fmt.Appendf(nil, "%d", i), Type: int64(i * 7 % 6), Priority: i * 5 % 4}
			if i%4 > 0 {
				m.Key = fmt.Sprintf("k%d", i%3)
			}
			send(t, q, m)
			want(t, w.send(m), nil)
		}
		var f kumquat.Filter // the same as fs, for the oracle
		for _, x := range fs {
			f.Type, f.TypeAtMost, f.NotType = max(f.Type, x.Type), max(f.TypeAtMost, x.TypeAtMost), max(f.NotType, x.NotType)
			f.MinPriority, f.Key = max(f.MinPriority, x.MinPriority), f.Key+x.Key
		}
		for _, part := range [][]kumquat.Filter{fs, nil} {
			for {
				x := w.receive(f)
				m, err := q.TryReceive(part...)
				if x == nil {
					want(t, err, kumquat.ErrEmpty)
					break
				}
				if want(t, err, nil); string(m.Body) != string(x.Body) {
					t.Fatalf("%+v: got %q (type %d, priority %d, key %q), want %+v", part, m.Body, m.Type, m.Priority, m.Key, x)
				}
			}
			f = kumquat.Filter{}
		}
	}
}

// A receiver that waits with a filter sleeps on while others' messages come, and misses none of its own.
func blockedFilters(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 100})
	p := s.again(t, q)
	ctx := waiting(t)
	seven := receiveLater(ctx, p, kumquat.Type(7))
	urgent := receiveLater(ctx, q, kumquat.MinPriority(50))
	keyed := receiveLater(ctx, q, kumquat.Key("k"))
	s.blocked(t, q, 3, 0)
	for i := range 20 {
		send(t, q, kumquat.Message{Body: fmt.Appendf(nil, "%d", i), Type: 1 + int64(i%3), Priority: i})
	}
	pending(t, seven)
	pending(t, urgent)
	pending(t, keyed)
	if n := stat(t, q).Messages; n != 20 {
		t.Fatalf("%d messages are there, want 20: a filtered receiver took one of others", n)
	}
	s.blocked(t, q, 3, 0)
	send(t, q, kumquat.Message{Body: []byte("seven"), Type: 7})
	if r := get(t, seven); r.err != nil || string(r.m.Body) != "seven" {
		t.Fatalf("got %q, %v", r.m.Body, r.err)
	}
	send(t, q, kumquat.Message{Body: []byte("keyed"), Key: "k"}, s.text("urgent", 50))
	if r := get(t, keyed); r.err != nil || string(r.m.Body) != "keyed" {
		t.Fatalf("got %q, %v", r.m.Body, r.err)
	}
	if r := get(t, urgent); r.err != nil || string(r.m.Body) != "urgent" {
		t.Fatalf("got %q, %v", r.m.Body, r.err)
	}
	for range 20 {
		_, err := q.TryReceive()
		want(t, err, nil)
	}

	// Five types, a receiver for each, messages for all in one go: each gets its own.
	var cs []<-chan result
	for n := range int64(5) {
		cs = append(cs, receiveLater(ctx, []*kumquat.Queue{q, p}[n%2], kumquat.Type(n+1)))
	}
	s.blocked(t, q, 5, 0)
	for n := int64(5); n > 0; n-- {
		send(t, q, kumquat.Message{Type: n})
	}
	for i, c := range cs {
		if r := get(t, c); r.err != nil || r.m.Type != int64(i+1) {
			t.Fatalf("the receiver of type %d got type %d, %v", i+1, r.m.Type, r.err)
		}
	}
	// One without a filter and one with, and one message that only the first may take.
	anyone, eight := receiveLater(ctx, q), receiveLater(ctx, p, kumquat.Type(8))
	s.blocked(t, q, 2, 0)
	send(t, q, s.text("x", 0))
	want(t, get(t, anyone).err, nil)
	pending(t, eight)
	send(t, q, kumquat.Message{Type: 8})
	want(t, get(t, eight).err, nil)
}

// NotBefore: a message is not delivered before its time, counts as capacity meanwhile, hides nobody, wakes a sleeper when due, and
// then stands where its send put it.
func delays(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 4})
	p := s.again(t, q)
	ctx := waiting(t)
	due := time.Now().Add(250 * time.Millisecond)
	first := kumquat.Message{Body: []byte("first"), Priority: s.at(3), NotBefore: due}
	send(t, q, first, s.text("second", 3), s.text("low", 0), kumquat.Message{Body: []byte("far"), Priority: s.at(9), NotBefore: due.Add(time.Hour)})
	want(t, q.TrySend(s.text("over", 9)), kumquat.ErrFull)
	if st := stat(t, q); time.Now().Before(due) && (st.Messages != 4 || st.Delayed != 2) {
		t.Errorf("Stat: %d messages, %d delayed, want 4 and 2", st.Messages, st.Delayed)
	}
	if time.Now().Before(due) { // else the machine is too busy for this part
		if m, err := q.TryReceive(kumquat.MinPriority(4)); time.Now().Before(due) && err == nil {
			t.Fatalf("got %q before its time", m.Body)
		}
	}
	time.Sleep(time.Until(due) + 20*time.Millisecond) // the clock itself is what is waited for
	takes(t, p, kumquat.Filter{}, "first", "second", "low")
	empty(t, q, kumquat.Filter{})

	// A sleeper is woken by time; a nearer time that is sent later re-arms it.
	c := receiveLater(ctx, p)
	s.blocked(t, q, 1, 0)
	due = time.Now().Add(60 * time.Millisecond)
	send(t, q, kumquat.Message{Body: []byte("near"), NotBefore: due})
	r := get(t, c)
	if now := time.Now(); r.err != nil || string(r.m.Body) != "near" || now.Before(due) {
		t.Fatalf("got %q, %v, %v before its time", r.m.Body, r.err, due.Sub(now))
	}
	if d := r.m.NotBefore.Sub(due).Abs(); d > time.Millisecond {
		t.Errorf("NotBefore came back %v off", d)
	}
	empty(t, q, kumquat.Filter{})
	// A time that is past means nothing.
	send(t, q, kumquat.Message{Body: []byte("past"), NotBefore: time.Now().Add(-time.Hour)})
	takes(t, q, kumquat.Filter{}, "past")
}

// Expires: a message is never delivered at or after its time, is counted, and gives its room back.
func expiry(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 2})
	ctx := waiting(t)
	for range 3 {
		end := time.Now().Add(40 * time.Millisecond)
		send(t, q, kumquat.Message{Body: []byte("gone"), Priority: s.at(9), Expires: end}, kumquat.Message{Body: []byte("stays"), Expires: end.Add(time.Hour)})
		time.Sleep(time.Until(end) + 20*time.Millisecond) // the clock itself is what is waited for
		if s.can(kumquat.Peeking) {
			for m, err := range q.Peek(ctx, kumquat.PeekOptions{}) {
				if want(t, err, nil); string(m.Body) == "gone" {
					t.Error("Peek shows a message that has expired")
				}
			}
		}
		send(t, q, s.text("room", 5)) // only the expired one's place is left
		takes(t, q, kumquat.Filter{}, s.order([]string{"room", "stays"}, []string{"stays", "room"})...)
		empty(t, q, kumquat.Filter{})
	}
	if n := stat(t, q).Expired; !s.NoCounts && n != 3 {
		t.Errorf("Stat says %d expired, want 3", n)
	}
	// A sender that waits gets the room of a message that expires.
	end := time.Now().Add(100 * time.Millisecond)
	send(t, q, kumquat.Message{Body: []byte("gone"), Expires: end}, s.text("stays", 0))
	c := sendLater(ctx, q, s.text("next", 7))
	want(t, get(t, c).err, nil)
	if now := time.Now(); now.Before(end) {
		t.Errorf("the send got room %v before the message expired", end.Sub(now))
	}
	takes(t, q, kumquat.Filter{}, s.order([]string{"next", "stays"}, []string{"stays", "next"})...)
	// What has expired before it is sent, or before it is due, is never delivered.
	send(t, q, kumquat.Message{Expires: time.Now().Add(-time.Second)})
	empty(t, q, kumquat.Filter{})
	now := time.Now()
	send(t, q, kumquat.Message{Expires: now.Add(10 * time.Millisecond), NotBefore: now.Add(20 * time.Millisecond)})
	time.Sleep(time.Until(now.Add(50 * time.Millisecond)))
	empty(t, q, kumquat.Filter{})
	// A receiver sees the right one of each: the expired is passed over.
	send(t, q, kumquat.Message{Body: []byte("gone"), Priority: s.at(9), Expires: time.Now().Add(-time.Second)}, s.text("there", 0))
	takes(t, q, kumquat.Filter{}, "there")
}
