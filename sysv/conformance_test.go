package sysv_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/driver/drivertest"
	"github.com/kumquat-mq/kumquat/sysv"
)

func init() {
	if !slices.Contains(kumquat.Schemes(), "sysv") {
		kumquat.Register("sysv", sysv.Driver())
	}
	if !slices.Contains(kumquat.Schemes(), "sysv+priority") {
		kumquat.Register("sysv+priority", sysv.PriorityDriver())
	}
}

var keys atomic.Int64

// unprivileged is the user nobody.
const unprivileged = 65534

// conformance declares what the kernel cannot do, for a scheme: without priorities, or, as sysv+priority, without types.
func conformance(t testing.TB, scheme string) drivertest.Harness {
	h := drivertest.Harness{
		URL: func(testing.TB) string { return fmt.Sprintf("%s:0x%08x", scheme, 0x4b510000+keys.Add(1)) },
		Cannot: []kumquat.Ability{
			kumquat.Batches, kumquat.ZeroCopy, kumquat.Notifying, kumquat.Watching, kumquat.Inspecting, kumquat.Filters, kumquat.Metadata,
			kumquat.Delays, kumquat.Expiry, kumquat.Dropping, kumquat.Headrooms,
		},
		MaxMessages: 2000, MaxSize: 70_001,
		NoCounts: true,
	}
	if scheme == "sysv" {
		h.Cannot = append(h.Cannot, kumquat.Priorities)
	}
	if !canCopy(t) {
		h.Cannot = append(h.Cannot, kumquat.Peeking)
	}
	if l, _, err := sysv.GetLimits(); err != nil {
		t.Fatal(err)
	} else if l.MaxBytes < h.MaxMessages*h.MaxSize || l.MaxSize < h.MaxSize {
		h.MaxMessages, h.MaxSize = 16, 1024
	}
	for _, scheme := range []string{"sysv:", "sysv+priority:"} {
		for _, name := range []string{
			"", "0x", "0xzz", "0x0", "0x00000000", "0x100000000", "0x-1", "1", "/", "/orders", ",1", ",", "/,", "/,0", "/,256", "/,-1", "/,ab", "id:", "id:-1",
			"id:2147483648", "id:x", "/a\x00,1",
		} {
			h.BadNames = append(h.BadNames, scheme+name)
		}
	}
	return h
}

func TestConformance(t *testing.T) {
	for _, scheme := range []string{"sysv", "sysv+priority"} {
		t.Run(scheme, func(t *testing.T) { drivertest.Run(t, conformance(t, scheme)) })
	}
}

func BenchmarkConformance(b *testing.B) { drivertest.Benchmark(b, conformance(b, "sysv+priority")) }
