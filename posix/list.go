package posix

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// ErrNotMounted: the file system that lists the queues is not mounted, and this process may not reach it otherwise. Its text is the
// command that mounts it.
var ErrNotMounted error = &callError{
	text: "the queues cannot be listed: their file system is not mounted; as root: mkdir -p /dev/mqueue && mount -t mqueue none /dev/mqueue",
	is:   driver.ErrUnsupported, errno: unix.ENODEV,
}

// NotifyKind says how the process that registered is told (the values of sigev_notify).
type NotifyKind int

// The kinds of notification.
const (
	NotifyBySignal NotifyKind = sigevSignal // SIGEV_SIGNAL; /dev/mqueue shows the same number where nobody is registered
	NotifyByNone   NotifyKind = sigevNone   // SIGEV_NONE
	NotifyByThread NotifyKind = sigevThread // SIGEV_THREAD
)

// Info is one queue.
type Info struct {
	Name        string // with its slash
	UID, GID    int
	Mode        fs.FileMode // permission bits
	MaxMessages int
	MaxSize     int   // bytes
	Messages    int   // waiting now
	Bytes       int64 // of the bodies of the waiting messages (QSIZE)

	NotifyPID  int // process that is registered for notification, as this PID namespace numbers it; 0: none
	NotifyKind NotifyKind
	NotifySig  syscall.Signal // of NotifyBySignal

	Device, Inode uint64 // which queue it is, whatever its name
	Unlinked      bool   // it has no name any more, and ends when nobody has it open

	// Err is not nil if the queue may not be read (ErrPermission): then only Name, UID, GID, Mode, Device and Inode are known.
	Err error
}

// List returns the queues of this IPC namespace, sorted by name. It reads their file system where that is mounted, else, with
// CAP_SYS_ADMIN, by a mount of its own that nobody sees. It takes nothing and, as opening and closing a queue would, removes no
// registration for notification that was made through this package.
//
// Errors: ErrNotMounted (ErrUnsupported), ErrPermission.
func List() ([]Info, error) {
	dir, err := openRoot()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("reading the list of queues: %w", err)
	}
	var list []Info
	for _, n := range names {
		x, err := statAt(int(dir.Fd()), n)
		if errors.Is(err, driver.ErrNotFound) {
			continue // it was removed since
		}
		x.Err = err
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b Info) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// Stat returns what List would of one queue. It needs permission to read it, and no mount.
//
// Errors: ErrInvalid, ErrNotFound, ErrPermission.
func Stat(name string) (Info, error) {
	short, err := kernelName(name)
	if err != nil {
		return Info{}, err
	}
	if q := notifiedByName(name); q != nil {
		if x, err := q.Stat(); err == nil && !x.Unlinked {
			return x, nil
		}
	}
	fd, errno := mqOpen(short, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0, nil)
	if errno != 0 {
		return Info{}, openError(errno, name, 0, nil)
	}
	defer unix.Close(fd)
	x := Info{Name: name}
	err = x.fill(fd)
	return x, err
}

// Stat returns what is known of the queue now: like the function Stat, but of the queue that this handle has open, whatever became
// of its name. Errors: ErrClosed, ErrPermission (the handle is for sending only: then Bytes is −1 and the rest is known).
func (q *Queue) Stat() (Info, error) {
	if !q.acquire() {
		return Info{}, driver.ErrClosed
	}
	defer q.release()
	x := Info{Name: q.name}
	err := x.fill(q.fd)
	return x, err
}

// fill reads everything from an open descriptor.
func (x *Info) fill(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	x.own(&st)
	var a kernelAttr
	if e := mqGetSetAttr(fd, nil, &a); e != 0 {
		return failure(nil, e, "mq_getattr: %v", e)
	}
	x.MaxMessages, x.MaxSize, x.Messages, x.Bytes = a.maxmsg, a.msgsize, a.curmsgs, -1
	var line [256]byte
	n, err := unix.Pread(fd, line[:], 0)
	if err != nil {
		return failure(driver.ErrPermission, unix.EACCES, "the status line of %s may not be read: %v", x.Name, err)
	}
	x.parse(string(line[:n]))
	return nil
}

func (x *Info) own(st *unix.Stat_t) {
	x.UID, x.GID, x.Mode = int(st.Uid), int(st.Gid), fs.FileMode(st.Mode&0o777)
	x.Device, x.Inode, x.Unlinked = uint64(st.Dev), st.Ino, st.Nlink == 0
}

// parse reads "QSIZE:129        NOTIFY:2    SIGNO:0     NOTIFY_PID:8260".
func (x *Info) parse(line string) {
	for field := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(field, ":")
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			continue
		}
		switch key {
		case "QSIZE":
			x.Bytes = n
		case "NOTIFY":
			x.NotifyKind = NotifyKind(n)
		case "SIGNO":
			x.NotifySig = syscall.Signal(n)
		case "NOTIFY_PID":
			x.NotifyPID = int(n)
		}
	}
}

// statAt reads the queue called name in the folder dir.
func statAt(dir int, name string) (Info, error) {
	x := Info{Name: "/" + name}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return x, driver.ErrNotFound
		}
		return x, err
	}
	x.own(&st)
	if q := notified(identity{x.Device, x.Inode}); q != nil {
		y, err := q.Stat()
		if err == nil {
			y.Name = x.Name
			return y, nil
		}
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	switch err {
	case nil:
	case unix.ENOENT:
		return x, driver.ErrNotFound
	case unix.EACCES:
		return x, failure(driver.ErrPermission, unix.EACCES, "its mode does not let this user read it")
	default:
		return x, err
	}
	defer unix.Close(fd)
	err = x.fill(fd)
	return x, err
}

// openRoot opens the folder of this IPC namespace's queues.
func openRoot() (*os.File, error) {
	f, err := ownMount()
	if err == nil {
		return f, nil
	}
	for _, at := range mounts() {
		if f, err := os.Open(at); err == nil {
			if isOwn(f) {
				return f, nil
			}
			_ = f.Close()
		}
	}
	return nil, ErrNotMounted
}

// ownMount mounts the file system where no path leads to: it is gone with the descriptor. It always shows the namespace that this
// process is in, which a mount at /dev/mqueue need not do.
func ownMount() (*os.File, error) {
	conf, err := unix.Fsopen("mqueue", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(conf)
	if err := unix.FsconfigCreate(conf); err != nil {
		return nil, err
	}
	m, err := unix.Fsmount(conf, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(m) // O_PATH: it cannot be read itself
	fd, err := unix.Openat(m, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "mqueue"), nil
}

// mounts returns where the file system is mounted, /dev/mqueue first.
func mounts() []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{"/dev/mqueue"}
	}
	var at []string
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		if f := strings.Fields(before); strings.HasPrefix(after, "mqueue ") && len(f) > 4 && f[3] == "/" {
			at = append(at, unescape(f[4]))
		}
	}
	slices.SortStableFunc(at, func(a, b string) int {
		return cmp.Compare(btoi(a != "/dev/mqueue"), btoi(b != "/dev/mqueue"))
	})
	return at
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
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

// isOwn reports whether f is a folder of queues, and not provably of another IPC namespace: a name that it has must be known to
// mq_open, as the same queue. A queue that may not be opened proves nothing.
func isOwn(f *os.File) bool {
	var fsinfo unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &fsinfo) != nil || fsinfo.Type != mqueueMagic {
		return false
	}
	var dir unix.Stat_t
	if unix.Fstat(int(f.Fd()), &dir) != nil {
		return false
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return false
	}
	if _, err := f.Seek(0, 0); err != nil {
		return false
	}
	for _, n := range names {
		x, err := Stat("/" + n)
		switch {
		case errors.Is(err, driver.ErrNotFound):
			var st unix.Stat_t
			if unix.Fstatat(int(f.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
				return false // it is here, and mq_open does not know it
			}
		case err == nil:
			return x.Device == uint64(dir.Dev)
		}
	}
	return true
}
