package sysv

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Signals of any kind, with handlers and without, end no call: EINTR stays inside. And a program that ignores SIGURG can still
// cancel a send that is in the kernel.
func TestSignals(t *testing.T) {
	p := startPeer(t, "signals")
	if got := p.line(); got != "ready" {
		t.Fatal(got)
	}
	for i := range 300 {
		_ = unix.Kill(p.cmd.Process.Pid, []syscall.Signal{unix.SIGURG, unix.SIGUSR1, unix.SIGWINCH, unix.SIGCHLD}[i%4])
		if i%10 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	p.say("go on")
	if got := p.line(); got != "x of type 3, <nil>; <nil>; true" {
		t.Errorf("it says %q", got)
	}
	want(t, p.wait(), nil)
}

func init() {
	roles["signals"] = func([]string) int {
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGUSR1, unix.SIGCHLD)
		signal.Ignore(unix.SIGURG)
		q, err := Get(Private, Create, 0o600)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer q.Remove()
		two := int64(2)
		full, err := Get(Private, Create, 0o600)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer full.Remove()
		if err := full.Set(Change{QBytes: &two}); err != nil {
			fmt.Println(err)
			return 1
		}
		_ = full.Send(context.Background(), 1, []byte("ab"), 0)
		r := receiveLater(context.Background(), q, 3, 0)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		s1 := sendLater(context.Background(), full, 1, "c")
		for asleep() < 2 {
			time.Sleep(time.Millisecond)
		}
		fmt.Println("ready")
		var line string
		_, _ = fmt.Scanln(&line)
		_ = q.Send(context.Background(), 3, []byte("x"), 0)
		got := <-r
		_, _, _ = full.Receive(context.Background(), make([]byte, 2), 0, 0)
		sent := <-s1
		_ = full.Send(context.Background(), 1, []byte("d"), 0)
		s2 := sendLater(ctx, full, 1, "e")
		for asleep() < 1 {
			time.Sleep(time.Millisecond)
		}
		begin := time.Now()
		cancel()
		err = <-s2
		fmt.Printf("%s of type %d, %v; %v; %t\n", got.body, got.mtype, got.err, sent, err == context.Canceled && time.Since(begin) < time.Second)
		return 0
	}
}
