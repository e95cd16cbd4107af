package shm

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/kumquat-mq/kumquat/driver"
)

// openTest opens a queue of its own for a test that looks inside.
func openTest(t testing.TB, o driver.Options) *Queue {
	t.Helper()
	d := Driver{Dir: t.TempDir()}
	o.Create = true
	q, err := d.OpenQueue(context.Background(), "/inside", &o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

// The index against a sorted slice: bitmap levels, lists with insertion in the middle, the walk downwards, and the heap.
func TestIndexAgainstReference(t *testing.T) {
	q := openTest(t, driver.Options{MaxMessages: 500, MaxHandles: 1})
	if err := q.back(q.slots); err != nil {
		t.Fatal(err)
	}
	if err := q.backHeap(0, q.slots); err != nil {
		t.Fatal(err)
	}
	a := &q.areas[0]
	type item struct{ prio, seq, slot, time uint64 }
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	var ref []item
	free := make([]uint64, q.max)
	for i := range free {
		free[i] = uint64(i)
	}
	fail := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	order := func(x, y item) int {
		if x.prio != y.prio {
			return int(y.prio) - int(x.prio)
		}
		return int(x.seq) - int(y.seq)
	}
	taken := map[uint64]bool{}
	for n := range 60_000 {
		if len(free) > 0 && (len(ref) == 0 || r.IntN(100) < 52) {
			it := item{slot: free[len(free)-1], time: r.Uint64N(50)}
			free = free[:len(free)-1]
			switch r.IntN(3) { // few priorities, near ones, any
			case 0:
				it.prio = r.Uint64N(4)
			case 1:
				it.prio = 4000 + r.Uint64N(200)
			default:
				it.prio = r.Uint64N(driver.MaxPriority + 1)
			}
			for it.seq = 1 + r.Uint64N(1<<30); taken[it.seq]; it.seq++ {
			}
			taken[it.seq] = true
			fail(q.backList(0, it.prio))
			fail(a.insert(it.slot, it.prio, readyWord(0, it.seq), it.seq))
			fail(a.heapPush(it.time, it.seq, it.slot))
			at, _ := slices.BinarySearchFunc(ref, it, order)
			ref = slices.Insert(ref, at, it)
			continue
		}
		if n%500 == 0 { // the whole order, by the walk that filters use
			var got []item
			q.hold.a = a
			fail(q.eachListed(func(p, s uint64) bool {
				got = append(got, item{p, nodeSeq(load(a.node(s))), s, 0})
				return true
			}))
			want := slices.Clone(ref)
			for i := range want {
				want[i].time = 0
			}
			if !slices.Equal(got, want) {
				t.Fatalf("step %d: the lists differ from the reference", n)
			}
		}
		i := 0
		if r.IntN(2) == 0 {
			i = r.IntN(len(ref))
		}
		it := ref[i]
		if top := a.top(); top != int(ref[0].prio) {
			t.Fatalf("step %d: top is %d, want %d", n, top, ref[0].prio)
		}
		if low := a.lowest(); low != int(ref[len(ref)-1].prio) {
			t.Fatalf("step %d: lowest is %d, want %d", n, low, ref[len(ref)-1].prio)
		}
		if s, err := a.first(ref[0].prio); err != nil || s != ref[0].slot {
			t.Fatalf("step %d: first is %d (%v), want %d", n, s, err, ref[0].slot)
		}
		earliest := slices.MinFunc(ref, func(x, y item) int { return int(x.time) - int(y.time) }).time
		if at, _, _, ok, err := a.heapTop(); !ok || err != nil || at != earliest {
			t.Fatalf("step %d: heap top is %d (%v), want %d", n, at, err, earliest)
		}
		fail(a.unlink(it.prio, it.slot))
		fail(a.heapRemove(it.slot))
		ref = slices.Delete(ref, i, i+1)
		free = append(free, it.slot)
		delete(taken, it.seq)
	}
	if load(a.heapLen) != uint64(len(ref)) {
		t.Fatalf("%d in the heap, want %d", load(a.heapLen), len(ref))
	}
}

// A rebuild from any set of slots gives the same order as the index it replaces, and the radix sort sorts.
func TestTakeoverKeepsOrder(t *testing.T) {
	q := openTest(t, driver.Options{MaxMessages: 3000})
	ctx := context.Background()
	r := rand.New(rand.NewPCG(7, 7))
	want := map[int][]uint64{}
	for i := range 2000 {
		m := driver.Message{Body: []byte{byte(i), byte(i >> 8)}, Priority: r.IntN(5) * 1000, Type: 1}
		if err := q.Send(ctx, m, true); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 { // some go, some are drained, the last are not
			got, err := q.Receive(ctx, driver.Filter{}, true)
			if err != nil {
				t.Fatal(err)
			}
			if l := want[got.Priority]; len(l) > 0 && l[0] == got.Seq {
				want[got.Priority] = l[1:]
			} else if got.Seq != uint64(i+1) {
				t.Fatalf("received seq %d of priority %d out of order", got.Seq, got.Priority)
			} else {
				continue
			}
		}
		want[m.Priority] = append(want[m.Priority], uint64(i+1))
	}
	for range 3 {
		q.lk.mustLock()
		if err := q.acquire(ctx); err != nil {
			t.Fatal(err)
		}
		if err := q.takeover(q.hold.my); err != nil {
			t.Fatal(err)
		}
		q.unlock()
		q.lk.unlock()
		if rep, err := q.Check(ctx); err != nil || len(rep.Problems) > 0 {
			t.Fatalf("check: %v %v", rep.Problems, err)
		}
	}
	for p := 4000; p >= 0; p -= 1000 {
		for _, seq := range want[p] {
			m, err := q.Receive(ctx, driver.Filter{}, true)
			if err != nil || m.Priority != p || m.Seq != seq {
				t.Fatalf("got priority %d seq %d (%v), want %d %d", m.Priority, m.Seq, err, p, seq)
			}
		}
	}
	if _, err := q.Receive(ctx, driver.Filter{}, true); err != driver.ErrEmpty {
		t.Fatal(err)
	}
}
