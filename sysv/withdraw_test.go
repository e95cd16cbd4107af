package sysv

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// sendOutside and receiveOutside send and receive a message of no bytes as another process would, past all that this package knows.
func sendOutside(t testing.TB, q *Queue, mtype int64) {
	t.Helper()
	var m [header]byte
	setMessageType(m[:], mtype)
	if e := trySend(q.ID(), m[:]); e != 0 {
		t.Fatal(e)
	}
}

func receiveOutside(q *Queue) bool {
	var m [header]byte
	_, e := tryReceive(q.ID(), m[:], 0, 0)
	return e == 0
}

func rounds() int {
	if testing.Short() {
		return 100
	}
	return 600
}

// Once the last call that waits has ended, by its context, by Close, or because the looker was stopped, no thread of the process is
// in msgrcv any more: a message of no bytes that is sent then is there for everybody, and is not taken by a thread that is still on
// its way out.
func TestNothingIsTakenAfterwards(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		name string
		wait func(q, other *Queue) (end func()) // begins to wait; end ends it and returns when the caller knows
	}{
		{"cancelled", func(q, _ *Queue) func() {
			ctx, cancel := context.WithCancel(ctx)
			c := receiveLater(ctx, q, 0, 0)
			return func() { cancel(); want(t, get(t, c).err, context.Canceled) }
		}},
		{"out of time", func(q, _ *Queue) func() {
			ctx, cancel := context.WithTimeout(ctx, 200*time.Microsecond)
			c := receiveLater(ctx, q, -9, 0)
			return func() { want(t, get(t, c).err, driver.ErrTimeout); cancel() }
		}},
		{"several calls", func(q, _ *Queue) func() {
			ctx, cancel := context.WithCancel(ctx)
			cs := []<-chan result{receiveLater(ctx, q, 0, 0), receiveLater(ctx, q, 0, 0), receiveLater(ctx, q, 9, Except), receiveLater(ctx, q, 3, 0)}
			return func() {
				cancel()
				for _, c := range cs {
					want(t, get(t, c).err, context.Canceled)
				}
			}
		}},
		{"stopped", func(q, _ *Queue) func() {
			ready, stop, err := q.Ready(0, 0, func() {})
			if err != nil || ready {
				t.Fatalf("ready %t, %v", ready, err)
			}
			return stop
		}},
		{"closed", func(_, other *Queue) func() {
			c := receiveLater(ctx, other, 0, 0)
			return func() { want(t, other.Close(), nil); want(t, get(t, c).err, driver.ErrClosed) }
		}},
		{"closed with a descriptor", func(_, other *Queue) func() {
			_, err := other.FD()
			want(t, err, nil)
			return func() { want(t, other.Close(), nil) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := private(t, 0o600)
			lost, best := 0, time.Hour
			for i := range rounds() {
				other, err := FromID(q.ID())
				want(t, err, nil)
				end := c.wait(q, other)
				if c.name != "out of time" {
					for k := 0; asleep() == 0; k++ { // soon: the pool is warm
						time.Sleep(10 * time.Microsecond)
						if k > 1_000_000 {
							t.Fatal("nobody waits")
						}
					}
				}
				for range i % 3 * 10 { // at different moments of the thread's way into the kernel
					_ = asleep()
				}
				begun := time.Now()
				end()
				best = min(best, time.Since(begun))
				sendOutside(t, q, 3)
				if !receiveOutside(q) {
					lost++
					until(t, "this process holds it", func() bool { return q.s.held.Load() > 0 })
					fails(t, q, 4, 0, unix.ENOMSG)
					gets(t, q, 0, 0, "", 3)
				}
				_ = other.Close()
			}
			if best > 10*time.Millisecond && c.name != "out of time" {
				t.Errorf("it took %v at best", best)
			}
			if lost > 0 {
				t.Errorf("%d of %d messages were taken by a thread whose callers had all returned", lost, rounds())
			}
		})
	}
}

// A message of no bytes that is sent while a receive is being cancelled goes to it, without an error, or stays in the queue: nothing
// is held by the process, and nothing is lost.
func TestCancelledWhileItComes(t *testing.T) {
	q := private(t, 0o600)
	got := map[string]int{}
	for i := range 4 * rounds() {
		ctx, cancel := context.WithCancel(t.Context())
		c := receiveLater(ctx, q, []int64{0, 3, -3, 4}[i%4], []int{0, 0, 0, Except}[i%4])
		for asleep() == 0 {
			time.Sleep(10 * time.Microsecond)
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for range i % 7 * 5 {
				_ = asleep()
			}
			sendOutside(t, q, 3)
		}()
		for range i % 5 * 5 {
			_ = asleep()
		}
		cancel()
		r := get(t, c)
		get(t, sent)
		if n := q.s.held.Load(); n != 0 {
			t.Fatalf("round %d: the receive ended with %v, and the process holds %d messages", i, r.err, n)
		}
		there := receiveOutside(q)
		if r.err != nil {
			want(t, r.err, context.Canceled)
		}
		if there == (r.err == nil) {
			t.Fatalf("round %d: the receive ended with %v, a message left in the queue: %t", i, r.err, there)
		}
		got[fmt.Sprint(r.err)]++
	}
	t.Log(got)
}
