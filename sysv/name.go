package sysv

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat/driver"
)

// idPrefix is for queues that have no key, and for scripts that have an identifier in hand.
const idPrefix = "id:"

// place is what a name of the driver stands for.
type place struct {
	key Key
	id  int // −1: the key counts
}

const nameForms = "System V queues are called 0xKEY (a number that is not 0, in hexadecimal, as ipcs -q shows it), PATH,ID (a file and a number " +
	"from 1 to 255, or one character, as for ftok) or id:IDENTIFIER (the msqid of ipcs -q)"

// parseName reads the three forms of names.
func parseName(name string) (place, error) {
	bad := func(why string) (place, error) {
		return place{}, failure(driver.ErrInvalid, unix.EINVAL, "%q %s; "+nameForms, name, why)
	}
	if digits, ok := strings.CutPrefix(name, "0x"); ok && !strings.Contains(name, ",") {
		n, err := strconv.ParseUint(digits, 16, 32)
		switch {
		case err != nil:
			return bad("is not a hexadecimal number of 32 bits")
		case n == 0:
			return bad("is IPC_PRIVATE, which names no queue")
		}
		return place{Key(int32(uint32(n))), -1}, nil
	}
	if digits, ok := strings.CutPrefix(name, idPrefix); ok {
		n, err := strconv.ParseUint(digits, 10, 31)
		if err != nil {
			return bad("has no identifier")
		}
		return place{Private, int(n)}, nil
	}
	i := strings.LastIndexByte(name, ',')
	if i <= 0 {
		return bad("is not a name")
	}
	file, text := name[:i], name[i+1:]
	if strings.ContainsRune(file, 0) {
		return bad("has a zero byte")
	}
	id, err := strconv.ParseUint(text, 0, 8)
	if err != nil && len(text) == 1 {
		id = uint64(text[0])
	} else if err != nil || id == 0 {
		return bad("has no number from 1 to 255 behind its comma")
	}
	key, err := Ftok(file, int(id))
	if err != nil {
		return place{}, err
	}
	if key == Private {
		return bad("gives the key 0, which is IPC_PRIVATE")
	}
	return place{key, -1}, nil
}

// nameOf returns the name by which the driver opens a queue.
func nameOf(s *Status) string {
	if s.Key == Private {
		return idPrefix + strconv.Itoa(s.ID)
	}
	return s.Key.String()
}

// matcher returns what List is to leave in. A pattern in the form PATH,ID names one queue.
func matcher(pattern string) (func(name string) bool, error) {
	if pattern == "" {
		return func(string) bool { return true }, nil
	}
	if p, err := parseName(pattern); err == nil {
		want := p.key.String()
		if p.id >= 0 {
			want = idPrefix + strconv.Itoa(p.id)
		}
		return func(name string) bool { return name == want }, nil
	}
	pattern = strings.ReplaceAll(pattern, "**", "*") // there are no folders
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, failure(driver.ErrInvalid, unix.EINVAL, "the pattern %q: %v", pattern, err)
	}
	return func(name string) bool {
		ok, _ := path.Match(pattern, name)
		return ok
	}, nil
}

// String returns the state in one line, for messages to people.
func (s Status) String() string {
	return fmt.Sprintf("%s id %d: %d messages, %d of %d bytes, mode %#o, owner %d:%d",
		nameOf(&s), s.ID, s.Messages, s.Bytes, s.QBytes, s.Mode.Perm(), s.UID, s.GID)
}
