package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kumquat-mq/kumquat/bench"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Every goal of the table is measured by its row's command line: the workload is there, and so is the peer.
func TestRowsMeasureTheirGoals(t *testing.T) {
	for _, r := range rows {
		workload, _, _ := strings.Cut(r.args, " ")
		if !slices.ContainsFunc(bench.Workloads(), func(d bench.Description) bool { return d.Name == workload }) {
			t.Errorf("%s: no such workload", r.args)
		}
		_, after, _ := strings.Cut(r.args, "--peers ")
		peers := strings.Split(after, ",")
		for _, p := range peers {
			if !slices.ContainsFunc(bench.Subjects(), func(d bench.Description) bool { return d.Name == p }) {
				t.Errorf("%s: no such peer: %q", r.args, p)
			}
		}
		if len(r.goals) == 0 {
			t.Errorf("%s: nothing is asked", r.args)
		}
		for _, g := range r.goals {
			if g.beside != "kumquat" && !slices.Contains(peers, g.beside) {
				t.Errorf("%s: %s is not measured", r.args, g.beside)
			}
		}
	}
	for i, r := range rows {
		for _, s := range rows[:i] {
			if r.args == s.args {
				t.Errorf("%s: two rows have this command line", r.args)
			}
		}
	}
}

const results = `# 2026-01-02 03:04 UTC
# 2 processors

$ kumquat bench throughput --peers posix,sysv,unix,pipe,zmq,boost --rounds 5 --target 300ms --json
# zmq: skipped at 64 bytes: g++ is not installed
{"subject":"kumquat","size":64,"priorities":1,"median":9e6,"min":5e6,"max":1e7,"unit":"msg/s","ratio":1,"workload":"throughput","producers":1,"consumers":1}
{"subject":"posix","size":64,"priorities":1,"median":3e5,"min":2e5,"max":4e5,"unit":"msg/s","ratio":30,"workload":"throughput","producers":1,"consumers":1}
{"subject":"boost","size":64,"priorities":1,"median":3e6,"min":3e6,"max":3.1e6,"unit":"msg/s","ratio":2.99,"workload":"throughput","producers":1,"consumers":1}
$ kumquat bench throughput --priorities 8,1000 --peers posix,sysv,unix,pipe,zmq,boost,kumquat-one --rounds 5 --target 300ms --json
{"subject":"kumquat","size":64,"priorities":8,"median":4e6,"min":4e6,"max":4e6,"unit":"msg/s","ratio":1}
{"subject":"pipe","size":64,"priorities":1,"median":2e6,"min":2e6,"max":2e6,"unit":"msg/s","ratio":1.6}
{"subject":"kumquat","size":64,"priorities":1000,"median":4e6,"min":4e6,"max":4e6,"unit":"msg/s","ratio":1}
{"subject":"pipe","size":64,"priorities":1,"median":2e6,"min":2e6,"max":2e6,"unit":"msg/s","ratio":1.4}
$ kumquat bench latency --peers cacheline,futex,posix,sysv,pipe,unix,boost,zmq --rounds 5 --target 300ms --json
{"subject":"kumquat","size":64,"priorities":1,"median":1,"min":1,"max":1,"unit":"us","ratio":1,"mode":"spin"}
{"subject":"cacheline","size":64,"priorities":1,"median":0.2,"min":0.2,"max":0.2,"unit":"us","ratio":0.2,"mode":"spin"}
{"subject":"futex","size":64,"priorities":1,"median":40,"min":40,"max":40,"unit":"us","ratio":40,"mode":"spin"}
{"subject":"kumquat","size":64,"priorities":1,"median":60,"min":60,"max":60,"unit":"us","ratio":1,"mode":"sleep"}
{"subject":"futex","size":64,"priorities":1,"median":50,"min":50,"max":50,"unit":"us","ratio":0.8,"mode":"sleep"}
$ kumquat bench throughput --peers kumquat-message --rounds 5 --target 300ms --json
{"subject":"kumquat","size":64,"priorities":1,"median":8e6,"min":8e6,"max":8e6,"unit":"msg/s","ratio":1,"allocs":0.02}
{"subject":"kumquat-message","size":64,"priorities":1,"median":7e6,"min":7e6,"max":7e6,"unit":"msg/s","ratio":1.143,"allocs":1}
`

func TestTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.txt")
	if err := os.WriteFile(file, []byte(results), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), options{results: file, again: true}, &out, &out); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(out.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	for _, want := range []string{
		"# 2 processors",
		"posix asked ≥ 30× measured 30× reached (posix from 2e+05 to 4e+05 msg/s)",
		"boost asked ≥ 3× measured 2.99× NOT REACHED",
		"zmq asked ≥ 5× measured – not measured",
		"pipe, 8 priorities asked ≥ 1.5× measured 1.6× reached",
		"pipe, 1000 priorities asked ≥ 1.5× measured 1.4× NOT REACHED",
		"cacheline, spin asked ≤ 4.5× its time measured 5× NOT REACHED",
		"futex, sleep asked ≤ 1.3× its time measured 1.25× reached",
		"kumquat-message asked ≥ 0.8× ours measured 0.875× reached",
		"SendBytes, ReceiveInto asked 0 allocations measured 0.02 NOT REACHED",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the table has no line %q", want)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

func TestParse(t *testing.T) {
	again := results + "$ kumquat bench throughput --peers kumquat-message --rounds 1 --json\n"
	got, head, err := parse(strings.NewReader(again))
	if err != nil || len(head) != 2 || len(got) != 4 {
		t.Fatalf("%d commands, head %q, %v", len(got), head, err)
	}
	if n := len(got["throughput --peers kumquat-message"]); n != 0 {
		t.Errorf("of a command that was run twice %d lines of the first run are left", n)
	}
	for _, text := range []string{"{\n", "hello\n"} {
		if _, _, err := parse(strings.NewReader(text)); err == nil {
			t.Errorf("%q was taken for results", text)
		}
	}
}

// The command itself measures one row, and the file holds what somebody needs who wants to do it again.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("KUMQUAT_SHM", t.TempDir())
	program := filepath.Join(t.TempDir(), "kumquat")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/kumquat").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	o := options{kumquat: program, results: filepath.Join(dir, "results.txt"), only: "cacheline", revision: "abc", rounds: 1, target: 2 * time.Millisecond}
	var out, progress bytes.Buffer
	if err := run(t.Context(), o, &out, &progress); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	text, err := os.ReadFile(o.results)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" UTC\n", " processors (", "# kumquat abc, go1", "\n$ kumquat bench latency --peers cacheline,futex,", " --rounds 1 --target 2ms --json\n",
		"\n# cacheline: skipped at 64 bytes, sleep: ", "\n{\"subject\":\"kumquat\",", "\"mode\":\"sleep\""} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q has no %q", text, want)
		}
	}
	if table := out.String(); !strings.HasSuffix(table, ", 0 not measured\n") || !strings.Contains(table, "\n  cacheline, spin ") || !strings.Contains(table, "\n  futex, sleep ") {
		t.Errorf("table %q", table)
	}

	o.kumquat = "false"
	if err := run(t.Context(), o, &out, &progress); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("a failed measurement: %v", err)
	}
	if again, err := os.ReadFile(o.results); err != nil || !bytes.Equal(again, text) {
		t.Errorf("a failed measurement left %q, %v", again, err)
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != 1 {
		t.Errorf("%d files are left, %v", len(es), err)
	}
}
