// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Stock is what a machine that is to be made has of Kubernetes already.
type Stock struct {
	Version string // of the installed kubeadm: v1.34.4; "" is none that runs
	Member  bool   // of a cluster
}

// TakeStock looks what there is. The record of a cluster that others have taken the
// machine out of (CloudStack's server runs `kubeadm reset`) is removed.
func TakeStock(ctx context.Context, h *host.Host) (Stock, error) {
	var s Stock
	if h.Exists(Kubeadm) {
		// One that a kill left behind half written does not run, and is none.
		s.Version, _ = installedVersion(ctx, h, Kubeadm)
	}
	journal, err := readJournal(h)
	if err != nil || journal.Phase != phaseMember {
		return s, err
	}
	if s.Member = h.Exists(KubeletConf); !s.Member {
		_, err = h.Remove(journalFile)
	}
	return s, err
}

// HoldKubelet keeps the kubelet, or the etcd, of a machine that may be a copy of another
// from coming up as that; a start that systemd has queued is taken back. It does not wait.
func HoldKubelet(ctx context.Context, h *host.Host) error {
	return eachMemberUnit(ctx, h, func(unit string) error {
		_, err := disableAndStop(ctx, h, unit)
		return err
	})
}

// LetKubeletGo undoes HoldKubelet.
func LetKubeletGo(ctx context.Context, h *host.Host) error {
	return eachMemberUnit(ctx, h, func(unit string) error {
		if _, err := h.Units.Enable(ctx, unit); err != nil {
			return err
		}
		_, err := h.Units.Start(ctx, unit)
		return err
	})
}

// eachMemberUnit is for those units by which the machine is a member that it has.
func eachMemberUnit(ctx context.Context, h *host.Host, do func(unit string) error) error {
	units := []string{kubeletUnit}
	if h.Exists(etcdService) {
		units = append(units, etcdUnit)
	}
	for _, unit := range units {
		state, err := h.Units.State(ctx, unit)
		if err == nil && state.Exists() {
			err = do(unit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const caFile = "/etc/kubernetes/pki/ca.crt"

// checkCluster sees to it that a machine which is a member of a cluster is not taken
// for one of another: nobody has asked for it to leave the first. A cluster that does
// not answer is not compared.
func (j *joinRun) checkCluster(ctx context.Context) error {
	journal, err := readJournal(j.h)
	if err != nil || journal.Phase == phaseStarted || journal.Phase == phaseFailed || !j.h.Exists(KubeletConf) || j.plan.DiscoveryFile != "" {
		return nil // run deals with these
	}
	text, err := j.h.ReadFile(caFile)
	if err != nil {
		return nil
	}
	own, err := hashCA(text)
	if err != nil {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, comeBackLimit)
	defer cancel()
	j.report("comparing this node's cluster with %s", j.plan.Endpoint)
	info, err := awaitCluster(limited, j.plan.Endpoint, j.plan.Token.Reveal(), j.report)
	if err != nil || info.caHash == own {
		return nil
	}
	return fault.New(fault.OtherClusterMember, "this machine is a member of a cluster with the CA %s, its userdata names %s, with the CA %s",
		own, j.plan.Endpoint, info.caHash)
}
