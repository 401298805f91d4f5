// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// templateConf is what CloudStack's template brings of it, in the order of
// systemvm/debian/etc/sysctl.conf.
const templateConf = "# @VERSION@\nnet.ipv4.ip_forward = 1\nnet.ipv4.conf.default.rp_filter = 0\n" +
	"net.ipv4.conf.default.arp_announce = 2\nnet.ipv4.conf.all.arp_ignore = 2\nkernel.panic = 10\n"

// nodeKernel is a machine whose kernel has the template's settings and one NIC.
func nodeKernel(t *testing.T) *hosttest.Machine {
	t.Helper()
	m := hosttest.New(t)
	m.Write(templateSysctls, templateConf)
	for _, s := range nodeSysctls([]string{"eth0"}) {
		m.Write(s.path(), "2\n")
	}
	m.Program("/sbin/modprobe", func(command host.Command) (string, error) {
		for _, name := range command.Args[1:] {
			m.Write("/sys/module/"+name+"/initstate", "live\n")
		}
		return "", nil
	})
	return m
}

// Contract 11 item 20: modules and sysctls are there now and after a reboot, also
// for a NIC that took over the template's strict ARP settings when it appeared.
func TestKernelSettingsPersist(t *testing.T) {
	t.Parallel()
	m := nodeKernel(t)
	m.Write("/sys/module/overlay/initstate", "live\n")
	done, err := Kernel(context.Background(), m.Host(), []string{"eth0", "eth1"})
	want := []string{"wrote " + modulesFile, "wrote " + sysctlFile, "2 line(s) of /etc/sysctl.conf corrected", "6 modules loaded", "12 sysctls set"}
	if err != nil || !slices.Equal(done, want) {
		t.Errorf("did %q (%v), want %q", done, err, want)
	}
	if got := m.Actions(); !slices.Equal(got, []string{"run /sbin/modprobe -a br_netfilter ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh nf_conntrack"}) {
		t.Errorf("did %q, want the missing modules loaded", got)
	}
	for name, value := range map[string]string{
		"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1", "net/ipv4/conf/default/rp_filter": "0",
		"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/eth0/rp_filter": "0", "net/ipv4/conf/eth0/arp_ignore": "0",
	} {
		if got := strings.TrimSpace(m.Read("/proc/sys/" + name)); got != value {
			t.Errorf("%s = %q, want %s", name, got, value)
		}
	}
	if m.Host().Exists("/proc/sys/net/ipv4/conf/eth1") {
		t.Error("a NIC that is not there yet was written to")
	}
	if got := m.Read(modulesFile); !strings.Contains(got, "\nbr_netfilter\n") {
		t.Errorf("modules file:\n%s", got)
	}
	got := m.Read(sysctlFile)
	for _, line := range []string{"net.ipv4.ip_forward = 1", "net.ipv4.conf.default.rp_filter = 0", "net.ipv4.conf.eth1.arp_announce = 0"} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("sysctl file lacks %q:\n%s", line, got)
		}
	}
	if done, err := Kernel(context.Background(), m.Host(), []string{"eth0", "eth1"}); err != nil || len(done) != 0 || len(m.Actions()) != 0 {
		t.Errorf("the second boot did %q (%v), want nothing", done, err)
	}
}

// A module that is missing, or a parameter, is a failure that names it.
func TestKernelNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	m := nodeKernel(t)
	if err := os.RemoveAll(m.Path("/proc/sys/net/bridge")); err != nil {
		t.Fatal(err)
	}
	_, err := Kernel(context.Background(), m.Host(), nil)
	if err == nil || !strings.Contains(err.Error(), "net.bridge.bridge-nf-call-iptables") {
		t.Errorf("error %v, want the parameter named", err)
	}
	m.Program("/sbin/modprobe", func(host.Command) (string, error) {
		return "", &host.CommandError{Command: "modprobe", Err: os.ErrNotExist}
	})
	if err := os.RemoveAll(m.Path("/sys/module")); err != nil {
		t.Fatal(err)
	}
	if _, err := Kernel(context.Background(), m.Host(), nil); err == nil || !strings.Contains(err.Error(), "modprobe") {
		t.Errorf("error %v, want modprobe named", err)
	}
}

// systemd-sysctl reads files in the order of their names, whatever their folder: the
// template's, which Debian links into sysctl.d, before ours, network plugins' after.
func TestSysctlFileIsReadInTime(t *testing.T) {
	t.Parallel()
	want := []string{"50-default.conf", "99-protect-links.conf", "99-sysctl.conf", filepath.Base(sysctlFile), "99-zzz-override_cilium.conf"}
	got := slices.Clone(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("read in the order %q, want %q", got, want)
	}
}

func TestCorrectSysctls(t *testing.T) {
	t.Parallel()
	sysctls := nodeSysctls([]string{"eth0"})
	for _, test := range []struct {
		conf, want string
		count      int
	}{
		{"", "", 0},
		{"net.ipv4.ip_forward = 1\n", "net.ipv4.ip_forward = 1\n", 0},
		{"net.ipv4.ip_forward=1", "net.ipv4.ip_forward=1", 0},
		{"net.ipv4.ip_forward=0", "net.ipv4.ip_forward = 1", 1},
		{" net.ipv4.ip_forward\t=\t0 \r\nx = y\r\n", "net.ipv4.ip_forward = 1\r\nx = y\r\n", 1},
		{"-net/ipv4/conf/eth0/rp_filter = 1\n", "-net/ipv4/conf/eth0/rp_filter = 0\n", 1},
		{"#net.ipv4.ip_forward=0\n;net.ipv4.ip_forward=0\n", "#net.ipv4.ip_forward=0\n;net.ipv4.ip_forward=0\n", 0},
		{"-net.ipv4.conf.all.rp_filter\n", "-net.ipv4.conf.all.rp_filter\n", 0},
		{"net.ipv4.conf.eth0/100.rp_filter = 1\n=\n= 1\n\x00\xff=\n", "net.ipv4.conf.eth0/100.rp_filter = 1\n=\n= 1\n\x00\xff=\n", 0},
		{"net.ipv4.ip_forward = 0 # no comment\n", "net.ipv4.ip_forward = 1\n", 1},
		{"net.ipv4.ip_forward = 0\nnet.ipv4.ip_forward = 2\n", "net.ipv4.ip_forward = 1\nnet.ipv4.ip_forward = 1\n", 2},
	} {
		got, count := correctSysctls(test.conf, sysctls)
		if got != test.want || count != test.count {
			t.Errorf("correctSysctls(%q) = %q, %d; want %q, %d", test.conf, got, count, test.want, test.count)
		}
		if again, count := correctSysctls(got, sysctls); again != got || count != 0 {
			t.Errorf("correctSysctls(%q) a second time = %q, %d", test.conf, again, count)
		}
	}
}

func TestSysctlsNameTheCapability(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root to make a network namespace")
		}
		t.Skip("this test needs root to make a network namespace")
	}
	runtime.LockOSThread() // it ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	hosttest.DropCapabilities(t, unix.CAP_NET_ADMIN)
	_, err := setSysctls(&host.Host{}, []sysctl{{"net.ipv4.ip_forward", "1"}})
	if err == nil || !strings.HasPrefix(err.Error(), "sysctl net.ipv4.ip_forward: ") || !strings.HasSuffix(err.Error(), ": this process lacks CAP_NET_ADMIN") {
		t.Errorf("error = %v, want the capability", err)
	}
}
