// Package plot draws the results of the benchmark: rates over the size of messages, over priorities, over numbers of processes,
// and distributions of latencies. It reads the JSON lines that kumquat bench --json prints and depends on nothing else of Kumquat.
//
// It is a module of its own so that neither the library's users nor the command carry the drawing library.
package plot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Result is what is drawn of a line of results.
type Result struct {
	Subject      string
	Size         int
	Priorities   int
	Median       float64
	Min          float64
	Max          float64
	Unit         string
	Workload     string
	Mode         string
	Producers    int
	Consumers    int
	Capacity     int
	Waiting      int
	Load         int
	Distribution [][2]float64 // percentile, value
}

// Read returns the results of JSON lines.
func Read(r io.Reader) ([]Result, error) {
	var rs []Result
	for d := json.NewDecoder(r); ; {
		var x Result
		if err := d.Decode(&x); err == io.EOF {
			break
		} else if err != nil {
			return nil, fmt.Errorf("line %d: %w", len(rs)+1, err)
		}
		rs = append(rs, x)
	}
	if len(rs) == 0 {
		return nil, errors.New("there are no results to draw")
	}
	return rs, nil
}

const (
	panelWidth  = 7 * vg.Inch
	panelHeight = 3.9 * vg.Inch
	legendWidth = 1.6 * vg.Inch
	dots        = 144 // an inch, in a PNG
)

// Draw writes the drawing of rs into file, as SVG or PNG by its ending. A contest of its own (a mode, or what else sets it
// apart from the axis) gets a panel of its own, one below the other, so that the text stays legible where a page makes it narrow.
func Draw(file string, rs []Result) error {
	x := axisOf(rs)
	var titles []string
	panels := map[string][]Result{}
	priorities := 1 // of the contest: a peer may have none and goes with ours
	for _, r := range rs {
		if r.Subject == rs[0].Subject {
			priorities = r.Priorities
		}
		t := x.title(r, priorities)
		if panels[t] == nil {
			titles = append(titles, t)
		}
		panels[t] = append(panels[t], r)
	}
	var plots []*plot.Plot
	for _, t := range titles {
		p, err := x.draw(panels[t])
		if err != nil {
			return err
		}
		p.Title.Text = t
		plots = append(plots, p)
	}
	width, height := panelWidth+legendWidth, panelHeight*vg.Length(len(plots))
	var canvas interface {
		vg.CanvasSizer
		io.WriterTo
	}
	switch strings.ToLower(filepath.Ext(file)) {
	case ".svg":
		canvas = vgsvg.New(width, height)
	case ".png":
		canvas = vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(dots), vgimg.UseBackgroundColor(color.White))}
	default:
		return fmt.Errorf("%s ends neither in .svg nor in .png", file)
	}
	all := draw.New(canvas)
	all.SetColor(color.White) // an SVG is else transparent, and unreadable on a dark page
	all.Fill(all.Rectangle.Path())
	for i, p := range plots {
		below := panelHeight * vg.Length(len(plots)-1-i)
		p.Draw(draw.Crop(all, 12, -legendWidth-12, below+8, -panelHeight*vg.Length(i)-8))
	}
	names := legend(rs)
	names.Draw(draw.Crop(all, width-legendWidth+10, -8, 8, -30))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return err
	}
	// An SVG names one font and embeds none: these are as wide where that one is not installed. A PNG does not have the words.
	drawn := bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
	return os.WriteFile(file, drawn, 0o666)
}

// axis is what lies on the horizontal one.
type axis struct {
	kind       string
	priorities bool // they vary, and are not on the axis: they go into the titles
}

// The kinds of axes.
const (
	bySubject    = "subject"
	bySize       = "size"
	byPriorities = "priorities"
	byShape      = "processes"
	byCapacity   = "capacity"
	byPercentile = "percentile"
)

// axisOf chooses what varies in the results.
func axisOf(rs []Result) axis {
	ours := slices.DeleteFunc(slices.Clone(rs), func(r Result) bool { return r.Subject != rs[0].Subject }) // peers may lack priorities
	vary := func(f func(Result) any) bool {
		return slices.ContainsFunc(ours, func(r Result) bool { return f(r) != f(ours[0]) })
	}
	shapes := vary(func(r Result) any { return [2]int{r.Producers, r.Consumers} })
	priorities := vary(func(r Result) any { return r.Priorities })
	switch {
	case slices.ContainsFunc(rs, func(r Result) bool { return len(r.Distribution) > 0 }):
		return axis{byPercentile, priorities}
	case shapes && ours[0].Workload == "scale":
		return axis{byShape, priorities}
	case vary(func(r Result) any { return r.Size }):
		return axis{bySize, priorities}
	case priorities:
		return axis{byPriorities, false}
	case shapes:
		return axis{byShape, false}
	case vary(func(r Result) any { return r.Capacity }):
		return axis{byCapacity, false}
	}
	return axis{bySubject, false}
}

// title names the panel that a result belongs to: all that is not on the axis. The priorities are those of our own line.
func (x axis) title(r Result, priorities int) string {
	t := []string{r.Workload}
	if r.Mode != "" && r.Mode != r.Workload {
		t = append(t, r.Mode)
	}
	if x.kind != bySize {
		t = append(t, bytesText(r.Size))
	}
	if x.kind != byShape {
		t = append(t, fmt.Sprintf("%d:%d", r.Producers, r.Consumers))
	}
	if x.priorities && priorities > 1 {
		t = append(t, fmt.Sprintf("%d priorities", priorities))
	} else if x.priorities {
		t = append(t, "one priority")
	}
	if r.Load > 0 {
		t = append(t, fmt.Sprintf("%d busy processes beside", r.Load))
	}
	return strings.Join(t, ", ")
}

func bytesText(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}

func (x axis) draw(rs []Result) (*plot.Plot, error) {
	p := plot.New()
	for _, f := range []*font.Font{&p.Title.TextStyle.Font, &p.X.Label.TextStyle.Font, &p.Y.Label.TextStyle.Font, &p.X.Tick.Label.Font, &p.Y.Tick.Label.Font} {
		f.Variant = "Sans" // legible where the drawing is small
	}
	p.Title.TextStyle.Font.Size = 13
	p.Title.Padding = 6
	p.Add(grid())
	var err error
	switch x.kind {
	case bySize, byPriorities, byCapacity:
		err = x.lines(p, rs)
	case byPercentile:
		err = percentiles(p, rs)
	default:
		err = x.bars(p, rs)
	}
	if err != nil {
		return nil, err
	}
	p.Y.Label.Text = "messages a second"
	if rs[0].Unit == "us" {
		p.Y.Label.Text = "µs, round trip"
		if rs[0].Workload == "wake" {
			p.Y.Label.Text = "µs, one way"
		}
	}
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		a.Label.TextStyle.Font.Size = 11
		a.Tick.Label.Font.Size = 10
	}
	return p, nil
}

func grid() *plotter.Grid {
	g := plotter.NewGrid()
	g.Vertical.Color = color.Gray{225}
	g.Horizontal.Color = color.Gray{225}
	return g
}

// logarithmic gives a logarithmic axis around the values, from a whole decade to 1, 2 or 5 times one.
func logarithmic(a *plot.Axis, low, high float64) {
	a.Scale = plot.LogScale{}
	a.Min = math.Pow(10, math.Floor(math.Log10(low)))
	a.Max = math.Pow(10, math.Floor(math.Log10(high)))
	for _, m := range []float64{1, 2, 5, 10} {
		if high <= m*a.Max {
			a.Max *= m
			break
		}
	}
	if a.Min == a.Max {
		a.Max *= 10
	}
	a.Tick.Marker = plot.TickerFunc(func(low, high float64) []plot.Tick {
		var ts []plot.Tick
		for d := math.Pow(10, math.Floor(math.Log10(low))); d <= high*1.0001; d *= 10 {
			ts = append(ts, plot.Tick{Value: d, Label: number(d)})
			for m := 2.0; m < 10 && d*m <= high; m++ {
				ts = append(ts, plot.Tick{Value: d * m})
			}
		}
		return ts
	})
}

// number writes a power of ten.
func number(v float64) string {
	switch {
	case v >= 0.999e9:
		return fmt.Sprintf("%g G", math.Round(v/1e9))
	case v >= 0.999e6:
		return fmt.Sprintf("%g M", math.Round(v/1e6))
	case v >= 0.999e3:
		return fmt.Sprintf("%g k", math.Round(v/1e3))
	}
	return fmt.Sprintf("%.4g", v)
}

func (x axis) value(r Result) (float64, string) {
	switch x.kind {
	case bySize:
		return float64(r.Size), bytesText(r.Size)
	case byPriorities:
		return float64(r.Priorities), fmt.Sprint(r.Priorities)
	case byCapacity:
		return float64(r.Capacity), fmt.Sprint(r.Capacity)
	case byShape:
		return 0, fmt.Sprintf("%d:%d", r.Producers, r.Consumers)
	}
	return 0, ""
}

// points are the medians of a subject with their spread.
type points struct {
	plotter.XYs
	plotter.YErrors
}

func (x axis) lines(p *plot.Plot, rs []Result) error {
	logarithmic(&p.Y, least(rs), most(rs))
	p.X.Scale = plot.LogScale{}
	p.X.Label.Text = map[string]string{bySize: "size of a message", byPriorities: "priorities, at random", byCapacity: "capacity"}[x.kind]
	places := map[float64]string{}
	at := 1.0 // a peer without priorities is measured anew beside each of ours
	series := map[string]*points{}
	for _, r := range rs {
		v, text := x.value(r)
		if x.kind == byPriorities {
			if r.Subject == rs[0].Subject {
				at = v
			}
			v, text = at, fmt.Sprint(at)
		}
		places[v] = text
		s := series[r.Subject]
		if s == nil {
			s = &points{}
			series[r.Subject] = s
		}
		s.XYs = append(s.XYs, plotter.XY{X: v, Y: r.Median})
		s.YErrors = append(s.YErrors, struct{ Low, High float64 }{r.Median - r.Min, r.Max - r.Median})
	}
	ticks := []plot.Tick{}
	p.X.Min, p.X.Max = math.Inf(1), 0
	for v, text := range places {
		ticks = append(ticks, plot.Tick{Value: v, Label: text})
		p.X.Min, p.X.Max = min(p.X.Min, v/1.3), max(p.X.Max, v*1.3)
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	for _, name := range subjects(rs) {
		line, dots, err := plotter.NewLinePoints(series[name].XYs)
		if err != nil {
			return err
		}
		bars, err := plotter.NewYErrorBars(series[name])
		if err != nil {
			return err
		}
		line.LineStyle = style(name)
		dots.GlyphStyle = draw.GlyphStyle{Color: line.Color, Radius: 3, Shape: draw.CircleGlyph{}}
		bars.LineStyle.Color = line.Color
		p.Add(line, dots, bars)
	}
	return nil
}

func (x axis) bars(p *plot.Plot, rs []Result) error {
	logarithmic(&p.Y, least(rs), most(rs))
	var groups []string
	for _, r := range rs {
		if _, text := x.value(r); !slices.Contains(groups, text) {
			groups = append(groups, text)
		}
	}
	all := subjects(rs)
	pitch := 0.8 / float64(len(all))
	width := vg.Points(min(0.85*pitch*400/float64(len(groups)), 40))
	for i, name := range all {
		for _, r := range rs {
			if r.Subject != name {
				continue
			}
			_, text := x.value(r)
			place := float64(slices.Index(groups, text)) + (float64(i)-float64(len(all)-1)/2)*pitch
			s := points{plotter.XYs{{X: place, Y: r.Median}}, plotter.YErrors{{Low: r.Median - r.Min, High: r.Max - r.Median}}}
			bars, err := plotter.NewYErrorBars(s)
			if err != nil {
				return err
			}
			p.Add(column{place, r.Median, width, style(name).Color}, bars)
		}
	}
	ticks := make([]plot.Tick, len(groups))
	for i, text := range groups {
		ticks[i] = plot.Tick{Value: float64(i), Label: text}
	}
	p.X.Tick.Marker = plot.ConstantTicks(ticks)
	p.X.Min, p.X.Max = -0.5, float64(len(groups))-0.5
	if x.kind == byShape {
		p.X.Label.Text = "producers:consumers"
	}
	return nil
}

// column is a bar that stands on the bottom of a logarithmic axis.
type column struct {
	x, y  float64
	width vg.Length
	color color.Color
}

// Plot draws the column.
func (b column) Plot(c draw.Canvas, p *plot.Plot) {
	tx, ty := p.Transforms(&c)
	x, low, high := tx(b.x), ty(p.Y.Min), ty(b.y)
	c.FillPolygon(b.color, []vg.Point{{X: x - b.width/2, Y: low}, {X: x - b.width/2, Y: high}, {X: x + b.width/2, Y: high}, {X: x + b.width/2, Y: low}})
}

// percentiles draws latencies over percentiles; each nine more is as far as the one before.
func percentiles(p *plot.Plot, rs []Result) error {
	low, high := math.Inf(1), 0.0
	p.X.Scale = plot.LogScale{}
	p.X.Label.Text = "percentile"
	p.X.Min, p.X.Max = 1, 10
	for _, r := range rs {
		var line plotter.XYs
		for _, d := range r.Distribution {
			if d[0] >= 100 || d[1] <= 0 {
				continue // the worst of all has no place on this axis
			}
			x := 100 / (100 - d[0])
			line = append(line, plotter.XY{X: x, Y: d[1]})
			low, high = min(low, d[1]), max(high, d[1])
			p.X.Max = max(p.X.Max, x)
		}
		if len(line) == 0 {
			continue
		}
		l, err := plotter.NewLine(line)
		if err != nil {
			return err
		}
		l.LineStyle = style(r.Subject)
		p.Add(l)
	}
	if high == 0 {
		return errors.New("the distributions are empty")
	}
	logarithmic(&p.Y, low, high)
	p.X.Tick.Marker = plot.ConstantTicks{{Value: 1, Label: "0"}, {Value: 2, Label: "50"}, {Value: 10, Label: "90"}, {Value: 100, Label: "99"},
		{Value: 1e3, Label: "99.9"}, {Value: 1e4, Label: "99.99"}, {Value: 1e5, Label: "99.999"}}
	return nil
}

func least(rs []Result) float64 {
	v := math.Inf(1)
	for _, r := range rs {
		v = min(v, r.Min)
	}
	return max(v, 1e-3)
}

func most(rs []Result) float64 {
	v := 1e-2
	for _, r := range rs {
		v = max(v, r.Max)
	}
	return v
}
