// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestTranscriptWait(t *testing.T) {
	t.Parallel()
	var transcript Transcript
	transcript.Write([]byte("login: "))
	go transcript.Write([]byte("late piece\n"))
	if err := transcript.Wait(deadline(t, 5*time.Second), 0, "late piece"); err != nil {
		t.Error(err)
	}
	err := transcript.Wait(deadline(t, 50*time.Millisecond), 7, "login:")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "late piece") {
		t.Errorf("got error %v, want a timeout that shows the last lines", err)
	}
}

func TestParseQueries(t *testing.T) {
	t.Parallel()
	log := `dnsmasq: started, version 2.90 cachesize 150
dnsmasq: query[A] data-server from 10.1.1.11
dnsmasq: /tmp/hosts/data-server data-server is 10.1.1.1
dnsmasq-dhcp: 1234 DHCPDISCOVER(br0) 02:01:0a:01:01:0b
dnsmasq: query[AAAA] registry.k8s.io from 10.1.1.12
dnsmasq: query[A] broken from nowhere
`
	want := []Query{
		{Client: netip.MustParseAddr("10.1.1.11"), Type: "A", Name: "data-server"},
		{Client: netip.MustParseAddr("10.1.1.12"), Type: "AAAA", Name: "registry.k8s.io"},
	}
	if got := parseQueries(log); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestQEMUArgs(t *testing.T) {
	t.Parallel()
	spec := MachineSpec{Name: "n1", MemoryMiB: 2048, CPUs: 2, Kernel: "/k", Initrd: "/i", Append: "console=ttyS0", ExtraDisks: []string{"/d,1.img"}}
	host := hostFiles{overlay: "/o.qcow2", tap: "tap3", bootArgs: "/b", mac: net.HardwareAddr{2, 1, 10, 1, 1, 11}}
	direct := strings.Join(qemuArgs(findTestPlatform(t, ""), spec, "tcg", host), " ")
	contains(t, "arguments", direct,
		"-machine q35 -smp 2 -m 2048 -accel tcg,thread=multi -cpu max",
		"cache=unsafe,discard=unmap,file=/o.qcow2", "mac=02:01:0a:01:01:0b", "ifname=tap3",
		"name=org.qemu.guest_agent.0", "scsi-cd,bus=scsi0.0,scsi-id=0,id=cd0", "file=/d,,1.img",
		"-fw_cfg name=opt/cloudstack/cmdline,file=/b", "-kernel /k -append console=ttyS0 -initrd /i")
	spec.BootFromDisk = true
	if fromDisk := strings.Join(qemuArgs(findTestPlatform(t, ""), spec, "kvm", host), " "); strings.Contains(fromDisk, "-kernel") || !strings.Contains(fromDisk, "-accel kvm") {
		t.Errorf("got %s, want no kernel, and kvm", fromDisk)
	}
}

// Two machines on one address, or an address that is nobody's, would make
// results that look like bugs of the node.
func TestReserve(t *testing.T) {
	t.Parallel()
	c := &Cloud{dir: "/d", Router: &Router{Address: netip.MustParseAddr("10.1.1.2")}}
	first, err := c.reserve(MachineSpec{Name: "control"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := first.Address.String()+" "+first.MAC.String(), "10.1.1.11 02:01:0a:01:01:0b"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	second, err := c.reserve(MachineSpec{Name: "worker"})
	if err != nil || second.Address.String() != "10.1.1.12" {
		t.Errorf("got %+v, %v, want the next address", second, err)
	}
	for _, test := range []struct{ name, address, want string }{
		{"control", "", "there is a machine of that name"},
		{"a/b", "", "the name is no host name"},
		{"x", "10.1.1.1", "address 10.1.1.1 belongs to the gateway"},
		{"x", "10.1.1.2", "address 10.1.1.2 belongs to the router"},
		{"x", "10.1.1.11", "address 10.1.1.11 belongs to machine control"},
		{"x", "10.2.0.1", "address 10.2.0.1 is not in 10.1.1.0/24"},
	} {
		spec := MachineSpec{Name: test.name}
		if test.address != "" {
			spec.Address = netip.MustParseAddr(test.address)
		}
		if _, err := c.reserve(spec); err == nil || err.Error() != test.want {
			t.Errorf("%+v: got error %v, want %s", test, err, test.want)
		}
	}
}

func TestRunningPod(t *testing.T) {
	t.Parallel()
	output := "NAME READY STATUS\ndashboard-metrics-scraper-5 1/1 Running\nkubernetes-dashboard-7f 0/1 Pending\n"
	if got := runningPod(output, "kubernetes-dashboard"); got != "" {
		t.Errorf("got %q, want none", got)
	}
	output += "kubernetes-dashboard-8f   1/1   Running   0\n"
	if got, want := runningPod(output, "kubernetes-dashboard"), "kubernetes-dashboard-8f   1/1   Running   0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNamespaceOwner(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{
		"nodeagent-cloud-321-0a0b0c": 321, "nodeagent-cloud-321": 0, "nodeagent-cloud--1-a": 0, "other-321-a": 0, "nodeagent-cloud-x-a": 0,
	} {
		if got, ok := namespaceOwner(name); got != want || ok != (want != 0) {
			t.Errorf("%s: got %d, %t, want %d", name, got, ok, want)
		}
	}
}

func TestGitVersion(t *testing.T) {
	t.Parallel()
	if got := gitVersion(`{ "major": "1", "gitVersion": "v1.34.4", "x": "y" }`); got != "v1.34.4" {
		t.Errorf("got %q, want v1.34.4", got)
	}
	if got := gitVersion(""); got != "" {
		t.Errorf("got %q, want nothing", got)
	}
}
