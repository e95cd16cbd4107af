package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// hostNotes says what about this machine endangers the queue that s describes.
func hostNotes(s *kumquat.Stats) []string {
	var notes []string
	if s.Path == "" {
		return nil
	}
	dir := filepath.Dir(s.Path)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil && fs.Type != unix.TMPFS_MAGIC && s.Durability == kumquat.Memory {
		notes = append(notes, fmt.Sprintf("%s is not a file system in memory (tmpfs): the queues there are slow, and other processes may look for theirs in /dev/shm", dir))
	}
	if n := removeIPCNote("/", s.UID, userName(s.UID)); n != "" && strings.HasPrefix(dir, "/dev/shm") {
		notes = append(notes, n)
	}
	return notes
}

// firstOrdinaryUID is where systemd's ordinary users begin; what those of the system own is not removed at a logout.
const firstOrdinaryUID = 1000

// removeIPCNote says so if systemd-logind removes what user uid has in /dev/shm at his last logout: it does by default, for
// ordinary users without lingering. root is the folder that holds the system's files.
func removeIPCNote(root string, uid int, name string) string {
	if uid < firstOrdinaryUID || !exists(filepath.Join(root, "run/systemd/system")) || exists(filepath.Join(root, "var/lib/systemd/linger", name)) {
		return ""
	}
	conf := []string{filepath.Join(root, "etc/systemd/logind.conf")}
	for _, d := range []string{"usr/lib/systemd/logind.conf.d", "etc/systemd/logind.conf.d"} {
		more, _ := filepath.Glob(filepath.Join(root, d, "*.conf")) // the pattern is well formed
		conf = append(conf, more...)
	}
	removes := true
	for _, f := range conf {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for l := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(l), "RemoveIPC="); ok {
				switch strings.ToLower(strings.TrimSpace(v)) {
				case "no", "false", "off", "0":
					removes = false
				default:
					removes = true
				}
			}
		}
	}
	if !removes {
		return ""
	}
	return fmt.Sprintf("systemd removes the queues of %s at its last logout (RemoveIPC); against it: loginctl enable-linger %s", name, shellWord(name))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
