package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// The input of FuzzCommandLine: command lines, with these between them and between their arguments.
const (
	betweenLines = "\x1e"
	betweenArgs  = "\x1f"
)

// FuzzCommandLine runs any command lines, one after the other, on queues of a private folder. None may panic or hang, leave an exit
// code that --help does not name, end without a word when it fails, or let through to the terminal what others wrote unescaped.
//
// What reaches beyond that folder is parsed and not run: --exec and --dump, bench and tour, queues of other drivers.
func FuzzCommandLine(f *testing.F) {
	for _, c := range newRoot(newApp(os.Stdin, os.Stdout, os.Stderr)).Commands() {
		for l := range strings.Lines(c.Example) {
			if _, l, ok := strings.Cut(strings.TrimSpace(l), "kumquat "); ok {
				f.Add(strings.Join(strings.Fields(strings.ReplaceAll(l, "'", "")), betweenArgs), []byte("from standard input\n"))
			}
		}
		f.Add(c.Name()+betweenArgs+"/q"+betweenLines+c.Name()+betweenArgs+"--json"+betweenArgs+"/q", []byte("1\n2"))
		f.Add(c.Name()+betweenArgs+"--help", []byte{})
	}
	for _, lines := range [][]string{
		{"send /q \x1b[31m -p high", "peek /q", "recv /q --timeout 0", "recv /q --timeout 0 -n 9"},
		{"send /q --lines --header a=b --ttl 1ms --delay 1h", "ls --json", "purge /q --type 1 --min-priority low", "stat /q"},
		{"create /new/%2F --max-messages 1 --overflow drop-lowest --headroom 99%@critical --mode 0", "send /new/%2F x", "send /new/%2F x --nonblock"},
		{"create /\u202e --max-size 4GiB --max-messages 16000000", "rm /** --dry-run", "rm /? /q -y --if-exists", "who /q"},
		{"__complete recv /", "__complete send --priority ", "__completeNoDesc", "help help", "completion zsh", "-h", "--version", "\xff"},
		{"recv /q -n -1", "recv /q --raw --json", "send /q a b c", "send --", "-- send /q", "reсv /q", "snd /q", "create /q --if-missing"},
	} {
		f.Add(strings.ReplaceAll(strings.Join(lines, betweenLines), " ", betweenArgs), []byte("a\x00b\nc"))
	}
	dir, err := shm()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	f.Setenv("KUMQUAT_SHM", dir)
	f.Fuzz(func(t *testing.T, lines string, stdin []byte) {
		startOver(t, dir)
		all := strings.Split(lines, betweenLines)
		for _, l := range all[:min(len(all), 6)] {
			fuzzLine(t, strings.Split(l, betweenArgs), stdin)
		}
	})
}

// startOver makes the folder that of one queue with some messages.
func startOver(t *testing.T, dir string) {
	files, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	q, err := kumquat.Open(context.Background(), "/q", &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 4, MaxSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	for i, m := range []kumquat.Message{{Body: []byte("one")}, {Body: []byte("\x1b[2J\xff"), Priority: 20, Type: 2, Key: "k\n"}, {Headers: map[string]string{"a": "\t"}}} {
		if err := q.TrySend(m); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
}

// memFile is a file that is only in memory, with a content.
func memFile(t *testing.T, content []byte) *os.File {
	fd, err := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "memory")
	t.Cleanup(func() { file.Close() })
	if _, err := file.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	return file
}

func written(t *testing.T, f *os.File) []byte {
	b, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	lineTime = 30 * time.Millisecond // then those that wait are sent away
	hangTime = 20 * time.Second
)

func fuzzLine(t *testing.T, args []string, stdin []byte) {
	if slices.ContainsFunc(args, isForeign) {
		return
	}
	hangs := time.AfterFunc(hangTime, func() {
		buf := make([]byte, 1<<20)
		panic("kumquat " + strings.Join(args, " ") + " hangs\n" + string(buf[:runtime.Stack(buf, true)]))
	})
	defer hangs.Stop()
	if !isHarmless(t, args, stdin) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lineTime)
	defer cancel()
	out, errs := memFile(t, nil), memFile(t, nil)
	code := run(ctx, newApp(memFile(t, stdin), out, errs), args)
	said, shown := written(t, errs), written(t, out)
	if !slices.ContainsFunc(exitLines(), func(l [2]string) bool { return l[0] == strconv.Itoa(code) }) {
		t.Errorf("%q: exit code %d, which --help does not name", args, code)
	}
	switch {
	case code == exitDone && len(said) > 0 && !strings.HasPrefix(args[0], cobra.ShellCompRequestCmd): // those tell the shell what they did
		t.Errorf("%q succeeds and complains: %q", args, said)
	case code != exitDone && len(said)+len(shown) == 0:
		t.Errorf("%q: exit code %d without a word", args, code)
	case code == exitUsage && !bytes.Contains(said, []byte("kumquat: ")):
		t.Errorf("%q: exit code %d, and no line says why: %q", args, code, said)
	}
	mustBeClean(t, args, said)
}

// mustBeClean fails the test if text has something that plays with the terminal.
func mustBeClean(t *testing.T, args []string, text []byte) {
	for s := text; len(s) > 0; {
		r, n := utf8.DecodeRune(s)
		if r == utf8.RuneError && n == 1 || r != '\n' && unicode.In(r, unicode.Cc, unicode.Cf) {
			t.Errorf("%q: %q is shown as it is in %q", args, s[:n], text)
			return
		}
		s = s[n:]
	}
}

var foreign = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:`)

// isForeign reports whether an argument may name a queue of another driver.
func isForeign(arg string) bool { return foreign.MatchString(arg) && !strings.HasPrefix(arg, "shm:") }

// isHarmless parses a command line and reports whether it touches nothing but the queues of the folder. Nothing is run.
func isHarmless(t *testing.T, args []string, stdin []byte) bool {
	a := newApp(memFile(t, stdin), memFile(t, nil), memFile(t, nil))
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	harmless := true
	for _, c := range root.Commands() {
		c.RunE = func(cmd *cobra.Command, _ []string) error {
			changed := func(flag string) bool { return cmd.Flags().Lookup(flag) != nil && cmd.Flags().Changed(flag) }
			harmless = cmd.Name() != "bench" && cmd.Name() != "tour" && !changed("exec") && !changed("dump") && !changed("unused")
			return nil
		}
	}
	_ = root.ExecuteContext(context.Background()) // what is wrong with it, running it tells
	return harmless
}
