package examples

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/shm"
)

const (
	wrapper  = "-run-an-example"         // the first argument of a wrapper; the others are a command line
	mountVar = "KUMQUAT_EXAMPLES_MQUEUE" // a folder to mount the kernel's POSIX queues on, to see what is left
)

// namespace gives a process an IPC namespace of its own, so that no run meets the queues of another or of this machine's users, and
// a mount namespace to look into it. That takes root, or a user namespace; without either the machine's own serve.
var namespace = func() func(t *testing.T) *syscall.SysProcAttr {
	attr := sync.OnceValue(func() *syscall.SysProcAttr {
		plain := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWIPC | syscall.CLONE_NEWNS}
		user := &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
		}
		for _, a := range []*syscall.SysProcAttr{plain, user} {
			cmd := exec.Command("/proc/self/exe", wrapper, "/bin/true")
			cmd.SysProcAttr = a
			if cmd.Run() == nil {
				return a
			}
		}
		return nil
	})
	return func(t *testing.T) *syscall.SysProcAttr {
		t.Helper()
		a := attr()
		if a == nil {
			t.Log("an IPC namespace of its own is not allowed here: it runs among the machine's queues")
			return nil
		}
		b := *a
		return &b
	}
}()

// wrap runs a command line, hands SIGINT on to it, and returns its exit status, or left if there are more queues than before.
func wrap(args []string) int {
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	dir := os.Getenv(mountVar)
	if dir != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			dir = "" // not in a mount namespace of its own
		} else if err := unix.Mount("mqueue", dir, "mqueue", 0, ""); err != nil {
			dir = ""
		}
	}
	unix.Umask(0o022) // attributes shows the mode
	before := queues(dir)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() { // ends with the process
		for s := range interrupts {
			_ = cmd.Process.Signal(s) // it may have ended
		}
	}()
	_ = cmd.Wait() // its exit status says it
	for _, q := range queues(dir) {
		if !slices.Contains(before, q) {
			fmt.Fprintln(os.Stderr, "this queue is left:", q)
			return left
		}
	}
	return cmd.ProcessState.ExitCode()
}

// queues returns the queues of all kinds that can be seen here. It asks the kernel itself, not the library under test.
func queues(mqueue string) (all []string) {
	for _, dir := range []string{os.Getenv(shm.EnvDir), mqueue} {
		if dir == "" {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		for _, x := range entries {
			all = append(all, x.Name())
		}
	}
	lines, err := os.ReadFile("/proc/sysvipc/msg")
	if err != nil {
		return all // a kernel without System V queues
	}
	for line := range strings.Lines(string(lines)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] != "key" {
			all = append(all, "System V key "+f[0]+" id "+f[1])
		}
	}
	return all
}
