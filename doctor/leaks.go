package doctor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// sysvName is a name that kumquat.Open takes, of a queue without a key too.
func sysvName(s *sysv.Status) string {
	if s.Key == sysv.Private {
		return fmt.Sprintf("sysv:id:%d", s.ID)
	}
	return "sysv:" + s.Key.String()
}

// full finds queues that have no room, so that their senders wait or fail.
func (m *machine) full() (fs []Finding) {
	const check = "queues.full"
	var found []Finding
	add := func(name, text string) {
		found = append(found, attention(check, "kumquat doctor "+quoted(name), "%s is full: %s", name, text).user())
	}
	for i := range m.posix {
		if x := &m.posix[i]; x.Err == nil && x.MaxMessages > 0 && x.Messages >= x.MaxMessages {
			add("posix:"+x.Name, fmt.Sprintf("%d of %d messages", x.Messages, x.MaxMessages))
		}
	}
	for i := range m.sysv {
		if s := &m.sysv[i]; s.QBytes > 0 && (s.Bytes >= s.QBytes || s.Messages >= s.QBytes) {
			add(sysvName(s), fmt.Sprintf("%d of %d bytes, %s", s.Bytes, s.QBytes, plural(int(s.Messages), "message")))
		}
	}
	for i := range m.engine {
		if e := &m.engine[i]; e.Err == nil && e.MaxMessages > 0 && e.Messages >= e.MaxMessages {
			add(e.Name, fmt.Sprintf("%d of %d messages", e.Messages, e.MaxMessages))
		}
	}
	found = append(short(found), m.unseen(check)...)
	if len(found) == 0 {
		return []Finding{ok(check, "no queue is full")}
	}
	return found
}

// unseen says which queues could not be listed, so that nobody takes silence for an answer.
func (m *machine) unseen(check string) (fs []Finding) {
	for _, k := range []struct {
		what string
		err  error
	}{{"POSIX", m.posixErr}, {"System V", m.sysvErr}, {"engine", m.shmErr}} {
		if k.err != nil {
			fs = append(fs, note(check, "", "the %s queues were not examined: %v", k.what, k.err))
		}
	}
	return fs
}

// short leaves the first and counts the rest.
func short(fs []Finding) []Finding {
	if len(fs) <= most {
		return fs
	}
	last := fs[most]
	last.Fix, last.Text = "", fmt.Sprintf("… and %d more", len(fs)-most)
	return append(fs[:most:most], last)
}

// leaks finds queues that nobody uses any more. Queues outlive processes on purpose, so what is said is what is known: who had it.
func (m *machine) leaks() (fs []Finding) {
	const check = "queues.leaked"
	fs = append(fs, m.unusedPosix(check)...)
	fs = append(fs, m.unlinkedPosix()...)
	fs = append(fs, m.unusedSysv(check)...)
	fs = append(fs, m.unusedEngine(check)...)
	fs = append(fs, m.unseen(check)...)
	if len(fs) == 0 {
		fs = append(fs, ok(check, "no queue is without a user"))
	}
	return fs
}

// blind says why a process may have been overlooked; "" if none can have been.
func (m *machine) blind() string {
	switch h := m.holders; {
	case h == nil:
		return "/proc cannot be read"
	case len(h.Hidden) > 0:
		return plural(len(h.Hidden), "process") + " of other users may not be inspected; root may"
	case !h.Whole:
		return "processes outside this PID namespace, or hidden by /proc, are not seen"
	}
	return ""
}

func (m *machine) unusedPosix(check string) (fs []Finding) {
	blind := m.blind()
	for _, x := range m.posix {
		if m.holders == nil || len(m.holders.Of(x)) > 0 {
			continue
		}
		what := ""
		if x.Err == nil {
			what = fmt.Sprintf(", %s in it, and it takes %d bytes of RLIMIT_MSGQUEUE", waiting(x.Messages, "message"), posix.Footprint(x.MaxMessages, x.MaxSize))
		}
		if blind != "" {
			fs = append(fs, note(check, "", "no process that can be seen has posix:%s of %s open%s; %s", x.Name, m.userName(x.UID), what, blind))
			continue
		}
		fs = append(fs, m.own(attention(check, "kumquat rm "+quoted("posix:"+x.Name), "no process has posix:%s of %s open%s; if nobody comes back for it, remove it", x.Name,
			m.userName(x.UID), what), x.UID))
	}
	return short(fs)
}

// own says that the owner of a queue can mend it himself.
func (m *machine) own(f Finding, uid int) Finding {
	f.Root = f.Fix != "" && uid != m.uid
	return f
}

// unlinkedPosix finds queues that have lost their name and still count against the limits.
func (m *machine) unlinkedPosix() (fs []Finding) {
	if m.holders == nil {
		return nil
	}
	for _, x := range m.holders.Unlinked {
		var who []string
		for _, h := range m.holders.Of(x) {
			who = append(who, fmt.Sprintf("%d (%s)", h.PID, h.Command))
		}
		fs = append(fs, note("queues.unlinked", "", "posix:%s of %s was removed, but counts against the limits until those close it that have it open: %s", x.Name, m.userName(x.UID),
			strings.Join(who, ", ")))
	}
	return short(fs)
}

// fresh is an age below which a queue that nobody has used may be about to be.
const fresh = time.Minute

func (m *machine) unusedSysv(check string) (fs []Finding) {
	blind := m.blind()
	busy := map[int]bool{}
	if len(m.sysv) > 0 {
		busy = m.sysvWaiting()
	}
	for i := range m.sysv {
		s := &m.sysv[i]
		if m.now.Sub(s.Changed) < fresh || busy[s.ID] || s.SendPID > 0 && m.lived(s.SendPID, s.LastSend) ||
			s.RecvPID > 0 && m.lived(s.RecvPID, s.LastRecv) {
			continue
		}
		holds := fmt.Sprintf("%s in it, with %d bytes", waiting(int(s.Messages), "message"), s.Bytes)
		switch {
		case blind != "":
			fs = append(fs, note(check, "", "%s of %s has no user that can be seen, %s; %s", sysvName(s), m.userName(s.UID), holds, blind))
		case s.SendPID == 0 && s.RecvPID == 0:
			fs = append(fs, note(check, "", "%s of %s was made %v ago and never used; who has its id the kernel does not know", sysvName(s), m.userName(s.UID),
				m.now.Sub(s.Changed).Round(time.Second)))
		default:
			fs = append(fs, m.own(attention(check, "kumquat rm "+sysvName(s), "the processes that used %s of %s last are gone (%s), %s; if nobody comes back for it, remove it", sysvName(s),
				m.userName(s.UID), lastUsers(s), holds), s.UID))
		}
	}
	return short(fs)
}

func lastUsers(s *sysv.Status) string {
	var who []string
	if s.SendPID > 0 {
		who = append(who, fmt.Sprintf("sent: %d", s.SendPID))
	}
	if s.RecvPID > 0 {
		who = append(who, fmt.Sprintf("received: %d", s.RecvPID))
	}
	return strings.Join(who, ", ")
}

// unusedEngine: the engine's queues hold no memory but that of their messages, and are there to outlive processes.
func (m *machine) unusedEngine(check string) (fs []Finding) {
	for i := range m.engine {
		e := &m.engine[i]
		if e.Err != nil || e.Handles > 0 || m.now.Sub(e.Created) < fresh {
			continue
		}
		fs = append(fs, m.own(note(check, "kumquat rm "+quoted(e.Name), "nobody has %s of %s open, %s in it and it takes %s; if nobody comes back for it, remove it", e.Name,
			m.userName(e.UID), waiting(e.Messages, "message"), bytesText(e.Resident)), e.UID))
	}
	return short(fs)
}

// permissions finds queues that this user cannot look into, that anybody may write to, and files that are no queues.
func (m *machine) permissions() (fs []Finding) {
	const check = "permissions"
	closed := 0
	var open []Finding
	for _, x := range m.posix {
		if x.Err != nil {
			closed++
		}
		if x.Mode&0o002 != 0 {
			open = append(open, m.own(note(check, "chmod o-w "+quoted(mqueueDir+x.Name), "everybody may send to posix:%s of %s (mode %04o)", x.Name, m.userName(x.UID), x.Mode), x.UID))
		}
	}
	for i := range m.sysv {
		if s := &m.sysv[i]; s.Mode&0o002 != 0 {
			open = append(open, note(check, "", "everybody may send to %s of %s (mode %04o); msgctl with IPC_SET changes that", sysvName(s), m.userName(s.UID), s.Mode))
		}
	}
	for i := range m.engine {
		e := &m.engine[i]
		switch {
		case errors.Is(e.Err, kumquat.ErrPermission):
			closed++
		case errors.Is(e.Err, kumquat.ErrCorrupt):
			fs = append(fs, attention(check, "kumquat check "+quoted(e.Name), "%s cannot be used: %v", e.Name, e.Err).user())
		case e.Err == nil && e.Mode&0o002 != 0:
			open = append(open, m.own(note(check, "chmod o-w "+quoted(e.Path), "everybody may send to %s of %s, and damage it (mode %04o)", e.Name, m.userName(e.UID), e.Mode.Perm()), e.UID))
		}
	}
	if why := writable(m.path(m.shm)); why != nil && !os.IsNotExist(why) {
		fs = append(fs, attention(check, "chmod 1777 "+quoted(m.shm), "this user cannot make queues in %s: %v", m.shm, why))
	}
	fs = append(fs, short(open)...)
	if closed > 0 {
		fs = append(fs, note(check, "", "%s may not be read by this user, and so were not examined", plural(closed, "queue")))
	}
	if fs = append(fs, m.unseen(check)...); len(fs) == 0 {
		fs = append(fs, ok(check, "this user may make queues, and read all that are there; none is open to everybody"))
	}
	return fs
}
