package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by releases (-ldflags "-X main.version=v1.2.3"); else the build information tells.
var version = ""

func versionText() string {
	v := version
	if info, ok := debug.ReadBuildInfo(); v == "" && ok {
		v = info.Main.Version
	}
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	return v
}

func versionCommand(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:               "version [flags]",
		Short:             "Print the version",
		Long:              "Print the version of this program, of the Go that built it, and what it was built for.",
		Args:              arguments(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one line of JSON")
	c.RunE = func(*cobra.Command, []string) error {
		if asJSON {
			a.out.Write(line(map[string]string{"version": versionText(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH}))
			return nil
		}
		fmt.Fprintf(a.out, "kumquat %s %s %s/%s\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return nil
	}
	return c
}
