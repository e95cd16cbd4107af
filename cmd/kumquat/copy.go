package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

func copyCommand(a *app) *cobra.Command {
	var o carryFlags
	var takeOut bool
	c := &cobra.Command{
		Use:   "copy SRC DST [flags]",
		Short: "Copy messages from one queue to another",
		Long: `Copy the messages that wait in SRC to DST, in the order of receiving, or those that match. SRC keeps them, and read permission for it is
enough; delayed messages are copied too, last. The queues may be of any two kinds of this machine: /name, posix:/name, sysv:0xKEY.

` + strippedHelp + `

Killed in the middle it leaves a part of the copies in DST, whole and in order; SRC is as it was. Called again it begins again.

The kernel shows nothing of a POSIX queue to those who do not take it. With --take-out its messages are moved into a queue of the
engine, /kumquat-copy.*, looked at there, and moved back at once, as move does it; others find the queue empty for that moment. Killed
in the middle the rest is in that queue, and the next copy from SRC moves it back first.`,
		Example: `  kumquat copy /orders /orders-test --create
  kumquat copy sysv:0x41000001 /look --create -n 10
  kumquat copy posix:/orders /look --create --take-out`,
		Args:              func(cmd *cobra.Command, args []string) error { return carryArguments(cmd, args) },
		ValidArgsFunction: queueNames(2),
	}
	o.add(c)
	c.Flags().BoolVar(&takeOut, "take-out", false, "copy a POSIX queue by taking its messages out and putting them back")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.check(cmd); err != nil {
			return err
		}
		if takeOut && kindOf(args[0]) != posixKind {
			return usagef("--take-out is for POSIX queues: %s can be looked into", args[0])
		}
		return runCopy(cmd.Context(), a, &o, args[0], args[1], takeOut)
	}
	return c
}

func runCopy(ctx context.Context, a *app, o *carryFlags, from, to string, takeOut bool) error {
	if kindOf(from) == posixKind && !takeOut {
		return hintError{fmt.Errorf("copy %s: %w: the kernel shows nothing of a POSIX queue to those who do not take it", from, kumquat.ErrUnsupported),
			"--take-out moves its messages into a queue of the engine and back"}
	}
	t, err := o.openTarget(ctx, to)
	if err != nil {
		return err
	}
	defer t.q.Close()
	if err := o.different(ctx, from, t); err != nil {
		return err
	}
	f := o.filter()
	var look peek
	if takeOut {
		if !f.Any() {
			return fmt.Errorf("%s: %w: a POSIX queue knows no selection; copy all, or -n of it", from, kumquat.ErrUnsupported)
		}
		ms, err := a.takeOut(ctx, from, o.n.n)
		if err != nil {
			return err
		}
		look = yieldAll(ms)
	} else {
		p, done, err := peeker(ctx, from)
		if err != nil {
			return err
		}
		defer done()
		look = p
	}
	n := 0
	told := func(err error) error { return toldError{plural(n, "message") + " copied", err} }
	tell := a.progress("copied", 0, false)
	defer tell.end()
	for m, err := range look(ctx, kumquat.PeekOptions{Filter: f, Limit: o.n.n}) {
		if err != nil {
			return told(err)
		}
		x, err := t.fit(&m)
		if err == nil {
			err = t.send(ctx, x)
		}
		if err == nil {
			n++
			err = ctx.Err()
		}
		if err != nil {
			return told(err)
		}
		tell.show(n)
	}
	tell.end()
	if o.n.n > 0 && n < o.n.n {
		return told(kumquat.ErrEmpty)
	}
	a.carried("copied", from, to, n, o.asJSON)
	return nil
}

// different fails if SRC is the queue that t has open.
func (o *carryFlags) different(ctx context.Context, from string, t *target) error {
	q, err := observe(ctx, from)
	if err != nil {
		return err
	}
	defer q.Close()
	r, err := rowOf(ctx, q)
	if err != nil {
		return err
	}
	other, err := rowOf(ctx, t.q)
	if err != nil {
		return err
	}
	if identity(&r) == identity(&other) {
		return usagef("%s and %s are the same queue", from, t.q.Name())
	}
	return nil
}

func yieldAll(ms []kumquat.Message) peek {
	return func(context.Context, kumquat.PeekOptions) iter.Seq2[kumquat.Message, error] {
		return func(yield func(kumquat.Message, error) bool) {
			for _, m := range ms {
				if !yield(m, nil) {
					return
				}
			}
		}
	}
}

// takeOut returns the messages of a POSIX queue, n at most if n is not 0. They are moved into a side queue of the engine, read there
// and moved back, all of them: only so is the order the same afterwards.
func (a *app) takeOut(ctx context.Context, from string, n int) (ms []kumquat.Message, err error) {
	side := sideName(from)
	q, s, err := a.openSide(ctx, side, from)
	if err != nil {
		return nil, err
	}
	defer q.Close() // open as long as this call is at work
	kept := func(err error) error {
		return hintError{err, "what was taken out of " + from + " is in " + side + ": kumquat move " + side + " " + shellWord(from) + " puts it back"}
	}
	if s.Messages > 0 {
		a.note("putting back %s that a killed copy had taken out of %s", plural(s.Messages, "message"), from)
		if err := moveAll(ctx, side, from); err != nil {
			return nil, kept(err)
		}
	}
	err = moveAll(ctx, from, side)
	if err == nil {
		err = collect(ctx, side, n, &ms)
	}
	back := ctx
	if ctx.Err() != nil { // a signal ends the copy, but not before all is back, if there is room
		var cancel context.CancelFunc
		back, cancel = context.WithTimeout(context.WithoutCancel(ctx), backTime)
		defer cancel()
	}
	if berr := moveAll(back, side, from); berr != nil {
		return nil, kept(keepFirst(err, berr))
	}
	if err != nil {
		return nil, err
	}
	return ms, kumquat.Remove(ctx, side)
}

// backTime is how long a copy that was ended by a signal waits for room to put back what it has taken out.
const backTime = 10 * time.Second

// sideName is the queue that holds what a copy has taken out of a POSIX queue.
func sideName(from string) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %s", from, ipcNamespace())
	return fmt.Sprintf("/kumquat-copy.%016x", h.Sum64())
}

// openSide makes the side queue, or finds that of a killed copy. One that somebody has open is at work.
func (a *app) openSide(ctx context.Context, side, from string) (*kumquat.Queue, kumquat.Stats, error) {
	r, err := rowsMatching(ctx, from)
	if err != nil {
		return nil, kumquat.Stats{}, err
	}
	if len(r) != 1 || r[0].posix == nil {
		return nil, kumquat.Stats{}, fmt.Errorf("copy %s: %w", from, kumquat.ErrNotFound)
	}
	uid := os.Geteuid()
	// Others may send while the messages are out: there is room for more than came from there.
	o := &kumquat.Options{Create: true, Exclusive: true, Owner: &uid, MaxMessages: max(65536, r[0].MaxMessages), MaxSize: r[0].MaxSize}
	q, err := kumquat.Open(ctx, side, o)
	if errors.Is(err, kumquat.ErrExists) {
		infos, lerr := kumquat.List(ctx, side)
		if lerr == nil && len(infos) == 1 && infos[0].Err == nil && infos[0].Handles > 0 {
			return nil, kumquat.Stats{}, fmt.Errorf("copy %s: %w: another copy is at work with %s", from, kumquat.ErrExists, side)
		}
		o.Exclusive = false
		q, err = kumquat.Open(ctx, side, o)
	}
	if err != nil {
		return nil, kumquat.Stats{}, err
	}
	s, err := q.Stat(ctx)
	return q, s, err
}

// moveAll is the command move without its words. What comes into from while it runs is not awaited.
func moveAll(ctx context.Context, from, to string) (err error) {
	o := &carryFlags{}
	t, err := o.openTarget(ctx, to)
	if err != nil {
		return err
	}
	defer t.q.Close()
	j, _, err := acquireJournal(ctx, o, t, &route{From: from, To: to, IPC: ipcNamespace()})
	if err != nil {
		return err
	}
	defer func() { err = keepFirst(err, j.close()) }()
	m := &mover{to: t, j: j}
	if m.from, err = kumquat.Open(ctx, from, nil); err != nil {
		return err
	}
	defer m.from.Close()
	s, err := m.from.Stat(ctx)
	if err != nil || s.Messages == 0 {
		return err
	}
	if m.src, err = newSource(ctx, m.from, kumquat.Filter{}, t); err != nil {
		return err
	}
	if err = m.run(ctx, s.Messages); errors.Is(err, kumquat.ErrEmpty) {
		err = nil
	}
	return err
}

// collect reads what is in the side queue.
func collect(ctx context.Context, side string, n int, ms *[]kumquat.Message) error {
	q, err := kumquat.Open(ctx, side, &kumquat.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer q.Close()
	for m, err := range q.Peek(ctx, kumquat.PeekOptions{Limit: n}) {
		if err != nil {
			return err
		}
		*ms = append(*ms, m)
	}
	return nil
}
