// Package kumquat has message queues for the processes of a Linux machine.
//
// A [Queue] carries [Message] values between unrelated processes: many senders, many receivers, highest priority first, first in
// first out among equals. [Open] takes its name. "/orders" is a queue of the embedded engine, a file in shared memory that needs no
// daemon; "scheme:rest" is a queue of another driver that the program has registered.
//
//	q, err := kumquat.Open(ctx, "/orders", &kumquat.Options{Create: true})
//	if err != nil {
//		return err
//	}
//	defer q.Close()
//	if err := q.Send(ctx, kumquat.Message{Body: []byte("two pears"), Priority: kumquat.High}); err != nil {
//		return err
//	}
//	m, err := q.Receive(ctx) // waits for a message; ctx bounds the wait
//	if err != nil {
//		return err
//	}
//	fmt.Printf("%s\n", m.Body)
//
// # What it promises
//
// Order: a message of higher priority is received before one of lower priority; among equals the one sent first, over all senders.
// A message is in the queue when its Send has returned nil, wholly or not at all; a batch is there with all its messages or none.
// Receive takes a message away: it is delivered at most once, and a receiver that dies after Receive takes its message with it.
// Processes may be killed or stopped at any instruction: the others go on, and what was acknowledged is kept. Memory queues do not
// survive a reboot.
//
// # What to know
//
// A context bounds waiting only: a call that need not wait succeeds, even if its context is done. A call that returns the error of
// its context has done nothing: the message was not sent, no message was taken. A passed deadline gives [ErrTimeout], a
// cancellation context.Canceled.
//
// A Queue may be used by many goroutines at once; a [Reservation] and a [Loan] belong to one. Close wakes those who wait. Who can
// open a queue decides its mode, 0600 unless Options.Mode says otherwise. Those who may write to it can harm its messages, not its
// users: they get [ErrCorrupt]. What messages and participants say of themselves (Sender, Who) is not verified.
//
// What a driver cannot do returns [ErrUnsupported]; [Queue.Can] tells beforehand.
package kumquat

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/kumquat-mq/kumquat/driver"
)

var registry = struct {
	sync.RWMutex
	m map[string]driver.Driver
}{m: map[string]driver.Driver{engineScheme: engine}}

// Register makes a driver available to Open, Remove and List under scheme, as in "scheme:rest". A scheme is a lower case letter
// followed by lower case letters, digits, '+', '-' and '.'. Register panics if scheme is malformed or taken, or d is nil.
func Register(scheme string, d driver.Driver) {
	if !isScheme(scheme) {
		panic(fmt.Sprintf("kumquat: Register: %q is not a scheme", scheme))
	}
	if d == nil {
		panic("kumquat: Register: the driver of " + scheme + " is nil")
	}
	registry.Lock()
	defer registry.Unlock()
	if _, taken := registry.m[scheme]; taken {
		panic("kumquat: Register: the scheme " + scheme + " is taken")
	}
	registry.m[scheme] = d
}

// Schemes returns the registered schemes, sorted. "shm" is the engine: "shm:/orders" is "/orders".
func Schemes() []string {
	registry.RLock()
	defer registry.RUnlock()
	s := make([]string, 0, len(registry.m))
	for k := range registry.m {
		s = append(s, k)
	}
	slices.Sort(s)
	return s
}

func isScheme(s string) bool {
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || i > 0 && ('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.') {
			continue
		}
		return false
	}
	return s != ""
}

// address is a URL taken apart.
type address struct {
	driver driver.Driver
	scheme string
	prefix string // what the driver's names lack to be URLs
	name   string // as the driver knows it
}

func resolve(url string) (address, error) {
	if strings.HasPrefix(url, "/") {
		return address{engine, engineScheme, "", url}, nil
	}
	scheme, rest, found := strings.Cut(url, ":")
	if !found || !isScheme(scheme) {
		return address{}, invalid("%q is not a queue: names begin with '/' (an engine queue) or with a scheme and ':'; the schemes are %s",
			url, strings.Join(Schemes(), ", "))
	}
	registry.RLock()
	d := registry.m[scheme]
	registry.RUnlock()
	if d == nil {
		return address{}, invalid("no driver has the scheme %q; the schemes are %s", scheme, strings.Join(Schemes(), ", "))
	}
	if scheme == engineScheme {
		return address{d, scheme, "", rest}, nil
	}
	return address{d, scheme, scheme + ":", rest}, nil
}

// Open opens the queue that url names; with o.Create it creates it if it is not there. A nil o opens an existing queue for sending
// and receiving.
//
// Errors: ErrInvalid (name, options, unknown scheme), ErrNotFound, ErrExists, ErrPermission, ErrLimit, ErrNoSpace, ErrCorrupt,
// ErrUnsupported (an option that the driver cannot honour).
func Open(ctx context.Context, url string, o *Options) (*Queue, error) {
	const op = "open"
	if ctx == nil {
		return nil, &Error{op, url, errNilContext}
	}
	a, err := resolve(url)
	if err != nil {
		return nil, &Error{op, url, err}
	}
	var own Options // the driver gets a copy, so that the caller may change his
	if o != nil {
		own = *o
	}
	if err := checkOptions(&own); err != nil {
		return nil, &Error{op, url, err}
	}
	d, err := a.driver.Open(ctx, a.name, &own)
	if err != nil {
		return nil, &Error{op, url, err}
	}
	return newQueue(d, a), nil
}

// Remove removes the queue that url names. Its messages are gone; those who wait on it get ErrRemoved, as does every later call on
// a handle that has it open. (A queue that cannot do Revoking lives on for those who have it open.) A queue created afterwards under
// the same name is another one.
//
// Errors: ErrNotFound, ErrPermission, ErrInvalid, ErrUnsupported.
func Remove(ctx context.Context, url string) error {
	const op = "remove"
	if ctx == nil {
		return &Error{op, url, errNilContext}
	}
	a, err := resolve(url)
	if err == nil {
		err = a.driver.Remove(ctx, a.name)
	}
	if err != nil {
		return &Error{op, url, err}
	}
	return nil
}

// List returns the queues whose name matches pattern, sorted by name. A pattern is a name in which '*' stands for any part of one
// folder or last name, '?' for a character, "[a-z]" for a range and "**" for any number of folders. It may carry a scheme
// ("posix:/*"); the empty pattern means all queues of the engine, a scheme with nothing behind it all queues of that driver.
// Queues that may not be read are listed with Info.Err set.
func List(ctx context.Context, pattern string) ([]Info, error) {
	const op = "list"
	if ctx == nil {
		return nil, &Error{op, pattern, errNilContext}
	}
	a := address{driver: engine}
	if pattern != "" {
		var err error
		if a, err = resolve(pattern); err != nil {
			return nil, &Error{op, pattern, err}
		}
	}
	list, err := a.driver.List(ctx, a.name)
	if err != nil {
		return nil, &Error{op, pattern, err}
	}
	for i := range list {
		list[i].Name = a.prefix + list[i].Name
	}
	return list, nil
}
