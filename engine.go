package kumquat

import (
	"github.com/kumquat-mq/kumquat/driver"
	"github.com/kumquat-mq/kumquat/shm"
)

// engineScheme is the engine's own; names that begin with '/' need none.
const engineScheme = "shm"

type engineQueue = shm.Queue

var engine driver.Driver = shm.Driver{}
