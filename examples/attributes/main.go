// Attributes: how many messages, how long, and who may use the queue. They are chosen when a queue is created and never change.
//
//	go run ./examples/attributes
//	go run ./examples/attributes -on posix:
//
//	struct mq_attr     Options (when created)    Stats (later)
//	mq_maxmsg          MaxMessages               MaxMessages
//	mq_msgsize         MaxSize                   MaxSize
//	mq_curmsgs                                   Messages
//	mq_flags           (TryReceive, TrySend)
//
// mq_setattr(3) changes O_NONBLOCK and nothing else, whatever else stands in the structure. Here it is not a state of the
// queue at all: every call says whether it waits.
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
	// What a queue gets if nothing is said.
	if err := look(ctx, "defaults", "/example/defaults", kumquat.Options{}); err != nil {
		return err
	}
	// More than the kernel gives away: fs.mqueue.msg_max is 10, and for System V kernel.msgmnb is 16,384 bytes a queue. The
	// engine's queues are limited by the room in /dev/shm, and they take none before they are used.
	err = look(ctx, "large", "/example/large", kumquat.Options{MaxMessages: 1000, MaxSize: 4096})
	if errors.Is(err, kumquat.ErrLimit) {
		fmt.Printf("large: ErrLimit, and its text says which one, and how to raise it:\n\t%v\n", err)
	} else if err != nil {
		return err
	}

	url := lab.Queue("/example/attributes")
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 5, MaxSize: 100, Mode: 0o640})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), url)) }()
	for _, n := range []int{0, 100, 101} { // a message may be empty; MaxSize is the longest
		err := q.Send(ctx, kumquat.Message{Body: make([]byte, n)})
		fmt.Printf("send %d bytes: too large %t\n", n, errors.Is(err, kumquat.ErrTooLarge))
	}

	// To create a queue that exists is to open it. It stays as it is, whatever the second program asks for.
	again, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, MaxMessages: 7, MaxSize: 700, Mode: 0o666})
	if err != nil {
		return err
	}
	defer again.Close()
	s, err := again.Stat(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("opened again: %d messages of %d bytes at most, mode %v, %d messages with %d bytes now\n",
		s.MaxMessages, s.MaxSize, s.Mode, s.Messages, s.Bytes)
	return nil
}

// look creates a queue, prints its attributes and removes it.
func look(ctx context.Context, what, name string, o kumquat.Options) error {
	o.Create, o.Exclusive = true, true
	q, err := kumquat.Open(ctx, lab.Queue(name), &o)
	if err != nil {
		return err
	}
	s, err := q.Stat(ctx)
	fmt.Printf("%s: %d messages of %d bytes at most, mode %v\n", what, s.MaxMessages, s.MaxSize, s.Mode)
	return errors.Join(err, q.Close(), kumquat.Remove(context.Background(), lab.Queue(name)))
}
