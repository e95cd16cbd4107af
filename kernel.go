package kumquat

import (
	"github.com/kumquat-mq/kumquat/posix"
	"github.com/kumquat-mq/kumquat/sysv"
)

// The kernel's own queues need no import by the program: they are on every machine that Kumquat runs on.
func init() {
	Register("posix", posix.Driver())
	Register("sysv", sysv.Driver())
	Register("sysv+priority", sysv.PriorityDriver())
}
