package torture

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// workerVar tells a process that it is a worker.
const workerVar = "KUMQUAT_TORTURE_WORKER"

// What goes through a worker's standard input and output, a line each. The end of the input ends the worker.
const (
	lineStop   = "stop"   // to it: finish the round
	lineAmbush = "ambush" // to it: stop yourself somewhere in your work, see ambush
	lineDone   = "done"   // from it: the round is finished, the handle closed
	lineFailed = "failed: "
)

// Child does nothing in an ordinary process. In one that Run started it does a worker's work and never returns. A program that calls
// Run must call Child first.
func Child() {
	if os.Getenv(workerVar) == "" {
		return
	}
	dieWithParent()
	if err := work(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// work serves round after round, each for an order on in.
func work(in io.Reader, out io.Writer) error {
	lines := make(chan string)
	go func() { // ends with the process
		defer close(lines)
		s := bufio.NewScanner(in)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			lines <- s.Text()
		}
	}()
	for line := range lines {
		if line == lineStop || line == lineAmbush {
			continue // of a round that ended by itself
		}
		var o order
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- serve(ctx, &o) }()
		err, gone := attend(lines, cancel, done)
		cancel()
		if gone {
			return nil
		}
		answer := lineDone
		if err != nil {
			answer = lineFailed + strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		if _, err := fmt.Fprintln(out, answer); err != nil {
			return err
		}
	}
	return nil
}

// attend hears what the parent says until the round is done. gone: the parent has gone.
func attend(lines <-chan string, cancel func(), done <-chan error) (err error, gone bool) {
	t, err := newAmbush()
	if err != nil {
		cancel()
		return errors.Join(err, <-done), false
	}
	defer func() { err = errors.Join(err, t.delete()) }()
	for {
		select {
		case err := <-done:
			return err, false
		case line, ok := <-lines:
			switch {
			case !ok:
				return nil, true
			case line == lineAmbush:
				err = errors.Join(err, t.arm())
			default:
				err = errors.Join(err, t.disarm())
				cancel()
			}
			if err != nil {
				cancel()
				return errors.Join(err, <-done), false
			}
		}
	}
}

// serve is a worker's part in one round.
func serve(ctx context.Context, o *order) error {
	q, err := openPatiently(ctx, o.Plan.Queue)
	if err != nil || q == nil {
		return err
	}
	ended := make(chan error, len(o.Actors))
	var records []*recordOf
	for _, x := range o.Actors {
		a, err := newActor(&o.Plan, x, q)
		if err != nil {
			return err
		}
		records = append(records, a.rec)
		go func() { ended <- a.run(ctx) }()
	}
	for range o.Actors {
		err = errors.Join(err, <-ended)
	}
	err = errors.Join(err, q.Close())
	for _, r := range records {
		err = errors.Join(err, r.close())
	}
	return err
}

// openPatiently opens the queue. The entries of the dead are free a moment after their death: the kernel must have closed their files.
func openPatiently(ctx context.Context, name string) (*kumquat.Queue, error) {
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) {
		q, err := kumquat.Open(ctx, name, nil)
		if err == nil || !errors.Is(err, kumquat.ErrLimit) || time.Now().After(deadline) {
			return q, err
		}
		if ctx.Err() != nil {
			return nil, nil
		}
	}
}

// dieWithParent has the kernel kill this process when its parent dies, before it does anything else.
func dieWithParent() { _ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) }
