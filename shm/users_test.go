package shm

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
	"golang.org/x/sys/unix"
)

// Three users: the owner, one of the owner's group, and a stranger.
const (
	ownerID    = 41001
	memberID   = 41002
	strangerID = 41003
	ownersGID  = 41001
	otherGID   = 41009
)

func init() { roles["user"] = userRole }

// userRole: DIR. Does what each line of standard input says and answers with one line.
func userRole(args []string) int {
	d := Driver{Dir: args[0]}
	ctx := context.Background()
	for {
		line, err := bufioLine()
		if err != nil {
			return 0
		}
		f := strings.Fields(line)
		name := f[1]
		switch f[0] {
		case "create": // NAME MODE UMASK
			mode, _ := strconv.ParseUint(f[2], 8, 32)
			mask, _ := strconv.ParseUint(f[3], 8, 32)
			unix.Umask(int(mask))
			q, err := d.OpenQueue(ctx, name, &driver.Options{Create: true, Exclusive: true, Mode: fs.FileMode(mode), MaxMessages: 20, MaxSize: 4000})
			if err == nil {
				err = q.SendBytes(ctx, []byte("hello"), 3, true)
			}
			if err == nil {
				err = q.Close()
			}
			fmt.Println(kindOfError(err))
		case "use":
			q, err := d.OpenQueue(ctx, name, nil)
			if err == nil {
				if err = q.SendBytes(ctx, []byte("more"), 1, true); err == nil {
					_, err = q.Receive(ctx, driver.Filter{Type: 1}, true)
				}
				if e := q.Close(); err == nil {
					err = e
				}
			}
			fmt.Println(kindOfError(err))
		case "look":
			q, err := d.OpenQueue(ctx, name, &driver.Options{ReadOnly: true})
			if err == nil {
				_, err = q.Stat(ctx)
				_ = q.Close()
			}
			fmt.Println(kindOfError(err))
		case "remove":
			fmt.Println(kindOfError(d.Remove(ctx, name)))
		case "observe":
			b, err := json.Marshal(observeAsUser(d, name))
			if err != nil {
				fmt.Println(err)
				return 1
			}
			fmt.Println(string(b))
		case "symlink": // NAME TARGET
			fmt.Println(os.Symlink(f[2], fileOf(d, name)))
		}
	}
}

// observed is what a reader found, and what came of its tries to change something.
type observed struct {
	Messages int
	Sent     uint64
	Bodies   []string
	Pids     []int
	Problems []driver.Problem
	Events   []string
	Listed   []string
	Errors   []string
	Changes  map[string]string
}

func observeAsUser(d Driver, name string) (r observed) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	note := func(what string, err error) bool {
		if err != nil {
			r.Errors = append(r.Errors, fmt.Sprintf("%s: %v", what, err))
		}
		return err == nil
	}
	q, err := d.OpenQueue(ctx, name, &driver.Options{ReadOnly: true})
	if !note("open", err) {
		return r
	}
	defer func() { note("close", q.Close()) }()
	s, err := q.Stat(ctx)
	note("stat", err)
	r.Messages, r.Sent = s.Messages, s.Sent
	for m, err := range q.Peek(ctx, driver.PeekOptions{}) {
		note("peek", err)
		r.Bodies = append(r.Bodies, string(m.Body))
	}
	ps, err := q.Who(ctx)
	note("who", err)
	for _, p := range ps {
		r.Pids = append(r.Pids, p.PID)
	}
	report, err := q.Check(ctx)
	note("check", err)
	r.Problems = report.Problems
	infos, err := d.List(ctx, "")
	note("list", err)
	for _, i := range infos {
		r.Listed = append(r.Listed, i.Name)
		note("list "+i.Name, i.Err)
	}
	for e, err := range q.Watch(ctx) {
		note("watch", err)
		r.Events = append(r.Events, fmt.Sprintf("%s %d", e.Kind, e.N))
		if e.Kind == driver.EventSent || err != nil {
			break
		}
	}
	// A handle that was opened to observe changes nothing. Each try gets a moment, and must not need it.
	short, cancelShort := context.WithTimeout(ctx, 2*time.Second)
	defer cancelShort()
	r.Changes = map[string]string{}
	for what, f := range map[string]func() error{
		"send":       func() error { return q.Send(short, driver.Message{Type: 1}, false) },
		"send bytes": func() error { return q.SendBytes(short, []byte("x"), 1, false) },
		"send batch": func() error { return q.SendBatch(short, make([]driver.Message, 2), false) },
		"receive":    func() error { _, err := q.Receive(short, driver.Filter{}, false); return err },
		"into":       func() error { _, _, err := q.ReceiveInto(short, make([]byte, 9000), false); return err },
		"batch":      func() error { _, err := q.ReceiveBatch(short, nil, driver.Filter{}, 2, false); return err },
		"borrow":     func() error { _, err := q.Borrow(short, driver.Filter{}, false); return err },
		"reserve":    func() error { _, err := q.Reserve(short, 10); return err },
		"purge":      func() error { _, err := q.Purge(short, driver.Filter{}); return err },
		"notify":     func() error { _, err := q.Notify(short); return err },
		"fd":         func() error { _, err := q.FD(); return err },
		"ready":      func() error { _, _, err := q.Ready(driver.Filter{}, func() {}); return err },
		"remove":     func() error { return d.Remove(short, name) },
	} {
		r.Changes[what] = kindOfError(f())
	}
	return r
}

// asUser is how to become a user; the test needs root for it.
func asUser(uid int, groups ...uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: groups[0], Groups: groups}}
}

type users struct {
	d                       Driver
	owner, member, stranger *peer
}

// startUsers starts a process for each user and a folder that is sticky as /dev/shm is.
func startUsers(t *testing.T) users {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to become three other users")
	}
	d := shmDir(t)
	if err := os.Chmod(d.Dir, os.ModeSticky|0o777); err != nil {
		t.Fatal(err)
	}
	return users{d, startPeer(t, "user", asUser(ownerID, ownersGID), d.Dir), startPeer(t, "user", asUser(memberID, otherGID, ownersGID), d.Dir),
		startPeer(t, "user", asUser(strangerID, otherGID), d.Dir)}
}

func (p *peer) ask(format string, a ...any) string {
	p.t.Helper()
	p.say(format, a...)
	return p.line()
}

// fileHash is a sum over the file and over which of it are holes.
func fileHash(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	for _, e := range dataOf(t, f) {
		fmt.Fprintf(h, "%d %d\n", e.off, len(e.data))
		h.Write(e.data)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// The mode bits, less the umask, decide who may use, who may look; in a sticky folder only owners remove.
func TestModes(t *testing.T) {
	t.Parallel()
	u := startUsers(t)
	n := 0
	for _, mode := range []uint64{0o600, 0o640, 0o644, 0o660, 0o666} {
		for _, mask := range []uint64{0o022, 0, 0o077} {
			n++
			name := fmt.Sprintf("/mode%d", n)
			if got := u.owner.ask("create %s %o %o", name, mode, mask); got != "ok" {
				t.Fatalf("create with mode %o and umask %o: %s", mode, mask, got)
			}
			path := fileOf(u.d, name)
			bits := mode &^ mask
			if st, err := os.Stat(path); err != nil || st.Mode() != fs.FileMode(bits) {
				t.Fatalf("mode %o with umask %o became %v, %v", mode, mask, st.Mode(), err)
			}
			for _, who := range []struct {
				name string
				p    *peer
				bits uint64
			}{{"the owner", u.owner, bits >> 6 & 7}, {"one of the group", u.member, bits >> 3 & 7}, {"a stranger", u.stranger, bits & 7}} {
				want := func(ok bool) string {
					if ok {
						return "ok"
					}
					return "permission"
				}
				before := fileHash(t, path)
				if got := who.p.ask("look %s", name); got != want(who.bits&4 != 0) {
					t.Errorf("%s looks at mode %o: %s", who.name, bits, got)
				}
				if who.p != u.owner {
					if got := who.p.ask("remove %s", name); got != "permission" {
						t.Errorf("%s removes mode %o: %s", who.name, bits, got)
					}
				}
				if after := fileHash(t, path); after != before {
					t.Errorf("%s has changed the file by looking or by trying to remove it", who.name)
				}
				if got := who.p.ask("use %s", name); got != want(who.bits&6 == 6) {
					t.Errorf("%s uses mode %o: %s", who.name, bits, got)
				}
			}
			if got := u.owner.ask("remove %s", name); got != "ok" {
				t.Errorf("the owner removes mode %o: %s", bits, got)
			}
			if got := u.owner.ask("use %s", name); got != "not found" {
				t.Errorf("after remove: %s", got)
			}
		}
	}
	// Where the folder is not sticky, its bits decide, and who may write the queue may remove it.
	if err := os.Chmod(u.d.Dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if got := u.owner.ask("create /loose 666 0"); got != "ok" {
		t.Fatal(got)
	}
	if got := u.stranger.ask("remove /loose"); got != "ok" {
		t.Errorf("a stranger removes from a folder of all: %s", got)
	}
	if err := os.Chmod(u.d.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := u.stranger.ask("create /mine 600 0"); got != "permission" {
		t.Errorf("a stranger creates in a folder that is not his: %s", got)
	}
}

// What another user put where a queue should be is not followed, and Options.Owner holds a queue to its owner.
func TestOwnerAndLinks(t *testing.T) {
	t.Parallel()
	u := startUsers(t)
	ctx := context.Background()
	if got := u.owner.ask("create /real 600 0"); got != "ok" {
		t.Fatal(got)
	}
	if got := u.stranger.ask("symlink /trap %s", fileOf(u.d, "/real")); got != "<nil>" {
		t.Fatal(got)
	}
	before := fileHash(t, fileOf(u.d, "/real"))
	for _, o := range []*driver.Options{nil, {ReadOnly: true}, {Create: true}} {
		if _, err := u.d.OpenQueue(ctx, "/trap", o); !errors.Is(err, driver.ErrPermission) {
			t.Errorf("a link was followed: %v", err)
		}
	}
	for uid, want := range map[int]string{ownerID: "ok", strangerID: "permission", 0: "permission"} {
		for _, o := range []driver.Options{{Owner: &uid}, {Owner: &uid, ReadOnly: true}, {Owner: &uid, Create: true}} {
			q, err := u.d.OpenQueue(ctx, "/real", &o)
			if kindOfError(err) != want {
				t.Errorf("owner %d: %v", uid, err)
			}
			if err == nil {
				if err := q.Close(); err != nil {
					t.Error(err)
				}
			}
			if want != "ok" && fileHash(t, fileOf(u.d, "/real")) != before {
				t.Error("a refused open has changed the file")
			}
		}
		before = fileHash(t, fileOf(u.d, "/real"))
	}
	other := strangerID
	if _, err := u.d.OpenQueue(ctx, "/none", &driver.Options{Create: true, Owner: &other}); !errors.Is(err, driver.ErrPermission) {
		t.Errorf("a queue was created for another user: %v", err)
	}
	if _, err := os.Lstat(fileOf(u.d, "/none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused open has created the queue: %v", err)
	}
	if got := u.stranger.ask("create /real 600 0"); got != "exists" {
		t.Errorf("a stranger creates, exclusively, what is there: %s", got)
	}
	if err := os.Link(fileOf(u.d, "/real"), filepath.Join(u.d.Dir, "second")); err != nil {
		t.Fatal(err)
	}
	if got := u.owner.ask("use /real"); got != "permission" {
		t.Errorf("a file with two names is used: %s", got)
	}
}

// A user with read permission only sees everything and changes nothing, whatever is tried.
func TestObserverOfAnotherUser(t *testing.T) {
	t.Parallel()
	u := startUsers(t)
	ctx := context.Background()
	q := openQueue(t, u.d, "/seen", &driver.Options{Create: true, MaxMessages: 50, MaxSize: 4000})
	if err := os.Chmod(fileOf(u.d, "/seen"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		sendBody(t, q, strings.Repeat(fmt.Sprint(i), 1+i*300), i)
	}
	tryBody(t, q)
	before := fileHash(t, fileOf(u.d, "/seen"))
	u.stranger.say("observe /seen")
	// It waits for an event at last: give it one when all else is done. Until then nobody changes the file, so whoever did is it.
	time.Sleep(500 * time.Millisecond)
	if fileHash(t, fileOf(u.d, "/seen")) != before {
		t.Error("looking has changed the file")
	}
	if err := q.SendBytes(ctx, []byte("event"), 0, true); err != nil {
		t.Fatal(err)
	}
	before = fileHash(t, fileOf(u.d, "/seen"))
	var r observed
	if err := json.Unmarshal([]byte(u.stranger.line()), &r); err != nil {
		t.Fatal(err)
	}
	if after := fileHash(t, fileOf(u.d, "/seen")); after != before {
		t.Error("an observer has changed the file")
	}
	if r.Messages != 9 || r.Sent != 10 || len(r.Bodies) != 9 || !strings.HasPrefix(r.Bodies[0], "888") || len(r.Bodies[0]) != 2401 {
		t.Errorf("it saw %d messages, %d sent, %d bodies", r.Messages, r.Sent, len(r.Bodies))
	}
	if len(r.Pids) != 1 || r.Pids[0] != os.Getpid() || len(r.Problems) > 0 || len(r.Errors) > 0 || len(r.Listed) != 1 || r.Listed[0] != "/seen" {
		t.Errorf("it saw pids %v, problems %v, errors %v, queues %v", r.Pids, r.Problems, r.Errors, r.Listed)
	}
	if n := len(r.Events); n == 0 || r.Events[n-1] != "sent 1" {
		t.Errorf("it saw the events %v", r.Events)
	}
	if len(r.Changes) != 13 {
		t.Errorf("tried: %v", r.Changes)
	}
	for what, got := range r.Changes {
		if got != "permission" {
			t.Errorf("an observer's %s: %q", what, got)
		}
	}
	if n := len(r.Bodies); n > 0 {
		if s := tryBody(t, q); s != r.Bodies[0] {
			t.Errorf("the first message is another one now: %.10q", s)
		}
	}
}
