package envelope

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/kumquat-mq/kumquat/driver"
)

func TestSeal(t *testing.T) {
	m := full()
	m.Expires = time.Now().Add(time.Hour)
	b, err := Seal(nil, &m, HasType)
	if err != nil {
		t.Fatal(err)
	}
	if m.Attempt != 2 || m.Sender != 4711 {
		t.Error("Seal changed the caller's message")
	}
	got, live, err := Unseal(b)
	if err != nil || !live || got.Sender != os.Getpid() || got.Attempt != 0 || got.ID != "i" || got.Type != 0 || got.Priority != 7 {
		t.Errorf("%+v, %t, %v", got, live, err)
	}
	if d := time.Since(got.Enqueued); d < 0 || d > time.Minute {
		t.Errorf("sent %v ago", d)
	}
	clear(b)
	if string(got.Body) != "body" || got.ID != "i" {
		t.Error("the message lies in the buffer")
	}

	bare := []byte("a C program's")
	got, live, err = Unseal(bare)
	clear(bare)
	if err != nil || !live || string(got.Body) != "a C program's" {
		t.Errorf("%+v, %t, %v", got, live, err)
	}

	m.Expires = time.Now().Add(-time.Nanosecond)
	b, _ = Seal(nil, &m, 0)
	if got, live, err = Unseal(b); err != nil || live || got.ID != "" {
		t.Errorf("an expired one: %+v, %t, %v", got, live, err)
	}

	b[offVersion] = 3
	sent := bytes.Clone(b)
	_, live, err = Unseal(b)
	clear(b)
	if e, ok := AsError(err); !ok || !errors.Is(err, ErrVersion) || !bytes.Equal(e.Data, sent) || !live {
		t.Errorf("a later version: %t, %v", live, err)
	}
	if _, err := Seal(nil, &driver.Message{Type: -1}, 0); !errors.Is(err, driver.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
