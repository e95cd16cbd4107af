package differ

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	// workerVar tells a process of this binary that it is a worker; its value is the user it becomes, or "".
	workerVar = "KUMQUAT_DIFFER_WORKER"
	userVar   = "KUMQUAT_DIFFER_USER"
	// namespaceVar names the test that this process of the binary runs, in an IPC namespace of its own.
	namespaceVar = "KUMQUAT_DIFFER_NAMESPACE"
)

func TestMain(m *testing.M) {
	if os.Getenv(workerVar) != "" {
		if err := become(os.Getenv(userVar)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(tests(m))
}

// become makes this process one of a user, if one is given, who is his own group.
func become(user string) error {
	if user != "" {
		id, err := strconv.Atoi(user)
		if err == nil {
			err = errors.Join(syscall.Setgroups(nil), syscall.Setresgid(id, id, id), syscall.Setresuid(id, id, id))
		}
		if err != nil {
			return err
		}
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil { // else /proc/self is root's
			return err
		}
	}
	// A worker must not outlive a test that is killed. Becoming another user would have forgotten this.
	return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
}

// tests runs the tests on a folder of queues that is theirs alone, like /dev/shm in who may do what there.
func tests(m *testing.M) int {
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-differ-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = errors.Join(os.Chmod(dir, os.ModeSticky|0o777), os.Setenv("KUMQUAT_SHM", dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if left, err := os.ReadDir(dir); code == 0 && (err != nil || len(left) > 0) {
		fmt.Fprintln(os.Stderr, "queues are left:", left, err)
		return 1
	}
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// inNamespace runs the test again in an IPC namespace of its own, where limits, "fs/mqueue/msg_max=100" and the like, are set before
// it. It reports true in that process; in the first one it waits, passes on the result and reports false. As root it needs
// CAP_SYS_ADMIN, else user namespaces for everybody.
func inNamespace(t *testing.T, limits ...string) bool {
	t.Helper()
	if os.Getenv(namespaceVar) == t.Name() {
		for _, s := range limits {
			name, value, _ := strings.Cut(s, "=")
			if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
				t.Skipf("needs the right to set %s in a namespace: %v", name, err)
			}
		}
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.timeout=1200s")
	cmd.Env = append(os.Environ(), namespaceVar+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err != nil && !errors.As(err, &exit):
		t.Skipf("needs an IPC namespace, which root, or unprivileged user namespaces, allow: %v", err)
	case err != nil:
		t.Errorf("in a namespace: %v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name()+" ")):
		why := "no reason given"
		for line := range strings.Lines(string(out)) {
			if _, after, ok := strings.Cut(line, "_test.go:"); ok {
				_, why, _ = strings.Cut(strings.TrimSpace(after), ": ")
			}
		}
		t.Skip(why)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")):
		t.Errorf("in a namespace nothing ran:\n%s", out)
	default:
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "summary:") {
				_, after, _ := strings.Cut(line, "_test.go:")
				_, after, _ = strings.Cut(after, ": ")
				t.Log(strings.TrimSpace(after))
			}
		}
	}
	return false
}
