// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/secret"
)

// MaxBootArgs is the most bytes of boot args that are read: the largest userdata
// CloudStack accepts (1 MiB before base64) fits in as one of them.
const MaxBootArgs = 2 << 20

// typeNode is the one type whose host settings nodeagent makes itself, so the one
// for which a wrong value is an error and not a warning.
const typeNode = "cksnode"

// BootArgs are the key=value words CloudStack gives a system VM
// (cloudstack-contract.md section 1). The zero BootArgs are empty ones.
type BootArgs struct {
	// A function, because fmt shows what is in one for no verb: values stay unseen
	// also in a printed struct that holds BootArgs in an unexported field.
	parsed func() *parsedArgs
}

type parsedArgs struct {
	keys   []string // in the order of their first mention
	values map[string]string
	twice  []string // keys given more than once, with other values
	words  []string // words without "="
	cut    bool     // longer than MaxBootArgs
}

// ParseBootArgs splits boot args into words at white space and NULs (Hyper-V pads
// with them), and words at their first "=". Of a key given twice the last value
// holds. It never fails: what is wrong is told by Problems.
func ParseBootArgs(text string) BootArgs {
	parsed := &parsedArgs{values: map[string]string{}}
	if len(text) > MaxBootArgs {
		text, parsed.cut = text[:MaxBootArgs], true
	}
	words := strings.FieldsFunc(text, func(r rune) bool {
		return r == 0 || r == ' ' || r >= '\t' && r <= '\r'
	})
	for _, word := range words {
		key, value, found := strings.Cut(word, "=")
		if !found || key == "" {
			parsed.words = append(parsed.words, word)
			continue
		}
		if earlier, known := parsed.values[key]; !known {
			parsed.keys = append(parsed.keys, key)
		} else if earlier != value && !slices.Contains(parsed.twice, key) {
			// A redundant router's line has some keys twice, with the same value.
			parsed.twice = append(parsed.twice, key)
		}
		parsed.values[key] = value
	}
	return BootArgs{func() *parsedArgs { return parsed }}
}

func (a BootArgs) get() parsedArgs {
	if a.parsed == nil {
		return parsedArgs{}
	}
	return *a.parsed()
}

// Get returns the value of exactly this key, and whether it was given.
func (a BootArgs) Get(key string) (string, bool) {
	value, ok := a.get().values[key]
	return value, ok
}

// Keys returns all keys, known ones or not, in the order given.
func (a BootArgs) Keys() []string { return slices.Clone(a.get().keys) }

// Empty says that there is no key at all.
func (a BootArgs) Empty() bool { return len(a.get().keys) == 0 }

// Type returns the role CloudStack gives the VM (type=), or "".
func (a BootArgs) Type() string { return a.text("type") }

// Name returns the VM's host name as given (name=), or "".
func (a BootArgs) Name() string { return a.text("name") }

// text returns a value; the words CloudStack writes for "none" are "".
func (a BootArgs) text(key string) string {
	value, _ := a.Get(key)
	if value == "null" {
		return ""
	}
	return value
}

// Interface is a network interface with an IPv4 address.
type Interface struct {
	Name    string
	Address netip.Prefix // address and network length
	Gateway netip.Addr   // default gateway; the zero Addr when it is on another interface
}

var addressKey = pattern(`^eth(0|[1-9][0-9]{0,2})(ip|mask)$`)

// Interfaces returns the interfaces that have a valid address, by number. At most
// one of them has the gateway: the first whose network holds it, else the first.
func (a BootArgs) Interfaces() []Interface {
	interfaces, _ := a.interfaces()
	return interfaces
}

func (a BootArgs) interfaces() ([]Interface, []Problem) {
	var interfaces []Interface
	var problems []Problem
	wrong := func(key, format string, args ...any) {
		problems = append(problems, a.problem(key, format, args...))
	}
	for _, name := range a.interfaceNames() {
		ip, mask := name+"ip", name+"mask"
		address, err := parseAddress(a.text(ip))
		if err != nil || address.IsValid() && !address.Is4() {
			wrong(ip, "not an IPv4 address")
			continue
		}
		if !address.IsValid() {
			if length, err := parseMask(a.text(mask)); err == nil && length > 0 {
				wrong(mask, "there is a netmask but no %s", ip)
			}
			continue
		}
		if a.text(mask) == "" {
			wrong(mask, "missing; %s needs a netmask such as 255.255.255.0", ip)
			continue
		}
		length, err := parseMask(a.text(mask))
		if err != nil || length == 0 {
			wrong(mask, "not a netmask such as 255.255.255.0")
			continue
		}
		interfaces = append(interfaces, Interface{Name: name, Address: netip.PrefixFrom(address, length)})
	}

	gateway, err := parseAddress(a.text("gateway"))
	switch {
	case err != nil || gateway.IsValid() && !gateway.Is4():
		wrong("gateway", "not an IPv4 address")
	case gateway.IsValid() && len(interfaces) > 0:
		at := slices.IndexFunc(interfaces, func(i Interface) bool { return i.Address.Contains(gateway) })
		if at < 0 {
			at = 0
			outside := a.problem("gateway", "in none of the networks of this VM's interfaces; used on %s", interfaces[0].Name)
			outside.Severity = SeverityWarning
			problems = append(problems, outside)
		}
		interfaces[at].Gateway = gateway
	}
	return interfaces, problems
}

func (a BootArgs) interfaceNames() []string {
	var names []string
	for _, key := range a.Keys() {
		if match := addressKey().FindStringSubmatch(key); match != nil && !slices.Contains(names, "eth"+match[1]) {
			names = append(names, "eth"+match[1])
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return names
}

// Nameservers returns internaldns1, internaldns2, dns1 and dns2 without repeats:
// the order in which CloudStack's scripts write them to resolv.conf.
func (a BootArgs) Nameservers() []netip.Addr {
	var servers []netip.Addr
	for _, key := range nameserverKeys() {
		server, err := parseAddress(a.text(key))
		if err == nil && server.IsValid() && !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	return servers
}

func nameserverKeys() []string { return []string{"internaldns1", "internaldns2", "dns1", "dns2"} }

// MgmtCIDR returns the management networks (since 4.17 a list).
func (a BootArgs) MgmtCIDR() []netip.Prefix {
	networks, _ := parsePrefixes(a.text("mgmtcidr"))
	return networks
}

// LocalGW returns the gateway to the management networks, or the zero Addr.
func (a BootArgs) LocalGW() netip.Addr {
	address, err := parseAddress(a.text("localgw"))
	if err != nil {
		return netip.Addr{}
	}
	return address
}

// parseAddress reads an address; "" and the unspecified address, which stand for
// "none", give the zero Addr.
func parseAddress(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	address, err := netip.ParseAddr(text)
	if err != nil || address.IsUnspecified() {
		return netip.Addr{}, err
	}
	return address, nil
}

// parseMask reads a dotted netmask into a network length; "" is 0.
func parseMask(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	address, err := netip.ParseAddr(text)
	if err != nil || !address.Is4() {
		return 0, fmt.Errorf("not a netmask")
	}
	length, bits := net.IPMask(address.AsSlice()).Size()
	if bits == 0 {
		return 0, fmt.Errorf("not contiguous")
	}
	return length, nil
}

func parsePrefixes(text string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
		network, err := netip.ParsePrefix(part)
		if err != nil {
			return networks, err
		}
		networks = append(networks, network)
	}
	return networks, nil
}

// maxGiB keeps a size in GiB within 63 bits of bytes.
const maxGiB = 1<<33 - 1

// RootDiskBytes returns how much of the root disk is to be used, or 0 for all of
// it: rootdisksize=, in GiB as CloudStack's VM detail of that name, where -1 is
// the template's size. No version of CloudStack sends it; an operator may add it.
func (a BootArgs) RootDiskBytes() int64 {
	gibibytes, err := strconv.ParseInt(a.text(rootDiskSize), 10, 64)
	if err != nil || gibibytes < 1 || gibibytes > maxGiB {
		return 0
	}
	return gibibytes << 30
}

const rootDiskSize = "rootdisksize"

// RFC 1123, 2.1; upper case is folded by whoever needs it.
var hostname = pattern(`^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*$`)

// The kernel takes 64, RFC 1123 asks for 63 to be possible.
const maxHostname = 63

// Problems returns everything that is wrong with the boot args. Wrong host
// settings are errors for a Kubernetes node; for the other roles, whose settings
// CloudStack's own scripts make, they are warnings.
func (a BootArgs) Problems() []Problem {
	var problems []Problem
	add := func(p Problem) { problems = append(problems, p) }
	warn := func(p Problem) {
		p.Severity = SeverityWarning
		add(p)
	}

	if a.Type() == "" {
		add(Problem{SeverityError, fault.RoleMissing, "type",
			"the boot args have no type=, so the role of this VM is not known"})
	}
	switch name := a.Name(); {
	case name == "":
		add(a.problem("name", "missing; the VM's host name was expected"))
	case len(name) > maxHostname:
		add(a.problem("name", "%d characters long; a host name has at most %d", len(name), maxHostname))
	case !hostname().MatchString(name):
		add(a.problem("name", "not a host name: letters, digits and inner hyphens only (RFC 1123)"))
	}

	interfaces, wrong := a.interfaces()
	problems = append(problems, wrong...)
	if len(interfaces) == 0 && len(wrong) == 0 && a.Type() == typeNode {
		add(a.problem("eth0ip", "no interface has an address; a node needs one"))
	}
	kinds := kindsOfKeys()
	for _, key := range a.Keys() {
		kind, typed := kinds[genericKey(key)]
		value := a.text(key)
		if !typed || value == "" || kind.valid(value) {
			continue
		}
		if slices.Contains(nameserverKeys(), key) {
			add(a.problem(key, "not %s", kind.name))
		} else {
			warn(a.problem(key, "not %s", kind.name))
		}
	}
	if size := a.text(rootDiskSize); size != "" && size != "-1" && a.RootDiskBytes() == 0 {
		add(a.problem(rootDiskSize, "not a number of GiB such as 20"))
	}
	for _, key := range a.get().twice {
		warn(a.problem(key, "given more than once; the last one holds"))
	}
	if a.get().cut {
		add(Problem{SeverityError, fault.BootArgsInvalid, "",
			fmt.Sprintf("the boot args are longer than %d bytes", MaxBootArgs)})
	}
	return problems
}

func (a BootArgs) problem(key, format string, args ...any) Problem {
	severity := SeverityWarning
	if a.Type() == typeNode {
		severity = SeverityError
	}
	message := "boot arg " + quote(key)
	if value, given := a.Get(key); given {
		message += "=" + showValue(key, value)
	}
	return Problem{severity, fault.BootArgsInvalid, key, message + ": " + fmt.Sprintf(format, args...)}
}

// Keys whose values are secret: vmpassword, router_password, keystore_password,
// authorized_key, privatekey, userdata, baremetalnotification{security,api}key
// and whatever of the like comes later.
var secretKey = pattern(`(?i)pass|secret|token|key|userdata|cert|cred`)

func showValue(key, value string) string {
	if secretKey().MatchString(key) {
		return secret.Redacted
	}
	return quote(value)
}

// String shows the boot args with the values of secret keys struck out. Words
// without "=" are counted only: they may be the rest of a broken secret.
func (a BootArgs) String() string {
	parsed := a.get()
	var shown []string
	for _, key := range parsed.keys {
		shown = append(shown, strings.Trim(quote(key), `"`)+"="+strings.Trim(showValue(key, parsed.values[key]), `"`))
	}
	if n := len(parsed.words); n > 0 {
		shown = append(shown, "(words without =: "+strconv.Itoa(n)+")")
	}
	return strings.Join(shown, " ")
}

// GoString keeps %#v from showing secrets.
func (a BootArgs) GoString() string { return a.String() }
