package posix

import (
	"bytes"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holder is a process that has a queue open.
type Holder struct {
	PID      int
	UID      int    // effective user
	User     string // its name, or the number
	Command  string // command line as the process shows it, unverified and unescaped; its short name if it shows none
	State    string // R, S, D, T (stopped), t (traced), Z, …
	FDs      []int  // the descriptors, in its own numbers
	Receives bool   // one of them is open for receiving
	Sends    bool   // one of them is open for sending
}

// Holders is who has queues open, as far as /proc lets this process see.
type Holders struct {
	queues map[identity][]Holder

	// Unlinked are the queues that have no name any more and are kept by their holders alone. Their Name is the one they had.
	Unlinked []Info
	// Hidden are processes whose descriptors this user may not inspect: they may hold any queue.
	Hidden []int
	// Whole is false if there may be processes besides Hidden that could not be seen at all: this process is in a PID namespace of its own, or
	// /proc is mounted with hidepid. A queue is known to be unused only if it has no holder, Hidden is empty and Whole is true.
	Whole bool
}

// initPIDNamespace is the inode of the first PID namespace (PROC_PID_INIT_INO).
const initPIDNamespace = "pid:[4026531836]"

// ReadHolders looks through the descriptors of all processes. It costs some system calls per descriptor of the machine.
//
// Errors: /proc is not mounted.
func ReadHolders() (*Holders, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking who has queues open: %w", err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return nil, fmt.Errorf("looking who has queues open: %w", err)
	}
	h := &Holders{queues: map[identity][]Holder{}}
	unlinked := map[identity]bool{}
	users := map[int]string{}
	first := false
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		first = first || pid == 1
		h.process(pid, users, unlinked)
	}
	slices.Sort(h.Hidden)
	slices.SortFunc(h.Unlinked, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	for _, hs := range h.queues {
		slices.SortFunc(hs, func(a, b Holder) int { return a.PID - b.PID })
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	h.Whole = first && err == nil && ns == initPIDNamespace
	return h, nil
}

// Of returns who has the queue open, by pid.
func (h *Holders) Of(x Info) []Holder { return slices.Clone(h.queues[identity{x.Device, x.Inode}]) }

// process looks through one process's descriptors. One that ends meanwhile has none.
func (h *Holders) process(pid int, users map[int]string, unlinked map[identity]bool) {
	base := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := readNames(base)
	if os.IsPermission(err) {
		h.Hidden = append(h.Hidden, pid)
	}
	found := map[identity]*Holder{}
	for _, n := range fds {
		at := base + "/" + n
		// The link of a queue is its name, and looks like that of a file in the root folder.
		to, err := os.Readlink(at)
		if err != nil || !strings.HasPrefix(to, "/") || strings.Contains(to[1:], "/") {
			continue
		}
		var kind unix.Statfs_t
		var st unix.Stat_t
		if unix.Statfs(at, &kind) != nil || kind.Type != mqueueMagic || unix.Stat(at, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		id := identity{uint64(st.Dev), st.Ino}
		if st.Nlink == 0 && !unlinked[id] {
			unlinked[id] = true
			x := Info{Name: strings.TrimSuffix(to, " (deleted)"), Bytes: -1}
			x.own(&st)
			h.Unlinked = append(h.Unlinked, x)
		}
		p := found[id]
		if p == nil {
			p = &Holder{PID: pid}
			found[id] = p
		}
		if fd, err := strconv.Atoi(n); err == nil {
			p.FDs = append(p.FDs, fd)
			p.direction(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, n))
		}
	}
	for id, p := range found {
		p.describe(users)
		slices.Sort(p.FDs)
		h.queues[id] = append(h.queues[id], *p)
	}
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// direction reads the access mode from "flags:\t02000002".
func (p *Holder) direction(fdinfo string) {
	b, _ := os.ReadFile(fdinfo)
	for line := range strings.Lines(string(b)) {
		value, ok := strings.CutPrefix(line, "flags:")
		if !ok {
			continue
		}
		flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
		if err != nil {
			return
		}
		mode := flags & unix.O_ACCMODE
		p.Receives = p.Receives || mode == unix.O_RDONLY || mode == unix.O_RDWR
		p.Sends = p.Sends || mode == unix.O_WRONLY || mode == unix.O_RDWR
	}
}

// describe fills in what /proc says of the process.
func (p *Holder) describe(users map[int]string) {
	base := fmt.Sprintf("/proc/%d/", p.PID)
	var short string
	b, _ := os.ReadFile(base + "status")
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		switch {
		case len(f) == 0:
		case key == "Name":
			short = strings.TrimSpace(value)
		case key == "State":
			p.State = f[0]
		case key == "Uid" && len(f) > 1:
			p.UID, _ = strconv.Atoi(f[1])
		}
	}
	command, _ := os.ReadFile(base + "cmdline")
	if p.Command = string(bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '})); p.Command == "" {
		p.Command = short
	}
	name, ok := users[p.UID]
	if !ok {
		name = strconv.Itoa(p.UID)
		if u, err := user.LookupId(name); err == nil {
			name = u.Username
		}
		users[p.UID] = name
	}
	p.User = name
}
