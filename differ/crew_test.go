package differ

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// users says who the processes are. As root, they are two users without any special right: processes 0 and 1 the one, 2 the other.
// Else all are the user of the test, who, in a namespace made without root, may do everything.
type users struct {
	ids [procs]int
	all bool // the mode of a queue does not bind them
}

func (u *users) uid(proc int) int { return u.ids[proc] }

// two reports whether they are two users.
func (u *users) two() bool { return u.ids[0] != u.ids[procs-1] }

// become is the user that the process has to become; "": it stays.
func (u *users) become(proc int) string {
	if u.ids[proc] == os.Geteuid() {
		return ""
	}
	return strconv.Itoa(u.ids[proc])
}

const firstUser = 41011 // nobody's, so that RLIMIT_MSGQUEUE counts these queues only

func newUsers() *users {
	if canBecomeOthers() {
		return &users{ids: [procs]int{firstUser, firstUser, firstUser + 1}}
	}
	return onlyMe()
}

// onlyMe has all processes be this user.
func onlyMe() *users {
	me := os.Geteuid()
	return &users{ids: [procs]int{me, me, me}, all: me == 0}
}

// canBecomeOthers reports whether this process may become any user: as root, with the capabilities for that, and not in a user
// namespace that has only one user, as those have that are made without root.
func canBecomeOthers() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if os.Geteuid() != 0 || unix.Capget(&header, &caps[0]) != nil {
		return false
	}
	const both = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !strings.HasSuffix(strings.TrimSpace(string(b)), " 1") && caps[0].Effective&both == both
}

// crew is a set of worker processes.
type crew struct {
	users  *users
	procs  [procs]*proc
	events chan event
	got    map[place]answer // arrived, not yet asked for
	broken bool             // some call never came back
	// patience is how long a call may take that need not wait. One that takes longer hangs.
	patience time.Duration
}

// place is where a call is made: a lane of a process; lane −1 is for begin and end.
type place struct{ proc, lane int }

type event struct {
	place
	answer answer
	gone   bool
}

type proc struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	errs  bytes.Buffer
	ended chan struct{}
}

// newCrew starts the processes. They end by stop, at the latest when the test ends.
func newCrew(t testing.TB, u *users) (*crew, error) {
	c := &crew{users: u, patience: 20 * time.Second, events: make(chan event, procs*(lanes+2)), got: map[place]answer{}}
	for i := range c.procs {
		p := &proc{cmd: exec.Command("/proc/self/exe"), ended: make(chan struct{})}
		p.cmd.Env = append(os.Environ(), workerVar+"=1", userVar+"="+u.become(i), "GOMAXPROCS=2")
		p.cmd.Stderr = &p.errs
		var out io.ReadCloser
		var err error
		if p.in, err = p.cmd.StdinPipe(); err == nil {
			if out, err = p.cmd.StdoutPipe(); err == nil {
				err = p.cmd.Start()
			}
		}
		if err != nil {
			return nil, errors.Join(err, c.stop())
		}
		c.procs[i] = p
		go func() {
			for d := json.NewDecoder(bufio.NewReader(out)); ; {
				var r reply
				if d.Decode(&r) != nil {
					break
				}
				c.events <- event{place{i, r.Lane}, r.Answer, false}
			}
			_ = p.cmd.Wait() // what ended it stands in its errors
			c.events <- event{place: place{i, -1}, gone: true}
			close(p.ended)
		}()
	}
	t.Cleanup(func() {
		if err := c.stop(); err != nil {
			t.Error(err)
		}
	})
	return c, nil
}

// stop ends the processes and waits for them.
func (c *crew) stop() (err error) {
	var all []*proc
	for _, p := range c.procs {
		if p == nil { // it did not start
			continue
		}
		all = append(all, p)
		_ = p.in.Close()
		if c.broken {
			_ = p.cmd.Process.Kill()
		}
	}
	for _, p := range all {
		timer := time.AfterFunc(c.patience, func() { _ = p.cmd.Process.Kill() })
		<-p.ended
		timer.Stop()
		if s := p.cmd.ProcessState; !c.broken && !s.Success() {
			err = errors.Join(err, fmt.Errorf("worker: %v: %s", s, p.errs.String()))
		}
	}
	return err
}

// silence is what a call that hangs has for an answer.
const silence = "nothing comes"

var errHangs = errors.New("a call that must return does not")

// tell sends a command.
func (c *crew) tell(proc int, x *command) error {
	b, err := json.Marshal(x)
	if err == nil {
		_, err = c.procs[proc].in.Write(append(b, '\n'))
	}
	return err
}

// await waits for the answer of one of these places.
func (c *crew) await(places ...place) (place, answer, error) {
	timer := time.NewTimer(c.patience)
	defer timer.Stop()
	for {
		for _, at := range places {
			if a, ok := c.got[at]; ok {
				delete(c.got, at)
				return at, a, nil
			}
		}
		select {
		case e := <-c.events:
			if e.gone {
				c.broken = true
				p := c.procs[e.proc]
				return place{}, answer{}, fmt.Errorf("process %d ended: %v: %s", e.proc, p.cmd.ProcessState, p.errs.String())
			}
			c.got[e.place] = e.answer
		case <-timer.C:
			c.broken = true
			return places[0], answer{Err: silence}, errHangs
		}
	}
}

// all tells every process the same and waits until each has done it.
func (c *crew) all(x *command) error {
	for i := range c.procs {
		if err := c.tell(i, x); err != nil {
			return err
		}
	}
	for i := range c.procs {
		if _, a, err := c.await(place{i, -1}); err != nil {
			return err
		} else if a.Err != "" {
			return fmt.Errorf("process %d: %s: %v", i, x.Do, a)
		}
	}
	return nil
}

// side is one of the two queues that a program runs on.
type side struct {
	kernel bool
	url    string
	spoil  func(*op) // for tests of the test: makes this side behave wrongly
}

// entry is what became of an operation.
type entry struct {
	ran  bool
	do   op
	got  answer
	want want
	only bool // it is for the kernel's side only
}

// run runs a program on one side. An error is one of the test itself, but for errHangs.
func (c *crew) run(p *program, s side) (record []entry, err error) {
	w := &world{program: p, kernel: s.kernel, who: c.users}
	record = make([]entry, len(p.ops))
	at := make(map[*op]int, len(p.ops))
	begin := &command{
		Do: "begin", URL: s.url, Umask: p.umask, Shapes: p.shapes, Users: c.users.ids[:], Count: s.kernel && p.pair.counted, Envelope: p.pair.envelope,
	}
	if err := c.all(begin); err != nil {
		return nil, err
	}
	comes := func(b back) error {
		if b.cancel {
			if err := c.tell(b.op.Proc, &command{Do: "cancel", Lane: b.op.Lane}); err != nil {
				return err
			}
		}
		e := &record[at[b.op]]
		var err error
		e.want = b.want
		_, e.got, err = c.await(place{b.op.Proc, b.op.Lane})
		return err
	}
	for i := range p.ops {
		o := &p.ops[i]
		at[o] = i
		m := w.step(i)
		if m.skip || m.alone && !s.kernel {
			continue
		}
		e := &record[i]
		*e = entry{ran: true, do: m.do, want: m.want, only: m.alone}
		switch {
		case o.Kind == opCancel:
		case m.rush != nil:
			e.got, err = c.rush(m.rush, s)
		default:
			if err = c.call(&m.do, s); err == nil && !m.wait {
				_, e.got, err = c.await(place{o.Proc, o.Lane})
			} else if m.wait && o.Settle {
				time.Sleep(settling)
			}
		}
		for _, b := range m.back {
			if err == nil {
				err = comes(b)
			}
		}
		if err != nil {
			return record, err
		}
	}
	for _, b := range w.end() {
		if err := comes(b); err != nil {
			return record, err
		}
	}
	return record, c.all(&command{Do: "end"})
}

// settling is time enough for a call to fall asleep, mostly. No result depends on it.
const settling = 300 * time.Microsecond

func (c *crew) call(o *op, s side) error {
	if s.spoil != nil {
		x := *o
		s.spoil(&x)
		o = &x
	}
	return c.tell(o.Proc, &command{Do: "call", Lane: o.Lane, Op: o})
}

// rush has many calls wait at once, serves some of them one by one, and cancels the others.
func (c *crew) rush(r *rush, s side) (answer, error) {
	waiting := map[place]op{}
	var texts, sent []string
	odd := func(o op, a answer) (answer, error) {
		a.Text = fmt.Sprintf("in a rush, %v: %v", &o, a)
		return a, c.cancel(waiting)
	}
	direct := func(o op) (answer, error) {
		if err := c.call(&o, s); err != nil {
			return answer{}, err
		}
		_, a, err := c.await(place{o.Proc, o.Lane})
		if err == nil && a.Err == "" && (o.Kind == opReceive || o.Kind == opPurge) {
			texts = append(texts, a.Text)
		}
		return a, err
	}
	for _, o := range r.before {
		if a, err := direct(o); err != nil || a.Err != "" {
			return odd(o, a)
		}
	}
	for _, o := range r.calls {
		waiting[place{o.Proc, o.Lane}] = o
		if err := c.call(&o, s); err != nil {
			return answer{}, err
		}
	}
	time.Sleep(settling)
	for _, h := range r.helps {
		if a, err := direct(h); err != nil {
			return a, err
		} else if a.Err != "" {
			return odd(h, a)
		}
		served, a, err := c.await(keys(waiting)...)
		o := waiting[served]
		if err != nil {
			return a, err
		}
		delete(waiting, served)
		if a.Err != "" {
			return odd(o, a)
		}
		if o.Kind == opReceive {
			texts = append(texts, a.Text)
		} else {
			sent = append(sent, item{id: o.ID, len: o.Len, prio: o.Prio}.text(false))
		}
	}
	cancelled := len(waiting)
	if err := c.cancel(waiting); err != nil {
		return answer{Text: err.Error()}, err
	}
	h := r.calls[0] // any of them is free now
	h.Kind, h.Wait = opReceive, waitTry
	for range r.drains {
		if a, err := direct(h); err != nil {
			return a, err
		} else if a.Err == "empty" {
			break
		} else if a.Err != "" {
			return odd(h, a)
		}
	}
	// The messages of those who were served come last, in the order in which they were.
	if n := len(texts) - len(sent); n >= 0 && slices.Equal(texts[n:], sent) {
		texts = texts[:n]
	} else {
		texts = append(texts, "while the served sent "+strings.Join(sent, "; "))
	}
	return answer{Text: fmt.Sprintf("%d waited, %d served, %d cancelled: %s", len(r.calls), len(r.helps), cancelled, strings.Join(texts, "; "))}, nil
}

// cancel cancels calls that wait, and wants them all to say so.
func (c *crew) cancel(waiting map[place]op) error {
	for at := range waiting {
		if err := c.tell(at.proc, &command{Do: "cancel", Lane: at.lane}); err != nil {
			return err
		}
	}
	for at, o := range waiting {
		if _, a, err := c.await(at); err != nil {
			return err
		} else if a.Err != "canceled" {
			return fmt.Errorf("%v was cancelled and answered: %v", &o, a)
		}
	}
	clear(waiting)
	return nil
}

func keys(m map[place]op) (all []place) {
	for at := range m {
		all = append(all, at)
	}
	return all
}
