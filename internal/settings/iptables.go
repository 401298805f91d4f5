// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// packetFilter is a program of which Debian has two flavours, and a kernel module
// without which the one named legacy does nothing.
type packetFilter struct{ name, module string }

func packetFilters() []packetFilter {
	return []packetFilter{
		{"iptables", "iptable_nat"}, {"ip6tables", "ip6table_nat"},
		{"arptables", "arptable_filter"}, {"ebtables", "ebtable_filter"},
	}
}

// PacketFilters chooses between the legacy and the nft flavour of iptables and its
// kin, as far as the template has them: legacy, as CloudStack's own node script
// does because Kubernetes before 1.17 knew no other, and nft with a kernel that has
// no legacy tables any more. Later versions of Kubernetes take what the kubelet
// uses. It returns what the node has, and what it changed.
func PacketFilters(ctx context.Context, h *host.Host) (now string, done []string, err error) {
	fail := func(err error) (string, []string, error) {
		return now, done, fault.Wrap(fault.HostSettingsFailed, err, "cannot choose the flavour of iptables")
	}
	modules, err := kernelModules(h)
	if errors.Is(err, fs.ErrNotExist) {
		return "the template's, for the kernel's modules are not known", nil, nil
	}
	if err != nil {
		return fail(err)
	}
	var names []string
	for _, filter := range packetFilters() {
		program := "/usr/sbin/" + filter.name + "-" + flavour(modules, filter.module)
		link := "/etc/alternatives/" + filter.name
		if !h.Exists(link) || !h.Exists(program) {
			continue
		}
		names = append(names, strings.TrimPrefix(program, "/usr/sbin/"))
		if target, err := os.Readlink(h.Path(link)); err == nil && target == program {
			continue
		}
		// It also changes the links of iptables-save and -restore, and takes note of it
		// for dpkg.
		_, err := h.Run.Run(ctx, host.Command{Path: "/usr/bin/update-alternatives", Args: []string{"--set", filter.name, program}})
		if err != nil {
			return fail(err)
		}
		done = append(done, filter.name)
	}
	if len(names) == 0 {
		return "none on this template", nil, nil
	}
	return strings.Join(names, ", "), done, nil
}

// flavour is legacy where the kernel has the module it needs.
func flavour(modules, module string) string {
	if strings.Contains(modules, "/"+module+".ko") {
		return "legacy"
	}
	return "nft"
}

// kernelModules returns the lists of what the running kernel has as modules and
// built in (modules.dep and modules.builtin, see depmod(8)).
func kernelModules(h *host.Host) (string, error) {
	release, err := h.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for _, name := range []string{"modules.dep", "modules.builtin"} {
		list, err := h.ReadFile(fmt.Sprintf("/lib/modules/%s/%s", strings.TrimSpace(string(release)), name))
		if err != nil {
			return "", err
		}
		all.Write(list)
	}
	return all.String(), nil
}
