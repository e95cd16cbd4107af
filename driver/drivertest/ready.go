package drivertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// Notify tells the change from empty to not empty, to all who asked, and no change after the last value goes untold.
func notify(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 10})
	p := s.again(t, q)
	ctx, cancel := waitCancel(t)
	defer cancel()
	send(t, q, s.text("a", 0))
	a, err := q.Notify(ctx)
	want(t, err, nil)
	b, err := p.Notify(ctx)
	want(t, err, nil)
	c, err := p.Notify(ctx)
	want(t, err, nil)
	select {
	case <-a:
		t.Error("a queue that was not empty when Notify was called gave a value")
	case <-time.After(50 * time.Millisecond): // nothing happens: there is no event for that
	}
	takes(t, q, kumquat.Filter{}, "a")
	empty(t, q, kumquat.Filter{})
	send(t, p, s.text("b", 0))
	for _, c := range []<-chan struct{}{a, b, c} {
		if _, open := <-c; !open {
			t.Fatal("the channel was closed")
		}
	}
	takes(t, q, kumquat.Filter{}, "b")
	// Wait, drain, wait: the sender sends the next only when the last was found, so one value lost is a hang.
	got := make(chan string)
	go func() {
		defer close(got)
		for range b {
			for {
				m, err := p.TryReceive()
				if err != nil {
					break
				}
				got <- string(m.Body)
			}
		}
	}()
	for i := range 500 {
		want(t, q.Send(ctx, s.text(fmt.Sprint(i), 0)), nil)
		select {
		case m := <-got:
			if m != fmt.Sprint(i) {
				t.Fatalf("got %s, want %d", m, i)
			}
		case <-ctx.Done():
			t.Fatalf("message %d was never told of", i)
		}
	}
	cancel()
	ends := func(what string, c <-chan struct{}) {
		t.Helper()
		for end := time.After(patience); ; {
			select {
			case _, open := <-c:
				if !open {
					return
				}
			case <-end:
				t.Fatalf("%s did not close the channel", what)
			}
		}
	}
	ends("cancelling", a)
	ends("cancelling", c)
	if _, open := <-got; open {
		t.Error("a message that nobody sent")
	}
	a, err = p.Notify(waiting(t))
	want(t, err, nil)
	want(t, p.Close(), nil)
	ends("Close", a)
	a, err = q.Notify(waiting(t))
	want(t, err, nil)
	want(t, kumquat.Remove(waiting(t), q.Name()), nil)
	ends("Remove", a)
}

// Select finds the queue that has something, takes turns where several have, and ends with its context or a queue's end.
func selecting(s *suite, t *testing.T) {
	var qs []*kumquat.Queue
	for range 3 {
		qs = append(qs, s.queue(t, kumquat.Options{MaxMessages: 5}))
	}
	ctx := waiting(t)
	type chosen struct {
		q   *kumquat.Queue
		err error
	}
	later := func(ctx context.Context, qs ...*kumquat.Queue) <-chan chosen {
		c := make(chan chosen, 1)
		go func() { q, err := kumquat.Select(ctx, qs...); c <- chosen{q, err} }()
		return c
	}
	for i := range 60 {
		c := later(ctx, qs...)
		send(t, qs[i%3], s.text("x", 0))
		if r := get(t, c); r.err != nil || r.q != qs[i%3] {
			t.Fatalf("round %d: %v, %v", i, r.q, r.err)
		}
		takes(t, qs[i%3], kumquat.Filter{}, "x")
	}
	for _, q := range qs {
		send(t, q, s.text("x", 0))
	}
	turns := map[*kumquat.Queue]int{}
	for range 30 {
		q, err := kumquat.Select(ctx, qs...)
		want(t, err, nil)
		turns[q]++
	}
	for i, q := range qs {
		if turns[q] == 0 {
			t.Errorf("queue %d never had its turn", i)
		}
		takes(t, q, kumquat.Filter{}, "x")
	}
	cctx, cancel := waitCancel(t)
	c := later(cctx, qs...)
	cancel()
	want(t, get(t, c).err, context.Canceled)
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	_, err := kumquat.Select(short, qs...)
	want(t, err, kumquat.ErrTimeout)
	_, err = kumquat.Select(ctx)
	want(t, err, kumquat.ErrInvalid)
	_, err = kumquat.Select(ctx, qs[0], nil)
	want(t, err, kumquat.ErrInvalid)

	// Several selections at the same queues: each is woken by itself.
	c1, c2 := later(ctx, qs[0], qs[1]), later(ctx, qs[1], qs[2], qs[1])
	send(t, qs[0], s.text("x", 0))
	want(t, get(t, c1).err, nil)
	pending(t, c2)
	send(t, qs[2], s.text("x", 0))
	want(t, get(t, c2).err, nil)
	takes(t, qs[0], kumquat.Filter{}, "x")
	takes(t, qs[2], kumquat.Filter{}, "x")

	p := s.again(t, qs[0])
	c = later(ctx, qs[1], p)
	want(t, p.Close(), nil)
	want(t, get(t, c).err, kumquat.ErrClosed)
	c = later(ctx, qs[1], qs[2])
	want(t, kumquat.Remove(ctx, qs[2].Name()), nil)
	want(t, get(t, c).err, kumquat.ErrRemoved)
}

// One goroutine serves many queues, whatever the moments at which their messages come: none is left lying.
func selectMany(s *suite, t *testing.T) {
	const queues, total = 20, 2000
	var qs []*kumquat.Queue
	for range queues {
		qs = append(qs, s.queue(t, kumquat.Options{MaxMessages: 3, MaxSize: 16}))
	}
	ctx, wg := crew(t)
	for i := range 2 {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		wg.Go(func() {
			for range total / 2 {
				if err := qs[r.IntN(queues)].Send(ctx, s.text("x", 0)); err != nil {
					t.Errorf("send: %v", err)
					return
				}
			}
		})
	}
	for range total {
		q, err := kumquat.Select(ctx, qs...)
		want(t, err, nil)
		takes(t, q, kumquat.Filter{}, "x") // nobody else receives, so what Select says is still true
	}
	wg.Wait()
	for _, q := range qs {
		empty(t, q, kumquat.Filter{})
	}
}

func readable(t *testing.T, fd int, timeout time.Duration) bool {
	t.Helper()
	for end := time.Now().Add(timeout); ; {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(end).Milliseconds())))
		if err == unix.EINTR {
			continue
		}
		want(t, err, nil)
		return n == 1 && fds[0].Revents&unix.POLLIN != 0
	}
}

// FD serves any event loop: poll and epoll see it readable when there is something, and not after a try that found nothing.
func descriptor(s *suite, t *testing.T) {
	q := s.queue(t, kumquat.Options{MaxMessages: 10})
	p := s.again(t, q)
	send(t, q, s.text("a", 0))
	fd, err := q.FD()
	want(t, err, nil)
	if again, err := q.FD(); err != nil || again != fd {
		t.Errorf("FD gave %d, then %d, %v", fd, again, err)
	}
	if !readable(t, fd, patience) {
		t.Fatal("not readable, though a message was there before FD")
	}
	takes(t, q, kumquat.Filter{}, "a")
	// It may be readable for nothing, but then a try that finds nothing clears it.
	clear := func() {
		t.Helper()
		if !holds(func() bool { empty(t, q, kumquat.Filter{}); return !readable(t, fd, 0) }) {
			t.Fatal("readable for ever, though nothing is there")
		}
	}
	clear()
	for range 100 {
		send(t, p, s.text("b", 0))
		if !readable(t, fd, patience) {
			t.Fatal("not readable, though a message is there")
		}
		takes(t, q, kumquat.Filter{}, "b")
		clear()
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	want(t, err, nil)
	defer unix.Close(ep)
	want(t, unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: 7}), nil)
	ctx, wg := crew(t)
	const total = 300
	wg.Go(func() {
		for i := range total {
			if err := p.Send(ctx, s.text(fmt.Sprint(i), 0)); err != nil {
				t.Errorf("send: %v", err)
			}
		}
	})
	for got := 0; got < total; {
		evs := make([]unix.EpollEvent, 4)
		n, err := unix.EpollWait(ep, evs, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != 1 || evs[0].Fd != 7 || evs[0].Events&unix.EPOLLIN == 0 {
			t.Fatalf("epoll: %d events, %v, after %d of %d messages", n, err, got, total)
		}
		for {
			m, err := q.TryReceive()
			if err != nil {
				want(t, err, kumquat.ErrEmpty)
				break
			}
			if string(m.Body) != fmt.Sprint(got) {
				t.Fatalf("got %s, want %d", m.Body, got)
			}
			got++
		}
	}
	clear()
}
