package main

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/kumquat-mq/kumquat"
)

// tooLong says that a body is longer than the queue takes.
type tooLong struct {
	what string
	max  int
}

func (e tooLong) Error() string {
	return fmt.Sprintf("%s is longer than %d bytes, the most that this queue takes (kumquat create --max-size)", e.what, e.max)
}

func (e tooLong) Unwrap() error { return kumquat.ErrTooLarge }

// limit is the longest body that a queue takes. It is asked for when a body is longer than everyday: the queue has to count its
// messages to answer.
type limit struct {
	ctx context.Context
	q   *kumquat.Queue
	max int // 0: not asked yet
}

// everyday is the size up to which the queue itself may say that a body is too long.
const everyday = 64 << 10

// exceeded reports whether n bytes are more than the queue takes, and what it takes.
func (l *limit) exceeded(n int) (bool, int, error) {
	if n <= everyday {
		return false, 0, nil
	}
	if l.max == 0 {
		st, err := l.q.Stat(l.ctx)
		if err != nil {
			return false, 0, err
		}
		l.max = st.MaxSize
	}
	return n > l.max, l.max, nil
}

// splitStream cuts r at each sep and gives the pieces, without sep, to add; what stands behind the last sep is a piece too if it is
// not empty. Before each read, which may wait, it calls flush. Pieces lie in a buffer that the next read overwrites: add may keep
// them until flush. grown is asked whether it may go on each time a piece outgrows the buffer.
//
// While flush sends, the pipe fills; the next read takes all of that. So pieces come in the largest groups that delay none of
// them, without a clock.
func splitStream(r io.Reader, sep byte, grown func(n int) error, add func(piece []byte) error, flush func() error) error {
	buf := make([]byte, splitBuffer)
	have := 0 // buf[:have] is the beginning of a piece
	for {
		if have == len(buf) {
			if err := grown(have); err != nil {
				return err
			}
			buf = append(buf, make([]byte, len(buf))...)
		}
		n, err := r.Read(buf[have:])
		start, seek := 0, have
		have += n
		for {
			i := bytes.IndexByte(buf[seek:have], sep)
			if i < 0 {
				break
			}
			if err := add(buf[start : seek+i]); err != nil {
				return err
			}
			start = seek + i + 1
			seek = start
		}
		if err == io.EOF && start < have {
			if err := add(buf[start:have]); err != nil {
				return err
			}
		}
		if err := flush(); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading standard input: %w", err)
		}
		if start > 0 { // else a long piece would be moved onto itself at each read
			have = copy(buf, buf[start:have])
		}
	}
}

const splitBuffer = 256 << 10
