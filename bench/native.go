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
	flags, library := append(slices.Clone(nativeFlags), "-DPEER_BOOST"), "libboost-dev"
	if subject == "zmq" {
		flags, library = append(slices.Clone(nativeFlags), "-DPEER_ZMQ"), "libzmq3-dev"
	}
	version := sha256.New()
	version.Write(nativeSource)
	fmt.Fprint(version, flags)
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "kumquat")
	name := filepath.Join(dir, fmt.Sprintf("bench-%s-%x", subject, version.Sum(nil)[:8]))
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	compiler, err := exec.LookPath("g++")
	if err != nil {
		return "", fmt.Errorf("g++ is not installed (apt-get install g++)")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	source, err := os.CreateTemp(dir, "peers-*.cpp")
	if err != nil {
		return "", err
	}
	defer os.Remove(source.Name())
	if _, err := source.Write(nativeSource); err != nil {
		return "", err
	}
	if err := source.Close(); err != nil {
		return "", err
	}
	made := source.Name() + ".out"
	defer os.Remove(made)
	args := append(flags, source.Name(), "-o", made)
	if subject == "zmq" {
		args = append(args, "-lzmq")
	}
	if out, err := exec.CommandContext(ctx, compiler, args...).CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("g++ cannot compile its program (apt-get install %s): %s", library, firstLine(string(out)))
	}
	return name, os.Rename(made, name)
}
