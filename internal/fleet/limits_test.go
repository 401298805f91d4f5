// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"
)

func goodReport() Report {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	return Report{Cluster: "c", Revision: 1, Sent: at,
		State:  State{Node: "w1", Role: "worker", Boot: "b1", Phase: "running", Steps: []Step{{Name: "join", Status: "running", Note: "waits"}}},
		Events: []Event{{Seq: 1, Time: at, Step: "join", Status: "running"}}}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestDecodeReportRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Report){
		"no node":             func(r *Report) { r.Node = "" },
		"no boot":             func(r *Report) { r.Boot = "" },
		"a long name":         func(r *Report) { r.Node = strings.Repeat("n", maxName+1) },
		"a terminal's escape": func(r *Report) { r.Node = "w1\x1b[2J" },
		"a line break":        func(r *Report) { r.Steps[0].Note = "a\nb" },
		"text from the right": func(r *Report) { r.Steps[0].Note = "a\u202eb" },
		"a long note":         func(r *Report) { r.Steps[0].Note = strings.Repeat("x", maxText+1) },
		"many steps":          func(r *Report) { r.Steps = make([]Step, maxSteps+1) },
		"many events":         func(r *Report) { r.Events = make([]Event, maxEvents+1) },
		"an empty event":      func(r *Report) { r.Events = []Event{{}} },
		"a huge revision":     func(r *Report) { r.Revision = 1 << 60 },
		"a negative revision": func(r *Report) { r.Revision = -1 },
		"a clock far off":     func(r *Report) { r.Offset = 1e300 },
	} {
		report := goodReport()
		change(&report)
		data, err := json.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeReport(bytes.NewReader(data)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	good, err := json.Marshal(goodReport())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeReport(bytes.NewReader(good)); err != nil {
		t.Error(err)
	}
	for name, from := range map[string]io.Reader{
		"nothing": strings.NewReader(""), "an array": strings.NewReader("[]"), "endless": endless{}, "two": strings.NewReader(string(good) + string(good)),
		"deep": strings.NewReader(strings.Repeat("[", 100_000)),
	} {
		if _, err := DecodeReport(from); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func FuzzDecodeReport(f *testing.F) {
	good, err := json.Marshal(goodReport())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"node":"\u0000","events":[{"time":"0001-01-01T00:00:00Z"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		report, err := DecodeReport(bytes.NewReader(data))
		if err != nil {
			return
		}
		for _, e := range report.Events {
			if report.Key(e) < 0 {
				t.Error("a negative key")
			}
		}
		// What one control node takes it can write, and what is written is taken again.
		again, err := json.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeReport(bytes.NewReader(again)); err != nil && len(again) <= maxBody {
			t.Fatal(err)
		}
	})
}

// What a node clips is taken, whatever its steps say.
func TestClip(t *testing.T) {
	t.Parallel()
	report := goodReport()
	report.Node, report.Steps[0].Note = strings.Repeat("é", 300), "a\tb\x00\xff"+strings.Repeat("ü", 600)
	report.Steps = append(report.Steps, make([]Step, 200)...)
	for i := range report.Steps[1:] {
		report.Steps[i+1] = report.Steps[0]
	}
	report.State.clip()
	if err := report.check(); err != nil {
		t.Error(err)
	}
}

func TestReportsOfOtherTimesAreRefused(t *testing.T) {
	t.Parallel()
	report := goodReport()
	for _, test := range []struct {
		later   time.Duration
		refused bool
	}{{0, false}, {9 * time.Minute, false}, {-9 * time.Minute, false}, {11 * time.Minute, true}, {-11 * time.Minute, true}, {1000 * time.Hour, true}} {
		if refusal := report.checkTime(report.Sent.Add(test.later)); (refusal != nil) != test.refused {
			t.Errorf("%s later: %v", test.later, refusal)
		}
	}
}

func TestRates(t *testing.T) {
	t.Parallel()
	r := rates{burst: 3, perSec: 1}
	var now time.Duration
	allowed := 0
	for range 10 {
		if r.allow("a", now) {
			allowed++
		}
	}
	if allowed != 3 || !r.allow("b", now) {
		t.Errorf("%d of ten at once are allowed", allowed)
	}
	now += 2 * time.Second
	for i, want := range []bool{true, true, false} {
		if r.allow("a", now) != want {
			t.Errorf("two seconds later: number %d", i)
		}
	}
	// Names are free: their number is not.
	for i := range 10 * maxNodes {
		r.allow(string(rune(i)), now)
	}
	if len(r.buckets) > 4*maxNodes {
		t.Errorf("%d senders are remembered", len(r.buckets))
	}
}
