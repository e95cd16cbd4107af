package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// Peek shows the order of receiving and takes nothing.
func peek(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 10})
	see := func(o kumquat.PeekOptions) string {
		t.Helper()
		all := ""
		for m, err := range q.Peek(waiting(t), o) {
			want(t, err, nil)
			all += string(m.Body)
			if m.NotBefore.IsZero() && (s.can(kumquat.Metadata) && m.Enqueued.IsZero() || m.Taken != 0) { // the time of its send is metadata
				t.Errorf("peek gave %+v", m)
			}
		}
		return all
	}
	if got := see(kumquat.PeekOptions{}); got != "" {
		t.Errorf("an empty queue shows %q", got)
	}
	send(t, q, s.text("a", 0), s.text("b", 5), s.text("c", 0), s.text("d", 5), s.text("e", 9))
	for _, c := range []struct {
		o    kumquat.PeekOptions
		want string
	}{
		{kumquat.PeekOptions{}, s.letters("ebdac", "abcde")},
		{kumquat.PeekOptions{Skip: 2}, s.letters("dac", "cde")},
		{kumquat.PeekOptions{Limit: 2}, s.letters("eb", "ab")},
		{kumquat.PeekOptions{Skip: 1, Limit: 2}, s.letters("bd", "bc")},
		{kumquat.PeekOptions{Skip: 9}, ""},
		{kumquat.PeekOptions{Match: func(b []byte) bool { return bytes.ContainsAny(b, "acd") }}, s.letters("dac", "acd")},
		{kumquat.PeekOptions{Match: func(b []byte) bool { return bytes.ContainsAny(b, "acd") }, Skip: 1, Limit: 1}, s.letters("a", "c")},
		{kumquat.PeekOptions{NoBody: true}, ""},
	} {
		for range 2 { // twice: nothing was taken by the first
			if got := see(c.o); got != c.want {
				t.Errorf("Skip %d, Limit %d, Match %t: got %q, want %q", c.o.Skip, c.o.Limit, c.o.Match != nil, got, c.want)
			}
		}
	}
	if s.can(kumquat.Filters, kumquat.Priorities) {
		if got := see(kumquat.PeekOptions{Filter: kumquat.MinPriority(5), Skip: 1}); got != "bd" {
			t.Errorf("MinPriority(5) but one: got %q, want bd", got)
		}
	}
	if s.can(kumquat.Delays) { // those not due come last, by their time
		now := time.Now()
		send(t, q, kumquat.Message{Body: []byte("y"), Priority: s.at(9), NotBefore: now.Add(2 * time.Hour)}, kumquat.Message{Body: []byte("x"), NotBefore: now.Add(time.Hour)})
		if got, w := see(kumquat.PeekOptions{}), s.letters("ebdacxy", "abcdexy"); got != w {
			t.Errorf("with delayed ones: got %q, want %q", got, w)
		}
	}
	for range q.Peek(waiting(t), kumquat.PeekOptions{}) {
		break
	}
	for _, o := range []kumquat.PeekOptions{{Skip: -1}, {Limit: -1}, {Filter: kumquat.Type(-1)}} {
		n := 0
		for _, err := range q.Peek(waiting(t), o) {
			want(t, err, kumquat.ErrInvalid)
			n++
		}
		if n != 1 {
			t.Errorf("%+v: %d errors, want 1", o, n)
		}
	}
	takes(t, q, kumquat.Filter{}, strings.Split(s.letters("ebdac", "abcde"), "")...)
}

// Purge removes what matches and nothing else, counts it, and lets blocked senders in.
func purge(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 6})
	ctx := waiting(t)
	removes := func(n int, fs ...kumquat.Filter) {
		t.Helper()
		k, err := q.Purge(ctx, fs...)
		if want(t, err, nil); k != n {
			t.Fatalf("purge removed %d, want %d", k, n)
		}
	}
	removes(0)
	send(t, q, s.text("a", 0), s.text("b", 5), s.text("c", 0), s.text("d", 5))
	before := uint64(0)
	if s.can(kumquat.Filters, kumquat.Priorities) {
		removes(2, kumquat.MinPriority(1))
		removes(0, kumquat.MinPriority(1))
		takes(t, q, kumquat.Filter{}, "a")
		removes(1)
		before = 3
	} else {
		removes(4)
		before = 4
	}
	empty(t, q, kumquat.Filter{})
	for i := range 6 {
		m := s.text("x", i)
		if i%2 == 0 && s.can(kumquat.Delays) {
			m.NotBefore = time.Now().Add(time.Hour)
		}
		send(t, q, m)
	}
	c := sendLater(ctx, q, s.text("next", 0))
	s.blocked(t, q, 0, 1)
	removes(6)
	want(t, get(t, c).err, nil)
	takes(t, q, kumquat.Filter{}, "next")
	if st := stat(t, q); !s.NoCounts && st.Dropped != before+6 {
		t.Errorf("Stat says %d dropped, want %d", st.Dropped, before+6)
	}
}

// Stat tells what was done, exactly while nothing runs.
func stats(s *suite, t *testing.T) {
	begin := time.Now().Add(-time.Second)
	o := kumquat.Options{MaxMessages: 5, MaxSize: 300, MaxHandles: 9}
	q := s.queue(t, o)
	ctx := waiting(t)
	st := stat(t, q)
	if st.Messages != 0 || st.Bytes > 0 || st.LowestPriority > 0 || !st.OldestEnqueued.IsZero() || st.Removed {
		t.Errorf("a new queue: %+v", st)
	}
	if w := s.bounded(o); st.MaxMessages != w.MaxMessages || st.MaxSize != w.MaxSize {
		t.Errorf("MaxMessages %d, MaxSize %d", st.MaxMessages, st.MaxSize)
	}
	send(t, q, s.text("abc", 3), s.text("de", 8), s.text("f", 5), s.text("", 5))
	bodies := s.order([]string{"de", "f", "", "abc"}, []string{"abc", "de", "f", ""})
	takes(t, q, kumquat.Filter{}, bodies[0])
	st = stat(t, q)
	if w := int64(6 - len(bodies[0])); st.Messages != 3 || st.Bytes != w && st.Bytes != -1 {
		t.Errorf("%d messages, %d bytes, want 3 and %d", st.Messages, st.Bytes, w)
	}
	if s.NoCounts {
		return
	}
	if st.Sent != 4 || st.Received != 1 || st.Dropped != 0 || st.Expired != 0 {
		t.Errorf("sent %d, received %d, dropped %d, expired %d", st.Sent, st.Received, st.Dropped, st.Expired)
	}
	if st.LowestPriority != s.at(3) || st.HighestPriority != s.at(5) {
		t.Errorf("priorities %d to %d, want %d to %d", st.LowestPriority, st.HighestPriority, s.at(3), s.at(5))
	}
	if st.OldestEnqueued.Before(begin) || st.OldestEnqueued.After(time.Now().Add(time.Second)) || st.Created.Before(begin) || st.Created.After(time.Now().Add(time.Second)) {
		t.Errorf("oldest %v, created %v, now %v", st.OldestEnqueued, st.Created, time.Now())
	}
	if st.UID != os.Geteuid() || st.GID != os.Getegid() || st.MaxHandles != 9 || s.can(kumquat.Batches) && st.MaxBatch != q.MaxBatch() {
		t.Errorf("uid %d, gid %d, MaxHandles %d, MaxBatch %d", st.UID, st.GID, st.MaxHandles, st.MaxBatch)
	}
	if st.Handles != 1 {
		t.Errorf("%d handles, want 1", st.Handles)
	}
	p := s.again(t, q)
	if n := stat(t, q).Handles; n != 2 {
		t.Errorf("%d handles, want 2", n)
	}
	want(t, p.Close(), nil)
	if n := stat(t, q).Handles; n != 1 {
		t.Errorf("%d handles after one was closed, want 1", n)
	}
	takes(t, q, kumquat.Filter{}, bodies[1:]...)
	c := receiveLater(ctx, q)
	s.blocked(t, q, 1, 0) // Receivers goes up,
	send(t, q, s.text("x", 0))
	want(t, get(t, c).err, nil)
	s.blocked(t, q, 0, 0) // and down
	if st := stat(t, q); st.Sent != 5 || st.Received != 5 || st.Messages != 0 || st.Bytes > 0 {
		t.Errorf("sent %d, received %d, %d messages, %d bytes", st.Sent, st.Received, st.Messages, st.Bytes)
	}
}

// Who names each handle and its process, and Check finds nothing wrong and changes nothing.
func inspect(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 5})
	ctx := waiting(t)
	see := func(n int) []kumquat.Participant {
		t.Helper()
		ps, err := q.Who(ctx)
		want(t, err, nil)
		if len(ps) != n {
			t.Fatalf("%d participants, want %d: %+v", len(ps), n, ps)
		}
		numbers := map[int]bool{}
		for _, p := range ps {
			if p.PID != os.Getpid() || !p.Alive || p.UID != os.Geteuid() || numbers[p.Number] || p.Command == "" {
				t.Fatalf("participant %+v", p)
			}
			numbers[p.Number] = true
		}
		return ps
	}
	see(1)
	p := s.again(t, q)
	see(2)
	send(t, p, s.text("a", 0), s.text("b", 0))
	takes(t, p, kumquat.Filter{}, "a")
	var sent, received uint64
	for _, x := range see(2) {
		sent, received = sent+x.Sent, received+x.Received
	}
	if sent != 2 || received != 1 {
		t.Errorf("the participants sent %d and received %d, want 2 and 1", sent, received)
	}
	r, err := q.Check(ctx)
	if want(t, err, nil); len(r.Problems) > 0 || r.Checked == 0 || r.Name == "" {
		t.Errorf("report: %+v", r)
	}
	want(t, p.Close(), nil)
	see(1)
	takes(t, q, kumquat.Filter{}, "b")
}

// Watch counts what happens: the counts of its events add up to what was done, and lives begin and end in it.
func watch(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 100})
	ctx := waiting(t)
	events := make(chan kumquat.Event, 1000)
	ended := make(chan error, 1)
	go func() {
		for e, err := range q.Watch(ctx) {
			if err != nil {
				ended <- err
				return
			}
			events <- e
		}
		ended <- nil
	}()
	sum := map[kumquat.EventKind]uint64{}
	until := func(what string, cond func() bool) {
		t.Helper()
		for !cond() {
			select {
			case e := <-events:
				if sum[e.Kind] += max(1, e.N); e.Time.IsZero() {
					t.Fatalf("event without time: %+v", e)
				}
			case err := <-ended:
				t.Fatalf("it ended while waiting for %s: %v", what, err)
			case <-ctx.Done():
				t.Fatalf("waiting for %s; so far %v", what, sum)
			}
		}
	}
	// Events begin at a moment after Watch was called: send until the first is told.
	probes := uint64(0)
	for sum[kumquat.EventSent] == 0 {
		probes++
		send(t, q, s.text("probe", 0))
		select {
		case e := <-events:
			sum[e.Kind] += e.N
		case <-time.After(200 * time.Millisecond):
		}
	}
	base := sum[kumquat.EventSent]
	for i := range 70 {
		send(t, q, s.text("x", i%3))
		_, err := q.TryReceive()
		want(t, err, nil)
	}
	until("70 sends and receives", func() bool { return sum[kumquat.EventSent] >= base+70 && sum[kumquat.EventReceived] >= 70 })
	if n := sum[kumquat.EventSent]; n > probes+70 {
		t.Errorf("%d sends were told, %d were made", n, probes+70)
	}
	if n := sum[kumquat.EventReceived]; n != 70 {
		t.Errorf("%d receives were told, 70 were made", n)
	}
	p := s.again(t, q)
	until("a handle opened", func() bool { return sum[kumquat.EventOpened] >= 1 })
	want(t, p.Close(), nil)
	until("a handle closed", func() bool { return sum[kumquat.EventClosed] >= 1 })
	if sum[kumquat.EventDied] != 0 || sum[kumquat.EventTakeover] != 0 {
		t.Errorf("nobody died, but: %v", sum)
	}
	if s.can(kumquat.Purging) {
		n, err := q.Purge(ctx)
		want(t, err, nil)
		until("the purge", func() bool { return sum[kumquat.EventDropped] >= uint64(n) })
		if sum[kumquat.EventDropped] != uint64(n) {
			t.Errorf("%d drops were told, %d made", sum[kumquat.EventDropped], n)
		}
	}
	want(t, kumquat.Remove(ctx, q.Name()), nil)
	until("the removal", func() bool { return sum[kumquat.EventRemoved] == 1 })
	want(t, get(t, ended), nil)

	// The end of its context ends a Watch without an error; it can also be left.
	q = s.queue(t, kumquat.Options{MaxMessages: 5})
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	for e, err := range q.Watch(short) {
		want(t, err, nil)
		_ = e
	}
	go func() {
		for range q.Watch(ctx) {
			break
		}
		ended <- nil
	}()
	for done := false; !done; {
		send(t, q, s.text("x", 0))
		takes(t, q, kumquat.Filter{}, "x")
		select {
		case err := <-ended:
			want(t, err, nil)
			done = true
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// The whole of a message comes back, and what the queue adds is true.
func metadata(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 5})
	headers := map[string]string{"": "empty key", "empty": "", "a": "1", "ключ": "значение", "bin": "\x00\xff\n"}
	for _, m := range []kumquat.Message{
		{},
		{Body: []byte("all"), Priority: s.at(77), Type: 1<<63 - 1, ID: "id", Key: "key", Group: "group", CorrelationID: "cor", ReplyTo: "/reply",
			ContentType: "text/plain", Headers: headers},
		{ID: "only id"}, {Key: "only key"}, {Group: "only group"}, {CorrelationID: "only cor"}, {ReplyTo: "only reply"},
		{ContentType: "only type"}, {Headers: map[string]string{"one": "header"}}, {Type: 2},
		{Headers: map[string]string{"long": string(bytes.Repeat([]byte("v"), 3800))}},
		{ID: string(bytes.Repeat([]byte("i"), 1000)), Body: bytes.Repeat([]byte("b"), 1000)},
	} {
		for _, big := range []bool{false, true} {
			if big {
				m.Body = pattern(5000, 1)
			}
			begin := time.Now()
			want(t, q.TrySend(m), nil)
			got, err := q.TryReceive()
			want(t, err, nil)
			if got.Enqueued.Before(begin.Add(-50*time.Millisecond)) || got.Enqueued.After(time.Now().Add(50*time.Millisecond)) {
				t.Errorf("Enqueued %v, sent at %v", got.Enqueued, begin)
			}
			if got.Sender != 0 && got.Sender != os.Getpid() || got.Attempt != 0 {
				t.Errorf("Sender %d, Attempt %d", got.Sender, got.Attempt)
			}
			got.Enqueued, got.Sender, got.Seq, got.Taken = time.Time{}, 0, 0, 0
			w := m
			w.Type = max(1, m.Type)
			if a, b := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", w); a != b {
				t.Fatalf("sent\n%s\ngot\n%s", b, a)
			}
		}
	}
	long := string(bytes.Repeat([]byte("x"), 4100))
	for _, m := range []kumquat.Message{{ID: long}, {Key: long}, {Headers: map[string]string{"a": long}}, {Headers: map[string]string{long: ""}},
		{Group: long[:2500], ReplyTo: long[:2500]}} {
		err := q.TrySend(m)
		if err == nil {
			t.Fatalf("more than 4,000 bytes of metadata were taken")
		}
		if !isAny(err, kumquat.ErrTooLarge, kumquat.ErrInvalid) {
			t.Fatalf("more than 4,000 bytes of metadata: %v", err)
		}
	}
	// What the queue sets is not the sender's to say.
	send(t, q, kumquat.Message{Attempt: 5, Sender: 1, Seq: 1 << 50, Taken: 9, Enqueued: time.Unix(1, 0)})
	m, err := q.TryReceive()
	if err != nil || m.Attempt != 0 || m.Sender == 1 || m.Seq == 1<<50 || m.Enqueued.Equal(time.Unix(1, 0)) {
		t.Errorf("got %+v, %v", m, err)
	}
	empty(t, q, kumquat.Filter{})
}
