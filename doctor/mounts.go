package doctor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const mqueueDir = "/dev/mqueue"

// mqueueMount looks whether POSIX queues can be listed, and removed with rm.
func (m *machine) mqueueMount() []Finding {
	const check = "mqueue.mount"
	const mountIt = "mkdir -p /dev/mqueue && mount -t mqueue none /dev/mqueue"
	var at mount
	elsewhere := ""
	for _, x := range m.mounts() {
		switch {
		case x.point == mqueueDir:
			at = x
		case x.kind == "mqueue":
			elsewhere = x.point
		}
	}
	switch {
	case at.kind != "mqueue" && elsewhere != "":
		return []Finding{note(check, mountIt, "the file system of the POSIX queues is mounted at %s, and not at /dev/mqueue, where programs look for it", elsewhere)}
	case at.kind != "mqueue":
		return []Finding{attention(check, mountIt, "/dev/mqueue is not mounted: POSIX queues cannot be seen with ls, nor removed with rm; nobody but root can list them")}
	case at.has("ro"):
		return []Finding{attention(check, "mount -o remount,rw /dev/mqueue", "/dev/mqueue is mounted for reading only: nobody can remove a POSIX queue there")}
	}
	if fi, err := os.Stat(m.path(mqueueDir)); err == nil && m.posixErr == nil {
		dev, known := device(fi)
		for _, x := range m.posix {
			if known && x.Device != dev {
				return []Finding{attention(check, "umount /dev/mqueue && mount -t mqueue none /dev/mqueue", "/dev/mqueue shows the queues of another IPC namespace, and not "+
					"those that this process can open, %s for one", x.Name)}
			}
		}
	}
	return []Finding{ok(check, "/dev/mqueue is mounted")}
}

func device(fi os.FileInfo) (uint64, bool) {
	st, is := fi.Sys().(*syscall.Stat_t)
	if !is {
		return 0, false
	}
	return uint64(st.Dev), true
}

// Below this much /dev/shm is what containers get by default rather than what somebody has chosen.
const smallShm = 64 << 20

// shmMount looks at the file system of the engine's queues.
func (m *machine) shmMount() (fs []Finding) {
	const check = "shm.mount"
	fi, err := os.Stat(m.path(m.shm))
	if err != nil {
		fix := "mkdir -p " + quoted(m.shm)
		if m.shm == defaultShm {
			fix = "mkdir -p /dev/shm && mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm"
		}
		return []Finding{attention(check, fix, "%s cannot be used, so no queue of the engine can: %v", m.shm, bare(err))}
	}
	at, exact := m.at(m.shm)
	switch {
	case at.kind == "":
		fs = append(fs, note(check, "", "what %s is mounted on cannot be seen: /proc is not mounted", m.shm))
	case at.kind != "tmpfs" && at.kind != "ramfs" && at.kind != "hugetlbfs":
		fix := ""
		if m.shm == defaultShm {
			fix = "mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm"
		}
		fs = append(fs, attention(check, fix, "%s is no memory, but %s at %s: the engine's queues are slow there", m.shm, at.kind, at.point))
	case at.has("ro"):
		fs = append(fs, attention(check, "mount -o remount,rw "+quoted(at.point), "%s is mounted for reading only: no queue of the engine can be made or used", at.point))
	default:
		fs = append(fs, ok(check, "%s is %s (%s)", m.shm, at.kind, strings.Join(at.options, ",")))
	}
	if huge, set := at.value("huge"); set && huge != "never" && huge != "advise" {
		fs = append(fs, note("shm.huge", "mount -o remount,huge=advise "+quoted(at.point), "%s gives memory in pieces of 2 MiB (huge=%s): the smallest queue takes several", at.point, huge))
	}
	if mode := fi.Mode(); exact && m.shm == defaultShm && (mode&os.ModeSticky == 0 || mode.Perm() != 0o777) {
		text := "not everybody may make queues in it"
		if mode.Perm()&0o002 != 0 {
			text = "everybody may remove the queues of others in it"
		}
		fs = append(fs, attention("shm.mode", "chmod 1777 /dev/shm", "/dev/shm has mode %s instead of 1777: %s", octal(mode), text))
	}
	s, err := statfs(m.path(m.shm))
	if err != nil {
		return append(fs, note("shm.size", "", "the size of %s cannot be found out: %v", m.shm, err))
	}
	return append(fs, m.shmSpace(at, room{int64(s.Blocks) * s.Bsize, int64(s.Bavail) * s.Bsize, int64(s.Files), int64(s.Ffree)})...)
}

// room is what statfs says. A tmpfs without a limit has a size of 0.
type room struct{ size, free, files, filesFree int64 }

// shmSpace looks at the size of the file system with the engine's queues, and what bounds it besides.
func (m *machine) shmSpace(at mount, r room) (fs []Finding) {
	const check = "shm.size"
	if at.kind != "tmpfs" {
		return nil
	}
	remount := func(size int64) string {
		return fmt.Sprintf("mount -o remount,size=%d %s", size, quoted(at.point))
	}
	memory := m.memory()
	switch {
	case part(r.size-r.free, r.size, near):
		fs = append(fs, attention(check, remount(2*r.size), "%s of %s of %s are in use; when it is full, sends say ErrNoSpace", bytesText(r.size-r.free), bytesText(r.size), at.point))
	case r.size == 0:
		fs = append(fs, note(check, remount(max(memory/2, 1<<30)), "%s has no limit: queues that nobody reads can take all memory of the machine", at.point))
	case memory > 0 && r.size > memory:
		fs = append(fs, note(check, remount(memory/2), "%s may take %s, more than the %s of memory of the machine", at.point, bytesText(r.size), bytesText(memory)))
	case r.size <= smallShm:
		f := note(check, remount(1<<30), "%s has %s, as containers get by default; %s free", at.point, bytesText(r.size), bytesText(r.free))
		if m.inContainer() {
			f.Fix = "docker run --shm-size=1g …"
		}
		fs = append(fs, f)
	default:
		fs = append(fs, ok(check, "%s has %s, %s of them free", at.point, bytesText(r.size), bytesText(r.free)))
	}
	if part(r.files-r.filesFree, r.files, near) {
		fs = append(fs, attention("shm.files", fmt.Sprintf("mount -o remount,nr_inodes=%d %s", 2*r.files, quoted(at.point)),
			"%d of %d files of %s are there; beyond it no queue can be made", r.files-r.filesFree, r.files, at.point))
	}
	if limit, where := m.memoryLimit(); limit > 0 && limit < r.free {
		fs = append(fs, note("shm.memory", "", "what lies in %s counts as memory of this control group, which may have %s (%s): its processes are killed before %s are full",
			at.point, bytesText(limit), where, bytesText(r.size)))
	}
	return fs
}

// memory returns the bytes of memory of the machine, 0 if that is unknown.
func (m *machine) memory() int64 {
	for line := range strings.Lines(m.read("proc/meminfo")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err == nil {
				return kib << 10
			}
		}
	}
	return 0
}

// memoryLimit returns the least limit of memory of this process's control group and those above it (version 2), 0: none.
func (m *machine) memoryLimit() (limit int64, where string) {
	for dir := m.cgroup("self"); dir != ""; {
		n, err := strconv.ParseInt(strings.TrimSpace(m.read(cgroupDir, dir, "memory.max")), 10, 64)
		if err == nil && (limit == 0 || n < limit) {
			limit, where = n, cgroupDir+strings.TrimSuffix(dir, "/")+"/memory.max"
		}
		i := strings.LastIndexByte(strings.TrimSuffix(dir, "/"), '/')
		if dir == "/" {
			break
		}
		dir = dir[:i+1]
		if len(dir) > 1 {
			dir = strings.TrimSuffix(dir, "/")
		}
	}
	return limit, where
}

const cgroupDir = "/sys/fs/cgroup"

// cgroup returns the control group (version 2) of a process as a path below cgroupDir, "" if it is unknown.
func (m *machine) cgroup(pid string) string {
	for line := range strings.Lines(m.read("proc", pid, "cgroup")) {
		if path, is := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); is && strings.HasPrefix(path, "/") {
			return path
		}
	}
	return ""
}

// bare is a file's error without its path, which the text has already.
func bare(err error) error {
	var e *os.PathError
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

func octal(mode os.FileMode) string {
	n := uint32(mode.Perm())
	if mode&os.ModeSticky != 0 {
		n |= unix.S_ISVTX
	}
	return fmt.Sprintf("%04o", n)
}
