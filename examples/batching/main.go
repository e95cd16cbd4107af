// Batching: many messages in one call.
//
//	go run ./examples/batching
//	go run ./examples/batching -on posix:
//
// A batch saves calls, and on the engine it is one step for everybody else as well: all its messages are there at once, next
// to each other, or none is. The kernel's queues have no batches. A loop of sends takes their place here, and it
// can stop in the middle, with half of the messages sent.
package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

func main() {
	lab.Main(map[string]func(context.Context) error{"": run})
}

func run(ctx context.Context) (err error) {
	url := lab.Queue("/example/batching")
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 8, MaxSize: 8})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), url)) }()

	report := func(what string, sent int, err error) {
		if errors.Is(err, kumquat.ErrFull) {
			fmt.Printf("%s: full, %d sent\n", what, sent)
		} else {
			fmt.Printf("%s: %d sent\n", what, sent)
		}
	}
	sent, err := sendAll(q, messages("a", 6))
	report("6 messages into a queue of 8", sent, err)
	sent, err = sendAll(q, messages("b", 6))
	report("6 more", sent, err)

	// Receiving: what is there, up to a number, in one call. It waits for the first message only, so that a batch never waits to
	// become full. On the kernel's queues this is a loop inside the library.
	for {
		ms, err := q.TryReceiveBatch(4)
		if errors.Is(err, kumquat.ErrEmpty) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Printf("received %d:", len(ms))
		for _, m := range ms {
			fmt.Printf(" %s", m.Body)
		}
		fmt.Println()
	}
}

// sendAll sends all messages if there is room for all. Where the queue has batches it else sends none; where it has not, it sends
// those that still fit. It returns how many it has sent.
func sendAll(q *kumquat.Queue, ms []kumquat.Message) (int, error) {
	if q.Can(kumquat.Batches) {
		if err := q.TrySendBatch(ms); err != nil {
			return 0, err
		}
		return len(ms), nil
	}
	for i, m := range ms {
		if err := q.TrySend(m); err != nil {
			return i, err
		}
	}
	return len(ms), nil
}

func messages(name string, n int) []kumquat.Message {
	var ms []kumquat.Message
	for i := range n {
		ms = append(ms, kumquat.Message{Body: fmt.Appendf(nil, "%s%-7d", name, i+1)})
	}
	return ms
}
