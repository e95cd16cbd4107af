// Filtering by type: several receivers share one queue, and each takes only what concerns it.
//
//	go run ./examples/filtering
//	go run ./examples/filtering -on sysv:
//
// A print server: jobs for the colour printer have type 2, and the plain printer takes anything else. (POSIX queues have no types:
// there one makes a queue for each kind of job.)
//
// All kinds share the room of one queue. If the colour printer stands still, its jobs fill the queue, and then nobody can send a plain
// job either. Whoever cannot accept that makes several queues even on System V, and waits for them with Select.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

// What a job is. A type is a number above 0; what it means is for the programs to agree on.
const (
	text   = 1
	colour = 2
	label  = 3
	end    = 9
)

func main() {
	lab.Main(map[string]func(context.Context) error{"": parent, "printer": work})
}

func parent(ctx context.Context) (err error) {
	url := lab.Queue("/example/print")
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 4, MaxSize: 64})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, q.Close(), kumquat.Remove(context.Background(), url)) }()
	defer lab.Stop()
	printers := []*lab.Process{lab.Start(ctx, "printer", "colour"), lab.Start(ctx, "printer", "plain")}

	for i, kind := range []int64{text, colour, label, colour, text, text, colour, label} {
		if err := q.Send(ctx, kumquat.Message{Type: kind, Body: fmt.Appendf(nil, "job %d", i+1)}); err != nil {
			return err
		}
	}
	// Messages that pass the same filter come in the order in which they were sent, so the end comes last: one of a type that each
	// of the two takes.
	for _, kind := range []int64{colour, end} {
		if err := q.Send(ctx, kumquat.Message{Type: kind}); err != nil {
			return err
		}
	}
	return errors.Join(printers[0].Wait(), printers[1].Wait())
}

func work(ctx context.Context) error {
	name := flag.Arg(0)
	filter := kumquat.Not(colour) // MSG_EXCEPT
	if name == "colour" {
		filter = kumquat.Type(colour)
	}
	q, err := kumquat.Open(ctx, lab.Queue("/example/print"), nil)
	if err != nil {
		return err
	}
	defer q.Close()
	var done []string
	for m, err := range q.Messages(ctx, filter) { // sleeps until there is one that the filter lets through
		if err != nil {
			return err
		}
		if len(m.Body) == 0 {
			break
		}
		done = append(done, fmt.Sprintf("%s (type %d)", m.Body, m.Type))
	}
	fmt.Printf("%s printer: %s\n", name, strings.Join(done, ", "))
	return nil
}
