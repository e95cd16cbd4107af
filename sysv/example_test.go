package sysv_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/kumquat-mq/kumquat/sysv"
)

// A queue that belongs to a file, as ftok(3) makes it, with two kinds of messages.
func ExampleGet() {
	key, err := sysv.Ftok(os.TempDir(), 'K')
	if err != nil {
		fmt.Println(err)
		return
	}
	q, err := sysv.Get(key, sysv.Create|sysv.Exclusive, 0o600)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer q.Close()
	defer q.Remove()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for typ, body := range map[int64]string{1: "two pears", 2: "an invoice"} {
		if err := q.Send(ctx, typ, []byte(body), 0); err != nil {
			fmt.Println(err)
			return
		}
	}
	buf := make([]byte, 8192)
	for _, typ := range []int64{2, 0} { // the first of type 2, then the first of all
		n, got, err := q.Receive(ctx, buf, typ, 0)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("type %d: %s\n", got, buf[:n])
	}
	_, _, err = q.Receive(ctx, buf, 0, sysv.NoWait)
	fmt.Println(err)
	// Output:
	// type 2: an invoice
	// type 1: two pears
	// queue empty
}
