// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"encoding/base64"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// kind is what the value of a boot arg may be. Empty values and "null" are none
// and never come here.
type kind struct {
	name  string // completes "not ..."
	valid func(value string) bool
}

// anyInterface parts the name of a key that exists for every interface.
var anyInterface = pattern(`^eth(0|[1-9][0-9]{0,2})(ip6|ip6prelen)$`)

// genericKey is the name under which kindsOfKeys has a key.
func genericKey(key string) string {
	if match := anyInterface().FindStringSubmatch(key); match != nil {
		return "eth*" + match[2]
	}
	return key
}

// kindsOfKeys is the table of the keys whose values have a form, of all roles
// (contract 1.4). Not in it are those that interfaces and Problems judge
// themselves, and free text: names, domains, lists of hosts, Java classes.
func kindsOfKeys() map[string]kind {
	ipv4 := kind{"an IPv4 address", isAddress(netip.Addr.Is4)}
	ipv6 := kind{"an IPv6 address", isAddress(netip.Addr.Is6)}
	address := kind{"an IP address", isAddress(netip.Addr.IsValid)}
	boolean := oneOf("true", "false")
	mtu, port := number(68, 65535), number(1, 65535)
	count := number(0, 1<<31-1)
	device := matching("a network device such as eth0", `^eth(0|[1-9][0-9]{0,2})$`)
	encoded := kind{"base64", func(value string) bool {
		_, err := base64.StdEncoding.DecodeString(value)
		return err == nil
	}}
	return map[string]kind{
		"internaldns1": address, "internaldns2": address, "dns1": address, "dns2": address,
		"ip6dns1": ipv6, "ip6dns2": ipv6,
		"eth*ip6": ipv6, "eth*ip6prelen": number(0, 128), "ip6gateway": ipv6,
		"localgw":   address,
		"mgmtcidr":  {"a network such as 10.0.0.0/16", areNetworks}, // since 4.17 a list
		"bootproto": oneOf("dhcp", "static"),

		// Console proxy, secondary storage.
		"port": port, "proxy_vm": count, "workers": count, "mtu": mtu, "vncport": port,
		"premium": boolean, "sslcopy": boolean, "useHttpsToUpload": boolean, "disable_rp_filter": boolean,
		"private.network.device": device, "public.network.device": device,
		"storageip": ipv4, "storagegateway": ipv4,
		"storagenetmask": {"a netmask such as 255.255.255.0", isMask},
		"storagecidr":    {"a network such as 10.0.0.0/16", areNetworks},
		"authorized_key": encoded,

		// Routers, balancers.
		"privateMtu": mtu, "publicMtu": mtu,
		"redundant_router": oneOf("1", "0", "true", "false"),
		"redundant_state":  oneOf("PRIMARY", "BACKUP", "MASTER"), // MASTER up to 4.15
		"advert_int":       count, "router_id": count, "router_pr": count, "extra_pubnics": count,
		"guestgw": ipv4, "guestbrd": ipv4, "guestgw6": ipv6,
		"guestcidrsize": number(0, 32), "cidrsize": number(0, 32), "guestcidr6size": number(0, 128),
		"dhcprange": {"addresses such as 10.1.1.1", areAddresses},
		"vpccidr":   {"a network such as 10.0.0.0/16", areNetworks},
		"is_routed": boolean, "ip6firewall": boolean, "has_public_network": boolean, "defaultroute": boolean,
		"useextdns": boolean, "userouteripresolver": boolean, "exposedns": boolean, "sshonguest": boolean,
		"nic_macs": {"MAC addresses parted by |", areMACs},
		"userdata": encoded,
	}
}

// isAddress takes the unspecified address, which stands for none, in any family.
func isAddress(family func(netip.Addr) bool) func(string) bool {
	return func(value string) bool {
		address, err := netip.ParseAddr(value)
		return err == nil && (address.IsUnspecified() || family(address))
	}
}

func isMask(value string) bool {
	_, err := parseMask(value)
	return err == nil
}

func areNetworks(value string) bool {
	_, err := parsePrefixes(value)
	return err == nil
}

// areAddresses takes the two ways in which CloudStack has parted them.
func areAddresses(value string) bool {
	return !slices.ContainsFunc(strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ':' }),
		func(part string) bool { return !isAddress(netip.Addr.Is4)(part) })
}

func areMACs(value string) bool {
	return !slices.ContainsFunc(strings.Split(value, "|"), func(part string) bool {
		address, err := net.ParseMAC(part)
		return err != nil || len(address) != 6
	})
}

func number(least, most int64) kind {
	return kind{"a number from " + strconv.FormatInt(least, 10) + " to " + strconv.FormatInt(most, 10), func(value string) bool {
		n, err := strconv.ParseInt(value, 10, 64)
		return err == nil && least <= n && n <= most
	}}
}

func oneOf(words ...string) kind {
	last := len(words) - 1
	return kind{strings.Join(words[:last], ", ") + " or " + words[last], func(value string) bool { return slices.Contains(words, value) }}
}

func matching(name, pattern string) kind {
	return kind{name, regexp.MustCompile(pattern).MatchString}
}
