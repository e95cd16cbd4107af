package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
)

// confirm asks before something is destroyed, where a person can answer: standard input and output are terminals. Elsewhere, and
// with yes, it agrees.
func (a *app) confirm(ctx context.Context, yes bool, question string) (bool, error) {
	if yes || !a.inTerm || !a.outTerm {
		return true, nil
	}
	fmt.Fprintf(a.out, "%s [y/N] ", escape(question))
	if err := a.out.Flush(); err != nil {
		return false, err
	}
	in, err := newInput(ctx, a.in)
	if err != nil {
		return false, err
	}
	defer in.Close()
	answer, err := bufio.NewReader(in).ReadString('\n')
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		fmt.Fprintln(a.out)
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true, nil
	}
	return false, nil
}

// declined ends a command that was not confirmed.
func (a *app) declined() error {
	fmt.Fprintln(a.err, "kumquat: nothing was done")
	return quietError{exitFailure}
}
