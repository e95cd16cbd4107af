package bench

import (
	"fmt"
	"strings"
)

// Header is the line above the rows that Result.Row makes.
const Header = "subject             size   prio    p:c  capacity        median           min           max  ours÷theirs"

// Row returns the result as a line of a table for people.
func (r Result) Row() string {
	var about []string
	if r.Mode != "" && r.Mode != modeBinding {
		about = append(about, r.Mode)
	}
	if r.Batch > 1 {
		about = append(about, fmt.Sprintf("batches of %d", r.Batch))
	}
	if r.Waiting > 0 {
		about = append(about, fmt.Sprintf("%d waiting", r.Waiting))
	}
	if r.Load > 0 {
		about = append(about, fmt.Sprintf("%d busy beside", r.Load))
	}
	if r.Allocs >= 0.01 {
		about = append(about, fmt.Sprintf("%.2f allocations a message", r.Allocs))
	}
	ratio := "           "
	if r.Subject != "kumquat" && (r.Workload != Binding || strings.HasSuffix(r.Subject, "-c")) {
		ratio = fmt.Sprintf("%10.2f×", r.Ratio)
	}
	return strings.TrimRight(fmt.Sprintf("%-16s %7d %6d %6s %9d %13s %13s %13s  %s  %s", r.Subject, r.Size, r.Priorities, fmt.Sprintf("%d:%d", r.Producers, r.Consumers),
		r.Capacity, quantity(r.Median, r.Unit), quantity(r.Min, r.Unit), quantity(r.Max, r.Unit), ratio, strings.Join(about, ", ")), " ")
}

func quantity(v float64, unit string) string {
	switch {
	case unit == Microseconds:
		return fmt.Sprintf("%.3g µs", v)
	case v >= 1e6:
		return fmt.Sprintf("%.2f M/s", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%.1f k/s", v/1e3)
	}
	return fmt.Sprintf("%.0f /s", v)
}
