// Producer-consumer: one process makes orders, another works them off. They share nothing but the name of a queue.
//
//	go run ./examples/producer-consumer
//	go run ./examples/producer-consumer -on posix:
//
// The queue has room for 4 messages. A producer that is faster than its consumer fills it, and then its Send waits: the queue slows
// the fast one down to the speed of the slow one, and no program has to count anything.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

const orders = 12

func main() {
	lab.Main(map[string]func(context.Context) error{"": parent, "producer": produce, "consumer": consume})
}

// parent creates the queue, starts both processes, and removes the queue when they have ended. Nobody else does that: a queue
// outlives the processes that use it.
func parent(ctx context.Context) (err error) {
	url := lab.Queue("/example/orders")
	q, err := kumquat.Open(ctx, url, &kumquat.Options{
		Create: true, Exclusive: true, // ErrExists rather than somebody else's queue
		MaxMessages: 4, MaxSize: 64,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), url)) }()
	defer lab.Stop() // deferred later, so done earlier: whatever happens, the processes end before the queue does
	consumer := lab.Start(ctx, "consumer")
	producer := lab.Start(ctx, "producer")
	return errors.Join(producer.Wait(), consumer.Wait())
}

func produce(ctx context.Context) error {
	q, err := kumquat.Open(ctx, lab.Queue("/example/orders"), nil) // it exists: no options
	if err != nil {
		return err
	}
	defer q.Close()
	for n := 1; n <= orders; n++ {
		body := fmt.Sprintf("order %d", n)
		// If the queue is full this waits for room, until ctx is done. When it has returned nil the message is in the queue.
		if err := q.Send(ctx, kumquat.Message{Body: []byte(body)}); err != nil {
			return err
		}
		fmt.Printf("producer: sent %q\n", body)
	}
	// The end needs a sign of its own, because an empty queue only means that nothing is there yet. A message of length 0 is a
	// message like any other.
	return q.Send(ctx, kumquat.Message{})
}

func consume(ctx context.Context) error {
	q, err := kumquat.Open(ctx, lab.Queue("/example/orders"), nil)
	if err != nil {
		return err
	}
	defer q.Close()
	count := 0
	for m, err := range q.Messages(ctx) { // each step waits for a message and takes it
		if err != nil {
			return err
		}
		if len(m.Body) == 0 {
			break
		}
		time.Sleep(2 * time.Millisecond) // the work
		fmt.Printf("consumer: received %q\n", m.Body)
		count++
	}
	fmt.Printf("consumer: %d orders done\n", count)
	return nil
}
