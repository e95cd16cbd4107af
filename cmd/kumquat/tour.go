package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat/tour"
)

func tourCommand(a *app) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "tour [FOLDER] [flags]",
		Short: "Show on the files of a folder what a queue does, and prove it",
		Long: `Send the files of a folder (the current one by default) from real producer processes to real consumers, with priorities by their kind;
kill one consumer and stop another in the middle; then prove that every file arrived exactly once, whole and in order.

Regular files are sent, hidden ones too; links are not followed, and nothing in the folder is changed. It says each step in a line
and leaves no queue and no process behind. The exit code is 1 if anything is off.`,
		Example: `  kumquat tour
  kumquat tour ~/photos`,
		Args: arguments(0, 1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print each step as one line of JSON")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		// Not a.out: after a write error that would fail for ever, and the tour goes on without a reader.
		o := tour.Options{Out: a.file, JSON: asJSON}
		if len(args) == 1 {
			o.Folder = args[0]
		}
		err := tour.Run(cmd.Context(), o)
		if errors.Is(err, context.Canceled) {
			// The tour listens to the signals itself and may be back before our context has heard of the one that ended it.
			select {
			case <-cmd.Context().Done():
			case <-time.After(time.Second):
			}
		}
		return err
	}
	return c
}
