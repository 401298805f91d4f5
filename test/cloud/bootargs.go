// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/base64"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// NIC is one network card in boot args. The zero Prefix is a card without an
// IPv4 address.
type NIC struct {
	Prefix  netip.Prefix // the machine's address and its network's length
	Gateway netip.Addr   // of the default card only
}

// NodeArgs are the boot args of a Kubernetes node or a shared filesystem.
type NodeArgs struct {
	Name string
	Role string // empty: cksnode
	NICs []NIC
	// InternalDNS and DNS have one or two addresses each.
	InternalDNS, DNS []netip.Addr
}

// String is the line as the management server builds it, in its order and with
// its leading space (contract 1.4).
func (a NodeArgs) String() string {
	var l argLine
	role := a.Role
	if role == "" {
		role = "cksnode"
	}
	l.add("template", "domP")
	l.add("name", a.Name)
	l.add("type", role)
	l.addNICs(a.NICs)
	l.addDNS("internaldns", a.InternalDNS)
	l.addDNS("dns", a.DNS)
	return l.String()
}

// NodeArgs are the boot args of a node in this cloud's network.
func (c *Cloud) NodeArgs(name string, address netip.Addr) NodeArgs {
	return NodeArgs{
		Name:        name,
		NICs:        []NIC{{Prefix: netip.PrefixFrom(address, guestNetwork.Bits()), Gateway: gateway}},
		InternalDNS: []netip.Addr{c.Router.Address},
		DNS:         []netip.Addr{c.Router.Address},
	}
}

// SystemVMArgs are the boot args of a console proxy or a secondary storage VM.
type SystemVMArgs struct {
	Name  string
	ID    int
	Hosts []string // management servers
	// AuthorizedKey is an authorized_keys file; it travels as base64 and so
	// may end in "=".
	AuthorizedKey   string
	NICs            []NIC
	ManagementCIDRs []string
	LocalGateway    netip.Addr
	InternalDNS     []netip.Addr
	DNS             []netip.Addr
}

// ConsoleProxy is the line for type consoleproxy (contract 1.4).
func (a SystemVMArgs) ConsoleProxy() string {
	var l argLine
	l.add("template", "domP")
	l.add("type", "consoleproxy")
	a.addServer(&l)
	l.add("premium", "true")
	l.add("zone", "1")
	l.add("pod", "1")
	l.add("guid", "Proxy."+strconv.Itoa(a.ID))
	l.add("proxy_vm", strconv.Itoa(a.ID))
	l.add("disable_rp_filter", "true")
	a.addRest(&l)
	return l.String()
}

// SecondaryStorage is the line for type secstorage (contract 1.4).
func (a SystemVMArgs) SecondaryStorage() string {
	var l argLine
	l.add("template", "domP")
	l.add("type", "secstorage")
	a.addServer(&l)
	l.add("zone", "1")
	l.add("pod", "1")
	l.add("guid", a.Name)
	l.add("workers", "5")
	l.add("resource", "org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource")
	l.add("instance", "SecStorage")
	l.add("sslcopy", "false")
	l.add("role", "templateProcessor")
	l.add("mtu", "1500")
	l.add("private.network.device", "eth1")
	l.add("public.network.device", "eth2")
	l.add("nfsVersion", "null") // what Java appends for a version nobody set
	a.addRest(&l)
	return l.String()
}

func (a SystemVMArgs) addServer(l *argLine) {
	l.add("host", strings.Join(a.Hosts, ","))
	l.add("port", "8250")
	l.add("name", a.Name)
}

func (a SystemVMArgs) addRest(l *argLine) {
	l.add("authorized_key", base64.StdEncoding.EncodeToString([]byte(a.AuthorizedKey)))
	l.addNICs(a.NICs)
	if len(a.ManagementCIDRs) > 0 {
		l.add("mgmtcidr", strings.Join(a.ManagementCIDRs, ","))
		l.add("localgw", a.LocalGateway.String())
	}
	l.addDNS("internaldns", a.InternalDNS)
	l.addDNS("dns", a.DNS)
}

// RouterArgs are the boot args of the virtual router of an isolated network:
// eth0 to the guests, eth1 to the host, eth2 to the public network.
type RouterArgs struct {
	Name                   string
	AuthorizedKey          string
	Guest, Control, Public netip.Prefix
	Gateway                netip.Addr // of the public network
	Domain                 string
	DNS                    []netip.Addr
}

// String is the line for type router (contract 1.4).
func (a RouterArgs) String() string {
	var l argLine
	l.add("template", "domP")
	l.add("name", a.Name)
	l.add("authorized_key", base64.StdEncoding.EncodeToString([]byte(a.AuthorizedKey)))
	l.addNICs([]NIC{{Prefix: a.Guest}})
	l.add("privateMtu", "1500")
	l.add("guestgw", a.Guest.Addr().String())
	l.add("guestbrd", broadcast(a.Guest).String())
	l.add("guestcidrsize", strconv.Itoa(a.Guest.Bits()))
	l.add("domain", a.Domain)
	l.add("cidrsize", strconv.Itoa(a.Guest.Bits()))
	l.add("dhcprange", a.Guest.Masked().Addr().Next().String())
	l.addNIC(1, NIC{Prefix: a.Control})
	l.addNIC(2, NIC{Prefix: a.Public, Gateway: a.Gateway})
	l.add("publicMtu", "1500")
	l.add("type", "router")
	l.add("disable_rp_filter", "true")
	l.add("dnssearchorder", a.Domain)
	l.addDNS("dns", a.DNS)
	l.add("useextdns", "true")
	l.add("logrotatefrequency", "*/10:*")
	return l.String()
}

func broadcast(prefix netip.Prefix) netip.Addr {
	octets := prefix.Addr().As4()
	mask := net.CIDRMask(prefix.Bits(), 32)
	for i := range octets {
		octets[i] |= ^mask[i]
	}
	return netip.AddrFrom4(octets)
}

// argLine puts a space before every key=value, the first as well.
type argLine struct{ strings.Builder }

func (l *argLine) add(key, value string) { l.WriteString(" " + key + "=" + value) }

func (l *argLine) addNICs(nics []NIC) {
	for i, nic := range nics {
		l.addNIC(i, nic)
	}
}

func (l *argLine) addNIC(number int, nic NIC) {
	name := "eth" + strconv.Itoa(number)
	address, mask := "0.0.0.0", "0.0.0.0"
	if nic.Prefix.IsValid() {
		address = nic.Prefix.Addr().String()
		mask = net.IP(net.CIDRMask(nic.Prefix.Bits(), 32)).String()
	}
	l.add(name+"ip", address)
	l.add(name+"mask", mask)
	if nic.Gateway.IsValid() {
		l.add("gateway", nic.Gateway.String())
	}
}

func (l *argLine) addDNS(key string, addresses []netip.Addr) {
	for i, address := range addresses {
		l.add(key+strconv.Itoa(i+1), address.String())
	}
}
