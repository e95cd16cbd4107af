package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kumquat-mq/kumquat"
)

func filepathReader(ts *testscript.TestScript, name string) io.Reader {
	return strings.NewReader(ts.ReadFile(name))
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int{
		"1": 1, "4096": 4096, "64k": 65536, "64K": 65536, "64KiB": 65536, "64kB": 64000, "1MiB": 1 << 20, "1m": 1 << 20, "1.5k": 1536,
		"2G": 2 << 30, "16 MiB": 16 << 20, "5b": 5,
	} {
		if got, err := parseSize(in); got != want || err != nil {
			t.Errorf("%q: %d, %v, not %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "k", "-1", "0", "1x", "1.0001k", "1e3", "0.5", "99999999999G", "..", "1KiBB"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q was taken as %d", in, got)
		}
	}
}

func TestFlagValues(t *testing.T) {
	var h headroomValue
	for in, want := range map[string]headroomValue{"10%@25": {10, 25}, "5@critical": {5, 28}, "0%@0": {}} {
		if err := h.Set(in); err != nil || h != want {
			t.Errorf("%q: %v, %v", in, h, err)
		}
	}
	for _, in := range []string{"10%", "100%@1", "-1%@1", "x@1", "10%@x", "10%@40000", "@"} {
		if err := h.Set(in); err == nil {
			t.Errorf("headroom %q was taken", in)
		}
	}
	var m modeValue
	for in, want := range map[string]fs.FileMode{"0600": 0o600, "660": 0o660, "0o644": 0o644} {
		if err := m.Set(in); err != nil || fs.FileMode(m) != want {
			t.Errorf("%q: %v, %v", in, m, err)
		}
	}
	for _, in := range []string{"", "0", "9", "1000", "rw", "-1"} {
		if err := m.Set(in); err == nil {
			t.Errorf("mode %q was taken", in)
		}
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"two pears, ä€😀":            "two pears, ä€😀",
		"\x1b[31mred\x1b[0m\r\n\t":  `\x1b[31mred\x1b[0m\r\n\t`,
		"\u009b31m":                 `\u009b31m`,
		"a\u202eb\u200f\u2028":      `a\u202eb\u200f\u2028`,
		"\xff\xc3(":                 `\xff\xc3(`,
		"\x00\x7f":                  `\x00\x7f`,
		string(utf8.RuneError):      "\uFFFD",
		`back\slash "quoted" 'too'`: `back\slash "quoted" 'too'`,
	} {
		if got := escape(in); got != want {
			t.Errorf("%q: %s, not %s", in, got, want)
		}
	}
	if got := shorten("äöüäöü", 4); got != "äöü…" {
		t.Error(got)
	}
}

func TestJSONIsSafeOnTerminals(t *testing.T) {
	evil := "\x1b[2J\u009b2J\u202e\u2066\u200b\x7f\ufeff"
	for _, r := range string(line(map[string]string{evil: evil})) {
		if r != '\n' && (r < ' ' || r > '~') {
			t.Errorf("%U is in the output", r)
		}
	}
	body := []byte{0xff, 0}
	if got := string(line(jsonOf(&kumquat.Message{Body: body}))); !strings.Contains(got, `"body_base64":"/wA="`) {
		t.Error(got)
	}
	if got := string(line(jsonOf(&kumquat.Message{}))); !strings.Contains(got, `"body":""`) {
		t.Error(got)
	}
}

func TestSplitStream(t *testing.T) {
	long := strings.Repeat("x", 300<<10)
	for _, in := range []string{"", "a", "a\n", "a\nb", "\n", "\n\na\n\n", long + "\nb\n" + long, "a\r\nb"} {
		want := strings.Split(in, "\n")
		if want[len(want)-1] == "" {
			want = want[:len(want)-1]
		}
		for name, r := range map[string]io.Reader{
			"whole": strings.NewReader(in), "bytes": iotest.OneByteReader(strings.NewReader(in)),
			"halves": iotest.HalfReader(strings.NewReader(in)), "eof with data": iotest.DataErrReader(strings.NewReader(in)),
		} {
			var got []string
			var held [][]byte
			err := splitStream(r, '\n', func(int) error { return nil },
				func(p []byte) error { held = append(held, p); return nil },
				func() error { // pieces are good until here
					for _, p := range held {
						got = append(got, string(p))
					}
					held = held[:0]
					return nil
				})
			if err != nil || strings.Join(got, "|") != strings.Join(want, "|") || len(got) != len(want) {
				t.Errorf("%.20q, %s: %d pieces, not %d; %v", in, name, len(got), len(want), err)
			}
			if len(held) > 0 {
				t.Errorf("%.20q, %s: %d pieces were not flushed", in, name, len(held))
			}
		}
	}
}

func TestSplitStreamGrows(t *testing.T) {
	// Each time a piece has outgrown the buffer it asks; here it may do so once.
	in := "ok\n" + strings.Repeat("x", 3*splitBuffer)
	enough := errors.New("enough")
	var asked []int
	n := 0
	err := splitStream(strings.NewReader(in), '\n',
		func(have int) error {
			if asked = append(asked, have); len(asked) > 1 {
				return enough
			}
			return nil
		},
		func([]byte) error { n++; return nil }, func() error { return nil })
	if err != enough || n != 1 || fmt.Sprint(asked) != fmt.Sprint([]int{splitBuffer, 2 * splitBuffer}) {
		t.Errorf("asked at %v, %d pieces, %v", asked, n, err)
	}
}

func TestSplitStreamReadError(t *testing.T) {
	broken := errors.New("broken")
	r := io.MultiReader(strings.NewReader("a\nhalf"), iotest.ErrReader(broken))
	n := 0
	err := splitStream(r, '\n', func(int) error { return nil }, func([]byte) error { n++; return nil }, func() error { return nil })
	if !errors.Is(err, broken) || n != 1 {
		t.Errorf("%d pieces, %v: half a line must not be sent", n, err)
	}
}

// shortWriter takes so many bytes, then fails.
type shortWriter struct{ left int }

func (w *shortWriter) Write(p []byte) (int, error) {
	if len(p) <= w.left {
		w.left -= len(p)
		return len(p), nil
	}
	n := w.left
	w.left = 0
	return n, io.ErrShortWrite
}

func TestStreamSinkKnowsWhatIsOut(t *testing.T) {
	// Lines of 4 bytes: after 10 bytes two of them are out.
	s := &streamSink{w: &shortWriter{10}, encode: rawLine}
	for _, b := range []string{"one", "two", "six"} {
		if err := s.write(&kumquat.Message{Body: []byte(b)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush(); err == nil || s.done() != 2 {
		t.Errorf("%d are out; %v", s.done(), err)
	}
}

func TestRemoveIPCNote(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	want := func(said bool, why string) {
		t.Helper()
		if n := removeIPCNote(root, 1000, "ann"); (n != "") != said {
			t.Errorf("%s: %q", why, n)
		}
	}
	want(false, "no systemd")
	put("run/systemd/system/x", "")
	want(true, "the default")
	if removeIPCNote(root, 0, "root") != "" {
		t.Error("said of root")
	}
	put("etc/systemd/logind.conf", "[Login]\n#RemoveIPC=no\n")
	want(true, "a comment")
	put("etc/systemd/logind.conf.d/1.conf", "[Login]\nRemoveIPC=no\n")
	want(false, "switched off")
	put("etc/systemd/logind.conf.d/2.conf", "[Login]\nRemoveIPC=yes\n")
	want(true, "switched on again")
	put("var/lib/systemd/linger/ann", "")
	want(false, "lingering")
}
