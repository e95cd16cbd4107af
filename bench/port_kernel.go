package bench

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's queues are called by raw system calls, as a C program would: this process has nothing else to do, so nothing is
// gained by telling the Go scheduler of each call.

// kernelSender makes the sending end of queue q; its name is what openKernel gave.
func (w *work) kernelSender(q int) (sender, error) {
	_, out, err := descriptors(w.Names[q])
	if err != nil {
		return nil, err
	}
	switch w.Subject {
	case "posix":
		return posixPort{out}, nil
	case "sysv", "sysv-types":
		return &sysvSender{out, w.full, int64(w.types()), 1}, nil
	}
	return streamPort{out}, nil
}

func (w *work) kernelReceiver(q int) (receiver, error) {
	in, _, err := descriptors(w.Names[q])
	if err != nil {
		return nil, err
	}
	switch w.Subject {
	case "posix":
		return posixPort{in}, nil
	case "sysv":
		var t int64
		if w.Filtered {
			t = 1
		}
		return sysvReceiver{in, make([]byte, 8+w.Size), t}, nil
	case "sysv-types":
		return sysvReceiver{in, make([]byte, 8+w.Size), -int64(w.types())}, nil
	}
	return streamPort{in}, nil
}

// types is the number of System V types that stand for priorities: the highest priority is type 1.
func (w *work) types() int {
	if w.Subject == "sysv-types" {
		return max(w.Priorities, 1)
	}
	return 0
}

// descriptors parses "read,write": file descriptors, or the id of a System V queue twice.
func descriptors(name string) (in, out int, err error) {
	a, b, _ := strings.Cut(name, ",")
	if in, err = strconv.Atoi(a); err == nil {
		out, err = strconv.Atoi(b)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("descriptors %q: %w", name, err)
	}
	return in, out, nil
}

type posixPort struct{ fd int }

func (p posixPort) send(body []byte, priority int) error {
	for {
		_, _, e := unix.RawSyscall6(unix.SYS_MQ_TIMEDSEND, uintptr(p.fd), uintptr(unsafe.Pointer(&body[0])), uintptr(len(body)), uintptr(priority), 0, 0)
		if e != unix.EINTR {
			return failed(e)
		}
	}
}

func (p posixPort) receive(buf []byte) ([]byte, error) {
	var priority uint32
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_MQ_TIMEDRECEIVE, uintptr(p.fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), uintptr(unsafe.Pointer(&priority)), 0, 0)
		if e == 0 {
			return buf[:n], nil
		}
		if e != unix.EINTR {
			return nil, e
		}
	}
}

func failed(e unix.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

// sysvSender sends full: the type and the body behind it.
type sysvSender struct {
	id    int
	full  []byte
	types int64
	typ   int64
}

func (s *sysvSender) setType(t int64) { s.typ = t }

func (s *sysvSender) send(_ []byte, priority int) error {
	t := uint64(s.typ)
	if s.types > 0 {
		t = uint64(s.types - int64(priority))
	}
	binary.LittleEndian.PutUint64(s.full, t) // long, in the byte order of all machines that this runs on
	for {
		_, _, e := unix.RawSyscall6(unix.SYS_MSGSND, uintptr(s.id), uintptr(unsafe.Pointer(&s.full[0])), uintptr(len(s.full)-8), 0, 0, 0)
		if e != unix.EINTR {
			return failed(e)
		}
	}
}

type sysvReceiver struct {
	id   int
	full []byte
	typ  int64
}

func (r sysvReceiver) receive([]byte) ([]byte, error) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_MSGRCV, uintptr(r.id), uintptr(unsafe.Pointer(&r.full[0])), uintptr(len(r.full)-8), uintptr(r.typ), 0, 0)
		if e == 0 {
			return r.full[8 : 8+n], nil
		}
		if e != unix.EINTR {
			return nil, e
		}
	}
}

// streamPort is an end of a pipe or of a pair of sockets.
type streamPort struct{ fd int }

func (p streamPort) send(body []byte, _ int) error {
	for len(body) > 0 {
		n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(p.fd), uintptr(unsafe.Pointer(&body[0])), uintptr(len(body)))
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return e
		}
		body = body[n:]
	}
	return nil
}

func (p streamPort) receive(buf []byte) ([]byte, error) {
	for at := 0; at < len(buf); {
		n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(p.fd), uintptr(unsafe.Pointer(&buf[at])), uintptr(len(buf)-at))
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return nil, e
		}
		if n == 0 {
			return nil, fmt.Errorf("the other side is gone")
		}
		at += int(n)
	}
	return buf, nil
}
