package posix

import (
	"runtime"
	"sync/atomic"
)

// gate is the short way into a queue's descriptor, one per direction: one call at a time takes it, with a single locked
// instruction, and the others go by Queue.acquire, which costs two. Close shuts it, after which nobody gets in.
type gate struct{ word uint32 }

const (
	gateFree   = iota
	gateTaken  // by one call, for the length of a system call that does not wait
	gateClosed // for ever
)

func (g *gate) enter() bool { return atomic.CompareAndSwapUint32(&g.word, gateFree, gateTaken) }

// shut waits for the call that is in, if there is one.
func (g *gate) shut() {
	for !atomic.CompareAndSwapUint32(&g.word, gateFree, gateClosed) {
		runtime.Gosched()
	}
}
