package bench

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelQueues are queues of the kernel that the children inherit. Nothing of them outlives the descriptors: POSIX queues are
// unlinked at once, and System V queues live in an IPC namespace of their own where that is allowed.
type kernelQueues struct {
	names     []string   // per queue, as descriptors parses them
	files     []*os.File // descriptors 4, 5, … of the children
	namespace int        // number of the namespace's descriptor in a child; 0: none
	remove    []func()
	notes     []string // what could not be done as asked
}

func (k *kernelQueues) close() {
	for _, f := range k.remove {
		f()
	}
	for _, f := range k.files {
		f.Close()
	}
}

// add gives f to the children and returns its number there.
func (k *kernelQueues) add(fd int) int {
	k.files = append(k.files, os.NewFile(uintptr(fd), "queue"))
	return controlFD + len(k.files)
}

// openKernel makes n queues of the subject for messages of size bytes.
func openKernel(subject string, n, size, capacity, waiting int) (*kernelQueues, error) {
	k := &kernelQueues{}
	var err error
	switch subject {
	case "posix", "sysv", "sysv-types":
		err = inNamespace(func(private bool) error {
			if subject == "posix" {
				return k.posix(n, size, capacity, waiting, private)
			}
			return k.sysv(n, size, capacity+waiting, waiting, private)
		})
	case "pipe":
		err = k.pipes(n, size, capacity)
	case "unix":
		err = k.sockets(n, size, capacity)
	}
	if err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

// inNamespace runs f in a new IPC namespace where the limits may be raised, or as it is where that is not allowed.
func inNamespace(f func(private bool) error) error {
	result := make(chan error)
	go func() {
		// The thread is not unlocked, so it ends with the goroutine and nothing else runs in its namespace.
		runtime.LockOSThread()
		private := unix.Unshare(unix.CLONE_NEWIPC) == nil
		result <- f(private)
	}()
	return <-result
}

// posix makes queues for capacity messages, or fewer where that is not granted; waiting messages and one more have to fit in.
func (k *kernelQueues) posix(n, size, capacity, waiting int, private bool) error {
	const (
		perMessage      = 128    // more than the kernel counts beside the body
		defaultMsgQueue = 819200 // bytes, RLIMIT_MSGQUEUE of Linux
	)
	if need := uint64(n * capacity * (size + perMessage)); need > defaultMsgQueue {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_MSGQUEUE, &limit); err == nil && limit.Cur < 2*need {
			limit.Cur = 2 * need
			limit.Max = max(limit.Max, limit.Cur)
			_ = unix.Setrlimit(unix.RLIMIT_MSGQUEUE, &limit) // mq_open tells below
		}
	}
	if private {
		// Limits of the new namespace alone.
		_ = os.WriteFile("/proc/sys/fs/mqueue/msg_max", []byte(strconv.Itoa(capacity)), 0)
		_ = os.WriteFile("/proc/sys/fs/mqueue/msgsize_max", []byte(strconv.Itoa(size)), 0)
	}
	for i := range n {
		name := fmt.Sprintf("kumquat-bench-%d-%d", os.Getpid(), i)
		fd, err := mqOpen(name, capacity, size)
		asked := err
		// As many as RLIMIT_MSGQUEUE lets all queues of this user together have, else the kernel's default.
		for _, fewer := range []int{(defaultMsgQueue / n) / (size + perMessage), 10, 1} {
			if err == nil || fewer >= capacity || fewer <= waiting {
				continue
			}
			if fd, err = mqOpen(name, fewer, size); err == nil {
				k.notes = append(k.notes, fmt.Sprintf("posix: capacity %d instead of %d for %d bytes: %v (RLIMIT_MSGQUEUE; /proc/sys/fs/mqueue)", fewer, capacity, size, asked))
			}
		}
		if err != nil {
			return fmt.Errorf("mq_open for %d × %d bytes: %w (RLIMIT_MSGQUEUE, /proc/sys/fs/mqueue: root with CAP_SYS_RESOURCE may raise them)", capacity, size, err)
		}
		at := k.add(fd)
		k.names = append(k.names, fmt.Sprintf("%d,%d", at, at))
	}
	return nil
}

// mqOpen creates the queue and unlinks its name.
func mqOpen(name string, capacity, size int) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	attr := [8]int64{0, int64(capacity), int64(size)} // struct mq_attr: flags, maxmsg, msgsize, curmsgs, 4 reserved
	fd, _, e := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(p)), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600,
		uintptr(unsafe.Pointer(&attr)), 0, 0)
	if e != 0 {
		return 0, e
	}
	_, _, _ = unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(p)), 0, 0) // the descriptor keeps it
	return int(fd), nil
}

// msqidDS is struct msqid64_ds of 64-bit machines as msgctl takes it.
type msqidDS struct {
	perm struct {
		key, uid, gid, cuid, cgid int32
		mode                      uint32
		seq, _                    uint16
		_                         uint32
		_, _                      uint64
	}
	stime, rtime, ctime  int64
	cbytes, qnum, qbytes uint64
	lspid, lrpid         int32
	_, _                 uint64
}

func (k *kernelQueues) sysv(n, size, capacity, waiting int, private bool) error {
	bytes := capacity * size
	if private {
		_ = os.WriteFile("/proc/sys/kernel/msgmax", []byte(strconv.Itoa(max(size, 8192))), 0)
		_ = os.WriteFile("/proc/sys/kernel/msgmnb", []byte(strconv.Itoa(max(bytes, 16384))), 0)
		fd, err := unix.Open("/proc/thread-self/ns/ipc", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		k.namespace = k.add(fd)
	}
	if text, err := os.ReadFile("/proc/sys/kernel/msgmax"); err == nil {
		if most, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && most < size {
			return fmt.Errorf("kernel.msgmax is %d bytes", most)
		}
	}
	for range n {
		id, _, e := unix.Syscall(unix.SYS_MSGGET, unix.IPC_PRIVATE, unix.IPC_CREAT|0o600, 0)
		if e != 0 {
			return fmt.Errorf("msgget: %w", e)
		}
		if !private {
			k.remove = append(k.remove, func() { _, _, _ = unix.Syscall(unix.SYS_MSGCTL, id, unix.IPC_RMID, 0) })
		}
		var ds msqidDS
		if _, _, e := unix.Syscall(unix.SYS_MSGCTL, id, unix.IPC_STAT, uintptr(unsafe.Pointer(&ds))); e != 0 {
			return fmt.Errorf("msgctl: %w", e)
		}
		had := ds.qbytes
		ds.qbytes = uint64(bytes)
		if _, _, e := unix.Syscall(unix.SYS_MSGCTL, id, unix.IPC_SET, uintptr(unsafe.Pointer(&ds))); e != 0 {
			if had < uint64(size*(waiting+1)) {
				return fmt.Errorf("msgctl for %d bytes: %w; kernel.msgmnb is lower", bytes, e)
			}
			k.notes = append(k.notes, fmt.Sprintf("sysv: %d bytes instead of %d: %v (kernel.msgmnb)", had, bytes, e))
		}
		k.names = append(k.names, fmt.Sprintf("%d,%d", id, id))
	}
	return nil
}

func (k *kernelQueues) pipes(n, size, capacity int) error {
	for range n {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return fmt.Errorf("pipe: %w", err)
		}
		// A page is the least and a MiB is what anybody may have.
		want := min(max(capacity*size, 4096), 1<<20)
		if _, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, want); err != nil {
			k.notes = append(k.notes, fmt.Sprintf("pipe: 64 KiB instead of %d bytes: %v", want, err))
		}
		in := k.add(fds[0])
		k.names = append(k.names, fmt.Sprintf("%d,%d", in, k.add(fds[1])))
	}
	return nil
}

func (k *kernelQueues) sockets(n, size, capacity int) error {
	for range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socketpair: %w", err)
		}
		const perMessage = 768                     // what the kernel counts for a small packet beside its body
		want := capacity * (size + perMessage) / 2 // the kernel doubles it
		if err := unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, want); err != nil {
			_ = unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF, want)
			if got, _ := unix.GetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUF); got < want {
				k.notes = append(k.notes, fmt.Sprintf("unix: a buffer of %d bytes instead of %d (net.core.wmem_max)", got, want))
			}
		}
		in := k.add(fds[0])
		k.names = append(k.names, fmt.Sprintf("%d,%d", in, k.add(fds[1])))
	}
	return nil
}
