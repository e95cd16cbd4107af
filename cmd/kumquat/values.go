package main

import (
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/kumquat-mq/kumquat"
)

// The types of the flags. Each is a pflag.Value: Set checks, String gives back what Set takes.

// sizeValue is a number of bytes: 4096, 64k, 64KiB, 1MiB.
type sizeValue int

func (v *sizeValue) Type() string   { return "SIZE" }
func (v *sizeValue) String() string { return strings.ReplaceAll(humanize.IBytes(uint64(*v)), " ", "") }

func (v *sizeValue) Set(s string) error {
	n, err := parseSize(s)
	if err != nil {
		return err
	}
	*v = sizeValue(n)
	return nil
}

// sizeUnits follows dd(1): a letter alone and KiB count by 1024, kB by 1000.
var sizeUnits = map[string]float64{
	"": 1, "b": 1,
	"k": 1 << 10, "kib": 1 << 10, "kb": 1e3,
	"m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
	"g": 1 << 30, "gib": 1 << 30, "gb": 1e9,
}

func parseSize(s string) (int, error) {
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.') {
		i++
	}
	unit, ok := sizeUnits[strings.ToLower(strings.TrimSpace(s[i:]))]
	n, err := strconv.ParseFloat(s[:i], 64)
	if err != nil || !ok {
		return 0, fmt.Errorf("%q is no size: a number with k, M, G, KiB, MiB or GiB is one, as 64KiB", s)
	}
	n *= unit
	if n != math.Trunc(n) || n < 1 || n > math.MaxInt/2 {
		return 0, fmt.Errorf("%q is not a whole number of bytes, 1 or more", s)
	}
	return int(n), nil
}

// modeValue is permission bits in octal.
type modeValue fs.FileMode

func (v *modeValue) Type() string   { return "MODE" }
func (v *modeValue) String() string { return fmt.Sprintf("%04o", uint32(*v)) }

func (v *modeValue) Set(s string) error {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0o"), 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return fmt.Errorf("%q is no mode: octal permission bits are one, as 0660", s)
	}
	*v = modeValue(n)
	return nil
}

// priorityValue is a number or the name of a band.
type priorityValue int

func (v *priorityValue) Type() string   { return "N|BAND" }
func (v *priorityValue) String() string { return strconv.Itoa(int(*v)) }

func (v *priorityValue) Set(s string) error {
	n, err := kumquat.ParsePriority(s)
	if err != nil {
		return fmt.Errorf("%q is no priority: 0 to 32767, critical, high, normal or low", s)
	}
	*v = priorityValue(n)
	return nil
}

var bands = []string{"critical", "high", "normal", "low"}

// typeValue is a message type, > 0.
type typeValue int64

func (v *typeValue) Type() string   { return "N" }
func (v *typeValue) String() string { return strconv.FormatInt(int64(*v), 10) }

func (v *typeValue) Set(s string) error {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return fmt.Errorf("%q is no type: a number above 0 is one", s)
	}
	*v = typeValue(n)
	return nil
}

// countValue is a number, min or more.
type countValue struct{ n, min int }

func (v *countValue) Type() string   { return "N" }
func (v *countValue) String() string { return strconv.Itoa(v.n) }

func (v *countValue) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.min {
		return fmt.Errorf("%q is not a number of %d or more", s, v.min)
	}
	v.n = n
	return nil
}

// kindsValue is a list of kinds of queues, with commas.
type kindsValue []string

func (v *kindsValue) Type() string   { return "KINDS" }
func (v *kindsValue) String() string { return strings.Join(*v, ",") }

func (v *kindsValue) Set(s string) error {
	for k := range strings.SplitSeq(s, ",") {
		k = strings.ToLower(strings.TrimSpace(k))
		if !slices.Contains(kindNames, k) {
			return fmt.Errorf("%q is none of %s", k, strings.Join(kindNames, ", "))
		}
		if !slices.Contains(*v, k) {
			*v = append(*v, k)
		}
	}
	return nil
}

// overflowValue is what a send to a full queue does.
type overflowValue kumquat.Overflow

var overflowNames = []string{kumquat.Block: "block", kumquat.Reject: "reject", kumquat.DropOldest: "drop-oldest", kumquat.DropLowest: "drop-lowest"}

func overflowName(o kumquat.Overflow) string {
	if int(o) < len(overflowNames) {
		return overflowNames[o]
	}
	return strconv.Itoa(int(o))
}

func (v *overflowValue) Type() string   { return "POLICY" }
func (v *overflowValue) String() string { return overflowName(kumquat.Overflow(*v)) }

func (v *overflowValue) Set(s string) error {
	for i, n := range overflowNames {
		if n == s {
			*v = overflowValue(i)
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", s, strings.Join(overflowNames, ", "))
}

// headroomValue is SHARE@PRIORITY, as 10%@25.
type headroomValue kumquat.Headroom

func headroomText(h kumquat.Headroom) string {
	if h.Percent == 0 {
		return ""
	}
	return fmt.Sprintf("%d%%@%d", h.Percent, h.Priority)
}

func (v *headroomValue) Type() string   { return "SHARE@PRIORITY" }
func (v *headroomValue) String() string { return headroomText(kumquat.Headroom(*v)) }

func (v *headroomValue) Set(s string) error {
	share, prio, ok := strings.Cut(s, "@")
	n, err := strconv.Atoi(strings.TrimSuffix(share, "%"))
	if !ok || err != nil || n < 0 || n > 99 {
		return fmt.Errorf("%q is no headroom: a share of 0 to 99 %% and a priority are one, as 10%%@25", s)
	}
	p, err := kumquat.ParsePriority(prio)
	if err != nil {
		return fmt.Errorf("%q is no headroom: %q is no priority", s, prio)
	}
	*v = headroomValue{Percent: n, Priority: p}
	return nil
}
