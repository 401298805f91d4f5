// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that are podnet's own; no name is registered
// for this number in iproute2's rt_protos.
const routeProtocol netlink.RouteProtocol = 244

// wantedRoutes are the other nodes' addresses by their pods' subnets. Its own
// subnet is the bridge's.
func wantedRoutes(self netip.Addr, nodes map[string]netip.Addr) map[netip.Prefix]netip.Addr {
	routes := map[netip.Prefix]netip.Addr{}
	for _, address := range nodes {
		if subnet := podSubnet(address); subnet != podSubnet(self) {
			routes[subnet] = address
		}
	}
	return routes
}

// setRoutes makes podnet's routes on this host the wanted ones.
func setRoutes(wanted map[netip.Prefix]netip.Addr) error {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: routeProtocol}
	present, err := netlink.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("cannot list routes: %w", err)
	}
	var problems []error
	for _, route := range present {
		if keep := wanted[prefixOf(route.Dst)]; keep.IsValid() {
			continue // replaced below
		}
		if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
			problems = append(problems, fmt.Errorf("cannot remove the route to %s: %w", route.Dst, err))
		}
	}
	for subnet, via := range wanted {
		route := &netlink.Route{
			Table:    unix.RT_TABLE_MAIN,
			Protocol: routeProtocol,
			Dst:      &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), 32)},
			Gw:       via.AsSlice(),
		}
		if err := netlink.RouteReplace(route); err != nil {
			problems = append(problems, fmt.Errorf("cannot route %s via %s: %w", subnet, via, err))
		}
	}
	return errors.Join(problems...)
}

// prefixOf is the zero Prefix for a default route.
func prefixOf(network *net.IPNet) netip.Prefix {
	if network == nil {
		return netip.Prefix{}
	}
	address, _ := netip.AddrFromSlice(network.IP)
	bits, _ := network.Mask.Size()
	return netip.PrefixFrom(address.Unmap(), bits)
}
