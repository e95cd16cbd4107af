package tour

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kumquat-mq/kumquat"
)

// kind is what a file is, by its name, and the priority that gives it.
type kind struct {
	name     string // of the band
	priority int
	what     string
	names    []string // whole names, in lower case
	exts     []string // with the dot, in lower case
}

var kinds = []kind{
	{"critical", kumquat.Critical, "what builds it",
		[]string{"makefile", "gnumakefile", "dockerfile", "go.mod", "go.sum", "go.work", "package.json", "cargo.toml", "cmakelists.txt", "configure"},
		[]string{".mk", ".mod", ".sh", ".toml", ".yaml", ".yml", ".cmake"}},
	{"high", kumquat.High, "source",
		nil,
		[]string{".go", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".hs", ".java", ".js", ".kt", ".lua", ".ml", ".mjs", ".php", ".pl", ".pml", ".proto", ".py", ".rb",
			".rs", ".s", ".scala", ".sql", ".swift", ".ts", ".tsx", ".vue", ".zig"}},
	{"normal", kumquat.Normal, "text",
		[]string{"license", "readme", "changelog", "authors", "notice", "copying"},
		[]string{".adoc", ".css", ".csv", ".html", ".json", ".md", ".org", ".rst", ".svg", ".tex", ".tsv", ".txt", ".xml"}},
	{"low", kumquat.Low, "the rest", nil, nil},
}

// kindOf returns the index in kinds of what a file of this name is.
func kindOf(path string) int {
	base := strings.ToLower(filepath.Base(path))
	ext := filepath.Ext(base)
	for k, x := range kinds {
		if slices.Contains(x.names, base) || ext != "" && slices.Contains(x.exts, ext) {
			return k
		}
	}
	return len(kinds) - 1
}

// file is a regular file as the scan saw it.
type file struct {
	path string // relative to the folder
	size int64
	kind int
	stamp
}

// stamp changes when a file does.
type stamp struct {
	ino          uint64
	size         int64
	mtime, ctime syscall.Timespec
}

func stampOf(info fs.FileInfo) stamp {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{size: info.Size()}
	}
	return stamp{st.Ino, st.Size, st.Mtim, st.Ctim}
}

// skipped is a file that is not sent.
type skipped struct{ path, why string }

type findings struct {
	files   []file
	skipped []skipped
	others  int // links and special files
}

// scan lists the regular files under folder. What it cannot read it lists as skipped; only a folder that cannot be read at all is
// an error.
func scan(ctx context.Context, folder string) (findings, error) {
	var f findings
	info, err := os.Stat(folder)
	if err != nil {
		return f, err
	}
	if !info.IsDir() {
		return f, fmt.Errorf("%s is no folder", show(folder))
	}
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return stopped(ctx)
		}
		rel, relErr := filepath.Rel(folder, path)
		if relErr != nil {
			return relErr
		}
		if err != nil {
			if rel == "." {
				return err
			}
			f.skipped = append(f.skipped, skipped{rel, reason(err)})
			return nil
		}
		if d.IsDir() {
			return nil
		}
		if !d.Type().IsRegular() {
			f.others++
			return nil
		}
		info, err := d.Info()
		if err != nil { // it went since the folder was read
			f.skipped = append(f.skipped, skipped{rel, reason(err)})
			return nil
		}
		f.files = append(f.files, file{rel, info.Size(), kindOf(rel), stampOf(info)})
		return nil
	})
	return f, err
}

// reason is an error about a file without the name of the file.
func reason(err error) string {
	if p, ok := err.(*fs.PathError); ok {
		return p.Err.Error()
	}
	return err.Error()
}

func total(files []file) (n int64) {
	for i := range files {
		n += files[i].size
	}
	return n
}

// shmFolder is where the engine keeps its queues.
func shmFolder() string {
	if dir := os.Getenv("KUMQUAT_SHM"); dir != "" {
		return dir
	}
	return "/dev/shm"
}

// findRoom returns how many bytes the queue may use: most of what is free in the folder of the queues and, because that is memory,
// not more than half of the memory that is available.
func (t *tour) findRoom() (int64, error) {
	if t.room != 0 {
		return t.room, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(shmFolder(), &st); err != nil {
		return 0, fmt.Errorf("the folder of the queues, %s, cannot be used: %w", shmFolder(), err)
	}
	room := int64(st.Bavail) * st.Bsize / 10 * 9
	if mem := memAvailable(); mem > 0 {
		room = min(room, mem/2)
	}
	return room, nil
}

// memAvailable returns the bytes of memory that programs may still use, 0 if unknown.
func memAvailable() int64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

const (
	page       = 4096
	baseCost   = 4 << 20 // header, participants, list heads and what is allocated in steps
	roundFiles = 500_000
	// A queue's slots are a few more than its messages, and all have the addresses of the largest body.
	spareSlots   = 1200
	maxAddresses = 4 << 40
	maxBody      = 4<<30 - page // what Options.MaxSize can be
)

// cost is what a file's message takes of the room at most: its body and its metadata in whole pages, its slot, link and nodes.
func cost(f *file) int64 { return (f.size+page-1)/page*page + page + 512 }

// plan shares the files out to rounds, none of which needs more than room bytes, and names those that are too big for any. The
// round with the most files comes first: there the consumers are killed and stopped.
func plan(files []file, room int64) (rounds [][]int, tooBig []int) {
	bySize := make([]int, len(files))
	for i := range bySize {
		bySize[i] = i
	}
	slices.SortStableFunc(bySize, func(a, b int) int { return cmp.Compare(files[b].size, files[a].size) })
	var left, largest []int64 // of each round
	for _, i := range bySize {
		c := cost(&files[i])
		if c > room-baseCost || files[i].size > maxBody {
			tooBig = append(tooBig, i)
			continue
		}
		r := 0
		for r < len(rounds) && (left[r] < c || len(rounds[r]) == roundFiles || int64(len(rounds[r])+spareSlots)*largest[r] > maxAddresses) {
			r++
		}
		if r == len(rounds) {
			rounds, left, largest = append(rounds, nil), append(left, room-baseCost), append(largest, files[i].size)
		}
		rounds[r] = append(rounds[r], i)
		left[r] -= c
	}
	for _, r := range rounds {
		slices.Sort(r) // sent in the order of the folder
	}
	slices.SortStableFunc(rounds, func(a, b []int) int { return len(b) - len(a) })
	return rounds, tooBig
}
