package posix

import (
	"context"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// Notification (mq_notify) tells one process, once, of a message that comes to an empty queue. The kernel's rules, which hold for
// all the ways below:
//
//   - One registration per queue, of whatever process: a second is ErrBusy.
//   - It fires when the queue was empty and no thread waits in TimedReceive or mq_receive; one that waits takes the message, and the
//     registration stays. Those who wait in the poller are not waiting in this sense. Then it is gone: register anew, and only then
//     drain the queue, or a message that comes in between is told to nobody.
//   - Registering on a queue that is not empty does not fire.
//   - It ends when the process closes any descriptor of the queue.
//
// Arrivals keeps to these rules by itself.

// NotifySignal asks for the signal sig with value (SIGEV_SIGNAL). Take it by os/signal.Notify before. The kernel sends si_code
// SI_MESGQ, the value, and pid and uid of the sender along; the Go runtime hands on the number of the signal alone, so the rest is
// seen only by handlers that C code of the program installed. sig 0 is legal and sends nothing.
//
// Errors: ErrBusy (EBUSY), ErrInvalid (EINVAL: no such signal), ErrClosed.
func (q *Queue) NotifySignal(sig syscall.Signal, value uintptr) error {
	return q.register(&kernelEvent{value: value, signo: int32(sig), notify: sigevSignal})
}

// NotifyNone registers without asking to be told (SIGEV_NONE): it keeps others from registering, and NotifyPID of Info, or
// /dev/mqueue/NAME, show when it was used up.
//
// Errors: ErrBusy, ErrClosed.
func (q *Queue) NotifyNone() error { return q.register(&kernelEvent{notify: sigevNone}) }

// NotifyFunc calls f once, on a goroutine of its own, when a message has come (SIGEV_THREAD). f may register anew. If the
// registration ends otherwise, f is not called.
//
// Errors: ErrBusy, ErrLimit (no descriptor for the netlink socket that the kernel tells by), ErrInvalid (f is nil), ErrClosed.
func (q *Queue) NotifyFunc(f func()) error {
	if f == nil {
		return failure(driver.ErrInvalid, unix.EINVAL, "the function is nil")
	}
	n, err := q.listen()
	if err != nil {
		return err
	}
	go func() {
		fired, err := n.wait()
		n.end()
		if err == nil && fired {
			f()
		}
	}()
	return nil
}

// NotifyCancel withdraws this process's registration, and ends the channels that Arrivals of this handle gave (mq_notify with a null
// pointer). A registration of another process stays, and that is no error.
//
// Errors: ErrClosed.
func (q *Queue) NotifyCancel() error {
	q.notices.stopAll()
	return q.register(nil)
}

// Arrivals returns a channel on which a value arrives after a message came to the empty queue. It registers like NotifyFunc and
// registers anew each time before it gives the value, so: receive a value, drain the queue by TryReceive until ErrEmpty, and no
// arrival is missed; several may be told by one value. Messages that are there when Arrivals is called give no value. The channel is
// closed when ctx is done or the queue is closed, and by NotifyCancel. Should another process take the registration in the moment
// when it is free, the channel goes on by polling the descriptor in its stead, which may give values for nothing.
//
// Errors: those of NotifyFunc.
func (q *Queue) Arrivals(ctx context.Context) (<-chan struct{}, error) {
	n, err := q.listen()
	if err != nil {
		return nil, err
	}
	c := make(chan struct{}, 1)
	leave := context.AfterFunc(ctx, n.withdraw)
	go func() {
		defer close(c)
		defer n.end()
		defer leave()
		for {
			fired, err := n.wait()
			if err != nil {
				return
			}
			switch err := n.again(); {
			case err == nil:
			case err == ErrBusy:
				n.poll(ctx, c)
				return
			default:
				return
			}
			// Removed, not fired: some other descriptor of this process was closed. What came since is told now.
			if a, err := q.Attr(); fired || err == nil && a.Messages > 0 {
				offer(c)
			}
		}
	}()
	return c, nil
}

func offer(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default: // a value is there that was not looked at yet; it tells of this one as well
	}
}

// notices are the registrations of one handle that the kernel tells by netlink.
type notices struct {
	mu     sync.Mutex
	all    map[*notice]struct{}
	wg     sync.WaitGroup
	closed bool
}

// notice is one of them: the socket that the kernel sends a cookie of 32 bytes to, which is ours to choose but for the last byte.
type notice struct {
	q       *Queue
	sock    *os.File
	stopped bool // under notices.mu: it must not be made anew
	armed   bool // under notices.mu: as far as is known
	halt    chan struct{}
}

// listen makes a socket and registers it. Who calls it starts the one goroutine that waits, and ends.
func (q *Queue) listen() (*notice, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err == unix.EMFILE || err == unix.ENFILE {
		return nil, descriptorError(err)
	}
	if err != nil {
		return nil, failure(driver.ErrUnsupported, err.(syscall.Errno), "no netlink socket, by which the kernel tells: %v", err)
	}
	n := &notice{q: q, sock: os.NewFile(uintptr(fd), "mq_notify"), halt: make(chan struct{})}
	s := &q.notices
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = n.sock.Close()
		return nil, driver.ErrClosed
	}
	if err := n.arm(fd); err != nil {
		_ = n.sock.Close()
		return nil, err
	}
	if s.all == nil {
		s.all = map[*notice]struct{}{}
	}
	s.all[n] = struct{}{}
	s.wg.Add(1)
	return n, nil
}

// arm registers the socket. The kernel keeps it, not its number.
func (n *notice) arm(fd int) error {
	var cookie [cookieSize]byte
	var pin runtime.Pinner // its address stands in a word that is no pointer to the compiler
	pin.Pin(&cookie)
	defer pin.Unpin()
	err := n.q.register(&kernelEvent{value: addressOf(&cookie), signo: int32(fd), notify: sigevThread})
	n.armed = err == nil
	return err
}

// again registers anew.
func (n *notice) again() error {
	n.q.notices.mu.Lock()
	defer n.q.notices.mu.Unlock()
	n.armed = false
	if n.stopped {
		return driver.ErrClosed
	}
	raw, err := n.sock.SyscallConn()
	if err != nil {
		return err
	}
	var armed error
	if err := raw.Control(func(fd uintptr) { armed = n.arm(int(fd)) }); err != nil {
		return err
	}
	return armed
}

// wait returns when the registration fired, or (false) was removed, or with an error when it was stopped.
func (n *notice) wait() (fired bool, err error) {
	var b [2 * cookieSize]byte
	for {
		k, err := n.sock.Read(b[:])
		if err != nil {
			return false, err
		}
		if k == cookieSize { // anything else is none of the kernel's
			return b[cookieSize-1] == cookieFired, nil
		}
	}
}

// poll goes on without a registration.
func (n *notice) poll(ctx context.Context, c chan<- struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, err := n.q.watch.subscribe(ctx, n.q)
	if err != nil {
		return
	}
	offer(c) // what came while nobody was registered
	for {
		select {
		case _, ok := <-in:
			if !ok {
				return
			}
			offer(c)
		case <-n.halt:
			return
		}
	}
}

// stop ends the wait. notices.mu is held.
func (n *notice) stop() {
	if !n.stopped {
		n.stopped = true
		close(n.halt)
		_ = n.sock.Close() // what the kernel sends it from now on is lost, as it should be
	}
}

// withdraw ends the wait and takes the registration back.
func (n *notice) withdraw() {
	n.q.notices.mu.Lock()
	defer n.q.notices.mu.Unlock()
	if armed := n.armed && !n.stopped; armed {
		_ = n.q.register(nil) // it fails on a closed queue, whose registration is gone
	}
	n.stop()
}

// end is the last that the goroutine does with the notice.
func (n *notice) end() {
	s := &n.q.notices
	s.mu.Lock()
	n.stop()
	delete(s.all, n)
	s.mu.Unlock()
	s.wg.Done()
}

func (s *notices) stopAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.all {
		n.stop()
	}
}

// close ends all and waits for their goroutines, functions that were called already left out.
func (s *notices) close(q *Queue) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stopAll()
	s.wg.Wait()
	forget(q)
}

// register is mq_notify.
func (q *Queue) register(ev *kernelEvent) error {
	if !q.acquire() {
		return driver.ErrClosed
	}
	defer q.release()
	switch e := mqNotify(q.fd, ev); e {
	case 0:
		if ev != nil {
			remember(q)
		}
		return nil
	case unix.EBUSY:
		return ErrBusy
	case unix.EINVAL:
		return failure(driver.ErrInvalid, e, "there is no signal %d", ev.signo)
	case unix.ENOMEM:
		return failure(driver.ErrNoSpace, e, "the kernel has no memory for a notification")
	default:
		return failure(nil, e, "mq_notify: %v", e)
	}
}

// noticed are the handles by which this process registered, perhaps: List and Stat read those queues by them, because closing a
// descriptor of their own would remove the registration.
var noticed struct {
	sync.Mutex
	m map[*Queue]struct{}
}

func remember(q *Queue) {
	noticed.Lock()
	defer noticed.Unlock()
	if noticed.m == nil {
		noticed.m = map[*Queue]struct{}{}
	}
	noticed.m[q] = struct{}{}
}

func forget(q *Queue) {
	noticed.Lock()
	defer noticed.Unlock()
	delete(noticed.m, q)
}

func notified(id identity) *Queue {
	return findNotified(func(q *Queue) bool { return q.identity == id })
}

func notifiedByName(name string) *Queue {
	return findNotified(func(q *Queue) bool { return q.name == name })
}

func findNotified(is func(*Queue) bool) *Queue {
	noticed.Lock()
	defer noticed.Unlock()
	for q := range noticed.m {
		if is(q) {
			return q
		}
	}
	return nil
}
