package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

// queueNames completes the names of queues for the first n arguments, all of them if n is below 0.
func queueNames(n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if n >= 0 && len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		// A person waits at the prompt.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		kinds := kindNames
		if strings.HasPrefix(toComplete, "/") {
			kinds = kinds[:1]
		}
		var infos []kumquat.Info
		for _, kind := range kinds {
			some, err := kumquat.List(ctx, address[kind]) // what cannot be listed is not offered
			if err == nil {
				infos = append(infos, some...)
			}
		}
		var names []cobra.Completion
		for _, info := range infos {
			// What would break the line of the shell cannot be offered.
			if !strings.HasPrefix(info.Name, toComplete) || escape(info.Name) != info.Name {
				continue
			}
			text := "not readable"
			if info.Err == nil {
				text = fmt.Sprintf("%d of %d messages", info.Messages, info.MaxMessages)
				if kindOf(info.Name) == sysvKind {
					text = plural(info.Messages, "message")
				}
			}
			names = append(names, cobra.CompletionWithDesc(info.Name, text))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func completeWords(c *cobra.Command, flag string, words ...string) {
	must(c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)))
}

func completeBands(c *cobra.Command, flag string) { completeWords(c, flag, bands...) }

// must is for what fails only if the program is wrong: a flag of another name.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
