// SPDX-License-Identifier: Apache-2.0

// Package timeline says where the time of a boot went: which steps ran when, side by
// side, and which of them the end of the boot had to wait for. It is pure; it reads
// nothing and knows no clock.
package timeline

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Statuses of a step that look different; they are those of the agent.
const (
	Pending     = "pending"
	Running     = "running"
	Skipped     = "skipped"
	Failed      = "failed"
	Interrupted = "interrupted"
)

// Step is what is known of one step.
type Step struct {
	Name   string
	Needs  []string
	Status string
	Code   string // of the failure
	Note   string
	Waits  bool // it mostly waits for others
	// Monotonic is when it began, in seconds since the kernel did; 0 is not known.
	Monotonic float64
	Started   time.Time // the same as time of day, which may have been set since
	Seconds   float64
}

// Boot is the boot before the steps, as systemd tells it, in seconds; 0 is not known or
// was not there. Firmware and Loader are before the kernel, all others after its start.
type Boot struct {
	Firmware, Loader, InitRD, Userspace float64
}

// Facts are what a Chart is made of.
type Facts struct {
	Role, Node, Phase, BootID string

	Boot      Boot
	Started   time.Time // of the agent
	Monotonic float64   // the same in seconds since the kernel's start; 0 is not known
	Now       float64   // in seconds since the kernel's start, while steps run; else 0
	Steps     []Step
}

// Chart is a boot drawn out in time. Keys are only ever added.
type Chart struct {
	SchemaVersion int    `json:"schemaVersion"`
	BootID        string `json:"bootID,omitempty"`
	Role          string `json:"role,omitempty"`
	Node          string `json:"node,omitempty"`
	Phase         string `json:"phase,omitempty"`
	// Clock is monotonic, or wall where only the time of day is known, which may have
	// been set on the way.
	Clock   string  `json:"clock"`
	Begin   float64 `json:"begin"`   // of the first span, in seconds since the kernel's start
	Seconds float64 `json:"seconds"` // from there to the last end
	Spans   []Span  `json:"spans"`   // in the order of their start
	// Critical are the names of the spans that the end had to wait for, one after the
	// other; Between is the time between them.
	Critical []string `json:"critical"`
	Between  float64  `json:"between"`
}

// Span is one step, or one part of the boot before the steps.
type Span struct {
	Name     string   `json:"name"`
	Status   string   `json:"status"`
	System   bool     `json:"system,omitempty"` // it is no step of nodeagent
	Start    float64  `json:"start"`            // in seconds since the kernel's start
	Seconds  float64  `json:"seconds"`
	Critical bool     `json:"critical"`
	Waits    bool     `json:"waits,omitempty"`
	Needs    []string `json:"needs,omitempty"`
	Code     string   `json:"code,omitempty"`
	Note     string   `json:"note,omitempty"`
}

// End is when the span ended, in seconds since the kernel's start.
func (s Span) End() float64 { return s.Start + s.Seconds }

const (
	maxSteps   = 200
	maxText    = 300           // characters of a name or note
	maxSeconds = 100 * 86400.0 // nothing is believed to take longer
)

// New draws a boot out. Whatever the facts are the chart can be drawn: what cannot be is
// bounded.
func New(facts Facts) *Chart {
	c := &Chart{SchemaVersion: 1, BootID: text(facts.BootID), Role: text(facts.Role), Node: text(facts.Node), Phase: text(facts.Phase), Clock: "monotonic", Critical: []string{}}
	begun := bounded(facts.Monotonic)
	c.Spans = before(facts.Boot, begun)
	ends := map[string]float64{}
	for _, step := range facts.Steps[:min(len(facts.Steps), maxSteps)] {
		if step.Status == Pending || step.Monotonic <= 0 && step.Started.IsZero() {
			continue
		}
		span := Span{Name: text(step.Name), Status: text(step.Status), Waits: step.Waits, Code: text(step.Code), Note: text(step.Note), Seconds: bounded(step.Seconds)}
		for _, need := range step.Needs[:min(len(step.Needs), maxSteps)] {
			span.Needs = append(span.Needs, text(need))
		}
		if step.Monotonic > 0 {
			span.Start = bounded(step.Monotonic)
		} else {
			c.Clock = "wall"
			// A step begins when the last of those that it needs has ended; only where none
			// is there the time of day, which may have been set, has to do.
			for _, need := range span.Needs {
				span.Start = max(span.Start, ends[need])
			}
			if span.Start == 0 {
				span.Start = begun + bounded(step.Started.Sub(facts.Started).Seconds())
			}
		}
		if step.Status == Running && facts.Now > span.Start {
			span.Seconds = bounded(facts.Now - span.Start)
		}
		ends[span.Name] = span.End()
		c.Spans = append(c.Spans, span)
	}
	slices.SortStableFunc(c.Spans, func(a, b Span) int { return cmp.Compare(a.Start, b.Start) })
	if len(c.Spans) == 0 {
		c.Spans = []Span{}
		return c
	}
	c.Begin = c.Spans[0].Start
	for _, span := range c.Spans {
		c.Seconds = max(c.Seconds, span.End()-c.Begin)
	}
	c.findCritical()
	return c
}

// before is the boot up to the agent: firmware, loader, kernel, initrd, userspace.
func before(boot Boot, agent float64) (spans []Span) {
	add := func(name string, from, to float64) {
		if to > from {
			spans = append(spans, Span{Name: name, Status: "done", System: true, Start: from, Seconds: to - from})
		}
	}
	// As systemd-analyze(1) computes them.
	loader, firmware := bounded(boot.Loader), bounded(boot.Firmware)
	add("boot: firmware", -firmware, -loader)
	add("boot: loader", -loader, 0)
	initrd, userspace := bounded(boot.InitRD), bounded(boot.Userspace)
	switch {
	case userspace == 0 || agent > 0 && userspace > agent: // systemd could not be asked
		add("before nodeagent", 0, agent)
		return spans
	case initrd > 0 && initrd < userspace:
		add("boot: kernel", 0, initrd)
		add("boot: initrd", initrd, userspace)
	default:
		add("boot: kernel", 0, userspace)
	}
	add("boot: userspace", userspace, agent)
	return spans
}

// findCritical walks back from the span that ended last: to the one of its needs that
// ended last, and from a step that needs none, or none that is there, to whatever ended
// last before it began.
func (c *Chart) findCritical() {
	at := 0
	for i, span := range c.Spans {
		if span.End() >= c.Spans[at].End() {
			at = i
		}
	}
	var path []int
	for at >= 0 {
		path = append(path, at)
		c.Spans[at].Critical = true
		at = c.previous(at)
	}
	slices.Reverse(path)
	end := c.Spans[path[0]].Start
	for _, i := range path {
		span := c.Spans[i]
		c.Critical = append(c.Critical, span.Name)
		c.Between += max(span.Start-end, 0)
		end = max(end, span.End())
	}
}

// previous is the span that this one had to wait for, or -1. Times are rounded to
// milliseconds, so what ends a little later than it should counts as before.
func (c *Chart) previous(at int) int {
	const rounding = 0.002
	span, best := c.Spans[at], -1
	for _, needed := range []bool{true, false} {
		for i, other := range c.Spans[:at] {
			if needed && !slices.Contains(span.Needs, other.Name) || !needed && other.End() > span.Start+rounding || other.Critical {
				continue
			}
			if best < 0 || other.End() >= c.Spans[best].End() {
				best = i
			}
		}
		if best >= 0 {
			break
		}
	}
	return best
}

// ByTime returns the spans, the longest first.
func (c *Chart) ByTime() []Span {
	return slices.SortedStableFunc(slices.Values(c.Spans), func(a, b Span) int { return cmp.Compare(b.Seconds, a.Seconds) })
}

func bounded(seconds float64) float64 {
	if !(seconds > 0) { // also what is no number
		return 0
	}
	return min(seconds, maxSeconds)
}

// text is one line of bounded length.
func text(s string) string {
	s = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(s, "?"))
	if runes := []rune(s); len(runes) > maxText {
		return string(runes[:maxText-1]) + "…"
	}
	return s
}
