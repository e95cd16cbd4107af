// Priority bands: names instead of numbers, and room kept for what is urgent.
//
//	go run ./examples/bands
//	go run ./examples/bands -on posix:
//
//	band       numbers   the name stands for
//	Critical   25 – 31   28
//	High       15 – 24   20
//	Normal      5 – 14   10
//	Low         0 – 4     2
//
// Priorities order what is in the queue. They do nothing for a message that does not get in: if unimportant ones fill the queue, the
// most urgent one of all waits outside. That is priority inversion, and it is how the kernel's queue behaves. On the engine, Headroom keeps a
// share of the room: here 25 % of 8 places, for priorities of High and above.
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
	url := lab.Queue("/example/bands")
	o := kumquat.Options{Create: true, Exclusive: true, MaxMessages: 8, MaxSize: 64}
	if lab.Kind() == "" { // the kernel's queues would say ErrUnsupported
		o.Headroom = kumquat.Headroom{Percent: 25, Priority: kumquat.High}
	}
	q, err := kumquat.Open(ctx, url, &o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), url)) }()

	for _, m := range []kumquat.Message{
		{Priority: kumquat.Low, Body: []byte("tidy the attic")},
		{Priority: kumquat.High, Body: []byte("answer the customer")},
		{Priority: kumquat.Normal, Body: []byte("write the report")},
		{Priority: kumquat.Critical, Body: []byte("stop the flood")},
	} {
		if err := q.Send(ctx, m); err != nil {
			return err
		}
	}
	for range 4 {
		m, err := q.TryReceive()
		if err != nil {
			return err
		}
		fmt.Printf("%-8s %2d  %s\n", kumquat.BandOf(m.Priority), m.Priority, m.Body)
	}

	// And now the flood of unimportant messages.
	low := 0
	for err = nil; err == nil; {
		if err = q.TrySend(kumquat.Message{Priority: kumquat.Low, Body: []byte("tidy the attic")}); err == nil {
			low++
		}
	}
	if !errors.Is(err, kumquat.ErrFull) {
		return err
	}
	fmt.Printf("\n%d low ones, then it is full for them\n", low)
	err = q.TrySend(kumquat.Message{Priority: kumquat.Critical, Body: []byte("stop the flood")})
	if errors.Is(err, kumquat.ErrFull) {
		fmt.Println("and for the critical one too: priority inversion")
		return nil
	}
	if err != nil {
		return err
	}
	m, err := q.TryReceive()
	if err != nil {
		return err
	}
	fmt.Printf("but not for the critical one, and it comes out first: %s\n", m.Body)
	return nil
}
