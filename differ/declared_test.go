package differ

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// line is an operation whose answers on the two sides are a declared difference, or lead to it. The same stands in docs/guarantees.md,
// "Declared differences from the kernel's queues".
type line struct {
	op
	kernel, engine string // the sentinel, or "ok" and the beginning of the text
}

// says is a line with the same answer on both sides.
func says(answer string, o op) line { return line{o, answer, answer} }

// differs is a line with two.
func differs(kernel, engine string, o op) line { return line{o, kernel, engine} }

// script makes the operations of lines, one after the other, on one side. counted: processes say a System V queue's numbers.
func (s *stand) script(x side, counted bool, shapes [2]shape, lines []line) {
	s.t.Helper()
	begin := &command{
		Do: "begin", URL: x.url, Shapes: shapes, Users: s.users.ids[:], Count: x.kernel && s.pair.counted && counted, Envelope: s.pair.envelope,
	}
	err := s.crew.all(begin)
	for i := 0; i < len(lines) && err == nil; i++ {
		l := &lines[i]
		l.ID = i
		var a answer
		if err = s.crew.call(&l.op, x); err == nil {
			_, a, err = s.crew.await(place{l.Proc, l.Lane})
		}
		want := l.kernel
		if !x.kernel {
			want = l.engine
		}
		text, isOK := strings.CutPrefix(want, "ok")
		if isOK && (a.Err != "" || !strings.HasPrefix(a.Text, strings.TrimPrefix(text, " "))) || !isOK && a.Err != want {
			s.t.Errorf("%s: %v: %v, want %s", x.url, &l.op, a, want)
		}
	}
	if err == nil {
		err = s.crew.all(&command{Do: "end"})
	}
	if err != nil {
		s.t.Error(x.url, err)
		s.renew()
	}
	s.clear()
}

// TestDeclared shows each declared difference: what the kernel's queue answers and what the engine does.
func TestDeclared(t *testing.T) {
	send := func(proc, n int) op { return op{Kind: opSend, Proc: proc, Len: n} }
	receive := func(proc int) op { return op{Kind: opReceive, Proc: proc} }
	open := func(proc int) op { return op{Kind: opOpen, Proc: proc} }
	create := func(mode uint32) op { return op{Kind: opOpen, Create: true, Mode: mode} }
	with := func(o kumquat.Options) op { return op{Kind: opOpen, Options: &o} }
	stat := func(proc int) op { return op{Kind: opStat, Proc: proc, N: 1} }
	past := func(o op) op { o.Wait = waitPast; return o }
	const stranger = 2 // the process of another user

	posix, sysv, priority := pairs[0], pairs[1], pairs[2]
	for _, x := range []struct {
		name   string
		pairs  []*pair
		plain  bool // needs a user without special rights
		users  bool // needs two
		alone  bool // processes do not say the numbers of a System V queue
		shape  shape
		script []line
	}{
		{name: "a removed POSIX queue lives on for those who have it open", pairs: []*pair{posix}, script: []line{
			says("ok", create(0o600)), says("ok", open(1)), says("ok", send(0, 5)), says("ok", op{Kind: opRemove}),
			differs("ok 1 messages", "removed", stat(1)), differs("ok 5 bytes", "removed", receive(1)), differs("ok", "removed", send(1, 2)),
			differs("ok 2 bytes", "removed", receive(0)), differs("empty", "removed", receive(0)), differs("timeout", "removed", past(receive(1))),
			says("not found", op{Kind: opOpen, Proc: 1, Slot: 1}),
			// What is made under the name afterwards is another queue, on both sides.
			says("ok", op{Kind: opOpen, Slot: 1, Create: true, Mode: 0o600}), says("empty", op{Kind: opReceive, Slot: 1}),
			differs("ok", "removed", send(1, 3)), says("empty", op{Kind: opReceive, Slot: 1}), says("ok", op{Kind: opClose, Proc: 1}),
		}},
		{name: "a removed System V queue is one of the engine's", pairs: []*pair{sysv, priority}, script: []line{
			says("ok", create(0o600)), says("ok", open(1)), says("ok", send(0, 5)), says("ok", op{Kind: opRemove}),
			says("removed", stat(1)), says("removed", receive(1)), says("removed", send(1, 2)), says("removed", past(receive(1))),
			says("ok", op{Kind: opClose, Proc: 1}),
		}},
		{name: "the right to write is enough to send", pairs: []*pair{posix, sysv}, users: true, script: []line{
			says("ok", create(0o622)),
			differs("ok", "permission", op{Kind: opWriteOnly, Proc: stranger, Len: 3}), // by package posix or sysv
			says("permission", open(stranger)), says("permission", op{Kind: opOpen, Proc: stranger, Observe: true}),
			differs("ok 3 bytes", "empty", receive(0)),
		}},
		{name: "System V lists what may not be read", pairs: []*pair{sysv, priority}, users: true, script: []line{
			says("ok", create(0o600)), says("ok", send(0, 3)), says("ok 1 messages, mode 0600, user 0", op{Kind: opList, Proc: 1}),
			differs("ok 1 messages, mode 0600, user 0", "ok one that may not be read: permission", op{Kind: opList, Proc: stranger}),
		}},
		{name: "an owner without rights may remove", pairs: []*pair{posix}, plain: true, script: []line{
			says("ok", create(0o200)), says("permission", op{Kind: opOpen, Slot: 1}), says("ok", send(0, 1)),
			differs("ok", "permission", op{Kind: opRemove}), differs("not found", "permission", op{Kind: opRemove}),
		}},
		{name: "System V looks at the mode at each call", pairs: []*pair{sysv}, plain: true, alone: true, script: []line{
			says("ok", create(0o400)), differs("permission", "ok", send(0, 1)), differs("empty", "ok 1 bytes", receive(0)),
			says("permission", op{Kind: opOpen, Slot: 1}),
			differs("ok", "permission", op{Kind: opRemove}),
		}},
		{name: "a System V queue is bounded by bytes for those who do not say its numbers", pairs: []*pair{sysv}, alone: true, shape: shape{2, 8}, script: []line{
			says("ok", create(0o600)), says("ok", open(1)), differs("ok 0 messages, 0 bytes, mode 0600", "ok", stat(1)),
			says("ok", send(1, 1)), says("ok", send(1, 1)), says("full", send(0, 1)), differs("ok", "full", send(1, 1)),
			differs("ok", "too large", send(1, 9)), differs("full", "full", send(1, 5)), differs("full", "too large", send(1, 16)),
			differs("too large", "too large", send(1, 17)), differs("ok 4 messages, 12 bytes", "ok 2 messages, 2 bytes", stat(1)),
		}},
		{name: "Reject is the handle's, not the queue's", pairs: []*pair{posix, sysv}, script: []line{
			says("ok", with(kumquat.Options{Create: true, MaxMessages: 1, MaxSize: 8, Overflow: kumquat.Reject})), says("ok", open(1)),
			says("ok", send(0, 8)),
			says("full", past(send(0, 8))), differs("timeout", "full", past(send(1, 8))),
		}},
		{name: "names", pairs: []*pair{posix}, script: []line{
			differs("invalid", "ok", op{Kind: opOpen, URL: "posix:/a/b", Options: &kumquat.Options{Create: true}}),
		}},
		{name: "what is not said", pairs: []*pair{posix}, script: []line{
			says("ok", with(kumquat.Options{Create: true})),
			differs(fmt.Sprintf("ok 0 messages, 0 bytes, mode 0600, user 0, room for %d of %d bytes", number(t, "fs/mqueue/msg_default"),
				number(t, "fs/mqueue/msgsize_default")),
				"ok 0 messages, 0 bytes, mode 0600, user 0, room for 65536 of 65536 bytes", stat(0)),
		}},
		{name: "what is not said, System V", pairs: []*pair{sysv}, alone: true, script: []line{
			says("ok", with(kumquat.Options{Create: true})),
			differs(fmt.Sprintf("ok 0 messages, 0 bytes, mode 0600, user 0, room for %d of %d bytes", number(t, "kernel/msgmnb"),
				min(number(t, "kernel/msgmax"), number(t, "kernel/msgmnb"))),
				"ok 0 messages, 0 bytes, mode 0600, user 0, room for 65536 of 65536 bytes", stat(0)),
		}},
		{name: "limits", pairs: []*pair{posix}, plain: true, script: []line{
			differs("limit", "ok", with(kumquat.Options{Create: true, MaxMessages: number(t, "fs/mqueue/msg_max") + 1, MaxSize: 8})),
			differs("limit", "ok", op{Kind: opOpen, Slot: 1, Options: &kumquat.Options{Create: true, MaxMessages: 1, MaxSize: number(t, "fs/mqueue/msgsize_max") + 1}}),
		}},
		{name: "limits, System V", pairs: []*pair{sysv, priority}, plain: true, script: []line{
			differs("limit", "ok", with(kumquat.Options{Create: true, MaxMessages: 1, MaxSize: number(t, "kernel/msgmax") + 1})),
			differs("limit", "ok", op{Kind: opOpen, Slot: 1, Options: &kumquat.Options{Create: true, MaxMessages: number(t, "kernel/msgmnb"), MaxSize: 2}}),
		}},
	} {
		for _, p := range x.pairs {
			t.Run(x.name+"/"+p.name, func(t *testing.T) {
				s := newStand(t, p, newUsers())
				if x.users && !s.users.two() {
					t.Skip("needs root, to be two users")
				}
				if x.plain && s.users.all {
					t.Skip("needs a user without special rights")
				}
				if x.shape.Max == 0 {
					x.shape = shape{4, 16}
				}
				for _, side := range []side{s.kernel, s.engine} {
					lines := slices.Clone(x.script)
					for i := range lines {
						l := &lines[i]
						me := fmt.Sprintf("user %d", s.users.uid(0))
						l.kernel, l.engine = strings.Replace(l.kernel, "user 0", me, 1), strings.Replace(l.engine, "user 0", me, 1)
						if l.URL != "" {
							l.URL = s.kernel.url + "/x"
							if !side.kernel {
								l.URL = s.engine.url + "/x"
								s.t.Cleanup(func() { _ = kumquat.Remove(context.Background(), l.URL) })
							}
						}
					}
					s.script(side, !x.alone, [2]shape{x.shape, {1, 1}}, lines)
				}
			})
		}
	}
}

// TestHeldMessage shows what a process that watches the FD of a System V queue does to a message of no bytes.
func TestHeldMessage(t *testing.T) {
	s := newStand(t, pairs[1], newUsers())
	ask := func(o op, want string) bool {
		t.Helper()
		err := s.crew.call(&o, side{})
		var a answer
		if err == nil {
			_, a, err = s.crew.await(place{o.Proc, o.Lane})
		}
		if err != nil {
			t.Fatal(err)
		}
		return a.Err == want || a.Err == "" && strings.HasPrefix("ok "+a.Text, want)
	}
	must := func(want string, o op) {
		t.Helper()
		if !ask(o, want) {
			t.Fatalf("%v: not %s", &o, want)
		}
	}
	for _, x := range []side{s.kernel, s.engine} {
		if err := s.crew.all(&command{Do: "begin", URL: x.url, Shapes: [2]shape{{4, 16}, {1, 1}}, Users: s.users.ids[:]}); err != nil {
			t.Fatal(err)
		}
		for proc := range procs {
			must("ok", op{Kind: opOpen, Proc: proc, Create: true, Mode: 0o666})
		}
		must("empty", op{Kind: opFD})
		must("ok", op{Kind: opSend, Proc: 1, Type: 3})
		if x.kernel { // the watching thread takes it
			for end := time.Now().Add(s.crew.patience); !ask(op{Kind: opStat, Proc: 1}, "ok 0 messages"); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the process that watches is not handed the message")
				}
			}
			must("empty", op{Kind: opReceive, Proc: 2})
		}
		must("ok 0 bytes 00000000 priority 0 type 3", op{Kind: opReceive})
		must("empty", op{Kind: opReceive, Proc: 2})
		if err := s.crew.all(&command{Do: "end"}); err != nil {
			t.Fatal(err)
		}
		s.clear()
	}
}

// number reads a number of /proc/sys.
func number(t *testing.T, name string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/" + name)
	if err == nil {
		_, err = fmt.Sscan(string(b), &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRefusedHere has each kind of kernel queue refuse all that it cannot do, which the engine can. That nothing changes by it, the
// programs show.
func TestRefusedHere(t *testing.T) {
	for _, p := range pairs {
		s := newStand(t, p, newUsers())
		for _, side := range []side{s.kernel, s.engine} {
			for _, what := range p.refused {
				lines := []line{says("ok", op{Kind: opOpen, Create: true, Mode: 0o600})}
				ask := op{Kind: opRefused, What: what, Len: 3}
				switch what {
				case "durable":
					lines = append(lines, says("unsupported", ask)) // the engine, yet
				case "watch":
					if side.kernel {
						lines = append(lines, says("unsupported", ask)) // on the engine it waits
					}
				case "filter", "priority filter", "peek", "borrow", "short buffer", "hole":
					if side.kernel || what == "peek" {
						lines = append(lines, differs("unsupported", "ok", ask))
					} else {
						lines = append(lines, says("empty", ask))
					}
				default:
					lines = append(lines, differs("unsupported", "ok", ask))
				}
				s.script(side, true, [2]shape{{4, 16}, {1, 1}}, lines)
			}
		}
	}
}

// TestWhoWins has several callers of several processes wait for the same. The kernel promises who is served: of the calls that wait in
// its line, mq_timedreceive and mq_timedsend, the one whose task has the highest priority, and of these the one that came first. The
// engine promises that each message goes to one of them.
func TestWhoWins(t *testing.T) {
	s := newStand(t, pairs[0], onlyMe()) // another user's processes may not be looked into
	const most = procs*lanes - 1         // the last lane of the last process helps
	helper := place{procs - 1, lanes - 1}
	for round := range 40 {
		receiving := round%2 == 0
		nicest := -1 // who is nicer than the others, and is served last
		if round%4 >= 2 {
			nicest = round / 4 % most
		}
		for _, x := range []side{s.kernel, s.engine} {
			n := 2 + round%(most-1)
			err := s.crew.all(&command{Do: "begin", URL: x.url, Shapes: [2]shape{{n, 8}, {1, 1}}, Users: s.users.ids[:]})
			if err == nil {
				err = s.whoWins(x, n, receiving, nicest, helper)
			}
			if err == nil {
				err = s.crew.all(&command{Do: "end"})
			}
			s.clear()
			if errors.Is(err, fs.ErrPermission) {
				s.crew.broken = true
				t.Skipf("needs to see in /proc which system calls wait: %v", err)
			} else if err != nil {
				t.Fatalf("round %d, %s: %v", round, x.url, err)
			}
		}
	}
}

func (s *stand) whoWins(x side, n int, receiving bool, nicest int, helper place) error {
	id := 0
	do := func(at place, o op) (answer, error) {
		id++
		o.ID, o.Proc, o.Lane = cmp.Or(o.ID, id), at.proc, at.lane
		if err := s.crew.call(&o, x); err != nil {
			return answer{}, err
		}
		_, a, err := s.crew.await(at)
		if err == nil && a.Err != "" {
			err = fmt.Errorf("%v: %v", &o, a)
		}
		return a, err
	}
	if _, err := do(helper, op{Kind: opOpen, Create: true, Mode: 0o666}); err != nil {
		return err
	}
	var callers []place
	for i := range procs * lanes {
		if at := (place{i % procs, i / procs}); at != helper && len(callers) < n {
			callers = append(callers, at)
		}
	}
	if !receiving { // fill it
		for range n {
			if _, err := do(helper, op{Kind: opSend, Len: 8}); err != nil {
				return err
			}
		}
	}
	for i, at := range callers {
		o := op{ID: 100 + i, Kind: opTimedReceive, Proc: at.proc, Lane: at.lane}
		if !receiving {
			o.Kind, o.Len = opTimedSend, 4
		}
		if i == nicest {
			o.Nice = 7
		}
		if err := s.crew.call(&o, x); err != nil {
			return err
		}
		if x.kernel {
			if err := s.inLine(o.Kind, i+1); err != nil {
				return err
			}
		}
	}
	if !x.kernel {
		time.Sleep(settling)
	}
	// All are helped at once.
	var sent []string
	for i := range n {
		o := op{ID: 200 + i, Kind: opSend, Len: 8}
		sent = append(sent, item{id: o.ID, len: 8}.text(false))
		if !receiving {
			o = op{Kind: opReceive}
			sent[i] = item{id: 100 + i, len: 4}.text(false)
		}
		if _, err := do(helper, o); err != nil {
			return err
		}
	}
	var got []string
	for _, at := range callers {
		_, a, err := s.crew.await(at)
		if err != nil {
			return err
		} else if a.Err != "" {
			return errors.New(a.String())
		}
		got = append(got, a.Text)
	}
	if !receiving {
		got = nil
		for range n {
			a, err := do(helper, op{Kind: opReceive})
			if err != nil {
				return err
			}
			got = append(got, a.Text)
		}
	}
	if nicest >= 0 && nicest < n && x.kernel {
		// It comes last, whatever its place.
		if receiving {
			last := sent[n-1]
			sent = slices.Insert(sent[:n-1], nicest, last)
		} else {
			late := sent[nicest]
			sent = append(slices.Delete(sent, nicest, nicest+1), late)
		}
	}
	if !x.kernel {
		slices.Sort(got)
		slices.Sort(sent)
	}
	if !slices.Equal(got, sent) {
		return fmt.Errorf("%d callers, nicer is %d, receiving %v: got\n%s\nnot\n%s", n, nicest, receiving, strings.Join(got, "\n"), strings.Join(sent, "\n"))
	}
	return nil
}

// inLine waits until so many threads of all workers are in the system call.
func (s *stand) inLine(kind string, n int) error {
	number := unix.SYS_MQ_TIMEDRECEIVE
	if kind == opTimedSend {
		number = unix.SYS_MQ_TIMEDSEND
	}
	for end := time.Now().Add(s.crew.patience); ; time.Sleep(100 * time.Microsecond) {
		in := 0
		for _, p := range s.crew.procs {
			tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", p.cmd.Process.Pid))
			if err != nil {
				return err
			}
			for _, file := range tasks {
				b, err := os.ReadFile(file)
				if errors.Is(err, fs.ErrPermission) {
					return fmt.Errorf("it cannot be seen which calls wait: %w", err)
				}
				if strings.HasPrefix(string(b), fmt.Sprint(number, " ")) {
					in++
				}
			}
		}
		if in == n {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d threads are in %s, not %d", in, kind, n)
		}
	}
}

// TestUntold shows what a message of a kernel queue does not tell, and that it counts nothing.
func TestUntold(t *testing.T) {
	for _, p := range pairs {
		s := newStand(t, p, newUsers())
		for _, x := range []side{s.kernel, s.engine} {
			q, err := kumquat.Open(t.Context(), x.url, &kumquat.Options{Create: true, MaxMessages: 2, MaxSize: 8})
			if err != nil {
				t.Fatal(err)
			}
			var m kumquat.Message
			var st kumquat.Stats
			if err = q.TrySendBytes([]byte("x"), 0); err == nil {
				if m, err = q.TryReceive(); err == nil {
					st, err = q.Stat(t.Context())
				}
			}
			if err = errors.Join(err, q.Close()); err != nil {
				t.Fatal(err)
			}
			if x.kernel && (m.Seq != 0 || m.Taken != 0 || !m.Enqueued.IsZero() || m.Sender != 0 || st.Sent != 0 || st.Received != 0) ||
				!x.kernel && (m.Seq == 0 || m.Taken == 0 || m.Enqueued.IsZero() || m.Sender != os.Getpid() || st.Sent != 1 || st.Received != 1) {
				t.Errorf("%s: %+v, %+v", x.url, m, st)
			}
			s.clear()
		}
	}
}

// TestPorting is the porting layer's promise in its plainest form: a program changes nothing but the URL. Examples of it are
// examples/, whose tests run each on the engine and on the kernel's queues.
func TestPorting(t *testing.T) {
	var first []string
	for _, url := range []string{
		"/differ/porting", fmt.Sprintf("posix:/kumquat-differ-%d-porting", os.Getpid()), fmt.Sprintf("sysv+priority:0x%08x", 0x45000000|os.Getpid()&0xffffff),
	} {
		steps := ported(t, url)
		if first == nil {
			first = steps
		} else if !slices.Equal(first, steps) {
			t.Errorf("with %s:\n%s\nwith the engine:\n%s", url, strings.Join(steps, "\n"), strings.Join(first, "\n"))
		}
	}
}

// ported uses a queue and says what happened.
func ported(t *testing.T, url string) (steps []string) {
	ctx := t.Context()
	say := func(what string, err error) {
		steps = append(steps, fmt.Sprintf("%s: %s", what, answerOf("", err).Err))
	}
	_, err := kumquat.Open(ctx, url, nil)
	say("open what is not there", err)
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 5, MaxSize: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		say("close", q.Close())
		say("remove", kumquat.Remove(ctx, url))
		say("remove what is not there", kumquat.Remove(ctx, url))
	}()
	_, err = kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true})
	say("create what is there", err)
	for i, prio := range []int{kumquat.Low, kumquat.Critical, kumquat.Normal, kumquat.Critical, 0} {
		say("send", q.Send(ctx, kumquat.Message{Body: fmt.Append(nil, "message ", i), Priority: prio}))
	}
	say("send to a full queue", q.TrySend(kumquat.Message{Body: []byte("no")}))
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	say("wait for room", q.Send(short, kumquat.Message{Body: []byte("no")}))
	say("send what is too long", q.TrySend(kumquat.Message{Body: make([]byte, 101)}))
	say("send at a priority that there is not", q.TrySendBytes(nil, 32768))
	for range 5 {
		m, err := q.Receive(ctx)
		say(fmt.Sprintf("receive %q at %d", m.Body, m.Priority), err)
	}
	_, err = q.TryReceive()
	say("receive from an empty queue", err)
	s, err := q.Stat(ctx)
	say(fmt.Sprintf("stat: %d of %d messages of %d bytes, %v", s.Messages, s.MaxMessages, s.MaxSize, s.Mode), err)
	return steps
}
