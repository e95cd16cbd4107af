package bench

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// leftQueues returns the queues of this package's processes that are there, of POSIX and of System V.
func leftQueues(t *testing.T) (names []string) {
	t.Helper()
	all, err := posix.List()
	if err != nil && !errors.Is(err, posix.ErrNotMounted) {
		t.Fatal(err)
	}
	for _, x := range all {
		if strings.HasPrefix(x.Name, "/kumquat-bench-") {
			names = append(names, x.Name)
		}
	}
	return names
}

func TestBinding(t *testing.T) {
	if _, _, err := sysv.GetUsage(); err != nil {
		t.Skipf("no System V queues: %v", err)
	}
	want := []string{"posix", "sysv"}
	peers := []string{}
	if _, err := exec.LookPath("gcc"); err == nil {
		want, peers = []string{"posix", "posix-c", "sysv", "sysv-c"}, []string{"posix-c", "sysv-c"}
	} else {
		t.Log("no gcc: the loops in C are left out")
	}
	c := tiny(Binding, peers...)
	c.Sizes, c.Rounds = []int{64, 20_000}, 2
	var got []string
	for _, r := range run(t, c) {
		got = append(got, r.Subject)
		if r.Unit != Microseconds || r.Workload != Binding || r.Min <= 0 || r.Median < r.Min || r.Max < r.Median || r.Ratio <= 0 || r.Rounds != 2 || r.Allocs > 0.01 {
			t.Errorf("%+v", r)
		}
		if ours := !strings.HasSuffix(r.Subject, "-c"); ours != (r.Ratio == 1) && ours {
			t.Errorf("%s: ratio %v", r.Subject, r.Ratio)
		}
		if row := r.Row(); strings.Contains(row, "×") != strings.HasSuffix(r.Subject, "-c") {
			t.Errorf("row %q", row)
		}
	}
	if want = append(want, want...); !slices.Equal(got, want) {
		t.Errorf("subjects %v, want %v", got, want)
	}
	if left := leftQueues(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	name, remove, err := bindingQueue("sysv", 64, false)
	if err != nil {
		t.Fatal(err)
	}
	remove()
	id, err := strconv.Atoi(name)
	if err != nil {
		t.Fatal(err)
	}
	q, err := sysv.FromID(id)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if _, err := q.Stat(); !errors.Is(err, driver.ErrRemoved) {
		t.Errorf("the System V queue is still there: %v", err)
	}
}

// TestBindingPeers: only the loops in C are measured beside the bindings, and those beside nothing else.
func TestBindingPeers(t *testing.T) {
	c, err := tiny(Binding, "boost", "sysv-c").prepared()
	if err != nil {
		t.Fatal(err)
	}
	contests, unfit := c.plan()
	if len(contests) != 2 || len(contests[0].peers) != 0 || len(contests[1].peers) != 1 || len(unfit) != 1 || !strings.HasPrefix(unfit[0], "boost: ") {
		t.Errorf("%+v, %v", contests, unfit)
	}
	if c, err = tiny(Throughput, "posix-c").prepared(); err != nil {
		t.Fatal(err)
	}
	if contests, unfit = c.plan(); len(contests[0].peers) != 0 || len(unfit) != 1 || !strings.Contains(unfit[0], Binding) {
		t.Errorf("%+v, %v", contests, unfit)
	}
	batch := tiny(Binding)
	batch.Batch = 2
	if err := batch.Check(); !errors.Is(err, driver.ErrInvalid) {
		t.Errorf("batches: %v", err)
	}
}

// TestBindingCancel: the end of the context, or of the patience, ends the process and removes the queue.
func TestBindingCancel(t *testing.T) {
	c := tiny(Binding)
	c.Target = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := Run(ctx, c, func(Result) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	c.Patience = 200 * time.Millisecond
	if err := Run(t.Context(), c, func(Result) {}); err == nil || !strings.Contains(err.Error(), "did not finish") {
		t.Errorf("%v", err)
	}
	if left := leftQueues(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
