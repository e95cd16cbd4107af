package kumquat_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// fresh creates a queue for an example; done closes and removes it.
func fresh(name string, o kumquat.Options) (q *kumquat.Queue, done func()) {
	o.Create, o.Exclusive = true, true
	q, err := kumquat.Open(context.Background(), name, &o)
	if err != nil {
		log.Fatal(err)
	}
	return q, func() {
		if err := errors.Join(q.Close(), kumquat.Remove(context.Background(), name)); err != nil {
			log.Fatal(err)
		}
	}
}

func Example() {
	ctx := context.Background()
	q, err := kumquat.Open(ctx, "/orders", &kumquat.Options{Create: true})
	if err != nil {
		log.Fatal(err)
	}
	if err := q.Send(ctx, kumquat.Message{Body: []byte("two pears")}); err != nil {
		log.Fatal(err)
	}
	// From here on it may be another process.
	m, err := q.Receive(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", m.Body)
	if err := errors.Join(q.Close(), kumquat.Remove(ctx, "/orders")); err != nil {
		log.Fatal(err)
	}
	// Output: two pears
}

func ExampleOpen() {
	ctx := context.Background()
	_, err := kumquat.Open(ctx, "/example/missing", nil)
	fmt.Println(errors.Is(err, kumquat.ErrNotFound))
	fmt.Println(err)
	q, err := kumquat.Open(ctx, "/example/missing", &kumquat.Options{Create: true, MaxMessages: 10_000, MaxSize: 64 << 10, Mode: 0o660})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(q.Name())
	if err := errors.Join(q.Close(), kumquat.Remove(ctx, q.Name())); err != nil {
		log.Fatal(err)
	}
	// Output:
	// true
	// kumquat: open /example/missing: no such queue
	// /example/missing
}

func ExampleQueue_Receive_deadline() {
	q, done := fresh("/example/deadline", kumquat.Options{})
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := q.Receive(ctx)
	fmt.Println(errors.Is(err, kumquat.ErrTimeout), errors.Is(err, context.DeadlineExceeded))
	// Output: true true
}

// Higher priorities come first; inside one, messages keep the order in which they were sent.
func ExampleQueue_Send_priorities() {
	ctx := context.Background()
	q, done := fresh("/example/priorities", kumquat.Options{})
	defer done()
	for _, m := range []kumquat.Message{
		{Body: []byte("tidy up"), Priority: kumquat.Low},
		{Body: []byte("fire"), Priority: kumquat.Critical},
		{Body: []byte("write report"), Priority: kumquat.Normal},
		{Body: []byte("answer mail"), Priority: kumquat.Normal},
	} {
		if err := q.Send(ctx, m); err != nil {
			log.Fatal(err)
		}
	}
	for {
		m, err := q.TryReceive()
		if errors.Is(err, kumquat.ErrEmpty) {
			break
		} else if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s\n", kumquat.BandOf(m.Priority), m.Body)
	}
	// Output:
	// critical: fire
	// normal: write report
	// normal: answer mail
	// low: tidy up
}

func ExampleQueue_Receive_filters() {
	ctx := context.Background()
	q, done := fresh("/example/filters", kumquat.Options{})
	defer done()
	const request, reply = 1, 2
	for _, m := range []kumquat.Message{
		{Body: []byte("question"), Type: request},
		{Body: []byte("answer for ann"), Type: reply, Key: "ann"},
		{Body: []byte("answer for bob"), Type: reply, Key: "bob"},
	} {
		if err := q.Send(ctx, m); err != nil {
			log.Fatal(err)
		}
	}
	m, err := q.Receive(ctx, kumquat.Type(reply), kumquat.Key("bob"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", m.Body)
	_, err = q.TryReceive(kumquat.MinPriority(kumquat.High))
	fmt.Println(errors.Is(err, kumquat.ErrEmpty))
	// Output:
	// answer for bob
	// true
}

func ExampleQueue_Messages() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	q, done := fresh("/example/messages", kumquat.Options{})
	defer done()
	if err := q.SendBatch(ctx, []kumquat.Message{{Body: []byte("one")}, {Body: []byte("two")}, {Body: []byte("stop")}}); err != nil {
		log.Fatal(err)
	}
	for m, err := range q.Messages(ctx) {
		if err != nil {
			fmt.Println(errors.Is(err, context.Canceled))
			break
		}
		fmt.Printf("%s\n", m.Body)
		if string(m.Body) == "stop" {
			cancel()
		}
	}
	// Output:
	// one
	// two
	// stop
	// true
}

// A batch goes in whole or not at all.
func ExampleQueue_SendBatch() {
	ctx := context.Background()
	q, done := fresh("/example/batch", kumquat.Options{MaxMessages: 4})
	defer done()
	batch := []kumquat.Message{{Body: []byte("a")}, {Body: []byte("b")}, {Body: []byte("c")}}
	fmt.Println(q.TrySendBatch(batch))
	fmt.Println(errors.Is(q.TrySendBatch(batch), kumquat.ErrFull))
	ms, err := q.ReceiveBatch(ctx, 10)
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range ms {
		fmt.Printf("%s", m.Body)
	}
	fmt.Println()
	// Output:
	// <nil>
	// true
	// abc
}

func ExampleQueue_SendBytes() {
	ctx := context.Background()
	q, done := fresh("/example/bytes", kumquat.Options{MaxSize: 1024})
	defer done()
	if err := q.SendBytes(ctx, []byte("no garbage"), kumquat.Normal); err != nil {
		log.Fatal(err)
	}
	buf := make([]byte, 1024) // used again for each message
	n, priority, err := q.ReceiveInto(ctx, buf)
	fmt.Println(string(buf[:n]), priority, err)
	// Output: no garbage 10 <nil>
}

// Written and read in the queue's own memory: the body is copied nowhere.
func ExampleQueue_Reserve() {
	ctx := context.Background()
	q, done := fresh("/example/reserve", kumquat.Options{MaxSize: 1 << 20})
	defer done()
	r, err := q.Reserve(ctx, 12)
	if err != nil {
		log.Fatal(err)
	}
	copy(r.Bytes(), "a large body")
	if err := r.Commit(ctx, kumquat.Message{Priority: kumquat.High}); err != nil {
		log.Fatal(errors.Join(err, r.Abort()))
	}
	l, err := q.Borrow(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", l.Message().Body)
	if err := l.Release(); err != nil {
		log.Fatal(err)
	}
	// Output: a large body
}

func ExampleSelect() {
	ctx := context.Background()
	fruit, done := fresh("/example/fruit", kumquat.Options{})
	defer done()
	bread, done := fresh("/example/bread", kumquat.Options{})
	defer done()
	go func() {
		if err := bread.Send(ctx, kumquat.Message{Body: []byte("rye")}); err != nil {
			log.Fatal(err)
		}
	}()
	for {
		q, err := kumquat.Select(ctx, fruit, bread)
		if err != nil {
			log.Fatal(err)
		}
		m, err := q.TryReceive()
		if errors.Is(err, kumquat.ErrEmpty) {
			continue // somebody else was faster
		} else if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %s\n", q.Name(), m.Body)
		break
	}
	// Output: /example/bread: rye
}

func ExampleQueue_Notify() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	q, done := fresh("/example/notify", kumquat.Options{})
	defer done()
	news, err := q.Notify(ctx)
	if err != nil {
		log.Fatal(err)
	}
	if err := q.Send(ctx, kumquat.Message{Body: []byte("rain")}); err != nil {
		log.Fatal(err)
	}
	<-news
	for { // drain, then wait for the next value: nothing is missed
		m, err := q.TryReceive()
		if err != nil {
			break
		}
		fmt.Printf("%s\n", m.Body)
	}
	// Output: rain
}

func ExampleQueue_Peek() {
	ctx := context.Background()
	q, done := fresh("/example/peek", kumquat.Options{})
	defer done()
	for _, b := range []string{"error: disk", "ok", "error: net"} {
		if err := q.Send(ctx, kumquat.Message{Body: []byte(b)}); err != nil {
			log.Fatal(err)
		}
	}
	errorsOnly := func(b []byte) bool { return strings.HasPrefix(string(b), "error") }
	for m, err := range q.Peek(ctx, kumquat.PeekOptions{Match: errorsOnly}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", m.Body)
	}
	s, err := q.Stat(ctx)
	fmt.Println(s.Messages, err) // all are still there
	// Output:
	// error: disk
	// error: net
	// 3 <nil>
}

// A message may wait for its time, or be worth nothing after one.
func ExampleQueue_Send_times() {
	ctx := context.Background()
	q, done := fresh("/example/times", kumquat.Options{})
	defer done()
	now := time.Now()
	if err := q.Send(ctx, kumquat.Message{Body: []byte("later"), NotBefore: now.Add(30 * time.Millisecond)}); err != nil {
		log.Fatal(err)
	}
	if err := q.Send(ctx, kumquat.Message{Body: []byte("too late"), Expires: now.Add(10 * time.Millisecond)}); err != nil {
		log.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	m, err := q.Receive(ctx)
	fmt.Printf("%s %t %v\n", m.Body, time.Since(now) >= 30*time.Millisecond, err)
	// Output: later true <nil>
}
