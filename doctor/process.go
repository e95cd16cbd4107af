package doctor

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// call is the system call that a thread is in.
type call struct{ number, first uint64 }

// calls returns the system calls in which the threads of a process wait, as /proc tells those who may trace it; seen is false for
// others. The calls of a stopped process are those that it was stopped in.
func (m *machine) calls(pid int) (cs []call, seen bool) {
	dir := m.path("proc", strconv.Itoa(pid), "task")
	f, err := os.Open(dir)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	threads, err := f.Readdirnames(-1)
	if err != nil {
		return nil, false
	}
	for _, t := range threads {
		text, err := os.ReadFile(dir + "/" + t + "/syscall")
		if err != nil {
			continue
		}
		seen = true
		if c, is := parseCall(string(text)); is {
			cs = append(cs, c)
		}
	}
	return cs, seen
}

// parseCall reads "243 0x3 0x7ffd…", not "running" nor "-1 0x7ffd…".
func parseCall(text string) (c call, is bool) {
	f := strings.Fields(text)
	if len(f) < 2 {
		return c, false
	}
	n, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return c, false
	}
	first, err := strconv.ParseUint(strings.TrimPrefix(f[1], "0x"), 16, 64)
	return call{n, first}, err == nil
}

// sysvWaiting returns the identifiers of the System V queues at which somebody in this IPC namespace waits.
func (m *machine) sysvWaiting() map[int]bool {
	ids := map[int]bool{}
	own := m.namespace("self", "ipc")
	for _, pid := range m.pids() {
		cs, _ := m.calls(pid)
		for _, c := range cs {
			if (c.number == unix.SYS_MSGRCV || c.number == unix.SYS_MSGSND) && m.namespace(strconv.Itoa(pid), "ipc") == own {
				ids[int(int32(c.first))] = true
			}
		}
	}
	return ids
}

// state returns the letter that /proc gives to a process, and, if it stands still, why and the command that lets it go on.
func (m *machine) state(pid int) (letter, halt, fix string) {
	id := strconv.Itoa(pid)
	letter, _, _ = strings.Cut(m.status(id, "State"), " ")
	switch letter {
	case "T":
		return letter, "stopped by a signal", "kill -CONT " + id
	case "t":
		by := m.status(id, "TracerPid")
		return letter, "held by a debugger, process " + by, "kill " + by
	}
	// A frozen process looks asleep.
	if group := m.cgroup(id); group != "" && strings.Contains(m.read(cgroupDir, group, "cgroup.events"), "frozen 1") {
		return letter, "frozen, with its control group " + group, "echo 0 > " + quoted(cgroupDir+strings.TrimSuffix(group, "/")+"/cgroup.freeze")
	}
	return letter, "", ""
}

// command returns the command line of a process, or its short name.
func (m *machine) command(pid int) string {
	id := strconv.Itoa(pid)
	line := strings.TrimRight(m.read("proc", id, "cmdline"), "\x00")
	if line == "" {
		return m.status(id, "Name")
	}
	return strings.ReplaceAll(line, "\x00", " ")
}

// owner returns the effective user of a process, −1 if it is not seen.
func (m *machine) owner(pid int) int {
	f := strings.Fields(m.status(strconv.Itoa(pid), "Uid"))
	if len(f) < 2 {
		return -1
	}
	uid, err := strconv.Atoi(f[1])
	if err != nil {
		return -1
	}
	return uid
}
