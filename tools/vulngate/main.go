// Vulngate reads what `govulncheck -format json` prints and decides what it means for a release: code of a third party that is
// reached and vulnerable fails, the rest is printed. Findings in the standard library are mended by the next Go, not here.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
)

// message is one of the objects that govulncheck prints, as far as it matters here.
type message struct {
	Config  *struct{} `json:"config"`
	Finding *struct {
		OSV   string                                                `json:"osv"`
		Fixed string                                                `json:"fixed_version"`
		Trace []struct{ Module, Version, Package, Function string } `json:"trace"`
	} `json:"finding"`
}

func main() {
	bad, notes, err := judge(os.Stdin)
	for _, n := range notes {
		fmt.Println("not reached, or in the standard library:", n)
	}
	for _, b := range bad {
		fmt.Println("reached:", b)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vulngate:", err)
		os.Exit(2)
	}
	if len(bad) > 0 {
		os.Exit(1)
	}
	fmt.Printf("no reached vulnerability in modules of third parties; not reached, or in the standard library: %d\n", len(notes))
}

// judge returns the findings that fail and those that do not, sorted.
func judge(r io.Reader) (bad, notes []string, err error) {
	// Each vulnerability is found up to three times: in a module, in an imported package, in a function that is called.
	failing, others, reached := map[string]bool{}, map[string]bool{}, map[string]bool{}
	ran := false
	for d := json.NewDecoder(r); ; {
		var m message
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, nil, err
		}
		ran = ran || m.Config != nil
		f := m.Finding
		if f == nil || len(f.Trace) == 0 {
			continue
		}
		// The first frame is where the vulnerability lies; it names a function only if a call to it was found.
		at := f.Trace[0]
		fixed := f.Fixed
		if fixed == "" {
			fixed = "no version yet"
		}
		where := fmt.Sprintf("%s in %s@%s, mended in %s", f.OSV, at.Module, at.Version, fixed)
		switch {
		case at.Module == "stdlib" && at.Function != "":
			others[where] = true
		case at.Module != "stdlib" && at.Function != "":
			failing[where+": "+at.Package+"."+at.Function] = true
			reached[where] = true
		case at.Module != "stdlib":
			others[where] = true
		}
	}
	if !ran {
		return nil, nil, errors.New("the input is not what govulncheck prints: it did not run to its end")
	}
	for where := range reached {
		delete(others, where)
	}
	return slices.Sorted(maps.Keys(failing)), slices.Sorted(maps.Keys(others)), nil
}
