// Priorities: the most urgent message first, and first in, first out among equals.
//
//	go run ./examples/priorities
//	go run ./examples/priorities -on posix:
//	go run ./examples/priorities -on sysv+priority:
//
// Many textbooks say that priorities go from 0 to 31. That is only the least that POSIX asks for (_POSIX_MQ_PRIO_MAX is 32). Linux has
// 32,768 of them, 0 to 32,767, and so has the engine. Larger numbers are more urgent (the nice values of processes go
// the other way).
//
// System V queues have types, and no priorities. With a low type for a high priority and msgrcv with msgtyp < 0 they can be made to have
// them: that is what sysv+priority: does. examples/types shows how.
package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

func main() {
	lab.Main(map[string]func(context.Context) error{"": run})
}

func run(ctx context.Context) (err error) {
	url := lab.Queue("/example/priorities")
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 10, MaxSize: 64})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), url)) }()

	// All are sent before the first is received; otherwise there would be nothing to choose from.
	for _, m := range []struct {
		priority int
		text     string
	}{
		{0, "water the plants"},
		{10, "write the report"},
		{31, "answer the telephone"}, // the highest that is portable
		{10, "print the report"},
		{32767, "leave the burning house"}, // the highest on Linux
		{32, "sign for the parcel"},
		{10, "file the report"},
	} {
		if err := q.Send(ctx, kumquat.Message{Body: []byte(m.text), Priority: m.priority}); err != nil {
			return err
		}
		fmt.Printf("sent     %5d  %s\n", m.priority, m.text)
	}

	// One more is too many. The error says so before anything has happened, and it is the errno of mq_send(3) too.
	err = q.Send(ctx, kumquat.Message{Body: []byte("?"), Priority: kumquat.MaxPriority + 1})
	if !errors.Is(err, kumquat.ErrInvalid) || !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("priority %d: %w", kumquat.MaxPriority+1, err)
	}
	fmt.Printf("refused  %5d\n", kumquat.MaxPriority+1)

	for {
		m, err := q.TryReceive()
		if errors.Is(err, kumquat.ErrEmpty) {
			return nil
		}
		if err != nil {
			return err
		}
		fmt.Printf("received %5d  %s\n", m.Priority, m.Body)
	}
}
