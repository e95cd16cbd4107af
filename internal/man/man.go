// Package man makes the manual pages from the tree of commands, the same that makes --help. It is no part of the shipped binary.
package man

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// date stands on the pages: it changes with the commands, not with the day on which the pages are made.
var date = time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)

// Pages returns the pages of root and of all commands under it, by the name of their file (kumquat-send.1). exits and environment
// are shown on each, as rows of a word and what it means.
func Pages(root *cobra.Command, exits, environment [][2]string) (map[string][]byte, error) {
	pages := map[string][]byte{}
	var walk func(c *cobra.Command) error
	walk = func(c *cobra.Command) error {
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
				if err := walk(sub); err != nil {
					return err
				}
			}
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-")
		var b bytes.Buffer
		day := date // GenMan writes into the header
		err := doc.GenMan(c, &doc.GenManHeader{Title: strings.ToUpper(name), Section: "1", Date: &day, Source: "Kumquat", Manual: "Kumquat"}, &b)
		if err != nil {
			return fmt.Errorf("page of %s: %w", name, err)
		}
		pages[name+".1"] = insert(b.Bytes(), rows("EXIT STATUS", exits)+rows("ENVIRONMENT", environment))
		return nil
	}
	return pages, walk(root)
}

// rows is a section of the manual, a row for each word.
func rows(title string, list [][2]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".SH %s\n", title)
	for _, r := range list {
		fmt.Fprintf(&b, ".TP\n\\fB%s\\fP\n%s\n", r[0], strings.ReplaceAll(r[1], `\`, `\e`))
	}
	return b.String()
}

// insert puts section where the conventions have it: before the examples.
func insert(page []byte, section string) []byte {
	at := len(page)
	for _, title := range []string{".SH EXAMPLE\n", ".SH SEE ALSO\n"} {
		if i := bytes.Index(page, []byte(title)); i >= 0 && i < at {
			at = i
		}
	}
	return bytes.Join([][]byte{page[:at], []byte(section), page[at:]}, nil)
}

// Write writes the pages into dir, which it makes if need be, and removes pages there that are no longer made.
func Write(dir string, pages map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "kumquat*.1"))
	if err != nil {
		return err
	}
	for _, f := range old {
		if _, stays := pages[filepath.Base(f)]; !stays {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
	}
	for name, page := range pages {
		if err := os.WriteFile(filepath.Join(dir, name), page, 0o644); err != nil {
			return err
		}
	}
	return nil
}
