package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// helpCommand stands in for cobra's own, which takes an unknown command for no error.
func helpCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		Long:  "Show the help of a command, as COMMAND --help does, or the list of commands.",
		Args:  arguments(0, 1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
			for _, c := range cmd.Root().Commands() {
				if len(args) == 0 && c.IsAvailableCommand() {
					names = append(names, cobra.CompletionWithDesc(c.Name(), c.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0]), cmd.Root().Name()}
			}
			c.InitDefaultHelpFlag() // --help shows it too
			return c.Help()
		},
	}
}
