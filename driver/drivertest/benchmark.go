package drivertest

import (
	"context"
	"fmt"
	"testing"

	"github.com/kumquat-mq/kumquat"
)

// Benchmark measures one goroutine that sends and receives in turn: the cost of the calls without waiting. ns/msg counts a send
// and a receive as one.
func Benchmark(b *testing.B, h Harness) {
	s := &suite{Harness: h}
	ctx := context.Background()
	const size = 64
	body := make([]byte, size)
	b.Run("Bytes64", func(b *testing.B) {
		q := s.queue(b, kumquat.Options{MaxMessages: 64, MaxSize: size})
		buf := make([]byte, size)
		b.ReportAllocs()
		for b.Loop() {
			if err := q.SendBytes(ctx, body, s.at(5)); err != nil {
				b.Fatal(err)
			}
			if _, _, err := q.ReceiveInto(ctx, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Message64", func(b *testing.B) {
		q := s.queue(b, kumquat.Options{MaxMessages: 64, MaxSize: size})
		b.ReportAllocs()
		for b.Loop() {
			if err := q.Send(ctx, kumquat.Message{Body: body, Priority: s.at(5)}); err != nil {
				b.Fatal(err)
			}
			if _, err := q.Receive(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
	if !s.can(kumquat.Batches) {
		return
	}
	for _, n := range []int{16, 256} {
		b.Run(fmt.Sprintf("Batch%dx64", n), func(b *testing.B) {
			q := s.queue(b, kumquat.Options{MaxMessages: 1024, MaxSize: size})
			n := min(n, q.MaxBatch())
			ms := make([]kumquat.Message, n)
			for i := range ms {
				ms[i] = kumquat.Message{Body: body, Priority: s.at(i % 4), Type: 1}
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := q.SendBatch(ctx, ms); err != nil {
					b.Fatal(err)
				}
				for got := 0; got < n; {
					ms, err := q.ReceiveBatch(ctx, n)
					if err != nil {
						b.Fatal(err)
					}
					got += len(ms)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/msg")
		})
	}
}
