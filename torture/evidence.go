package torture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// keep copies the queue's file and the records of a failed round to a new folder, and returns its name.
func (r *round) keep(dir string, why error) string {
	to, err := os.MkdirTemp(dir, "kumquat-torture-")
	if err != nil {
		return err.Error()
	}
	err = os.WriteFile(filepath.Join(to, "finding.txt"), []byte(why.Error()+"\n"), 0o600)
	files, _ := filepath.Glob(filepath.Join(r.dir, "*"))
	if r.file != nil {
		files = append(files, r.file.Name())
	}
	for _, f := range files {
		err = errors.Join(err, copySparse(f, filepath.Join(to, filepath.Base(f))))
	}
	if err != nil {
		return fmt.Sprintf("%s (not all: %v)", to, err)
	}
	return to
}

// copySparse copies what of a file is not holes, at most keepMost bytes of it.
func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for at, left := int64(0), int64(keepMost); left > 0; {
		at, err = in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := in.Seek(at, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		n := min(end-at, left)
		if _, err := io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(in, at, n)); err != nil {
			return err
		}
		at, left = end, left-n
	}
	return nil
}

const keepMost = 256 << 20
