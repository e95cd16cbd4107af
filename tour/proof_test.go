package tour

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
)

// sound returns the records of n files, of priorities 3, 2, 1, 0 in turn, that were received as they should be.
func sound(n int) []record {
	records := make([]record, n)
	taken := uint64(0)
	for i := range n {
		records[i].sent = report{Kind: sent, Index: i, SHA: fmt.Sprint("sha", i), Size: int64(i), Priority: 3 - i%4}
	}
	for p := 3; p >= 0; p-- {
		for i := range n {
			if records[i].sent.Priority == p {
				taken++
				a := records[i].sent
				a.Kind, a.Seq, a.Taken = arrived, uint64(i+1), taken
				records[i].arrived = []arrival{{report: a}}
			}
		}
	}
	return records
}

func findingsOf(records []record) (wrong []string) {
	for i := range records {
		if w := records[i].check(); w != "" {
			wrong = append(wrong, w)
		}
	}
	_, w := checkOrder(records)
	return append(wrong, w...)
}

// TestProof spoils sound records one by one: the proof must see each.
func TestProof(t *testing.T) {
	if w := findingsOf(sound(40)); len(w) > 0 {
		t.Fatalf("sound records: %v", w)
	}
	for name, c := range map[string]struct {
		spoil func(r []record)
		want  string
	}{
		"lost":          {func(r []record) { r[7].arrived = nil }, "did not arrive"},
		"doubled":       {func(r []record) { r[7].arrived = append(r[7].arrived, r[7].arrived[0]) }, "arrived 2 times"},
		"never sent":    {func(r []record) { r[7].sent = report{} }, "was not sent"},
		"other body":    {func(r []record) { r[7].arrived[0].SHA = "x" }, "SHA-256"},
		"shorter":       {func(r []record) { r[7].arrived[0].Size-- }, "bytes"},
		"priority lost": {func(r []record) { r[7].arrived[0].Priority = 99 }, "received with 99"},
		"passed over":   {func(r []record) { swap(&r[0].arrived[0].Taken, &r[39].arrived[0].Taken) }, "was claimed after"},
		"not FIFO":      {func(r []record) { swap(&r[0].arrived[0].Taken, &r[4].arrived[0].Taken) }, "at the same priority"},
		"claimed twice": {func(r []record) { r[4].arrived[0].Taken = r[0].arrived[0].Taken }, "same claim stamp"},
		"no stamps":     {func(r []record) { r[0].arrived[0].Taken = 0 }, "without stamps"},
		"left out":      {func(r []record) { r[3].skipped = true }, "although it was left out"},
	} {
		t.Run(name, func(t *testing.T) {
			r := sound(40)
			c.spoil(r)
			if w := strings.Join(findingsOf(r), "; "); !strings.Contains(w, c.want) {
				t.Errorf("found %q, should have found %q", w, c.want)
			}
		})
	}
}

func swap(a, b *uint64) { *a, *b = *b, *a }

// TestProofFails: a finding makes the tour fail, and so does a body that the disk does not have.
func TestProofFails(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), []byte("a"))
	found, err := scan(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	r := sound(1)
	r[0].sent.SHA, r[0].arrived[0].SHA = "of something else", "of something else"
	tr := &tour{Options: Options{Out: io.Discard}, folder: dir, files: found.files, record: r}
	var f *Failure
	if err := tr.prove(context.Background()); !errors.As(err, &f) || !strings.Contains(f.Error(), "the file has SHA-256") {
		t.Errorf("the error is %v", err)
	}
}

func TestKinds(t *testing.T) {
	for name, want := range map[string]string{"Makefile": "critical", "a/go.mod": "critical", "x.SH": "critical", "main.go": "high", "README.md": "normal",
		"LICENSE": "normal", ".git/objects/ab": "low", ".go": "high", "": "low"} {
		if got := kinds[kindOf(name)].name; got != want {
			t.Errorf("%q is %s, want %s", name, got, want)
		}
	}
}

func TestPlan(t *testing.T) {
	const mib = 1 << 20
	files := []file{{size: mib}, {size: 100 * mib}, {size: 0}, {size: 2 * mib}, {size: 5 << 30}, {size: 3 * mib}}
	for _, c := range []struct {
		room           int64
		rounds, tooBig string
	}{
		{200 << 30, "[[0 1 2 3 5]]", "[4]"}, // no message can be that large
		{50 * mib, "[[0 2 3 5]]", "[4 1]"},
		{baseCost + 3*mib + 100_000, "[[2 5] [0 3]]", "[4 1]"},
		{0, "[]", "[4 1 5 3 0 2]"},
	} {
		rounds, tooBig := plan(files, c.room)
		if fmt.Sprint(rounds) != c.rounds || fmt.Sprint(tooBig) != c.tooBig {
			t.Errorf("with %d: rounds %v, too big %v", c.room, rounds, tooBig)
		}
	}
	many := make([]file, 3000)
	for i := range many {
		many[i].size = 2 << 30
	}
	rounds, _ := plan(many, 1<<50)
	for _, r := range rounds {
		if int64(len(r)+spareSlots)<<31 > maxAddresses+2<<31 {
			t.Errorf("a round of %d messages of 2 GiB has too many addresses", len(r))
		}
	}
}
