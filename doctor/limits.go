package doctor

import (
	"math"
	"strconv"
	"strings"

	"github.com/kumquat-mq/kumquat/posix"
)

// What Linux begins with (include/linux/ipc_namespace.h, include/uapi/linux/msg.h).
const (
	usualMessages = 10
	usualSize     = 8192
	usualMsgMax   = 8192
	usualMsgMnb   = 16384
)

// mqueueLimits looks at fs.mqueue.*, which hold for new POSIX queues of this IPC namespace.
func (m *machine) mqueueLimits() (fs []Finding) {
	most, size := m.sysctl("fs.mqueue.msg_max"), m.sysctl("fs.mqueue.msgsize_max")
	free := ""
	if m.privileged() {
		free = "; not for this process, which has CAP_SYS_RESOURCE: 65,536 messages of 16 MiB"
	}
	fs = append(fs, m.capacity("mqueue.msg_max", "fs.mqueue.msg_max", most, usualMessages, 256,
		"a POSIX queue can be made for %d messages at most, beyond it mq_open says EINVAL"+free))
	fs = append(fs, m.capacity("mqueue.msgsize_max", "fs.mqueue.msgsize_max", size, usualSize, 65536,
		"a POSIX queue can be made for messages of %d bytes at most, beyond it mq_open says EINVAL"+free))
	fs = append(fs, m.usual("mqueue.msg_default", "fs.mqueue.msg_default", most, "messages", "fs.mqueue.msg_max"))
	fs = append(fs, m.usual("mqueue.msgsize_default", "fs.mqueue.msgsize_default", size, "bytes", "fs.mqueue.msgsize_max"))

	const check, name = "mqueue.queues_max", "fs.mqueue.queues_max"
	queues := m.sysctl(name)
	used := int64(len(m.posix))
	if m.holders != nil {
		used += int64(len(m.holders.Unlinked))
	}
	switch {
	case queues < 0:
		fs = append(fs, unreadable(check, name))
	case m.posixErr != nil:
		fs = append(fs, note(check, "", "%d POSIX queues are allowed; how many there are cannot be seen: %v", queues, m.posixErr))
	case part(used, queues, near):
		fs = append(fs, attention(check, m.setSysctl(name, max(2*queues, 256)), "%d of %d POSIX queues are there; beyond it mq_open says ENOSPC", used, queues))
	default:
		fs = append(fs, ok(check, "%d of %d POSIX queues are there", used, queues))
	}
	return fs
}

// capacity looks at a limit that is as low as Linux has it unless somebody raised it.
func (m *machine) capacity(check, name string, value, usual, better int64, text string) Finding {
	switch {
	case value < 0:
		return unreadable(check, name)
	case value < usual:
		return attention(check, m.setSysctl(name, better), text+"; that is less than the %d of every other Linux, which programs rely on", value, usual)
	case value == usual:
		return note(check, m.setSysctl(name, better), text, value)
	}
	return ok(check, text, value)
}

// usual looks at the shape of queues that are made without attributes.
func (m *machine) usual(check, name string, limit int64, unit, over string) Finding {
	switch value := m.sysctl(name); {
	case value < 0:
		return unreadable(check, name)
	case limit > 0 && value > limit:
		return note(check, m.setSysctl(over, value), "%d %s for a queue made without attributes, but %s = %d is lower and counts", value, unit, over, limit)
	default:
		return ok(check, "%d %s for a queue made without attributes", value, unit)
	}
}

func unreadable(check, name string) Finding {
	return note(check, "", "%s cannot be read: the kernel does not have such queues, or /proc is not mounted", name)
}

// privileged reports whether this process has CAP_SYS_RESOURCE (24).
func (m *machine) privileged() bool {
	caps, err := strconv.ParseUint(m.status("self", "CapEff"), 16, 64)
	return err == nil && caps&(1<<24) != 0
}

// status returns a field of /proc/PID/status.
func (m *machine) status(pid, field string) string {
	for line := range strings.Lines(m.read("proc", pid, "status")) {
		if key, value, _ := strings.Cut(line, ":"); key == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// limit reads a line of /proc/self/limits: "Max msgqueue size   819200   819200   bytes". math.MaxInt64 is no limit.
func (m *machine) limit(name string) (soft, hard int64, found bool) {
	for line := range strings.Lines(m.read("proc/self/limits")) {
		rest, is := strings.CutPrefix(line, name)
		if f := strings.Fields(rest); is && len(f) >= 2 {
			var errs [2]error
			soft, errs[0] = limitValue(f[0])
			hard, errs[1] = limitValue(f[1])
			return soft, hard, errs[0] == nil && errs[1] == nil
		}
	}
	return 0, 0, false
}

func limitValue(s string) (int64, error) {
	if s == "unlimited" {
		return math.MaxInt64, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return int64(min(n, math.MaxInt64)), err
}

// mqueueBytes looks at RLIMIT_MSGQUEUE, which bounds all POSIX queues of a user together, root's too.
func (m *machine) mqueueBytes() []Finding {
	const check = "rlimit.msgqueue"
	soft, hard, found := m.limit("Max msgqueue size")
	if !found {
		return []Finding{note(check, "", "RLIMIT_MSGQUEUE cannot be read: /proc is not mounted")}
	}
	if soft == math.MaxInt64 {
		return []Finding{ok(check, "RLIMIT_MSGQUEUE does not bound the POSIX queues of this user")}
	}
	var used int64
	for _, x := range m.posix {
		if x.UID == m.uid && x.Err == nil {
			used += posix.Footprint(x.MaxMessages, x.MaxSize)
		}
	}
	most, size := m.sysctl("fs.mqueue.msg_max"), m.sysctl("fs.mqueue.msgsize_max")
	plain := posix.Footprint(int(min(m.sysctl("fs.mqueue.msg_default"), most)), int(min(m.sysctl("fs.mqueue.msgsize_default"), size)))
	if plain == 0 {
		plain = posix.Footprint(usualMessages, usualSize)
	}
	largest := posix.Footprint(int(most), int(size))
	const service = "; those in other IPC namespaces count too and are not seen; of a service: LimitMSGQUEUE= of its unit"
	switch {
	case m.posixErr != nil:
		return []Finding{note(check, "", "the POSIX queues of this user may take %d bytes together (RLIMIT_MSGQUEUE); what they take cannot be seen: %v", soft, m.posixErr)}
	case soft-used < plain:
		return []Finding{raised(attention(check, "", "the POSIX queues of this user take %d of %d bytes (RLIMIT_MSGQUEUE), so that no further queue of the usual size fits, "+
			"which takes %d: mq_open says EMFILE"+service, used, soft, plain), max(used, soft)+10*plain, hard)}
	case part(used, soft, near):
		return []Finding{raised(attention(check, "", "the POSIX queues of this user take %d of %d bytes (RLIMIT_MSGQUEUE); beyond it mq_open says EMFILE"+service,
			used, soft), 2*soft, hard)}
	case largest > soft-used:
		return []Finding{raised(note(check, "", "the POSIX queues of this user take %d of %d bytes (RLIMIT_MSGQUEUE); a queue of the largest size that fs.mqueue.* allow "+
			"takes %d and does not fit"+service, used, soft, largest), used+largest, hard)}
	}
	return []Finding{ok(check, "the POSIX queues of this user take %d of %d bytes (RLIMIT_MSGQUEUE); %d more of the usual size fit", used, soft, (soft-used)/plain)}
}

// raised adds the command that raises RLIMIT_MSGQUEUE: the shell's own up to the hard limit, which only root can raise.
func raised(f Finding, to, hard int64) Finding {
	n := strconv.FormatInt(to, 10)
	if to <= hard {
		f.Fix, f.Root = "ulimit -q "+n, false
		return f
	}
	f.Fix, f.Root = "prlimit --pid $$ --msgqueue="+n+":"+n, true
	return f
}

// sysvLimits looks at kernel.msg*.
func (m *machine) sysvLimits() (fs []Finding) {
	longest, room, queues := m.sysctl("kernel.msgmax"), m.sysctl("kernel.msgmnb"), m.sysctl("kernel.msgmni")
	fs = append(fs, m.capacity("sysv.msgmax", "kernel.msgmax", longest, usualMsgMax, 65536,
		"a message of a System V queue has %d bytes at most, beyond it msgsnd says EINVAL"))
	if longest > 0 && room >= 0 && room < longest {
		fs = append(fs, attention("sysv.msgmnb", m.setSysctl("kernel.msgmnb", 16*longest), "a new System V queue has room for %d bytes, but a message may have %d "+
			"(kernel.msgmax): a longer one than the room waits for ever", room, longest))
	} else {
		fs = append(fs, m.capacity("sysv.msgmnb", "kernel.msgmnb", room, usualMsgMnb, 1<<20,
			"a new System V queue has room for %d bytes; queues that are there keep theirs"))
	}
	const check = "sysv.msgmni"
	used := int64(len(m.sysv))
	switch {
	case queues < 0:
		fs = append(fs, unreadable(check, "kernel.msgmni"))
	case m.sysvErr != nil:
		fs = append(fs, note(check, "", "%d System V queues are allowed; how many there are cannot be seen: %v", queues, m.sysvErr))
	case part(used, queues, near):
		fs = append(fs, attention(check, m.setSysctl("kernel.msgmni", max(2*queues, 1024)), "%d of %d System V queues are there; beyond it msgget says ENOSPC", used, queues))
	default:
		fs = append(fs, ok(check, "%d of %d System V queues are there", used, queues))
	}
	return fs
}
