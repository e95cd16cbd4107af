package torture

import (
	"context"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// interrupted ends with the first SIGINT or SIGTERM, so that a run that is broken off still ends its processes and removes its files.
var interrupted context.Context

func TestMain(m *testing.M) {
	Child()
	var stop context.CancelFunc
	interrupted, stop = signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := m.Run()
	stop()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}

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

// duration reads an environment variable, 0 if it is not set.
func duration(t *testing.T, key string) time.Duration {
	s := os.Getenv(key)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return d
}

// TestTorture is the proof with real processes. KUMQUAT_TORTURE_ROUNDS, _SIGNALS, _TIME (no round is begun after it), _SEED, _ONLY
// (this round again and again), _PARALLEL, _HOLDUP (a longer one fails) and _KEEP (folder of the evidence) change it.
func TestTorture(t *testing.T) {
	if testing.Short() {
		t.Skip("left out by -short: it takes minutes")
	}
	rounds := number(t, "KUMQUAT_TORTURE_ROUNDS", 300)
	var only *int
	if os.Getenv("KUMQUAT_TORTURE_ONLY") != "" {
		n := int(number(t, "KUMQUAT_TORTURE_ONLY", 0))
		only = &n
	}
	tally, err := Run(interrupted, Config{
		Seed: number(t, "KUMQUAT_TORTURE_SEED", 0), Rounds: int(rounds), Signals: int(number(t, "KUMQUAT_TORTURE_SIGNALS", 0)),
		Time: duration(t, "KUMQUAT_TORTURE_TIME"), Only: only, Parallel: int(number(t, "KUMQUAT_TORTURE_PARALLEL", 0)),
		HoldUp: duration(t, "KUMQUAT_TORTURE_HOLDUP"), Keep: os.Getenv("KUMQUAT_TORTURE_KEEP"), Log: os.Stderr,
	})
	for line := range strings.Lines(tally.String()) {
		t.Log("torture summary: " + strings.TrimSpace(line))
	}
	if err != nil {
		t.Fatal(err)
	}
	if tally.Takeovers == 0 && rounds >= 100 {
		t.Error("nobody ever took the lock over: this was no torture")
	}
}
