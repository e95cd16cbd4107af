package posix

import (
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// poll is a queue's place in the runtime's poller, for calls that wait. It is made by the first of them: a description that is in an
// epoll costs every send and receive on the queue, by whomever, a call back in the kernel, some 20 ns.
type poll struct {
	mu     sync.Mutex
	closed bool
	file   *os.File // a duplicate of the queue's descriptor
	raw    syscall.RawConn
}

// open returns the file to wait with.
//
// Errors: ErrClosed, ErrLimit (EMFILE; the poller's own limit).
func (p *poll) open(q *Queue) (*os.File, syscall.RawConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, nil, driver.ErrClosed
	case p.file != nil:
		return p.file, p.raw, nil
	}
	fd, err := unix.FcntlInt(uintptr(q.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, descriptorError(err)
	}
	file := os.NewFile(uintptr(fd), q.name)
	raw, err := file.SyscallConn()
	if err == nil {
		if e := file.SetDeadline(time.Time{}); e != nil { // it is not in the poller
			err = failure(driver.ErrLimit, unix.ENOSPC, "the poller does not take the descriptor of %s: %v; epoll's own limit is raised by: "+
				"sysctl -w fs.epoll.max_user_watches=N", q.name, e)
		}
	}
	if err != nil {
		_ = file.Close()
		return nil, nil, err
	}
	p.file, p.raw = file, raw
	return file, raw, nil
}

func (p *poll) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.file != nil {
		_ = p.file.Close()
	}
}
