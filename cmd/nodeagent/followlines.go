// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"nodeagent/internal/agent"
)

// lineFollower writes one line for each change.
type lineFollower struct {
	out      io.Writer
	started  time.Time // of the run that the rest is about
	steps    map[string]shownStep
	warnings int
	upgrade  string
}

type shownStep struct {
	status agent.Status
	note   string
	noted  time.Time
}

// notEvery is how often counts that go on, such as of images, make a line.
const notEvery = 10 * time.Second

func (f *lineFollower) end() {}

func (f *lineFollower) show(r *statusReport, now time.Time) {
	for _, line := range f.changes(r, now) {
		fmt.Fprintln(f.out, line)
	}
}

// changes returns a line for everything that was not there at the last call, in the
// order in which it happened.
func (f *lineFollower) changes(r *statusReport, now time.Time) []string {
	if r.Started != nil && !r.Started.Equal(f.started) || f.steps == nil {
		f.steps, f.warnings = map[string]shownStep{}, 0
		if r.Started != nil {
			f.started = *r.Started
		}
	}
	type change struct {
		at   time.Time
		text string
	}
	var all []change
	add := func(at time.Time, name, format string, args ...any) {
		all = append(all, change{at, fmt.Sprintf("%s  %s %s", at.UTC().Format(time.TimeOnly), pad(agent.Printable(name), nameColumns),
			agent.Printable(fmt.Sprintf(format, args...)))})
	}
	for _, record := range r.Steps {
		before := f.steps[record.Name]
		begun, took := now, ""
		if record.Started != nil {
			begun = *record.Started
		}
		if record.Seconds > 0 {
			took = " after " + duration(agent.Seconds(record.Seconds))
		}
		ended := begun.Add(agent.Seconds(record.Seconds))
		note := strings.TrimSuffix(": "+record.Note, ": ")
		after := shownStep{record.Status, before.note, before.noted}
		switch {
		case record.Status == agent.Running:
			if before.status != agent.Running {
				add(begun, record.Name, "started")
			}
			if record.Note != "" && (shape(record.Note) != shape(before.note) || record.Note != before.note && now.Sub(before.noted) >= notEvery) {
				add(now, record.Name, "%s", record.Note)
				after.note, after.noted = record.Note, now
			}
		case record.Status == before.status:
		case record.Status == agent.Done:
			add(ended, record.Name, "done%s%s", took, note)
		case record.Status == agent.Skipped:
			add(ended, record.Name, "skipped%s", note)
		case record.Error != nil:
			add(ended, record.Name, "%s%s: %s: %s", record.Status, took, record.Error.Code, record.Error.Message)
		}
		f.steps[record.Name] = after
	}
	for _, warning := range r.Warnings[min(f.warnings, len(r.Warnings)):] {
		add(now, cmp.Or(warning.Step, "nodeagent"), "warning: %s: %s", warning.Code, warning.Message)
	}
	f.warnings = len(r.Warnings)
	if u := r.Upgrade; u != nil {
		if text := fmt.Sprintf("to %s: %s, stage %s", u.To, u.Status, u.Stage); text != f.upgrade {
			f.upgrade = text
			add(now, "upgrade", "%s", text)
		}
	}
	slices.SortStableFunc(all, func(a, b change) int { return a.at.Compare(b.at) })
	var lines []string
	for _, change := range all {
		lines = append(lines, change.text)
	}
	return lines
}

// shape is a note without its numbers.
func shape(note string) string {
	return strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return -1
		}
		return c
	}, note)
}
