//go:build (!amd64 || race) && !kumquat_step

package shm

import "sync/atomic"

// store publishes v. This hardware, or the race detector, needs it to be atomic.
func store(p *uint64, v uint64)   { atomic.StoreUint64(p, v) }
func store32(p *uint32, v uint32) { atomic.StoreUint32(p, v) }
