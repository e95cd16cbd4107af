package doctor

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// firstOrdinaryUID is where systemd's ordinary users begin; what those of the system own is not removed at a logout.
const firstOrdinaryUID = 1000

// nobody and the like own nothing that a logout could remove.
const nobodyUID = 65534

// removeIPC looks whether systemd-logind removes the queues of a user at his last logout: those in /dev/shm, the POSIX and the
// System V ones (logind.conf(5), RemoveIPC=, by default yes). It spares the users of the system, and those that linger.
func (m *machine) removeIPC() []Finding {
	const check = "systemd.removeipc"
	if !m.exists("run/systemd/system") {
		return []Finding{ok(check, "systemd does not run here, so no logout removes queues")}
	}
	removes, from := m.removesIPC()
	if !removes {
		return []Finding{ok(check, "no logout removes queues: RemoveIPC=no in %s", from)}
	}
	names := map[int]string{m.uid: m.userName(m.uid)}
	for _, uid := range m.owners() {
		names[uid] = m.userName(uid)
	}
	var endangered []string
	for uid, name := range names {
		if uid >= firstOrdinaryUID && uid != nobodyUID && !m.exists("var/lib/systemd/linger", name) {
			endangered = append(endangered, name)
		}
	}
	if len(endangered) == 0 {
		return []Finding{ok(check, "no logout removes the queues that are there: systemd spares those of root, of the system's users and of users that linger (RemoveIPC)")}
	}
	slices.Sort(endangered)
	fix := "loginctl enable-linger"
	for _, name := range endangered {
		fix += " " + quoted(name)
	}
	return []Finding{attention(check, fix, "systemd removes all queues of %s, of every kind, at the last logout (RemoveIPC=yes%s); for all users: RemoveIPC=no in /etc/systemd/logind.conf",
		strings.Join(endangered, ", "), from)}
}

// owners returns the users who have queues, each once.
func (m *machine) owners() (uids []int) {
	for _, x := range m.posix {
		uids = append(uids, x.UID)
	}
	for _, s := range m.sysv {
		uids = append(uids, s.UID)
	}
	for _, e := range m.engine {
		if e.Err == nil {
			uids = append(uids, e.UID)
		}
	}
	slices.Sort(uids)
	return slices.Compact(uids)
}

// removesIPC returns what RemoveIPC is, and which file says so; "" by default. Of the main files the first that is there counts; those
// of the folders are read after it, in the order of their names, and one in /etc hides those of its name elsewhere.
func (m *machine) removesIPC() (removes bool, from string) {
	dirs := []string{"etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd"}
	var files []string
	for _, d := range dirs {
		if m.exists(d, "logind.conf") {
			files = append(files, d+"/logind.conf")
			break
		}
	}
	more := map[string]string{}
	var names []string
	for _, d := range dirs {
		found, _ := filepath.Glob(m.path(d, "logind.conf.d/*.conf")) // the pattern is well formed
		for _, f := range found {
			name := filepath.Base(f)
			if more[name] == "" {
				more[name] = d + "/logind.conf.d/" + name
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	for _, n := range names {
		files = append(files, more[n])
	}
	removes = true
	for _, f := range files {
		section := ""
		for line := range strings.Lines(m.read(f)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = line
			}
			key, value, found := strings.Cut(line, "=")
			if !found || section != "[Login]" || strings.TrimSpace(key) != "RemoveIPC" {
				continue
			}
			switch strings.ToLower(strings.TrimSpace(value)) {
			case "no", "n", "false", "f", "off", "0":
				removes, from = false, "/"+f
			case "yes", "y", "true", "t", "on", "1":
				removes, from = true, " in /"+f
			}
		}
	}
	return removes, from
}

func (m *machine) exists(elem ...string) bool {
	_, err := os.Stat(m.path(elem...))
	return err == nil
}

// userName looks into the machine's own list first, then asks as everybody does.
func (m *machine) userName(uid int) string {
	id := strconv.Itoa(uid)
	for line := range strings.Lines(m.read("etc/passwd")) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[2] == id {
			return f[0]
		}
	}
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// The first namespaces of the machine (include/linux/proc_ns.h).
const (
	firstIPC = "ipc:[4026531839]"
	firstPID = "pid:[4026531836]"
)

func (m *machine) namespace(pid, kind string) string {
	s, err := os.Readlink(m.path("proc", pid, "ns", kind))
	if err != nil {
		return ""
	}
	return s
}

// inContainer reports whether this process is in an IPC namespace that is not the machine's first.
func (m *machine) inContainer() bool {
	ns := m.namespace("self", "ipc")
	return ns != "" && ns != firstIPC
}

// namespaces looks who has the same queues of the kernel as this process: those in its IPC namespace.
func (m *machine) namespaces() (fs []Finding) {
	const check = "namespace.ipc"
	own := m.namespace("self", "ipc")
	if own == "" {
		return []Finding{note(check, "", "the IPC namespace cannot be seen: /proc is not mounted")}
	}
	others := map[string][]int{}
	hidden := 0
	for _, pid := range m.pids() {
		switch ns := m.namespace(strconv.Itoa(pid), "ipc"); ns {
		case own:
		case "":
			if s := m.status(strconv.Itoa(pid), "State"); s != "" && s[0] != 'Z' && s[0] != 'X' {
				hidden++
			}
		default:
			others[ns] = append(others[ns], pid)
		}
	}
	unseen := ""
	if hidden > 0 {
		unseen = fmt.Sprintf("; of %s it cannot be seen", plural(hidden, "process"))
	}
	switch {
	case own != firstIPC:
		fs = append(fs, note(check, "docker run --ipc=host …", "this process is in an IPC namespace of its own, as in a container (%s): POSIX and System V queues are shared only with "+
			"processes of the same one, and end with it; so are the engine's, unless /dev/shm is shared", own).user())
	case len(others) == 0:
		fs = append(fs, ok(check, "this process is in the machine's first IPC namespace, as are all others that can be seen%s", unseen))
	default:
		fs = append(fs, ok(check, "this process is in the machine's first IPC namespace"))
	}
	if len(others) > 0 {
		n, first := 0, 0
		for _, pids := range others {
			n += len(pids)
			if first == 0 || pids[0] < first {
				first = pids[0]
			}
		}
		verb := "are"
		if n == 1 {
			verb = "is"
		}
		fs = append(fs, note("namespace.others", fmt.Sprintf("nsenter --ipc --target %d kumquat doctor", first), "%s %s in %s, whose POSIX and System V queues cannot be seen from here%s",
			plural(n, "process"), verb, plural(len(others), "other IPC namespace"), unseen))
	}
	if pid := m.namespace("self", "pid"); pid != firstPID && pid != "" {
		fs = append(fs, note("namespace.pid", "", "this process is in a PID namespace of its own (%s): processes outside are not seen, so no queue of the kernel is known to be unused", pid))
	}
	return fs
}

// pids returns the processes that /proc shows, in order.
func (m *machine) pids() (pids []int) {
	dir, err := os.Open(m.path("proc"))
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

func (m *machine) alive(pid int) bool { return m.exists("proc", strconv.Itoa(pid)) }
