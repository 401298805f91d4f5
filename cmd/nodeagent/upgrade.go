// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/kubeadm"
)

func upgradeCommand(h *host.Host) *cobra.Command {
	var options kubeadm.UpgradeOptions
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "upgrade [VERSION]",
		Short: "Upgrade Kubernetes on this node from a new binaries ISO",
		Long: `Upgrade Kubernetes on this node from a new binaries ISO: check versions, node, API,
etcd and space, keep the kubelet, import the images, run kubeadm upgrade (apply on
the first control node, node on all others), change the kubelet and wait until it
reports the new version. A kubelet that does not come up is put back.

It goes on where it stopped after a crash, a reboot or a failure. Attach the ISO to
all nodes and begin with the control nodes; drain each node first (kubectl drain)
and uncordon it afterwards. The exit code is 0 only if the running kubelet reports
the version.`,
		Example: `  nodeagent upgrade --dry-run   what would happen, with the checks
  nodeagent upgrade             to the version of the ISO that is attached
  nodeagent upgrade v1.35.1     where more than one is attached`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("unexpected argument %q", args[1])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				options.Version = args[0]
			}
			lock, err := agent.Lock(h)
			if err != nil {
				return err
			}
			defer lock.Close()
			if options.NodeName, err = nodeName(h); err != nil {
				return err
			}
			show := newScreen(cmd.OutOrStdout())
			upgrade, err := kubeadm.PlanUpgrade(cmd.Context(), h, options, show.progress())
			if err != nil {
				return err
			}
			defer upgrade.Close()
			if dryRun || len(upgrade.Stages) == 0 {
				if _, err := io.WriteString(cmd.OutOrStdout(), upgrade.String()); err != nil || dryRun {
					return err
				}
				return agent.Change(h, func(s *agent.State) { s.Upgrade = nil }) // others have ended it
			}
			outliveSession()
			fmt.Fprintf(show.out, "node %s: Kubernetes %s to %s\n", options.NodeName, upgrade.From, upgrade.To)
			return runUpgrade(cmd.Context(), h, upgrade, show)
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check and say what would be done, change nothing")
	cmd.Flags().BoolVar(&options.AddOns, "add-ons", false, "apply the ISO's network plugin and dashboard afterwards (on one control node)")
	return cmd
}

// outliveSession keeps a lost ssh session from cutting short what is not to be.
func outliveSession() { signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE) }

// nodeName is the name of this machine in its cluster.
func nodeName(h *host.Host) (string, error) {
	state, err := agent.Load(h)
	if err == nil && state.Node != "" {
		return strings.ToLower(state.Node), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	name, err := os.Hostname()
	return strings.ToLower(name), err
}

// runUpgrade runs the stages and keeps the state, which status shows.
func runUpgrade(ctx context.Context, h *host.Host, upgrade *kubeadm.Upgrade, show *screen) error {
	record := agent.Upgrade{From: upgrade.From, To: upgrade.To, Status: agent.Running, Started: time.Now().UTC()}
	keep := func() {
		if err := agent.Change(h, func(s *agent.State) {
			now := record
			s.Upgrade = &now
			if now.Status == agent.Done && s.Installed != nil {
				s.Installed.Version = now.To
			}
		}); err != nil {
			fmt.Fprintf(show.out, "nodeagent: cannot save the state, continuing: %v\n", err)
		}
	}
	end := func(status agent.Status) {
		now := time.Now().UTC()
		record.Status, record.Ended = status, &now
		keep()
	}
	for _, stage := range upgrade.Stages {
		record.Stage = stage.Name
		keep()
		began := time.Now()
		err := stage.Run(ctx, show.progress())
		line := agent.Record{Name: stage.Name, Status: agent.Done, Started: &began, Seconds: time.Since(began).Seconds(), Note: stage.Does}
		if err == nil {
			show.step(line, time.Now())
			continue
		}
		line.Status, line.Error = agent.Failed, agent.NewFailure(err)
		if ctx.Err() != nil {
			line.Status = agent.Interrupted
			line.Error.Code, line.Error.Hint = fault.Interrupted, "`nodeagent upgrade`: it goes on where it stopped."
		}
		record.Error = line.Error
		end(line.Status)
		show.step(line, time.Now())
		show.failure("Stage "+stage.Name, line.Error)
		return exitCode(exitFail)
	}
	end(agent.Done)
	fmt.Fprintf(show.out, "the kubelet reports %s\n", upgrade.To)
	return nil
}

// progress returns a report that writes each line once.
func (s *screen) progress() host.Report {
	last := ""
	return func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != last {
			last = text
			fmt.Fprintln(s.out, "        "+s.paint(grey, cut(text, s.width-8)))
		}
	}
}
