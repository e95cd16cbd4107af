package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// nobody is a user that owns nothing here.
const nobody = 65534

// asNobody runs the command as another user.
func asNobody(t *testing.T, bin, dir string, args ...string) *running {
	t.Helper()
	c := exec.Command(bin, args...)
	c.Env = append(os.Environ(), "KUMQUAT_SHM="+dir)
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return start(t, c)
}

func TestOtherUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	bin, dir := binary(t), privateShm(t)
	if err := os.Chmod(dir, os.ModeSticky|0o777); err != nil { // as /dev/shm
		t.Fatal(err)
	}
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	mustRun(t, dir, "create", "/private")
	mustRun(t, dir, "create", "/open", "--mode", "0666")
	mustRun(t, dir, "create", "/shown", "--mode", "0644")
	for _, n := range []string{"/private", "/open", "/shown"} {
		mustRun(t, dir, "send", n, "x")
	}
	const hint = "(?s)kumquat: .*permission denied.*\n  kumquat ls /[a-z]+ shows its owner and mode\n"
	for _, args := range [][]string{
		{"send", "/private", "x"}, {"recv", "/private"}, {"peek", "/private"}, {"stat", "/private"}, {"who", "/private"},
		{"check", "/private"}, {"watch", "/private"}, {"purge", "/private"},
		{"send", "/shown", "x"}, {"recv", "/shown"}, {"purge", "/shown"},
	} {
		asNobody(t, bin, dir, args...).ends(exitPermission, hint)
	}
	asNobody(t, bin, dir, "rm", "/open").ends(exitPermission, "(?s)kumquat: .*permission denied.*")

	// Those who may read may look on.
	for _, args := range [][]string{{"peek", "/shown"}, {"stat", "/shown"}, {"who", "/shown"}, {"check", "/shown"}, {"watch", "/shown", "-n", "1"}} {
		r := asNobody(t, bin, dir, args...)
		if args[0] == "watch" {
			awaitEvent(t, r, dir)
		}
		r.ends(0, "")
	}
	asNobody(t, bin, dir, "send", "/open", "y").ends(0, "")
	asNobody(t, bin, dir, "recv", "/open", "-n", "2").ends(0, "")

	// All of them are listed, and all are checked.
	r := asNobody(t, bin, dir, "ls")
	r.ends(0, "kumquat: /private: .*permission denied.*\n")
	if !strings.Contains(r.out.String(), "/private  ?") || !strings.Contains(r.out.String(), "/shown") {
		t.Errorf("ls: %q", &r.out)
	}
	r = asNobody(t, bin, dir, "check")
	r.ends(exitPermission, "")
	if !strings.Contains(r.out.String(), "/shown: sound") || !strings.Contains(r.out.String(), "/private: not sound: ") {
		t.Errorf("check: %q", &r.out)
	}
}

// awaitEvent sends until the watcher has ended, since nothing shows from outside that it has begun.
func awaitEvent(t *testing.T, r *running, dir string) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.cmd.Wait()
	}()
	for {
		select {
		case <-ended:
			return
		default:
			mustRun(t, dir, "send", "/shown", "again")
		}
	}
}

func TestNoSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m,mode=1777"); err != nil {
		t.Skipf("no right to mount a small file system: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	mustRun(t, dir, "create", "/q", "--max-size", "64KiB")
	body := strings.Repeat("x", 60000)
	c := command(t, dir, "send", "/q", "--lines")
	c.Stdin = strings.NewReader(strings.Repeat(body+"\n", 100))
	start(t, c).ends(exitFull, "(?s)kumquat: [0-9]+ messages sent: .*no space.*")
	mustRun(t, dir, "recv", "/q", "-n", "3")
	mustRun(t, dir, "send", "/q", "there is room again")
	r := start(t, command(t, dir, "recv", "/q", "--dump", filepath.Join(dir, "out"), "-n", "100"))
	r.ends(exitFailure, "(?s)kumquat: .*no space left on device.*")
}
