// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// silentAfter is how long a node may say nothing: some heartbeats, and the time until one
// control node knows what another has heard.
const silentAfter = 10 * time.Minute

// View is the cluster as one screen shows it.
type View struct {
	At    time.Time `json:"at"`
	Stale string    `json:"stale,omitempty"` // why this is old
	Nodes []Row     `json:"nodes"`
	// Blocker is the node that holds the cluster back, Why it does; both "" where none does.
	Blocker string `json:"blocker,omitempty"`
	Why     string `json:"why,omitempty"`
	// Voters and Members are of the database.
	Voters   int      `json:"voters,omitempty"`
	Members  int      `json:"members,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// Row is one node.
type Row struct {
	Name    string     `json:"name"`
	Role    string     `json:"role,omitempty"`
	Address string     `json:"address,omitempty"`
	Phase   string     `json:"phase"`
	Step    string     `json:"step,omitempty"` // the one that failed or runs
	Note    string     `json:"note,omitempty"`
	Code    string     `json:"code,omitempty"`
	Since   *time.Time `json:"since,omitempty"` // of the step, else of the last one's end
	Seen    time.Time  `json:"seen"`
	Silent  bool       `json:"silent,omitempty"` // not heard for long
}

// NewView is pure: what is known, and the time it is looked at.
func NewView(known Known, now time.Time) View {
	view := View{At: known.At, Stale: known.Stale, Members: len(known.Members), Nodes: []Row{}}
	for _, m := range known.Members {
		if m.Voter {
			view.Voters++
		}
	}
	for _, node := range known.Nodes {
		row := newRow(node)
		// What is old says nothing of who is silent now.
		row.Silent = known.At.Sub(node.Seen) > silentAfter
		view.Nodes = append(view.Nodes, row)
		if off := node.ClockOffset; off < -60 || off > 60 {
			view.Warnings = append(view.Warnings, fmt.Sprintf("the clock of %s is off by %s", row.Name, span(time.Duration(off*float64(time.Second)).Abs())))
		}
	}
	for _, name := range known.Damaged {
		view.Warnings = append(view.Warnings, "a damaged database was set aside as "+name)
	}
	slices.SortStableFunc(view.Nodes, func(a, b Row) int {
		return cmp.Or(cmp.Compare(roleOrder(a.Role), roleOrder(b.Role)), cmp.Compare(a.Name, b.Name))
	})
	view.findBlocker(now)
	return view
}

func newRow(node Node) Row {
	row := Row{Name: node.Node, Role: node.Role, Address: node.Address, Phase: node.Phase, Seen: node.Seen}
	offset := time.Duration(node.ClockOffset * float64(time.Second))
	for _, status := range []string{"failed", "interrupted", "running"} {
		for _, step := range node.Steps {
			if step.Status != status || row.Step != "" {
				continue
			}
			row.Step, row.Code = step.Name, step.Code
			row.Note = cmp.Or(step.Message, step.Note)
			if step.Started != nil {
				since := step.Started.Add(offset)
				if status != "running" {
					since = since.Add(time.Duration(step.Seconds * float64(time.Second)))
				}
				row.Since = &since
			}
		}
	}
	if row.Step == "" {
		for _, step := range node.Steps {
			if step.Started == nil {
				continue
			}
			if end := step.Started.Add(offset + time.Duration(step.Seconds*float64(time.Second))); row.Since == nil || end.After(*row.Since) {
				row.Since = &end
			}
		}
	}
	return row
}

func roleOrder(role string) int {
	if at := slices.Index([]string{"control", "etcd", "worker"}, role); at >= 0 {
		return at
	}
	return 3
}

// findBlocker names one node: the first that failed, of the kind that others wait for
// first; else one that is silent though it was not done; else the one whose step has
// run longest.
func (v *View) findBlocker(now time.Time) {
	best, rank := -1, 0
	for i, row := range v.Nodes {
		r := 0
		switch {
		case row.Phase == "failed":
			r = 400
		case row.Silent && row.Phase != "done" && row.Phase != "degraded" && row.Phase != "idle":
			r = 300
		case row.Phase == "running":
			r = 200
		case row.Silent:
			r = 100
		default:
			continue
		}
		r -= roleOrder(row.Role)
		if best < 0 || r > rank || r == rank && row.Since != nil && v.Nodes[best].Since != nil && row.Since.Before(*v.Nodes[best].Since) {
			best, rank = i, r
		}
	}
	if best < 0 {
		return
	}
	row := v.Nodes[best]
	v.Blocker = row.Name
	var words []string
	switch {
	case row.Phase == "failed":
		words = append(words, "failed")
	case row.Silent:
		words = append(words, fmt.Sprintf("has said nothing for %s,", span(now.Sub(row.Seen))))
	}
	if row.Step != "" {
		words = append(words, "step "+row.Step)
		if row.Since != nil && row.Phase == "running" {
			words = append(words, "for "+span(now.Sub(*row.Since)))
		}
	}
	if row.Code != "" {
		words = append(words, "("+row.Code+")")
	}
	v.Why = strings.TrimSuffix(strings.Join(words, " "), ",")
	if row.Note != "" {
		v.Why += ": " + row.Note
	}
}

// Write writes the view for a terminal of 80 columns.
func (v View) Write(to io.Writer, now time.Time) error {
	var text strings.Builder
	if v.Stale != "" {
		fmt.Fprintf(&text, "%s", fold(fmt.Sprintf("LAST KNOWN, %s ago: %s", span(now.Sub(v.At)), v.Stale), ""))
	}
	fmt.Fprintf(&text, "%-24s %-8s %-9s %-19s %-7s %s\n", "NODE", "ROLE", "PHASE", "STEP", "SINCE", "SEEN")
	for _, row := range v.Nodes {
		since := "-"
		if row.Since != nil {
			since = span(now.Sub(*row.Since))
		}
		seen := span(now.Sub(row.Seen))
		if row.Silent {
			seen += " !"
		}
		line := fmt.Sprintf("%-24s %-8s %-9s %-19s %-7s %s", shorten(row.Name, 24), shorten(cmp.Or(row.Role, "-"), 8), shorten(row.Phase, 9),
			shorten(cmp.Or(row.Step, "-"), 19), since, seen)
		fmt.Fprintln(&text, strings.TrimRight(line, " "))
		if row.Code != "" {
			fmt.Fprintf(&text, "  %s\n", shorten(row.Code, 76))
		}
	}
	if len(v.Nodes) == 0 {
		fmt.Fprintln(&text, "no node has reported yet")
	}
	if v.Blocker != "" {
		fmt.Fprintf(&text, "\n%s", fold(v.Blocker+" holds the cluster back: "+v.Why, "  "))
	}
	if v.Members > 1 {
		fmt.Fprintf(&text, "\njournal on %d control nodes, %d of them voters\n", v.Members, v.Voters)
	}
	for _, warning := range v.Warnings {
		fmt.Fprintf(&text, "%s", fold("warning: "+warning, "  "))
	}
	_, err := io.WriteString(to, text.String())
	return err
}

// shorten keeps the end of a name, by which CloudStack's names differ, and its begin.
func shorten(text string, width int) string {
	runes := []rune(text)
	if len(runes) <= width {
		return text
	}
	tail := width / 2
	return string(runes[:width-tail-1]) + "…" + string(runes[len(runes)-tail:])
}

// fold breaks a text into lines of 80 columns.
func fold(text, indent string) string {
	var lines strings.Builder
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len([]rune(line))+1+len([]rune(word)) > 80 {
			lines.WriteString(line + "\n")
			line = indent + word
			continue
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return lines.String() + line + "\n"
}

// span is a time in at most two units.
func span(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}
