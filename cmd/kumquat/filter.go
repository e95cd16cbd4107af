package main

import (
	"github.com/spf13/cobra"

	"github.com/kumquat-mq/kumquat"
)

// filterFlags are the flags that select messages.
type filterFlags struct {
	typ, atMost, not typeValue
	minPriority      priorityValue
	key              string
}

func (f *filterFlags) add(c *cobra.Command) {
	fs := c.Flags()
	fs.Var(&f.typ, "type", "only messages of this type")
	fs.Var(&f.atMost, "at-most", "only types up to this one, the lowest first")
	fs.Var(&f.not, "not", "any type but this one")
	fs.Var(&f.minPriority, "min-priority", "only this priority or higher")
	fs.StringVar(&f.key, "key", "", "only messages of this key")
	completeBands(c, "min-priority")
	c.MarkFlagsMutuallyExclusive("type", "at-most")
	c.MarkFlagsMutuallyExclusive("type", "not")
}

func (f *filterFlags) filter() kumquat.Filter {
	return kumquat.Filter{Type: int64(f.typ), TypeAtMost: int64(f.atMost), NotType: int64(f.not), MinPriority: int(f.minPriority), Key: f.key}
}
