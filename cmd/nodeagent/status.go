// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
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

// statusReport is what `status -o json` prints, as docs/status.schema.json says. Keys
// are only ever added.
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
	// Error is why the run failed, or cannot be told of, where no step says it.
	Error *agent.Failure `json:"error,omitempty"`
}

func statusCommand(h *host.Host) *cobra.Command {
	var output string
	var wait, follow bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell what happened on this machine",
		Long: `Tell what happened on this machine: the steps of this boot, what is awaited, why
it failed and what to do, and what CloudStack's server will check here. Any user may
ask; what only root can see is said.

With --follow a terminal shows it live until the run is over; into a pipe every
change is one line, and the whole at the end. -o json and yaml are described by
docs/status.schema.json, to which keys are only ever added.

Exit codes: 0 done, 1 failed, 2 done with warnings, 3 still running, 4 never ran
here. With --wait or --follow it never ends with 3, unless --timeout ran out first:
then 1; or --follow was interrupted by Ctrl-C: then 3.`,
		Example: `  nodeagent status
  nodeagent status --follow
  nodeagent status --wait --timeout 30m && echo ready
  nodeagent status -o json | jq '.steps[] | select(.status == "failed")'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf(output, "text", "json", "yaml"); err != nil {
				return err
			}
			if follow && output != "text" {
				return usageError{fmt.Errorf("--follow shows text: for programs there is --wait -o %s", output)}
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the %s of --timeout are over", timeout))
				defer cancel()
			}
			var waited error
			shown := newFollower(cmd.OutOrStdout())
			defer shown.end()
			switch {
			case follow:
				waited = followStatus(ctx, h, shown)
			case wait:
				waited = agent.WaitUnlocked(ctx, h)
			}
			// What has come so far is worth seeing also when the time is over.
			report, err := readStatus(cmd.Context(), h)
			if err != nil {
				return err
			}
			shown.end()
			if err := printReport(cmd.OutOrStdout(), report, output); err != nil {
				return err
			}
			if waited != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "nodeagent: %v%s\n", waited, report.awaits())
			}
			switch code := report.exitCode(); {
			case code == statusDone:
				return nil
			case code == statusRunning && (wait || follow && cmd.Context().Err() == nil):
				return exitCode(statusFailed)
			default:
				return exitCode(code)
			}
		},
	}
	outputFlag(cmd, &output, "text", "json", "yaml")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until nodeagent has ended")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "show what happens until nodeagent has ended")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "with --wait or --follow: wait no longer than this (0: for ever)")
	completeFlag(cmd, "timeout")
	return cmd
}

// awaits names what the running steps wait for, for who has lost patience.
func (r *statusReport) awaits() string {
	var all []string
	for _, record := range r.Steps {
		if record.Status == agent.Running {
			all = append(all, strings.TrimSuffix(record.Name+" ("+record.Note, " (")+strings.Repeat(")", min(len(record.Note), 1)))
		}
	}
	if len(all) == 0 {
		return ""
	}
	return "; still running: " + strings.Join(all, ", ")
}

func printReport(out io.Writer, report *statusReport, output string) error {
	switch output {
	case "json":
		return printJSON(out, report)
	case "yaml":
		return printYAML(out, report)
	}
	newScreen(out).show(report, time.Now())
	return nil
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
	report, state, err := readReport(h)
	if err != nil || state == nil || state.Role != kubernetesRole || ctx.Err() != nil {
		return report, err // or nobody waits for the gates any more
	}
	nodeName := state.Node
	if state.Instance != nil {
		nodeName = cmp.Or(state.Instance.NodeName, nodeName)
	}
	report.Gates = checkGates(ctx, h, nodeName, state.Instance)
	report.Health = checkHealth(ctx, h, nodeName)
	if ctx.Err() != nil { // who asked has left: the gates failed of that
		report.Gates, report.Health = []gate{}, []gate{}
		return report, nil
	}
	for _, gate := range slices.Concat(report.Gates, report.Health) {
		if !gate.OK && !gate.Unknown && !gate.Cluster && report.Phase == agent.PhaseDone {
			report.Phase = agent.PhaseDegraded
		}
	}
	return report, nil
}

// readReport reads the state, without the gates, which take longer. The state is nil
// where there is none of this boot.
func readReport(h *host.Host) (*statusReport, *agent.State, error) {
	report := &statusReport{SchemaVersion: agent.SchemaVersion, Phase: agent.PhaseIdle,
		Steps: []agent.Record{}, Gates: []gate{}, Health: []gate{}, Warnings: []agent.Warning{}}
	bootID, err := h.BootID()
	if err != nil {
		return nil, nil, err
	}
	report.BootID = bootID
	state, err := agent.Load(h)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return report, nil, nil
	case err != nil:
		// Programs that read the report are to learn of it too.
		report.Phase, report.Error = agent.PhaseFailed, agent.NewFailure(err)
		return report, nil, nil
	}
	report.Version, report.Role, report.Owner, report.Node = state.AgentVersion, state.Role, state.Owner, state.Node
	report.Steps, report.Warnings = append(report.Steps, state.Steps...), append(report.Warnings, state.Warnings...)
	if !state.Started.IsZero() {
		report.Started, report.Ended = &state.Started, state.Ended
	}
	report.BootID, report.Upgrade = state.BootID, state.Upgrade
	for i := range report.Steps {
		explain(&report.Steps[i].Status, &report.Steps[i].Error)
	}
	if u := report.Upgrade; u != nil {
		explain(&u.Status, &u.Error)
	}
	report.Phase = (&agent.State{Steps: report.Steps, Warnings: report.Warnings, Ended: state.Ended}).Phase()
	if state.BootID != bootID {
		report.Phase = agent.PhaseIdle
		report.Warnings = append(report.Warnings, agent.Warning{Code: "earlier-boot",
			Message: "nodeagent has not run on this boot; this is what happened on the boot before"})
		return report, nil, nil
	}
	if u := report.Upgrade; u != nil && u.Error != nil && report.Phase == agent.PhaseDone {
		report.Phase = agent.PhaseDegraded
	}
	if report.Phase == agent.PhaseFailed && !slices.ContainsFunc(report.Steps, func(r agent.Record) bool { return r.Error != nil }) {
		report.Error = &agent.Failure{Code: fault.Interrupted, Message: "nodeagent ended before all steps had run", Hint: fault.Interrupted.Remedy()}
	}
	return report, state, nil
}

// explain gives a step what it must have, if a damaged state or one of another version
// lacks it: a known status and, where it failed, the reason (pain-point I2).
func explain(status *agent.Status, failure **agent.Failure) {
	switch *status {
	case agent.Pending, agent.Running, agent.Done, agent.Skipped:
		return
	case agent.Failed, agent.Interrupted:
	default:
		*failure = &agent.Failure{Code: fault.StateUnreadable, Message: fmt.Sprintf("the state has the status %q here, which is unknown", *status)}
		*status = agent.Failed
	}
	if *failure == nil {
		*failure = &agent.Failure{Code: fault.Internal, Message: "the state does not say why"}
	}
	if (*failure).Hint == "" {
		(*failure).Hint = (*failure).Code.Remedy()
	}
}
