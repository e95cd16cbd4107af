package shm_test

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/kumquat-mq/kumquat/driver/drivertest"
)

var conformanceNames atomic.Int64

// conformance gives the suite a folder of its own on the tmpfs that queues live on, so that nothing is left of a run that dies.
func conformance(t testing.TB) drivertest.Harness {
	dir, err := os.MkdirTemp("/dev/shm", "kumquat-drivertest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("files are left: %v, %v", left, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o1777); err != nil { // as /dev/shm: the suite opens queues as another user, too
		t.Fatal(err)
	}
	t.Setenv("KUMQUAT_SHM", dir)
	long := make([]byte, 256)
	for i := range long {
		long[i] = 'x'
	}
	return drivertest.Harness{
		URL: func(testing.TB) string { return fmt.Sprintf("/conformance/%d", conformanceNames.Add(1)) },
		BadNames: []string{
			"/", "//", "/a/", "/a//b", "//a", "/.", "/..", "/a/../b", "/a/./b", "/a\x00b", "/" + string(long),
			"/" + string(long[:100]) + "/" + string(long[:100]) + "/" + string(long[:100]),
		},
	}
}

func TestConformance(t *testing.T) { drivertest.Run(t, conformance(t)) }

func BenchmarkConformance(b *testing.B) { drivertest.Benchmark(b, conformance(b)) }
