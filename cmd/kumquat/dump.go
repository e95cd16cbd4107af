package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kumquat-mq/kumquat"
)

// dumpSink writes each message into a file of its own.
type dumpSink struct {
	a    *app
	dir  string
	next int
	out  int
}

// newDump makes the folder and tries it, before a message is taken that then could not be written.
func newDump(a *app, dir string) (*dumpSink, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, ".kumquat-*")
	if err != nil {
		return nil, err
	}
	f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	return &dumpSink{a: a, dir: dir, next: 1}, nil
}

// write makes the file of the next number that is free. What could not be written whole stays: it is the only copy.
func (d *dumpSink) write(m *kumquat.Message) error {
	for {
		name := filepath.Join(d.dir, fmt.Sprintf("%06d", d.next))
		d.next++
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		_, err = f.Write(m.Body)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("%w (what fitted is left there)", err)
		}
		d.out++
		fmt.Fprintln(d.a.out, escape(name))
		return nil
	}
}

func (d *dumpSink) flush() error { return d.a.out.Flush() }
func (d *dumpSink) done() int    { return d.out }
func (d *dumpSink) batch() int   { return 1 }
