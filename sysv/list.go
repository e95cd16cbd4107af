package sysv

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// Limits are the bounds of this IPC namespace. Root raises them by sysctl -w kernel.msgmax=N and so on.
type Limits struct {
	MaxSize   int // kernel.msgmax: bytes of a message
	MaxBytes  int // kernel.msgmnb: msg_qbytes of a new queue, and the most that Set allows without CAP_SYS_RESOURCE
	MaxQueues int // kernel.msgmni: queues
}

// GetLimits returns the limits (IPC_INFO), and the highest index that is in use, for StatIndex: 0 too if there is no queue.
//
// Errors: ErrUnsupported (ENOSYS).
func GetLimits() (l Limits, highest int, err error) {
	var k kernelInfo
	highest, err = info(ipcInfo, &k)
	return Limits{int(k.max), int(k.mnb), int(k.mni)}, highest, err
}

// Usage is what all queues of this IPC namespace hold together.
type Usage struct {
	Queues, Messages int
	Bytes            int // of all bodies; the kernel counts in 32 bits
}

// GetUsage returns what is in use (MSG_INFO), and the highest index as GetLimits does.
//
// Errors: ErrUnsupported (ENOSYS).
func GetUsage() (u Usage, highest int, err error) {
	var k kernelInfo
	highest, err = info(msgInfo, &k)
	return Usage{Queues: int(k.pool), Messages: int(k.msgmap), Bytes: int(uint32(k.tql))}, highest, err
}

func info(cmd int, k *kernelInfo) (int, error) {
	n, e := msgctl(0, cmd, unsafe.Pointer(k))
	if e == unix.ENOSYS {
		return 0, failure(driver.ErrUnsupported, e, "this kernel has no System V message queues (CONFIG_SYSVIPC)")
	} else if e != 0 {
		return 0, failure(nil, e, "msgctl IPC_INFO: %v", e)
	}
	return n, nil
}

// StatIndex returns the state of the queue at an index of the kernel's table, from 0 to the highest that GetLimits tells (MSG_STAT;
// with unreadable MSG_STAT_ANY, which asks for no read permission). Indices without a queue are ErrNotFound.
//
// Errors: ErrNotFound (EINVAL), ErrPermission (EACCES).
func StatIndex(index int, unreadable bool) (Status, error) {
	cmd := msgStat
	if unreadable {
		cmd = msgStatAny
	}
	var k kernelQueue
	id, e := msgctlStat(index, cmd, &k)
	switch e {
	case 0:
		return k.status(id), nil
	case unix.EINVAL, unix.EIDRM:
		return Status{}, failure(driver.ErrNotFound, e, "no queue has the index %d", index)
	case unix.EACCES:
		return Status{}, failure(driver.ErrPermission, e, "the mode of the queue at index %d does not allow this user to read", index)
	}
	return Status{}, failure(nil, e, "msgctl MSG_STAT: %v", e)
}

// procFile lists all queues of the reader's IPC namespace, whatever their modes.
const procFile = "/proc/sysvipc/msg"

// List returns all queues of this IPC namespace, those included that the caller may not use, in the order of /proc/sysvipc/msg. That
// file lacks msg_qbytes, which is asked of the kernel (MSG_STAT_ANY, before Linux 4.17 IPC_STAT); a queue that is removed meanwhile
// is left out.
//
// Errors: those of reading that file; ErrUnsupported if it is not there (CONFIG_SYSVIPC, or /proc is not mounted).
func List() ([]Status, error) {
	text, err := os.ReadFile(procFile)
	if os.IsNotExist(err) {
		return nil, failure(driver.ErrUnsupported, unix.ENOENT, "there is no %s: the kernel has no System V queues (CONFIG_SYSVIPC), "+
			"or /proc is not mounted", procFile)
	} else if err != nil {
		return nil, fmt.Errorf("list of the System V queues: %w", err)
	}
	all, err := parseList(text)
	if err != nil {
		return nil, err
	}
	there := all[:0]
	for _, s := range all {
		var k kernelQueue
		switch e := statAnyway(s.ID, &k); e {
		case 0:
			s.QBytes = clamp(k.qbytes)
		case unix.EINVAL, unix.EIDRM:
			continue
		}
		there = append(there, s)
	}
	return there, nil
}

// parseList reads the text of /proc/sysvipc/msg: a line of names, then for each queue
//
//	key msqid perms cbytes qnum lspid lrpid uid gid cuid cgid stime rtime ctime
func parseList(text []byte) (all []Status, err error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for first := true; lines.Scan(); first = false {
		if first {
			continue
		}
		s := Status{QBytes: -1}
		var mode uint32
		var stime, rtime, ctime int64
		if _, err := fmt.Sscanf(lines.Text(), "%d %d %o %d %d %d %d %d %d %d %d %d %d %d", &s.Key, &s.ID, &mode, &s.Bytes, &s.Messages, &s.SendPID,
			&s.RecvPID, &s.UID, &s.GID, &s.CUID, &s.CGID, &stime, &rtime, &ctime); err != nil {
			return nil, fmt.Errorf("%s: line %q: %w", procFile, lines.Text(), err)
		}
		s.Mode = fs.FileMode(mode & 0o777)
		s.LastSend, s.LastRecv, s.Changed = seconds(stime), seconds(rtime), time.Unix(ctime, 0)
		s.Sequence = s.ID >> 15
		all = append(all, s)
	}
	return all, lines.Err()
}
