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

// watched collects events in the background.
type watched struct {
	t      *testing.T
	events chan driver.Event
	cancel context.CancelFunc
	done   chan error
}

func watch(t *testing.T, o *observer) *watched {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{t: t, events: make(chan driver.Event, 100), cancel: cancel, done: make(chan error, 1)}
	go func() {
		var last error
		for e, err := range o.Watch(ctx) {
			if last = err; err == nil {
				w.events <- e
			}
		}
		w.done <- last
	}()
	t.Cleanup(cancel)
	time.Sleep(50 * time.Millisecond) // the base line
	return w
}

// want waits for the events of one change, in any order within it: kind, or kind and number.
func (w *watched) want(kinds ...string) (ps []driver.Event) {
	w.t.Helper()
	for range kinds {
		select {
		case e := <-w.events:
			ps = append(ps, e)
			text := string(e.Kind)
			if e.N > 0 {
				text = fmt.Sprintf("%s %d", e.Kind, e.N)
			}
			i := slices.Index(kinds, text)
			if i < 0 {
				w.t.Fatalf("got %q, want one of %q", text, kinds)
			}
			kinds = slices.Delete(slices.Clone(kinds), i, i+1)
		case <-time.After(5 * time.Second):
			w.t.Fatalf("no event, want %q", kinds)
		}
	}
	return ps
}

func TestWatch(t *testing.T) {
	h := sampleQueue(t)
	w := watch(t, h.o)
	base := h.o.areaBase(0)
	h.send(16, msg("new", 1))
	if e := w.want("sent 1"); e[0].Messages != 10 {
		t.Errorf("%+v", e)
	}
	h.word(offDropped, 2)
	h.word(offExpired, 1)
	h.word(base+aConsumed, 7)
	w.want("received 4", "dropped 2", "expired 1")
	h.word(base+aConsumed, 5) // lags for a moment, after a takeover: nothing new
	h.word(offLock, lockWord(2, 0, false, 7))
	w.want("takeover 2")
	h.word(base+aConsumed, 8)
	w.want("received 1")

	leave := h.join(2, 9, opIdle, true)
	if e := w.want("opened"); e[0].Participant == nil || e[0].Participant.Number != 2 || !e[0].Participant.Alive {
		t.Errorf("%+v", e)
	}
	leave()
	if e := w.want("died"); e[0].Participant == nil || e[0].Participant.PID != os.Getpid() || e[0].Participant.Alive {
		t.Errorf("%+v", e)
	}
	h.join(2, 10, opIdle, true)
	w.want("opened")
	h.word(h.o.entryBase(2)+pWord, partWord(10, partClosed))
	w.want("closed")
	h.word(offRemoved, 1)
	w.want("removed")
	if err := <-w.done; err != nil {
		t.Errorf("after the removal: %v", err)
	}
}

func TestWatchEnds(t *testing.T) {
	h := sampleQueue(t)
	w := watch(t, h.o)
	start := time.Now()
	w.cancel()
	if err := <-w.done; err != nil || time.Since(start) > watchEvery/2 {
		t.Errorf("cancelled: %v after %v", err, time.Since(start))
	}
	w = watch(t, h.o)
	if err := os.Remove(h.f.Name()); err != nil { // by hand: nobody sets the flag
		t.Fatal(err)
	}
	w.want("removed")
	<-w.done
}
