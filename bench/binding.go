package bench

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// What the bindings of the kernel's queues cost: one process sends a message and receives it, again and again, by package posix or
// sysv; the peer is the same loop in C. Nobody waits in it, so what is measured is the calls alone.

//go:embed testdata/binding.c
var bindingSource []byte

// bindingMessages is the capacity of the queues: what the kernel gives to everybody.
const bindingMessages = 10

// The same numbers as in binding.c.
const (
	bindingGroup   = 256     // round trips between two looks at the clock
	bindingSamples = 1 << 16 // of a run
)

// measureBinding runs one round of e and returns the microseconds of a round trip. Queue and process are in an IPC namespace of their
// own where that is allowed.
func (c *Config) measureBinding(ctx context.Context, e *entrant) (float64, error) {
	kind, inC := strings.CutSuffix(e.Subject, "-c")
	program := ""
	if inC {
		var err error
		if program, err = bindingPeer(ctx); err != nil {
			return 0, err
		}
	}
	within, cancel := context.WithTimeoutCause(ctx, c.Patience, fmt.Errorf("it did not finish within %v", c.Patience))
	defer cancel()
	var trip, mallocs float64
	err := inNamespace(func(private bool) error {
		name, remove, err := bindingQueue(kind, e.Size, private)
		if err != nil {
			return err
		}
		defer remove()
		o := order{Subject: kind, Role: roleBinding, Size: e.Size, Names: []string{name}, Pin: -1, Target: c.Target}
		if e.Pin {
			o.Pin = cores[0]
		}
		var cmd *exec.Cmd
		if inC {
			cmd = exec.Command(program, kind, name, strconv.Itoa(o.Size), strconv.FormatInt(int64(o.Target), 10), strconv.Itoa(o.Pin))
		} else {
			text, err := json.Marshal(o)
			if err != nil {
				return err
			}
			if cmd, err = again(string(text)); err != nil {
				return err
			}
		}
		trip, mallocs, err = runBinding(within, cmd)
		return err
	})
	if err == nil {
		e.values = append(e.values, trip/1000)
		e.mallocs = append(e.mallocs, mallocs)
	}
	return trip / 1000, err
}

// bindingQueue makes a queue and returns the name that the loop opens it by.
func bindingQueue(kind string, size int, private bool) (name string, remove func(), err error) {
	if kind == "posix" {
		if private && size > 8192 {
			_ = os.WriteFile("/proc/sys/fs/mqueue/msgsize_max", []byte(strconv.Itoa(size)), 0) // Open tells
		}
		sessions++
		name := fmt.Sprintf("/kumquat-bench-%d-%d", os.Getpid(), sessions)
		q, err := posix.Open(name, posix.CreateFlag|posix.ExclusiveFlag|posix.ReadWrite, 0o600, &posix.Attr{MaxMessages: bindingMessages, MaxSize: size})
		if err != nil {
			return "", nil, err
		}
		// It must not stay open here: a poller that knows a queue makes every send and receive dearer, for everybody.
		return name, func() { _ = posix.Unlink(name) }, q.Close()
	}
	if private && size > 8192 {
		_ = os.WriteFile("/proc/sys/kernel/msgmax", []byte(strconv.Itoa(size)), 0) // the first send tells
		_ = os.WriteFile("/proc/sys/kernel/msgmnb", []byte(strconv.Itoa(2*size)), 0)
	}
	q, err := sysv.Get(sysv.Private, sysv.Create, 0o600)
	if err != nil {
		return "", nil, err
	}
	return strconv.Itoa(q.ID()), func() {
		_ = q.Remove()
		_ = q.Close()
	}, nil
}

// runBinding runs a program to its end and reads its answer. It does so in this thread, whose IPC namespace the process inherits; and the
// process dies with the thread, so with this one as well.
func runBinding(ctx context.Context, cmd *exec.Cmd) (trip, mallocs float64, err error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	ended := cmd.Wait()
	stop()
	if ctx.Err() != nil && ended != nil {
		return 0, 0, context.Cause(ctx)
	}
	line := strings.TrimSpace(out.String())
	if text, failed := strings.CutPrefix(line, "error "); failed {
		return 0, 0, errors.New(text)
	}
	trips := 0
	if _, err := fmt.Sscanf(line, "ok %d %f %f", &trips, &trip, &mallocs); err != nil || ended != nil || trip <= 0 {
		return 0, 0, fmt.Errorf("the process ended early: %v, %q %s", ended, line, firstLine(errs.String()))
	}
	return trip, mallocs / float64(trips), nil
}

// bindingChild is the loop in Go.
func bindingChild(o *order) error {
	if o.Pin >= 0 {
		if err := pin(o.Pin); err != nil {
			return fmt.Errorf("staying on core %d: %w", o.Pin, err)
		}
	}
	stop, err := profile(o)
	if err != nil {
		return err
	}
	defer stop()
	body, room := bytes.Repeat([]byte{'k'}, o.Size), make([]byte, o.Size)
	var trips func() error
	if o.Subject == "posix" {
		q, err := posix.Open(o.Names[0], posix.ReadWrite, 0, nil)
		if err != nil {
			return err
		}
		defer q.Close()
		trips = func() error { return posixTrips(q, body, room) }
	} else {
		id, err := strconv.Atoi(o.Names[0])
		if err != nil {
			return err
		}
		q, err := sysv.FromID(id)
		if err != nil {
			return err
		}
		defer q.Close()
		trips = func() error { return sysvTrips(q, body, room) }
	}
	samples := make([]uint32, 0, bindingSamples)
	if _, err := bindingLoop(trips, samples, o.Target/8); err != nil {
		return err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if samples, err = bindingLoop(trips, samples, o.Target); err != nil {
		return err
	}
	runtime.ReadMemStats(&after)
	if !bytes.Equal(body, room) {
		return errors.New("another message came out than went in")
	}
	slices.Sort(samples)
	fmt.Printf("ok %d %.2f %d\n", len(samples)*bindingGroup, float64(samples[len(samples)/2])/bindingGroup, after.Mallocs-before.Mallocs)
	return nil
}

func bindingLoop(trips func() error, samples []uint32, target time.Duration) ([]uint32, error) {
	samples = samples[:0]
	begin := time.Now()
	for before := time.Duration(0); before < target && len(samples) < bindingSamples; {
		if err := trips(); err != nil {
			return nil, err
		}
		after := time.Since(begin)
		samples = append(samples, uint32(after-before))
		before = after
	}
	return samples, nil
}

func posixTrips(q *posix.Queue, body, room []byte) error {
	for range bindingGroup {
		if err := q.Send(body, 0); err != nil {
			return err
		}
		if n, _, err := q.Receive(room); err != nil || n != len(body) {
			return fmt.Errorf("received %d bytes: %w", n, err)
		}
	}
	return nil
}

func sysvTrips(q *sysv.Queue, body, room []byte) error {
	ctx := context.Background()
	for range bindingGroup {
		if err := q.Send(ctx, 1, body, 0); err != nil {
			return err
		}
		if n, _, err := q.Receive(ctx, room, 0, 0); err != nil || n != len(body) {
			return fmt.Errorf("received %d bytes: %w", n, err)
		}
	}
	return nil
}
