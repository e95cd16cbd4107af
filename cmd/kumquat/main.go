//go:build !man

// Kumquat is the command of the message queues of package kumquat: it makes, fills, empties, watches and checks them.
//
// Each command is one file with its flags and its help; what is more than a shell stands in files of its own: reading input
// (input.go, lines.go), sending (sender.go), receiving (receiver.go, sink.go), printing (table.go, json.go, escape.go).
// The same tree of commands makes --help, the completion and, with the build tag man, the manual pages.
package main

import (
	"os"

	"github.com/kumquat-mq/kumquat/tour"
)

func main() {
	// The tour starts this binary again for its producers and consumers; such a process does not come back from here.
	tour.Child()
	os.Exit(runMain(os.Args[1:]))
}
