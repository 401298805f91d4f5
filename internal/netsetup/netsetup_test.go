// SPDX-License-Identifier: Apache-2.0

package netsetup

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nodeagent/internal/host/hosttest"
)

// C10: the hosts file is never damaged, whatever the name.
func TestHosts(t *testing.T) {
	t.Parallel()
	address := netip.MustParseAddr("10.1.1.57")
	const debian = "127.0.0.1 localhost\n127.0.1.1 systemvm\n::1 localhost ip6-localhost # v6\n"
	for _, test := range []struct{ name, old, want string }{
		{"node-1", debian, debian + "10.1.1.57\tnode-1\n"},
		{"systemvm", debian, "127.0.0.1 localhost\n::1 localhost ip6-localhost # v6\n10.1.1.57\tsystemvm\n"},
		{"local", debian, debian + "10.1.1.57\tlocal\n"},
		{"a.b", "127.0.0.1 localhost\n1.2.3.4 axb a.b other\n", "127.0.0.1 localhost\n1.2.3.4\taxb other\n10.1.1.57\ta.b\n"},
		{"", debian, debian},
		{"node-1", "", "127.0.0.1\tlocalhost\n10.1.1.57\tnode-1\n"},
		{"node-1", "10.1.1.57 node-1 alias\n127.0.0.1 localhost\n", "10.1.1.57 node-1 alias\n127.0.0.1 localhost\n"},
		// Names are the same in whatever case, and only as whole words.
		{"node-1", "127.0.0.1 localhost\n127.0.1.1 NODE-1 node-10 my-node-1 node-1.example\n",
			"127.0.0.1 localhost\n127.0.1.1\tnode-10 my-node-1 node-1.example\n10.1.1.57\tnode-1\n"},
		{"node-1", "127.0.0.1 localhost\n10.1.1.57\tNode-1", "127.0.0.1 localhost\n10.1.1.57\tNode-1\n"},
		// The name on the node's address twice, and on IPv6 ones.
		{"node-1", "127.0.0.1 localhost\n10.1.1.57 node-1\n10.1.1.57 other node-1\n2001:db8::1 node-1 # six\nfe80::1%eth0 node-1 x\n",
			"127.0.0.1 localhost\n10.1.1.57 node-1\n10.1.1.57\tother\nfe80::1%eth0\tx\n"},
		{"node-1", "127.0.0.1 localhost\n10.1.1.5 a\n10.1.1.577 node-1\n", "127.0.0.1 localhost\n10.1.1.5 a\n10.1.1.577 node-1\n10.1.1.57\tnode-1\n"},
		// What CloudStack's own script left: a line without an address (contract 11.10).
		{"node-1", "127.0.0.1 localhost\n node-1\n\x00\xff\xfe garbage node-1\n\t\n#10.1.1.57 node-1",
			"127.0.0.1 localhost\n node-1\n\x00\xff\xfe garbage node-1\n\t\n#10.1.1.57 node-1\n10.1.1.57\tnode-1\n"},
		{"node-1", "127.0.0.1 localhost\r\n10.9.9.9 node-1\r\n", "127.0.0.1 localhost\n10.1.1.57\tnode-1\n"},
		{"localhost", debian, "127.0.0.1\tlocalhost\n127.0.1.1 systemvm\n::1\tip6-localhost # v6\n10.1.1.57\tlocalhost\n"},
	} {
		got := hosts(test.old, test.name, address)
		if got != test.want {
			t.Errorf("hosts(%q, %q) =\n%swant\n%s", test.old, test.name, got, test.want)
		}
		if again := hosts(got, test.name, address); again != got {
			t.Errorf("hosts is not idempotent for %q:\n%s", test.name, again)
		}
	}
}

func TestHostname(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	for i, want := range []bool{true, false} {
		changed, err := Hostname(m.Host(), "node-1", netip.MustParseAddr("10.1.1.57"))
		if err != nil || changed != want {
			t.Errorf("run %d: changed %v, %v; want %v", i, changed, err, want)
		}
	}
	if got := m.Read("/etc/hostname"); got != "node-1\n" || !strings.Contains(m.String(), "hostname node-1") {
		t.Errorf("hostname file %q, machine %s", got, m)
	}
}

// needsRoot fails instead of skipping where CI is set.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs root to make a network namespace")
	}
	t.Skip("this test needs root to make a network namespace")
}

// inNamespace runs the test on a thread of its own in a new network namespace.
// The thread ends with the test.
func inNamespace(t *testing.T) {
	t.Helper()
	needsRoot(t)
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
}

func TestApplyConvergesInANamespace(t *testing.T) {
	inNamespace(t)
	m := hosttest.New(t)
	network := Network{
		Interfaces: []Interface{
			{Name: "eth0", Address: netip.MustParsePrefix("10.1.1.57/24"), Gateway: netip.MustParseAddr("10.1.1.1")},
			{Name: "eth1"},
		},
		Nameservers: []netip.Addr{netip.MustParseAddr("10.0.0.10"), netip.MustParseAddr("1.1.1.1")},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()

	// The NIC appears while Apply waits for it.
	waiting := make(chan struct{}, 1)
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	handle, err := netlink.NewHandleAt(own)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	made := make(chan error, 1)
	go func() {
		<-waiting
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}
		err := handle.LinkAdd(link)
		if err == nil {
			other, _ := netlink.ParseAddr("10.9.9.9/24")
			err = handle.AddrAdd(link, other)
		}
		made <- err
	}()
	report := func(string, ...any) {
		select {
		case waiting <- struct{}{}:
		default:
		}
	}
	done, err := Apply(ctx, m.Host(), network, report)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	if len(done) == 0 {
		t.Error("the first run changed nothing")
	}
	if done, err := Apply(ctx, m.Host(), network, report); err != nil || len(done) != 0 {
		t.Errorf("a further run changed %q (%v), want nothing", done, err)
	}

	link, err := handle.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := handle.AddrList(link, netlink.FAMILY_V4)
	var have []string
	for _, address := range addresses {
		have = append(have, address.IPNet.String())
	}
	if slices.Sort(have); err != nil || !slices.Equal(have, []string{"10.1.1.57/24", "10.9.9.9/24"}) {
		t.Errorf("eth0 has %q (%v), want its address beside the one it had", have, err)
	}
	routes, err := handle.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var gateways []string
	for _, route := range routes {
		if route.Gw != nil {
			gateways = append(gateways, route.Gw.String())
		}
	}
	if len(gateways) != 1 || gateways[0] != "10.1.1.1" {
		t.Errorf("default routes via %q, want 10.1.1.1", gateways)
	}
	if got, want := m.Read("/etc/resolv.conf"), "nameserver 10.0.0.10\nnameserver 1.1.1.1\n"; !strings.HasSuffix(got, want) {
		t.Errorf("resolv.conf:\n%s", got)
	}
	if got := m.Read("/etc/network/interfaces"); strings.Contains(got, "eth1") || !strings.Contains(got, "up ip address replace 10.1.1.57/24 dev eth0\n") {
		t.Errorf("interfaces:\n%s", got)
	}
}

// C11: an address that a DHCP client has left behind does not end with its lease, and
// nothing in the files of ifupdown starts another client or reads others' files.
func TestApplyOutlivesALease(t *testing.T) {
	inNamespace(t)
	m := hosttest.New(t)
	m.Write("/etc/network/interfaces", "source /etc/network/interfaces.d/*\nallow-hotplug eth0\niface eth0 inet dhcp\n")
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	leased, err := netlink.ParseAddr("10.1.1.57/24")
	if err != nil {
		t.Fatal(err)
	}
	leased.ValidLft, leased.PreferedLft = 3600, 3600
	if err := netlink.AddrAdd(link, leased); err != nil {
		t.Fatal(err)
	}
	nic := Interface{Name: "eth0", Address: netip.MustParsePrefix("10.1.1.57/24"), Gateway: netip.MustParseAddr("10.1.1.1")}
	network := Network{Interfaces: []Interface{nic}}
	for i, want := range []bool{true, false} {
		done, err := Apply(t.Context(), m.Host(), network, t.Logf)
		if err != nil || slices.Contains(done, "eth0 has 10.1.1.57/24") != want {
			t.Errorf("run %d changed %q (%v); want the address set: %v", i, done, err, want)
		}
	}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addresses) != 1 || uint32(addresses[0].ValidLft) != forever || uint32(addresses[0].PreferedLft) != forever {
		t.Errorf("addresses %v, %v; want one for ever", addresses, err)
	}
	got := m.Read("/etc/network/interfaces")
	for _, word := range []string{"dhcp", "source", "allow-hotplug"} {
		if strings.Contains(got, word) {
			t.Errorf("interfaces has %q:\n%s", word, got)
		}
	}
}

func TestApplyNamesAMissingNIC(t *testing.T) {
	inNamespace(t)
	m := hosttest.New(t)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := Apply(ctx, m.Host(), Network{Interfaces: []Interface{{Name: "eth7", Address: netip.MustParsePrefix("10.1.1.57/24")}}},
		func(string, ...any) {})
	if err == nil || !strings.Contains(err.Error(), "eth7: no such NIC (has: lo)") {
		t.Errorf("error = %v, want the missing NIC and those there are", err)
	}
}

func TestApplyNamesTheCapability(t *testing.T) {
	inNamespace(t)
	hosttest.DropCapabilities(t, unix.CAP_NET_ADMIN)
	_, err := Apply(t.Context(), hosttest.New(t).Host(), Network{}, t.Logf)
	if err == nil || !strings.HasSuffix(err.Error(), "operation not permitted: this process lacks CAP_NET_ADMIN") {
		t.Errorf("error = %v, want the capability", err)
	}
}
