package shm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// entry is one participant's entry, as its owner wrote it.
type entry struct {
	number                              int
	word, mark, doing                   uint64
	pid, uid                            uint32
	namespace, start                    uint64
	opened                              int64
	sent, received, takeovers, fencings uint64
	record                              [8]uint64
	recordNext                          uint64
	ledger                              [ledgerMax]uint32
	command                             string
}

func parseEntry(n int, b []byte) entry {
	e := entry{number: n, word: u64at(b, pWord), mark: u64at(b, pMark), doing: u64at(b, pDoing), pid: u32at(b, pPID), uid: u32at(b, pUID),
		namespace: u64at(b, pNamespace), start: u64at(b, pStart), opened: int64(u64at(b, pOpened)), sent: u64at(b, pSent), received: u64at(b, pReceived),
		takeovers: u64at(b, pTakeovers), fencings: u64at(b, pFenced), recordNext: u64at(b, pRecordNext)}
	for i := range e.record {
		e.record[i] = u64at(b, pRecord+8*i)
	}
	for i := range e.ledger {
		e.ledger[i] = u32at(b, pLedger+4*i)
	}
	command, _, _ := bytes.Cut(b[pCommand:pCommand+commandSize], []byte{0})
	e.command = strings.ToValidUTF8(string(command), "\uFFFD")
	return e
}

// entries reads the table of participants as far as it is in use.
func (o *observer) entries() ([]entry, error) {
	n, err := o.word(offPartHigh)
	if err != nil {
		return nil, err
	}
	n = min(n, o.parts)
	b := make([]byte, n*partSize)
	if err := o.read(b, o.partsAt); err != nil {
		return nil, err
	}
	es := make([]entry, n)
	for i := range es {
		es[i] = parseEntry(i, b[i*partSize:])
	}
	return es, nil
}

func (o *observer) entry(p int) (entry, error) {
	var b [partSize]byte
	err := o.read(b[:], o.entryBase(p))
	return parseEntry(p, b[:]), err
}

// last returns the last operations in words, newest first.
func (e *entry) last() []string {
	var out []string
	n := uint64(len(e.record))
	for j := uint64(1); j <= min(n, e.recordNext); j++ {
		if w := e.record[(e.recordNext-j)%n]; w != 0 {
			out = append(out, recordText(w))
		}
	}
	return out
}

// busy says what the participant does. Nobody writes down that it takes or gives back the lock, that would cost too much: its mark
// tells. Only one of those that have the lock's area marked holds it, the others are about to try.
func (e *entry) busy(lock uint64) (what string, since time.Time) {
	op, since := doingOf(e.doing)
	switch {
	case e.mark&markUsed == 0 && op == opTakeover: // done since
		return opName(opIdle), time.Time{}
	case e.mark&markUsed == 0 || op == opTakeover:
		return opName(op), since
	case markArea(e.mark) == lockArea(lock):
		return opName(opLock), time.Time{}
	}
	return opName(opFenced), time.Time{} // it was stopped while it held the lock, and does not know yet that it lost it
}

// Who returns those that have the queue open, the dead that nobody has cleared away yet included (Alive is false).
func (o *observer) Who(ctx context.Context) ([]driver.Participant, error) {
	entries, err := o.entries()
	if err != nil {
		return nil, err
	}
	var out []driver.Participant
	users := userNames{}
	for i := range entries {
		e := &entries[i]
		if partState(e.word) != partLive {
			continue
		}
		alive, err := o.alive(e.number)
		if err != nil {
			return nil, err
		}
		again, err := o.entry(e.number)
		if err != nil {
			return nil, err
		}
		if again.word != e.word { // it went, or the entry went to another, between the two looks
			if partState(again.word) != partLive {
				continue
			}
			if alive, err = o.alive(e.number); err != nil {
				return nil, err
			}
		}
		p, err := o.describe(&again, alive, users)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// describe adds to an entry what /proc says of its process. It believes /proc only if the process was started when the entry says:
// process ids are used again.
func (o *observer) describe(e *entry, alive bool, users userNames) (driver.Participant, error) {
	p := driver.Participant{Number: e.number, PID: int(e.pid), Command: e.command, UID: int(e.uid), User: users.name(e.uid), State: "?",
		Opened: nanoTime(e.opened), Sent: e.sent, Received: e.received, Alive: alive, Last: e.last()}
	lock, err := o.word(offLock)
	if err != nil {
		return p, err
	}
	p.Doing, p.Since = e.busy(lock)
	for _, s := range e.ledger {
		if s == 0 || uint64(s) > o.slots {
			continue
		}
		w, err := o.word(o.slotBase(uint64(s-1)) + sState)
		if err != nil {
			return p, err
		}
		if isOwnedBy(w, uint64(e.number), partGen(e.word)&genMask) {
			p.Holds++
		}
	}
	ours := namespaceInode()
	if p.Namespace = e.namespace != ours; p.Namespace || ours == 0 || e.pid == 0 {
		return p, nil
	}
	state, start, ok := processState(int(e.pid))
	if !ok || start != e.start {
		return p, nil
	}
	p.Visible, p.State = true, state
	cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", e.pid))
	p.Unit = unitOf(string(cgroup))
	return p, nil
}

// namespaceInode names this process's PID namespace; 0 if /proc does not tell.
var namespaceInode = sync.OnceValue(func() uint64 {
	s, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(s, "pid:["), "]"), 10, 64)
	return n
})

// processState returns the state letter of a process and when it was started, in ticks since boot.
func processState(pid int) (state string, start uint64, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0, false
	}
	// The name in parentheses may hold anything, parentheses too. After it come the fields from the third on.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return "", 0, false
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0], start, err == nil
}

// unitOf finds the systemd unit or the container in the text of /proc/PID/cgroup: the innermost component that names one.
// Containers are given as runtime:id with the first 12 characters of the id.
func unitOf(cgroup string) string {
	var path string
	best := 0 // the one hierarchy of version 2, unless it is empty; else systemd's own; else any
	for line := range strings.Lines(cgroup) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) < 3 || f[2] == "/" {
			continue
		}
		rank := map[string]int{"": 3, "name=systemd": 2}[f[1]]
		if rank = max(rank, 1); rank > best {
			best, path = rank, f[2]
		}
	}
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		p := parts[i]
		if id := containerID(p); id != "" {
			return containerRuntime(p, parts[:i]) + ":" + id[:12]
		}
		if name, ok := strings.CutPrefix(p, "lxc.payload."); ok && name != "" {
			return "lxc:" + name
		}
		if i > 0 && parts[i-1] == "lxc" && p != "" {
			return "lxc:" + p
		}
		if strings.HasSuffix(p, ".service") || strings.HasSuffix(p, ".scope") || strings.HasSuffix(p, ".slice") {
			return p
		}
	}
	return ""
}

// containerID returns the 64 hexadecimal digits of a component such as docker-ID.scope, cri-containerd-ID.scope or ID.
func containerID(p string) string {
	p = strings.TrimSuffix(p, ".scope")
	if i := strings.LastIndexAny(p, "-:"); i >= 0 {
		p = p[i+1:]
	}
	if len(p) != 64 || strings.Trim(p, "0123456789abcdef") != "" {
		return ""
	}
	return p
}

func containerRuntime(p string, parents []string) string {
	known := [...]string{"docker", "containerd", "libpod", "crio", "kubepods"}
	for _, k := range known {
		if strings.Contains(p, k) {
			return k
		}
	}
	for i := len(parents) - 1; i >= 0; i-- {
		for _, k := range known {
			if strings.Contains(parents[i], k) {
				return k
			}
		}
	}
	return "container"
}

// userNames remembers what was looked up during one call.
type userNames map[uint32]string

func (u userNames) name(uid uint32) string {
	if s, ok := u[uid]; ok {
		return s
	}
	s := strconv.FormatUint(uint64(uid), 10)
	if x, err := user.LookupId(s); err == nil {
		s = x.Username
	}
	u[uid] = s
	return s
}
