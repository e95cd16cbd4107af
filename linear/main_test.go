package linear

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// workerVar tells a process of this binary that it is a worker.
const workerVar = "KUMQUAT_LINEAR_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(workerVar) != "" {
		// A worker, stopped ones too, must not outlive a test that is killed.
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
		if err := work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(tests(m))
}

// tests runs the tests on a folder of queues that is theirs alone.
func tests(m *testing.M) int {
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-linear-")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()
		err = os.Setenv("KUMQUAT_SHM", dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
