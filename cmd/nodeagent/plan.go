// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"nodeagent/internal/agent"
)

// bootPlan is what happens at a boot, from top to bottom: THE list of steps. A
// step starts as soon as the steps it needs are done. Those up to services are
// for every role; the rest makes a Kubernetes node, or one of etcd alone.
func bootPlan(n *node) []agent.Step {
	return []agent.Step{
		{Name: "boot-args", Short: "CloudStack's boot args are there", Timeout: 6 * time.Minute, Run: n.readBootArgs},
		{Name: "role", Short: "the role is known", Needs: []string{"boot-args"}, Timeout: time.Minute, Run: n.findRole},
		{Name: "ssh", Short: "the ssh server answers", Needs: []string{"role"}, Always: true, Applies: n.ownsSSH, Timeout: time.Minute, Run: n.startSSH},
		{Name: "disk", Short: "the root has the whole disk", Needs: []string{"role"}, Timeout: 5 * time.Minute, Run: n.growRoot},

		{Name: "hostname", Short: "host name and hosts file", Needs: []string{"role"}, Applies: n.ownsNode, Timeout: time.Minute, Run: n.setHostname},
		{Name: "network", Short: "address, route and resolver", Needs: []string{"role"}, Applies: n.ownsNode, Timeout: time.Minute, Run: n.setNetwork},
		{Name: "machine", Short: "root locked, search path, log rotation, irqbalance", Needs: []string{"role"}, Applies: n.ownsNode, Timeout: time.Minute, Run: n.setMachine},
		{Name: "time", Short: "one time service", Needs: []string{"role"}, Applies: n.ownsNode, Timeout: time.Minute, Run: n.setTime},
		{Name: "iptables", Short: "the flavour of iptables", Needs: []string{"role"}, Applies: n.ownsNode, Timeout: time.Minute, Run: n.setPacketFilters},
		{Name: "swap", Short: "swap is off for good", Needs: []string{"role"}, Applies: n.ownsNode, Timeout: time.Minute, Run: n.turnSwapOff},
		{Name: "kernel", Short: "modules and sysctls", Needs: []string{"role"}, Applies: n.ownsNode, Timeout: time.Minute, Run: n.setKernel},
		{Name: "services", Short: "docker, containerd and cloud-init as the role wants",
			Needs: []string{"disk", "hostname", "network", "machine", "time", "iptables", "swap", "kernel"}, Ready: true, Timeout: time.Minute, Run: n.setServices},

		{Name: "userdata", Short: "the userdata is read", Needs: []string{"services"}, Applies: n.ownsNode, Timeout: 6 * time.Minute, Run: n.fetchUserdata},
		{Name: "cloud-init", Short: "cloud-init made users and files", Needs: []string{"userdata"}, Applies: n.ownsNode, Timeout: 15 * time.Minute, Run: n.runCloudInit},
		{Name: "preflight", Short: "the machine is large enough", Needs: []string{"userdata"}, Applies: n.needsDisk, Timeout: time.Minute, Run: n.once(n.checkMachine)},
		{Name: "iso", Short: "the binaries ISO is mounted", Needs: []string{"preflight"}, Applies: n.makes, Timeout: isoTimeout, Longer: n.isoPatience, Run: n.fromISO(n.findISO)},
		{Name: "install", Short: "binaries and units are in place", Needs: []string{"iso"}, Applies: n.makes, Timeout: 10 * time.Minute, Run: n.fromISO(n.install)},
		{Name: "containerd", Short: "containerd is configured", Needs: []string{"iso"}, Applies: n.makesKubernetes, Timeout: 5 * time.Minute, Run: n.once(n.configureContainerd)},
		{Name: "images", Short: "the images are imported", Needs: []string{"containerd"}, Applies: n.makesKubernetes, Timeout: 30 * time.Minute, Run: n.fromISO(n.importImages)},
		{Name: "release", Short: "the ISO is unmounted", Needs: []string{"install", "images"}, Applies: n.makes, Timeout: time.Minute, Run: n.once(n.releaseISO)},
		{Name: "kubeadm", Short: "kubeadm has made the node", Needs: []string{"install", "images", "cloud-init"}, Applies: n.makesKubernetes, Timeout: 20 * time.Minute, Longer: n.joinPatience, Run: n.once(n.runKubeadm)},
		{Name: "add-ons", Short: "the ISO's manifests are applied", Needs: []string{"kubeadm"}, Applies: n.makesKubernetes, Timeout: 10 * time.Minute, Run: n.once(n.applyAddOns)},
		{Name: "ready", Short: "the node is Ready", Needs: []string{"add-ons"}, Applies: n.makesKubernetes, Timeout: 20 * time.Minute, Run: n.awaitReady},
		{Name: "etcd", Short: "the member of etcd runs", Needs: []string{"install", "cloud-init"}, Applies: n.makesEtcd, Timeout: 10 * time.Minute, Longer: n.etcdPatience, Run: n.runEtcd},
		{Name: "success", Short: "CloudStack's marker is written", Needs: []string{"ready", "etcd", "release"}, Applies: n.makes, Timeout: time.Minute, Run: n.writeSuccess},
	}
}

// isoTimeout bounds the wait for the binaries ISO: CloudStack attaches it after
// all VMs of a cluster run, and its own scripts wait 25 minutes unless they were told
// to wait longer.
const isoTimeout = 45 * time.Minute
