package doctor

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// lookEvery is the time between two looks at a queue of the kernel.
const lookEvery = time.Millisecond

// tally counts how the number of messages rises and falls.
type tally struct {
	last        int
	rose, fell  uint64
	looks, full int // how often it was looked at, and found full
}

func (t *tally) add(messages int, full bool) {
	if t.looks > 0 {
		t.rose += uint64(max(messages-t.last, 0))
		t.fell += uint64(max(t.last-messages, 0))
	}
	t.last = messages
	t.looks++
	if full {
		t.full++
	}
}

// watch calls look now and then, until the time is over.
func watch(ctx context.Context, over time.Duration, look func() error) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for end := time.Now().Add(over); ; {
		if err := look(); err != nil {
			return err
		}
		if !time.Now().Before(end) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *sight) counted(t *tally, took time.Duration) {
	s.AtLeast = true
	s.sent, s.received = t.rose, t.fell
	s.oftenFull = 2*t.full >= t.looks
	s.Sent, s.Received = float64(t.rose)/took.Seconds(), float64(t.fell)/took.Seconds()
}

// watchPosix looks at a POSIX queue. Who has it open is in /proc; its inode tells when something was sent or received last.
func (m *machine) watchPosix(ctx context.Context, url string, over time.Duration) (*sight, error) {
	q, err := posix.Open(strings.TrimPrefix(url, "posix:"), posix.ReadOnly|posix.NonblockFlag, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	defer q.Close()
	first, err := q.Attr()
	if err != nil {
		return nil, err
	}
	touched, known := touchedAt(q)
	var t tally
	begin := time.Now()
	err = watch(ctx, over, func() error {
		a, err := q.Attr()
		t.add(a.Messages, a.Messages >= a.MaxMessages)
		return err
	})
	if err != nil {
		return nil, err
	}
	took := time.Since(begin)
	x, err := q.Stat()
	switch {
	case err != nil:
		return nil, err
	case x.Unlinked:
		return nil, fmt.Errorf("%w: %s was removed while it was watched", kumquat.ErrRemoved, url)
	}
	s := &sight{began: first.Messages}
	s.Kind, s.Messages, s.MaxMessages, s.Bytes = "posix", x.Messages, x.MaxMessages, x.Bytes
	s.counted(&t, took)
	again, still := touchedAt(q)
	s.quiet = known && still && again == touched && t.fell == 0
	s.moved = known && still && again != touched
	m.holders, err = posix.ReadHolders()
	if s.blind = m.blind(); err != nil {
		s.blind = err.Error()
	}
	if m.holders != nil {
		m.posixUsers(s, m.holders.Of(x))
	}
	if x.NotifyPID > 0 {
		s.notify = (&User{PID: x.NotifyPID, Command: m.command(x.NotifyPID)}).String()
	}
	return s, nil
}

// touchedAt returns when something was sent or received last: the kernel keeps the inode's times.
func touchedAt(q *posix.Queue) (unix.Timespec, bool) {
	fd, err := q.FD()
	if err != nil {
		return unix.Timespec{}, false
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Mtim, err == nil
}

// posixUsers adds those that have the queue open. One that has it open for both is taken for a reader unless it waits to send: the
// kernel does not remember who received.
func (m *machine) posixUsers(s *sight, holders []posix.Holder) {
	for _, h := range holders {
		if h.PID == self {
			continue
		}
		u := User{PID: h.PID, Command: h.Command, Name: h.User, Receives: h.Receives, Sends: h.Sends}
		u.State, u.Halted, u.goOn = m.state(h.PID)
		cs, _ := m.calls(h.PID)
		for _, c := range cs {
			if !slices.Contains(h.FDs, int(int32(c.first))) {
				continue
			}
			switch c.number {
			case unix.SYS_MQ_TIMEDRECEIVE:
				u.Waits = "to receive"
			case unix.SYS_MQ_TIMEDSEND:
				if u.Halted == "" {
					s.senders++
				}
				u.Waits = "to send"
			}
		}
		s.Users = append(s.Users, u)
	}
}

// sysvID finds the identifier of a queue.
func sysvID(ctx context.Context, url string) (int, error) {
	q, err := kumquat.Open(ctx, url, &kumquat.Options{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer q.Close()
	if _, text, is := strings.Cut(url, ":id:"); is {
		return strconv.Atoi(text) // that much Open has checked
	}
	list, err := kumquat.List(ctx, url)
	switch {
	case err != nil:
		return 0, err
	case len(list) != 1:
		return 0, fmt.Errorf("%w: %s", kumquat.ErrNotFound, url)
	}
	_, name, _ := strings.Cut(list[0].Name, ":")
	if text, is := strings.CutPrefix(name, "id:"); is {
		return strconv.Atoi(text)
	}
	key, err := strconv.ParseUint(strings.TrimPrefix(name, "0x"), 16, 32)
	if err != nil {
		return 0, err
	}
	h, err := sysv.Get(sysv.Key(int32(uint32(key))), 0, 0)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	return h.ID(), nil
}

// watchSysv looks at a System V queue. Nobody has it open: its users are those that sent or received last, at any of the looks, and
// those that wait at it now.
func (m *machine) watchSysv(ctx context.Context, url string, over time.Duration) (*sight, error) {
	id, err := sysvID(ctx, url)
	if err != nil {
		return nil, err
	}
	q, err := sysv.FromID(id)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	first, err := q.Stat()
	if err != nil {
		return nil, err
	}
	users := map[int]*User{}
	last := first
	var t tally
	begin := time.Now()
	err = watch(ctx, over, func() (err error) {
		if last, err = q.Stat(); err != nil {
			return err
		}
		t.add(int(last.Messages), last.Bytes >= last.QBytes || last.Messages >= last.QBytes)
		m.sysvLast(users, &last)
		return nil
	})
	if err != nil {
		return nil, err
	}
	took := time.Since(begin)
	s := &sight{began: int(first.Messages)}
	s.Kind, s.Messages, s.Bytes, s.MaxBytes = "sysv", int(last.Messages), last.Bytes, last.QBytes
	s.counted(&t, took)
	s.quiet = t.fell == 0 && last.LastRecv.Unix() < begin.Unix() // the kernel tells seconds
	s.moved = !last.LastRecv.Equal(first.LastRecv)
	s.blind = m.sysvWaiters(s, users, id)
	if last.RecvPID > 0 && users[last.RecvPID] == nil && last.RecvPID != self {
		s.past = fmt.Sprintf("process %d, which received last, is gone", last.RecvPID)
	}
	for _, u := range slices.SortedFunc(maps.Values(users), func(a, b *User) int { return cmp.Compare(a.PID, b.PID) }) {
		u.State, u.Halted, u.goOn = m.state(u.PID)
		if u.Command = m.command(u.PID); u.State == "" {
			continue // it has ended meanwhile
		}
		u.Name = m.userName(m.owner(u.PID))
		s.Users = append(s.Users, *u)
	}
	return s, nil
}

// sysvLast adds the processes of the last send and the last receive, if they still live.
func (m *machine) sysvLast(users map[int]*User, st *sysv.Status) {
	add := func(pid int, at time.Time) *User {
		if pid <= 0 || pid == self {
			return &User{}
		}
		u := users[pid]
		if u == nil {
			if !m.lived(pid, at) {
				return &User{}
			}
			u = &User{PID: pid}
			users[pid] = u
		}
		return u
	}
	add(st.SendPID, st.LastSend).Sends = true
	add(st.RecvPID, st.LastRecv).Receives = true
}

// sysvWaiters adds those that wait at the queue, and returns why one may have been overlooked.
func (m *machine) sysvWaiters(s *sight, users map[int]*User, id int) (blind string) {
	own, hidden := m.namespace("self", "ipc"), 0
	for _, pid := range m.pids() {
		cs, seen := m.calls(pid)
		if s := m.status(strconv.Itoa(pid), "State"); !seen && s != "" && s[0] != 'Z' && s[0] != 'X' {
			hidden++
		}
		for _, c := range cs {
			receives, sends := c.number == unix.SYS_MSGRCV, c.number == unix.SYS_MSGSND
			if !receives && !sends || int(int32(c.first)) != id || pid == self || m.namespace(strconv.Itoa(pid), "ipc") != own {
				continue
			}
			u := users[pid]
			if u == nil {
				u = &User{PID: pid}
				users[pid] = u
			}
			if receives {
				u.Receives, u.Waits = true, "to receive"
			} else {
				u.Sends, u.Waits = true, "to send"
				s.senders++
			}
		}
	}
	switch {
	case hidden > 0:
		return "of " + plural(hidden, "process") + " it cannot be seen whether they wait at it; root can"
	case m.namespace("self", "pid") != firstPID:
		return "processes outside this PID namespace are not seen"
	}
	return ""
}

// lived reports whether the process that has this number now is the one that had it at a time: numbers are used again.
func (m *machine) lived(pid int, at time.Time) bool {
	if !m.alive(pid) {
		return false
	}
	started, known := m.started(pid)
	return !known || at.IsZero() || !started.After(at.Add(2*time.Second)) // both clocks are coarse
}

// started returns when a process was started.
func (m *machine) started(pid int) (time.Time, bool) {
	text := m.read("proc", strconv.Itoa(pid), "stat")
	// The name in parentheses may hold anything. After it come the fields from the third on; the 22nd has ticks of 1/100 s since boot.
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(f) < 20 {
		return time.Time{}, false
	}
	ticks, err := strconv.ParseInt(f[19], 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	for line := range strings.Lines(m.read("proc/stat")) {
		if text, is := strings.CutPrefix(line, "btime "); is {
			boot, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
			return time.Unix(boot, 0).Add(time.Duration(ticks) * 10 * time.Millisecond), err == nil
		}
	}
	return time.Time{}, false
}
