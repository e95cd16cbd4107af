package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/kumquat-mq/kumquat/driver"
)

// The plots are drawn by a program of a module of its own, bench/plot, so that those who use the library do not get the drawing
// library's modules into their go.sum, and the command stays small.
const (
	plotProgram = "kumquat-plot"
	plotModule  = "github.com/kumquat-mq/kumquat/bench/plot"
	rootModule  = "module github.com/kumquat-mq/kumquat\n"
)

// Plot draws results into file, whose name ends in .svg or .png. It runs kumquat-plot, which it looks for beside this program and
// in the path; failing that it has Go run it, from the source tree around the working folder or from its module.
//
// Errors: those of CheckPlot; those of the program with what it said.
func Plot(ctx context.Context, file string, results []Result) error {
	if err := checkFile(file); err != nil {
		return err
	}
	if len(results) == 0 {
		return errors.New("there is nothing to plot")
	}
	var lines bytes.Buffer
	for _, r := range results {
		if err := json.NewEncoder(&lines).Encode(r); err != nil {
			return err
		}
	}
	file, err := filepath.Abs(file) // it may run in another folder
	if err != nil {
		return err
	}
	args, dir, err := plotter()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, args[0], append(args[1:], file)...)
	cmd.Dir = dir
	cmd.Stdin = &lines
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// CheckPlot returns the error that Plot would fail with before it draws: it is better known before minutes of measuring than after.
// Where Go has to run the program that draws, it loads and builds it now.
//
// Errors: driver.ErrInvalid for a name that ends neither in .svg nor in .png, driver.ErrUnsupported if there is neither the program
// that draws nor a Go that can build it, fs.ErrNotExist if the folder of the file does not exist.
func CheckPlot(ctx context.Context, file string) error {
	if err := checkFile(file); err != nil {
		return err
	}
	args, dir, err := plotter()
	if err != nil || len(args) == 1 {
		return err
	}
	cmd := exec.CommandContext(ctx, args[0], append(args[1:], "--ready")...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w: Go cannot run %s: %s", driver.ErrUnsupported, plotProgram, strings.TrimSpace(string(out)))
	}
	return nil
}

func checkFile(file string) error {
	if !slices.Contains([]string{".svg", ".png"}, strings.ToLower(filepath.Ext(file))) {
		return fmt.Errorf("%w: %s ends neither in .svg nor in .png", driver.ErrInvalid, file)
	}
	_, err := os.Stat(filepath.Dir(file))
	return err
}

// plotter returns the command that draws and the folder to run it in.
func plotter() (args []string, dir string, err error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), plotProgram)
		if _, err := os.Stat(beside); err == nil {
			return []string{beside}, "", nil
		}
	}
	if found, err := exec.LookPath(plotProgram); err == nil {
		return []string{found}, "", nil
	}
	install := fmt.Sprintf("go install %s/%s@latest", plotModule, plotProgram)
	goTool, err := exec.LookPath("go")
	if err != nil {
		return nil, "", fmt.Errorf("%w: plots are drawn by %s, which is neither beside this program nor in the path, nor is Go there to run it (%s)",
			driver.ErrUnsupported, plotProgram, install)
	}
	if dir := sourceTree(); dir != "" {
		return []string{goTool, "run", "./" + plotProgram}, dir, nil
	}
	version := "latest"
	if b, ok := debug.ReadBuildInfo(); ok && strings.HasPrefix(b.Main.Version, "v") && !strings.Contains(b.Main.Version, "+") {
		version = b.Main.Version
	}
	return []string{goTool, "run", plotModule + "/" + plotProgram + "@" + version}, "", nil
}

// sourceTree returns the folder bench/plot of the source tree that the working folder is in.
func sourceTree() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && bytes.HasPrefix(b, []byte(rootModule)) {
			return filepath.Join(dir, "bench", "plot")
		}
		up := filepath.Dir(dir)
		if up == dir {
			return ""
		}
		dir = up
	}
}
