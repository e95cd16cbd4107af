package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

var serial atomic.Int64

// made makes a queue of each kind for a few messages and returns its URL; it is removed at the end of the test.
func made(t *testing.T, kind string, messages int) string {
	t.Helper()
	name := fmt.Sprintf("/kumquat-doctor-%d-%d", os.Getpid(), serial.Add(1))
	switch kind {
	case "engine":
		dir, err := os.MkdirTemp("/dev/shm", "kumquat-doctor-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		t.Setenv("KUMQUAT_SHM", dir)
	case "posix":
		name = "posix:" + name
	case "sysv":
		q, err := sysv.Get(sysv.Private, sysv.Create, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = q.Remove()
			_ = q.Close()
		})
		room := int64(messages * 4)
		if err := q.Set(sysv.Change{QBytes: &room}); err != nil {
			t.Fatal(err)
		}
		return "sysv:id:" + strconv.Itoa(q.ID())
	}
	q, err := kumquat.Open(t.Context(), name, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: messages, MaxSize: 64})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kumquat.Remove(context.Background(), name) })
	return name
}

// put sends n messages of 4 bytes.
func put(t *testing.T, url string, n int) {
	t.Helper()
	q, err := kumquat.Open(t.Context(), url, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	for range n {
		if err := q.TrySend(kumquat.Message{Body: []byte("pear"), Type: 1}); err != nil {
			t.Fatal(err)
		}
	}
}

func look(t *testing.T, url string, over time.Duration) Verdict {
	t.Helper()
	v, err := Queue(t.Context(), url, over)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d of %d messages, %.0f/s, %.0f/s\n%s", url, v.Messages, v.MaxMessages, v.Sent, v.Received, text(v.Findings))
	return v
}

func eachKind(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{"engine", "posix", "sysv"} {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}

const brief = 100 * time.Millisecond

func TestNobodyReads(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		url := made(t, kind, 10)
		expectThat(t, finding(t, look(t, url, brief).Findings, "queue.readers"), Note, "", "nobody reads it", "empty")
		if kind == "sysv" {
			start(t, "send", url, "1h")
			until(t, "a message is there", func() bool { return look(t, url, 10*time.Millisecond).Messages == 1 })
		} else {
			put(t, url, 3)
			start(t, "hold", url)
		}
		v := look(t, url, brief)
		readers := finding(t, v.Findings, "queue.readers")
		if kind == "posix" {
			// Who has it open for both may be about to receive: the kernel does not tell.
			expectThat(t, finding(t, v.Findings, "queue.flow"), Attention, "", "taken nothing")
		} else {
			expectThat(t, readers, Attention, "", "nobody reads it", "wait", "none has ever received")
		}
		if !NeedsAttention(v.Findings) || v.Kind != kind || v.Queue != url || len(v.Users) != 1 {
			t.Errorf("%+v", v)
		}
		expectThat(t, finding(t, v.Findings, "queue.limit"), OK, "")
	})
}

// TestOnlySenders: a POSIX queue that others have open for sending only has no readers.
func TestOnlySenders(t *testing.T) {
	url := made(t, "posix", 5)
	q, err := posix.Open(strings.TrimPrefix(url, "posix:"), posix.WriteOnly, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if err := q.TrySend([]byte("pear"), 0); err != nil {
		t.Fatal(err)
	}
	expectThat(t, finding(t, look(t, url, brief).Findings, "queue.readers"), Attention, "", "nobody reads it", "and 1 message waits")
}

func TestReadersStopped(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		url := made(t, kind, 10)
		p := start(t, "receive", url, "0s")
		put(t, url, 1)
		until(t, "it is received", func() bool { return look(t, url, 10*time.Millisecond).Messages == 0 })
		expectThat(t, finding(t, look(t, url, brief).Findings, "queue.readers"), OK, "", "it is read by process "+strconv.Itoa(p.pid()))

		p.stop()
		put(t, url, 2)
		v := look(t, url, brief)
		expectThat(t, finding(t, v.Findings, "queue.readers"), Attention, "kill -CONT "+strconv.Itoa(p.pid()), "all its readers are stopped", "2 messages wait",
			fmt.Sprintf("process %d", p.pid()), "stopped by a signal")
		if len(v.Users) != 1 || v.Users[0].PID != p.pid() || v.Users[0].State != "T" || v.Users[0].Halted == "" {
			t.Errorf("users %+v", v.Users)
		}

		second := start(t, "receive", url, "0s")
		until(t, "the other takes them", func() bool { return look(t, url, 10*time.Millisecond).Messages == 0 })
		f := finding(t, look(t, url, brief).Findings, "queue.readers")
		expectThat(t, f, Note, "kill -CONT "+strconv.Itoa(p.pid()), "1 of its 2 readers")
		second.kill()
		p.goOn()
		put(t, url, 1)
		until(t, "it goes on", func() bool { return look(t, url, 10*time.Millisecond).Messages == 0 })
	})
}

func TestReadersTooSlow(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		most := 10
		if kind == "engine" {
			most = 100_000
		}
		url := made(t, kind, most)
		start(t, "receive", url, "20ms")
		start(t, "send", url, "1ms")
		if kind != "engine" {
			until(t, "it is full", func() bool { return look(t, url, 20*time.Millisecond).Messages == 10 })
		}
		v := look(t, url, 1100*time.Millisecond) // the kernel keeps the time of a System V queue in seconds
		if kind == "engine" {
			expectThat(t, finding(t, v.Findings, "queue.flow"), Attention, "", "too slow", "arrive", "are taken", "more than 1.1s ago")
			if v.Sent < 100 || v.Received < 10 || v.Received > 60 {
				t.Errorf("%.0f/s sent and %.0f/s received", v.Sent, v.Received)
			}
		} else {
			expectThat(t, finding(t, v.Findings, "queue.flow"), Attention, "", "too slow")
			expectThat(t, finding(t, v.Findings, "queue.limit"), Attention, "", "full") // or nearly, just now
		}
		if v.AtLeast != (kind != "engine") {
			t.Errorf("%+v", v)
		}
	})
}

// TestBackPressure: an engine queue that its senders fill up, and wait at.
func TestBackPressure(t *testing.T) {
	url := made(t, "engine", 10)
	start(t, "receive", url, "20ms")
	start(t, "send", url, "1ms")
	until(t, "it is full", func() bool { return look(t, url, 20*time.Millisecond).Messages == 10 })
	until(t, "the sender is seen to wait", func() bool {
		f := finding(t, look(t, url, brief).Findings, "queue.flow")
		return f.Level == Attention && strings.Contains(f.Text, "too slow") && strings.Contains(f.Text, "1 sender waits for room")
	})
}

// TestKernelSendersWait: who waits in the kernel's own line is seen.
func TestKernelSendersWait(t *testing.T) {
	url := made(t, "posix", 2)
	put(t, url, 2)
	start(t, "kernelBlock", strings.TrimPrefix(url, "posix:"), "send")
	start(t, "receive", url, "1h") // takes one and rests
	until(t, "the sender's message is in", func() bool { return look(t, url, 10*time.Millisecond).Messages == 2 })
	start(t, "kernelBlock", strings.TrimPrefix(url, "posix:"), "send")
	var v Verdict
	until(t, "the sender waits", func() bool {
		v = look(t, url, 30*time.Millisecond)
		return strings.Contains(finding(t, v.Findings, "queue.limit").Text, "1 sender waits for room")
	})
	expectThat(t, finding(t, v.Findings, "queue.limit"), Attention, "", "it is full: 2 of 2 messages")
	waiting := 0
	for _, u := range v.Users {
		if u.Waits == "to send" && u.Sends {
			waiting++
		}
	}
	if waiting != 1 {
		t.Errorf("users %+v", v.Users)
	}
}

func TestKernelReceiverWaits(t *testing.T) {
	url := made(t, "posix", 2)
	p := start(t, "kernelBlock", strings.TrimPrefix(url, "posix:"), "receive")
	until(t, "the receiver waits", func() bool {
		v := look(t, url, 10*time.Millisecond)
		return len(v.Users) == 1 && v.Users[0].PID == p.pid() && v.Users[0].Waits == "to receive"
	})
}

// TestWaitsForAnotherType: a System V receiver that waits for another type is a reader that takes nothing.
func TestWaitsForAnotherType(t *testing.T) {
	url := made(t, "sysv", 10)
	p := start(t, "sysvBlock", strings.TrimPrefix(url, "sysv:id:"), "7")
	until(t, "it waits", func() bool {
		v := look(t, url, 10*time.Millisecond)
		return len(v.Users) == 1 && v.Users[0].PID == p.pid() && v.Users[0].Waits == "to receive"
	})
	put(t, url, 1)
	expectThat(t, finding(t, look(t, url, brief).Findings, "queue.flow"), Attention, "", "taken nothing", "another kind")
	p.stop()
	expectThat(t, finding(t, look(t, url, brief).Findings, "queue.readers"), Attention, "kill -CONT "+strconv.Itoa(p.pid()), "all its readers are stopped")
}

// TestReceiverGone: the last who received is not there any more.
func TestReceiverGone(t *testing.T) {
	url := made(t, "sysv", 10)
	put(t, url, 1)
	p := start(t, "receive", url, "1h")
	until(t, "it is received", func() bool { return look(t, url, 10*time.Millisecond).Messages == 0 })
	p.kill()
	put(t, url, 1)
	f := finding(t, look(t, url, brief).Findings, "queue.readers")
	expectThat(t, f, Attention, "", "nobody reads it", fmt.Sprintf("process %d, which received last, is gone", p.pid()))
}

func TestFull(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		url := made(t, kind, 5)
		put(t, url, 4)
		expectThat(t, finding(t, look(t, url, brief).Findings, "queue.limit"), Attention, "", "nearly full")
		put(t, url, 1)
		v := look(t, url, brief)
		expectThat(t, finding(t, v.Findings, "queue.limit"), Attention, "", "it is full")
		if v.Messages != 5 || v.Bytes != 20 {
			t.Errorf("%+v", v)
		}
	})
}

// TestHeldLock stops a process while it has the lock of an engine queue, at a moment that comes often enough.
func TestHeldLock(t *testing.T) {
	url := made(t, "engine", 10_000)
	put(t, url, 5000)
	p := start(t, "churn", url)
	q, err := kumquat.Open(t.Context(), url, &kumquat.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	until(t, "it is stopped with the lock", func() bool {
		p.stop()
		ps, err := q.Who(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range ps {
			if ps[i].PID == p.pid() && ps[i].Doing == "hold the lock" && ps[i].Received > 0 {
				return true
			}
		}
		p.goOn()
		time.Sleep(time.Duration(serial.Add(1)%7) * 100 * time.Microsecond)
		return false
	})
	v := look(t, url, brief)
	fix := "kill -CONT " + strconv.Itoa(p.pid())
	expectThat(t, finding(t, v.Findings, "queue.held"), Attention, fix, fmt.Sprintf("process %d", p.pid()), "stopped by a signal", "holds the lock")
	expectThat(t, finding(t, v.Findings, "queue.readers"), Attention, fix, "all its readers are stopped")
	p.goOn()
	until(t, "it goes on", func() bool { return look(t, url, 20*time.Millisecond).Received > 0 })
}

func TestDropping(t *testing.T) {
	url := made(t, "engine", 5)
	if err := kumquat.Remove(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	q, err := kumquat.Open(t.Context(), url, &kumquat.Options{Create: true, MaxMessages: 5, MaxSize: 64, Overflow: kumquat.DropOldest})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	start(t, "send", url, "1ms")
	until(t, "it is full", func() bool { return look(t, url, 10*time.Millisecond).Messages == 5 })
	expectThat(t, finding(t, look(t, url, brief).Findings, "queue.flow"), Attention, "", "were dropped", "drops the oldest")
}

func TestHandles(t *testing.T) {
	url := made(t, "engine", 5)
	if err := kumquat.Remove(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		q, err := kumquat.Open(t.Context(), url, &kumquat.Options{Create: true, MaxMessages: 5, MaxSize: 64, MaxHandles: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
	}
	expectThat(t, finding(t, look(t, url, brief).Findings, "queue.handles"), Attention, "", "2 of 2 handles")
}

func TestNotifyHolder(t *testing.T) {
	url := made(t, "posix", 5)
	p := start(t, "notify", strings.TrimPrefix(url, "posix:"))
	want := fmt.Sprintf("process %d", p.pid())
	for range 2 { // looking does not remove the registration
		expectThat(t, finding(t, look(t, url, brief).Findings, "queue.notify"), OK, "", want)
	}
}

// TestNames: a System V queue is found by each of its names.
func TestNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	key, err := sysv.Ftok(file, 'k')
	if err != nil {
		t.Fatal(err)
	}
	q, err := sysv.Get(key, sysv.Create|sysv.Exclusive, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	defer q.Remove()
	if err := q.Send(t.Context(), 3, []byte("pear"), 0); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"sysv:" + key.String(), "sysv:" + file + ",k", "sysv:id:" + strconv.Itoa(q.ID()), "sysv+priority:" + key.String()} {
		if v := look(t, url, 10*time.Millisecond); v.Messages != 1 || v.Bytes != 4 || v.Kind != "sysv" || v.Queue != url {
			t.Errorf("%+v", v)
		}
	}
}

func TestNoQueue(t *testing.T) {
	t.Setenv("KUMQUAT_SHM", t.TempDir())
	for url, want := range map[string]error{
		"/none-such":        kumquat.ErrNotFound,
		"posix:/none-such":  kumquat.ErrNotFound,
		"posix:none":        kumquat.ErrInvalid,
		"sysv:0x7f00beef":   kumquat.ErrNotFound,
		"sysv:0x0":          kumquat.ErrInvalid,
		"sysv:nonsense":     kumquat.ErrInvalid,
		"nats://host/queue": kumquat.ErrUnsupported,
		"":                  kumquat.ErrUnsupported,
	} {
		if _, err := Queue(t.Context(), url, brief); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", url, err, want)
		}
	}
}

// TestEnds: the end of the context ends the watch at once, and so does the end of the queue.
func TestEnds(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		url := made(t, kind, 5)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		begin := time.Now()
		if _, err := Queue(ctx, url, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after the context: %v", err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		removed := time.AfterFunc(50*time.Millisecond, func() { _ = kumquat.Remove(context.Background(), url) })
		defer removed.Stop()
		if _, err := Queue(t.Context(), url, 300*time.Millisecond); !errors.Is(err, kumquat.ErrRemoved) {
			t.Errorf("removed: %v", err)
		}
	})
}
