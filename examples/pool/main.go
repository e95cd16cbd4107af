// A pool: 2 producers make jobs, 3 consumers work them off, and every job that is done is reported, so that the program can say at
// the end who did what, and how long the jobs had waited.
//
//	go run ./examples/pool
//
// Nobody distributes the work: whoever is free takes the next job from the queue, and no job is taken twice.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

const producers, consumers, jobsEach = 2, 3, 12

func main() {
	lab.Main(map[string]func(context.Context) error{"": parent, "producer": produce, "consumer": consume})
}

func parent(ctx context.Context) (err error) {
	var q [2]*kumquat.Queue
	for i, url := range []string{lab.Queue("/example/jobs"), lab.Queue("/example/done")} {
		q[i], err = kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 10, MaxSize: 64})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, q[i].Close(), kumquat.Remove(context.Background(), url)) }()
	}
	defer lab.Stop()
	jobs, done := q[0], q[1]
	for i := range consumers {
		lab.Start(ctx, "consumer", fmt.Sprint(i+1))
	}
	for i := range producers {
		lab.Start(ctx, "producer", fmt.Sprint(i+1))
	}

	var made [producers + 1]int
	var did [consumers + 1]int
	var waited, longest, worked time.Duration
	const all = producers * jobsEach
	for range all {
		m, err := done.Receive(ctx)
		if err != nil {
			return err
		}
		var p, c int
		var wait, work time.Duration
		if _, err := fmt.Sscan(string(m.Body), &p, &c, (*int64)(&wait), (*int64)(&work)); err != nil {
			return err
		}
		made[p]++
		did[c]++
		waited, longest, worked = waited+wait, max(longest, wait), worked+work
	}
	// All jobs are done, so all consumers wait. An empty message for each of them sends it home.
	for range consumers {
		if err := jobs.Send(ctx, kumquat.Message{}); err != nil {
			return err
		}
	}
	for p := range producers {
		fmt.Printf("producer %d: %d jobs\n", p+1, made[p+1])
	}
	for c := range consumers {
		fmt.Printf("consumer %d: %d jobs\n", c+1, did[c+1])
	}
	fmt.Printf("all: %d jobs, on average %.1f ms in the queue (at most %.1f ms) and %.1f ms of work\n",
		all, ms(waited)/all, ms(longest), ms(worked)/all)
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// produce sends "producer, time of the send".
func produce(ctx context.Context) error {
	q, err := kumquat.Open(ctx, lab.Queue("/example/jobs"), nil)
	if err != nil {
		return err
	}
	defer q.Close()
	for range jobsEach {
		if err := q.Send(ctx, kumquat.Message{Body: fmt.Append(nil, flag.Arg(0), " ", time.Now().UnixNano())}); err != nil {
			return err
		}
	}
	return nil
}

// consume takes jobs, and reports each as "producer, consumer, time in the queue, time of the work".
func consume(ctx context.Context) error {
	q, err := kumquat.Open(ctx, lab.Queue("/example/jobs"), nil)
	if err != nil {
		return err
	}
	defer q.Close()
	done, err := kumquat.Open(ctx, lab.Queue("/example/done"), nil)
	if err != nil {
		return err
	}
	defer done.Close()
	for m, err := range q.Messages(ctx) {
		if err != nil || len(m.Body) == 0 {
			return err
		}
		var producer int
		var sent int64
		if _, err := fmt.Sscan(string(m.Body), &producer, &sent); err != nil {
			return err
		}
		start := time.Now()
		time.Sleep(2 * time.Millisecond) // the work
		report := fmt.Append(nil, producer, " ", flag.Arg(0), " ", start.UnixNano()-sent, " ", time.Since(start).Nanoseconds())
		if err := done.Send(ctx, kumquat.Message{Body: report}); err != nil {
			return err
		}
	}
	return nil
}
