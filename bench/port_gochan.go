package bench

import (
	"encoding/binary"
	"sync"
)

// channel is the reference inside one process: goroutines, a buffered channel of slices, buffers from a pool.
func (w *work) channel(p phase) (done, error) {
	w.ctl.meet(p.Start)
	if p.Group > 0 {
		return w.channelPing(p)
	}
	c := make(chan *[]byte, w.Capacity)
	pool := sync.Pool{New: func() any { b := make([]byte, w.Size); return &b }}
	var senders, receivers sync.WaitGroup
	parts := split(p.Count, w.Producers)
	for _, n := range parts {
		senders.Go(func() {
			body := make([]byte, w.Size)
			for i := range n {
				binary.LittleEndian.PutUint64(body, uint64(i))
				b := pool.Get().(*[]byte)
				copy(*b, body)
				c <- b
			}
		})
	}
	d := done{First: w.clock.now()}
	for range w.Consumers {
		receivers.Go(func() {
			buf := make([]byte, w.Size)
			for b := range c {
				copy(buf, *b)
				pool.Put(b)
			}
		})
	}
	senders.Wait()
	close(c)
	receivers.Wait()
	d.Count, d.Last = p.Count, w.clock.now()
	return d, nil
}

func (w *work) channelPing(p phase) (done, error) {
	there, back := make(chan []byte, 1), make(chan []byte, 1)
	go func() {
		for b := range there {
			if p.Pause > 0 {
				w.rest(w.clock.now() + int64(p.Pause))
			}
			back <- b
		}
	}()
	defer close(there)
	s := w.ctl.samples()
	d := done{First: w.clock.now(), Count: p.Count}
	at := d.First
	for i := 1; i <= p.Count; i++ {
		if p.Pause > 0 {
			w.rest(at + int64(p.Pause))
			at = w.clock.now()
		}
		there <- w.body
		<-back
		if i%p.Group == 0 && d.Samples < maxSamples {
			now := w.clock.now()
			s[d.Samples] = uint32(min(now-at-int64(p.Pause), 1<<32-1))
			d.Samples++
			at = now
		}
	}
	d.Last = w.clock.now()
	return d, nil
}

// split divides n into parts that differ by one at most.
func split(n, parts int) []int {
	s := make([]int, parts)
	for i := range s {
		s[i] = n / parts
		if i < n%parts {
			s[i]++
		}
	}
	return s
}
