package linear

import (
	"cmp"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"
)

// number reads an environment variable.
func number(t *testing.T, key string, other uint64) uint64 {
	s := os.Getenv(key)
	if s == "" {
		return other
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return n
}

// TestHistories has real processes use a queue at once, and checks that what each of them saw fits one order.
func TestHistories(t *testing.T) {
	rounds, seed := 600, number(t, "KUMQUAT_LINEAR_SEED", rand.Uint64())
	if testing.Short() {
		rounds = 60
	}
	rounds = int(number(t, "KUMQUAT_LINEAR_ROUNDS", uint64(rounds)))
	t.Logf("KUMQUAT_LINEAR_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var sum tally
	defer func() { t.Logf("linear summary: %v", &sum) }()
	dir := t.TempDir()
	procs := make([]*proc, 4)
	for n := range rounds {
		r := &round{t: t, plan: newPlan(rng, n), rng: rng, dir: dir, tally: &sum, procs: procs[:3+rng.IntN(2)]}
		for range r.procs {
			r.orders = append(r.orders, &order{})
		}
		// Half of the rounds are peaceful. In the others one to three processes are hit, most of them early: rounds are short.
		if n%2 == 1 {
			r.plan.Pause = 0
			for _, o := range r.orders[:1+rng.IntN(3)] {
				o.Signal = pick(rng, unix.SIGKILL, unix.SIGSTOP)
				o.After = 1 + rng.Int64N(pick[int64](rng, 50_000, 150_000, 1_000_000))
			}
		}
		h := r.run()
		switch h.check() {
		case porcupine.Illegal:
			tell(t, h)
			t.Fatalf("round %d has no order that explains its answers; plan: %+v", n, r.plan)
		case porcupine.Unknown:
			t.Errorf("round %d could not be checked within %v; plan: %+v", n, checkPatience, r.plan)
		}
		if t.Failed() {
			return
		}
		spoilReal(t, h)
	}
	if rounds >= 200 && (runtime.NumCPU() > 1 && sum.overlapping*20 < sum.calls || sum.inCall == 0 || sum.stopped == 0 || sum.full == 0 || sum.empty == 0 || sum.batches == 0) {
		t.Errorf("too little happened for a proof: %v", &sum)
	}
}

// tell prints a history, by time, and draws it.
func tell(t *testing.T, h *history) {
	slices.SortFunc(h.calls, func(a, b *call) int { return cmp.Compare(a.began, b.began) })
	for _, c := range h.calls {
		t.Logf("%d to %d: %v", c.began-h.calls[0].began, c.ended-h.calls[0].began, c)
	}
	m := model(h.max, h.headroom)
	_, info := porcupine.CheckOperationsVerbose(m, h.operations(), checkPatience)
	path := filepath.Join(t.ArtifactDir(), "history.html")
	if err := porcupine.VisualizePath(m, info, path); err != nil {
		t.Log(err)
		return
	}
	t.Logf("drawn in %s, which -artifacts keeps", path)
}
