// Not waiting, and not waiting for ever: what a call does when the queue is empty or full.
//
//	go run ./examples/timeout
//	go run ./examples/timeout -on posix:
//	go run ./examples/timeout -on sysv:
//
//	Try…              never waits       ErrEmpty, ErrFull     (O_NONBLOCK and IPC_NOWAIT: EAGAIN; msgrcv says ENOMSG)
//	a deadline in ctx  waits up to it    ErrTimeout            (mq_timedsend, mq_timedreceive: ETIMEDOUT; System V has nothing like it)
//	no deadline        waits
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

func main() {
	lab.Main(map[string]func(context.Context) error{"": run})
}

func run(ctx context.Context) (err error) {
	url := lab.Queue("/example/timeout")
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 2, MaxSize: 8})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), url)) }()
	patience := 200 * time.Millisecond
	m := kumquat.Message{Body: []byte("8 bytes.")}

	fmt.Println("The queue is empty.")
	start := time.Now()
	_, err = q.TryReceive()
	fmt.Printf("TryReceive: empty %t, waited %t\n", errors.Is(err, kumquat.ErrEmpty), time.Since(start) >= patience)

	start = time.Now()
	err = within(ctx, patience, func(ctx context.Context) error { _, err := q.Receive(ctx); return err })
	fmt.Printf("Receive:    timeout %t, waited %t\n", errors.Is(err, kumquat.ErrTimeout), time.Since(start) >= patience)

	// Sending until it is full: the way to find out is to try. Asking for the number of messages first and then sending would be a
	// race: between the two calls another process may take the room.
	sent := 0
	for err = nil; err == nil; {
		if err = q.TrySend(m); err == nil {
			sent++
		}
	}
	if !errors.Is(err, kumquat.ErrFull) {
		return err
	}
	fmt.Printf("\nThe queue is full after %d messages of %d bytes.\n", sent, len(m.Body))

	start = time.Now()
	err = within(ctx, patience, func(ctx context.Context) error { return q.Send(ctx, m) })
	fmt.Printf("Send:       timeout %t, waited %t\n", errors.Is(err, kumquat.ErrTimeout), time.Since(start) >= patience)

	// A timeout is not a mishap: nothing was sent, and everything that was there still is. The program chooses what to do next.
	received := 0
	for ; ; received++ {
		if _, err := q.TryReceive(); errors.Is(err, kumquat.ErrEmpty) {
			break
		} else if err != nil {
			return err
		}
	}
	fmt.Printf("\n%d messages sent, %d received.\n", sent, received)

	// A deadline bounds the waiting, not the call: where nobody has to wait, a deadline in the past does no harm. POSIX says so of
	// mq_timedsend, too.
	err = within(ctx, -time.Second, func(ctx context.Context) error { return q.Send(ctx, m) })
	fmt.Printf("Send into an empty queue, a second after the deadline: error %v\n", err)
	return nil
}

// within calls f with a deadline. The kernel's calls take the time of day, so there a step of the clock changes how long they
// wait. Go's deadlines follow the monotonic clock.
func within(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return f(ctx)
}
