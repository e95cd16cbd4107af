//go:build !amd64 || race

package shm

import (
	"runtime"
	"sync/atomic"
)

func store(p *uint64, v uint64)   { atomic.StoreUint64(p, v) }
func store32(p *uint32, v uint32) { atomic.StoreUint32(p, v) }

func pause(n uint32) {
	for ; n > 32; n -= 32 {
		runtime.Gosched()
	}
}
func prefetchWrite(*uint64) {}
func prefetch(*uint64)      {}
func ticks() uint64         { return 0 }

const haveTicks = false
