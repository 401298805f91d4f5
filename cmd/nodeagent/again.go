// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/kubeadm"
	"nodeagent/internal/userdata"
)

// takeStock makes a machine that is to be made fit for it: a copy of another
// machine's disk loses what makes it that machine (K10, K11); a member of a cluster
// stays one, with the version that it has by now.
func (n *node) takeStock(ctx context.Context, result *agent.Result, report host.Report) error {
	was := n.was
	if was == nil && n.installed != nil {
		was = &agent.Instance{ID: n.installed.InstanceID, SystemUUID: n.installed.SystemUUID}
	}
	if was != nil && isClone(*was, n.instanceID(), systemUUID(n.host)) {
		if err := n.forgetOther(ctx, report); err != nil {
			return err
		}
		result.Note += "; this disk is a copy of instance " + was.ID + "'s: what made it that node was removed, its machine id is new"
	}
	stock, err := kubeadm.TakeStock(ctx, n.host)
	if err != nil {
		return fault.Wrap(fault.HostSettingsFailed, err, "cannot tell what this machine has of Kubernetes")
	}
	switch {
	case stock.Member && stock.Version != "":
		// It may have been upgraded since its userdata were written: nothing of an
		// ISO is needed, and least of all one of the version of then.
		n.installed = &agent.Installed{InstanceID: n.instanceID(), Version: stock.Version}
		n.intent.Version = stock.Version
		if n.intent.Handover == userdata.HandoverNodeagent {
			result.Note += "; stays in its cluster, with Kubernetes " + stock.Version
		}
	case n.installed != nil && n.installed.Version != stock.Version:
		n.installed = nil // others have changed what was installed
	}
	return nil
}

// isClone says that a disk was made for another machine: CloudStack's id is another,
// and so is the hypervisor's. Where they contradict each other, as when a machine gets
// its userdata from another source, nothing may be taken from a node.
func isClone(was agent.Instance, instanceID, systemUUID string) bool {
	same := systemUUID != "" && systemUUID == was.SystemUUID
	return was.ID != "" && was.ID != instanceID && !same
}

// moved says that the hypervisor has another name for this machine than for the one
// that was made on this disk: it may be a copy, whose original lives on. Its kubelet,
// and so its etcd, must not run before that is known.
func (n *node) moved() bool {
	now := systemUUID(n.host)
	return n.instance != nil && n.instance.SystemUUID != "" && now != "" && now != n.instance.SystemUUID
}

// settleMove ends the doubt about a machine that moved and is to stay what it is.
func (n *node) settleMove(ctx context.Context, result *agent.Result) error {
	now := systemUUID(n.host)
	if !n.known {
		result.Warnings = append(result.Warnings, fault.New(fault.UserdataUnreachable,
			"this disk was made on the machine %s, this one is %s: the kubelet stays off until userdata say whose it is", n.instance.SystemUUID, now))
		return nil
	}
	if err := kubeadm.LetKubeletGo(ctx, n.host); err != nil {
		return fault.Wrap(fault.HostSettingsFailed, err, "cannot start the kubelet of a machine that moved")
	}
	n.update(func(s *agent.State) {
		if s.Instance != nil {
			s.Instance.SystemUUID = now
		}
	})
	result.Note += "; the same instance on another machine, " + now
	return nil
}

// systemUUID is what the hypervisor calls this machine, or "" where it does not say.
func systemUUID(h *host.Host) string {
	text, err := h.ReadFile("/sys/class/dmi/id/product_uuid")
	id := strings.ToLower(strings.TrimSpace(string(text)))
	if err != nil || strings.Trim(id, "0-") == "" || strings.Trim(id, "f-") == "" || len(id) != 36 {
		return ""
	}
	return id
}

// forgetOther takes away what a copied disk has of the machine it was copied from.
// The record goes last: until then every boot comes to the same decision.
func (n *node) forgetOther(ctx context.Context, report host.Report) error {
	steps, err := kubeadm.PlanReset(n.host, kubeadm.ResetOptions{Clone: true})
	if err == nil {
		err = kubeadm.Reset(ctx, n.host, steps, report)
	}
	if err == nil {
		err = newMachineID(n.host)
	}
	if err != nil {
		return fault.Wrap(fault.ResetFailed, err, "cannot make a new instance of a copied disk")
	}
	n.installed, n.was = nil, nil
	n.update(func(s *agent.State) { s.Installed = nil })
	return nil
}

// newMachineID writes a machine-id(5) as systemd would make it: a random UUID. What
// runs already goes on with the old one until the next boot.
func newMachineID(h *host.Host) error {
	var id [16]byte
	_, _ = rand.Read(id[:]) // it never fails
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	if _, err := h.WriteFile("/etc/machine-id", []byte(hex.EncodeToString(id[:])+"\n"), 0o444); err != nil {
		return fmt.Errorf("cannot make a machine id: %w", err)
	}
	return nil
}
