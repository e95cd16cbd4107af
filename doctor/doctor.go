// Package doctor examines the machine, and single queues, for what hurts message queues, and says how it is mended.
//
//	for _, f := range doctor.Machine(ctx) {
//		fmt.Println(f.Level, f.Check, f.Text, f.Fix)
//	}
//
// [Machine] looks at the limits of the kernel's queues and how much of them is used, at the file systems that queues live on, at what
// removes queues behind one's back, at namespaces, at queues that nobody uses, at permissions, and at what the kernel can do.
// [Queue] looks at one queue of the engine, of POSIX or of System V for a while, and says why its messages do not move: nobody reads
// it, its readers are stopped or too slow, a stopped process holds a part of it, it is near a limit.
//
// Nothing is changed by looking. What this user may not see is said, and never taken for absent.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// Level says how much a finding matters.
type Level string

// The levels.
const (
	OK        Level = "ok"        // as it should be
	Note      Level = "note"      // may hurt one day, or could not be found out
	Attention Level = "attention" // hurts now, or will soon
)

// Finding is one thing that was looked at.
type Finding struct {
	Check string `json:"check"` // what was looked at, one word of dots and letters: "mqueue.msg_max"; the same in all versions
	Level Level  `json:"level"`
	Text  string `json:"text"`           // what was found, and what it means; may hold names that processes chose, unescaped
	Fix   string `json:"fix,omitempty"`  // the command that mends it; empty: nothing to mend, or the text says it
	Root  bool   `json:"root,omitempty"` // Fix is for root
}

// NeedsAttention reports whether one of the findings is of the level Attention.
func NeedsAttention(fs []Finding) bool {
	for _, f := range fs {
		if f.Level == Attention {
			return true
		}
	}
	return false
}

// machine is what the checks look at. They read files below root, which is "/" but in tests, and the lists here.
type machine struct {
	root string
	uid  int
	shm  string // folder of the engine's queues

	posix    []posix.Info
	posixErr error
	holders  *posix.Holders // nil: /proc could not be read
	sysv     []sysv.Status
	sysvErr  error
	engine   []kumquat.Info
	shmErr   error
	probes   map[string]error // of the kernel's features
	now      time.Time
}

// Machine checks the machine as this process sees it: its IPC namespace, its limits, its user. It takes some system calls for each
// descriptor of each process. It never fails: what cannot be found out is a Note.
func Machine(ctx context.Context) []Finding {
	m := thisMachine()
	m.probes = probes()
	m.posix, m.posixErr = posix.List()
	m.holders, _ = posix.ReadHolders()
	m.posix = still(m.posix)
	m.sysv, m.sysvErr = sysv.List()
	m.engine, m.shmErr = kumquat.List(ctx, "")
	return m.all()
}

// still leaves out the queues that were removed since: that they have no holder means nothing.
func still(list []posix.Info) (there []posix.Info) {
	now, err := posix.List()
	if err != nil {
		return list
	}
	for _, x := range list {
		if slices.ContainsFunc(now, func(y posix.Info) bool { return x.Device == y.Device && x.Inode == y.Inode }) {
			there = append(there, x)
		}
	}
	return there
}

func thisMachine() *machine {
	m := &machine{root: "/", uid: os.Geteuid(), shm: os.Getenv("KUMQUAT_SHM"), now: time.Now()}
	if m.shm == "" {
		m.shm = defaultShm
	}
	return m
}

const defaultShm = "/dev/shm"

func (m *machine) all() (fs []Finding) {
	for _, check := range []func() []Finding{
		m.mqueueLimits, m.mqueueBytes, m.sysvLimits, m.mqueueMount, m.shmMount, m.removeIPC, m.namespaces, m.full, m.leaks, m.permissions, m.features,
	} {
		fs = append(fs, check()...)
	}
	return fs
}

// path returns where a file of the machine is.
func (m *machine) path(elem ...string) string {
	return filepath.Join(append([]string{m.root}, elem...)...)
}

// read returns the text of a file, "" if it cannot be read.
func (m *machine) read(elem ...string) string {
	b, err := os.ReadFile(m.path(elem...))
	if err != nil {
		return ""
	}
	return string(b)
}

// sysctl returns the number that fs.mqueue.msg_max and the like have, −1 if it cannot be read.
func (m *machine) sysctl(name string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(m.read("proc/sys", strings.ReplaceAll(name, ".", "/"))), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// setSysctl is the command that sets a sysctl. In most containers /proc/sys may only be read, and whoever starts them sets it.
func (m *machine) setSysctl(name string, value int64) string {
	for _, at := range m.mounts() {
		if at.point == "/proc/sys" && at.has("ro") {
			return fmt.Sprintf("docker run --sysctl %s=%d …", name, value)
		}
	}
	return fmt.Sprintf("sysctl -w %s=%d", name, value)
}

// mount is a line of /proc/self/mountinfo.
type mount struct {
	point, kind string
	root        string // of the file system, "/" if it is mounted as a whole
	options     []string
}

func (m *mount) has(option string) bool {
	_, ok := m.value(option)
	return ok
}

// value returns what stands behind the = of an option.
func (m *mount) value(option string) (string, bool) {
	for _, o := range m.options {
		if name, value, _ := strings.Cut(o, "="); name == option {
			return value, true
		}
	}
	return "", false
}

// mounts returns what is mounted, in the order of mounting: of two at one place the later one is seen.
func (m *machine) mounts() (all []mount) {
	for line := range strings.Lines(m.read("proc/self/mountinfo")) {
		before, after, found := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !found || len(f) < 6 || len(g) < 1 {
			continue
		}
		x := mount{point: unescape(f[4]), root: unescape(f[3]), kind: g[0], options: strings.Split(f[5], ",")}
		if len(g) > 2 {
			for _, o := range strings.Split(g[2], ",") { // those of the file system; ro and rw may differ
				if !slices.Contains(x.options, o) {
					x.options = append(x.options, o)
				}
			}
		}
		all = append(all, x)
	}
	return all
}

// unescape undoes \040 and its like, by which mountinfo writes what would end a field.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// at returns what is mounted at a folder, or holds it.
func (m *machine) at(dir string) (found mount, exact bool) {
	for _, x := range m.mounts() {
		inside := x.point == dir || x.point == "/" || strings.HasPrefix(dir, x.point+"/")
		if inside && len(x.point) >= len(found.point) {
			found = x
		}
	}
	return found, found.point == dir
}

func ok(check, format string, args ...any) Finding {
	return Finding{Check: check, Level: OK, Text: fmt.Sprintf(format, args...)}
}

func note(check, fix, format string, args ...any) Finding {
	return Finding{Check: check, Level: Note, Text: fmt.Sprintf(format, args...), Fix: fix, Root: fix != ""}
}

func attention(check, fix, format string, args ...any) Finding {
	return Finding{Check: check, Level: Attention, Text: fmt.Sprintf(format, args...), Fix: fix, Root: fix != ""}
}

// user makes the fix one that the user himself can apply.
func (f Finding) user() Finding {
	f.Root = false
	return f
}

// errno returns the system's number in err, 0 if there is none.
func errno(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return 0
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v, i := float64(n), 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if i == 0 || n < 100_000 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.4g %s", v, units[i])
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if what == "process" {
		return fmt.Sprintf("%d processes", n)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// waiting says how many wait: "1 message waits".
func waiting(n int, what string) string {
	if n == 1 {
		return "1 " + what + " waits"
	}
	return plural(n, what) + " wait"
}

// quoted quotes s for sh where that is needed.
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/-_.:,=+@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// most is how many queues of one kind are named one by one.
const most = 20

// part reports whether used is at least the given percentage of all. A limit of 0 or less is none.
func part(used, all int64, percent int64) bool {
	return all > 0 && float64(used) >= float64(all)*float64(percent)/100
}

// The share of a limit at which something is near to it.
const near = 80

func statfs(dir string) (unix.Statfs_t, error) {
	var s unix.Statfs_t
	for {
		if err := unix.Statfs(dir, &s); err != unix.EINTR {
			return s, err
		}
	}
}
