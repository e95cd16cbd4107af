package shm

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"
	"unsafe"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// cutBody puts a file of n bytes in the place of slot s's extent: an access beyond it is a SIGBUS, as in a file that was cut there.
// (A cut of the queue's own file takes the index away too, which is met before any body.)
func cutBody(t *testing.T, q *Queue, s uint64, n int64) {
	t.Helper()
	fd, err := unix.MemfdCreate("short", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Ftruncate(fd, n); err != nil {
		t.Fatal(err)
	}
	at := unsafe.Add(q.base, q.bodiesAt+s*q.stride)
	if _, err := unix.MmapPtr(fd, 0, at, uintptr(q.stride), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		t.Fatal(err)
	}
}

// A fault in the midst of the copy of a long body, into the queue or out of it, is ErrCorrupt, and the goroutine copies on as before.
func TestFaultInCopy(t *testing.T) {
	t.Parallel()
	const size = 64 << 10
	body := bytes.Repeat([]byte("kumquat!"), size/8)
	ctx := context.Background()
	for _, op := range []struct {
		name string
		do   func(q *Queue) error
	}{
		{"send bytes", func(q *Queue) error { return q.SendBytes(ctx, body, 1, true) }},
		{"send", func(q *Queue) error { return q.Send(ctx, driver.Message{Body: body, Type: 1}, true) }},
		{"send batch", func(q *Queue) error { return q.SendBatch(ctx, []driver.Message{{Body: body, Type: 1}}, true) }},
		{"receive", func(q *Queue) error { _, err := q.Receive(ctx, driver.Filter{}, true); return err }},
		{"receive into", func(q *Queue) error { _, _, err := q.ReceiveInto(ctx, make([]byte, size), true); return err }},
		{"receive batch", func(q *Queue) error { _, err := q.ReceiveBatch(ctx, nil, driver.Filter{}, 2, true); return err }},
		{"receive batch into", func(q *Queue) error {
			_, err := q.ReceiveBatchInto(ctx, make([]driver.Message, 2), driver.Filter{}, true)
			return err
		}},
	} {
		for _, cut := range []int64{0, size / 2} {
			q := openQueue(t, shmDir(t), "/cut", &driver.Options{Create: true, MaxMessages: 8, MaxSize: size})
			if q.stride != size {
				t.Fatalf("bodies are %d apart", q.stride)
			}
			// One message waits; slots before and after it are free.
			for range 3 {
				if err := q.SendBytes(ctx, body, 1, true); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if _, err := q.Receive(ctx, driver.Filter{}, true); err != nil {
					t.Fatal(err)
				}
			}
			for s := range uint64(4) { // the next send takes the fourth
				cutBody(t, q, s, cut)
			}
			if err := op.do(q); !errors.Is(err, driver.ErrCorrupt) {
				t.Errorf("%s, cut at %d: %v", op.name, cut, err)
			}
			copied := make([]byte, size)
			if copyBody(copied, body); !bytes.Equal(copied, body) {
				t.Errorf("after %s, cut at %d, a copy goes wrong", op.name, cut)
			}
			within(t, 10*time.Second, "close", func() { _ = q.Close() })
		}
	}
}

// Short bodies are cut from one piece of memory; who appends to one changes no other.
func TestShortBodiesApart(t *testing.T) {
	t.Parallel()
	q := openQueue(t, shmDir(t), "/short", &driver.Options{Create: true, MaxMessages: 300, MaxSize: 1000})
	ctx := context.Background()
	const n = 200
	for i := range n {
		if err := q.Send(ctx, driver.Message{Body: bytes.Repeat([]byte{byte(i)}, i), Type: 1}, true); err != nil {
			t.Fatal(err)
		}
	}
	var got [][]byte
	for range n / 2 {
		m, err := q.Receive(ctx, driver.Filter{}, true)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Body)
	}
	ms, err := q.ReceiveBatch(ctx, nil, driver.Filter{}, n, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		got = append(got, m.Body)
	}
	if len(got) != n {
		t.Fatalf("%d messages", len(got))
	}
	for _, b := range got {
		_ = append(b, "appended"...)
	}
	for i, b := range got {
		if !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, i)) {
			t.Errorf("body %d is %q", i, b)
		}
	}
}
