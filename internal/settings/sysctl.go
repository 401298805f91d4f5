// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"fmt"
	"strings"
)

// sysctl is one kernel parameter: its name with dots, and its value.
type sysctl struct{ name, value string }

// path is where the kernel has it. Names with slashes in /proc/sys that hold dots
// are none of ours.
func (s sysctl) path() string { return "/proc/sys/" + strings.ReplaceAll(s.name, ".", "/") }

// nodeSysctls are a Kubernetes node's. CloudStack's template turns source route
// verification off and is strict about ARP, for routers; its node scripts set the
// ARP ones back for load balancers in front of the control plane. A NIC has its own
// copies, of which the kernel takes the stricter one: the template's are in there
// already, and Debian 13 sets rp_filter=2 on all NICs.
func nodeSysctls(nics []string) []sysctl {
	all := []sysctl{
		{"net.ipv4.ip_forward", "1"},
		{"net.bridge.bridge-nf-call-iptables", "1"},
		{"net.bridge.bridge-nf-call-ip6tables", "1"},
	}
	for _, nic := range append([]string{"all", "default"}, nics...) {
		for _, name := range []string{"rp_filter", "arp_announce", "arp_ignore"} {
			all = append(all, sysctl{"net.ipv4.conf." + nic + "." + name, "0"})
		}
	}
	return all
}

// sysctlConf renders a sysctl.d(5) file.
func sysctlConf(sysctls []sysctl) string {
	var b strings.Builder
	b.WriteString("# Written by nodeagent for a Kubernetes node.\n")
	for _, s := range sysctls {
		fmt.Fprintf(&b, "%s = %s\n", s.name, s.value)
	}
	return b.String()
}

// correctSysctls gives the lines of a sysctl.conf(5) that say otherwise the value
// they should have, and counts them. All else stays as it is.
func correctSysctls(conf string, sysctls []sysctl) (text string, count int) {
	want := map[string]string{}
	for _, s := range sysctls {
		want[s.name] = s.value
	}
	var lines []string
	for line := range strings.Lines(conf) {
		key, value, found := strings.Cut(strings.TrimSpace(line), "=")
		name := dotted(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(key), "-")))
		if wanted, ours := want[name]; found && ours && strings.TrimSpace(value) != wanted {
			end := line[len(strings.TrimRight(line, "\r\n")):]
			line = strings.TrimSpace(key) + " = " + wanted + end
			count++
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, ""), count
}

// dotted turns the other spelling of a name, net/ipv4/ip_forward, into dots.
func dotted(name string) string {
	if slash, dot := strings.IndexByte(name, '/'), strings.IndexByte(name, '.'); slash >= 0 && (dot < 0 || slash < dot) {
		return strings.ReplaceAll(name, "/", ".")
	}
	return name
}
