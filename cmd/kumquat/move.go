package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

// carryFlags are those that move and copy have in common.
type carryFlags struct {
	filterFlags
	n        countValue
	strip    bool
	nonblock bool
	timeout  time.Duration
	wait     *time.Duration // timeout, if it was given
	create   bool
	asJSON   bool
}

func (o *carryFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.VarP(&o.n, "count", "n", "at most this many messages, 0: all")
	f.BoolVar(&o.strip, "strip", false, "leave out what DST cannot carry: priority, type, metadata")
	f.BoolVar(&o.create, "create", false, "create DST, with the defaults of create, if it is missing")
	f.DurationVar(&o.timeout, "timeout", 0, "wait for room in DST at most this long for each message (default: for ever)")
	f.BoolVar(&o.nonblock, "nonblock", false, "do not wait for room in DST")
	f.BoolVar(&o.asJSON, "json", false, "print one line of JSON")
	o.filterFlags.add(c)
	c.MarkFlagsMutuallyExclusive("timeout", "nonblock")
}

// check completes the flags once they are parsed.
func (o *carryFlags) check(cmd *cobra.Command) error {
	if o.timeout < 0 {
		return usagef("--timeout is below 0")
	}
	if cmd.Flags().Changed("timeout") {
		o.wait = &o.timeout
	}
	return nil
}

const strippedHelp = `A kernel queue carries bodies, and POSIX a priority, System V a type; named sysv+priority:0xKEY it carries priorities (a priority P
is the type 32768-P). A message that has more stays where it is and ends the command with exit code 1, unless --strip leaves out what
DST cannot carry. Times, sender and attempts are those of DST anew.`

func moveCommand(a *app) *cobra.Command {
	var o carryFlags
	var resume bool
	c := &cobra.Command{
		Use:   "move SRC DST [flags]",
		Short: "Move messages from one queue to another",
		Long: `Move the messages that wait in SRC to DST, in the order of receiving, until SRC is empty, or those that match. The queues may be of
any two kinds of this machine: /name, posix:/name, sysv:0xKEY. Delayed messages stay until they are due.

` + strippedHelp + `

Nothing is lost when it is killed. The message in hand lies in a small file beside the queues, kumquat-move.* in /dev/shm, and the next
move from SRC to DST sends it first; --resume alone sends what is left of all moves of this user. It may then arrive twice: if the
kill came between the send and the note of it; and from the engine also if another receiver took that message in the moment before.

Two cases can harm one message, and both need that others use SRC at the same moment, and a kill within the microsecond after a message
was taken. From the engine, one that was taken in place of the expected one (a more urgent message came, or another receiver took that)
is lost. From the kernel, a binary body may come without its last byte, once in some hundred such kills: the kernel hands out the length
apart from the body. Text (UTF-8) never does, nor what move takes out of System V in the order of sending.

A full DST makes it wait. When that ends without success the message in hand goes back to SRC, behind those of its priority. The exit
code is 4 if -n messages were wanted and SRC had fewer.`,
		Example: `  kumquat move posix:/orders /orders
  kumquat move /orders sysv+priority:0x41000001 -n 100
  kumquat move sysv:0x41000001 /errors --type 7 --create
  kumquat move --resume`,
		Args: func(cmd *cobra.Command, args []string) error {
			if resume {
				return arguments(0, 0)(cmd, args)
			}
			return carryArguments(cmd, args)
		},
		ValidArgsFunction: queueNames(2),
	}
	o.add(c)
	c.Flags().BoolVar(&resume, "resume", false, "send what killed moves of this user had in hand, and move nothing else")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.check(cmd); err != nil {
			return err
		}
		if resume {
			return runResume(cmd.Context(), a, &o)
		}
		return runMove(cmd.Context(), a, &o, args[0], args[1])
	}
	return c
}

// carryArguments names the one that is missing.
func carryArguments(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 1:
		return fmt.Errorf("DST is missing: %s", cmd.UseLine())
	case len(args) > 2:
		return fmt.Errorf("too many arguments, from %q on: %s", args[2], cmd.UseLine())
	}
	return arguments(1, 2)(cmd, args)
}

// openTarget opens DST.
func (o *carryFlags) openTarget(ctx context.Context, name string) (*target, error) {
	q, err := open(ctx, name, &kumquat.Options{Create: o.create})
	if err != nil {
		return nil, err
	}
	t, err := newTarget(ctx, q, o.strip)
	if err != nil {
		q.Close()
		return nil, err
	}
	t.try, t.timeout = o.nonblock, o.wait
	return t, nil
}

// mover moves messages with a journal.
type mover struct {
	from *kumquat.Queue
	src  source
	to   *target
	j    *journal

	moved int
	tell  *progress
}

func runMove(ctx context.Context, a *app, o *carryFlags, from, to string) (err error) {
	t, err := o.openTarget(ctx, to)
	if err != nil {
		return err
	}
	defer t.q.Close()
	j, resumed, err := acquireJournal(ctx, o, t, &route{From: from, To: to, IPC: ipcNamespace(), Strip: o.strip})
	if err != nil {
		return err
	}
	defer func() { err = keepFirst(err, j.close()) }()
	m := &mover{to: t, j: j, moved: resumed}
	if resumed > 0 {
		a.note("%s of an earlier call, which was killed, sent", plural(resumed, "message"))
	}
	if m.from, err = open(ctx, from, nil); err != nil {
		return m.told(err)
	}
	defer m.from.Close()
	r, err := rowOf(ctx, m.from)
	if err != nil {
		return err
	}
	other, err := rowOf(ctx, t.q)
	if err != nil {
		return err
	}
	if identity(&r) == identity(&other) {
		return usagef("%s and %s are the same queue", from, to)
	}
	if m.src, err = newSource(ctx, m.from, o.filter(), t); err != nil {
		return err
	}
	m.tell = a.progress("moved", r.Messages, false)
	err = m.run(ctx, o.n.n)
	m.tell.end()
	if err != nil {
		return m.told(err)
	}
	a.carried("moved", from, to, m.moved, o.asJSON)
	return nil
}

func keepFirst(err, later error) error {
	if err != nil {
		return err
	}
	return later
}

// carried prints how many messages were moved or copied.
func (a *app) carried(done, from, to string, n int, asJSON bool) {
	switch {
	case asJSON:
		a.out.Write(line(map[string]any{"from": from, "to": to, done: n}))
	case a.outTerm:
		fmt.Fprintf(a.out, "%s %s\n", plural(n, "message"), done)
	default:
		fmt.Fprintln(a.out, n)
	}
}

func (m *mover) told(err error) error {
	return toldError{fmt.Sprintf("%s moved", plural(m.moved, "message")), err}
}

// run moves until the source is empty, or n messages, if n is not 0.
func (m *mover) run(ctx context.Context, n int) error {
	for n == 0 || m.moved < n {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := m.src.take(ctx, m.j)
		if errors.Is(err, kumquat.ErrEmpty) {
			if n == 0 {
				return nil
			}
			return err
		}
		if err != nil {
			return err
		}
		if err := deliver(ctx, m.j, m.to); err != nil {
			return m.putBack(err)
		}
		m.moved++
		m.tell.show(m.moved)
	}
	return nil
}

// deliver sends the message in the journal. Killed between the send and the note of it, the message is sent once more by the next call.
func deliver(ctx context.Context, j *journal, t *target) error {
	x, err := j.read()
	if err != nil {
		return err
	}
	if x, err = t.fit(&x); err != nil {
		return err
	}
	if err := t.send(ctx, x); err != nil {
		return err
	}
	j.set(holdsNothing)
	return nil
}

// putBack gives the message in hand back to the source, since it could not be sent. Where that has no room it stays in the journal.
func (m *mover) putBack(why error) error {
	x, err := m.j.read()
	if err == nil {
		x.Seq, x.Sender = 0, 0
		err = m.from.TrySend(x)
	}
	if err != nil {
		return hintError{fmt.Errorf("%w; and the message in hand could not go back (%v): it is kept in %s", why, err, m.j.path),
			"kumquat move --resume sends it"}
	}
	m.j.set(holdsNothing)
	return why
}

// acquireJournal returns a journal for the route that nobody uses, and makes good what killed calls have left in any of the route's: it
// returns how many messages were sent.
func acquireJournal(ctx context.Context, o *carryFlags, t *target, r *route) (mine *journal, sent int, err error) {
	defer func() {
		if err != nil && mine != nil {
			err = keepFirst(err, mine.close())
			mine = nil
		}
	}()
	for _, path := range journalPaths(r) {
		var make *route
		if mine == nil {
			make = r
		}
		j, err := openJournal(path, make)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, errAtWork), errors.Is(err, fs.ErrPermission), errors.Is(err, kumquat.ErrPermission):
			continue // of another user, or another call's
		case err != nil:
			return mine, sent, err
		}
		if j.state() != holdsNothing && j.route.same(r) {
			n, err := finish(ctx, j, t)
			sent += n
			if err != nil {
				j.close()
				return mine, sent, toldError{fmt.Sprintf("the message that a killed call had in hand is still in %s", path), err}
			}
		}
		switch {
		case mine != nil:
			err = j.close()
		case j.state() != holdsNothing: // of another route: the names happen to give the same path
			err = j.close()
		default:
			mine, err = j, j.setRoute(r)
		}
		if err != nil {
			return mine, sent, err
		}
	}
	if mine == nil {
		return nil, sent, fmt.Errorf("%w: %d calls are at work from %s to %s, or %s may not be written to", kumquat.ErrLimit, len(journalPaths(r)), r.From, r.To,
			journalDir())
	}
	return mine, sent, nil
}

// finish sends what a killed call had in hand, if it had.
func finish(ctx context.Context, j *journal, t *target) (sent int, err error) {
	src, done, err := sourceOf(ctx, j.route.From)
	if err != nil {
		return 0, err
	}
	defer done()
	if err := src.recover(ctx, j); err != nil || j.state() == holdsNothing {
		return 0, err
	}
	with := *t
	with.strip = with.strip || j.route.Strip
	if err := deliver(ctx, j, &with); err != nil {
		return 0, err
	}
	return 1, nil
}

// sourceOf opens the queue that a killed call moved out of. If it is gone, what is in the journal alone decides.
func sourceOf(ctx context.Context, name string) (source, func() error, error) {
	q, err := kumquat.Open(ctx, name, nil)
	switch {
	case errors.Is(err, kumquat.ErrNotFound), errors.Is(err, kumquat.ErrRemoved):
		var s source = &engineSource{}
		switch kindOf(name) {
		case posixKind:
			s = &posixSource{fd: -1}
		case sysvKind:
			s = &sysvSource{id: -1, priorities: isByPriority(name)}
		}
		return s, func() error { return nil }, nil
	case err != nil:
		return nil, nil, err
	}
	s, err := newSource(ctx, q, kumquat.Filter{}, nil)
	if err != nil {
		q.Close()
		return nil, nil, err
	}
	return s, q.Close, nil
}

// runResume sends what is left in all journals of this user. One that fails does not keep the others.
func runResume(ctx context.Context, a *app, o *carryFlags) error {
	paths, err := filepath.Glob(filepath.Join(literal(journalDir()), fmt.Sprintf("%s%d.*", journalPrefix, os.Geteuid())))
	if err != nil {
		return err
	}
	var first error
	total := 0
	for _, path := range paths {
		n, err := resumeOne(ctx, o, path)
		total += n
		if err != nil {
			if first == nil {
				first = err
			}
			a.say(errorText(ctx, fmt.Errorf("%s: %w", path, err)))
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	switch {
	case o.asJSON:
		a.out.Write(line(map[string]any{"moved": total}))
	case a.outTerm:
		fmt.Fprintf(a.out, "%s moved\n", plural(total, "message"))
	default:
		fmt.Fprintln(a.out, total)
	}
	if first != nil {
		return quietError{exitCode(ctx, first)}
	}
	return nil
}

func resumeOne(ctx context.Context, o *carryFlags, path string) (n int, err error) {
	j, err := openJournal(path, nil)
	if errors.Is(err, errAtWork) || errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	defer func() { err = keepFirst(err, j.close()) }()
	if j.state() == holdsNothing {
		return 0, nil
	}
	if (inKernel(j.route.From) || inKernel(j.route.To)) && j.route.IPC != ipcNamespace() {
		return 0, fmt.Errorf("%w: it is of a move from %s to %s in another IPC namespace, %s", kumquat.ErrNotFound, j.route.From, j.route.To, j.route.IPC)
	}
	t, err := o.openTarget(ctx, j.route.To)
	if err != nil {
		return 0, err
	}
	defer t.q.Close()
	return finish(ctx, j, t)
}
