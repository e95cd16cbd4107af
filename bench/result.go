package bench

import (
	"math"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The units of results.
const (
	PerSecond    = "msg/s" // larger is better
	Microseconds = "us"    // smaller is better
)

// Result is what one subject reached in one contest.
type Result struct {
	Subject    string  `json:"subject"`
	Size       int     `json:"size"`
	Priorities int     `json:"priorities"` // that this subject used; 1 where it has none
	Median     float64 `json:"median"`     // of the rounds; of latencies, the rounds' own medians
	Min        float64 `json:"min"`        // of the rounds
	Max        float64 `json:"max"`        // of the rounds
	Unit       string  `json:"unit"`
	Ratio      float64 `json:"ratio"` // ours ÷ theirs (of times theirs ÷ ours), above 1 where ours is better; 1 for our own

	Workload  string  `json:"workload"`
	Mode      string  `json:"mode,omitempty"` // of latencies: "spin", "sleep" or "wake"; "binding"
	Producers int     `json:"producers"`
	Consumers int     `json:"consumers"`
	Capacity  int     `json:"capacity"`
	Batch     int     `json:"batch,omitempty"`   // messages a call, where more than one
	Waiting   int     `json:"waiting,omitempty"` // messages that lay in the queue all the time
	Load      int     `json:"load,omitempty"`    // busy processes beside
	Rounds    int     `json:"rounds"`            // that the median is of
	Allocs    float64 `json:"allocs"`            // heap allocations a message, sender and receiver together; 0 for C++

	// Distribution of single latencies over all rounds: pairs of a percentile and a value in the unit.
	Distribution [][2]float64 `json:"distribution,omitempty"`
}

// median returns the middle value, the mean of the middle two where their number is even, 0 of none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	m := len(s) / 2
	if len(s)%2 == 1 {
		return s[m]
	}
	return (s[m-1] + s[m]) / 2
}

// ratio returns how many times better ours is than theirs.
func ratio(unit string, ours, theirs float64) float64 {
	if unit == Microseconds {
		ours, theirs = theirs, ours
	}
	if theirs == 0 {
		return 0
	}
	return ours / theirs
}

// rounded keeps what is significant of a number that was measured.
func rounded(v float64) float64 {
	if v == 0 {
		return 0
	}
	scale := math.Pow(10, 4-math.Ceil(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// newHistogram counts nanoseconds up to the most that a sample holds, to three digits.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, math.MaxUint32, 3) }

// distribution returns the percentiles of h in microseconds.
func distribution(h *hdrhistogram.Histogram) [][2]float64 {
	if h.TotalCount() == 0 {
		return nil
	}
	var d [][2]float64
	for _, p := range []float64{0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 99.999, 100} {
		if left := (100 - p) / 100 * float64(h.TotalCount()); p < 100 && left < 1 {
			continue // a percentile of less than one sample says nothing
		}
		d = append(d, [2]float64{p, rounded(float64(h.ValueAtPercentile(p)) / 1000)})
	}
	return d
}

// middle returns the median of samples in microseconds. It sorts a copy: the samples are another process's.
func middle(samples []uint32) float64 {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Clone(samples)
	slices.Sort(s)
	return float64(s[len(s)/2]) / 1000
}
