// SPDX-License-Identifier: Apache-2.0

package timeline

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
)

// Sizes of the drawing, in pixels.
const (
	svgWidth   = 1100
	marginLeft = 20
	plotLeft   = 150
	plotRight  = svgWidth - 90
	plotTop    = 92
	lane       = 22
	barHeight  = 14
	minBar     = 2
	charWidth  = 6.6 // about, of the labels' font
)

// Bar is where a span is drawn, in pixels.
type Bar struct {
	Span
	X, Y, Width float64
	// Label is the text beside the bar, which begins at LabelX, or ends there.
	Label  string
	LabelX float64
	ToLeft bool
}

// Tick is a line of the axis.
type Tick struct {
	X     float64
	Label string
}

// Layout places the spans: one lane for each, from top to bottom as they began, so what
// ran side by side is above each other.
func (c *Chart) Layout() (bars []Bar, ticks []Tick) {
	total := max(c.Seconds, 0.001)
	x := func(seconds float64) float64 {
		return plotLeft + (seconds-c.Begin)/total*(plotRight-plotLeft)
	}
	for i, span := range c.Spans {
		bar := Bar{Span: span, X: x(span.Start), Y: plotTop + float64(i)*lane, Width: max(x(span.End())-x(span.Start), minBar)}
		bar.Label = Duration(span.Seconds)
		if span.Code != "" {
			bar.Label += " " + span.Code
		}
		bar.LabelX = bar.X + bar.Width + 5
		if bar.LabelX+float64(len(bar.Label))*charWidth > svgWidth-5 {
			bar.LabelX, bar.ToLeft = bar.X-5, true
		}
		bars = append(bars, bar)
	}
	step := tickStep(total)
	for second := 0.0; second <= total; second += step {
		ticks = append(ticks, Tick{X: x(c.Begin + second), Label: tickLabel(second, step)})
	}
	return bars, ticks
}

// tickStep is a round number of seconds of which about ten fill the axis.
func tickStep(total float64) float64 {
	for _, step := range []float64{0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 6 * 3600, 86400} {
		if total/step <= 12 {
			return step
		}
	}
	return math.Ceil(total / 12)
}

func tickLabel(seconds, step float64) string {
	if step < 1 {
		return fmt.Sprintf("%.2f s", seconds)
	}
	return fmt.Sprintf("%.0f s", seconds)
}

// Duration prints seconds as 0.04s, 4.2s, 12s, 3m07s, 1h02m.
func Duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second)).Round(time.Millisecond)
	switch {
	case d < time.Second:
		return fmt.Sprintf("%.2fs", seconds)
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", seconds)
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", seconds)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

const svgHead = `<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="%[1]d" height="%[2]d" viewBox="0 0 %[1]d %[2]d" role="img">
<title>%[3]s</title>
<style>
text { font: 12px "DejaVu Sans", "Liberation Sans", Arial, sans-serif; fill: #24292f; }
.head { font-size: 17px; font-weight: bold; } .sub, .tick { fill: #57606a; } .label { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-opacity: 0.8; } .tick { font-size: 11px; }
.left { text-anchor: end; } .mid { text-anchor: middle; }
.grid { stroke: #d8dee4; stroke-width: 1; } .link { stroke: #bc4c00; stroke-width: 1; stroke-dasharray: 2 2; fill: none; }
.odd { fill: #f6f8fa; }
.other { fill: #6ea8d9; } .critical { fill: #e36209; } .failed { fill: #cf222e; } .running { fill: #8250df; } .skipped { fill: #afb8c1; }
.name-critical { font-weight: bold; } .text-failed { fill: #cf222e; font-weight: bold; }
</style>
<defs><pattern id="waits" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="3" height="6" fill="#ffffff" fill-opacity="0.55"/></pattern></defs>
<rect width="100%%" height="100%%" fill="#ffffff"/>
`

// SVG draws the chart as one file that needs no other: no scripts, no fonts, no links.
func (c *Chart) SVG(w io.Writer) error {
	bars, ticks := c.Layout()
	bottom := plotTop + len(bars)*lane
	var out bytes.Buffer
	fmt.Fprintf(&out, svgHead, svgWidth, bottom+20, escape(c.Headline()))
	fmt.Fprintf(&out, `<text class="head" x="%d" y="30">%s</text>`+"\n", marginLeft, escape(c.Headline()))
	c.legend(&out)
	for i := range bars {
		if i%2 == 1 {
			fmt.Fprintf(&out, `<rect class="odd" x="0" y="%d" width="%d" height="%d"/>`+"\n", plotTop+i*lane, svgWidth, lane)
		}
	}
	for _, tick := range ticks {
		fmt.Fprintf(&out, `<line class="grid" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/><text class="tick mid" x="%.1f" y="%d">%s</text>`+"\n",
			tick.X, plotTop, tick.X, bottom, tick.X, plotTop-6, tick.Label)
	}
	for i, bar := range bars {
		if bar.Critical {
			for _, next := range bars[i+1:] {
				if next.Critical {
					fmt.Fprintf(&out, `<path class="link" d="M%.1f %.1f V%.1f"/>`+"\n", next.X, bar.Y+lane/2, next.Y+(lane-barHeight)/2)
					break
				}
			}
		}
	}
	for _, bar := range bars {
		bar.draw(&out)
	}
	out.WriteString("</svg>\n")
	_, err := w.Write(out.Bytes())
	return err
}

// legend says what the colours mean, as far as they are in the drawing.
func (c *Chart) legend(out *bytes.Buffer) {
	x := float64(marginLeft)
	entry := func(class, label string, waits bool) {
		fmt.Fprintf(out, `<rect class="%s" x="%.0f" y="45" width="14" height="12"/>`, class, x)
		if waits {
			fmt.Fprintf(out, `<rect fill="url(#waits)" x="%.0f" y="45" width="14" height="12"/>`, x)
		}
		fmt.Fprintf(out, `<text class="sub" x="%.0f" y="55">%s</text>`+"\n", x+20, label)
		x += 20 + float64(len(label))*charWidth + 24
	}
	shown := map[string]bool{}
	waits := false
	for _, span := range c.Spans {
		shown[span.class()] = true
		waits = waits || span.Waits
	}
	for _, class := range [][2]string{{"critical", "critical path: the end had to wait for it"}, {"other", "ran beside it"}, {"failed", "failed"}, {"running", "runs"}, {"skipped", "nothing to do"}} {
		if shown[class[0]] {
			entry(class[0], class[1], false)
		}
	}
	if waits {
		entry("other", "striped: mostly waits for others", true)
	}
	if c.Clock == "wall" {
		fmt.Fprintf(out, `<text class="sub" x="%.0f" y="55">by the time of day</text>`+"\n", x)
	}
}

// class is how a span is coloured.
func (s Span) class() string {
	switch {
	case s.Status == Failed || s.Status == Interrupted:
		return "failed"
	case s.Status == Running:
		return "running"
	case s.Critical:
		return "critical"
	case s.Status == Skipped:
		return "skipped"
	}
	return "other"
}

func (b Bar) draw(out *bytes.Buffer) {
	middle := b.Y + lane/2 + 4
	nameClass, anchor := "left", ""
	if b.Critical {
		nameClass += " name-critical"
	}
	if b.class() == "failed" {
		nameClass, anchor = "left text-failed", " text-failed"
	}
	if b.ToLeft {
		anchor += " left"
	}
	title := fmt.Sprintf("%s: %s, from %.2f s to %.2f s", b.Name, b.Status, b.Start, b.End())
	for _, more := range []string{b.Code, b.Note} {
		if more != "" {
			title += ", " + more
		}
	}
	name := b.Name
	if runes := []rune(name); len(runes) > 18 {
		name = string(runes[:17]) + "…"
	}
	fmt.Fprintf(out, `<g><title>%s</title><text class="%s" x="%d" y="%.1f">%s</text>`, escape(title), nameClass, plotLeft-8, middle, escape(name))
	rect := fmt.Sprintf(`x="%.1f" y="%.1f" width="%.1f" height="%d" rx="2"/>`, b.X, b.Y+(lane-barHeight)/2, b.Width, barHeight)
	fmt.Fprintf(out, `<rect class="%s" %s`, b.class(), rect)
	if b.Waits {
		out.WriteString(`<rect fill="url(#waits)" ` + rect)
	}
	fmt.Fprintf(out, `<text class="sub label%s" x="%.1f" y="%.1f">%s</text></g>`+"\n", anchor, b.LabelX, middle, escape(b.Label))
}

// Headline is the boot in one line.
func (c *Chart) Headline() string {
	name := strings.TrimSpace(c.Role + " " + c.Node)
	if name == "" {
		name = "role not known"
	}
	if c.Phase != "" {
		name += ": " + c.Phase
	}
	return fmt.Sprintf("%s, %s in all", name, Duration(c.Seconds))
}

func escape(text string) string {
	var out bytes.Buffer
	// A bytes.Buffer takes everything.
	_ = xml.EscapeText(&out, []byte(text))
	return out.String()
}
