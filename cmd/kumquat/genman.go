//go:build man

package main

import (
	"fmt"
	"os"

	"github.com/kumquat-mq/kumquat/internal/man"
)

// With the build tag man this program writes the manual pages instead of running a command, so that the shipped binary does not
// carry the generator:
//
//	go run -tags man ./cmd/kumquat docs/man
func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go run -tags man ./cmd/kumquat FOLDER")
		os.Exit(exitUsage)
	}
	pages, err := man.Pages(newRoot(newApp(os.Stdin, os.Stdout, os.Stderr)), exitLines(), environment)
	if err == nil {
		err = man.Write(os.Args[1], pages)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kumquat:", err)
		os.Exit(exitFailure)
	}
}
