package shm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

func init() {
	roles["churn"] = churnRole
	roles["create"] = createRole
}

// identity tells a queue from another of the same name: when it was created, which every handle of it knows.
func identity(q *Queue) uint64 { return uint64(q.created.UnixNano()) }

// churnRole: DIR NAME SECONDS SEED. Opens, creates, uses and removes one name from several goroutines. Every message names the queue
// that it was sent to, so that one that shows up in another queue is seen.
func churnRole(args []string) int {
	d, name := Driver{Dir: args[0]}, args[1]
	seconds, _ := strconv.ParseFloat(args[2], 64)
	seed, _ := strconv.ParseUint(args[3], 10, 64)
	until := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	var bad, removed, stray, received, created atomic.Int64
	complain := func(format string, a ...any) {
		bad.Add(1)
		fmt.Fprintf(os.Stderr, format+"\n", a...)
	}
	one := func(r *rand.Rand) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // nobody ever waits so long
		defer cancel()
		o := &driver.Options{MaxMessages: 3, MaxSize: 64, MaxHandles: 200}
		if r.IntN(3) > 0 {
			o.Create = true
			o.Exclusive = r.IntN(3) == 0
		}
		q, err := d.OpenQueue(ctx, name, o)
		if err != nil {
			if k := kindOfError(err); k != "exists" && k != "not found" && k != "removed" {
				complain("open: %v", err)
			}
			return
		}
		defer func() {
			if err := q.Close(); err != nil {
				complain("close: %v", err)
			}
		}()
		created.Add(1)
		me := identity(q)
		for range r.IntN(40) {
			switch r.IntN(8) {
			case 0, 1, 2:
				err = q.SendBytes(ctx, binary.LittleEndian.AppendUint64(nil, me), r.IntN(3), r.IntN(3) > 0)
			case 3, 4, 5:
				var b [64]byte
				var n int
				n, _, err = q.ReceiveInto(ctx, b[:], r.IntN(8) > 0)
				if err == nil {
					received.Add(1)
					if id := binary.LittleEndian.Uint64(b[:]); n != 8 || id != me {
						stray.Add(1)
						complain("a handle of queue %d received a message of queue %d", me, id)
					}
				}
			case 6:
				err = q.SendBatch(ctx, []driver.Message{{Type: 1, Body: binary.LittleEndian.AppendUint64(nil, me)}, {Type: 1, Body: binary.LittleEndian.AppendUint64(nil, me)}}, true)
			case 7:
				if r.IntN(4) == 0 {
					err = d.Remove(ctx, name)
					if k := kindOfError(err); k != "ok" && k != "not found" {
						complain("remove: %v", err)
					}
					err = nil
				}
			}
			switch kindOfError(err) {
			case "ok", "full", "empty":
			case "removed":
				removed.Add(1)
				return
			default:
				complain("%v", err)
				return
			}
		}
	}
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(seed, uint64(g)))
			for time.Now().Before(until) && bad.Load() < 10 {
				one(r)
			}
		}()
	}
	// One removes again and again, so that nobody waits for ever: the one who would have woken the others may have gone.
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		select {
		case <-done:
			fmt.Println(created.Load(), received.Load(), removed.Load(), stray.Load())
			if bad.Load() > 0 {
				return 1
			}
			return 0
		case <-time.After(3 * time.Millisecond):
			if err := d.Remove(context.Background(), name); err != nil && !errors.Is(err, driver.ErrNotFound) {
				complain("remove: %v", err)
			}
		}
	}
}

// Processes create, open, use and remove one name all at once. Nobody hangs, no handle sees another queue's messages, nothing is left.
func TestRemoveAndRecreate(t *testing.T) {
	t.Parallel()
	seconds := "3"
	if testing.Short() {
		seconds = "0.5"
	}
	d := shmDir(t)
	var ps []*peer
	for i := range 4 {
		ps = append(ps, startPeer(t, "churn", nil, d.Dir, "/churn", seconds, fmt.Sprint(i)))
	}
	var sum [4]int
	for _, p := range ps {
		s := p.line()
		var n [4]int
		if _, err := fmt.Sscan(s, &n[0], &n[1], &n[2], &n[3]); err != nil {
			t.Fatalf("%q: %v\n%s", s, err, p.tail())
		}
		if err := p.wait(); err != nil {
			t.Errorf("%v\n%s", err, p.tail())
		}
		for i := range sum {
			sum[i] += n[i]
		}
	}
	t.Logf("%d opened, %d messages received, %d times removed under a handle, %d strays", sum[0], sum[1], sum[2], sum[3])
	if sum[0] < 100 || sum[1] == 0 || sum[2] == 0 {
		t.Error("too little happened to prove anything")
	}
	if err := d.Remove(context.Background(), "/churn"); err != nil && !errors.Is(err, driver.ErrNotFound) {
		t.Error(err)
	}
	if es, err := os.ReadDir(d.Dir); err != nil || len(es) > 0 {
		t.Errorf("left behind: %v, %v", es, err)
	}
}

// Those who wait in a queue that is removed come back with ErrRemoved, however they wait, and the new queue of that name is another.
func TestRemoveWakesAll(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	ctx := context.Background()
	for round := range 20 {
		o := &driver.Options{Create: true, Exclusive: true, MaxMessages: 2, MaxSize: 100, MaxHandles: 4}
		empty, full := openQueue(t, d, "/empty", o), openQueue(t, d, "/full", o)
		sendBody(t, full, "old", 1)
		sendBody(t, full, "old", 1)
		held, err := empty.Reserve(ctx, 10)
		if err != nil {
			t.Fatal(err)
		}
		// All but one of the places that a handle has for batches are taken, so that the batch waits inside the handle.
		var places []driver.Reservation
		for range full.pool {
			p, err := full.Reserve(ctx, 1)
			if err != nil {
				t.Fatal(err)
			}
			places = append(places, p)
		}
		calls := map[string]func() error{
			"receive":        func() error { _, err := empty.Receive(ctx, driver.Filter{}, false); return err },
			"second receive": func() error { _, err := empty.Receive(ctx, driver.Filter{}, false); return err },
			"filtered":       func() error { _, err := empty.Receive(ctx, driver.Filter{Key: "k"}, false); return err },
			"into":           func() error { _, _, err := empty.ReceiveInto(ctx, make([]byte, 9), false); return err },
			"batch receive":  func() error { _, err := empty.ReceiveBatch(ctx, nil, driver.Filter{}, 9, false); return err },
			"borrow":         func() error { _, err := empty.Borrow(ctx, driver.Filter{}, false); return err },
			"send":           func() error { return full.SendBytes(ctx, nil, 1, false) },
			"second send":    func() error { return full.SendBytes(ctx, nil, 9, false) },
			"batch send":     func() error { return full.SendBatch(ctx, make([]driver.Message, 2), false) },
			"reserve":        func() error { _, err := full.Reserve(ctx, 1); return err },
			"notify": func() error {
				c, err := empty.Notify(ctx)
				for err == nil {
					if _, ok := <-c; !ok {
						err = empty.usable()
						break
					}
				}
				return err
			},
		}
		results := make(chan string, len(calls))
		for name, f := range calls {
			go func() {
				if err := f(); !errors.Is(err, driver.ErrRemoved) {
					results <- fmt.Sprintf("%s: %v", name, err)
					return
				}
				results <- ""
			}()
		}
		if round%2 == 0 {
			time.Sleep(20 * time.Millisecond)
		}
		begun := time.Now()
		for _, name := range []string{"/empty", "/full"} {
			if err := d.Remove(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		late := time.After(callLimit)
		for range calls {
			select {
			case s := <-results:
				if s != "" {
					t.Errorf("round %d: %s", round, s)
				}
			case <-late:
				t.Fatalf("round %d: not all came back", round)
			}
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("round %d: it took %v", round, took)
		}
		again := openQueue(t, d, "/full", o)
		if _, err := full.Receive(ctx, driver.Filter{}, true); !errors.Is(err, driver.ErrRemoved) {
			t.Errorf("an old handle: %v", err)
		}
		sendBody(t, again, "new", 1)
		if _, err := full.Receive(ctx, driver.Filter{}, true); !errors.Is(err, driver.ErrRemoved) {
			t.Errorf("an old handle: %v", err)
		}
		if s := tryBody(t, again); s != "new" {
			t.Errorf("the new queue has %q", s)
		}
		if err := held.Abort(); err != nil {
			t.Error(err)
		}
		for _, p := range places {
			if err := p.Abort(); err != nil {
				t.Error(err)
			}
		}
		for _, q := range []*Queue{empty, full, again} {
			if err := q.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if err := d.Remove(ctx, "/full"); err != nil {
			t.Fatal(err)
		}
		if err := d.Remove(ctx, "/full"); !errors.Is(err, driver.ErrNotFound) {
			t.Errorf("removed twice: %v", err)
		}
	}
}

// Somebody who may open the file can keep the lock that removal needs. That delays the others, for a bounded time, and they are told.
func TestNameLockIsHeld(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	ctx := context.Background()
	o := &driver.Options{Create: true, MaxMessages: 2, MaxSize: 100, MaxHandles: 4}
	q := openQueue(t, d, "/kept", o)
	f, err := os.OpenFile(fileOf(d, "/kept"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := byteLock(f, nameLock, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	results := make(chan string, 2)
	within(t, 2*callLimit, "remove and create", func() {
		err := d.Remove(ctx, "/kept")
		results <- kindOfError(err)
		_, err = d.OpenQueue(ctx, "/kept", o)
		results <- kindOfError(err)
	})
	if a, b := <-results, <-results; a != "timeout" || b != "timeout" {
		t.Errorf("remove: %s, create: %s", a, b)
	}
	if _, err := q.Receive(ctx, driver.Filter{}, true); !errors.Is(err, driver.ErrRemoved) {
		t.Errorf("the queue is flagged as removed all the same: %v", err)
	}
	_ = f.Close()
	again := openQueue(t, d, "/kept", o) // whoever comes next finishes the removal
	sendBody(t, again, "new", 1)
	if tryBody(t, again) != "new" {
		t.Error("the new queue does not work")
	}
}

// createRole: DIR. For each line NAME of standard input it tries to create that queue for itself alone.
func createRole(args []string) int {
	d := Driver{Dir: args[0]}
	var qs []*Queue
	for {
		name, err := bufioLine()
		if err != nil {
			for _, q := range qs {
				_ = q.Close()
			}
			return 0
		}
		q, err := d.OpenQueue(context.Background(), name, &driver.Options{Create: true, Exclusive: true, MaxMessages: 5, MaxSize: 50, MaxHandles: 3})
		if err == nil {
			qs = append(qs, q)
		}
		fmt.Println(kindOfError(err))
	}
}

// Of the processes that create a queue exclusively at the same time exactly one succeeds.
func TestExclusiveCreate(t *testing.T) {
	t.Parallel()
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	d := shmDir(t)
	var ps []*peer
	for range 5 {
		ps = append(ps, startPeer(t, "create", nil, d.Dir))
	}
	for i := range rounds {
		name := fmt.Sprintf("/x%d", i)
		for _, p := range ps {
			p.say("%s", name)
		}
		winners := 0
		for _, p := range ps {
			switch s := p.line(); s {
			case "ok":
				winners++
			case "exists":
			default:
				t.Errorf("round %d: %s", i, s)
			}
		}
		if winners != 1 {
			t.Fatalf("round %d: %d processes created it", i, winners)
		}
	}
}

// Delayed messages come when they are due, not before, each once, with several receivers who sleep until then.
func TestNotBeforeUnderReceivers(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	q := openQueue(t, d, "/delayed", &driver.Options{Create: true, MaxMessages: 1000, MaxSize: 100})
	qs := []*Queue{q, openQueue(t, d, "/delayed", nil)}
	const n = 200
	var got [n]atomic.Int32
	var total atomic.Int32
	var wg sync.WaitGroup
	done, stop := context.WithCancel(ctx)
	defer stop()
	for g := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f := driver.Filter{}
			if g == 3 {
				f.Type = 1 // all are of it, but this sleeper waits in a way of its own
			}
			for {
				m, err := qs[g%2].Receive(done, f, false)
				if err != nil {
					if done.Err() == nil {
						t.Errorf("receive: %v", err)
					}
					return
				}
				now := time.Now()
				if now.Before(m.NotBefore) {
					t.Errorf("%s came %v before it was due", m.Body, m.NotBefore.Sub(now))
				}
				if late := now.Sub(m.NotBefore); late > 5*time.Second {
					t.Errorf("%s came %v after it was due", m.Body, late)
				}
				i, _ := strconv.Atoi(string(m.Body))
				got[i].Add(1)
				if total.Add(1) == n {
					stop()
				}
			}
		}()
	}
	r := rand.New(rand.NewPCG(7, 7))
	for i := range n {
		m := driver.Message{Type: 1, Body: []byte(fmt.Sprint(i)), Priority: r.IntN(3), NotBefore: time.Now().Add(time.Duration(r.IntN(300)) * time.Millisecond)}
		if err := qs[i%2].Send(ctx, m, true); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	for i := range got {
		if c := got[i].Load(); c != 1 {
			t.Errorf("message %d came %d times", i, c)
		}
	}
	mustBeSound(t, q)
}

// An expired message is never delivered, gives its room back to those who wait for it, and is counted. Nothing here needs the clock to
// be punctual: what is received is compared with the clock as it was before the receive began.
func TestExpiresUnderReceivers(t *testing.T) {
	t.Parallel()
	d := shmDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	const room, n = 8, 300
	q := openQueue(t, d, "/expiring", &driver.Options{Create: true, MaxMessages: room, MaxSize: 100})
	other := openQueue(t, d, "/expiring", nil)
	var received atomic.Int64
	var wg sync.WaitGroup
	done, stop := context.WithCancel(ctx)
	defer stop()
	for g := range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				before := time.Now()
				m, err := []*Queue{q, other}[g%2].Receive(done, driver.Filter{}, true)
				if errors.Is(err, driver.ErrEmpty) {
					err = nil
					if done.Err() != nil {
						return
					}
				} else if err == nil {
					received.Add(1)
					if !m.Expires.IsZero() && !before.Before(m.Expires) {
						t.Errorf("a message was delivered %v after it expired", before.Sub(m.Expires))
					}
				}
				if err != nil {
					t.Errorf("receive: %v", err)
					return
				}
				time.Sleep(time.Duration(3+g*4) * time.Millisecond)
			}
		}()
	}
	for i := range n { // most of these wait for room that only expiry gives
		m := driver.Message{Type: 1, Priority: i % 3, Expires: time.Now().Add(time.Duration(i%5) * time.Millisecond)}
		if i%4 == 0 {
			m.NotBefore = time.Now().Add(time.Duration(i%7) * time.Millisecond)
		}
		if err := q.Send(ctx, m, false); err != nil {
			t.Fatalf("send %d: %v", i, err)
		}
	}
	time.Sleep(20 * time.Millisecond)
	stop()
	wg.Wait()
	if s := tryBody(t, q); s != "" {
		t.Errorf("%q is left", s)
	}
	s, err := q.Stat(ctx)
	if err != nil || s.Sent != n || s.Messages != 0 || s.Expired+uint64(received.Load()) != n || s.Received != uint64(received.Load()) {
		t.Errorf("%d sent, %d received, %d expired, %d left, received here %d, %v", s.Sent, s.Received, s.Expired, s.Messages, received.Load(), err)
	}
	if s.Expired < n/8 {
		t.Errorf("only %d expired: too few to prove anything", s.Expired)
	}
	mustBeSound(t, q)
	mustHaveAllFree(t, q)
}
