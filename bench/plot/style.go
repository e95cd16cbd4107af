package plot

import (
	"image/color"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// The colours tell apart for those who do not see red and green as two (Okabe and Ito's, and greys for the floors); a subject
// has the same in all drawings.
var colours = map[string]color.RGBA{
	"kumquat":         {230, 97, 0, 255},
	"kumquat-message": {240, 170, 90, 255},
	"kumquat-single":  {240, 170, 90, 255},
	"kumquat-shallow": {240, 170, 90, 255},
	"kumquat-none":    {240, 170, 90, 255},
	"kumquat-try":     {240, 170, 90, 255},
	"kumquat-one":     {240, 170, 90, 255},
	"kumquat-pair":    {240, 170, 90, 255},
	"boost":           {0, 114, 178, 255},
	"posix":           {0, 158, 115, 255},
	"sysv":            {204, 121, 167, 255},
	"sysv-types":      {150, 70, 120, 255},
	"pipe":            {86, 180, 233, 255},
	"unix":            {190, 170, 20, 255},
	"zmq":             {120, 60, 20, 255},
	"gochan":          {0, 0, 0, 255},
}

var floors = []string{"memcpy", "cacheline", "futex"}

// style is the line of a subject: ours is thick, floors are dashed and grey.
func style(subject string) draw.LineStyle {
	if i := slices.Index(floors, subject); i >= 0 {
		return draw.LineStyle{Color: color.Gray{uint8(90 + 40*i)}, Width: 1.5, Dashes: []vg.Length{5, 3}}
	}
	c, known := colours[subject]
	if !known {
		c = color.RGBA{100, 100, 100, 255}
	}
	width := vg.Length(1.7)
	if subject == "kumquat" {
		width = 3.5
	}
	return draw.LineStyle{Color: c, Width: width}
}

// subjects returns the names in the order of their first results.
func subjects(rs []Result) []string {
	var s []string
	for _, r := range rs {
		if !slices.Contains(s, r.Subject) {
			s = append(s, r.Subject)
		}
	}
	return s
}

// legend names the lines, beside the panels: inside it would cover some.
func legend(rs []Result) plot.Legend {
	l := plot.NewLegend()
	l.Top, l.Left = true, true
	l.TextStyle.Font.Size, l.TextStyle.Font.Variant = 11, "Sans"
	l.ThumbnailWidth = 26
	l.Padding = 3
	for _, name := range subjects(rs) {
		l.Add(name, &plotter.Line{LineStyle: style(name)})
	}
	return l
}
