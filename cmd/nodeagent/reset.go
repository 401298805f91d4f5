// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/kubeadm"
	"nodeagent/internal/roles"
	"nodeagent/internal/userdata"
)

func resetCommand(h *host.Host) *cobra.Command {
	var options kubeadm.ResetOptions
	var dryRun, force bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Return a node to before its first boot",
		Long: `Return a node to before its first boot: it leaves its cluster (kubeadm reset, which
removes its etcd member), and all that nodeagent, kubeadm and the binaries ISO made
is removed, data of etcd included. The next boot makes the node again from its
userdata.

Kept: the cloud user, ssh host keys, network and host settings, boot args, logs, and
the container images unless --images. Rules of kube-proxy in the kernel (iptables,
nftables, IPVS) stay until the reboot. The cluster keeps the node's object: remove it
there with kubectl delete node.

It asks first; where nobody can be asked it wants --force. After a crash or a failure
run it again: it does what is left.`,
		Example: `  nodeagent reset --dry-run          what would be removed
  nodeagent reset --force && reboot  make the node again`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, ok := cmd.InOrStdin().(*os.File)
			if !force && !dryRun && !(ok && term.IsTerminal(int(in.Fd()))) {
				return usageError{errors.New("reset: there is no terminal to ask at; --force goes on without asking")}
			}
			if !dryRun {
				lock, err := agent.Lock(h)
				if err != nil {
					return err
				}
				defer lock.Close()
			}
			plan, err := planNodeReset(h, options)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if _, err := io.WriteString(out, plan.String()); err != nil || dryRun || plan.empty() {
				return err
			}
			if !force {
				fmt.Fprint(out, "All of this, for good? Type yes: ")
				if answer, _ := bufio.NewReader(in).ReadString('\n'); strings.TrimSpace(answer) != "yes" {
					fmt.Fprintln(out, "nothing was done")
					return exitCode(exitFail)
				}
			}
			outliveSession()
			if err := plan.run(cmd.Context(), h, newScreen(out).progress()); err != nil {
				return err
			}
			fmt.Fprintln(out, "done; the next boot makes the node again")
			return nil
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, change nothing")
	cmd.Flags().BoolVar(&force, "force", false, "do not ask")
	cmd.Flags().BoolVar(&options.Images, "images", false, "remove the container images too")
	return cmd
}

// nodeReset is what a reset removes.
type nodeReset struct {
	node     string
	steps    []kubeadm.ResetStep
	instance string   // whose cloud-init runs again, or ""
	files    []string // nodeagent's own records, in the order in which they go
}

func planNodeReset(h *host.Host, options kubeadm.ResetOptions) (*nodeReset, error) {
	plan := &nodeReset{node: "this machine"}
	state, err := agent.Load(h)
	switch {
	case err == nil && state.Owner != "" && state.Owner != string(roles.NodeAgent):
		return nil, fault.New(fault.ResetFailed, "cannot reset: this machine is a %s, which CloudStack's own scripts make at every boot", state.Role).
			WithHint("Stop and start the VM from CloudStack, or destroy it: CloudStack makes another.")
	case err == nil:
		plan.node = cmp.Or(state.Node, plan.node)
		plan.instance = state.CloudInit
		if state.Instance != nil {
			plan.instance = state.Instance.ID
		}
	case !errors.Is(err, fs.ErrNotExist) && fault.As(err).Code != fault.StateUnreadable:
		return nil, err
	}
	if folder := userdata.SemaphoreFolder(plan.instance); folder == "" || !h.Exists(folder) {
		plan.instance = ""
	}
	if plan.steps, err = kubeadm.PlanReset(h, options); err != nil {
		return nil, err
	}
	// The record names the instance, so it goes last.
	for _, name := range []string{successFile, agent.RunState, agent.StateFile} {
		if h.Exists(name) {
			plan.files = append(plan.files, name)
		}
	}
	return plan, nil
}

func (r *nodeReset) empty() bool {
	return len(r.steps) == 0 && r.instance == "" && len(r.files) == 0
}

func (r *nodeReset) String() string {
	if r.empty() {
		return "nothing to reset\n"
	}
	text := fmt.Sprintf("reset of %s\n", r.node)
	for _, step := range r.steps {
		text += fmt.Sprintf("  %s\n", step)
	}
	if r.instance != "" {
		text += fmt.Sprintf("  have cloud-init make users and files again (instance %s)\n", r.instance)
	}
	for _, name := range r.files {
		text += fmt.Sprintf("  remove %s\n", name)
	}
	return text + "until the reboot: kube-proxy's rules in the kernel stay\n"
}

func (r *nodeReset) run(ctx context.Context, h *host.Host, report host.Report) error {
	if err := kubeadm.Reset(ctx, h, r.steps, report); err != nil {
		return err
	}
	err := userdata.ForgetCloudInit(h, r.instance)
	for _, name := range r.files {
		if err == nil {
			_, err = h.Remove(name)
		}
	}
	if err != nil {
		return fault.Wrap(fault.ResetFailed, err, "cannot forget what was made here")
	}
	h.Kernel.Sync()
	return nil
}
