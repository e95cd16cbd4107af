//go:build !kumquat_step && !race

package shm

import (
	"encoding/json"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestHookIsAbsent shows that a build without the tag kumquat_step pays nothing for being stoppable. What is there of the hook are
// the access functions, the calls of step, and the questions for simulated. The access functions must be the bare instruction each,
// and the package, compiled once as it is and once from sources without those calls and questions, must have the same functions of
// the same sizes. With the tag it has not, so sizes do tell.
func TestHookIsAbsent(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command, to compile the package")
	}
	if testing.Short() {
		t.Skip("compiles the package three times")
	}
	bare := map[string]string{}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Skip("needs the sources of the package")
	}
	dir, replaced := t.TempDir(), 0
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		if f == "access.go" || strings.HasPrefix(f, "store_") {
			bareFunctions(t, f)
			continue
		}
		text, n := withoutHook(t, f)
		if replaced += n; n == 0 {
			continue
		}
		from, err := filepath.Abs(f)
		if err != nil {
			t.Fatal(err)
		}
		bare[from] = filepath.Join(dir, f)
		if err := os.WriteFile(bare[from], text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": bare})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		t.Fatal(err)
	}
	normal := functionSizes(t, dir)
	without := functionSizes(t, dir, "-overlay", overlay)
	hooked := functionSizes(t, dir, "-tags", "kumquat_step")

	for _, f := range slices.Sorted(maps.Keys(normal)) {
		if normal[f] != without[f] {
			t.Errorf("%s has %d bytes, and %d without the hook", f, normal[f], without[f])
		}
	}
	if len(normal) != len(without) {
		t.Errorf("there are %d symbols, and %d without the hook", len(normal), len(without))
	}
	for _, f := range []string{"(*Queue).publish", "(*Queue).reserve", "(*Queue).acquire", "(*Queue).drain", "(*Queue).claimAt", "(*Queue).unlock"} {
		if normal[f] == 0 || hooked[f] <= normal[f] {
			t.Errorf("%s has %d bytes, and %d with the hook: this test looks at the wrong thing", f, normal[f], hooked[f])
		}
	}
	if replaced < 20 || len(normal) < 300 || normal["stepHook"] != 0 || hooked["stepHook"] == 0 {
		t.Errorf("%d calls and questions were taken out, %d symbols compared, stepHook has %d bytes, and %d with the hook",
			replaced, len(normal), normal["stepHook"], hooked["stepHook"])
	}
	t.Logf("%d calls and questions taken out, %d symbols of the same size", replaced, len(normal))
}

// bareFunctions refuses an access function that is more than one atomic instruction, or one store.
func bareFunctions(t *testing.T, file string) {
	t.Helper()
	tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range tree.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		var bare bool
		switch {
		case f.Name.Name == "step" || f.Name.Name == "looks":
			bare = len(f.Body.List) == 0
		case f.Name.Name == "simulatedStuck":
			continue // never called
		case len(f.Body.List) == 1:
			switch s := f.Body.List[0].(type) {
			case *ast.ExprStmt:
				bare = isAtomic(s.X)
			case *ast.ReturnStmt:
				bare = isAtomic(s.Results[0])
			case *ast.AssignStmt:
				_, star := s.Lhs[0].(*ast.StarExpr)
				_, arg := s.Rhs[0].(*ast.Ident)
				bare = star && arg
			}
		}
		if !bare {
			t.Errorf("%s: %s is more than a bare access", file, f.Name.Name)
		}
	}
}

// isAtomic reports whether e calls a function of sync/atomic with nothing but names for arguments.
func isAtomic(e ast.Expr) bool {
	c, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	f, ok := c.Fun.(*ast.SelectorExpr)
	return ok && isIdent(f.X, "atomic") && !slices.ContainsFunc(c.Args, func(a ast.Expr) bool { _, name := a.(*ast.Ident); return !name })
}

// functionSizes compiles the package and returns the bytes of code of each function.
func functionSizes(t *testing.T, dir string, flags ...string) map[string]int {
	t.Helper()
	out := filepath.Join(dir, "shm.a")
	args := append([]string{"build", "-o", out}, flags...)
	if b, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v\n%s", args, err, b)
	}
	b, err := exec.Command("go", "tool", "nm", "-size", out).Output()
	if err != nil {
		t.Skipf("needs go tool nm: %v", err)
	}
	sizes := map[string]int{}
	for _, m := range symbol.FindAllStringSubmatch(string(b), -1) {
		sizes[m[2]], _ = strconv.Atoi(m[1])
	}
	return sizes
}

var symbol = regexp.MustCompile(`(?m)\s(\d+) [TBDR] github\.com/kumquat-mq/kumquat/shm\.(\S+)$`)

// withoutHook returns the source of file without calls of step and questions for simulated, and how many there were.
func withoutHook(t *testing.T, file string) (text []byte, n int) {
	t.Helper()
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	isStep := func(s ast.Stmt) bool {
		e, ok := s.(*ast.ExprStmt)
		if !ok {
			return false
		}
		c, ok := e.X.(*ast.CallExpr)
		return ok && isIdent(c.Fun, "step")
	}
	isQuestion := func(s ast.Stmt) bool {
		x, ok := s.(*ast.IfStmt)
		return ok && isIdent(x.Cond, "simulated") && x.Else == nil
	}
	list := func(l []ast.Stmt) []ast.Stmt {
		return slices.DeleteFunc(l, func(s ast.Stmt) bool {
			if isStep(s) || isQuestion(s) {
				n++
				return true
			}
			return false
		})
	}
	ast.Inspect(tree, func(x ast.Node) bool {
		switch x := x.(type) {
		case *ast.BlockStmt:
			x.List = list(x.List)
		case *ast.CaseClause:
			x.Body = list(x.Body)
		case *ast.CommClause:
			x.Body = list(x.Body)
		case *ast.IfStmt:
			if x.Init != nil && isStep(x.Init) {
				x.Init = nil
				n++
			}
		case *ast.UnaryExpr:
			if x.Op == token.NOT && isIdent(x.X, "simulated") {
				x.X = ast.NewIdent("false")
				n++
			}
		}
		return true
	})
	var b strings.Builder
	if err := format.Node(&b, set, tree); err != nil {
		t.Fatal(err)
	}
	return []byte(b.String()), n
}

func isIdent(e ast.Expr, name string) bool {
	i, ok := e.(*ast.Ident)
	return ok && i.Name == name
}
