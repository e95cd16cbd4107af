package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// input reads a file descriptor until its context ends, also while it waits for more. A Read of os.Stdin cannot be called back,
// so each one is preceded by a poll of the file and of an event that the end of the context raises.
type input struct {
	f    *os.File
	ctx  context.Context
	wake int // eventfd
	stop func() bool
}

func newInput(ctx context.Context, f *os.File) (*input, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	in := &input{f: f, ctx: ctx, wake: fd}
	in.stop = context.AfterFunc(ctx, func() {
		unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	return in, nil
}

// Close frees the event. The file stays open.
func (in *input) Close() error {
	if in.stop() {
		return unix.Close(in.wake)
	}
	return nil // the context has ended, and with it the process soon does: the descriptor may be in use just now
}

func (in *input) Read(p []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(in.f.Fd()), Events: unix.POLLIN}, {Fd: int32(in.wake), Events: unix.POLLIN}}
	for {
		if err := in.ctx.Err(); err != nil {
			return 0, err
		}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR || err == unix.EAGAIN {
			continue
		} else if err != nil {
			return 0, os.NewSyscallError("poll", err)
		}
		if fds[0].Revents != 0 {
			return in.f.Read(p)
		}
	}
}

// readWhole reads all there is as one body, as long as the queue takes that much.
func (in *input) readWhole(l *limit) ([]byte, error) {
	var b bytes.Buffer
	size := int64(everyday)
	if st, err := in.f.Stat(); err == nil && st.Mode().IsRegular() {
		if over, max, err := l.exceeded(int(st.Size())); err != nil {
			return nil, err
		} else if over {
			return nil, tooLong{"standard input", max}
		}
		size = st.Size()
		b.Grow(int(size) + 2*bytes.MinRead) // read without moving it
	}
	for {
		n, err := b.ReadFrom(io.LimitReader(in, size+1))
		if err != nil {
			return nil, fmt.Errorf("reading standard input: %w", err)
		}
		if n <= size {
			return b.Bytes(), nil
		}
		if over, max, err := l.exceeded(b.Len()); err != nil {
			return nil, err
		} else if over {
			return nil, tooLong{"standard input", max}
		}
		size = int64(b.Len()) // ask again when it has doubled
	}
}
