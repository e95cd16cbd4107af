package envelope

import (
	"bytes"
	"os"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

// Seal appends m in an envelope to b as a driver sends it: with the time, to a millisecond, and this process as the Sender, and
// without what only the receiving side may say. Errors as for Append.
func Seal(b []byte, m *driver.Message, has Carrier) ([]byte, error) {
	own := *m
	own.Enqueued, own.Attempt, own.Sender = time.Now().Truncate(time.Millisecond), 0, os.Getpid()
	return Append(b, &own, has)
}

// Unseal reads what a driver received: an envelope, or the bare body of a sender who knows none. The message keeps nothing of b. live
// is false for a message that has expired, which must not be delivered. The error is an *Error with a copy of b.
func Unseal(b []byte) (m driver.Message, live bool, err error) {
	if !Is(b) {
		return driver.Message{Body: bytes.Clone(b)}, true, nil
	}
	if m, err = Parse(b); err != nil {
		e, _ := AsError(err)
		e.Data = bytes.Clone(b)
		return driver.Message{}, true, e
	}
	if !m.Expires.IsZero() && !time.Now().Before(m.Expires) {
		return driver.Message{}, false, nil
	}
	m.Body = bytes.Clone(m.Body)
	return m, true, nil
}
