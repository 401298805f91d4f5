// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nodeagent/internal/agent"
	"nodeagent/internal/host"
	"nodeagent/internal/timeline"
)

func timelineCommand(h *host.Host) *cobra.Command {
	var output, order, svg string
	cmd := &cobra.Command{
		Use:   "timeline",
		Short: "Tell where the time of this boot went",
		Long: `Tell where the time of this boot went: how long each step took, from the firmware on,
and which steps the end of the boot had to wait for (*). To make a boot faster, make one
of those faster; the others ran beside them.

Times are of the kernel's clock: that the time of day was set on the way changes
nothing. With --svg it draws one file that every browser shows.`,
		Example: `  nodeagent timeline
  nodeagent timeline --order start
  nodeagent timeline --svg boot.svg
  nodeagent timeline -o json | jq '.critical'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf(output, "text", "json"); err != nil {
				return err
			}
			if order != "time" && order != "start" {
				return usageError{fmt.Errorf("--order %s: expected time or start", order)}
			}
			chart, err := readTimeline(cmd.Context(), h)
			if err != nil {
				return err
			}
			if svg != "" {
				var drawing bytes.Buffer
				if err := chart.SVG(&drawing); err != nil {
					return err
				}
				if svg == "-" {
					_, err := cmd.OutOrStdout().Write(drawing.Bytes())
					return err
				}
				if err := os.WriteFile(svg, drawing.Bytes(), 0o644); err != nil {
					return fmt.Errorf("cannot write the drawing: %w", err)
				}
			}
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), chart)
			}
			newScreen(cmd.OutOrStdout()).timeline(chart, order == "start")
			return nil
		},
	}
	outputFlag(cmd, &output, "text", "json")
	cmd.Flags().StringVar(&order, "order", "time", "`order` of the table: time (longest first) or start")
	cmd.Flags().StringVar(&svg, "svg", "", "also draw it into this `file`, - for standard output alone")
	return cmd
}

// bootTimesTimeout bounds the question to systemd, without which the table has less.
const bootTimesTimeout = 2 * time.Second

// readTimeline makes the chart of the last run.
func readTimeline(ctx context.Context, h *host.Host) (*timeline.Chart, error) {
	bootID, err := h.BootID()
	if err != nil {
		return nil, err
	}
	state, err := agent.Load(h)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("nodeagent never ran on this machine: there is no time to tell of")
	}
	if err != nil {
		return nil, err
	}
	facts := timelineFacts(state)
	if state.BootID != bootID {
		facts.Phase += ", on the boot before"
		return timeline.New(facts), nil
	}
	if now, err := host.Monotonic(); err == nil && state.Ended == nil {
		facts.Now = now.Seconds()
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimesTimeout)
	defer cancel()
	// Where systemd does not answer the kernel's part is one span.
	if boot, err := h.Units.BootTimes(ctx, "nodeagent.service"); err == nil {
		if facts.Monotonic == 0 {
			facts.Monotonic = boot.Service.Seconds()
		}
		facts.Boot = timeline.Boot{Firmware: boot.Firmware.Seconds(), Loader: boot.Loader.Seconds(), InitRD: boot.InitRD.Seconds(), Userspace: boot.Userspace.Seconds()}
	}
	return timeline.New(facts), nil
}

// timelineFacts are what the state tells.
func timelineFacts(state *agent.State) timeline.Facts {
	facts := timeline.Facts{Role: state.Role, Node: state.Node, Phase: string(state.Phase()), BootID: state.BootID, Started: state.Started, Monotonic: state.StartedMonotonic}
	for _, record := range state.Steps {
		step := timeline.Step{Name: record.Name, Needs: record.Needs, Status: string(record.Status), Note: record.Note, Seconds: record.Seconds,
			Monotonic: record.StartedMonotonic, Waits: slices.Contains(waitingSteps(), record.Name)}
		if record.Started != nil {
			step.Started = *record.Started
		}
		if record.Error != nil {
			step.Code, step.Note = string(record.Error.Code), record.Error.Message
		}
		facts.Steps = append(facts.Steps, step)
	}
	return facts
}

// waitingSteps are the steps that mostly wait for something that is not theirs: the
// host, the router, cloud-init, the ISO's coming, the cluster.
func waitingSteps() []string {
	return []string{"boot-args", "userdata", "cloud-init", "iso", "etcd", "ready"}
}

func (s *screen) timeline(chart *timeline.Chart, byStart bool) {
	fmt.Fprintln(s.out, cut(chart.Headline(), s.width))
	if chart.Clock == "wall" {
		fmt.Fprintln(s.out, "By the time of day: this boot's nodeagent did not record the kernel's clock.")
	}
	if len(chart.Spans) == 0 {
		return
	}
	spans := chart.Spans
	if !byStart {
		spans = chart.ByTime()
	}
	fmt.Fprintf(s.out, "\n  %-18s%8s%10s\n", "STEP", "TIME", "START")
	for _, span := range spans {
		mark, colour, note := " ", "", span.Note
		switch {
		case span.Status == timeline.Failed || span.Status == timeline.Interrupted:
			colour, note = red, strings.ToUpper(span.Status)+" "+span.Code
		case span.Critical:
			colour = yellow
		case span.Status == timeline.Skipped:
			colour = grey
		}
		if span.Status == timeline.Running {
			note = strings.TrimSpace("runs " + note)
		}
		if span.Critical {
			mark = "*"
		}
		line := cut(fmt.Sprintf("%-18s%8s%10s  %s", cut(span.Name, 18), timeline.Duration(span.Seconds), "+"+timeline.Duration(span.Start-chart.Begin), note), s.width-2)
		if colour != "" {
			line = s.paint(colour, line)
		}
		fmt.Fprintf(s.out, "%s %s\n", mark, line)
	}
	fmt.Fprintln(s.out)
	between := ""
	if chart.Between >= 0.05 {
		between = fmt.Sprintf(", and %s between them", timeline.Duration(chart.Between))
	}
	s.paragraph("", "* Critical path, which the end had to wait for: "+strings.Join(chart.Critical, " > ")+between)
}
