package rpc

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// The socket of service /calculator is kmrpc.calculator, in the folder of the queues. Beside it lies a file whose lock the server
// holds: the kernel drops it at death, so who gets it knows that a socket still lying there is nobody's.
const (
	socketPrefix = "kmrpc."
	lockSuffix   = ".lock"
	folderVar    = "KUMQUAT_SHM" // as for the queues
	folder       = "/dev/shm"
	longestPath  = 107 // of a socket's name: sun_path of unix(7), less its NUL
)

var escape = strings.NewReplacer("%", "%25", "/", "%2F")

// socketPath returns where the socket of a service is.
func socketPath(name string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%w: the service name %q %s", kumquat.ErrInvalid, name, why)
	}
	if !strings.HasPrefix(name, "/") {
		return bad("does not begin with /")
	}
	for _, c := range strings.Split(name[1:], "/") {
		if c == "" || c == "." || c == ".." || strings.ContainsAny(c, "\x00*?[\\") {
			return bad("has a part that is empty, . or .., or has one of NUL * ? [ \\")
		}
	}
	dir := os.Getenv(folderVar)
	if dir == "" {
		dir = folder
	}
	p := filepath.Join(dir, socketPrefix+escape.Replace(name[1:]))
	if len(p)+len(lockSuffix) > longestPath {
		return bad(fmt.Sprintf("makes a socket's path of %d bytes, %d are possible", len(p), longestPath-len(lockSuffix)))
	}
	return p, nil
}

// queueFolder is where the queues of a service are: below it one folder for each server's life, and in it the queues.
func queueFolder(name string) string { return "/rpc" + name }

// sweep removes the queues that servers and clients of a service left behind when they were killed. A queue that nobody has open is
// such a one, but for the moment in which it is made: those younger than age stay.
func sweep(ctx context.Context, name string, age time.Duration) {
	list, err := kumquat.List(ctx, queueFolder(name)+"/*/*")
	if err != nil {
		return // the folder cannot be read: there is nothing that we could remove either
	}
	for _, i := range list {
		if i.Err == nil && i.Handles == 0 && (age == 0 || time.Since(i.Created) > age) {
			_ = kumquat.Remove(ctx, i.Name) // another user's stays; whoever else sweeps may have been faster
		}
	}
}

// freshTime is more than it takes to open a queue after it was made.
const freshTime = 2 * time.Second

// listenSocket makes the socket, after what a dead server left is taken away. kumquat.ErrExists: a server lives.
func listenSocket(ctx context.Context, name string, mode fs.FileMode) (ln *net.UnixListener, lock *os.File, err error) {
	path, err := socketPath(name)
	if err != nil {
		return nil, nil, err
	}
	if lock, err = lockFile(path + lockSuffix); err != nil {
		return nil, nil, fmt.Errorf("the lock of service %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			dropLock(lock)
		}
	}()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, sysError(err)
	}
	// Nobody may connect before the mode is what was asked for: bind gives the file the socket's own mode, less the umask.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var e error
		if err := c.Control(func(fd uintptr) { e = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return e
	}}
	l, err := lc.Listen(ctx, "unixpacket", path)
	if err != nil {
		return nil, nil, sysError(err)
	}
	ln = l.(*net.UnixListener)
	ln.SetUnlinkOnClose(false) // the name goes under the lock, or it might be another server's
	if err := os.Chmod(path, mode); err != nil {
		_ = ln.Close()
		_ = os.Remove(path)
		return nil, nil, sysError(err)
	}
	return ln, lock, nil
}

// lockFile opens and locks a file that goes away with its lock.
func lockFile(path string) (*os.File, error) {
	for range 100 {
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, sysError(&fs.PathError{Op: "open", Path: path, Err: err})
		}
		f := os.NewFile(uintptr(fd), path)
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if err == unix.EINTR {
				continue
			}
			return nil, fmt.Errorf("a server of this name is running: %w", kumquat.ErrExists)
		}
		var mine, there unix.Stat_t
		if unix.Fstat(fd, &mine) == nil && unix.Lstat(path, &there) == nil && mine.Ino == there.Ino && mine.Dev == there.Dev {
			return f, nil
		}
		_ = f.Close() // the one before removed it between our two calls
	}
	return nil, fmt.Errorf("servers of this name start and stop all the time: %w", kumquat.ErrExists)
}

func dropLock(f *os.File) {
	_ = os.Remove(f.Name())
	_ = f.Close()
}

// dialSocket connects to a service's socket.
func dialSocket(ctx context.Context, name string) (*net.UnixConn, error) {
	path, err := socketPath(name)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("no server of %s is running: %w", name, kumquat.ErrNotFound)
		}
		if ctx.Err() != nil {
			return nil, contextError(ctx)
		}
		return nil, sysError(err)
	}
	return c.(*net.UnixConn), nil
}

// sysError gives an error of the system the sentinel that means the same.
func sysError(err error) error {
	for _, c := range []struct{ errno, is error }{{unix.EACCES, kumquat.ErrPermission}, {unix.EPERM, kumquat.ErrPermission},
		{unix.ELOOP, kumquat.ErrPermission}, {unix.ENOENT, kumquat.ErrNotFound}, {unix.EMFILE, kumquat.ErrLimit}, {unix.ENFILE, kumquat.ErrLimit},
		{unix.ENOSPC, kumquat.ErrNoSpace}, {unix.EADDRINUSE, kumquat.ErrExists}} {
		if errors.Is(err, c.errno) && !errors.Is(err, c.is) {
			return fmt.Errorf("%w: %w", c.is, err)
		}
	}
	return err
}

// contextError is what a wait that ctx ended returns.
func contextError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return kumquat.ErrTimeout
	}
	return ctx.Err()
}

// peerOf asks the kernel who is at the other end.
func peerOf(c *net.UnixConn) (*Peer, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var u *unix.Ucred
	var e error
	if err := rc.Control(func(fd uintptr) { u, e = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	if e != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", e)
	}
	return &Peer{PID: int(u.Pid), UID: int(u.Uid), GID: int(u.Gid), gone: make(chan struct{})}, nil
}

// admit lets one more user open a queue of ours, by an access control list: owner and that user read and write, nobody else.
// The bytes are those of setfacl(1): version 2, then tag, permissions and id of each entry, acl(5).
func admit(path string, uid int) error {
	const readWrite, none, nobody = 6, 0, ^uint32(0)
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [...]struct {
		tag, perm uint16
		id        uint32
	}{{0x01, readWrite, nobody}, {0x02, readWrite, uint32(uid)}, {0x04, none, nobody}, {0x10, readWrite, nobody}, {0x20, none, nobody}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	if err := unix.Lsetxattr(path, "system.posix_acl_access", b, 0); err != nil {
		return fmt.Errorf("user %d cannot be let into %s, access control lists are needed for peers of other users (CONFIG_TMPFS_POSIX_ACL): %w: %w",
			uid, path, kumquat.ErrUnsupported, err)
	}
	return nil
}

// The handshake: one packet each way, JSON. After it the client sends cancellations (9 bytes: 'C' and the call's number, little
// endian). A 'B' (bye) says that the end that comes is no death; from a server also: no more calls, please.
const (
	protocol      = 1
	packetCancel  = 'C'
	packetBye     = 'B'
	longestPacket = 4096
	greetTime     = 5 * time.Second // for the handshake
)

type hello struct {
	Protocol    int `json:"protocol"`
	Outstanding int `json:"outstanding"` // calls that may be under way at once
}

type welcome struct {
	Protocol int    `json:"protocol"`
	Error    *Error `json:"error,omitempty"` // why not; then nothing else is set
	Requests string `json:"requests,omitempty"`
	Replies  string `json:"replies,omitempty"`
}

func writePacket(c *net.UnixConn, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}

func readPacket(c *net.UnixConn, v any) error {
	b := make([]byte, longestPacket)
	n, err := c.Read(b)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b[:n], v); err != nil {
		return fmt.Errorf("a packet of the handshake cannot be read: %w: %w", kumquat.ErrCorrupt, err)
	}
	return nil
}

// tell sends a packet if the socket takes it at once: who does not read must not stop us.
func tell(c *net.UnixConn, b []byte) {
	rc, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) { // a peer that is gone is told nothing
		for {
			if _, err := unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != unix.EINTR {
				return
			}
		}
	})
}
