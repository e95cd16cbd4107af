package shm

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

func TestWho(t *testing.T) {
	h := sampleQueue(t)
	h.u32(h.o.entryBase(0)+pLedger, 10)
	h.u32(h.o.entryBase(0)+pLedger+4, 11) // participant 1 has it
	h.word(h.o.entryBase(0)+pSent, 17)
	h.word(h.o.entryBase(0)+pReceived, 18)
	h.join(2, 3, opIdle, false)
	h.join(3, 3, opTakeover, true)
	h.word(h.o.entryBase(3)+pStart, 5) // its process id went to another
	who, err := h.o.Who(context.Background())
	if err != nil || len(who) != 4 {
		t.Fatalf("%+v, %v", who, err)
	}
	w := who[0]
	if w.Number != 0 || w.PID != os.Getpid() || !w.Visible || w.UID != os.Getuid() || w.User == "" || w.Doing != "wait to receive" || w.Holds != 1 ||
		w.Sent != 17 || w.Received != 18 || !w.Alive || w.Namespace || w.Command != "worker --fast \uFFFD" || !strings.Contains("RSD", w.State) ||
		time.Since(w.Opened) > time.Minute || time.Since(w.Since) > time.Minute {
		t.Errorf("participant 0: %+v", w)
	}
	if who[2].Alive || who[2].Doing != "idle" {
		t.Errorf("participant 2 is dead: %+v", who[2])
	}
	if who[3].Visible || who[3].State != "?" || !who[3].Alive {
		t.Errorf("participant 3's process cannot be told: %+v", who[3])
	}
	h.word(h.o.entryBase(3)+pNamespace, 5)
	h.word(h.o.entryBase(2)+pWord, partWord(3, partClosed))
	who, err = h.o.Who(context.Background())
	if err != nil || len(who) != 3 || !who[2].Namespace || who[2].Visible {
		t.Errorf("%+v, %v", who, err)
	}
}

// A handle sees itself, though it does not see its own lock.
func TestWhoSelf(t *testing.T) {
	h := makeQueue(t, driver.Options{MaxMessages: 1, MaxSize: 1})
	h.join(0, 1, opIdle, false)
	h.o.self = 0
	if who, err := h.o.Who(context.Background()); err != nil || len(who) != 1 || !who[0].Alive {
		t.Errorf("%+v, %v", who, err)
	}
}

func TestUnitOf(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for cgroup, want := range map[string]string{
		"":                                 "",
		"0::/\n":                           "",
		"0::/system.slice/nginx.service\n": "nginx.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-foo.scope\n": "app-foo.scope",
		"0::/user.slice/user-1000.slice/session-2.scope/leaf\n":                      "session-2.scope",
		"0::/system.slice/docker-" + id + ".scope\n":                                 "docker:0123456789ab",
		"4:memory:/docker/" + id + "\n1:name=systemd:/docker/" + id + "\n":           "docker:0123456789ab",
		"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-" + id + ".scope\n":   "containerd:0123456789ab",
		"0::/kubepods/besteffort/pod1/" + id + "\n":                                  "kubepods:0123456789ab",
		"0::/machine.slice/libpod-" + id + ".scope/container\n":                      "libpod:0123456789ab",
		"0::/lxc.payload.web/system.slice\n":                                         "system.slice",
		"0::/lxc.payload.web\n":                                                      "lxc:web",
		"1:name=systemd:/lxc/web\n0::/\n":                                            "lxc:web",
		"9:cpu:/a.slice\n1:name=systemd:/system.slice/cron.service\n0::/\n":          "cron.service",
		"nonsense\n::\n": "",
	} {
		if got := unitOf(cgroup); got != want {
			t.Errorf("%q: %q, want %q", cgroup, got, want)
		}
	}
}

func TestProcessState(t *testing.T) {
	state, start, ok := processState(os.Getpid())
	if !ok || state == "" || start == 0 {
		t.Errorf("%q, %d, %v", state, start, ok)
	}
	if _, _, ok := processState(1 << 30); ok {
		t.Error("there is no such process")
	}
}

// kinds returns the events of the next sample, as kind or kind and number.
func (w *watcher) kinds(t *testing.T) (out []string) {
	t.Helper()
	if err := w.look(); err != nil {
		t.Fatal(err)
	}
	for _, e := range w.events {
		if out = append(out, string(e.Kind)); e.N > 0 {
			out[len(out)-1] = fmt.Sprintf("%s %d", e.Kind, e.N)
		}
	}
	return out
}

func TestWatchSamples(t *testing.T) {
	h := sampleQueue(t)
	base := h.o.areaBase(0)
	var leave func()
	w := newWatcher(h.o)
	for i, c := range []struct {
		change func()
		want   []string
	}{
		{func() {}, nil}, // the base line
		{func() {}, nil},
		{func() { h.send(16, msg("new", 1)) }, []string{"sent 1"}},
		{func() { h.word(offDropped, 2); h.word(offExpired, 1); h.word(base+aConsumed, 7) }, []string{"received 4", "dropped 2", "expired 1"}},
		{func() { h.word(base+aConsumed, 5) }, nil}, // lags for a moment, after a takeover
		{func() { h.word(offLock, lockWord(2, 0, false, 7)) }, []string{"takeover 2"}},
		{func() { h.word(base+aConsumed, 8) }, []string{"received 1"}},
		{func() { leave = h.join(2, 9, opIdle, true); h.send(17, msg("more", 1)) }, []string{"opened", "sent 1"}},
		{func() { leave(); h.send(18, msg("last", 1)) }, []string{"sent 1", "died"}},
		{func() {}, nil}, // told once
		{func() { leave = h.join(2, 10, opIdle, true) }, []string{"opened"}},
		{func() { h.word(h.o.entryBase(2)+pWord, partWord(10, partClosed)); leave() }, []string{"closed"}},
		{func() { h.join(2, 11, opIdle, false) }, []string{"opened", "died"}},
		{func() { leave = h.join(3, 1, opIdle, true) }, []string{"opened"}},
		{func() { leave(); h.join(3, 2, opIdle, true) }, []string{"opened", "closed"}},
		{func() { h.word(offRemoved, 1) }, []string{"removed"}},
	} {
		c.change()
		if got := w.kinds(t); !slices.Equal(got, c.want) {
			t.Fatalf("change %d: %q, want %q", i, got, c.want)
		}
		for _, e := range w.events {
			single := e.Kind == driver.EventOpened || e.Kind == driver.EventClosed || e.Kind == driver.EventDied
			if single != (e.Participant != nil) || single && (e.Participant.PID != os.Getpid() || e.Kind != driver.EventOpened && e.Participant.Alive) || e.Time.IsZero() {
				t.Errorf("change %d: %+v", i, e)
			}
		}
	}
	if w.waiting != 4 {
		t.Errorf("%d wait after the last sample", w.waiting)
	}
}

func TestWatchEnds(t *testing.T) {
	h := sampleQueue(t)
	quickest := time.Hour // a busy machine may delay some
	for range 5 {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e, err := range h.o.Watch(ctx) {
				t.Errorf("%+v, %v", e, err)
			}
		}()
		time.Sleep(10 * time.Millisecond)
		start := time.Now()
		cancel()
		<-done
		quickest = min(quickest, time.Since(start))
	}
	if quickest > watchEvery/2 {
		t.Errorf("Watch ends %v after its context", quickest)
	}
	for _, where := range []string{"by hand", "removed before"} { // nobody sets the flag, and the file may be gone when Watch begins
		time.AfterFunc(20*time.Millisecond, func() { _ = os.Remove(h.f.Name()) })
		var last driver.Event
		for e, err := range h.o.Watch(context.Background()) {
			if last = e; err != nil {
				t.Errorf("%s: %v", where, err)
			}
		}
		if last.Kind != driver.EventRemoved {
			t.Errorf("%s: ended with %+v", where, last)
		}
	}
}
