package doctor

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// fake makes a machine whose /proc, /sys and /etc are what files says. A value that begins with "->" is a link.
func fake(t *testing.T, files map[string]string) *machine {
	t.Helper()
	m := &machine{root: t.TempDir(), uid: 1001, shm: defaultShm, holders: &posix.Holders{Whole: true}, now: time.Now()}
	all := map[string]string{
		"proc/sys/fs/mqueue/msg_max":         "256\n",
		"proc/sys/fs/mqueue/msgsize_max":     "65536\n",
		"proc/sys/fs/mqueue/msg_default":     "10\n",
		"proc/sys/fs/mqueue/msgsize_default": "8192\n",
		"proc/sys/fs/mqueue/queues_max":      "256\n",
		"proc/sys/kernel/msgmax":             "65536\n",
		"proc/sys/kernel/msgmnb":             "1048576\n",
		"proc/sys/kernel/msgmni":             "32000\n",
		"proc/self/limits":                   limits("67108864", "67108864"),
		"proc/self/status":                   "Name:\tx\nState:\tR (running)\nCapEff:\t0000000000000000\n",
		"proc/self/mountinfo": "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n24 22 0:22 / /dev/shm rw,nosuid,nodev shared:2 - tmpfs tmpfs rw,size=8000000k\n" +
			"25 22 0:19 / /dev/mqueue rw,nosuid shared:3 - mqueue mqueue rw\n",
		"proc/self/ns/ipc": "->" + firstIPC,
		"proc/self/ns/pid": "->" + firstPID,
		"proc/meminfo":     "MemTotal:       16000000 kB\nMemFree:         1000000 kB\n",
		"etc/passwd":       "root:x:0:0:root:/root:/bin/sh\nann:x:1001:1001::/home/ann:/bin/sh\nbob:x:1002:1002::/home/bob:/bin/sh\n",
	}
	for name, value := range files {
		all[name] = value
	}
	for name, value := range all {
		if value == "" {
			continue // not there
		}
		path := m.path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(value, "->"); link {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(value), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"dev/shm", "dev/mqueue"} {
		if err := errors.Join(os.MkdirAll(m.path(dir), 0o755), os.Chmod(m.path(dir), 0o777|os.ModeSticky)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func limits(soft, hard string) string {
	return "Limit                     Soft Limit           Hard Limit           Units     \n" +
		"Max open files            1024                 524288               files     \n" +
		fmt.Sprintf("Max msgqueue size         %-20s %-20s bytes     \n", soft, hard)
}

func TestMqueueLimits(t *testing.T) {
	m := fake(t, nil)
	for _, check := range []string{"mqueue.msg_max", "mqueue.msgsize_max", "mqueue.msg_default", "mqueue.msgsize_default", "mqueue.queues_max"} {
		expectThat(t, finding(t, m.mqueueLimits(), check), OK, "")
	}

	m = fake(t, map[string]string{"proc/sys/fs/mqueue/msg_max": "10\n", "proc/sys/fs/mqueue/msgsize_max": "4096\n", "proc/sys/fs/mqueue/queues_max": "5\n",
		"proc/self/status": "CapEff:\t0000000001000000\n"})
	m.posix = make([]posix.Info, 4)
	fs := m.mqueueLimits()
	expectThat(t, finding(t, fs, "mqueue.msg_max"), Note, "sysctl -w fs.mqueue.msg_max=256", "10 messages at most", "CAP_SYS_RESOURCE")
	expectThat(t, finding(t, fs, "mqueue.msgsize_max"), Attention, "sysctl -w fs.mqueue.msgsize_max=65536", "4096 bytes", "8192 of every other Linux")
	expectThat(t, finding(t, fs, "mqueue.msgsize_default"), Note, "sysctl -w fs.mqueue.msgsize_max=8192", "8192 bytes", "4096 is lower and counts")
	expectThat(t, finding(t, fs, "mqueue.queues_max"), Attention, "sysctl -w fs.mqueue.queues_max=256", "4 of 5", "ENOSPC")

	// A queue that lost its name still counts, and in a container /proc/sys cannot be written.
	m = fake(t, map[string]string{"proc/sys/fs/mqueue/queues_max": "500\n", "proc/self/mountinfo": "30 1 0:5 / /proc/sys ro,nosuid - proc proc rw\n"})
	m.posix, m.holders.Unlinked = make([]posix.Info, 399), make([]posix.Info, 1)
	expectThat(t, finding(t, m.mqueueLimits(), "mqueue.queues_max"), Attention, "docker run --sysctl fs.mqueue.queues_max=1000 …", "400 of 500")

	m = fake(t, map[string]string{"proc/sys/fs/mqueue/msg_max": "", "proc/sys/fs/mqueue/queues_max": "many\n"})
	expectThat(t, finding(t, m.mqueueLimits(), "mqueue.msg_max"), Note, "", "cannot be read")
	expectThat(t, finding(t, m.mqueueLimits(), "mqueue.queues_max"), Note, "", "cannot be read")
}

func TestMqueueBytes(t *testing.T) {
	plain := posix.Footprint(10, 8192)
	one := posix.Info{UID: 1001, MaxMessages: 10, MaxSize: 8192}
	for _, c := range []struct {
		soft, hard string
		queues     int
		level      Level
		fix        string
		root       bool
		part       string
	}{
		{"unlimited", "unlimited", 3, OK, "", false, "does not bound"},
		{"67108864", "67108864", 1, OK, "", false, "more of the usual size fit"},
		{"819200", "819200", 0, Note, fmt.Sprintf("prlimit --pid $$ --msgqueue=%d:%[1]d", posix.Footprint(256, 65536)), true, "does not fit"},
		{"819200", "unlimited", 8, Attention, "ulimit -q 1638400", false, "beyond it mq_open says EMFILE"},
		{"819200", "819200", 9, Attention, fmt.Sprintf("prlimit --pid $$ --msgqueue=%d:%[1]d", 819200+10*plain), true, "no further queue"},
		{"1000", "2000", 0, Attention, fmt.Sprintf("prlimit --pid $$ --msgqueue=%d:%[1]d", 1000+10*plain), true, "0 of 1000 bytes"},
	} {
		m := fake(t, map[string]string{"proc/self/limits": limits(c.soft, c.hard)})
		for range c.queues {
			m.posix = append(m.posix, one)
		}
		m.posix = append(m.posix, posix.Info{UID: 7, MaxMessages: 10, MaxSize: 8192}, posix.Info{UID: 1001, Err: kumquat.ErrPermission}) // these do not count
		f := finding(t, m.mqueueBytes(), "rlimit.msgqueue")
		expectThat(t, f, c.level, c.fix, c.part)
		if f.Root != c.root {
			t.Errorf("%s/%s: for root: %v", c.soft, c.hard, f.Root)
		}
	}
	m := fake(t, nil)
	m.posixErr = posix.ErrNotMounted
	expectThat(t, finding(t, m.mqueueBytes(), "rlimit.msgqueue"), Note, "", "cannot be seen", "not mounted")
	expectThat(t, finding(t, m.mqueueLimits(), "mqueue.queues_max"), Note, "", "cannot be seen")
	expectThat(t, finding(t, fake(t, map[string]string{"proc/self/limits": ""}).mqueueBytes(), "rlimit.msgqueue"), Note, "", "cannot be read")
	if n, err := limitValue("99999999999999999999"); err == nil && n != math.MaxInt64 {
		t.Errorf("%d", n)
	}
}

func TestSysvLimits(t *testing.T) {
	m := fake(t, nil)
	for _, check := range []string{"sysv.msgmax", "sysv.msgmnb", "sysv.msgmni"} {
		expectThat(t, finding(t, m.sysvLimits(), check), OK, "")
	}
	m = fake(t, map[string]string{"proc/sys/kernel/msgmax": "8192\n", "proc/sys/kernel/msgmnb": "16384\n", "proc/sys/kernel/msgmni": "3\n"})
	m.sysv = make([]sysv.Status, 3)
	fs := m.sysvLimits()
	expectThat(t, finding(t, fs, "sysv.msgmax"), Note, "sysctl -w kernel.msgmax=65536", "8192 bytes")
	expectThat(t, finding(t, fs, "sysv.msgmnb"), Note, "sysctl -w kernel.msgmnb=1048576", "16384 bytes")
	expectThat(t, finding(t, fs, "sysv.msgmni"), Attention, "sysctl -w kernel.msgmni=1024", "3 of 3", "ENOSPC")
	m = fake(t, map[string]string{"proc/sys/kernel/msgmax": "65536\n", "proc/sys/kernel/msgmnb": "16384\n"})
	expectThat(t, finding(t, m.sysvLimits(), "sysv.msgmnb"), Attention, "sysctl -w kernel.msgmnb=1048576", "waits for ever")
	m = fake(t, map[string]string{"proc/sys/kernel/msgmax": "100\n", "proc/sys/kernel/msgmnb": "200\n", "proc/sys/kernel/msgmni": ""})
	expectThat(t, finding(t, m.sysvLimits(), "sysv.msgmax"), Attention, "sysctl -w kernel.msgmax=65536")
	expectThat(t, finding(t, m.sysvLimits(), "sysv.msgmnb"), Attention, "sysctl -w kernel.msgmnb=1048576")
	expectThat(t, finding(t, m.sysvLimits(), "sysv.msgmni"), Note, "", "cannot be read")
	m.sysvErr = kumquat.ErrUnsupported
	expectThat(t, finding(t, fake(t, nil).sysvLimits(), "sysv.msgmni"), OK, "")
}

const rootMount = "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"

func TestMqueueMount(t *testing.T) {
	const mountIt = "mkdir -p /dev/mqueue && mount -t mqueue none /dev/mqueue"
	for _, c := range []struct {
		info  string
		level Level
		fix   string
		part  string
	}{
		{rootMount + "25 22 0:19 / /dev/mqueue rw - mqueue mqueue rw\n", OK, "", "is mounted"},
		{rootMount, Attention, mountIt, "not mounted"},
		{"", Attention, mountIt, "not mounted"},
		{rootMount + "25 22 0:19 / /mnt/the\\040queues rw - mqueue mqueue rw\n", Note, mountIt, "/mnt/the queues"},
		{rootMount + "25 22 0:19 / /dev/mqueue rw - mqueue mqueue rw\n26 25 0:30 / /dev/mqueue rw - tmpfs none rw\n", Attention, mountIt, "not mounted"},
		{rootMount + "25 22 0:19 / /dev/mqueue ro - mqueue mqueue rw\n", Attention, "mount -o remount,rw /dev/mqueue", "reading only"},
	} {
		m := fake(t, map[string]string{"proc/self/mountinfo": c.info})
		expectThat(t, finding(t, m.mqueueMount(), "mqueue.mount"), c.level, c.fix, c.part)
	}
	m := fake(t, nil)
	m.posix = []posix.Info{{Name: "/q", Device: 1}}
	expectThat(t, finding(t, m.mqueueMount(), "mqueue.mount"), Attention, "umount /dev/mqueue && mount -t mqueue none /dev/mqueue", "another IPC namespace", "/q")
}

func TestShmMount(t *testing.T) {
	const makeIt = "mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm"
	expectThat(t, finding(t, fake(t, nil).shmMount(), "shm.mount"), OK, "", "tmpfs", "nosuid")
	m := fake(t, map[string]string{"proc/self/mountinfo": rootMount})
	expectThat(t, finding(t, m.shmMount(), "shm.mount"), Attention, makeIt, "ext4", "slow")
	m = fake(t, map[string]string{"proc/self/mountinfo": rootMount + "24 22 0:22 / /dev/shm ro,nosuid - tmpfs tmpfs rw,huge=always\n"})
	expectThat(t, finding(t, m.shmMount(), "shm.mount"), Attention, "mount -o remount,rw /dev/shm", "reading only")
	expectThat(t, finding(t, m.shmMount(), "shm.huge"), Note, "mount -o remount,huge=advise /dev/shm", "huge=always")
	m = fake(t, nil)
	m.shm = "/nowhere/at all"
	expectThat(t, finding(t, m.shmMount(), "shm.mount"), Attention, "mkdir -p '/nowhere/at all'", "no such file")
	m = fake(t, nil)
	if err := os.RemoveAll(m.path("dev/shm")); err != nil {
		t.Fatal(err)
	}
	expectThat(t, finding(t, m.shmMount(), "shm.mount"), Attention, "mkdir -p /dev/shm && "+makeIt)
	for mode, part := range map[os.FileMode]string{0o777: "remove the queues of others", 0o755 | os.ModeSticky: "not everybody"} {
		m = fake(t, nil)
		if err := os.Chmod(m.path("dev/shm"), mode); err != nil {
			t.Fatal(err)
		}
		expectThat(t, finding(t, m.shmMount(), "shm.mode"), Attention, "chmod 1777 /dev/shm", part, octal(mode))
	}
}

func TestShmSpace(t *testing.T) {
	tmpfs := mount{point: "/dev/shm", kind: "tmpfs"}
	const gib = 1 << 30
	for _, c := range []struct {
		r     room
		check string
		level Level
		fix   string
		part  string
	}{
		{room{8 * gib, 7 * gib, 1000, 900}, "shm.size", OK, "", "8 GiB"},
		{room{8 * gib, gib, 1000, 900}, "shm.size", Attention, "mount -o remount,size=17179869184 /dev/shm", "ErrNoSpace"},
		{room{64 << 20, 60 << 20, 1000, 900}, "shm.size", Note, "mount -o remount,size=1073741824 /dev/shm", "as containers get"},
		{room{100 * gib, 99 * gib, 1000, 900}, "shm.size", Note, "mount -o remount,size=8192000000 /dev/shm", "more than"},
		{room{0, 0, 0, 0}, "shm.size", Note, "mount -o remount,size=8192000000 /dev/shm", "no limit"},
		{room{8 * gib, 7 * gib, 1000, 10}, "shm.files", Attention, "mount -o remount,nr_inodes=2000 /dev/shm", "990 of 1000"},
	} {
		expectThat(t, finding(t, fake(t, nil).shmSpace(tmpfs, c.r), c.check), c.level, c.fix, c.part)
	}
	m := fake(t, map[string]string{"proc/self/ns/ipc": "->ipc:[4026532001]"})
	expectThat(t, finding(t, m.shmSpace(tmpfs, room{64 << 20, 60 << 20, 0, 0}), "shm.size"), Note, "docker run --shm-size=1g …")
	m = fake(t, map[string]string{"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "1000000000\n", "sys/fs/cgroup/a/b/memory.max": "max\n"})
	expectThat(t, finding(t, m.shmSpace(tmpfs, room{8 * gib, 7 * gib, 0, 0}), "shm.memory"), Note, "", "/sys/fs/cgroup/a/memory.max", "953.7 MiB")
	if fs := m.shmSpace(mount{point: "/", kind: "ext4"}, room{1, 0, 1, 0}); len(fs) > 0 {
		t.Errorf("no tmpfs: %s", text(fs))
	}
}

func TestRemoveIPC(t *testing.T) {
	const running = "run/systemd/system/x"
	for name, c := range map[string]struct {
		files map[string]string
		uid   int
		level Level
		fix   string
		part  string
	}{
		"no systemd":   {nil, 1001, OK, "", "does not run"},
		"default":      {map[string]string{running: "x"}, 1001, Attention, "loginctl enable-linger ann bob", "ann, bob"},
		"root and bob": {map[string]string{running: "x"}, 0, Attention, "loginctl enable-linger bob", "queues of bob"},
		"linger":       {map[string]string{running: "x", "var/lib/systemd/linger/ann": "x", "var/lib/systemd/linger/bob": "x"}, 1001, OK, "", "linger"},
		"said":         {map[string]string{running: "x", "etc/systemd/logind.conf": "[Login]\n#RemoveIPC=yes\nRemoveIPC = no\n"}, 1001, OK, "", "RemoveIPC=no in /etc/systemd/logind.conf"},
		"other section": {map[string]string{running: "x", "etc/systemd/logind.conf": "[Else]\nRemoveIPC=no\n"}, 1001, Attention, "loginctl enable-linger ann bob",
			"RemoveIPC=yes)"},
		"drop-in wins": {map[string]string{running: "x", "etc/systemd/logind.conf": "[Login]\nRemoveIPC=yes\n", "usr/lib/systemd/logind.conf.d/50-x.conf": "[Login]\nRemoveIPC=0\n"},
			1001, OK, "", "/usr/lib/systemd/logind.conf.d/50-x.conf"},
		"etc hides usr": {map[string]string{running: "x", "usr/lib/systemd/logind.conf.d/50-x.conf": "[Login]\nRemoveIPC=no\n",
			"etc/systemd/logind.conf.d/50-x.conf": "[Login]\n"}, 1001, Attention, "loginctl enable-linger ann bob", "RemoveIPC=yes"},
		"later name wins": {map[string]string{running: "x", "etc/systemd/logind.conf.d/50-x.conf": "[Login]\nRemoveIPC=no\n",
			"run/systemd/logind.conf.d/60-x.conf": "[Login]\nRemoveIPC=on\n"}, 1001, Attention, "loginctl enable-linger ann bob", "/run/systemd/logind.conf.d/60-x.conf"},
		"first main file counts": {map[string]string{running: "x", "etc/systemd/logind.conf": "[Login]\n", "usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, 1001, Attention,
			"loginctl enable-linger ann bob", "RemoveIPC"},
	} {
		t.Run(name, func(t *testing.T) {
			m := fake(t, c.files)
			m.uid = c.uid
			m.posix = []posix.Info{{Name: "/q", UID: 1002}}
			m.sysv = []sysv.Status{{UID: 0}, {UID: 33}}
			expectThat(t, finding(t, m.removeIPC(), "systemd.removeipc"), c.level, c.fix, c.part)
		})
	}
}

func TestNamespaces(t *testing.T) {
	expectThat(t, finding(t, fake(t, nil).namespaces(), "namespace.ipc"), OK, "", "first IPC namespace")
	m := fake(t, map[string]string{"proc/9/ns/ipc": "->ipc:[4026532001]", "proc/12/ns/ipc": "->ipc:[4026532001]", "proc/10/ns/ipc": "->" + firstIPC,
		"proc/11/status": "State:\tS (sleeping)\n", "proc/13/status": "State:\tZ (zombie)\n"})
	expectThat(t, finding(t, m.namespaces(), "namespace.others"), Note, "nsenter --ipc --target 9 kumquat doctor", "2 processes are in 1 other IPC namespace",
		"of 1 process it cannot be seen")
	m = fake(t, map[string]string{"proc/self/ns/ipc": "->ipc:[4026532001]", "proc/self/ns/pid": "->pid:[4026532002]"})
	expectThat(t, finding(t, m.namespaces(), "namespace.ipc"), Note, "docker run --ipc=host …", "as in a container")
	expectThat(t, finding(t, m.namespaces(), "namespace.pid"), Note, "", "not seen")
	expectThat(t, finding(t, fake(t, map[string]string{"proc/self/ns/ipc": ""}).namespaces(), "namespace.ipc"), Note, "", "cannot be seen")
}

func TestFullQueues(t *testing.T) {
	m := fake(t, nil)
	m.posix = []posix.Info{{Name: "/q", MaxMessages: 5, Messages: 4}}
	m.sysv = []sysv.Status{{ID: 7, QBytes: 100, Bytes: 99, Messages: 3}}
	m.engine = []kumquat.Info{{Name: "/e", Stats: kumquat.Stats{MaxMessages: 3, Messages: 2}}}
	expectThat(t, finding(t, m.full(), "queues.full"), OK, "")
	m.posix[0].Messages, m.sysv[0].Bytes, m.engine[0].Messages = 5, 100, 3
	fs := m.full()
	if len(fs) != 3 {
		t.Fatal(text(fs))
	}
	for i, fix := range []string{"kumquat doctor posix:/q", "kumquat doctor sysv:id:7", "kumquat doctor /e"} {
		expectThat(t, fs[i], Attention, fix, "is full")
	}
	m.posix = nil
	for i := range 30 {
		m.posix = append(m.posix, posix.Info{Name: fmt.Sprintf("/q%d", i), MaxMessages: 1, Messages: 1})
	}
	if fs := m.full(); len(fs) != most+1 || !strings.Contains(fs[most].Text, "12 more") {
		t.Error(text(fs))
	}
}

func TestLeaks(t *testing.T) {
	m := fake(t, map[string]string{"proc/50/status": "State:\tS (sleeping)\n", "proc/50/task/50/syscall": fmt.Sprintf("%d 0x9 0x0 0x0 0x0 0x0 0x0 0x7f 0x7f\n", unix.SYS_MSGRCV),
		"proc/50/ns/ipc": "->" + firstIPC})
	expectThat(t, finding(t, m.leaks(), "queues.leaked"), OK, "")
	m.posix = []posix.Info{{Name: "/q", UID: 1002, MaxMessages: 10, MaxSize: 100, Messages: 2, Device: 1, Inode: 2}}
	old := m.now.Add(-time.Hour)
	m.sysv = []sysv.Status{
		{Key: 0x41, ID: 8, UID: 1001, SendPID: 40, RecvPID: 41, Changed: old, LastSend: old, LastRecv: old, Messages: 1, Bytes: 4}, // both are gone
		{ID: 9, SendPID: 40, Changed: old, LastSend: old},                                                                          // somebody waits at it
		{ID: 10, SendPID: 50, Changed: old, LastSend: m.now},                                                                       // its sender lives
		{ID: 11, Changed: m.now.Add(-time.Second)},                                                                                 // it was made just now
	}
	m.engine = []kumquat.Info{{Name: "/e", Stats: kumquat.Stats{Created: old, UID: 1001}}, {Name: "/f", Stats: kumquat.Stats{Created: old, Handles: 1}}}
	fs := m.leaks()
	if len(fs) != 3 {
		t.Fatal(text(fs))
	}
	expectThat(t, fs[0], Attention, "kumquat rm posix:/q", "no process has posix:/q of bob open", "2 messages wait", fmt.Sprint(posix.Footprint(10, 100)))
	expectThat(t, fs[1], Attention, "kumquat rm sysv:0x00000041", "sent: 40, received: 41", "1 message waits")
	expectThat(t, fs[2], Note, "kumquat rm /e", "nobody has /e of ann open")
	if !fs[0].Root || fs[1].Root {
		t.Error("the owner needs no root, others do")
	}

	// What may be used by somebody who cannot be seen is not called unused.
	m.holders.Hidden = []int{77}
	for _, f := range m.leaks() {
		if f.Level == Attention || f.Fix != "" && f.Fix != "kumquat rm /e" {
			t.Errorf("with a hidden process: %s", text([]Finding{f}))
		}
	}
	m.holders = &posix.Holders{}
	expectThat(t, m.leaks()[0], Note, "", "PID namespace")
	m.holders = nil
	expectThat(t, m.leaks()[0], Note, "", "/proc cannot be read")
}

// TestUnseen: what could not be listed is not said to be in order.
func TestUnseen(t *testing.T) {
	m := fake(t, nil)
	m.posixErr, m.sysvErr, m.shmErr = posix.ErrNotMounted, kumquat.ErrUnsupported, kumquat.ErrPermission
	for _, fs := range [][]Finding{m.full(), m.leaks(), m.permissions()} {
		if len(fs) != 3 {
			t.Fatal(text(fs))
		}
		for i, kind := range []string{"POSIX", "System V", "engine"} {
			expectThat(t, fs[i], Note, "", kind+" queues were not examined")
		}
	}
}

func TestPermissions(t *testing.T) {
	m := fake(t, nil)
	expectThat(t, finding(t, m.permissions(), "permissions"), OK, "")
	m.posix = []posix.Info{{Name: "/q", UID: 1001, Mode: 0o622}, {Name: "/r", Mode: 0o600, Err: kumquat.ErrPermission}}
	m.sysv = []sysv.Status{{ID: 3, Mode: 0o606}}
	m.engine = []kumquat.Info{{Name: "/e", Stats: kumquat.Stats{Mode: 0o666, Path: "/dev/shm/kmq.e", UID: 0}}, {Name: "/bad", Err: kumquat.ErrCorrupt}, {Name: "/no", Err: kumquat.ErrPermission}}
	fs := m.permissions()
	for i, c := range []struct {
		level Level
		fix   string
		part  string
		root  bool
	}{
		{Attention, "kumquat check /bad", "cannot be used", false},
		{Note, "chmod o-w /dev/mqueue/q", "posix:/q of ann", false},
		{Note, "", "sysv:id:3", false},
		{Note, "chmod o-w /dev/shm/kmq.e", "mode 0666", true},
		{Note, "", "2 queues may not be read", false},
	} {
		if i >= len(fs) {
			t.Fatal(text(fs))
		}
		expectThat(t, fs[i], c.level, c.fix, c.part)
		if fs[i].Root != c.root {
			t.Errorf("%s: for root: %v", fs[i].Text, fs[i].Root)
		}
	}
}

func TestFeatures(t *testing.T) {
	m := fake(t, nil)
	m.probes = map[string]error{"mqueue": nil, "sysvipc": syscall.ENOSYS, "futex_waitv": syscall.EPERM, "msg_copy": syscall.ENOSYS, "pidfd": syscall.EIO}
	fs := m.features()
	expectThat(t, finding(t, fs, "kernel.mqueue"), OK, "")
	expectThat(t, finding(t, fs, "kernel.sysvipc"), Attention, "", "CONFIG_SYSVIPC", "no System V queues")
	expectThat(t, finding(t, fs, "kernel.futex_waitv"), Note, "docker run --security-opt seccomp=unconfined …", "kept from this process")
	expectThat(t, finding(t, fs, "kernel.msg_copy"), Note, "", "CONFIG_CHECKPOINT_RESTORE")
	expectThat(t, finding(t, fs, "kernel.pidfd"), Note, "", "does not work")
}

func TestStates(t *testing.T) {
	m := fake(t, map[string]string{
		"proc/2/status": "State:\tT (stopped)\n", "proc/3/status": "State:\tt (tracing stop)\nTracerPid:\t2\n",
		"proc/4/status": "State:\tS (sleeping)\n", "proc/4/cgroup": "0::/user/x\n", "sys/fs/cgroup/user/x/cgroup.events": "populated 1\nfrozen 1\n",
		"proc/5/status": "State:\tS (sleeping)\n", "proc/5/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.events": "populated 1\nfrozen 0\n",
	})
	for pid, want := range map[int][3]string{
		2: {"T", "stopped by a signal", "kill -CONT 2"},
		3: {"t", "held by a debugger, process 2", "kill 2"},
		4: {"S", "frozen, with its control group /user/x", "echo 0 > /sys/fs/cgroup/user/x/cgroup.freeze"},
		5: {"S", "", ""},
		6: {"", "", ""},
	} {
		letter, halt, fix := m.state(pid)
		if got := [3]string{letter, halt, fix}; got != want {
			t.Errorf("%d: %q, want %q", pid, got, want)
		}
	}
	for text, want := range map[string]call{"running": {}, "": {}, "-1 0x7f 0x7f": {}, "243 0x3 0x7ffd": {243, 3}, "70 0xffffffff 0": {70, 0xffffffff}, "x y": {}, "1 zz": {1, 0}} {
		if got, is := parseCall(text); got != want || is != (want.first != 0) {
			t.Errorf("%q: %v, %v", text, got, is)
		}
	}
}

// TestReused: a process that was started after the last receive is not the one that received.
func TestReused(t *testing.T) {
	m := fake(t, map[string]string{"proc/stat": "cpu 1\nbtime 1000000\n", "proc/7/stat": "7 (a ) b) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 5000 1 1\n"})
	at := time.Unix(1000050, 0)
	if got, known := m.started(7); !known || !got.Equal(at) {
		t.Errorf("started %v, %v", got, known)
	}
	if m.lived(7, at.Add(-time.Minute)) || !m.lived(7, at.Add(time.Minute)) || m.lived(8, at) {
		t.Error("the wrong ones live")
	}
}
