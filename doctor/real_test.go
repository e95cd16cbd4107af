package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// The checks that every machine gets a line of.
var everyCheck = []string{"mqueue.msg_max", "mqueue.msgsize_max", "mqueue.msg_default", "mqueue.msgsize_default", "mqueue.queues_max", "rlimit.msgqueue", "sysv.msgmax",
	"sysv.msgmnb", "sysv.msgmni", "mqueue.mount", "shm.mount", "systemd.removeipc", "namespace.ipc", "queues.full", "queues.leaked", "permissions", "kernel.release",
	"kernel.mqueue", "kernel.sysvipc", "kernel.ofd_locks", "kernel.futex_waitv", "kernel.pidfd", "kernel.msg_copy"}

// TestThisMachine runs every check where it is, and compares what they say with the machine.
func TestThisMachine(t *testing.T) {
	fs := Machine(t.Context())
	t.Logf("\n%s", text(fs))
	for _, check := range everyCheck {
		if !slices.ContainsFunc(fs, func(f Finding) bool { return f.Check == check }) {
			t.Errorf("nothing is said of %s", check)
		}
	}
	for _, f := range fs {
		if f.Text == "" || f.Level != OK && f.Level != Note && f.Level != Attention || f.Level == OK && f.Fix != "" || f.Root && f.Fix == "" {
			t.Errorf("%+v", f)
		}
	}
	l := posix.ReadLimits()
	for check, n := range map[string]int{"mqueue.msg_max": l.MaxMessages, "mqueue.msgsize_max": l.MaxSize, "mqueue.msg_default": l.DefaultMessages,
		"mqueue.msgsize_default": l.DefaultSize, "mqueue.queues_max": l.MaxQueues} {
		if f := finding(t, fs, check); n > 0 && !strings.Contains(f.Text, strconv.Itoa(n)) {
			t.Errorf("%s does not say %d: %s", check, n, f.Text)
		}
	}
	if f := finding(t, fs, "rlimit.msgqueue"); l.Bytes > 0 && l.Bytes < 1<<62 && !strings.Contains(f.Text, strconv.FormatInt(l.Bytes, 10)) {
		t.Errorf("RLIMIT_MSGQUEUE is %d, and the text says %s", l.Bytes, f.Text)
	}
	if k, _, err := sysv.GetLimits(); err == nil {
		for check, n := range map[string]int{"sysv.msgmax": k.MaxSize, "sysv.msgmnb": k.MaxBytes, "sysv.msgmni": k.MaxQueues} {
			if f := finding(t, fs, check); !strings.Contains(f.Text, strconv.Itoa(n)) {
				t.Errorf("%s does not say %d: %s", check, n, f.Text)
			}
		}
	}
	var b []byte
	b, err := json.Marshal(fs)
	var back []Finding
	if err == nil {
		err = json.Unmarshal(b, &back)
	}
	if err != nil || !slices.Equal(fs, back) {
		t.Errorf("JSON: %v", err)
	}
}

func setSysctls(t *testing.T, values map[string]string) {
	t.Helper()
	for name, value := range values {
		if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0); err != nil {
			t.Skipf("no right to set %s in a namespace: %v", name, err)
		}
	}
}

// TestLimitsChange changes the limits of an IPC namespace, does what the doctor advises, and asks again.
func TestLimitsChange(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	setSysctls(t, map[string]string{"fs.mqueue.msg_max": "5", "fs.mqueue.queues_max": "2", "kernel.msgmax": "65536", "kernel.msgmnb": "4096"})
	for i := range 2 {
		q, err := posix.Open(fmt.Sprintf("/limit-%d", i), posix.CreateFlag|posix.ReadWrite, 0o600, &posix.Attr{MaxMessages: 1, MaxSize: 16})
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
	}
	fs := Machine(t.Context())
	t.Logf("\n%s", text(fs))
	if !NeedsAttention(fs) {
		t.Error("nothing needs attention")
	}
	fixes := map[string]string{"mqueue.msg_max": "sysctl -w fs.mqueue.msg_max=256", "mqueue.queues_max": "sysctl -w fs.mqueue.queues_max=256",
		"sysv.msgmnb": "sysctl -w kernel.msgmnb=1048576"}
	for check, fix := range fixes {
		expectThat(t, finding(t, fs, check), Attention, fix)
		name, value, _ := strings.Cut(strings.TrimPrefix(fix, "sysctl -w "), "=")
		setSysctls(t, map[string]string{name: value})
	}
	expectThat(t, finding(t, fs, "namespace.ipc"), Note, "docker run --ipc=host …", "an IPC namespace of its own")
	for check := range fixes {
		expectThat(t, finding(t, Machine(t.Context()), check), OK, "")
	}
}

// TestBytesRunOut fills RLIMIT_MSGQUEUE until no queue of the usual size fits.
func TestBytesRunOut(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	limit := unix.Rlimit{Cur: 200_000, Max: 200_000}
	if err := unix.Setrlimit(unix.RLIMIT_MSGQUEUE, &limit); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		q, err := posix.Open(fmt.Sprintf("/bytes-%d", i), posix.CreateFlag|posix.ReadWrite, 0o600, &posix.Attr{MaxMessages: 10, MaxSize: 8192})
		if errors.Is(err, kumquat.ErrLimit) {
			t.Skipf("needs room for two POSIX queues; those of this user in other IPC namespaces count too: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
	}
	expectThat(t, finding(t, Machine(t.Context()), "rlimit.msgqueue"), Attention, fmt.Sprintf("prlimit --pid $$ --msgqueue=%d:%[1]d", 200_000+10*posix.Footprint(10, 8192)),
		"of 200000 bytes", "no further queue")
}

// TestMounts follows the advice about /dev/mqueue and /dev/shm with real mounts.
func TestMounts(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	shell := func(command string) {
		t.Helper()
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Skipf("no right to run %s: %v %s", command, err, out)
		}
	}
	if _, err := os.Stat("/dev/mqueue"); err != nil {
		// A /dev of this test alone, so that the folder can be made. Starting a program takes /dev/null.
		null := filepath.Join(t.TempDir(), "null")
		shell("touch " + null + " && mount --bind /dev/null " + null + " && mount -t tmpfs none /dev && touch /dev/null && mount --bind " + null + " /dev/null && " +
			"mkdir -m 1777 /dev/shm && mount -t tmpfs -o mode=1777 tmpfs /dev/shm && umount " + null)
	}
	m := thisMachine()
	before := m.mqueueMount()[0]
	if before.Level == Attention && before.Fix != "" {
		shell(before.Fix)
	} else {
		shell("umount /dev/mqueue; mount -t mqueue none /dev/mqueue")
	}
	q, err := posix.Open("/seen", posix.CreateFlag|posix.ReadWrite, 0o600, &posix.Attr{MaxMessages: 1, MaxSize: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if m.posix, m.posixErr = posix.List(); m.posixErr != nil {
		t.Fatal(m.posixErr)
	}
	expectThat(t, m.mqueueMount()[0], OK, "", "is mounted")
	shell("mount -o remount,bind,ro /dev/mqueue")
	expectThat(t, m.mqueueMount()[0], Attention, "mount -o remount,rw /dev/mqueue", "reading only")

	shell("mount -t tmpfs -o size=1m,mode=777,nr_inodes=10 tmpfs /dev/shm")
	fs := m.shmMount()
	expectThat(t, finding(t, fs, "shm.mode"), Attention, "chmod 1777 /dev/shm", "0777")
	if f := finding(t, fs, "shm.size"); f.Level != Note || !strings.Contains(f.Text, "1 MiB") {
		t.Error(text(fs))
	}
	if err := os.WriteFile("/dev/shm/filler", make([]byte, 900<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	full := finding(t, m.shmMount(), "shm.size")
	expectThat(t, full, Attention, "mount -o remount,size=2097152 /dev/shm", "ErrNoSpace")
	shell(full.Fix)
	if f := finding(t, m.shmMount(), "shm.size"); f.Level == Attention {
		t.Errorf("after the fix: %s", f.Text)
	}
	for i := range 7 {
		if err := os.WriteFile(fmt.Sprintf("/dev/shm/file%d", i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	expectThat(t, finding(t, m.shmMount(), "shm.files"), Attention, "mount -o remount,nr_inodes=20 /dev/shm")
	shell("mount -o remount,ro /dev/shm")
	expectThat(t, finding(t, m.shmMount(), "shm.mount"), Attention, "mount -o remount,rw /dev/shm", "reading only")
}

func needsList(t *testing.T) {
	t.Helper()
	if _, err := posix.List(); err != nil {
		t.Skip("needs /dev/mqueue mounted, or root with CAP_SYS_ADMIN, to list POSIX queues")
	}
}

// TestLeakedForReal leaves queues behind and finds them, and does not take those for left that somebody uses.
func TestLeakedForReal(t *testing.T) {
	needsList(t)
	url := made(t, "posix", 3)
	put(t, url, 1)
	leak := func(fs []Finding) (found *Finding) {
		for i := range fs {
			if fs[i].Check == "queues.leaked" && strings.Contains(fs[i].Text, url+" of") {
				found = &fs[i]
			}
		}
		return found
	}
	p := start(t, "hold", url)
	if f := leak(Machine(t.Context())); f != nil {
		t.Errorf("it is open, and %s", f.Text)
	}
	p.kill()
	fs := Machine(t.Context())
	f := leak(fs)
	switch {
	case f == nil:
		t.Errorf("not found:\n%s", text(fs))
	case f.Level == Attention:
		expectThat(t, *f, Attention, "kumquat rm "+url, "1 message waits")
	default: // somebody could not be inspected
		expectThat(t, *f, Note, "", "no process that can be seen")
	}
}

// TestUnlinkedForReal finds a queue that has lost its name.
func TestUnlinkedForReal(t *testing.T) {
	url := made(t, "posix", 3)
	p := start(t, "hold", url)
	if err := kumquat.Remove(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	for _, f := range Machine(t.Context()) {
		if f.Check == "queues.unlinked" && strings.Contains(f.Text, url) {
			expectThat(t, f, Note, "", "was removed", strconv.Itoa(p.pid()))
			return
		}
	}
	t.Error("not found")
}

// TestFullForReal finds a full queue of each kind.
func TestFullForReal(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		if kind == "posix" {
			needsList(t)
		}
		url := made(t, kind, 3)
		put(t, url, 3)
		for _, f := range Machine(t.Context()) {
			if f.Check == "queues.full" && f.Fix == "kumquat doctor "+url {
				expectThat(t, f, Attention, f.Fix, "is full")
				return
			}
		}
		t.Error("not found")
	})
}

// withoutCallsRole denies itself some system calls, as containers do to their processes, and tells what the doctor finds.
func withoutCallsRole([]string) error {
	runtime.LockOSThread()
	deny := func(call, errno uint32) []unix.SockFilter {
		return []unix.SockFilter{
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: call},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | errno},
		}
	}
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // the number of the call
	for _, f := range [][]unix.SockFilter{deny(unix.SYS_FUTEX_WAITV, uint32(unix.EPERM)), deny(unix.SYS_PIDFD_OPEN, uint32(unix.ENOSYS)), deny(unix.SYS_MSGRCV, uint32(unix.ENOSYS)),
		deny(unix.SYS_MQ_GETSETATTR, uint32(unix.ENOSYS))} {
		program = append(program, f...)
	}
	program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&f))); e != 0 {
		fmt.Println("none", e)
		return nil
	}
	m := thisMachine()
	m.probes = probes()
	fmt.Println("ready")
	return json.NewEncoder(os.Stdout).Encode(m.features())
}

// TestDeniedCalls probes for features that a seccomp filter keeps away.
func TestDeniedCalls(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"=withoutCalls")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first, rest, _ := strings.Cut(string(out), "\n")
	if first != "ready" {
		t.Skipf("no seccomp filters here: %s", first)
	}
	var fs []Finding
	if err := json.Unmarshal([]byte(rest), &fs); err != nil {
		t.Fatalf("%v: %s", err, rest)
	}
	expectThat(t, finding(t, fs, "kernel.futex_waitv"), Note, "docker run --security-opt seccomp=unconfined …", "kept from this process")
	expectThat(t, finding(t, fs, "kernel.pidfd"), Note, "", "250 ms")
	expectThat(t, finding(t, fs, "kernel.msg_copy"), Note, "", "without taking them")
	expectThat(t, finding(t, fs, "kernel.mqueue"), Attention, "", "there are no POSIX queues")
	expectThat(t, finding(t, fs, "kernel.sysvipc"), OK, "")
}

// TestQuick: the doctor looks at all processes and is still an answer to wait for.
func TestQuick(t *testing.T) {
	begin := time.Now()
	Machine(t.Context())
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}
