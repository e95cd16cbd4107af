// A pipeline: pictures go through folders of queues, and every step is a process of its own.
//
//	camera  →  /images/input  →  validate  →  /images/validated  →  shrink  →  /images/small
//	                                 └─────→  /images/rejected
//
//	go run ./examples/pipeline
//	go run ./examples/pipeline -on posix:
//
// Folders are for people and for patterns: kumquat ls '/images/*' shows the whole pipeline. The kernel's names have no folders
// (mq_open of "/images/input" is EACCES), so with -on posix: the queue is "/images.input".
package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/kumquat-mq/kumquat"
	"github.com/kumquat-mq/kumquat/examples/lab"
)

// What travels is not a picture but its name, width and height: large things are better left in files, with their names in the queue,
// at least on the kernel's queues (8 KiB a message).

func main() {
	lab.Main(map[string]func(context.Context) error{
		"":         parent,
		"camera":   shoot,
		"validate": func(ctx context.Context) error { return step(ctx, validate, "input", "validated", "rejected") },
		"shrink":   func(ctx context.Context) error { return step(ctx, shrink, "validated", "small") },
	})
}

func parent(ctx context.Context) (err error) {
	q := map[string]*kumquat.Queue{}
	for _, name := range []string{"input", "validated", "small", "rejected"} {
		url := lab.Queue("/images/" + name)
		q[name], err = kumquat.Open(ctx, url, &kumquat.Options{Create: true, Exclusive: true, MaxMessages: 2, MaxSize: 256})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, q[name].Close(), kumquat.Remove(context.Background(), url)) }()
	}
	defer lab.Stop()
	for _, role := range []string{"camera", "validate", "shrink"} {
		lab.Start(ctx, role)
	}
	// Both ends are emptied together. To take from one until its end and then from the other would be a deadlock sooner or later:
	// the other one fills up, validate waits for room there, and so nothing arrives at the first any more. For the same reason
	// the camera is a process of its own.
	for ends := 0; ends < 2; {
		from, err := kumquat.Select(ctx, q["small"], q["rejected"])
		if err != nil {
			return err
		}
		m, err := from.TryReceive()
		switch {
		case errors.Is(err, kumquat.ErrEmpty):
		case err != nil:
			return err
		case len(m.Body) == 0:
			ends++
		default:
			fmt.Printf("%s\n", m.Body)
		}
	}
	return nil
}

// shoot sends pictures, and at last an empty message. That is the end: each step hands it on and stops.
func shoot(ctx context.Context) error {
	q, err := kumquat.Open(ctx, lab.Queue("/images/input"), nil)
	if err != nil {
		return err
	}
	defer q.Close()
	for _, p := range []string{"lake.png 800 600", "letter.txt", "tower.png 300 900", "dot.png 1 1", "sea.png 640 480", ""} {
		if err := q.Send(ctx, kumquat.Message{Body: []byte(p)}); err != nil {
			return err
		}
	}
	return nil
}

// step is what all processes of the pipeline do: take from one folder, work, put into another. The queues between the steps are
// short. So a slow step holds up those before it, and nothing piles up.
func step(ctx context.Context, work func(string) (result, folder string, err error), from string, to ...string) error {
	in, err := kumquat.Open(ctx, lab.Queue("/images/"+from), nil)
	if err != nil {
		return err
	}
	defer in.Close()
	out := map[string]*kumquat.Queue{}
	for _, name := range to {
		if out[name], err = kumquat.Open(ctx, lab.Queue("/images/"+name), nil); err != nil {
			return err
		}
		defer out[name].Close()
	}
	for m, err := range in.Messages(ctx) {
		if err != nil {
			return err
		}
		if len(m.Body) == 0 {
			break
		}
		result, folder, err := work(string(m.Body))
		if err != nil {
			return err
		}
		if err := out[folder].Send(ctx, kumquat.Message{Body: []byte(result)}); err != nil {
			return err
		}
	}
	for _, q := range out {
		err = errors.Join(err, q.Send(ctx, kumquat.Message{}))
	}
	return err
}

func validate(p string) (result, folder string, err error) {
	var name string
	var width, height int
	if _, err := fmt.Sscan(p, &name, &width, &height); err != nil {
		return "rejected: " + p + " is no picture", "rejected", nil
	}
	if width < 2 || height < 2 {
		return "rejected: " + name + " is too small to be made smaller", "rejected", nil
	}
	return p, "validated", nil
}

func shrink(p string) (result, folder string, err error) {
	var name string
	var width, height int
	_, err = fmt.Sscan(p, &name, &width, &height)
	return fmt.Sprintf("small: %s %d × %d", name, width/2, height/2), "small", err
}
