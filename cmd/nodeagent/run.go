// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"nodeagent/internal/agent"
	"nodeagent/internal/host"
)

func runCommand(h *host.Host) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the boot plan; systemd starts this at every boot",
		Long: `Run the boot plan: read the boot args, find the role, grow the root disk, set the
services and, on a Kubernetes node, run kubeadm from the binaries ISO. systemd
starts this at every boot (nodeagent.service); see "nodeagent status" for what it did.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lock, err := agent.Lock(h)
			if err != nil {
				return err
			}
			defer lock.Close()
			// A log that nobody reads any more must not end the boot; what is asked for does
			// not, and programs that are run do not inherit it.
			signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
			log := agent.NewLog()
			notify := func(message string) {
				// Outside of systemd there is nobody to tell.
				_, _ = daemon.SdNotify(false, message)
			}
			runner, err := agent.NewRunner(h, log, version, notify)
			if err != nil {
				return err
			}
			earlier := runner.State()
			n := &node{host: h, update: runner.Update, instance: earlier.Instance, installed: earlier.Installed, cloudInit: earlier.CloudInit}
			said := ""
			tell := func(state *agent.State) {
				if now := strings.Join(headlines(state), "\n"); now != said || state.Ended != nil {
					said = now
					if err := errors.Join(announce(h, state), writeMetrics(h, state)); err != nil {
						log.Warn(fmt.Sprintf("cannot show the state everywhere, continuing: %v", err))
					}
				}
			}
			runner.Changed = tell
			failed := runner.Run(cmd.Context(), bootPlan(n))
			if failed != nil {
				// Each failure is in the log already, with its step.
				return exitCode(exitFail)
			}
			return nil
		},
	}
}
