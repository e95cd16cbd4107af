package shm

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/kumquat-mq/kumquat/driver"
)

// apply writes the changes that in describes: 11 bytes each: the range (see takeSample), the place in it, eight bytes. It returns
// what is left of in.
func (s *sample) apply(f *os.File, in []byte, most int) []byte {
	for ; len(in) >= 11 && most > 0; in, most = in[11:], most-1 {
		r := s.ranges[int(in[0])%len(s.ranges)]
		off := r[0] + uint64(binary.LittleEndian.Uint16(in[1:]))*8%r[1]
		_, _ = f.WriteAt(in[3:3+min(8, s.layout.size-off)], int64(off))
	}
	return in
}

func change(in []byte, place byte, at uint16, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(append(in, place), at), v)
}

// FuzzUse changes a queue's file before it is opened and while it is used, and does every operation on it. The first byte chooses
// the order of operations and the overflow policy.
func FuzzUse(f *testing.F) {
	f.Add([]byte{1})
	for place := range byte(34) {
		in := []byte{place}
		in = change(in, place, uint16(place)*7, 1<<63|1<<24|uint64(place))
		in = change(in, place, uint16(place)*3, 0xffffffffffffffff)
		f.Add(change(in, place, 0, 5))
	}
	f.Add(change([]byte{2}, 0, 0, headWord(70, 3)))                         // head far ahead
	f.Add(change([]byte{3}, 1, 0, lockWord(3, 0, true, 9)))                 // held by nobody
	f.Add(change([]byte{4}, 1, 0, lockWord(3, 9, false, 9)))                // an area without pages
	f.Add(change([]byte{5}, 2, 0, curWord(1, 0xffff)|curAlert))             // cur out of bounds
	f.Add(change([]byte{6}, 3, 0, 1<<40))                                   // high-water mark
	f.Add(change(change([]byte{7}, 5, 0, 0), 5, 1, 1))                      // links in a circle
	f.Add(change([]byte{8}, 8, 1, markWord(0, 1)))                          // marks of others
	f.Add(change([]byte{9}, 12, 32, 1<<30))                                 // heap length
	f.Add(change(change([]byte{10}, 15, 1, listWord(noSlot, 2)), 14, 0, 3)) // list heads
	samples := map[driver.Overflow]*sample{}
	for _, o := range []driver.Overflow{driver.Block, driver.DropOldest, driver.DropLowest} {
		samples[o] = takeSample(f, o)
	}
	d := shmDir(f)
	file, err := os.OpenFile(fileOf(d, "/fuzz"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = file.Close() })
	u := &caller{f: file}
	stop := make(chan struct{})
	f.Cleanup(func() { close(stop) })
	go u.watch(stop)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		s := samples[[]driver.Overflow{driver.Block, driver.DropOldest, driver.DropLowest}[in[0]%3]]
		if file, err = os.OpenFile(fileOf(d, "/fuzz"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = file.Close() }()
		if err := s.write(file); err != nil {
			t.Fatal(err)
		}
		u.r, u.fail = rand.New(rand.NewPCG(uint64(in[0]), 3)), t.Errorf
		u.buf = make([]byte, s.layout.maxSize+1)
		u.f = file
		in = s.apply(file, in[1:], 4)
		u.reopen(d, "/fuzz")
		for rounds := 0; u.q != nil && rounds < 6; rounds++ {
			u.round(true)
			if len(in) < 11 {
				break
			}
			in = s.apply(file, in, 2)
		}
		u.close()
	})
}

// FuzzOpen takes any bytes for a queue's file: they are refused, or describe a file that can be used without harm.
func FuzzOpen(f *testing.F) {
	l, err := newLayout(&driver.Options{MaxMessages: 3, MaxSize: 50, MaxHandles: 1})
	if err != nil {
		f.Fatal(err)
	}
	b := append(l.encode(), make([]byte, hotEnd-pageSize)...)
	f.Add([]byte{}, uint64(0))
	f.Add([]byte(magic), uint64(1<<20))
	f.Add(b, l.size)
	f.Add(b, l.size-1)
	f.Add(b, uint64(hotEnd))
	f.Add(append(append([]byte(nil), b[:offMax]...), make([]byte, 300)...), l.size)
	for _, off := range []int{offVersion, offMax, offMaxSize, offParts, offPool, offStride, offSlotsAt, offAreasAt, offFileSize, offRemoved, offHeadPercent, offOverflow} {
		c := append([]byte(nil), b...)
		c[off] ^= 1
		f.Add(c, l.size)
		putSum(c)
		f.Add(c, l.size)
	}
	d := shmDir(f)
	u := &caller{}
	stop := make(chan struct{})
	f.Cleanup(func() { close(stop) })
	go u.watch(stop)
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		path := fileOf(d, "/bytes")
		_ = os.Remove(path)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if size %= 1 << 44; size > uint64(len(b)) {
			if err := os.Truncate(path, int64(size)); err != nil {
				t.Fatal(err)
			}
		}
		u.r, u.fail = rand.New(rand.NewPCG(size, 4)), t.Errorf
		ro, err := d.OpenQueue(context.Background(), "/bytes", &driver.Options{ReadOnly: true})
		if kindOfError(err) == "" {
			t.Errorf("open to observe: %v", err)
		}
		if err == nil {
			if _, err := ro.Stat(context.Background()); kindOfError(err) == "" {
				t.Errorf("stat: %v", err)
			}
			_ = ro.Close()
		}
		u.reopen(d, "/bytes")
		if u.q != nil {
			u.buf = make([]byte, min(u.q.maxSize, 1<<16)+1)
			if u.q.slots < 1<<16 { // else looking at everything takes its time
				u.round(true)
			}
			u.close()
		}
		if _, err := d.List(context.Background(), ""); err != nil {
			t.Errorf("list: %v", err)
		}
		if err := d.Remove(context.Background(), "/bytes"); kindOfError(err) == "" {
			t.Errorf("remove: %v", err)
		}
	})
}
