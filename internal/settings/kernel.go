// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"fmt"
	"os"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Files that make modules and sysctls come back on later boots, without
// nodeagent (contract section 11, item 20).
const (
	modulesFile = "/etc/modules-load.d/nodeagent.conf"
	sysctlFile  = "/etc/sysctl.d/99-nodeagent.conf"
)

// modules are what kubelet, kube-proxy and containerd use.
func modules() []string {
	return []string{"overlay", "br_netfilter", "ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_sh", "nf_conntrack"}
}

// sysctls are a Kubernetes node's; the arp ones are those CloudStack's own node
// script sets for load balancers in front of the control plane.
func sysctls() [][2]string {
	return [][2]string{
		{"net.ipv4.ip_forward", "1"},
		{"net.bridge.bridge-nf-call-iptables", "1"},
		{"net.bridge.bridge-nf-call-ip6tables", "1"},
		{"net.ipv4.conf.default.rp_filter", "0"},
		{"net.ipv4.conf.all.arp_announce", "0"},
		{"net.ipv4.conf.all.arp_ignore", "0"},
		{"net.ipv4.conf.default.arp_announce", "0"},
		{"net.ipv4.conf.default.arp_ignore", "0"},
	}
}

// Kernel loads the modules and sets the sysctls of a Kubernetes node, now and
// for later boots. It reports whether it changed a file.
func Kernel(ctx context.Context, h *host.Host) (changed bool, err error) {
	fail := func(err error) (bool, error) {
		return changed, fault.Wrap(fault.HostSettingsFailed, err, "cannot set up the kernel for Kubernetes")
	}
	var conf strings.Builder
	conf.WriteString("# Written by nodeagent for a Kubernetes node.\n")
	for _, pair := range sysctls() {
		fmt.Fprintf(&conf, "%s = %s\n", pair[0], pair[1])
	}
	for name, text := range map[string]string{
		modulesFile: "# Written by nodeagent for a Kubernetes node.\n" + strings.Join(modules(), "\n") + "\n",
		sysctlFile:  conf.String(),
	} {
		wrote, err := h.WriteFile(name, []byte(text), 0o644)
		if err != nil {
			return fail(err)
		}
		changed = changed || wrote
	}
	if _, err := h.Run.Run(ctx, host.Command{Path: "/sbin/modprobe", Args: append([]string{"-a"}, modules()...)}); err != nil {
		return fail(err)
	}
	for _, pair := range sysctls() {
		name := "/proc/sys/" + strings.ReplaceAll(pair[0], ".", "/")
		if err := os.WriteFile(h.Path(name), []byte(pair[1]), 0o644); err != nil {
			return fail(fmt.Errorf("sysctl %s: %w", pair[0], err))
		}
	}
	return changed, nil
}
