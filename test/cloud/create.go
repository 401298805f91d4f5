// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ClusterSpec is a Kubernetes cluster to create.
type ClusterSpec struct {
	// Machines are started in this order; the first is the control node that
	// is checked.
	Machines []MachineSpec
	ISO      string // the binaries ISO
	// ISODelay is the time from the last start to the first attach; minutes on
	// a real cloud.
	ISODelay time.Duration
	Key      *KeyPair
	Pace     time.Duration // of the checks; zero: the server's own
}

// Cluster is what Create made, complete or not.
type Cluster struct {
	Machines   []*Machine
	Gates      []Gate // passed, in order
	Kubeconfig string
}

// Gate is a point of the way that the cluster has passed.
type Gate struct {
	Name   string
	After  time.Duration // since Create began
	Detail string
}

func (g Gate) String() string {
	return fmt.Sprintf("%7.1fs %s %s", g.After.Seconds(), g.Name, g.Detail)
}

// Create goes the way of the management server (contract 5.2, 1 to 6): start
// the machines one by one, attach the ISO to each, wait for ssh, API, nodes,
// detach the ISO, read the kubeconfig, find the dashboard. The server gives
// this an hour; here ctx does. On an error the cluster tells how far it came.
func (c *Cloud) Create(ctx context.Context, spec ClusterSpec) (*Cluster, error) {
	if len(spec.Machines) == 0 || spec.Key == nil {
		return nil, errors.New("cannot create cluster: it has no machine or no key")
	}
	cluster := new(Cluster)
	if err := c.create(ctx, spec, cluster); err != nil {
		return cluster, fmt.Errorf("cannot create cluster: %w", err)
	}
	return cluster, nil
}

func (c *Cloud) create(ctx context.Context, spec ClusterSpec, cluster *Cluster) error {
	began := time.Now()
	pass := func(name, detail string) {
		gate := Gate{Name: name, After: time.Since(began), Detail: strings.TrimSpace(detail)}
		cluster.Gates = append(cluster.Gates, gate)
		c.logf("gate %s %s", gate.Name, gate.Detail)
	}

	for _, machineSpec := range spec.Machines {
		m, err := c.Start(ctx, machineSpec)
		if err != nil {
			return err
		}
		cluster.Machines = append(cluster.Machines, m)
		// The host's start command ends only when the boot args are written.
		if err := m.DeliverBootArgs(ctx, machineSpec.BootArgs); err != nil {
			return err
		}
		pass("started", m.Spec.Name)
	}
	if !pause(ctx, spec.ISODelay) {
		return context.Cause(ctx)
	}
	for _, m := range cluster.Machines {
		if err := m.InsertISO(ctx, spec.ISO); err != nil {
			return err
		}
	}
	pass("iso-attached", spec.ISO)

	checks := Checks{Cloud: c, Control: cluster.Machines[0].Address, Key: spec.Key, Pace: spec.Pace}
	banner, err := checks.WaitSSH(ctx)
	if err != nil {
		return err
	}
	pass("ssh", banner)
	version, err := checks.WaitAPI(ctx)
	if err != nil {
		return err
	}
	pass("api", gitVersion(version))
	if err := checks.WaitNodes(ctx, len(cluster.Machines)); err != nil {
		return err
	}
	pass("nodes", fmt.Sprintf("%d Ready", len(cluster.Machines)))
	for _, m := range cluster.Machines {
		if err := m.EjectISO(ctx); err != nil {
			return err
		}
	}
	pass("iso-detached", "")
	if cluster.Kubeconfig, err = checks.WaitKubeconfig(ctx); err != nil {
		return err
	}
	pass("kubeconfig", fmt.Sprintf("%d bytes", len(cluster.Kubeconfig)))
	pod, err := checks.WaitDashboard(ctx)
	if err != nil {
		return err
	}
	pass("dashboard", pod)
	return nil
}

// gitVersion picks the version out of the API server's answer.
func gitVersion(answer string) string {
	_, rest, _ := strings.Cut(answer, `"gitVersion"`)
	_, rest, _ = strings.Cut(rest, `"`)
	version, _, _ := strings.Cut(rest, `"`)
	return version
}
