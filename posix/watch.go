package posix

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// watcher tells any number of subscribers that a queue is no longer empty, without the one registration that mq_notify has, by an
// epoll of its own: edge-triggered, it reports every send to the queue, and receives that leave something in it. One goroutine
// serves a handle while there are subscribers; it waits in the runtime's poller, which watches the epoll descriptor in turn.
type watcher struct {
	mu     sync.Mutex
	now    *watch
	wg     sync.WaitGroup
	closed bool
}

type watch struct {
	ep     *os.File
	unlink int // inotify of the queue's inode, to learn that its name is removed; −1: it has none already
	subs   map[chan struct{}]struct{}
}

// subscribe returns a channel that gets a value when the queue may no longer be empty. It is closed when ctx is done, or the queue
// is closed or unlinked.
func (w *watcher) subscribe(ctx context.Context, q *Queue) (<-chan struct{}, error) {
	if !q.acquire() {
		return nil, driver.ErrClosed
	}
	defer q.release()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, driver.ErrClosed
	}
	if w.now == nil {
		n, err := startWatch(q.fd)
		if err != nil {
			return nil, err
		}
		w.now = n
		w.wg.Go(func() { w.run(n, q.fd) })
	}
	n, c := w.now, make(chan struct{}, 1)
	n.subs[c] = struct{}{}
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, there := n.subs[c]; !there {
			return
		}
		delete(n.subs, c)
		close(c)
		if len(n.subs) == 0 {
			w.end(n)
		}
	})
	return c, nil
}

// end stops n's goroutine. mu is held.
func (w *watcher) end(n *watch) {
	if w.now == n {
		w.now = nil
	}
	_ = n.ep.Close()
}

func (w *watcher) close() {
	w.mu.Lock()
	w.closed = true
	if w.now != nil {
		w.end(w.now)
	}
	w.mu.Unlock()
	w.wg.Wait()
}

func startWatch(fd int) (_ *watch, err error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, descriptorError(err)
	}
	n := &watch{unlink: -1, subs: map[chan struct{}]struct{}{}}
	defer func() {
		if err != nil {
			_ = unix.Close(ep)
			n.closeUnlink()
		}
	}()
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET&0xffffffff, Fd: int32(fd)}); err != nil {
		return nil, watchError(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Nlink > 0 {
		if n.unlink, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
			return nil, watchError(err)
		}
		// The link count is an attribute: removing the name changes it.
		if _, err := unix.InotifyAddWatch(n.unlink, fmt.Sprintf("/proc/self/fd/%d", fd), unix.IN_ATTRIB|unix.IN_DELETE_SELF); err != nil {
			return nil, watchError(err)
		}
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, n.unlink, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(n.unlink)}); err != nil {
			return nil, watchError(err)
		}
	}
	// The first edge tells of what is there already; that is not news.
	var ev [1]unix.EpollEvent
	if _, err := unix.EpollWait(ep, ev[:], 0); err != nil && err != unix.EINTR {
		return nil, watchError(err)
	}
	if err := unix.SetNonblock(ep, true); err != nil { // for package os, which asks
		return nil, watchError(err)
	}
	n.ep = os.NewFile(uintptr(ep), "epoll")
	return n, nil
}

func watchError(err error) error {
	e, _ := err.(syscall.Errno)
	return failure(driver.ErrLimit, e, "cannot watch the queue: %v; the limits are RLIMIT_NOFILE (ulimit -n), fs.epoll.max_user_watches and "+
		"fs.inotify.max_user_instances (sysctl)", err)
}

func (n *watch) closeUnlink() {
	if n.unlink >= 0 {
		_ = unix.Close(n.unlink)
	}
}

// run offers values until the epoll is closed or the queue unlinked, then closes what channels are left.
func (w *watcher) run(n *watch, fd int) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for c := range n.subs {
			close(c)
		}
		n.subs = nil
		w.end(n)
		n.closeUnlink()
	}()
	raw, err := n.ep.SyscallConn()
	if err != nil {
		return
	}
	var evs [2]unix.EpollEvent
	for {
		var k int
		if err := raw.Read(func(ep uintptr) bool {
			k, err = unix.EpollWait(int(ep), evs[:], 0)
			return k > 0
		}); err != nil {
			return
		}
		for _, ev := range evs[:k] {
			if int(ev.Fd) == fd {
				n.tell(w)
			} else if n.unlinked(fd) {
				return
			}
		}
	}
}

func (n *watch) tell(w *watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range n.subs {
		offer(c)
	}
}

// unlinked takes what inotify has and asks the inode: other attributes change as well.
func (n *watch) unlinked(fd int) bool {
	var b [4096]byte
	for {
		if k, err := unix.Read(n.unlink, b[:]); err == unix.EINTR || k > 0 {
			continue
		}
		break
	}
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Nlink == 0
}
