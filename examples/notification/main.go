// Notification: a program does its work, and is told when messages have arrived.
//
//	go run ./examples/notification                 by a channel
//	go run ./examples/notification -on posix:      by a signal: mq_notify(3) with SIGEV_SIGNAL
//
// mq_notify tells once, and only of the change from empty to not empty. So the order matters: arm it again first, then empty the queue.
// The other way round, a message that comes between the two makes no change from empty, nobody is ever told of it, and the program sleeps
// for ever. (System V queues have nothing of the kind: ErrUnsupported.)
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
	"github.com/kumquat-mq/kumquat/posix"
)

func main() {
	lab.Main(map[string]func(context.Context) error{"": parent, "sender": send})
}

func parent(ctx context.Context) (err error) {
	url := lab.Queue("/example/letters")
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 8, MaxSize: 64})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), url)) }()
	defer lab.Stop()
	var arm func() error                           // ask to be told
	var told func(context.Context) (string, error) // wait until it is so
	if lab.Kind() == "posix" {
		letters, err := posix.Open(strings.TrimPrefix(url, "posix:"), posix.ReadWrite, 0, nil)
		if err != nil {
			return err
		}
		defer letters.Close() // the registration ends with it
		arm, told = bySignal(letters)
	} else {
		news, err := q.Notify(ctx)
		if err != nil {
			return err
		}
		arm, told = byChannel(news)
	}
	if err := arm(); err != nil {
		return err
	}

	for _, day := range []string{"monday", "tuesday"} {
		if err := lab.Start(ctx, "sender", day).Wait(); err != nil { // three letters arrive while we do something else
			return err
		}
		how, err := told(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%s: told by %s\n", day, how)
		if err := arm(); err != nil { // first this …
			return err
		}
		for { // … then that: every letter, for it was told once only
			m, err := q.TryReceive()
			if errors.Is(err, kumquat.ErrEmpty) {
				break
			}
			if err != nil {
				return err
			}
			fmt.Printf("%s: %s\n", day, m.Body)
		}
	}
	return nil
}

// byChannel: the subscription lasts, so there is nothing to arm, and others may subscribe as well.
func byChannel(news <-chan struct{}) (arm func() error, told func(context.Context) (string, error)) {
	return func() error { return nil }, func(ctx context.Context) (string, error) {
		if _, open := <-news; !open { // ctx is done, or the queue is gone
			return "", errors.Join(ctx.Err(), errors.New("there will be no news"))
		}
		return "a value in a channel", nil
	}
}

// bySignal: arm registers this process with the kernel for one signal. While it is registered, another one gets EBUSY.
func bySignal(q *posix.Queue) (arm func() error, told func(context.Context) (string, error)) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1) // before it is armed: SIGUSR1 ends a process that does not expect it
	return func() error { return q.NotifySignal(syscall.SIGUSR1, 0) }, func(ctx context.Context) (string, error) {
		select {
		case s := <-signals:
			return fmt.Sprintf("the signal %q", s), nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func send(ctx context.Context) error {
	q, err := kumquat.Open(ctx, lab.Queue("/example/letters"), nil)
	if err != nil {
		return err
	}
	defer q.Close()
	for n := 1; n <= 3; n++ {
		if err := q.Send(ctx, kumquat.Message{Body: fmt.Appendf(nil, "letter %d of %s", n, flag.Arg(0))}); err != nil {
			return err
		}
	}
	return nil
}
