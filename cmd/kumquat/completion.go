package main

import (
	"github.com/spf13/cobra"
)

func completionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script for a shell",
		Long: `Print the script that makes a shell complete commands, flags and the names of queues.

bash needs the package bash-completion; zsh needs compinit.`,
		Example: `  source <(kumquat completion bash)
  kumquat completion bash > /etc/bash_completion.d/kumquat
  kumquat completion zsh > "${fpath[1]}/_kumquat"
  kumquat completion fish > ~/.config/fish/completions/kumquat.fish`,
		ValidArgs: []cobra.Completion{"bash", "zsh", "fish"},
		Args:      cobra.MatchAll(arguments(1, 1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			}
			return root.GenBashCompletionV2(a.out, true)
		},
	}
}
