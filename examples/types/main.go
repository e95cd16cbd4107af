// System V types: every message has a number, and the receiver chooses by it.
//
//	go run ./examples/types
//	go run ./examples/types -on sysv:
//
//	msgrcv(2), msgtyp      here                  takes
//	0                      Receive(ctx)          the first of all
//	n > 0                  Type(n)               the first of type n
//	−n                     TypeAtMost(n)         the lowest type that is there and not above n; of these the first
//	n with MSG_EXCEPT      Not(n)                the first that is not of type n
//
// A type is above 0. POSIX queues have none (ErrUnsupported).
package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

func main() {
	lab.Main(map[string]func(context.Context) error{"": run})
}

func run(ctx context.Context) (err error) {
	url := lab.Queue("/example/types")
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 10, MaxSize: 64})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), url)) }()

	// Each row fills the queue with the same six messages, takes them all with one filter, and shows in which order they came.
	for _, row := range []struct {
		msgtyp string
		filter kumquat.Filter
	}{
		{"0         ", kumquat.Filter{}},
		{"2         ", kumquat.Type(2)},
		{"-2        ", kumquat.TypeAtMost(2)},
		{"-9        ", kumquat.TypeAtMost(9)},
		{"2 (EXCEPT)", kumquat.Not(2)},
		{"7         ", kumquat.Type(7)},
	} {
		for _, m := range []struct {
			kind int64
			text string
		}{{3, "3a"}, {2, "2a"}, {1, "1a"}, {2, "2b"}, {3, "3b"}, {1, "1b"}} {
			if err := q.Send(ctx, kumquat.Message{Type: m.kind, Body: []byte(m.text)}); err != nil {
				return err
			}
		}
		taken, err := drain(q, row.filter)
		if err != nil {
			return err
		}
		fmt.Printf("msgtyp %s  takes %-18s", row.msgtyp, strings.Join(taken, " "))
		rest, err := drain(q, kumquat.Filter{})
		if err != nil {
			return err
		}
		fmt.Printf("leaves %s\n", strings.Join(rest, " "))
	}

	// Boundaries: "a stream of bytes of each type" is a common mistake. Two messages of one type stay two messages.
	for _, text := range []string{"ab", "cd"} {
		if err := q.Send(ctx, kumquat.Message{Type: 5, Body: []byte(text)}); err != nil {
			return err
		}
	}
	two, err := drain(q, kumquat.Type(5))
	if err != nil {
		return err
	}
	fmt.Printf("\nsent ab, cd of one type; received %s\n", strings.Join(two, ", "))

	err = q.Send(ctx, kumquat.Message{Type: -1})
	fmt.Printf("a type below 1 is EINVAL: %t\n", errors.Is(err, syscall.EINVAL))
	return nil
}

// drain takes what f lets through until nothing is left. Nothing that matches is ErrEmpty, however many others there are: msgrcv says
// ENOMSG, where a POSIX queue says EAGAIN.
func drain(q *kumquat.Queue, f kumquat.Filter) (bodies []string, err error) {
	for {
		m, err := q.TryReceive(f)
		if errors.Is(err, kumquat.ErrEmpty) {
			return bodies, nil
		}
		if err != nil {
			return nil, err
		}
		bodies = append(bodies, string(m.Body))
	}
}
