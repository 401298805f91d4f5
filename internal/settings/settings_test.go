// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// C38: swap by UUID, by PARTUUID and found by GPT type is off, and stays off.
func TestSwapOffIsForGood(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	m := hosttest.New(t)
	fstab := "# swap comment\nUUID=a / ext4 defaults 0 1\nUUID=b none swap sw 0 0\n/dev/disk/by-partuuid/x\tnone\tswap\tsw\n/swap /mnt/swap ext4 defaults 0 0\n"
	m.Write("/etc/fstab", fstab)
	m.AddSwap("/dev/vda5")
	m.AddSwap("/dev/zram0")
	m.AddUnit(host.Unit{Name: "dev-vda5.swap", FileState: "generated", ActiveState: "active"})
	for i, want := range []int{4, 0} { // mask, two devices, fstab
		done, err := SwapOff(ctx, m.Host())
		if err != nil || len(done) != want {
			t.Fatalf("run %d: did %q (%v), want %d things", i, done, err, want)
		}
	}
	if got := m.String(); strings.Contains(got, "swap /dev") || !strings.Contains(got, "dev-vda5.swap: masked") {
		t.Errorf("machine:\n%s", got)
	}
	got := m.Read("/etc/fstab")
	for _, line := range strings.Split(got, "\n") {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "swap" && fields[0][0] != '#' {
			t.Errorf("fstab still has %q", line)
		}
	}
	if !strings.Contains(got, "\nUUID=a / ext4") || !strings.Contains(got, "\n/swap /mnt/swap ext4") {
		t.Errorf("fstab lost other lines:\n%s", got)
	}
}

func TestKernelSettingsPersist(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	for _, pair := range sysctls() {
		m.Write("/proc/sys/"+strings.ReplaceAll(pair[0], ".", "/"), "x")
	}
	m.Program("/sbin/modprobe", func(host.Command) (string, error) { return "", nil })
	for i, want := range []bool{true, false} {
		changed, err := Kernel(context.Background(), m.Host())
		if err != nil || changed != want {
			t.Fatalf("run %d: changed %v, %v; want %v", i, changed, err, want)
		}
	}
	if got := m.Read("/proc/sys/net/bridge/bridge-nf-call-iptables"); got != "1" {
		t.Errorf("bridge-nf-call-iptables = %q", got)
	}
	if got := m.Read(modulesFile); !strings.Contains(got, "\nbr_netfilter\n") {
		t.Errorf("modules file:\n%s", got)
	}
	if got := m.Read(sysctlFile); !strings.Contains(got, "\nnet.ipv4.ip_forward = 1\n") {
		t.Errorf("sysctl file:\n%s", got)
	}
}

func TestWithPort(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ config, want string }{
		{"Port 3922\nPermitRootLogin yes\n", "Port 22\nPermitRootLogin yes\n"},
		{"#Port 3922\nX y\n", "#Port 3922\nX y\n"},
		{"Port 22\nPort 3922\n", "Port 22\n"},
		{"port=3922\nMatch LocalPort 3922\n  Port 3922\n", "Port 22\nMatch LocalPort 3922\n  Port 3922\n"},
		{"", ""},
	} {
		if got := withPort(test.config, 22); got != test.want {
			t.Errorf("withPort(%q, 22) = %q, want %q", test.config, got, test.want)
		}
	}
	if got := withPort("X y\n", 3922); got != "Port 3922\nX y\n" {
		t.Errorf("withPort without a Port line = %q", got)
	}
}

// C9: sshd is enabled and started; a changed port restarts it, nothing else does.
func TestSSH(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write(sshdConfig, "Port 3922\n")
	m.AddUnit(host.Unit{Name: "ssh.service"})
	m.Program("/usr/bin/ssh-keygen", func(host.Command) (string, error) {
		return "", os.WriteFile(m.Path("/etc/ssh/ssh_host_ed25519_key"), nil, 0o600)
	})
	for _, want := range [][]string{
		{"run /usr/bin/ssh-keygen -A", "enable ssh.service", "start ssh.service"},
		nil,
	} {
		if _, err := SSH(context.Background(), m.Host(), 22); err != nil {
			t.Fatal(err)
		}
		if got := m.Actions(); !slices.Equal(got, want) {
			t.Errorf("did %q, want %q", got, want)
		}
	}
	m.Write(sshdConfig, "Port 3922\n")
	if _, err := SSH(context.Background(), m.Host(), 22); err != nil {
		t.Fatal(err)
	}
	if got := m.Actions(); !slices.Equal(got, []string{"restart ssh.service"}) {
		t.Errorf("after the port changed did %q, want a restart", got)
	}
}
