// SPDX-License-Identifier: Apache-2.0

package netsetup

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Hostname sets the host name and makes /etc/hosts resolve it to the node's
// address and localhost to the loopback ones. It reports whether it changed a
// file.
func Hostname(h *host.Host, name string, address netip.Addr) (changed bool, err error) {
	fail := func(err error) (bool, error) {
		return changed, fault.Wrap(fault.HostSettingsFailed, err, "cannot set the host name %q", name)
	}
	if err := h.Kernel.SetHostname(name); err != nil {
		return fail(err)
	}
	old, err := h.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	for file, text := range map[string]string{"/etc/hostname": name + "\n", "/etc/hosts": hosts(string(old), name, address)} {
		wrote, err := h.WriteFile(file, []byte(text), 0o644)
		if err != nil {
			return fail(err)
		}
		changed = changed || wrote
	}
	return changed, nil
}

// hosts edits a hosts(5) file: the name, in whatever case, is taken from every
// other address and given to the node's; localhost is kept or added; all else stays
// as it is, also lines that are none (pain-point C10, contract section 11, item 10).
func hosts(old, name string, address netip.Addr) string {
	var lines []string
	var haveName, haveLocalhost bool
	for line := range strings.Lines(old) {
		line = strings.TrimRight(line, "\r\n")
		text, comment, hasComment := strings.Cut(line, "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			lines = append(lines, line)
			continue
		}
		ip, err := netip.ParseAddr(fields[0])
		if err != nil {
			lines = append(lines, line)
			continue
		}
		isName := func(n string) bool { return strings.EqualFold(n, name) }
		isNode := ip == address
		names := slices.DeleteFunc(slices.Clone(fields[1:]), func(n string) bool { return isName(n) && (!isNode || haveName) })
		haveName = haveName || isNode && slices.ContainsFunc(names, isName)
		haveLocalhost = haveLocalhost || ip == netip.AddrFrom4([4]byte{127, 0, 0, 1}) && slices.Contains(names, "localhost")
		switch {
		case len(names) == len(fields)-1:
			lines = append(lines, line)
		case len(names) > 0:
			line = fields[0] + "\t" + strings.Join(names, " ")
			if hasComment {
				line += " #" + comment
			}
			lines = append(lines, line)
		}
	}
	if !haveLocalhost {
		lines = append([]string{"127.0.0.1\tlocalhost"}, lines...)
	}
	if !haveName && name != "" && address.IsValid() {
		lines = append(lines, fmt.Sprintf("%s\t%s", address, name))
	}
	return strings.Join(lines, "\n") + "\n"
}
