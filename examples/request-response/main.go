// Request-response: a server answers the questions of its clients. The questions go through one queue that all know; every client
// has a queue of its own for the answers.
//
//	go run ./examples/request-response                   a server and two clients
//	go run ./examples/request-response -role server      only the server, until Ctrl-C; then, in other terminals:
//	go run ./examples/request-response -role client
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

// The kernel's queues carry a body and nothing else, so what an answer needs to find its way travels in it: a question is "client,
// number, text", an answer "number, text". (The engine has Message.ReplyTo and Message.CorrelationID for that.) The client is
// a process id; the server makes the name of the queue of it, so that a client cannot have its answer sent to any other queue.
func requests() string          { return lab.Queue("/example/questions") }
func answers(client int) string { return lab.Queue(fmt.Sprintf("/example/answers/%d", client)) }

func main() {
	lab.Main(map[string]func(context.Context) error{
		"":       func(ctx context.Context) error { return serve(ctx, "1", "2") },
		"server": func(ctx context.Context) error { return serve(ctx) },
		"client": ask,
	})
}

// create creates a queue and returns with it what closes and removes it.
func create(ctx context.Context, url string) (*kumquat.Queue, func() error, error) {
	q, err := kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 8, MaxSize: 512})
	return q, func() error { return errors.Join(q.Close(), kumquat.Remove(context.Background(), url)) }, err
}

func serve(ctx context.Context, clients ...string) (err error) {
	q, remove, err := create(ctx, requests())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	defer lab.Stop()
	fmt.Println("server: waiting for questions")
	open, closeUp := context.WithCancel(ctx)
	defer closeUp()
	if len(clients) > 0 {
		var all []*lab.Process
		for _, c := range clients {
			all = append(all, lab.Start(ctx, "client", c))
		}
		go func() { // when the last client has left, the shop is closed
			for _, p := range all {
				if p.Wait() != nil { // ctx is done
					return
				}
			}
			closeUp()
		}()
	}
	for count := 0; ; count++ {
		m, err := q.Receive(open)
		if open.Err() != nil && ctx.Err() == nil {
			fmt.Printf("server: %d questions answered\n", count)
			return nil
		}
		if err != nil {
			return err
		}
		if err := reply(ctx, m.Body); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err) // one bad client must not end the server
		}
	}
}

func reply(ctx context.Context, body []byte) error {
	var client, number int
	var text string
	if _, err := fmt.Sscanf(string(body), "%d %d %q", &client, &number, &text); err != nil {
		return err
	}
	q, err := kumquat.Open(ctx, answers(client), nil) // ErrNotFound: the client has left
	if err != nil {
		return err
	}
	m := kumquat.Message{Body: fmt.Appendf(nil, "%d %q", number, strings.ToUpper(text))}
	return errors.Join(q.TrySend(m), q.Close()) // Try: a client that does not read must not stop the server
}

func ask(ctx context.Context) (err error) {
	mine, remove, err := create(ctx, answers(os.Getpid()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	server, err := kumquat.Open(ctx, requests(), nil)
	if err != nil {
		return err
	}
	defer server.Close()
	for i, text := range []string{"how are you?", "what time is it?", "good-bye"} {
		// Without a deadline a client would wait for ever for a server that has died.
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := server.Send(ctx, kumquat.Message{Body: fmt.Appendf(nil, "%d %d %q", os.Getpid(), i+1, text)}); err != nil {
			return err
		}
		answer := ""
		for number := 0; number != i+1; { // the answer to an older question, given up meanwhile, would be passed over
			m, err := mine.Receive(ctx)
			if err != nil {
				return err
			}
			if _, err := fmt.Sscanf(string(m.Body), "%d %q", &number, &answer); err != nil {
				return err
			}
		}
		fmt.Printf("client %s: %s %s\n", cmp.Or(flag.Arg(0), fmt.Sprint(os.Getpid())), text, answer)
	}
	return nil
}
