package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// process is what /proc says of one.
type process struct {
	pid     int
	command string
	uid     int
	state   string // as ps has it; empty: there is none
	started time.Time
}

// alive reports whether it still runs its program.
func (p *process) alive() bool { return p.state != "" && p.state != "Z" && p.state != "X" }

// readProcess looks a process up. One that is not there has no state.
func readProcess(pid int) process {
	p := process{pid: pid}
	base := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(base + "stat")
	if err != nil {
		return p
	}
	// "12 (a name) with) blanks) S 1 …": what follows the last bracket has no brackets.
	i, j := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if i < 0 || j < i {
		return p
	}
	f := strings.Fields(string(stat[j+1:]))
	if len(f) < 20 {
		return p
	}
	p.command, p.state = string(stat[i+1:j]), f[0]
	if ticks, err := strconv.ParseInt(f[19], 10, 64); err == nil {
		p.started = bootTime().Add(time.Duration(ticks) * time.Second / userHZ)
	}
	if line, err := os.ReadFile(base + "cmdline"); err == nil && len(line) > 0 {
		p.command = strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
	}
	var st unix.Stat_t
	if unix.Stat(base, &st) == nil {
		p.uid = int(st.Uid)
	}
	return p
}

const userHZ = 100 // of the times in /proc, on every machine that Go runs on

// bootTime is when the machine started, to a second.
var bootTime = sync.OnceValue(func() time.Time {
	b, _ := os.ReadFile("/proc/stat")
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "btime "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); err == nil {
				return time.Unix(n, 0)
			}
		}
	}
	return time.Time{}
})

// waiter is a thread that is inside msgsnd or msgrcv.
type waiter struct {
	pid   int
	sends bool
}

// kernelUsers is who uses the kernel's queues, as far as /proc lets this process see.
type kernelUsers struct {
	open   *posix.Holders   // POSIX: who has which open
	inside map[int][]waiter // System V: who sleeps in which, by identifier
	closed int              // processes whose descriptors could not be inspected: they may have any POSIX queue open
	hidden int              // processes whose threads could not be inspected: they may wait at any System V queue
	whole  bool             // there can be no others than those
}

// findUsers looks through all processes and their threads.
func findUsers() (*kernelUsers, error) {
	open, err := posix.ReadHolders()
	if err != nil {
		return nil, err
	}
	u := &kernelUsers{open: open, inside: map[int][]waiter{}, closed: len(open.Hidden), whole: open.Whole}
	names, err := readNames("/proc")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && !u.threads(pid) {
			u.hidden++
		}
	}
	return u, nil
}

// threads notes which threads of a process are inside the calls of System V. It reports false if that may not be seen.
func (u *kernelUsers) threads(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/task/", pid)
	names, err := readNames(dir)
	if err != nil {
		return gone(err)
	}
	for _, n := range names {
		b, err := os.ReadFile(dir + n + "/syscall")
		if err != nil {
			if gone(err) && exists(dir+n+"/syscall") || !gone(err) {
				return false
			}
			if exists(dir + n) { // a kernel that does not show it
				return false
			}
			continue
		}
		if id, sends, ok := parseCall(string(b)); ok {
			u.inside[id] = append(u.inside[id], waiter{pid, sends})
		}
	}
	return true
}

// gone reports whether err says that there is no such process (any more).
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// call is a system call that waits at a System V queue: its number in the C tables of 64-bit programs and of 32-bit ones, and which
// of its arguments is the identifier. The 32-bit numbers mean nothing that could wait to a 64-bit program.
type call struct {
	number, arg int
	sends       bool
}

var msgCalls = map[string][]call{
	"amd64": {{69, 0, true}, {70, 0, false}, {400, 0, true}, {401, 0, false}, {117, 1, false}},
	"arm64": {{189, 0, true}, {188, 0, false}, {301, 0, true}, {302, 0, false}, {117, 1, false}},
}

// parseCall reads /proc/PID/task/TID/syscall: "70 0x8001 0x7f… …", or "running", or "-1 …".
func parseCall(line string) (id int, sends, ok bool) {
	f := strings.Fields(line)
	if len(f) < 3 {
		return 0, false, false
	}
	n, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		return 0, false, false
	}
	n &^= 0x40000000 // x32
	for _, c := range msgCalls[runtime.GOARCH] {
		if int64(c.number) != n {
			continue
		}
		v, err := strconv.ParseUint(f[1+c.arg], 0, 64)
		if err != nil {
			return 0, false, false
		}
		return int(int32(v)), c.sends, true
	}
	return 0, false, false
}

// The answers of inUse.
const (
	inUse   = "in use"
	unused  = "unused"
	unknown = "cannot tell"
)

// finding is whether a queue is used, and why it is thought so.
type finding struct {
	state string
	why   string
}

// judge says whether anybody uses the queue. What could not be inspected counts as a user. With neverUsed a System V queue that nobody
// has sent to or received from is unused; the kernel does not tell who made it, who may be about to use it.
func (u *kernelUsers) judge(r *row, neverUsed bool) finding {
	switch {
	case r.kind == engineKind && r.Err != nil:
		return finding{unknown, "it cannot be read"}
	case r.kind == engineKind && r.Handles > 0:
		return finding{inUse, plural(r.Handles, "handle") + " open"}
	case r.kind == engineKind:
		return finding{unused, "no process has it open"}
	}
	v := finding{unknown, "it cannot be inspected"}
	switch {
	case r.posix != nil:
		if h := u.open.Of(*r.posix); len(h) > 0 {
			return finding{inUse, fmt.Sprintf("process %d (%s) has it open", h[0].PID, h[0].Command)}
		}
		v = finding{unused, "no process has it open"}
	case r.sysv != nil:
		v = u.judgeSysv(r.sysv, neverUsed)
	}
	hidden := u.hiddenFor(r)
	switch {
	case v.state != unused:
	case hidden > 0:
		v = finding{unknown, plural(hidden, "process", "processes") + " could not be inspected: root can"}
		if os.Geteuid() == 0 {
			v.why = plural(hidden, "process", "processes") + " could not be inspected: this root lacks rights over them"
		}
	case !u.whole:
		v = finding{unknown, "processes of other PID namespaces cannot be seen from here, or /proc is mounted with hidepid: run it as root of the machine"}
	}
	return v
}

// hiddenFor is how many processes could not be inspected for users of a queue of this kind.
func (u *kernelUsers) hiddenFor(r *row) int {
	if r.sysv != nil {
		return u.hidden
	}
	return u.closed
}

func (u *kernelUsers) judgeSysv(s *sysv.Status, neverUsed bool) finding {
	if w := u.inside[s.ID]; len(w) > 0 {
		return finding{inUse, fmt.Sprintf("process %d waits at it", w[0].pid)}
	}
	sender, receiver := lastUser(s.SendPID, s.LastSend), lastUser(s.RecvPID, s.LastRecv)
	for _, p := range []party{sender, receiver} {
		if p.elsewhere() {
			return finding{unknown, "its last user is in another PID namespace"}
		}
		if p.alive {
			return finding{inUse, fmt.Sprintf("process %d (%s) was the last to use it, and lives", p.pid, p.command)}
		}
	}
	switch {
	case sender.never() && receiver.never() && !neverUsed:
		return finding{unknown, "nobody has used it yet, and who made it is not known (--never-used counts it)"}
	case sender.never() && receiver.never():
		return finding{unused, "nobody has ever used it"}
	case sender.never():
		return finding{unused, fmt.Sprintf("its last receiver, process %d, is gone", receiver.pid)}
	case receiver.never():
		return finding{unused, fmt.Sprintf("its last sender, process %d, is gone", sender.pid)}
	}
	return finding{unused, fmt.Sprintf("its last sender and receiver, processes %d and %d, are gone", sender.pid, receiver.pid)}
}

// party is who was the last to send to a System V queue, or to receive from it.
type party struct {
	pid     int // 0: nobody, or somebody in a PID namespace that cannot be seen from here
	at      time.Time
	command string // if alive
	uid     int
	state   string
	alive   bool
}

func (p *party) never() bool     { return p.at.IsZero() }
func (p *party) elsewhere() bool { return !p.at.IsZero() && p.pid == 0 }

// clockSlack is how far the times of /proc and of the queue may be apart: both are cut to seconds.
const clockSlack = 2 * time.Second

// lastUser looks up who used a queue at a time. A process that began later only has its number.
func lastUser(pid int, at time.Time) party {
	l := party{pid: pid, at: at}
	if pid == 0 || at.IsZero() {
		return l
	}
	if p := readProcess(pid); p.alive() && !p.started.After(at.Add(clockSlack)) {
		l.command, l.uid, l.state, l.alive = p.command, p.uid, p.state, true
	}
	return l
}

// text is the process for a table.
func (p *party) text() string {
	switch {
	case p.never():
		return ""
	case p.elsewhere():
		return unknownText
	case p.alive:
		return fmt.Sprintf("%d %s", p.pid, shortCommand(p.command))
	}
	return fmt.Sprintf("%d gone", p.pid)
}

// shortCommand is the name of the program without its folder and arguments.
func shortCommand(command string) string {
	first, _, _ := strings.Cut(command, " ")
	return first[strings.LastIndexByte(first, '/')+1:]
}
