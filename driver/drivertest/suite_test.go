package drivertest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/driver"
)

// bare hides all that is optional: what is left is what the least driver has.
type bare struct{ driver.Queue }

func (bare) Able(a driver.Ability) bool { return a != driver.Modes && a < driver.Leases }

type bareDriver struct{ *refDriver }

func (d bareDriver) Open(ctx context.Context, name string, o *driver.Options) (driver.Queue, error) {
	q, err := d.refDriver.Open(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return bare{q}, nil
}

// withFD has a descriptor and no Readier, as kernel queues do: Select must serve it too.
type withFD struct {
	driver.Queue
	driver.Descriptor
}

type fdDriver struct{ *refDriver }

func (d fdDriver) Open(ctx context.Context, name string, o *driver.Options) (driver.Queue, error) {
	q, err := d.refDriver.Open(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return withFD{q, q.(driver.Descriptor)}, nil
}

func (refHandleAble) Able(a driver.Ability) bool { return a != driver.Modes && a < driver.Leases }

// refHandleAble says that the reference has no modes.
type refHandleAble struct{ *refHandle }

type ableDriver struct{ *refDriver }

func (d ableDriver) Open(ctx context.Context, name string, o *driver.Options) (driver.Queue, error) {
	q, err := d.refDriver.Open(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return refHandleAble{q.(*refHandle)}, nil
}

// refFIFO has no priorities, and refuses them.
type refFIFO struct{ *refHandle }

func (refFIFO) Able(a driver.Ability) bool {
	return a != driver.Modes && a != driver.Priorities && a < driver.Leases
}

func (h refFIFO) Send(ctx context.Context, m driver.Message, try bool) error {
	return h.SendBatch(ctx, []driver.Message{m}, try)
}

func (h refFIFO) SendBytes(ctx context.Context, body []byte, priority int, try bool) error {
	return h.SendBatch(ctx, []driver.Message{{Body: body, Priority: priority, Type: 1}}, try)
}

func (h refFIFO) SendBatch(ctx context.Context, ms []driver.Message, try bool) error {
	for _, m := range ms {
		if m.Priority != 0 {
			return driver.ErrUnsupported
		}
	}
	return h.refHandle.SendBatch(ctx, ms, try)
}

type fifoDriver struct{ *refDriver }

func (d fifoDriver) Open(ctx context.Context, name string, o *driver.Options) (driver.Queue, error) {
	q, err := d.refDriver.Open(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return refFIFO{q.(*refHandle)}, nil
}

const faultVariable = "DRIVERTEST_FAULT"

func TestMain(m *testing.M) {
	ref := &refDriver{m: map[string]*refQueue{}, fault: os.Getenv(faultVariable)}
	kumquat.Register("reference", ableDriver{ref})
	kumquat.Register("bare", bareDriver{&refDriver{m: map[string]*refQueue{}}})
	kumquat.Register("descriptor", fdDriver{&refDriver{m: map[string]*refQueue{}}})
	kumquat.Register("fifo", fifoDriver{&refDriver{m: map[string]*refQueue{}, fault: os.Getenv(faultVariable)}})
	os.Exit(m.Run())
}

var serial atomic.Int64

func harness(scheme string, cannot ...kumquat.Ability) Harness {
	return Harness{
		URL:         func(testing.TB) string { return fmt.Sprintf("%s:/%d", scheme, serial.Add(1)) },
		Cannot:      cannot,
		MaxMessages: 1000, // the reference sorts all it has for each receive
		BadNames:    []string{scheme + ":x", scheme + ":/../x"},
	}
}

// The reference allocates, so Bytes is run but Allocations is not.
func TestReference(t *testing.T) {
	keep := alone
	defer func() { alone = keep }()
	alone = nil
	Run(t, harness("reference", kumquat.Modes))
}

// A driver without priorities passes too: nothing in the suite needs them but what says so.
func TestFIFO(t *testing.T) {
	keep := alone
	defer func() { alone = keep }()
	alone = nil
	Run(t, harness("fifo", kumquat.Modes, kumquat.Priorities))
}

// A driver with nothing optional passes what is left, by the library's own ways round.
func TestBare(t *testing.T) {
	Run(t, harness("bare", kumquat.Batches, kumquat.Bytes, kumquat.ZeroCopy, kumquat.Peeking, kumquat.Purging, kumquat.Notifying,
		kumquat.Selecting, kumquat.Descriptors, kumquat.Watching, kumquat.Inspecting, kumquat.Modes))
}

// Select over descriptors alone.
func TestSelectByDescriptor(t *testing.T) {
	s := &suite{Harness: harness("descriptor", kumquat.Inspecting, kumquat.Modes)}
	t.Run("Select", func(t *testing.T) { selecting(s, t) })
	t.Run("SelectMany", func(t *testing.T) { selectMany(s, t) })
}

// A suite that cannot fail shows nothing: each fault of the reference must be found by the subtest that is there for it.
func TestFaultsAreFound(t *testing.T) {
	if os.Getenv(faultVariable) != "" {
		t.Skip("this is the faulty process")
	}
	for fault, test := range map[string]string{
		"order": "Order", "capacity": "Capacity", "expiry": "Expiry", "twice": "ExactlyOnce",
	} {
		for _, suite := range []string{"TestReference", "TestFIFO"} {
			t.Run(suite+"/"+fault, func(t *testing.T) {
				t.Parallel()
				cmd := exec.Command(os.Args[0], "-test.run=^"+suite+"$/^parallel$/^"+test+"$")
				cmd.Env = append(os.Environ(), faultVariable+"="+fault)
				out, err := cmd.CombinedOutput()
				if err == nil || !strings.Contains(string(out), "--- FAIL: "+suite+"/parallel/"+test) {
					t.Errorf("the suite did not find it: %v\n%s", err, out)
				}
			})
		}
	}
}
