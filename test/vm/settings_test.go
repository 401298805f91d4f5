// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"nodeagent/test/cloud"
)

// wantNodeSettings checks what cksnode.sh of CloudStack does to a Kubernetes node, on
// the machine itself and with its own programs (contract 2.1, and 10 items 4 to 6 and 11).
func wantNodeSettings(t *testing.T, ctx context.Context, m *cloud.Machine) {
	t.Helper()
	for _, check := range []struct {
		argv []string
		want string // pattern
	}{
		{[]string{"/usr/bin/passwd", "-S", "root"}, `^root L `},
		{[]string{"/usr/bin/stat", "-c", "%U:%G:%a", "/etc/shadow"}, `^root:shadow:640\n$`},
		{[]string{"/usr/bin/find", "/root/.ssh", "-name", "authorized_keys*", "-size", "+0"}, `^$`},
		{[]string{"/usr/sbin/sshd", "-T"}, `(?m)^listenaddress 0\.0\.0\.0:22$`},
		{[]string{"/usr/sbin/sshd", "-T"}, `(?m)^pubkeyacceptedalgorithms .*\bssh-rsa(,|$)`},
		{[]string{"/usr/sbin/sshd", "-T"}, `(?m)^subsystem sftp `},
		{[]string{"/usr/sbin/sysctl", "-n", "net.ipv4.ip_forward", "net.ipv4.conf.default.rp_filter", "net.ipv4.conf.eth0.rp_filter",
			"net.ipv4.conf.eth0.arp_ignore", "net.ipv4.conf.eth0.arp_announce"}, `^1\n0\n0\n0\n0\n$`},
		{[]string{"/usr/bin/readlink", "/etc/alternatives/iptables"}, `iptables-legacy\n$`},
		{[]string{"/usr/sbin/swapon", "--show"}, `^$`},
		{[]string{"/usr/bin/systemctl", "show", "-p", "UnitFileState", "--value", "systemd-networkd.service"}, `^masked\n$`},
		{[]string{"/usr/bin/systemctl", "show", "-p", "ActiveState", "--value", "systemd-timesyncd.service"}, `^active\n$`},
		{[]string{"/usr/sbin/ip", "-4", "address", "show", "dev", "eth0"}, `valid_lft forever`},
		{[]string{"/usr/bin/bash", "-lc", "echo $PATH"}, `(^|:)/opt/bin(:|\n)`},
	} {
		if got := output(t, ctx, m, check.argv[0], check.argv[1:]...); !regexp.MustCompile(check.want).MatchString(got) {
			t.Errorf("%s: %q, want %s", strings.Join(check.argv, " "), got, check.want)
		}
	}
	if got := output(t, ctx, m, "/usr/bin/ps", "-eo", "comm"); strings.Contains(got, "dhclient") || strings.Contains(got, "irqbalance") {
		t.Errorf("dhclient or irqbalance runs:\n%s", got)
	}
}
