package main

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/kumquat-mq/kumquat"
)

// sink is where received messages go.
type sink interface {
	// write takes one message. It may keep it until flush.
	write(m *kumquat.Message) error
	// flush brings out all that was written.
	flush() error
	// done is the number of messages that are out for certain.
	done() int
	// batch is the most messages that should be in hand at once; 0: as many as the queue gives.
	batch() int
}

// receiver takes messages out of a queue and puts them into a sink.
type receiver struct {
	q       *kumquat.Queue
	filter  kumquat.Filter
	want    int            // −1: without end
	timeout *time.Duration // of one wait; nil: for ever
	tell    *progress

	taken  int
	inHand []uint64 // seqs of the last messages taken, those that may not be out yet
}

// maxTake bounds what a receiver has in hand: it is lost if the process is killed.
const maxTake = 256

const (
	lazyGC    = 800
	largeBody = 64 << 10
)

// run receives until it has what it wants, a wait times out or something fails. It takes as much as is there at once, brings it out
// before it waits, and never takes more than it wants.
func (r *receiver) run(ctx context.Context, out sink) error {
	most := out.batch()
	if most == 0 {
		most = min(r.q.MaxBatch(), maxTake)
	}
	// Bodies are garbage as soon as they are written. With few live bytes the collector would run all the time, at half of the
	// speed; it may let some tens of megabytes pile up, unless bodies are large.
	defer debug.SetGCPercent(debug.SetGCPercent(lazyGC))
	for r.want < 0 || r.taken < r.want {
		if err := ctx.Err(); err != nil {
			return r.end(out, err)
		}
		n := most
		if r.want >= 0 {
			n = min(n, r.want-r.taken)
		}
		ms, err := r.q.TryReceiveBatch(n, r.filter)
		if errors.Is(err, kumquat.ErrEmpty) {
			if err := out.flush(); err != nil {
				return r.lost(out, err)
			}
			ms, err = r.waitFor(ctx, n)
		}
		if err != nil {
			return r.end(out, err)
		}
		r.take(out, ms)
		for i := range ms {
			if len(ms[i].Body) > largeBody {
				debug.SetGCPercent(100)
			}
			if err := out.write(&ms[i]); err != nil {
				return r.lost(out, err)
			}
		}
		r.tell.show(r.taken)
	}
	if err := out.flush(); err != nil {
		return r.lost(out, err)
	}
	return nil
}

// take notes what is in hand.
func (r *receiver) take(out sink, ms []kumquat.Message) {
	if out.done() == r.taken {
		r.inHand = r.inHand[:0]
	}
	r.taken += len(ms)
	for i := range ms {
		r.inHand = append(r.inHand, ms[i].Seq)
	}
}

func (r *receiver) waitFor(ctx context.Context, n int) ([]kumquat.Message, error) {
	ctx, cancel := bounded(ctx, r.timeout)
	defer cancel()
	return r.q.ReceiveBatch(ctx, n, r.filter)
}

// end flushes and returns err, with how far it came if that is less than was wanted.
func (r *receiver) end(out sink, err error) error {
	if ferr := out.flush(); ferr != nil {
		return r.lost(out, ferr)
	}
	if r.taken == 0 || r.want < 0 {
		return err
	}
	return toldError{fmt.Sprintf("%d of %s received", r.taken, plural(r.want, "message")), err}
}

// lost says which messages were taken out of the queue and did not get where they should.
func (r *receiver) lost(out sink, err error) error {
	gone := r.taken - out.done()
	if gone <= 0 {
		return err
	}
	text := plural(gone, "message") + " received and not passed on"
	if seqs := r.inHand[len(r.inHand)-gone:]; seqs[0] != 0 {
		text += fmt.Sprintf(" (seq %d", seqs[0])
		if gone > 1 {
			text += fmt.Sprintf(" to %d", seqs[gone-1])
		}
		text += ")"
	}
	if errors.Is(err, syscall.EPIPE) {
		text += "; the reader of the pipe may have left more unread"
	}
	return toldError{text, err}
}
