// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"nodeagent/internal/agent"
	"nodeagent/internal/host"
)

// Exit codes of status. They are an interface: they never change.
const (
	statusDone     = 0
	statusFailed   = 1
	statusDegraded = 2
	statusRunning  = 3
	statusIdle     = 4
)

// statusReport is what `status -o json` prints. Keys are only ever added.
type statusReport struct {
	SchemaVersion int             `json:"schemaVersion"`
	Version       string          `json:"version,omitempty"`
	Role          string          `json:"role,omitempty"`
	Owner         string          `json:"owner,omitempty"`
	Node          string          `json:"node,omitempty"`
	Phase         agent.Phase     `json:"phase"`
	BootID        string          `json:"bootID"`
	Started       *time.Time      `json:"started,omitempty"`
	Ended         *time.Time      `json:"ended,omitempty"`
	Steps         []agent.Record  `json:"steps"`
	Gates         []gate          `json:"gates"`
	Health        []gate          `json:"health"`
	Warnings      []agent.Warning `json:"warnings"`
	Upgrade       *agent.Upgrade  `json:"upgrade,omitempty"`
}

func statusCommand(h *host.Host) *cobra.Command {
	var output string
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell what happened on this machine",
		Long: `Tell what happened on this machine: the steps of this boot, what is awaited, why
it failed and what to do, and what CloudStack's server will check here.

Exit codes: 0 done, 1 failed, 2 done with warnings, 3 still running, 4 never ran
here. With --wait it never ends with 3, unless --timeout ran out first: then 1.`,
		Example: `  nodeagent status
  nodeagent status --wait --timeout 30m && echo ready
  nodeagent status -o json | jq '.steps[] | select(.status == "failed")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("-o %s: expected text or json", output)}
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			if wait {
				if err := agent.WaitUnlocked(ctx, h); err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "nodeagent: %v\n", err)
				}
			}
			report, err := readStatus(cmd.Context(), h)
			if err != nil {
				return err
			}
			if output == "json" {
				if err := printJSON(cmd.OutOrStdout(), report); err != nil {
					return err
				}
			} else {
				newScreen(cmd.OutOrStdout()).show(report, time.Now())
			}
			if code := report.exitCode(); code == statusRunning && wait {
				return exitCode(statusFailed)
			} else if code != statusDone {
				return exitCode(code)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`format`: text or json")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until nodeagent has ended")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "with --wait: wait no longer than this (0: for ever)")
	return cmd
}

func (r *statusReport) exitCode() int {
	switch r.Phase {
	case agent.PhaseDone:
		return statusDone
	case agent.PhaseFailed:
		return statusFailed
	case agent.PhaseDegraded:
		return statusDegraded
	case agent.PhaseRunning:
		return statusRunning
	}
	return statusIdle
}

// readStatus reads the state and checks the gates.
func readStatus(ctx context.Context, h *host.Host) (*statusReport, error) {
	report := &statusReport{SchemaVersion: agent.SchemaVersion, Phase: agent.PhaseIdle,
		Steps: []agent.Record{}, Gates: []gate{}, Health: []gate{}, Warnings: []agent.Warning{}}
	bootID, err := h.BootID()
	if err != nil {
		return nil, err
	}
	report.BootID = bootID
	state, err := agent.Load(h)
	if errors.Is(err, fs.ErrNotExist) {
		return report, nil
	}
	if err != nil {
		return nil, err
	}
	report.Version, report.Role, report.Owner, report.Node = state.AgentVersion, state.Role, state.Owner, state.Node
	report.Steps, report.Warnings = state.Steps, state.Warnings
	report.Started, report.Ended, report.Upgrade = &state.Started, state.Ended, state.Upgrade
	report.BootID, report.Phase = state.BootID, state.Phase()
	if state.BootID != bootID {
		report.Phase = agent.PhaseIdle
		report.Warnings = append(report.Warnings, agent.Warning{Code: "earlier-boot",
			Message: "nodeagent has not run on this boot; this is what happened on the boot before"})
		return report, nil
	}
	if u := report.Upgrade; u != nil && u.Error != nil && report.Phase == agent.PhaseDone {
		report.Phase = agent.PhaseDegraded
	}
	if state.Role == kubernetesRole {
		report.Gates = checkGates(ctx, h, state.Node, state.Instance)
		report.Health = checkHealth(ctx, h)
		for _, gate := range slices.Concat(report.Gates, report.Health) {
			if !gate.OK && !gate.Unknown && !gate.Cluster && report.Phase == agent.PhaseDone {
				report.Phase = agent.PhaseDegraded
			}
		}
	}
	return report, nil
}

// screen writes a report for people.
type screen struct {
	out    io.Writer
	width  int
	colour bool
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out, width: 80}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		s.colour = os.Getenv("NO_COLOR") == ""
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width >= 40 {
			s.width = width
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
	if !s.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (s *screen) show(r *statusReport, now time.Time) {
	s.headline(r, now)
	if len(r.Steps) > 0 {
		fmt.Fprintln(s.out)
	}
	for _, record := range r.Steps {
		s.step(record, now)
	}
	for _, record := range r.Steps {
		if record.Error != nil {
			s.failure(record)
		}
	}
	if len(r.Warnings) > 0 {
		fmt.Fprintln(s.out, "\n"+s.paint(yellow, "Warnings"))
	}
	for _, warning := range r.Warnings {
		s.paragraph("  ", fmt.Sprintf("%s: %s", warning.Code, warning.Message))
	}
	s.upgrade(r.Upgrade)
	s.gates(r)
	s.health(r)
}

func (s *screen) headline(r *statusReport, now time.Time) {
	if r.Phase == agent.PhaseIdle && len(r.Steps) == 0 {
		fmt.Fprintln(s.out, "nodeagent never ran on this machine")
		return
	}
	name := r.Role
	if name == "" {
		name = "role not known"
	}
	if r.Node != "" {
		name += " " + r.Node
	}
	colours := map[agent.Phase]string{agent.PhaseDone: green, agent.PhaseFailed: red, agent.PhaseDegraded: yellow}
	text := map[agent.Phase]string{
		agent.PhaseDone: "done", agent.PhaseFailed: "FAILED", agent.PhaseDegraded: "done, with warnings",
		agent.PhaseRunning: "running", agent.PhaseIdle: "not run on this boot",
	}[r.Phase]
	took := ""
	switch {
	case r.Started == nil:
	case r.Phase == agent.PhaseRunning:
		took = " for " + duration(now.Sub(*r.Started))
	case r.Ended != nil && r.Ended.After(*r.Started):
		took = fmt.Sprintf(" after %s, at %s", duration(r.Ended.Sub(*r.Started)), r.Ended.UTC().Format("15:04:05 MST"))
	}
	fmt.Fprintf(s.out, "%s: %s%s\n", name, s.paint(colours[r.Phase], text), took)
}

func (s *screen) step(record agent.Record, now time.Time) {
	words := map[agent.Status][2]string{
		agent.Pending: {"wait", grey}, agent.Running: {"run ", yellow}, agent.Done: {"ok  ", green},
		agent.Skipped: {"skip", grey}, agent.Failed: {"FAIL", red}, agent.Interrupted: {"cut ", red},
	}
	word := words[record.Status]
	note, until, took := record.Note, "", ""
	switch record.Status {
	case agent.Running:
		if record.Started != nil {
			took = duration(now.Sub(*record.Started))
		}
		if record.Until != nil {
			until = " (until " + record.Until.UTC().Format("15:04:05") + ")"
		}
	case agent.Pending:
		note = "needs " + strings.Join(record.Needs, ", ")
	case agent.Failed:
		note = string(record.Error.Code)
	case agent.Interrupted:
		note = "interrupted"
	default:
		took = duration(time.Duration(record.Seconds * float64(time.Second)))
	}
	if record.Status == agent.Failed {
		took = duration(time.Duration(record.Seconds * float64(time.Second)))
	}
	line := cut(fmt.Sprintf("%-13s%7s  %s", record.Name, took, note), s.width-8-len(until)) + until
	fmt.Fprintf(s.out, "  %s  %s\n", s.paint(word[1], word[0]), line)
}

func (s *screen) failure(record agent.Record) {
	fmt.Fprintf(s.out, "\n%s\n", s.paint(red, fmt.Sprintf("Step %s failed: %s", record.Name, record.Error.Code)))
	s.paragraph("  ", record.Error.Message)
	if record.Error.Hint != "" {
		s.paragraph("  ", "What to do: "+record.Error.Hint)
	}
	if len(record.Error.Log) > 0 {
		fmt.Fprintln(s.out, "  Last lines:")
		for _, line := range record.Error.Log[max(0, len(record.Error.Log)-20):] {
			fmt.Fprintln(s.out, "    "+cut(line, s.width-4))
		}
	}
}

func (s *screen) gates(r *statusReport) {
	if len(r.Gates) == 0 {
		return
	}
	fmt.Fprintln(s.out, "\nWhat CloudStack's server will check on this node")
	all := true
	for _, gate := range r.Gates {
		s.gate(gate)
		all = all && (gate.OK || gate.Unknown || gate.Cluster)
	}
	if all && r.Phase == agent.PhaseDone {
		fmt.Fprintln(s.out, "All local gates pass: if CloudStack still waits, look outside this node.")
	}
}

func (s *screen) gate(gate gate) {
	word, colour := "ok  ", green
	switch {
	case gate.Unknown:
		word, colour = "?   ", grey
	case !gate.OK:
		word, colour = "no  ", yellow
	}
	fmt.Fprintf(s.out, "  %s  %s\n", s.paint(colour, word), cut(fmt.Sprintf("%-13s%s", gate.Name, gate.Detail), s.width-8))
}

// health shows what is wrong in a paragraph of its own: the reason may be long.
func (s *screen) health(r *statusReport) {
	if len(r.Health) == 0 {
		return
	}
	fmt.Fprintln(s.out, "\nHealth")
	for _, gate := range r.Health {
		if gate.OK || gate.Unknown {
			s.gate(gate)
			continue
		}
		whole := gate.Detail
		gate.Detail = ""
		s.gate(gate)
		s.paragraph("        ", whole)
	}
}

// paragraph writes text in lines of the screen's width.
func (s *screen) paragraph(indent, text string) {
	line := indent
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > s.width && line != indent {
			fmt.Fprintln(s.out, line)
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += word
	}
	fmt.Fprintln(s.out, line)
}

// cut shortens text to width characters.
func cut(text string, width int) string {
	text = strings.TrimRight(text, " ")
	if runes := []rune(text); len(runes) > width {
		return string(runes[:width-3]) + "..."
	}
	return text
}

// duration prints 0.4s, 12s, 3m07s, 1h02m.
func duration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}
