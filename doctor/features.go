package doctor

import (
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's features by name, in the order in which they are told.
var featureList = []struct {
	name, since string
	needed      bool // without it something does not work at all; else it works more slowly or in part
	what        string
	without     string
}{
	{"mqueue", "Linux 2.6.6 with CONFIG_POSIX_MQUEUE", true, "POSIX queues", "there are no POSIX queues"},
	{"sysvipc", "CONFIG_SYSVIPC", true, "System V queues", "there are no System V queues"},
	{"ofd_locks", "Linux 3.15", true, "locks that end with their process", "the engine cannot tell which processes live: it does not work"},
	{"futex_waitv", "Linux 5.16", false, "one thread waits for many queues", "waiting for many queues takes a thread each"},
	{"pidfd", "Linux 5.3", false, "the death of a process is noticed at once", "the death of a process is noticed up to 250 ms later"},
	{"msg_copy", "Linux 3.8 with CONFIG_CHECKPOINT_RESTORE", false, "messages of System V queues can be looked at without taking them", "messages of System V queues cannot be looked at without taking them"},
}

// features tells which of the kernel's features are there. A missing one is missing in the kernel (ENOSYS) or kept from this process.
func (m *machine) features() (fs []Finding) {
	if v := release(); v != "" {
		fs = append(fs, ok("kernel.release", "Linux %s", v))
	}
	for _, f := range featureList {
		err, tried := m.probes[f.name]
		check := "kernel." + f.name
		level := note
		if f.needed {
			level = attention
		}
		switch {
		case !tried:
		case err == nil:
			fs = append(fs, ok(check, "%s", f.what))
		case errno(err) == unix.ENOSYS:
			fs = append(fs, level(check, "", "the kernel lacks %s (%s), or a seccomp filter denies it: %s", f.name, f.since, f.without))
		case errno(err) == unix.EPERM || errno(err) == unix.EACCES:
			fs = append(fs, level(check, "docker run --security-opt seccomp=unconfined …", "%s is kept from this process, as the seccomp filters of containers do: %s", f.name, f.without))
		default:
			fs = append(fs, level(check, "", "%s does not work: %v; %s", f.name, err, f.without))
		}
	}
	return fs
}

// probes tries the features, each by a call that does nothing.
func probes() map[string]error {
	return map[string]error{
		"mqueue":      expect(unix.EBADF, unix.SYS_MQ_GETSETATTR, ^uintptr(0), 0, 0),
		"sysvipc":     expect(unix.EINVAL, unix.SYS_MSGCTL, ^uintptr(0), unix.IPC_STAT, 0),
		"ofd_locks":   probeLocks(),
		"futex_waitv": expect(unix.EINVAL, unix.SYS_FUTEX_WAITV, 0, 0, 0),
		"pidfd":       probePidfd(),
		"msg_copy":    probeCopy(),
	}
}

// expect makes a call with arguments that the kernel refuses, if it knows the call, by the number want.
func expect(want unix.Errno, call, a, b, c uintptr) error {
	_, _, e := unix.Syscall6(call, a, b, c, 0, 0, 0)
	if e == want || e == 0 {
		return nil
	}
	return e
}

func probePidfd() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func probeLocks() error {
	fd, err := unix.MemfdCreate("kumquat-doctor", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &unix.Flock_t{Type: unix.F_WRLCK})
}

// probeCopy asks for a copy from an identifier that no queue has. Whether copies can be made the kernel says first.
func probeCopy() error {
	const copyFlag, noWait, nobody = 0o40000, 0o4000, 1<<31 - 1
	var m [16]byte
	_, _, e := unix.Syscall6(unix.SYS_MSGRCV, nobody, uintptr(unsafe.Pointer(&m)), 8, 0, copyFlag|noWait, 0)
	if e == unix.EINVAL || e == unix.EIDRM || e == 0 {
		return nil
	}
	return e
}

// writable returns why files cannot be made in a folder; nil if they can.
func writable(dir string) error {
	return unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
}

// release is the kernel's version, for people.
func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return strings.TrimSpace(unix.ByteSliceToString(u.Release[:]))
}
