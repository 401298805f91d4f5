// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"nodeagent/internal/agent"
)

// screen writes for people, in lines of at most width columns. What it is given may
// hold anything: cut and wrap take out what a terminal would obey.
type screen struct {
	out    io.Writer
	width  int
	colour bool
	// fold is how many steps that are over become one line, where the screen is low.
	fold int
}

const (
	minWidth = 40
	maxWidth = 200 // lines that are longer are hard to read
)

func newScreen(out io.Writer) *screen {
	s := &screen{out: out, width: 80}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		s.colour = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			s.width = min(max(width, minWidth), maxWidth)
		}
	}
	return s
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
	grey   = "90"
)

func (s *screen) paint(colour, text string) string {
	if !s.colour || colour == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// show writes a report as it is seen at a moment.
func (s *screen) show(r *statusReport, now time.Time) {
	s.headline(r, now)
	if len(r.Steps) > 0 {
		fmt.Fprintln(s.out)
	}
	s.steps(r, now)
	if r.Error != nil {
		s.failure("nodeagent", r.Error)
	}
	for _, record := range r.Steps {
		if record.Error != nil {
			s.failure("Step "+record.Name, record.Error)
		}
	}
	if len(r.Warnings) > 0 {
		fmt.Fprintln(s.out, "\n"+s.paint(yellow, "Warnings"))
	}
	for _, warning := range r.Warnings {
		s.paragraph("  ", fmt.Sprintf("%s: %s", warning.Code, warning.Message))
	}
	s.upgrade(r.Upgrade, now)
	s.gates(r)
	s.health(r)
}

// lines are those of a report that fit a terminal of that height: steps that are over
// become one line, then the end is left out.
func (s *screen) lines(r *statusReport, now time.Time, height int) []string {
	render := func(fold int) []string {
		var out bytes.Buffer
		inner := *s
		inner.out, inner.fold = &out, fold
		inner.show(r, now)
		return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	}
	lines := render(0)
	if over := len(lines) - height; over > 0 {
		lines = render(over + 1)
	}
	return lines[:min(len(lines), max(height, 1))]
}

func (s *screen) headline(r *statusReport, now time.Time) {
	if r.Phase == agent.PhaseIdle && len(r.Steps) == 0 {
		fmt.Fprintln(s.out, "nodeagent never ran on this machine")
		return
	}
	colours := map[agent.Phase]string{agent.PhaseDone: green, agent.PhaseFailed: red, agent.PhaseDegraded: yellow, agent.PhaseRunning: yellow}
	word, rest, _ := strings.Cut(standing(r, now), " ")
	s.sentence(strings.TrimSpace(cmp.Or(r.Role, "role not known")+" "+r.Node), colours[r.Phase], word, rest)
}

// sentence writes "name: word rest", where one line is too short with the name in a line
// of its own.
func (s *screen) sentence(name, colour, word, rest string) {
	name = cut(name, s.width-1) + ":"
	limit, indent := s.width-columns(name)-1, " "
	if columns(word+" "+rest) > limit {
		name, limit, indent = name+"\n", s.width-2, "  "
	}
	lines := wrap(word+" "+rest, limit)
	lines[0] = s.paint(colour, word) + strings.TrimPrefix(lines[0], word)
	fmt.Fprintln(s.out, name+indent+strings.Join(lines, "\n"+indent))
}

// standing says how the run stands and since when.
func standing(r *statusReport, now time.Time) string {
	text := map[agent.Phase]string{
		agent.PhaseDone: "done", agent.PhaseFailed: "FAILED", agent.PhaseDegraded: "done, with warnings,",
		agent.PhaseRunning: "running", agent.PhaseIdle: "not run on this boot; the last run ended",
	}[r.Phase]
	switch {
	case r.Started == nil || r.Ended == nil && r.Phase != agent.PhaseFailed && r.Phase != agent.PhaseRunning:
		return strings.TrimSuffix(text, ",")
	case r.Phase == agent.PhaseRunning:
		return fmt.Sprintf("%s for %s, since %s", text, duration(now.Sub(*r.Started)), clock(*r.Started, now))
	case r.Ended == nil:
		return text + "; other steps still run"
	}
	if since := ago(now.Sub(*r.Ended)); since != "" {
		text += " " + since + ","
	}
	text += " at " + clock(*r.Ended, now)
	if r.Ended.After(*r.Started) {
		text += ", after " + duration(r.Ended.Sub(*r.Started))
	}
	return text
}

// steps writes the steps, of which the first that are over may be folded into one line.
func (s *screen) steps(r *statusReport, now time.Time) {
	over := func(record agent.Record) bool { return record.Status == agent.Done || record.Status == agent.Skipped }
	folded, shown := 0, r.Steps
	if s.fold > 1 {
		shown = slices.DeleteFunc(slices.Clone(r.Steps), func(record agent.Record) bool {
			fold := over(record) && folded < s.fold
			if fold {
				folded++
			}
			return fold
		})
	}
	if folded > 0 {
		fmt.Fprintf(s.out, "  %s  %s\n", s.paint(green, "ok  "), cut(plural(folded, "step"), s.width-8))
	}
	for _, record := range shown {
		if record.Status == agent.Pending && len(record.Needs) > 0 {
			open := slices.DeleteFunc(slices.Clone(record.Needs), func(need string) bool {
				return slices.ContainsFunc(r.Steps, func(other agent.Record) bool { return other.Name == need && over(other) })
			})
			if len(open) > 0 {
				record.Note = "needs " + strings.Join(open, ", ")
			}
		}
		if record.Status == agent.Pending && r.Ended != nil {
			record.Status, record.Note = neverRuns, strings.TrimSuffix("not run: "+record.Note, ": ")
		}
		s.step(record, now)
	}
}

const (
	// neverRuns is a pending step of a run that is over.
	neverRuns agent.Status = "never runs"
	// nameColumns is the room for the names of steps and gates.
	nameColumns = 13
)

func (s *screen) step(record agent.Record, now time.Time) {
	words := map[agent.Status][2]string{
		agent.Pending: {"wait", grey}, neverRuns: {"-   ", grey}, agent.Running: {"run ", yellow}, agent.Done: {"ok  ", green},
		agent.Skipped: {"skip", grey}, agent.Failed: {"FAIL", red}, agent.Interrupted: {"cut ", red},
	}
	word := words[record.Status]
	note, took := record.Note, duration(agent.Seconds(record.Seconds))
	switch record.Status {
	case agent.Running:
		if took = ""; record.Started != nil {
			took = duration(now.Sub(*record.Started))
		}
		note = cmp.Or(note, record.Short)
	case agent.Pending, neverRuns:
		took = ""
	case agent.Failed:
		note = ""
		if record.Error != nil {
			note = string(record.Error.Code)
		}
	case agent.Interrupted:
		note = "interrupted"
		if record.Seconds == 0 {
			took = ""
		}
	}
	prefix := fmt.Sprintf("  %s  %s%7s  ", s.paint(word[1], word[0]), pad(cut(record.Name, nameColumns-1), nameColumns), took)
	const indent = 8 + nameColumns + 7 + 2
	if record.Status != agent.Running {
		fmt.Fprintln(s.out, strings.TrimRight(prefix+cut(note, s.width-indent), " "))
		return
	}
	// What is awaited is worth more than one line.
	s.hanging(prefix, indent, note, 3)
	if record.Until != nil {
		until := "gives up at " + clock(*record.Until, now)
		if left := record.Until.Sub(now); left > 0 {
			until += ", in " + duration(left)
		}
		fmt.Fprintln(s.out, strings.Repeat(" ", indent)+s.paint(grey, cut(until, s.width-indent)))
	}
}

// failure writes why something failed and what to do.
func (s *screen) failure(what string, failure *agent.Failure) {
	fmt.Fprintf(s.out, "\n%s\n", s.paint(red, cut(fmt.Sprintf("%s failed: %s", what, failure.Code), s.width)))
	if columns(failure.Message) <= s.width-2 {
		s.paragraph("  ", failure.Message)
	} else {
		// Where several things are wrong each begins a line.
		for _, reason := range strings.SplitAfter(failure.Message, "; ") {
			s.paragraph("  ", reason)
		}
	}
	if failure.Hint != "" {
		s.paragraph("  ", "What to do: "+failure.Hint)
	}
	switch {
	case len(failure.Log) > 0 && failure.LogPath != "":
		s.paragraph("  ", "Last lines of "+failure.LogPath+":")
	case len(failure.Log) > 0:
		fmt.Fprintln(s.out, "  Last lines:")
	case failure.LogPath != "":
		s.paragraph("  ", "Log: "+failure.LogPath)
	}
	for _, line := range failure.Log[max(0, len(failure.Log)-20):] {
		fmt.Fprintln(s.out, strings.TrimRight("    "+cut(line, s.width-4), " "))
	}
}

// upgrade writes the last upgrade.
func (s *screen) upgrade(u *agent.Upgrade, now time.Time) {
	if u == nil {
		return
	}
	colours := map[agent.Status]string{agent.Done: green, agent.Running: yellow}
	words := map[agent.Status]string{agent.Done: "done", agent.Running: "running", agent.Failed: "FAILED", agent.Interrupted: "cut short"}
	text := ""
	if u.Status != agent.Done {
		text = "in stage " + u.Stage + " "
	}
	switch {
	case u.Ended != nil:
		if since := ago(now.Sub(*u.Ended)); since != "" {
			text += since + ", "
		}
		text += "at " + clock(*u.Ended, now)
	case u.Status == agent.Running:
		text += "for " + duration(now.Sub(u.Started))
	}
	fmt.Fprintln(s.out)
	s.sentence(fmt.Sprintf("Upgrade from %s to %s", u.From, u.To), cmp.Or(colours[u.Status], red), words[u.Status], text)
	if u.Error != nil {
		s.failure("Upgrade", u.Error)
	}
}

func (s *screen) gates(r *statusReport) {
	if len(r.Gates) == 0 {
		return
	}
	fmt.Fprintln(s.out)
	s.paragraph("", "What CloudStack's server will check on this node")
	all, unknown := true, false
	for _, gate := range r.Gates {
		s.gate(gate)
		all = all && (gate.OK || gate.Unknown || gate.Cluster)
		unknown = unknown || gate.Unknown
	}
	switch {
	case unknown:
		s.paragraph("", "As root, nodeagent status checks the rest.")
	case all && r.Phase == agent.PhaseDone:
		s.paragraph("", "All local gates pass: if CloudStack still waits, look outside this node.")
	}
}

func (s *screen) health(r *statusReport) {
	if len(r.Health) == 0 {
		return
	}
	fmt.Fprintln(s.out, "\nHealth")
	for _, gate := range r.Health {
		s.gate(gate)
	}
}

// gate writes one line, or as many as it takes to say what is wrong.
func (s *screen) gate(gate gate) {
	word, colour, most := "ok  ", green, 1
	switch {
	case gate.Unknown:
		word, colour = "?   ", grey
	case !gate.OK:
		word, colour, most = "no  ", yellow, 6
	}
	prefix := fmt.Sprintf("  %s  %s", s.paint(colour, word), pad(cut(gate.Name, nameColumns-1), nameColumns))
	s.hanging(prefix, 8+nameColumns, gate.Detail, most)
}

// hanging writes a text behind a prefix that takes so many columns, in at most so many
// lines.
func (s *screen) hanging(prefix string, indent int, text string, most int) {
	lines := wrap(text, s.width-indent)
	if len(lines) > most {
		lines[most-1] = cut(strings.Join(lines[most-1:], " "), s.width-indent)
		lines = lines[:most]
	}
	for i, line := range lines {
		if i > 0 {
			prefix = strings.Repeat(" ", indent)
		}
		fmt.Fprintln(s.out, strings.TrimRight(prefix+line, " "))
	}
}

// paragraph writes text in lines of the screen's width.
func (s *screen) paragraph(indent, text string) {
	for _, line := range wrap(text, s.width-len(indent)) {
		fmt.Fprintln(s.out, indent+line)
	}
}
