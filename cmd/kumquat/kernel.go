package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// What is shown of queues that the kernel keeps.

// countUsers finds out who has the queue open, if it is one of POSIX.
func (a *app) countUsers(r *row) {
	rows := []row{*r}
	countOpen(rows)
	*r = rows[0]
}

// printKernelStat prints the state of one of the kernel's queues and returns the number of lines.
func (a *app) printKernelStat(r *row) int {
	lines := 0
	put := func(label, format string, args ...any) {
		fmt.Fprintf(a.out, "%s %s\n", a.paint(fmt.Sprintf("%-12s", label), faint), escape(fmt.Sprintf(format, args...)))
		lines++
	}
	put("name", "%s", r.Name)
	switch {
	case r.posix != nil:
		a.putPosix(r, put)
	default:
		a.putSysv(r.sysv, put)
	}
	return lines
}

func (a *app) putPosix(r *row, put func(label, format string, args ...any)) {
	x := r.posix
	a.countUsers(r)
	put("messages", "%s of %s", a.countText(int64(x.Messages)), a.countText(int64(x.MaxMessages)))
	put("limit", "%s", percentText(r.fill()))
	put("bytes", "%s", a.bytesText(x.Bytes))
	put("max size", "%s", a.bytesText(int64(x.MaxSize)))
	put("kernel", "%s of RLIMIT_MSGQUEUE of its owner", a.bytesText(posix.Footprint(x.MaxMessages, x.MaxSize)))
	put("open by", "%s", openText(r.open))
	notify := "nobody"
	if x.NotifyPID != 0 {
		p := readProcess(x.NotifyPID)
		notify = fmt.Sprintf("process %d (%s), by %s", x.NotifyPID, shortCommand(p.command), notifyNames[x.NotifyKind])
	}
	put("notify", "%s", notify)
	put("mode", "%s", modeText(&r.Stats))
	put("owner", "%s", userName(x.UID))
}

func openText(o *hasOpen) string {
	switch {
	case o == nil:
		return unknownText
	case o.whole:
		return plural(o.processes, "process", "processes")
	}
	return plural(o.processes, "process", "processes") + ", and perhaps by some that could not be inspected"
}

func (a *app) putSysv(s *sysv.Status, put func(label, format string, args ...any)) {
	r := row{kind: sysvKind, sysv: s}
	put("key", "%s", s.Key)
	put("id", "%d", s.ID)
	put("messages", "%s", a.countText(s.Messages))
	put("bytes", "%s of %s", a.bytesText(s.Bytes), a.bytesText(s.QBytes))
	put("limit", "%s", percentText(r.fill()))
	put("last send", "%s", a.partyLine(lastUser(s.SendPID, s.LastSend)))
	put("last recv", "%s", a.partyLine(lastUser(s.RecvPID, s.LastRecv)))
	put("changed", "%s", a.timeText(s.Changed))
	put("mode", "%04o", s.Mode.Perm())
	put("owner", "%s", userName(s.UID))
	put("creator", "%s", userName(s.CUID))
}

func (a *app) partyLine(p party) string {
	switch {
	case p.never():
		return "never"
	case p.elsewhere():
		return "a process of another PID namespace, " + a.timeText(p.at)
	case p.alive:
		return fmt.Sprintf("process %d (%s), %s", p.pid, shortCommand(p.command), a.timeText(p.at))
	}
	return fmt.Sprintf("process %d, which is gone, %s", p.pid, a.timeText(p.at))
}

// role is a process and what it has to do with one of the kernel's queues.
type role struct {
	process
	user  string
	doing string
	since time.Time
	dead  bool
}

type roleJSON struct {
	PID     int       `json:"pid"`
	Alive   bool      `json:"alive"`
	Command string    `json:"command"`
	User    string    `json:"user"`
	UID     int       `json:"uid"`
	State   string    `json:"state"`
	Doing   string    `json:"doing"`
	Since   time.Time `json:"since,omitzero"`
}

// whoKernel shows who uses one of the kernel's queues.
func (a *app) whoKernel(ctx context.Context, q *kumquat.Queue, asJSON bool) error {
	r, err := rowOf(ctx, q)
	if err != nil {
		return err
	}
	if err := q.Close(); err != nil { // or we would be among them
		return err
	}
	users, err := findUsers()
	if err != nil {
		return err
	}
	roles := users.posixRoles(r.posix)
	if r.sysv != nil {
		roles = users.sysvRoles(r.sysv)
	}
	if asJSON {
		for _, x := range roles {
			a.out.Write(line(roleJSON{PID: x.pid, Alive: !x.dead, Command: x.command, User: x.user, UID: x.uid, State: x.state, Doing: x.doing, Since: x.since}))
		}
	} else if len(roles) > 0 {
		g := grid{
			heads: []string{"PID", "COMMAND", "USER", "STATE", "DOING", "SINCE"},
			right: []bool{true, false, false, false, false, false},
			warn:  map[int]bool{},
		}
		for i, x := range roles {
			pid, state := strconv.Itoa(x.pid), x.state
			if x.pid == 0 {
				pid = unknownText
			}
			if x.dead {
				state = "dead"
			}
			g.warn[i] = x.dead || x.state == "T" || x.state == "Z"
			g.rows = append(g.rows, []string{pid, x.command, x.user, state, x.doing, a.timeText(x.since)})
		}
		a.print(g)
	} else {
		a.note("nobody is seen to use %s", r.Name)
	}
	switch {
	case users.hiddenFor(&r) > 0:
		fmt.Fprintf(a.err, "kumquat: %s could not be inspected, and may use it too\n", plural(users.hiddenFor(&r), "process", "processes"))
	case !users.whole:
		fmt.Fprintln(a.err, "kumquat: processes of other PID namespaces, which cannot be seen from here, may use it too")
	}
	return nil
}

func (u *kernelUsers) posixRoles(x *posix.Info) (roles []role) {
	if x == nil {
		return nil
	}
	for _, h := range u.open.Of(*x) {
		p := readProcess(h.PID)
		r := role{process: process{pid: h.PID, command: h.Command, uid: h.UID, state: h.State}, user: h.User, since: p.started}
		switch {
		case h.Receives && h.Sends:
			r.doing = "open for both"
		case h.Sends:
			r.doing = "open to send"
		default:
			r.doing = "open to receive"
		}
		if h.PID == x.NotifyPID {
			r.doing += ", notified"
		}
		roles = append(roles, r)
	}
	return roles
}

func (u *kernelUsers) sysvRoles(s *sysv.Status) (roles []role) {
	for _, w := range u.inside[s.ID] {
		p := readProcess(w.pid)
		if !p.alive() {
			continue
		}
		doing := "waits to receive"
		if w.sends {
			doing = "waits to send"
		}
		roles = append(roles, role{process: p, user: userName(p.uid), doing: doing})
	}
	for _, last := range []struct {
		party
		what string
	}{{lastUser(s.SendPID, s.LastSend), "sent last"}, {lastUser(s.RecvPID, s.LastRecv), "received last"}} {
		if last.never() {
			continue
		}
		r := role{process: process{pid: last.pid}, doing: last.what, since: last.at, dead: !last.alive && !last.elsewhere()}
		if last.elsewhere() {
			r.state = unknownText
		}
		if last.alive {
			r.command, r.uid, r.state, r.user = last.command, last.uid, last.state, userName(last.uid)
		}
		roles = append(roles, r)
	}
	return roles
}

// lookEvery is how often a queue of the kernel is looked at to see what changes; the engine is sampled as often.
const lookEvery = 100 * time.Millisecond

// watchOf is Queue.Watch for queues of any kind. The kernel counts nothing, so its queues are looked at again and again: told is by
// how much the number of messages grew or shrank, and for System V that the last sender or receiver is another or later one.
func watchOf(ctx context.Context, q *kumquat.Queue) iter.Seq2[kumquat.Event, error] {
	if !inKernel(q.Name()) {
		return q.Watch(ctx)
	}
	return func(yield func(kumquat.Event, error) bool) {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		last, err := look(ctx, q)
		for ; ; last, err = lookAgain(ctx, q, &last, yield) {
			if err != nil {
				if !errors.Is(err, errWatchEnded) {
					yield(kumquat.Event{}, err)
				}
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// look returns the state of a queue of the kernel; ErrRemoved if it is there no longer.
func look(ctx context.Context, q *kumquat.Queue) (row, error) {
	r := row{kind: kindOf(q.Name())}
	r.Name = q.Name()
	var err error
	if r.Stats, err = q.Stat(ctx); err != nil {
		return r, goneError(err)
	}
	if r.Removed {
		return r, kumquat.ErrRemoved
	}
	if r.kind == sysvKind {
		if r.sysv, err = sysvStatus(ctx, q.Name()); err != nil {
			return r, goneError(err)
		}
	}
	return r, nil
}

// goneError makes ErrRemoved of the errors by which the kernel says that a queue is no longer there.
func goneError(err error) error {
	if errors.Is(err, kumquat.ErrNotFound) {
		return fmt.Errorf("%w: it was removed, or made anew", kumquat.ErrRemoved)
	}
	return err
}

// lookAgain tells what has changed since last. It ends with errWatchEnded after it has told the removal, or if nobody listens.
func lookAgain(ctx context.Context, q *kumquat.Queue, last *row, yield func(kumquat.Event, error) bool) (row, error) {
	now, err := look(ctx, q)
	e := kumquat.Event{Time: time.Now(), Messages: now.Messages}
	if errors.Is(err, kumquat.ErrRemoved) {
		e.Kind, e.Messages = kumquat.EventRemoved, 0
		yield(e, nil)
		return now, errWatchEnded
	}
	if err != nil {
		return now, err
	}
	sent, received := now.Messages-last.Messages, last.Messages-now.Messages
	if now.sysv != nil && last.sysv != nil {
		if !now.sysv.LastSend.Equal(last.sysv.LastSend) || now.sysv.SendPID != last.sysv.SendPID {
			sent = max(sent, 1)
		}
		if !now.sysv.LastRecv.Equal(last.sysv.LastRecv) || now.sysv.RecvPID != last.sysv.RecvPID {
			received = max(received, 1)
		}
	}
	for _, x := range []struct {
		kind kumquat.EventKind
		n    int
	}{{kumquat.EventSent, sent}, {kumquat.EventReceived, received}} {
		if x.n <= 0 {
			continue
		}
		e.Kind, e.N = x.kind, uint64(x.n)
		if !yield(e, nil) {
			return now, errWatchEnded
		}
	}
	return now, nil
}
