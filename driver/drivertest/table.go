package drivertest

import (
	"time"

	"github.com/kumquat-mq/kumquat"
)

var farAway = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)

// alone are the subtests that measure or change the whole process.
var alone = []subtest{
	{"Allocations", needs(kumquat.Bytes), allocations},
	{"Modes", needs(kumquat.Modes), modes},
	{"Permissions", needs(kumquat.Modes), permissions},
}

// together are those that run in parallel.
var together = []subtest{
	{"Abilities", nil, abilities},
	{"Opening", nil, opening},
	{"Arguments", nil, arguments},
	{"Handles", nil, handles},

	{"Order", nil, order},
	{"ConcurrentOrder", nil, concurrentOrder},
	{"AllPriorities", needs(kumquat.Priorities), priorities},
	{"Sizes", nil, sizes},
	{"ZeroLength", nil, zeroLength},
	{"Ownership", nil, ownership},
	{"ExactlyOnce", nil, exactlyOnce},
	{"Random", nil, random},

	{"Capacity", nil, capacity},
	{"BusyCapacity", nil, busyCapacity},
	{"Reject", nil, reject},
	{"Dropping", needs(kumquat.Dropping, kumquat.Priorities), dropping},
	{"Headroom", needs(kumquat.Headrooms, kumquat.Priorities), headroom},

	{"Try", nil, try},
	{"DoneContexts", nil, doneContexts},
	{"Deadlines", nil, deadlines},
	{"Cancellation", nil, cancellation},
	{"Wakes", nil, wakes},
	{"Closing", nil, closing},
	{"Removing", nil, removing},
	{"Revoking", needs(kumquat.Revoking), revoking},
	{"Iterator", nil, iterator},

	{"Filters", needs(kumquat.Filters, kumquat.Metadata, kumquat.Priorities), filters},
	{"BlockedFilters", needs(kumquat.Filters, kumquat.Metadata, kumquat.Priorities), blockedFilters},
	{"Delays", needs(kumquat.Delays, kumquat.Filters), delays},
	{"Expiry", needs(kumquat.Expiry), expiry},

	{"Leases", nil, leases},
	{"LeaseTimes", nil, leaseTimes},
	{"LeaseWakes", nil, leaseWakes},
	{"LeaseCapacity", nil, leaseCapacity},
	{"LeaseBatches", nil, leaseBatches},
	{"LeaseFilters", needs(kumquat.Filters, kumquat.Metadata), leaseFilters},
	{"LeaseHandles", nil, leaseHandles},

	{"Batches", needs(kumquat.Batches), batches},
	{"BatchesStayTogether", needs(kumquat.Batches), batchesStayTogether},
	{"ReceiveBatch", nil, receiveBatch},
	{"Bytes", needs(kumquat.Bytes), bytesPath},
	{"Reserve", needs(kumquat.ZeroCopy, kumquat.Metadata), reserve},
	{"Borrow", needs(kumquat.ZeroCopy, kumquat.Metadata), borrow},

	{"Peek", needs(kumquat.Peeking), peek},
	{"Purge", needs(kumquat.Purging), purge},
	{"Stat", nil, stats},
	{"Inspect", needs(kumquat.Inspecting), inspect},
	{"Watch", needs(kumquat.Watching), watch},
	{"Metadata", needs(kumquat.Metadata), metadata},

	{"Notify", needs(kumquat.Notifying), notify},
	{"Select", needs(kumquat.Selecting), selecting},
	{"SelectMany", needs(kumquat.Selecting), selectMany},
	{"Descriptor", needs(kumquat.Descriptors), descriptor},
}
