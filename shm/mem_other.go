//go:build !amd64 || race

package shm

import (
	"runtime"
	"sync/atomic"
)

func pause(n uint32) {
	for ; n > 32; n -= 32 {
		runtime.Gosched()
	}
}
func prefetchWrite(*uint64) {}
func prefetch(*uint64)      {}
func ticks() uint64         { return 0 }

const haveTicks = false

// release gives a turn back.
func release(p *uint32) { atomic.StoreUint32(p, 0) }

func copyBody(dst, src []byte) int { return copy(dst, src) }
