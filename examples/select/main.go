// Select: one program waits for several queues at once and takes from whichever has something. It sleeps meanwhile: it does not ask
// one queue after the other.
//
//	go run ./examples/select
//	go run ./examples/select -on posix:
//
// "Message queues cannot be waited for with select or poll" is true of System V queues only. On Linux the descriptor of a POSIX queue
// is a file descriptor: poll(2), select(2) and epoll(7) work on it. Select uses that. It may mix queues of all kinds.
package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

var names = []string{"/example/mail", "/example/news", "/example/alarm"}

func main() {
	lab.Main(map[string]func(context.Context) error{"": parent, "sender": send})
}

func parent(ctx context.Context) (err error) {
	all := make([]*kumquat.Queue, len(names))
	for i, name := range names {
		url := lab.Queue(name)
		all[i], err = kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 4, MaxSize: 64})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, all[i].Close(), kumquat.Remove(context.Background(), url)) }()
	}
	defer lab.Stop()
	lab.Start(ctx, "sender")
	queues := slices.Clone(all)
	count := map[*kumquat.Queue]int{}
	for len(queues) > 0 {
		q, err := kumquat.Select(ctx, queues...)
		if err != nil {
			return err
		}
		// Select has taken nothing. With several receivers another one may be faster, so ask without waiting.
		m, err := q.TryReceive()
		if errors.Is(err, kumquat.ErrEmpty) {
			continue
		}
		if err != nil {
			return err
		}
		if len(m.Body) == 0 { // the end of this queue; the others may go on
			queues = slices.DeleteFunc(queues, func(x *kumquat.Queue) bool { return x == q })
			continue
		}
		count[q]++
		fmt.Printf("%s\n", m.Body)
	}
	total := 0
	for _, n := range count {
		total += n
	}
	fmt.Printf("all: %d messages from %d queues\n", total, len(count))
	return nil
}

// send fills all three queues, in turns.
func send(ctx context.Context) error {
	for round := 1; round <= 4; round++ {
		for _, name := range names {
			q, err := kumquat.Open(ctx, lab.Queue(name), nil)
			if err != nil {
				return err
			}
			body := fmt.Sprintf("%s: message %d", name[len("/example/"):], round)
			if round == 4 {
				body = ""
			}
			if err := errors.Join(q.Send(ctx, kumquat.Message{Body: []byte(body)}), q.Close()); err != nil {
				return err
			}
		}
	}
	return nil
}
