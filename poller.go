package kumquat

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// poller waits, in one goroutine and one thread, until some of its descriptors are readable; then it reports them and ends. It
// watches numbers that belong to others: a queue that is closed is reported through its channel, because poll(2) goes on waiting
// for a file whose descriptor is closed.
type poller struct {
	woken func(i int)
	fds   []unix.PollFd // the first is the eventfd that ends it
	index []int         // of the queue, for each of fds
	done  []<-chan struct{}
	quit  chan struct{}
	over  chan struct{} // closed when the polling goroutine has ended
	wg    sync.WaitGroup
	once  sync.Once
}

func newPoller(woken func(int)) (*poller, error) {
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("%w: eventfd: %w; ulimit -n tells how many descriptors a process may have", ErrLimit, err)
	}
	return &poller{
		woken: woken,
		fds:   []unix.PollFd{{Fd: int32(end), Events: unix.POLLIN}},
		index: []int{-1},
		done:  []<-chan struct{}{nil},
		quit:  make(chan struct{}),
		over:  make(chan struct{}),
	}, nil
}

func (p *poller) add(i, fd int, closed <-chan struct{}) {
	p.fds = append(p.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	p.index = append(p.index, i)
	p.done = append(p.done, closed)
}

func (p *poller) start() {
	for k := 1; k < len(p.index); k++ {
		p.wg.Go(func() {
			select {
			case <-p.done[k]:
				p.woken(p.index[k])
			case <-p.quit:
			}
		})
	}
	p.wg.Go(func() {
		_, err := pollFDs(p.fds, -1)
		close(p.over) // before the report: who is woken may ask ended
		for k := 1; k < len(p.fds); k++ {
			if err != nil || p.fds[k].Revents != 0 {
				p.woken(p.index[k])
			}
		}
	})
}

func (p *poller) ended() bool {
	select {
	case <-p.over:
		p.stop()
		return true
	default:
		return false
	}
}

// stop ends the poller's goroutines and gives its descriptor back. It may be called again.
func (p *poller) stop() {
	p.once.Do(func() {
		close(p.quit)
		one := binary.NativeEndian.AppendUint64(nil, 1)
		for { // an eventfd that was written once takes a second 8 bytes: only a signal can be in the way
			if _, err := unix.Write(int(p.fds[0].Fd), one); err != unix.EINTR {
				break
			}
		}
		p.wg.Wait()
		_ = unix.Close(int(p.fds[0].Fd)) // nothing was written that could be lost
	})
}

// pollFDs is poll(2), done again after signals: the runtime sends itself some.
func pollFDs(fds []unix.PollFd, timeout int) (int, error) {
	for {
		n, err := unix.Poll(fds, timeout)
		if err != unix.EINTR {
			return n, err
		}
	}
}
