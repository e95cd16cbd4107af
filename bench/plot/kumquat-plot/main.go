// Kumquat-plot draws what kumquat bench --json prints: kumquat bench latency --json | kumquat-plot latency.svg
package main

import (
	"fmt"
	"os"

	"github.com/kumquat-mq/kumquat/bench/plot"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: kumquat bench WORKLOAD --json | kumquat-plot FILE.svg|FILE.png")
		os.Exit(2)
	}
	if os.Args[1] == "--ready" {
		return // who asks wants to know whether this program can be built
	}
	results, err := plot.Read(os.Stdin)
	if err == nil {
		err = plot.Draw(os.Args[1], results)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "kumquat-plot: %v\n", err)
		os.Exit(1)
	}
}
