package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	finding := func(osv, module, function string) string {
		return fmt.Sprintf(`{"finding":{"osv":%q,"fixed_version":"v2","trace":[{"module":%q,"version":"v1","package":"p","function":%q}]}}`, osv, module, function)
	}
	in := `{"config":{"scanner_name":"govulncheck"}}` +
		finding("A", "example.org/a", "") + finding("A", "example.org/a", "F") + finding("B", "example.org/b", "") + finding("C", "stdlib", "G")
	bad, notes, err := judge(strings.NewReader(in))
	if err != nil || fmt.Sprint(bad) != "[A in example.org/a@v1, mended in v2: p.F]" ||
		fmt.Sprint(notes) != "[B in example.org/b@v1, mended in v2 C in stdlib@v1, mended in v2]" {
		t.Errorf("bad %v, notes %v, error %v", bad, notes, err)
	}
	for _, in := range []string{"", "{}", "no json"} {
		if _, _, err := judge(strings.NewReader(in)); err == nil {
			t.Errorf("%q was taken for a run", in)
		}
	}
}
