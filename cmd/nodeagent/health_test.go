// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/kubeadm"
)

// C37: a disk that is nearly full is said before the kubelet acts on it.
func TestJudgeDisk(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	if detail, err := judgeDisk(6*gib, 12*gib); err != nil || detail != "6.0 GiB of 12.0 GiB free, 50 %" {
		t.Errorf("%q, %v", detail, err)
	}
	if _, err := judgeDisk(1*gib, 12*gib); err == nil || !strings.Contains(err.Error(), "8 %") {
		t.Errorf("a full disk: %v", err)
	}
}

// What a machine does not have is not asked for.
func TestHealthOfMachines(t *testing.T) {
	t.Parallel()
	names := func(m *hosttest.Machine) string {
		var names []string
		for _, gate := range checkHealth(t.Context(), m.Host(), "n1") {
			names = append(names, gate.Name)
		}
		return strings.Join(names, " ")
	}
	m := hosttest.New(t)
	if got := names(m); got != "" {
		t.Errorf("before kubeadm: %s", got)
	}
	m.Write(kubeadm.KubeletConf, "")
	if got := names(m); got != "certificates disk" {
		t.Errorf("a worker: %s", got)
	}
	m.Write(kubeadm.AdminConf, "")
	m.Write("/etc/kubernetes/pki/etcd/healthcheck-client.crt", "")
	if got := names(m); got != "certificates disk etcd pods" {
		t.Errorf("a control node: %s", got)
	}
	alone := hosttest.New(t)
	alone.Write("/etc/systemd/system/etcd.service", "")
	if got := names(alone); got != "etcd" {
		t.Errorf("an etcd node: %s", got)
	}
}
