// SPDX-License-Identifier: Apache-2.0

package netsetup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Interface is one NIC as the boot args give it.
type Interface struct {
	Name    string
	Address netip.Prefix // address and mask; the zero Prefix leaves the NIC alone
	Gateway netip.Addr   // of the default route; the zero Addr for none
}

// Network is the network of a node.
type Network struct {
	Interfaces  []Interface
	Nameservers []netip.Addr // in the order they are asked
}

// String is the network in one line: "eth0 10.1.1.57/24 via 10.1.1.1".
func (n Network) String() string {
	var parts []string
	for _, nic := range n.Interfaces {
		if !nic.Address.IsValid() {
			continue
		}
		text := nic.Name + " " + nic.Address.String()
		if nic.Gateway.IsValid() {
			text += " via " + nic.Gateway.String()
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// Apply gives the running kernel the addresses and the default route and writes
// them and the resolver down for later boots. It waits for NICs that have not
// appeared yet, by the kernel's link events, until ctx ends. It returns what it
// changed; nothing on a machine that is so already.
func Apply(ctx context.Context, h *host.Host, network Network, report host.Report) (done []string, err error) {
	fail := func(err error) ([]string, error) {
		return done, fault.Wrap(fault.NetworkFailed, err, "cannot set up the network")
	}
	for name, text := range map[string]string{"/etc/network/interfaces": interfaces(network), "/etc/resolv.conf": resolver(network)} {
		if text == "" {
			continue
		}
		changed, err := h.WriteFile(name, []byte(text), 0o644)
		if err != nil {
			return fail(err)
		}
		if changed {
			done = append(done, "wrote "+name)
		}
	}
	handle, err := netlink.NewHandle()
	if err != nil {
		return fail(err)
	}
	defer handle.Close()
	if err := bringUp(handle, "lo"); err != nil {
		return fail(host.Explain(err, unix.CAP_NET_ADMIN))
	}
	for _, nic := range network.Interfaces {
		if !nic.Address.IsValid() {
			continue
		}
		link, err := awaitLink(ctx, handle, nic.Name, report)
		if err != nil {
			return fail(err)
		}
		changes, err := configure(handle, link, nic)
		done = append(done, changes...)
		if err != nil {
			return fail(host.Explain(fmt.Errorf("%s: %w", nic.Name, err), unix.CAP_NET_ADMIN))
		}
	}
	return done, nil
}

func bringUp(handle *netlink.Handle, name string) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("cannot find %s: %w", name, err)
	}
	return handle.LinkSetUp(link)
}

// awaitLink blocks until the NIC is there. It subscribes before it looks, so no
// event is missed.
func awaitLink(ctx context.Context, handle *netlink.Handle, name string, report host.Report) (netlink.Link, error) {
	events := make(chan netlink.LinkUpdate, 16)
	stop := make(chan struct{})
	defer close(stop)
	if err := netlink.LinkSubscribe(events, stop); err != nil {
		return nil, fmt.Errorf("cannot listen to link events: %w", err)
	}
	for {
		link, err := handle.LinkByName(name)
		if err == nil {
			return link, nil
		}
		if missing := (netlink.LinkNotFoundError{}); !errors.As(err, &missing) {
			return nil, fmt.Errorf("cannot find %s: %w", name, err)
		}
		report("waiting for the NIC %s to appear", name)
		select {
		case _, open := <-events:
			if !open {
				return nil, errors.New("the kernel's link events ended")
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot find %s: no such NIC (has: %s)", name, strings.Join(linkNames(handle), " "))
		}
	}
}

func linkNames(handle *netlink.Handle) (names []string) {
	links, err := handle.LinkList()
	if err != nil {
		return nil
	}
	for _, link := range links {
		names = append(names, link.Attrs().Name)
	}
	return names
}

// forever is the kernel's lifetime of an address that does not end.
const forever = 1<<32 - 1

// configure makes the NIC have its address and, when it has a gateway, the machine
// exactly one default route. Further addresses stay: on a running node they are
// somebody's, for instance a load balancer's.
func configure(handle *netlink.Handle, link netlink.Link, nic Interface) (done []string, err error) {
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := handle.LinkSetUp(link); err != nil {
			return done, fmt.Errorf("cannot bring it up: %w", err)
		}
		done = append(done, nic.Name+" up")
	}
	want := &netlink.Addr{IPNet: prefixNet(nic.Address)}
	addresses, err := handle.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return done, fmt.Errorf("cannot list its addresses: %w", err)
	}
	have := false
	for _, address := range addresses {
		// One that a DHCP client has left would end with its lease (pain-point C11).
		if address.IPNet.String() == want.IPNet.String() && uint32(address.ValidLft) == forever {
			have = true
		}
	}
	if !have {
		if err := handle.AddrReplace(link, want); err != nil {
			return done, fmt.Errorf("cannot set the address %s: %w", nic.Address, err)
		}
		done = append(done, fmt.Sprintf("%s has %s", nic.Name, nic.Address))
	}
	if !nic.Gateway.IsValid() {
		return done, nil
	}
	changes, err := defaultRoute(handle, link, nic.Gateway)
	return append(done, changes...), err
}

func defaultRoute(handle *netlink.Handle, link netlink.Link, gateway netip.Addr) (done []string, err error) {
	routes, err := handle.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("cannot list routes: %w", err)
	}
	have := false
	for _, route := range routes {
		if route.Dst != nil && route.Dst.String() != "0.0.0.0/0" {
			continue
		}
		if route.Gw.Equal(gateway.AsSlice()) && route.LinkIndex == link.Attrs().Index {
			have = true
			continue
		}
		if err := handle.RouteDel(&route); err != nil {
			return done, fmt.Errorf("cannot remove the default route via %s: %w", route.Gw, err)
		}
		done = append(done, fmt.Sprintf("removed the default route via %s", route.Gw))
	}
	if have {
		return done, nil
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice()}
	if err := handle.RouteReplace(route); err != nil {
		return done, fmt.Errorf("cannot set the default route via %s: %w", gateway, err)
	}
	return append(done, fmt.Sprintf("default route via %s", gateway)), nil
}

func prefixNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 32)}
}

// interfaces renders an interfaces(5) file. The NICs are "manual" with commands
// that may be repeated: ifupdown's own static method fails on an address that
// nodeagent has set before it.
func interfaces(network Network) string {
	var b strings.Builder
	b.WriteString("# Written by nodeagent from CloudStack's boot args.\nauto lo\niface lo inet loopback\n")
	for _, nic := range network.Interfaces {
		if !nic.Address.IsValid() {
			continue
		}
		fmt.Fprintf(&b, "\nauto %[1]s\niface %[1]s inet manual\n    up ip link set dev %[1]s up\n    up ip address replace %[2]s dev %[1]s\n", nic.Name, nic.Address)
		if nic.Gateway.IsValid() {
			fmt.Fprintf(&b, "    up ip route replace default via %s dev %s\n", nic.Gateway, nic.Name)
		}
	}
	return b.String()
}

// resolver renders a resolv.conf(5); without name servers there is none to write.
func resolver(network Network) string {
	if len(network.Nameservers) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("# Written by nodeagent from CloudStack's boot args.\n")
	for _, server := range network.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	return b.String()
}
