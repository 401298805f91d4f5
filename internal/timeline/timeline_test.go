// SPDX-License-Identifier: Apache-2.0

package timeline_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/timeline"
)

func step(name string, start, seconds float64, needs ...string) timeline.Step {
	return timeline.Step{Name: name, Status: "done", Monotonic: start, Seconds: seconds, Needs: needs}
}

func TestCriticalPath(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		facts timeline.Facts
		want  []string
	}{
		{"nothing", timeline.Facts{}, []string{}},
		{"the longer of two", timeline.Facts{Steps: []timeline.Step{step("a", 1, 1), step("b", 2, 5, "a"), step("c", 2, 3, "a"), step("d", 7, 1, "b", "c")}}, []string{"a", "b", "d"}},
		{"not what merely ended last before it", timeline.Facts{Steps: []timeline.Step{step("a", 1, 1), step("b", 2, 1, "a"), step("x", 1, 2.5), step("c", 3.6, 9, "b")}}, []string{"a", "b", "c"}},
		{"a need that did not apply", timeline.Facts{Steps: []timeline.Step{step("a", 1, 1), step("c", 2.001, 9, "gone")}}, []string{"a", "c"}},
		{"from power-on", timeline.Facts{Boot: timeline.Boot{Firmware: 3, Loader: 1, InitRD: 2, Userspace: 4}, Monotonic: 10, Steps: []timeline.Step{step("a", 10, 1), step("b", 11, 1, "a")}},
			[]string{"boot: firmware", "boot: loader", "boot: kernel", "boot: initrd", "boot: userspace", "a", "b"}},
		{"a step beside that outlives the rest", timeline.Facts{Steps: []timeline.Step{step("a", 1, 1), step("b", 2, 1, "a"), step("slow", 2, 60, "a")}}, []string{"a", "slow"}},
		{"needs in a circle", timeline.Facts{Steps: []timeline.Step{step("a", 1, 1, "b"), step("b", 1, 1, "a"), step("c", 1, 0, "c")}}, []string{"a", "b"}},
	} {
		if got := timeline.New(test.facts).Critical; !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// A time of day that was set on the way, to whatever, changes no length and no order.
func TestTheTimeOfDayIsSet(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for _, jump := range []time.Duration{-50 * 365 * 24 * time.Hour, -time.Hour, 0, time.Hour, 50 * 365 * 24 * time.Hour} {
		chart := timeline.New(timeline.Facts{Started: noon, Monotonic: 5, Steps: []timeline.Step{
			{Name: "a", Status: "done", Started: noon, Seconds: 1},
			{Name: "b", Status: "done", Started: noon.Add(time.Second + jump), Seconds: 2, Needs: []string{"a"}},
			{Name: "c", Status: "done", Started: noon.Add(3*time.Second + jump), Seconds: 3, Needs: []string{"b"}},
		}})
		if chart.Clock != "wall" || chart.Seconds != 11 || chart.Spans[3].Start != 8 {
			t.Errorf("set by %s: %+v", jump, chart)
		}
	}
}

func TestRunning(t *testing.T) {
	t.Parallel()
	chart := timeline.New(timeline.Facts{Now: 30, Steps: []timeline.Step{{Name: "a", Status: timeline.Running, Monotonic: 10}, {Name: "b", Status: timeline.Pending, Needs: []string{"a"}}}})
	if len(chart.Spans) != 1 || chart.Spans[0].Seconds != 20 {
		t.Errorf("%+v, want one that runs for 20 s", chart.Spans)
	}
}

// wellFormed checks that a drawing is XML, and needs and runs nothing from outside.
func wellFormed(t *testing.T, svg []byte) {
	t.Helper()
	outside := regexp.MustCompile(`https?:|//|@import|url\(`)
	decoder := xml.NewDecoder(bytes.NewReader(svg))
	within := ""
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("no XML: %v", err)
		}
		if text, ok := token.(xml.CharData); ok && within == "style" && outside.Match(text) {
			t.Errorf("the style refers to something: %s", text)
		}
		element, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		within = element.Name.Local
		if !slices.Contains([]string{"svg", "title", "style", "defs", "pattern", "rect", "text", "line", "path", "g"}, within) {
			t.Errorf("it has an element <%s>", within)
		}
		for _, attribute := range element.Attr {
			name, value := attribute.Name.Local, attribute.Value
			if strings.HasPrefix(name, "on") || name == "href" || name != "xmlns" && value != "url(#waits)" && outside.MatchString(value) {
				t.Errorf("it has an attribute %s=%q", name, value)
			}
		}
	}
}

// Names and notes come from outside: they are text in the drawing, and nothing else.
func TestHostileFacts(t *testing.T) {
	t.Parallel()
	evil := `"><script>alert(1)</script><image href="//x/y"/>&amp;]]>` + "\x00\x1b\xff\u202e" + strings.Repeat("w", 1000)
	facts := timeline.Facts{Role: evil, Node: evil, Phase: evil, Monotonic: math.NaN(), Boot: timeline.Boot{Firmware: math.Inf(1), Userspace: -4}, Now: math.Inf(1)}
	for i, seconds := range []float64{math.NaN(), math.Inf(-1), -5, 1e300, 0, 3} {
		facts.Steps = append(facts.Steps, timeline.Step{Name: evil, Code: evil, Note: evil, Needs: []string{evil}, Status: []string{evil, timeline.Failed, timeline.Running}[i%3], Monotonic: 2, Seconds: seconds, Waits: true})
	}
	for range 1000 {
		facts.Steps = append(facts.Steps, step("more", 1e9, 1e9))
	}
	chart := timeline.New(facts)
	var svg bytes.Buffer
	if err := chart.SVG(&svg); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, svg.Bytes())
	if svg.Len() > 1<<20 {
		t.Errorf("the drawing has %d bytes", svg.Len())
	}
	if _, err := json.Marshal(chart); err != nil {
		t.Error(err)
	}
}

func TestTicksAreRound(t *testing.T) {
	t.Parallel()
	for seconds, want := range map[float64]string{0.05: "0.01 s", 8: "1 s", 365: "60 s", 40000: "3600 s"} {
		_, ticks := timeline.New(timeline.Facts{Steps: []timeline.Step{step("a", 1, seconds)}}).Layout()
		if len(ticks) < 3 || len(ticks) > 14 || ticks[1].Label != want {
			t.Errorf("%g s: %v, want steps of %s", seconds, ticks, want)
		}
	}
}

// Whatever a state file says, there is a chart, and the drawing is one.
func FuzzChart(f *testing.F) {
	f.Add(`{"Monotonic":1,"Steps":[{"Name":"a","Status":"done","Monotonic":1,"Seconds":2,"Needs":["a","b"]},{"Name":"b","Status":"failed","Started":"2026-01-01T00:00:00Z","Note":"<"}]}`)
	f.Add(`{"Boot":{"Firmware":1,"Loader":2,"InitRD":3,"Userspace":2},"Now":-1,"Steps":[{"Name":"\u0000","Status":"running","Monotonic":1e308}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		var facts timeline.Facts
		if json.Unmarshal([]byte(text), &facts) != nil {
			return
		}
		chart := timeline.New(facts)
		bars, _ := chart.Layout()
		for _, bar := range bars {
			if !(bar.X >= 0 && bar.X+bar.Width <= 1100) || bar.Seconds < 0 {
				t.Errorf("a bar outside of the drawing: %+v", bar)
			}
		}
		var svg bytes.Buffer
		if err := chart.SVG(&svg); err != nil {
			t.Fatal(err)
		}
		wellFormed(t, svg.Bytes())
		if _, err := json.Marshal(chart); err != nil {
			t.Error(err)
		}
	})
}
