package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/kumquat-mq/kumquat/internal/man"
)

// The pages in docs/man are made from the same commands as --help; this finds those that were changed and not made again.
func TestManualIsCurrent(t *testing.T) {
	pages, err := man.Pages(newRoot(newApp(os.Stdin, os.Stdout, os.Stderr)), exitLines(), environment)
	if err != nil {
		t.Fatal(err)
	}
	const dir = "../../docs/man"
	const again = "make them again: go run -tags man ./cmd/kumquat docs/man"
	for name, want := range pages {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%v; %s", err, again)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s differs from --help; %s", name, again)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(pages) {
		t.Errorf("%d files for %d pages; %s", len(files), len(pages), again)
	}
}
