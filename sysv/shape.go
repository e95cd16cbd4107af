package sysv

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// shape is what the kernel does not know of a queue that the driver made. The kernel's bound is msg_qbytes: so many bytes, and
// so many messages. With room for n messages of size bytes a queue takes more than n shorter ones. So a process that knows what its
// Options said counts messages too, and its sends are admitted one at a time. Processes that send at the same moment may each see
// the last place; then there are more messages than asked for, by one for each, but never more bytes than msg_qbytes.
type shape struct {
	messages int // 0: as many as fit
	size     int
	overflow driver.Overflow
}

// knownShape is the shape of a queue that this process has open.
func knownShape(id int) *shape {
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if s := pool.queues[id]; s != nil {
		return s.shape.Load()
	}
	return nil
}

// countFull reports whether the shape has no room for m though the kernel's queue has. No system call can sleep for such room: the
// process's own receives look, and the sweeper.
func (s *shared) countFull(m []byte) bool {
	sh := s.shape.Load()
	if sh == nil || sh.messages == 0 {
		return false
	}
	var k kernelQueue
	if _, e := msgctlStat(s.id, ipcStat, &k); e != 0 {
		return false
	}
	return k.qnum+uint64(s.held.Load()) >= uint64(sh.messages) && k.cbytes+uint64(len(m)-header) <= k.qbytes
}

// trySend sends m without waiting, within the shape if there is one: EAGAIN.
func (s *shared) trySend(m []byte) syscall.Errno {
	if sh := s.shape.Load(); sh != nil && sh.messages > 0 {
		s.admit.Lock()
		defer s.admit.Unlock()
		return s.admitted(sh, m)
	}
	return trySend(s.id, m)
}

// admitted is trySend where s.admit is held. The place of a send that sleeps in the kernel is taken: it may be woken at any moment.
func (s *shared) admitted(sh *shape, m []byte) syscall.Errno {
	var k kernelQueue
	if _, e := msgctlStat(s.id, ipcStat, &k); e == 0 && k.qnum+uint64(s.held.Load())+uint64(s.inside) >= uint64(sh.messages) {
		return unix.EAGAIN
	}
	return trySend(s.id, m)
}

// send sleeps until m is sent. EAGAIN means that the shape is full where the kernel's queue is not, and that no sleep helps.
func (s *shared) send(m []byte) syscall.Errno {
	sh := s.shape.Load()
	if sh == nil || sh.messages == 0 {
		return sendWaiting(s.id, m)
	}
	s.admit.Lock()
	if e := s.admitted(sh, m); e != unix.EAGAIN || s.countFull(m) {
		s.admit.Unlock()
		return e
	}
	// The kernel lacks bytes. When it has them a message has gone, so there is a place too, and none but this send gets it.
	s.inside++
	s.admit.Unlock()
	e := sendWaiting(s.id, m)
	s.admit.Lock()
	s.inside--
	s.admit.Unlock()
	return e
}
