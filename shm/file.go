package shm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

const (
	filePrefix = "kmq."
	defaultDir = "/dev/shm"
	// EnvDir names the environment variable that overrides the folder of memory queues, /dev/shm.
	EnvDir = "KUMQUAT_SHM"
)

var escapeName = strings.NewReplacer("%", "%25", "/", "%2F")
var unescapeName = strings.NewReplacer("%25", "%", "%2F", "/")

// dir returns the folder of this driver's files.
func (d Driver) dir() string {
	if d.Dir != "" {
		return d.Dir
	}
	if e := os.Getenv(EnvDir); e != "" {
		return e
	}
	return defaultDir
}

// checkName refuses names that are not /folder/…/name.
func checkName(name string) error {
	bad := func(why string) error { return fmt.Errorf("queue name %q %s: %w", name, why, driver.ErrInvalid) }
	if !strings.HasPrefix(name, "/") {
		return bad("does not begin with /")
	}
	if strings.ContainsRune(name, 0) {
		return bad("contains a NUL byte")
	}
	for _, c := range strings.Split(name[1:], "/") {
		switch {
		case c == "":
			return bad("has an empty component")
		case c == "." || c == "..":
			return bad("has a component . or ..")
		case len(c) > 255:
			return fmt.Errorf("queue name has a component of %d bytes, the most is 255: %w (%w)", len(c), driver.ErrInvalid, unix.ENAMETOOLONG)
		}
	}
	if n := len(filePrefix) + len(escapeName.Replace(name[1:])); n > 255 {
		return fmt.Errorf("queue name needs a file name of %d bytes, the most is 255: %w (%w)", n, driver.ErrInvalid, unix.ENAMETOOLONG)
	}
	return nil
}

func (d Driver) path(name string) string {
	return filepath.Join(d.dir(), filePrefix+escapeName.Replace(name[1:]))
}

// exists reports whether there is a file of that name, whoever may open it.
func (d Driver) exists(name string) bool {
	_, err := os.Lstat(d.path(name))
	return err == nil
}

// nameOf returns the queue's name for the name of its file, or "".
func nameOf(file string) string {
	if !strings.HasPrefix(file, filePrefix) {
		return ""
	}
	name := "/" + unescapeName.Replace(file[len(filePrefix):])
	if checkName(name) != nil || filePrefix+escapeName.Replace(name[1:]) != file {
		return ""
	}
	return name
}

// sysError turns the error of a system call on a queue's file into a sentinel with advice.
func (d Driver) sysError(op, path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		if _, e := os.Stat(d.dir()); e != nil {
			return fmt.Errorf("the folder %s is not there: mount a tmpfs on it, or set %s: %w", d.dir(), EnvDir, driver.ErrNotFound)
		}
		return driver.ErrNotFound
	case errors.Is(err, unix.EEXIST):
		return driver.ErrExists
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%s is a symbolic link, queues are not opened through links: %w", path, driver.ErrPermission)
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s is not a regular file: %w", path, driver.ErrCorrupt)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s %s as uid %d: %w", op, path, os.Geteuid(), driver.ErrPermission)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return noSpace(d.dir())
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("no more open files (ulimit -n shows the limit, ulimit -n NUMBER raises it): %w", driver.ErrLimit)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("no address space for the mapping (ulimit -v and vm.max_map_count limit it): %w", driver.ErrLimit)
	}
	return fmt.Errorf("%s %s: %w", op, path, err)
}

// noSpace is the error for a full file system.
func noSpace(dir string) error {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return fmt.Errorf("the file system of %s is full: %w", dir, driver.ErrNoSpace)
	}
	return fmt.Errorf("%s has %d KiB of %d KiB free: receive or purge messages, remove queues that nobody uses (kumquat ls), or enlarge it (mount -o remount,size=SIZE %s; docker run --shm-size SIZE): %w",
		dir, s.Bavail*uint64(s.Bsize)>>10, s.Blocks*uint64(s.Bsize)>>10, dir, driver.ErrNoSpace)
}

// retryEINTR calls f until it is not interrupted.
func retryEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// onFile calls do with f's descriptor until it is not interrupted. The descriptor cannot be closed meanwhile, nor its number become
// another file's: a handle that broke is closed under the feet of those who are still in it. ErrClosed if it was closed before.
func onFile(f *os.File, do func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return driver.ErrClosed
	}
	var e error
	if c.Control(func(fd uintptr) { e = retryEINTR(func() error { return do(int(fd)) }) }) != nil {
		return driver.ErrClosed
	}
	return e
}

// openFile opens an existing queue's file and refuses everything that is not a plain file with one link.
func (d Driver) openFile(name string, o *driver.Options) (*os.File, layout, error) {
	path := d.path(name)
	flags := unix.O_RDWR
	if o.ReadOnly {
		flags = unix.O_RDONLY
	}
	var fd int
	err := retryEINTR(func() (err error) {
		fd, err = unix.Open(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		return
	})
	if err != nil {
		return nil, layout{}, d.sysError("open", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	l, err := examine(f, path, o)
	if err != nil {
		_ = f.Close()
		return nil, layout{}, err
	}
	return f, l, nil
}

func examine(f *os.File, path string, o *driver.Options) (layout, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return layout{}, fmt.Errorf("stat %s: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return layout{}, fmt.Errorf("%s is not a regular file: %w", path, driver.ErrCorrupt)
	case st.Nlink > 1:
		return layout{}, fmt.Errorf("%s has %d links, a queue has one: somebody linked it; remove the others: %w", path, st.Nlink, driver.ErrPermission)
	case o.Owner != nil && int(st.Uid) != *o.Owner:
		return layout{}, fmt.Errorf("%s belongs to uid %d, not to %d: %w", path, st.Uid, *o.Owner, driver.ErrPermission)
	}
	b := make([]byte, pageSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && n < pageSize && st.Size >= pageSize {
		return layout{}, fmt.Errorf("read %s: %w", path, err)
	}
	return decodeLayout(b[:n], st.Size)
}

// createFile makes the queue's file complete before it has a name, so that nobody ever sees a half-made header: O_TMPFILE, fill,
// linkat. ErrExists if the name is taken.
func (d Driver) createFile(name string, o *driver.Options) (*os.File, layout, error) {
	l, err := newLayout(o)
	if err != nil {
		return nil, l, err
	}
	mode := o.Mode.Perm()
	if mode == 0 {
		mode = 0o600
	}
	path := d.path(name)
	var fd int
	err = retryEINTR(func() (err error) {
		fd, err = unix.Open(d.dir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(mode))
		return
	})
	if err != nil {
		return nil, l, d.sysError("create in", d.dir(), err)
	}
	f := os.NewFile(uintptr(fd), path)
	fail := func(err error) (*os.File, layout, error) {
		_ = f.Close()
		return nil, l, err
	}
	if err := unix.Ftruncate(fd, int64(l.size)); err != nil {
		return fail(d.sysError("size", path, err))
	}
	// Pages that every user needs: header and hot words, the first participants, and the heads and bitmaps of two areas, so that
	// no receive ever needs a new page.
	for _, r := range [][2]uint64{{0, hotEnd}, {l.partsAt, pageSize}, {l.areasAt, aLists}, {l.areasAt + l.areaStride, aLists}} {
		if err := allocate(f, r[0], r[1]); err != nil {
			return fail(d.sysError("allocate", path, err))
		}
	}
	b := append(l.encode(), make([]byte, pageSize)...)
	putWord(b, offCur, curWord(0, driver.MaxPriority))
	putWord(b, offHead, headWord(0, 0))
	putWord(b, offPartHigh, pageSize/partSize)
	if _, err := f.WriteAt(b, 0); err != nil {
		return fail(d.sysError("write", path, err))
	}
	err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.ENOENT) { // no /proc here: this needs CAP_DAC_READ_SEARCH
		err = unix.Linkat(fd, "", unix.AT_FDCWD, path, unix.AT_EMPTY_PATH)
	}
	if err != nil {
		return fail(d.sysError("name", path, err))
	}
	return f, l, nil
}

// allocate gives the range pages, or fails with ENOSPC; it never writes data.
func allocate(f *os.File, off, n uint64) error {
	end := roundUp(off+n, pageSize)
	off = off / pageSize * pageSize
	return onFile(f, func(fd int) error { return unix.Fallocate(fd, 0, int64(off), int64(end-off)) })
}

func putWord(b []byte, off int, v uint64) {
	for i := range 8 {
		b[off+i] = byte(v >> (8 * i))
	}
}

// byteLock takes (F_WRLCK) or drops (F_UNLCK) the lock on one byte of the file. It is an open file description's lock: the kernel
// drops it when the last descriptor of this opening closes, at death too, whatever PID namespace the process lived in.
func byteLock(f *os.File, at int64, how int16) error {
	lk := unix.Flock_t{Type: how, Whence: 0, Start: at, Len: 1}
	return onFile(f, func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk) })
}

// byteLocked reports whether another opening of the file has the byte locked. It asks for a read lock, so that a descriptor
// opened for reading will do.
func byteLocked(f *os.File, at int64) bool {
	lk := unix.Flock_t{Type: unix.F_RDLCK, Whence: 0, Start: at, Len: 1}
	err := onFile(f, func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk) })
	return err != nil || lk.Type != unix.F_UNLCK
}

// isRemoved reads the removed flag through the descriptor.
func isRemoved(f *os.File) bool {
	var b [8]byte
	n, _ := f.ReadAt(b[:], offRemoved)
	return n == 8 && b != [8]byte{}
}

// unlinkRemoved takes the name away if it still belongs to f's file. Of several who try only one is at it at a time; one that
// dies here leaves the rest to the next opener.
func (d Driver) unlinkRemoved(f *os.File, name string) error {
	path := d.path(name)
	for tries := 0; ; tries++ { // a bounded wait: the file may belong to somebody hostile
		err := byteLock(f, nameLock, unix.F_WRLCK)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return d.sysError("lock", path, err)
		}
		if tries == 200 {
			return fmt.Errorf("another process has been removing %s for 2 s; remove the file by hand: %w", path, driver.ErrTimeout)
		}
		time.Sleep(10 * time.Millisecond)
	}
	defer func() { _ = byteLock(f, nameLock, unix.F_UNLCK) }()
	var mine, there unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &mine); err != nil {
		return d.sysError("stat", path, err)
	}
	if err := unix.Lstat(path, &there); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return d.sysError("stat", path, err)
	}
	if mine.Ino != there.Ino || mine.Dev != there.Dev {
		return nil
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return d.sysError("unlink", path, err)
	}
	return nil
}

// mayUnlink says whether this process may take the name away, before anything is changed: write permission for the folder, and
// in a sticky one (as /dev/shm is) the file's or the folder's owner, or root.
func (d Driver) mayUnlink(f *os.File) error {
	var file, dir unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &file); err != nil {
		return err
	}
	if err := unix.Stat(d.dir(), &dir); err != nil {
		return err
	}
	if err := unix.Faccessat(unix.AT_FDCWD, d.dir(), unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return d.sysError("remove from", d.dir(), err)
	}
	me := uint32(os.Geteuid())
	if dir.Mode&unix.S_ISVTX != 0 && me != 0 && me != file.Uid && me != dir.Uid {
		return fmt.Errorf("the queue belongs to uid %d and %s lets only owners remove: %w", file.Uid, d.dir(), driver.ErrPermission)
	}
	return nil
}

func punchHole(f *os.File, off, n uint64) {
	_ = onFile(f, func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
	})
}
