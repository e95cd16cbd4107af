package tour

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// heldUpLimit is what docs/guarantees.md states for a survivor. A busy machine can exceed it without the queue's doing: the tour
// says so and does not fail.
const heldUpLimit = 250 * time.Millisecond

// prove compares what arrived with what was sent and with the disk, says it and returns a *Failure if anything is off.
func (t *tour) prove(ctx context.Context) error {
	n, bytes := 0, int64(0)
	for i := range t.record {
		if wrong := t.record[i].check(); wrong != "" {
			t.off = append(t.off, show(t.files[i].path)+": "+wrong)
		} else if !t.record[i].skipped {
			n++
			bytes += t.record[i].arrived[0].Size
		}
	}
	if n == 0 && len(t.files) > 0 && len(t.off) == 0 {
		t.off = append(t.off, "none of the files could be sent")
	}
	claims, wrong := checkOrder(t.record)
	t.off = append(t.off, wrong...)
	if err := t.compareWithDisk(ctx); err != nil {
		return err
	}
	if t.signalled {
		text := fmt.Sprintf("hold-up: after the signals a survivor waited at most %s for a message; the longest time without a take was %s", ms(t.longWait), ms(t.gap))
		if t.paced > 0 {
			text += fmt.Sprintf(" (its pause of %s and its work included)", ms(t.paced))
		}
		if t.longWait > heldUpLimit {
			text += fmt.Sprintf("; that is more than the %s of a quiet machine", ms(heldUpLimit))
		}
		t.say("holdup", fields{"wait_seconds": t.longWait.Seconds(), "gap_seconds": t.gap.Seconds()}, "%s", text)
	}
	pauses := ""
	if t.paced > 0 {
		pauses = " (with the pauses)"
	}
	t.say("speed", fields{"fill_seconds": t.fill.time.Seconds(), "drain_seconds": t.drain.time.Seconds(), "bytes": bytes},
		"speed: sent %s; received %s%s", rate(t.fill.files, t.fill.bytes, t.fill.time), rate(t.drain.files, t.drain.bytes, t.drain.time), pauses)
	t.say("files", fields{"files": n, "bytes": bytes}, "files: %d", n)
	for _, s := range t.off {
		t.say("off", fields{"finding": s}, "off: %s", s)
	}
	if len(t.off) > 0 {
		t.say("result", fields{"ok": false, "findings": len(t.off)}, "FAILED: %s", count(len(t.off), "finding"))
		return &Failure{t.off}
	}
	switch n {
	case 0:
		t.say("result", fields{"ok": true}, "nothing to prove: the folder has no regular file")
	default:
		t.say("result", fields{"ok": true, "claims": claims},
			"proved: each of %s arrived exactly once with the right SHA-256, and in %s priority never rose and the first in was the first out",
			count(n, "file"), count(claims, "claim"))
	}
	return nil
}

// check returns what is wrong with how a file travelled, "" if nothing.
func (r *record) check() string {
	if r.skipped {
		if len(r.arrived) > 0 {
			return "it arrived although it was left out"
		}
		return ""
	}
	want := r.sent
	if r.again.Kind != "" {
		want = r.again
	}
	switch {
	case r.sent.Kind == "":
		return "it was not sent"
	case len(r.arrived) == 0:
		return "it did not arrive"
	case len(r.arrived) > 1:
		return fmt.Sprintf("it arrived %d times", len(r.arrived))
	}
	switch a := r.arrived[0]; {
	case a.SHA != want.SHA || a.Size != want.Size:
		return fmt.Sprintf("sent were %d bytes with SHA-256 %s, received %d bytes with %s", want.Size, want.SHA, a.Size, a.SHA)
	case a.Priority != want.Priority:
		return fmt.Sprintf("sent with priority %d, received with %d", want.Priority, a.Priority)
	}
	return ""
}

// checkOrder follows the claims of each round in their own order and returns their number and what is wrong. Those that were sent
// again came when nothing else was left, so they have no place in it.
func checkOrder(records []record) (claims int, wrong []string) {
	rounds := map[int][]arrival{}
	for i := range records {
		for _, a := range records[i].arrived {
			if !a.resent {
				rounds[records[i].round] = append(rounds[records[i].round], a)
			}
		}
	}
	for _, takes := range rounds {
		slices.SortFunc(takes, func(a, b arrival) int { return cmp.Compare(a.Taken, b.Taken) })
		for n := range takes {
			claims++
			a := takes[n]
			if a.Taken == 0 || a.Seq == 0 {
				wrong = append(wrong, fmt.Sprintf("file %d was received without stamps of its order", a.Index))
			}
			if n == 0 {
				continue
			}
			b := takes[n-1]
			switch {
			case a.Taken == b.Taken:
				wrong = append(wrong, fmt.Sprintf("files %d and %d have the same claim stamp %d", b.Index, a.Index, a.Taken))
			case a.Priority > b.Priority:
				wrong = append(wrong, fmt.Sprintf("file %d of priority %d was claimed after file %d of priority %d", a.Index, a.Priority, b.Index, b.Priority))
			case a.Priority == b.Priority && a.Seq <= b.Seq:
				wrong = append(wrong, fmt.Sprintf("file %d, sent as number %d, was claimed after file %d, sent as number %d, at the same priority %d",
					a.Index, a.Seq, b.Index, b.Seq, a.Priority))
			}
		}
	}
	return claims, wrong
}

// compareWithDisk reads every file that arrived once more and compares it with what arrived. A file that somebody has written to
// since the scan may differ: that is said, and is nothing that is off.
func (t *tour) compareWithDisk(ctx context.Context) error {
	sums := make([]string, len(t.files))
	errs := make([]error, len(t.files))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			buf := make([]byte, 256<<10)
			for i := next.Add(1) - 1; i < int64(len(t.files)); i = next.Add(1) - 1 {
				if len(t.record[i].arrived) > 0 && ctx.Err() == nil {
					sums[i], errs[i] = hashFile(ctx, filepath.Join(t.folder, t.files[i].path), buf)
				}
			}
		})
	}
	workers.Wait()
	if ctx.Err() != nil {
		return stopped(ctx)
	}
	same, changed := 0, 0
	for i := range t.files {
		if len(t.record[i].arrived) == 0 || errs[i] == nil && sums[i] == t.record[i].arrived[0].SHA {
			if len(t.record[i].arrived) > 0 {
				same++
			}
			continue
		}
		path := filepath.Join(t.folder, t.files[i].path)
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			changed++
			t.say("changed", fields{"file": t.files[i].path}, "changed: %s was removed while the tour ran; what arrived is what was read of it", show(t.files[i].path))
		case err == nil && stampOf(info) != t.files[i].stamp:
			changed++
			t.say("changed", fields{"file": t.files[i].path}, "changed: %s was written to while the tour ran; what arrived is what was read of it", show(t.files[i].path))
		case errs[i] != nil:
			t.off = append(t.off, fmt.Sprintf("%s could be read once and not again: %v", show(t.files[i].path), reason(errs[i])))
		default:
			t.off = append(t.off, fmt.Sprintf("%s: the file has SHA-256 %s, what arrived has %s", show(t.files[i].path), sums[i], t.record[i].arrived[0].SHA))
		}
	}
	t.say("disk", fields{"same": same, "changed": changed}, "disk: %s read once more by the tour, same SHA-256 as received: %d, changed meanwhile: %d",
		count(same+changed, "file"), same, changed)
	return nil
}

func hashFile(ctx context.Context, path string, buf []byte) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	for {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
	}
}
