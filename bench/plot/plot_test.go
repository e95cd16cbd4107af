package plot

import (
	"encoding/xml"
	"image/color"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/plot"
)

// The lines are as kumquat bench --json prints them.
var samples = map[string]string{
	"sizes": `{"subject":"kumquat","size":64,"priorities":1,"median":15e6,"min":14e6,"max":16e6,"unit":"msg/s","ratio":1,"workload":"throughput","producers":1,"consumers":1}
{"subject":"boost","size":64,"priorities":1,"median":4e6,"min":3e6,"max":5e6,"unit":"msg/s","ratio":3.75,"workload":"throughput","producers":1,"consumers":1}
{"subject":"kumquat","size":65536,"priorities":1,"median":15e4,"min":14e4,"max":16e4,"unit":"msg/s","ratio":1,"workload":"throughput","producers":1,"consumers":1}
{"subject":"boost","size":65536,"priorities":1,"median":5e4,"min":4e4,"max":6e4,"unit":"msg/s","ratio":3,"workload":"throughput","producers":1,"consumers":1}`,
	"priorities": `{"subject":"kumquat","size":64,"priorities":1,"median":15e6,"min":14e6,"max":16e6,"unit":"msg/s","producers":1,"consumers":1}
{"subject":"pipe","size":64,"priorities":1,"median":4e6,"min":3e6,"max":5e6,"unit":"msg/s","producers":1,"consumers":1}
{"subject":"kumquat","size":64,"priorities":1000,"median":6e6,"min":5e6,"max":7e6,"unit":"msg/s","producers":1,"consumers":1}
{"subject":"pipe","size":64,"priorities":1,"median":4e6,"min":3e6,"max":5e6,"unit":"msg/s","producers":1,"consumers":1}`,
	"shapes": `{"subject":"kumquat","size":64,"priorities":1,"median":15e6,"min":14e6,"max":16e6,"unit":"msg/s","producers":1,"consumers":1}
{"subject":"kumquat","size":64,"priorities":1,"median":6e6,"min":5e6,"max":7e6,"unit":"msg/s","producers":4,"consumers":4}`,
	"scale": `{"subject":"kumquat","size":64,"priorities":1,"median":15e6,"min":14e6,"max":16e6,"unit":"msg/s","workload":"scale","producers":1,"consumers":1}
{"subject":"zmq","size":64,"priorities":1,"median":4e6,"min":3e6,"max":5e6,"unit":"msg/s","workload":"scale","producers":1,"consumers":1}
{"subject":"kumquat","size":64,"priorities":1,"median":6e6,"min":5e6,"max":7e6,"unit":"msg/s","workload":"scale","producers":4,"consumers":1}
{"subject":"zmq","size":64,"priorities":1,"median":4e6,"min":3e6,"max":5e6,"unit":"msg/s","workload":"scale","producers":4,"consumers":1}
{"subject":"kumquat","size":64,"priorities":8,"median":5e6,"min":4e6,"max":6e6,"unit":"msg/s","workload":"scale","producers":1,"consumers":1}
{"subject":"zmq","size":64,"priorities":1,"median":4e6,"min":3e6,"max":5e6,"unit":"msg/s","workload":"scale","producers":1,"consumers":1}`,
	"one": `{"subject":"kumquat","size":64,"priorities":1,"median":1,"min":1,"max":1,"unit":"us","producers":1,"consumers":1}`,
	"latency": `{"subject":"kumquat","size":64,"priorities":1,"median":0.5,"min":0.4,"max":0.6,"unit":"us","mode":"spin","producers":1,"consumers":1,"distribution":[[0,0.3],[50,0.5],[99,2],[100,30]]}
{"subject":"futex","size":64,"priorities":1,"median":9,"min":8,"max":10,"unit":"us","mode":"sleep","producers":1,"consumers":1,"distribution":[[0,7],[50,9],[99,20],[100,300]]}`,
}

func TestDraw(t *testing.T) {
	for name, lines := range samples {
		t.Run(name, func(t *testing.T) {
			rs, err := Read(strings.NewReader(lines))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			for _, file := range []string{"x.png", "x.svg"} {
				if err := Draw(filepath.Join(dir, file), rs); err != nil {
					t.Fatalf("%s: %v", file, err)
				}
			}
			lookAtPNG(t, filepath.Join(dir, "x.png"), name != "one")
			text := lookAtSVG(t, filepath.Join(dir, "x.svg"))
			for _, r := range rs {
				if !strings.Contains(text, r.Subject) {
					t.Errorf("the legend lacks %s", r.Subject)
				}
			}
		})
	}
}

// lookAtPNG decodes it and looks for our colour, in the legend and (more of it) in the drawing, on white.
func lookAtPNG(t *testing.T, file string, line bool) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	b := m.Bounds()
	if b.Dx() < 1000 || b.Dy() < 500 {
		t.Errorf("only %v", b)
	}
	ours, white := 0, 0
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			switch color.RGBAModel.Convert(m.At(x, y)) {
			case colours["kumquat"]:
				if x < b.Max.X-int(legendWidth.Points()/72*dots) {
					ours++
				}
			case color.RGBA{255, 255, 255, 255}:
				white++
			}
		}
	}
	if line && ours < 300 {
		t.Errorf("%d pixels of our colour in the drawing", ours)
	}
	if white < b.Dx()*b.Dy()/3 {
		t.Errorf("%d pixels of %v are white", white, b)
	}
}

// lookAtSVG returns the text in it.
func lookAtSVG(t *testing.T, file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for d := xml.NewDecoder(strings.NewReader(string(b))); ; {
		token, err := d.Token()
		if err == io.EOF {
			return text.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := token.(xml.CharData); ok {
			text.Write(c)
			text.WriteByte('\n')
		}
	}
}

// The panels lie one below the other, so that more of them make a drawing no wider; a peer without priorities is beside ours that it
// was measured with.
func TestPanels(t *testing.T) {
	size := func(name string) (width, height string, text string) {
		rs, err := Read(strings.NewReader(samples[name]))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "x.svg")
		if err := Draw(file, rs); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var svg struct {
			Width  string `xml:"width,attr"`
			Height string `xml:"height,attr"`
		}
		if err := xml.Unmarshal(b, &svg); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), "fill:#FFFFFF") && !strings.Contains(string(b), `fill="#FFFFFF"`) {
			t.Errorf("%s has no white ground", name)
		}
		if strings.Contains(string(b), "font-family:Liberation Sans;") {
			t.Errorf("%s has a font without a substitute", name)
		}
		return svg.Width, svg.Height, lookAtSVG(t, file)
	}
	w1, h1, _ := size("shapes")
	w2, h2, text := size("scale")
	if w1 == "" || w1 != w2 || h1 == h2 {
		t.Errorf("one panel %s × %s, two %s × %s", w1, h1, w2, h2)
	}
	for _, title := range []string{"scale, 64 B, one priority", "scale, 64 B, 8 priorities", "4:1", "producers:consumers"} {
		if strings.Count(text, title) == 0 {
			t.Errorf("there is no %q", title)
		}
	}
	rs, err := Read(strings.NewReader(samples["scale"]))
	if err != nil {
		t.Fatal(err)
	}
	if x := axisOf(rs); x.kind != byShape || x.title(rs[5], 8) != "scale, 64 B, 8 priorities" {
		t.Errorf("axis %+v, title %q", x, x.title(rs[5], 8))
	}
}

func TestLogarithmic(t *testing.T) {
	for _, c := range []struct{ low, high, min, max float64 }{
		{2, 3, 1, 5}, {1, 1, 1, 10}, {150, 4e6, 100, 5e6}, {0.3, 9, 0.1, 10}, {0.1, 20, 0.1, 20},
	} {
		var a plot.Axis
		logarithmic(&a, c.low, c.high)
		if math.Abs(a.Min/c.min-1) > 1e-9 || math.Abs(a.Max/c.max-1) > 1e-9 {
			t.Errorf("%v to %v lie from %v to %v", c.low, c.high, a.Min, a.Max)
		}
		ticks := a.Tick.Marker.Ticks(a.Min, a.Max)
		if !slices.ContainsFunc(ticks, func(x plot.Tick) bool { return x.Label != "" && x.Value >= a.Min && x.Value <= a.Max }) {
			t.Errorf("%v to %v has no label", c.low, c.high)
		}
	}
}

func TestRefuses(t *testing.T) {
	if _, err := Read(strings.NewReader("")); err == nil {
		t.Error("nothing was read as results")
	}
	if _, err := Read(strings.NewReader("{\n")); err == nil {
		t.Error("half a line was read as a result")
	}
	if err := Draw(filepath.Join(t.TempDir(), "x.gif"), []Result{{Subject: "kumquat", Min: 1, Median: 1, Max: 1}}); err == nil {
		t.Error("a GIF was drawn")
	}
}
