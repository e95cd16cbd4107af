package sysv

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// Driver returns the driver for kumquat.Register("sysv", …): queues called 0xKEY, PATH,ID or id:IDENTIFIER, whose messages have a
// Type, which is the mtype, and no priority. Type, TypeAtMost and Not are what msgrcv has.
//
// MaxMessages and MaxSize of the Options make msg_qbytes their product; one that is not said takes what the kernel gives
// (kernel.msgmnb, kernel.msgmax). The kernel itself knows only bytes. The process that made the queue, and every process that opens
// it with Create and the same numbers, keeps to them exactly; processes that send at the same moment may each add one message too
// many, within msg_qbytes. The others, C programs among them, are bound by msg_qbytes alone. Where such a count, not the bytes, makes a
// sender wait, another process's receive is noticed within some 5 ms.
//
// With Options.Envelope metadata travel in an envelope (docs/envelope.md), for which msg_qbytes has 4,096 bytes more for each message, as
// far as kernel.msgmnb allows; Peek shows when messages were sent. Bare bodies are received all the same. A damaged envelope is an
// *envelope.Error with its bytes: the kernel cannot leave the message where it is.
func Driver() driver.Driver { return kind{} }

// PriorityDriver returns the driver for kumquat.Register("sysv+priority", …): the same queues, with priorities instead of types. A
// message of priority p has the mtype 32768 − p, and a receive takes the lowest type up to 32768 first (msgrcv with -32768), so
// the highest priority comes first, and FIFO inside. A C program takes part by the same rule. Messages of higher types are not seen.
func PriorityDriver() driver.Driver { return kind{priorities: true} }

// lowestType is the mtype of priority 0.
const lowestType = driver.MaxPriority + 1

type kind struct{ priorities bool }

// handle is a Queue as the contract wants it.
type handle struct {
	q          *Queue
	priorities bool
	readOnly   bool
	envelope   bool // metadata and body travel together, see envelope.go
}

var (
	_ driver.ByteQueue  = (*handle)(nil)
	_ driver.Purger     = (*handle)(nil)
	_ driver.Peeker     = (*handle)(nil)
	_ driver.Readier    = (*handle)(nil)
	_ driver.Descriptor = (*handle)(nil)
	_ driver.Abler      = (*handle)(nil)
)

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{driver.ErrUnsupported}, args...)...)
}

func (k kind) Open(_ context.Context, name string, o *driver.Options) (driver.Queue, error) {
	p, err := parseName(name)
	if err != nil {
		return nil, err
	}
	switch {
	case o.Create && o.Overflow > driver.Reject:
		return nil, unsupported("a System V queue cannot drop messages: Overflow DropOldest and DropLowest")
	case o.Create && o.Headroom != driver.Headroom{}:
		return nil, unsupported("a System V queue keeps no share for the urgent: Headroom")
	case o.Create && o.Durability != driver.Memory:
		return nil, unsupported("System V queues live in the kernel's memory: Durability")
	case o.Create && p.id >= 0:
		return nil, failure(driver.ErrInvalid, unix.EINVAL, "a queue cannot be made with an identifier of one's choice; give it a key")
	}
	q, made, err := k.get(p, o)
	if err != nil {
		return nil, err
	}
	st, err := q.Stat()
	if err == nil && o.Owner != nil && st.UID != *o.Owner {
		err = failure(driver.ErrPermission, unix.EACCES, "the queue belongs to user %d, not to user %d", st.UID, *o.Owner)
	}
	if errors.Is(err, driver.ErrRemoved) {
		err = getError(unix.ENOENT, p.key) // between the two calls
	}
	h := &handle{q: q, priorities: k.priorities, readOnly: o.ReadOnly}
	if err == nil && o.Envelope {
		err = h.sealed(&st)
	}
	if err != nil {
		_ = q.Close()
		return nil, err
	}
	if sh := shapeOf(o); sh != nil && (made || madeFor(o, st.QBytes)) {
		q.s.shape.CompareAndSwap(nil, sh) // who made it, or opened it first, has said it for the process
	}
	return h, nil
}

// get finds the queue or makes it.
func (k kind) get(p place, o *driver.Options) (q *Queue, made bool, err error) {
	want := fs.FileMode(0o600)
	if o.ReadOnly {
		want = 0o400
	}
	if p.id >= 0 {
		if q, err = FromID(p.id); err != nil {
			return nil, false, err
		}
		if st, err := q.Stat(); err != nil {
			_ = q.Close()
			if errors.Is(err, driver.ErrRemoved) {
				err = failure(driver.ErrNotFound, unix.ENOENT, "no System V queue has the identifier %d", p.id)
			}
			return nil, false, err
		} else if st.Key != Private { // msgget checks the access; without a key the calls will
			_ = q.Close()
			q, err = Get(st.Key, 0, want)
			return q, false, err
		}
		return q, false, nil
	}
	if o.Create && o.Owner != nil && *o.Owner != os.Geteuid() {
		q, err = foreign(p.key, want, o)
		return q, false, err
	}
	for {
		if !o.Exclusive {
			if q, err = Get(p.key, 0, want); err == nil || !o.Create || !errors.Is(err, driver.ErrNotFound) {
				return q, false, err
			}
		}
		bytes, err := room(o)
		if err != nil {
			return nil, false, err
		}
		mode := o.Mode
		if mode == 0 {
			mode = 0o600
		}
		q, err = Get(p.key, Create|Exclusive, mode&^umask())
		if err == nil && bytes > 0 {
			if err = q.Set(Change{QBytes: &bytes}); errors.Is(err, driver.ErrLimit) && tight(o) {
				err = nil
			}
			if err != nil {
				_ = q.Remove()
				_ = q.Close()
				return nil, false, err
			}
		}
		if err == nil || o.Exclusive || !errors.Is(err, driver.ErrExists) {
			return q, err == nil, err
		}
	}
}

// foreign finds a queue that another user shall own, without making it: what this user makes, this user owns.
func foreign(key Key, want fs.FileMode, o *driver.Options) (*Queue, error) {
	if o.Exclusive {
		want = 0 // whether it is there matters, not whether it may be used
	}
	q, err := Get(key, 0, want)
	switch {
	case errors.Is(err, driver.ErrNotFound):
		return nil, failure(driver.ErrPermission, unix.EACCES, "user %d cannot make a queue that user %d owns", os.Geteuid(), *o.Owner)
	case err == nil && o.Exclusive:
		_ = q.Close()
		return nil, getError(unix.EEXIST, key)
	}
	return q, err
}

// room returns msg_qbytes for a new queue; 0: as the kernel has it.
func room(o *driver.Options) (int64, error) {
	most, size := sysctl("msgmnb"), sysctl("msgmax")
	longest := o.MaxSize
	if longest > 0 {
		longest += sealing(o)
	}
	if longest > size && size >= 0 {
		what := "MaxSize"
		if o.Envelope {
			what = "MaxSize and envelope"
		}
		return 0, failure(driver.ErrLimit, unix.EINVAL, "%s %d is above kernel.msgmax = %d; it is raised by: sysctl -w kernel.msgmax=%d", what, longest, size, longest)
	}
	switch {
	case o.MaxMessages > 0 && longest > 0:
		if int64(o.MaxMessages) > 1<<62/int64(longest) {
			return 0, qbytesError(1<<63 - 1)
		}
		return int64(o.MaxMessages) * int64(longest), nil
	case max(o.MaxMessages, longest) > most && most >= 0:
		return int64(max(o.MaxMessages, longest)), nil // Set says why not, if it may not
	}
	return 0, nil
}

func shapeOf(o *driver.Options) *shape {
	if !o.Create || o.MaxMessages == 0 && o.MaxSize == 0 && o.Overflow == driver.Block {
		return nil
	}
	return &shape{o.MaxMessages, o.MaxSize, o.Overflow}
}

// umask reads the process's umask, which msgget does not apply, without changing it as umask(2) would.
func umask() fs.FileMode {
	f, err := os.Open("/proc/self/status")
	if err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			var mask fs.FileMode
			if _, err := fmt.Sscanf(lines.Text(), "Umask:\t%o", &mask); err == nil {
				return mask & fs.ModePerm
			}
		}
	}
	old := syscall.Umask(0o77) // no /proc: for a moment stricter than it was, never looser
	syscall.Umask(old)
	return fs.FileMode(old) & fs.ModePerm
}

func (k kind) Remove(_ context.Context, name string) error {
	p, err := parseName(name)
	if err != nil {
		return err
	}
	id := p.id
	if id < 0 {
		var e syscall.Errno
		if id, e = msgget(p.key, 0); e != 0 {
			return getError(e, p.key)
		}
	}
	err = removeID(id)
	if errors.Is(err, driver.ErrRemoved) {
		return failure(driver.ErrNotFound, unix.ENOENT, "there is no System V queue %s", name)
	}
	return err
}

func (k kind) List(_ context.Context, pattern string) ([]driver.Info, error) {
	match, err := matcher(pattern)
	if err != nil {
		return nil, err
	}
	all, err := List()
	if err != nil {
		return nil, err
	}
	var infos []driver.Info
	for i := range all {
		if name := nameOf(&all[i]); match(name) {
			infos = append(infos, driver.Info{Name: name, Stats: stats(&all[i], knownShape(all[i].ID), 0)})
		}
	}
	slices.SortFunc(infos, func(a, b driver.Info) int { return strings.Compare(a.Name, b.Name) })
	return infos, nil
}

// stats puts what the kernel knows into the contract's form. MaxMessages and MaxSize are those of the shape if this process knows it,
// else the kernel's: msg_qbytes bounds both.
func stats(st *Status, sh *shape, held int) driver.Stats {
	s := driver.Stats{
		Messages: int(st.Messages) + held, Bytes: st.Bytes, Mode: st.Mode, UID: st.UID, GID: st.GID,
		MaxMessages: int(max(st.QBytes, 0)), MaxSize: int(max(st.QBytes, 0)), LowestPriority: -1, HighestPriority: -1, MaxBatch: 1,
	}
	if most := sysctl("msgmax"); most >= 0 {
		s.MaxSize = min(s.MaxSize, most)
	}
	if sh != nil {
		s.Overflow = sh.overflow
		if sh.messages > 0 {
			s.MaxMessages = sh.messages
		}
		if sh.size > 0 {
			s.MaxSize = sh.size
		}
	}
	return s
}
