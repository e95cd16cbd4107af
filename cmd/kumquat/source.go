package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/sysv"
)

// source is a queue that messages are moved out of.
type source interface {
	// take takes the next message out of the queue and leaves it in the journal. ErrEmpty: there is none.
	take(ctx context.Context, j *journal) error
	// recover finds out what a journal holds whose process was killed at any moment, and makes that its state.
	recover(ctx context.Context, j *journal) error
}

// newSource returns how messages are taken out of q. Before a message is taken that to would refuse, it is left there, if it can be seen
// beforehand.
func newSource(ctx context.Context, q *kumquat.Queue, f kumquat.Filter, to *target) (source, error) {
	r, err := rowOf(ctx, q)
	if err != nil {
		return nil, err
	}
	switch {
	case r.posix != nil:
		if !f.Any() {
			return nil, fmt.Errorf("%s: %w: a POSIX queue gives out its first message only, and nothing can be selected", q.Name(), kumquat.ErrUnsupported)
		}
		fd, err := q.FD()
		if err != nil {
			return nil, err
		}
		return &posixSource{fd: fd, size: r.posix.MaxSize}, nil
	case r.sysv != nil:
		s := &sysvSource{id: r.sysv.ID, priorities: isByPriority(q.Name()), to: to}
		return s, s.filterBy(&f)
	case r.kind != engineKind:
		return nil, fmt.Errorf("%s: %w: only queues of this machine can be moved out of", q.Name(), kumquat.ErrUnsupported)
	}
	e := &engineSource{q: q, filter: f, to: to}
	e.inode, err = inode(r.Path)
	return e, err
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// posixSource receives from a POSIX queue into the journal.
type posixSource struct {
	fd   int
	size int // the kernel wants so much room, whatever comes
}

func (s *posixSource) take(_ context.Context, j *journal) error {
	if s.size > int(j.head.room) {
		if err := j.resize(s.size); err != nil {
			return err
		}
	}
	before, err := queueBytes(s.fd)
	if err != nil {
		return err
	}
	j.prepare(before)
	var past unix.Timespec // 1970: whatever the flags of the descriptor, it does not wait
	for {
		n, _, e := unix.Syscall6(unix.SYS_MQ_TIMEDRECEIVE, uintptr(s.fd), j.address(), uintptr(s.size), j.priority(), uintptr(unsafe.Pointer(&past)), 0)
		switch e {
		case 0:
			*j.mtype() = 1
			j.took(int(n))
			return nil
		case unix.EINTR:
			continue
		}
		j.set(holdsNothing)
		if e == unix.EAGAIN || e == unix.ETIMEDOUT {
			return kumquat.ErrEmpty
		}
		return os.NewSyscallError("mq_receive", e)
	}
}

func (s *posixSource) recover(_ context.Context, j *journal) error {
	if j.state() != isTaking {
		return nil
	}
	if j.head.priority == noPriority {
		j.set(holdsNothing)
		return nil
	}
	now, err := queueBytes(s.fd)
	if err != nil {
		now = -1 // the queue is gone
	}
	*j.mtype() = 1
	j.took(j.receivedLength(now))
	return nil
}

// queueBytes reads "QSIZE:129 …", the bytes of all bodies.
func queueBytes(fd int) (int64, error) {
	var b [128]byte
	n, err := unix.Pread(fd, b[:], 0)
	if err != nil {
		return 0, os.NewSyscallError("read", err)
	}
	text, ok := strings.CutPrefix(string(b[:n]), "QSIZE:")
	f := strings.Fields(text)
	if !ok || len(f) == 0 {
		return 0, fmt.Errorf("%w: the kernel says %q of the queue", kumquat.ErrUnsupported, b[:n])
	}
	return strconv.ParseInt(f[0], 10, 64)
}

// sysvSource receives from a System V queue into the journal.
type sysvSource struct {
	id         int
	priorities bool
	to         *target
	typ        int64 // as msgrcv has it
	flags      int
	seen       []byte // msgbuf for MSG_COPY
}

// filterBy says a filter as msgrcv has it.
func (s *sysvSource) filterBy(f *kumquat.Filter) error {
	no := func(what string) error {
		return fmt.Errorf("%w: msgrcv cannot select by %s", kumquat.ErrUnsupported, what)
	}
	switch {
	case f.Key != "":
		return no("a key")
	case s.priorities && (f.Type > 0 || f.TypeAtMost > 0 || f.NotType > 0):
		return no("a type where the types are the priorities")
	case s.priorities:
		s.typ = int64(f.MinPriority) - lowestType
	case f.MinPriority > 0:
		return no("a priority: name the queue sysv+priority:… if its types are priorities")
	case f.TypeAtMost > 0 && f.NotType > 0:
		return no("--at-most and --not at once")
	case f.Type > 0:
		s.typ = f.Type
	case f.TypeAtMost > 0:
		s.typ = -f.TypeAtMost
	case f.NotType > 0:
		s.typ, s.flags = f.NotType, sysv.Except
	}
	return nil
}

// lowestType is the mtype of priority 0 where types are priorities.
const lowestType = kumquat.MaxPriority + 1

func (s *sysvSource) take(ctx context.Context, j *journal) error {
	if err := s.refused(ctx); err != nil {
		return err
	}
	for {
		before, err := s.bytes()
		if err != nil {
			return err
		}
		j.prepare(before)
		s.foresee(j)
		room := len(j.body())
		if s.to != nil {
			room = min(room, s.to.maxSize) // a longer one stays where it is
		}
		n, _, e := unix.Syscall6(unix.SYS_MSGRCV, uintptr(s.id), j.msgbuf(), uintptr(room), uintptr(s.typ), uintptr(s.flags|sysv.NoWait), 0)
		if e == 0 {
			s.translate(j)
			j.took(int(n))
			return nil
		}
		j.set(holdsNothing)
		switch {
		case e == unix.EINTR:
		case e == unix.ENOMSG:
			return kumquat.ErrEmpty
		case e == unix.EIDRM || e == unix.EINVAL:
			return kumquat.ErrRemoved
		case e == unix.E2BIG && room < len(j.body()):
			return fmt.Errorf("%w: the next message is longer than the %d bytes that %s takes", kumquat.ErrTooLarge, s.to.maxSize, s.to.q.Name())
		case e == unix.E2BIG:
			if err := j.resize(8 * len(j.body())); err != nil {
				return err
			}
		default:
			return os.NewSyscallError("msgrcv", e)
		}
	}
}

// foresee looks at the message that the next receive will take, if it is the first of all, so that its length is known whatever happens. A
// kernel without MSG_COPY shows nothing, and then there is the fill.
func (s *sysvSource) foresee(j *journal) {
	if s.typ != 0 {
		return
	}
	if n := 8 + len(j.body()); len(s.seen) < n {
		s.seen = make([]byte, n)
	}
	n, _, e := unix.Syscall6(unix.SYS_MSGRCV, uintptr(s.id), uintptr(unsafe.Pointer(&s.seen[0])), uintptr(len(s.seen)-8), 0, uintptr(sysv.Copy|sysv.NoWait), 0)
	if e == 0 {
		j.expect(s.seen[8 : 8+n])
	}
}

// refused looks at the type of the next message where the other queue may not be able to carry it. Without MSG_COPY there is no looking.
func (s *sysvSource) refused(ctx context.Context) error {
	if s.to == nil || s.priorities || s.to.anyType() {
		return nil
	}
	if s.typ == 1 && s.flags == 0 {
		return nil
	}
	k, err := sysv.Driver().Open(ctx, fmt.Sprintf("id:%d", s.id), &driver.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer k.Close()
	f := kumquat.Filter{}
	switch {
	case s.flags != 0:
		f.NotType = s.typ
	case s.typ > 0:
		f.Type = s.typ
	case s.typ < 0:
		f.TypeAtMost = -s.typ
	}
	for m, err := range k.(driver.Peeker).Peek(ctx, driver.PeekOptions{Filter: f, Limit: 1}) {
		if errors.Is(err, kumquat.ErrUnsupported) {
			return nil
		} else if err != nil {
			return err
		}
		_, err = s.to.fit(&m)
		return err
	}
	return nil
}

// translate makes a priority of the type where it stands for one. Killed in its middle it can be done again.
func (s *sysvSource) translate(j *journal) {
	switch {
	case j.head.priority != noPriority:
	case s.priorities:
		j.head.priority = uint32(lowestType - *j.mtype())
	default:
		j.head.priority = 0
	}
	if s.priorities {
		*j.mtype() = 1
	}
}

func (s *sysvSource) bytes() (int64, error) {
	q, err := sysv.FromID(s.id)
	if err != nil {
		return 0, err
	}
	defer q.Close()
	st, err := q.Stat()
	return st.Bytes, err
}

func (s *sysvSource) recover(_ context.Context, j *journal) error {
	if j.state() != isTaking {
		return nil
	}
	if *j.mtype() == 0 {
		j.set(holdsNothing)
		return nil
	}
	now, err := s.bytes()
	if err != nil {
		now = -1 // the queue is gone
	}
	s.translate(j)
	j.took(j.receivedLength(now))
	return nil
}

// engineSource takes messages from a queue of the engine: it looks at the next one, writes it into the journal, and takes it. The
// engine names every message, so a message in the journal was taken if it is no longer in the queue.
type engineSource struct {
	q      *kumquat.Queue
	filter kumquat.Filter
	to     *target
	inode  uint64
	ahead  []kumquat.Message
}

// A look at the next messages goes through the whole queue, for many of them as for one. So it fetches as many as should be in memory
// together, going by how long the bodies in the queue are.
const (
	peekMost  = 16384
	peekBytes = 32 << 20
	peekEach  = 512 // of a message besides its body
)

func (s *engineSource) take(ctx context.Context, j *journal) error {
	for {
		if err := s.look(ctx); err != nil {
			return err
		}
		m := &s.ahead[0]
		if m.NotBefore.After(time.Now()) {
			return kumquat.ErrEmpty // those that are due come first
		}
		if s.to != nil {
			if _, err := s.to.fit(m); err != nil {
				return err
			}
		}
		j.head.inode = s.inode
		if err := j.write(m, isIntending); err != nil {
			return err
		}
		x, err := s.q.TryReceive(s.filter)
		if errors.Is(err, kumquat.ErrEmpty) {
			j.set(holdsNothing)
			s.ahead = nil // others took them all: look once more
			continue
		} else if err != nil {
			j.set(holdsNothing)
			return err
		}
		if x.Seq == m.Seq {
			j.set(holdsMessage)
			s.ahead = s.ahead[1:]
			return nil
		}
		// Another receiver took m, or a more urgent message came: then x is in no journal until it is written here.
		if err := j.write(&x, holdsMessage); err != nil {
			return err
		}
		for i := range s.ahead {
			if s.ahead[i].Seq == x.Seq {
				s.ahead = s.ahead[i+1:]
				break
			}
		}
		return nil
	}
}

// look sees to it that ahead has the next message.
func (s *engineSource) look(ctx context.Context) error {
	if len(s.ahead) > 0 {
		return nil
	}
	st, err := s.q.Stat(ctx)
	if err != nil {
		return err
	}
	body := max(st.Bytes, 0) / int64(max(st.Messages, 1))
	most := int(min(max(peekBytes/(body+peekEach), 1), peekMost))
	s.ahead = s.ahead[:0]
	for m, err := range s.q.Peek(ctx, kumquat.PeekOptions{Filter: s.filter, Limit: most}) {
		if err != nil {
			return err
		}
		s.ahead = append(s.ahead, m)
	}
	if len(s.ahead) == 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		return kumquat.ErrEmpty
	}
	return nil
}

func (s *engineSource) recover(ctx context.Context, j *journal) error {
	if j.state() != isIntending {
		return nil
	}
	if s.inode == j.head.inode {
		for m, err := range s.q.Peek(ctx, kumquat.PeekOptions{NoBody: true}) {
			if err != nil {
				return err
			}
			if m.Seq == j.head.seq {
				j.set(holdsNothing)
				return nil
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	j.set(holdsMessage) // it is not in the queue any more, or the queue is another one
	return nil
}

// identity tells whether two names stand for one queue.
func identity(r *row) string {
	switch {
	case r.posix != nil:
		return fmt.Sprintf("posix %d %d", r.posix.Device, r.posix.Inode)
	case r.sysv != nil:
		return fmt.Sprintf("sysv %d", r.sysv.ID)
	case r.Path != "":
		var st unix.Stat_t
		if unix.Stat(r.Path, &st) == nil {
			return fmt.Sprintf("file %d %d", st.Dev, st.Ino)
		}
	}
	return "name " + r.Name
}
