package bench

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

//go:embed testdata/peers.cpp
var nativeSource []byte

// nativeFlags are those of a release: without NDEBUG Boost's assertions would cost it a few percent.
var nativeFlags = []string{"-O2", "-DNDEBUG", "-std=c++17", "-pthread"}

// nativePeer returns the program that is the subject's peer; it compiles it unless the user's cache has it.
func nativePeer(ctx context.Context, subject string) (string, error) {
	n := native{name: subject, source: nativeSource, suffix: ".cpp", compiler: "g++", flags: append(slices.Clone(nativeFlags), "-DPEER_BOOST"), needs: "libboost-dev"}
	if subject == "zmq" {
		n.flags, n.libraries, n.needs = append(slices.Clone(nativeFlags), "-DPEER_ZMQ"), []string{"-lzmq"}, "libzmq3-dev"
	}
	return n.program(ctx)
}

// bindingPeer returns the program with the loops in C.
func bindingPeer(ctx context.Context) (string, error) {
	n := native{name: "binding", source: bindingSource, suffix: ".c", compiler: "gcc", flags: []string{"-O2", "-DNDEBUG", "-Wall", "-Wextra"}, libraries: []string{"-lrt"}, needs: "libc6-dev"}
	return n.program(ctx)
}

// native is a program that is compiled when it is first needed.
type native struct {
	name, suffix, compiler string
	source                 []byte
	flags, libraries       []string
	needs                  string // package that has its headers
}

func (n *native) program(ctx context.Context) (string, error) {
	version := sha256.New()
	version.Write(n.source)
	fmt.Fprint(version, n.flags)
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "kumquat")
	name := filepath.Join(dir, fmt.Sprintf("bench-%s-%x", n.name, version.Sum(nil)[:8]))
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	compiler, err := exec.LookPath(n.compiler)
	if err != nil {
		return "", fmt.Errorf("%s is not installed (apt-get install %s)", n.compiler, n.compiler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	source, err := os.CreateTemp(dir, "peers-*"+n.suffix)
	if err != nil {
		return "", err
	}
	defer os.Remove(source.Name())
	if _, err := source.Write(n.source); err != nil {
		return "", err
	}
	if err := source.Close(); err != nil {
		return "", err
	}
	made := source.Name() + ".out"
	defer os.Remove(made)
	args := append(slices.Clone(n.flags), source.Name(), "-o", made)
	if out, err := exec.CommandContext(ctx, compiler, append(args, n.libraries...)...).CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("%s cannot compile its program (apt-get install %s): %s", n.compiler, n.needs, firstLine(string(out)))
	}
	return name, os.Rename(made, name)
}
