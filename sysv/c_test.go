package sysv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// compile builds a program of testdata.
func compile(t testing.TB, name string) string {
	t.Helper()
	cc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs a C compiler (gcc)")
	}
	program := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command(cc, "-O2", "-Wall", "-Werror", "-o", program, filepath.Join("testdata", name+".c")).CombinedOutput(); err != nil {
		if _, missing := os.Stat("/usr/include/linux/msg.h"); missing != nil {
			t.Skipf("needs the kernel's headers for C programs: %v", missing)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// The structures and constants are those of this machine's C headers.
func TestLayout(t *testing.T) {
	var p kernelPerm
	var q kernelQueue
	var i kernelInfo
	var b strings.Builder
	line := func(name string, n uintptr) { fmt.Fprintf(&b, "%s %d\n", name, n) }
	line("sizeof long", header)
	line("sizeof perm", unsafe.Sizeof(p))
	line("sizeof queue", unsafe.Sizeof(q))
	line("sizeof info", unsafe.Sizeof(i))
	for _, x := range []struct {
		name string
		at   uintptr
	}{
		{"perm.key", unsafe.Offsetof(p.key)}, {"perm.uid", unsafe.Offsetof(p.uid)}, {"perm.gid", unsafe.Offsetof(p.gid)},
		{"perm.cuid", unsafe.Offsetof(p.cuid)}, {"perm.cgid", unsafe.Offsetof(p.cgid)}, {"perm.mode", unsafe.Offsetof(p.mode)},
		{"perm.seq", unsafe.Offsetof(p.seq)},
		{"queue.msg_perm", unsafe.Offsetof(q.perm)}, {"queue.msg_stime", unsafe.Offsetof(q.stime)}, {"queue.msg_rtime", unsafe.Offsetof(q.rtime)},
		{"queue.msg_ctime", unsafe.Offsetof(q.ctime)}, {"queue.msg_cbytes", unsafe.Offsetof(q.cbytes)}, {"queue.msg_qnum", unsafe.Offsetof(q.qnum)},
		{"queue.msg_qbytes", unsafe.Offsetof(q.qbytes)}, {"queue.msg_lspid", unsafe.Offsetof(q.lspid)}, {"queue.msg_lrpid", unsafe.Offsetof(q.lrpid)},
		{"info.msgpool", unsafe.Offsetof(i.pool)}, {"info.msgmap", unsafe.Offsetof(i.msgmap)}, {"info.msgmax", unsafe.Offsetof(i.max)},
		{"info.msgmnb", unsafe.Offsetof(i.mnb)}, {"info.msgmni", unsafe.Offsetof(i.mni)}, {"info.msgtql", unsafe.Offsetof(i.tql)},
		{"info.msgseg", unsafe.Offsetof(i.seg)},
		{"IPC_CREAT", Create}, {"IPC_EXCL", Exclusive}, {"IPC_NOWAIT", NoWait}, {"IPC_RMID", ipcRmid}, {"IPC_SET", ipcSet},
		{"IPC_STAT", ipcStat}, {"IPC_INFO", ipcInfo}, {"IPC_PRIVATE", uintptr(Private)}, {"MSG_STAT", msgStat}, {"MSG_INFO", msgInfo},
		{"MSG_STAT_ANY", msgStatAny}, {"MSG_NOERROR", NoError}, {"MSG_EXCEPT", Except}, {"MSG_COPY", Copy},
	} {
		line(x.name, x.at)
	}
	// On every machine of the kind that the package is for the numbers are the same, so they hold where no compiler tells.
	if unsafe.Sizeof(p) != 48 || unsafe.Sizeof(q) != 120 || unsafe.Sizeof(i) != 32 {
		t.Errorf("sizes %d, %d, %d", unsafe.Sizeof(p), unsafe.Sizeof(q), unsafe.Sizeof(i))
	}
	out, err := exec.Command(compile(t, "layout")).Output()
	if err != nil || string(out) != b.String() {
		t.Errorf("the headers say (%v)\n%s\nthis package has\n%s", err, out, &b)
	}
}

// cPeer is the C program at the other end.
type cPeer struct{ *peer }

func (p cPeer) do(format string, a ...any) string {
	p.t.Helper()
	p.say(format, a...)
	return p.line()
}

func (p cPeer) wants(answer, format string, a ...any) {
	p.t.Helper()
	if got := p.do(format, a...); got != answer {
		p.t.Fatalf("%s: the C program says %q, want %q", fmt.Sprintf(format, a...), got, answer)
	}
}

// A C program and this package use one queue: keys, messages of all kinds in both directions, waiting, errors and removal.
func TestInteroperation(t *testing.T) {
	c := cPeer{start(t, exec.Command(compile(t, "peer")))}
	file := filepath.Join(t.TempDir(), "key")
	want(t, os.WriteFile(file, nil, 0o600), nil)
	key, err := Ftok(file, 'A')
	want(t, err, nil)
	c.wants(strconv.Itoa(int(key)), "key %s %d", file, 'A')
	c.wants(fmt.Sprintf("error %d", unix.ENOENT), "get %d 0600", key)
	id, err := strconv.Atoi(c.do("get %d 03640", key)) // IPC_CREAT|IPC_EXCL
	want(t, err, nil)
	t.Cleanup(func() { _ = removeID(id) })
	_, err = Get(key, Create|Exclusive, 0o600)
	want(t, err, driver.ErrExists)
	q, err := Get(key, 0, 0o600)
	want(t, err, nil)
	defer q.Close()
	if q.ID() != id {
		t.Fatalf("identifier %d, the C program has %d", q.ID(), id)
	}

	// From C.
	c.wants("0", "send %d 7 two pears", id)
	c.wants("0", "send %d %d -", id, int64(1<<63-1))
	st, err := q.Stat()
	if err != nil || st.Messages != 2 || st.Bytes != 9 || st.Mode != 0o640 || st.SendPID != c.cmd.Process.Pid || st.Key != key {
		t.Errorf("%+v, %v; the C program is %d", st, err, c.cmd.Process.Pid)
	}
	gets(t, q, 1<<63-1, 0, "", 1<<63-1)
	gets(t, q, 0, 0, "two pears", 7)
	r := receiveLater(t.Context(), q, -9, 0)
	sleeping(t, 1)
	c.wants("0", "send %d 3 waited for", id)
	if r := get(t, r); r.err != nil || r.body != "waited for" || r.mtype != 3 {
		t.Errorf("%+v", r)
	}

	// To C, which waits in msgrcv.
	c.say("recv %d 5 0", id)
	put(t, q, 4, "not that one")
	put(t, q, 5, "an apple")
	if got := c.line(); got != "5 an apple" {
		t.Errorf("the C program got %q", got)
	}
	c.wants(fmt.Sprintf("1 12 %d 640 %d %d %d %d", st.QBytes, os.Getpid(), c.cmd.Process.Pid, os.Geteuid(), os.Getegid()), "stat %d", id)
	put(t, q, 4, "")
	c.wants("4 not that one", "recv %d 0 0", id)
	c.wants("4 ", "recv %d -4 0", id)
	c.wants(fmt.Sprintf("error %d", unix.ENOMSG), "recv %d 0 %d", id, NoWait)

	// C waits for room; and this package for room that C makes.
	roomFor(t, q, 5)
	put(t, q, 1, "12345")
	c.say("send %d 2 abc", id)
	time.Sleep(20 * time.Millisecond) // most likely it waits by then, and the test holds if not
	fails(t, q, 2, 0, unix.ENOMSG)
	gets(t, q, 1, 0, "12345", 1)
	if got := c.line(); got != "0" {
		t.Errorf("the C program says %q", got)
	}
	gets(t, q, 2, 0, "abc", 2)
	put(t, q, 6, "12345")
	s := sendLater(t.Context(), q, 6, "54321")
	sleeping(t, 1)
	c.wants("6 12345", "recv %d 6 0", id)
	want(t, get(t, s), nil)
	c.wants("6 54321", "recv %d 6 0", id)

	// Priorities by the rule of the driver, which a C program can follow.
	roomFor(t, q, 1000)
	h, err := PriorityDriver().Open(t.Context(), key.String(), &driver.Options{})
	want(t, err, nil)
	defer h.Close()
	for _, p := range []int{0, 20, 32767} {
		want(t, h.Send(t.Context(), driver.Message{Body: fmt.Append(nil, p), Priority: p, Type: 1}, true), nil)
	}
	c.wants("1 32767", "recv %d -32768 0", id)
	c.wants("0", "send %d %d urgent", id, 32768-100)
	m, err := h.Receive(t.Context(), driver.Filter{}, true)
	if err != nil || string(m.Body) != "urgent" || m.Priority != 100 || m.Type != 1 {
		t.Errorf("%+v, %v", m, err)
	}

	// Removal by the other side.
	r = receiveLater(t.Context(), q, 99, 0)
	sleeping(t, 1)
	c.wants("0", "remove %d", id)
	want(t, get(t, r).err, driver.ErrRemoved, unix.EIDRM)
	c.wants(fmt.Sprintf("error %d", unix.EINVAL), "remove %d", id)
	q2 := private(t, 0o600)
	c.say("recv %d 0 0", q2.ID())
	until(t, "the C program waits", func() bool {
		w, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", c.cmd.Process.Pid))
		stat, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
		return err == nil && strings.Contains(string(w), "msgrcv") || err2 == nil && strings.Contains(string(stat), ") S ")
	})
	want(t, q2.Remove(), nil)
	if got := c.line(); got != fmt.Sprintf("error %d", unix.EIDRM) && got != fmt.Sprintf("error %d", unix.EINVAL) {
		t.Errorf("the C program says %q", got)
	}
}

// BenchmarkLoop is the loop of testdata/loop.c; BenchmarkLoopC runs that itself. Their ratio is what the package costs.
func BenchmarkLoop(b *testing.B) {
	q := private(b, 0o600)
	ctx := b.Context()
	for _, n := range []int{64, 1024} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			body, buf := make([]byte, n), make([]byte, 8192)
			b.ReportAllocs()
			for b.Loop() {
				if err := q.Send(ctx, 1, body, 0); err != nil {
					b.Fatal(err)
				}
				if _, _, err := q.Receive(ctx, buf, 0, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLoopC(b *testing.B) {
	program := compile(b, "loop")
	for _, n := range []int{64, 1024} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			out, err := exec.Command(program, strconv.Itoa(b.N), strconv.Itoa(n)).Output()
			if err != nil {
				b.Fatal(err)
			}
			ns, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(ns, "ns/op")
		})
	}
}

// BenchmarkWake is a message to a receiver that waits in another goroutine, and the answer.
func BenchmarkWake(b *testing.B) {
	q := private(b, 0o600)
	ctx := b.Context()
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			if _, _, err := q.Receive(ctx, nil, 1, 0); err != nil {
				return
			}
			if err := q.Send(ctx, 2, []byte("x"), 0); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1)
	for b.Loop() {
		if err := q.Send(ctx, 1, nil, 0); err != nil {
			b.Fatal(err)
		}
		if _, _, err := q.Receive(ctx, buf, 2, 0); err != nil {
			b.Fatal(err)
		}
	}
	if err := q.Remove(); err != nil {
		b.Error(err)
	}
	<-over
}
