// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Files that make modules and sysctls come back on later boots, without
// nodeagent (contract section 11, item 20).
const (
	modulesFile = "/etc/modules-load.d/nodeagent.conf"
	// systemd reads the files of all folders in the order of their names, and
	// Debian 12 has /etc/sysctl.conf in there as 99-sysctl.conf; ours comes after it
	// and before those of network plugins (99-zzz-override_cilium.conf).
	sysctlFile = "/etc/sysctl.d/99-zz-nodeagent.conf"
	// `sysctl --system` reads this one last of all.
	templateSysctls = "/etc/sysctl.conf"
)

// modules are what kubelet, kube-proxy and containerd use.
func modules() []string {
	return []string{"overlay", "br_netfilter", "ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_sh", "nf_conntrack"}
}

// Kernel loads the modules and sets the sysctls of a Kubernetes node with these
// NICs, now and for later boots. It returns what it did.
func Kernel(ctx context.Context, h *host.Host, nics []string) (done []string, err error) {
	fail := func(err error) ([]string, error) {
		return done, fault.Wrap(fault.HostSettingsFailed, err, "cannot set up the kernel for Kubernetes")
	}
	sysctls := nodeSysctls(nics)
	for _, file := range []struct{ name, text string }{
		{modulesFile, "# Written by nodeagent for a Kubernetes node.\n" + strings.Join(modules(), "\n") + "\n"},
		{sysctlFile, sysctlConf(sysctls)},
	} {
		wrote, err := h.WriteFile(file.name, []byte(file.text), 0o644)
		if err != nil {
			return fail(err)
		}
		if wrote {
			done = append(done, "wrote "+file.name)
		}
	}
	template, err := h.ReadFile(templateSysctls)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	if text, count := correctSysctls(string(template), sysctls); count > 0 {
		if _, err := h.WriteFile(templateSysctls, []byte(text), 0o644); err != nil {
			return fail(err)
		}
		done = append(done, fmt.Sprintf("%d line(s) of %s corrected", count, templateSysctls))
	}
	loaded, err := loadModules(ctx, h)
	if err != nil {
		return fail(err)
	}
	if loaded > 0 {
		done = append(done, fmt.Sprintf("%d modules loaded", loaded))
	}
	set, err := setSysctls(h, sysctls)
	if err != nil {
		return fail(err)
	}
	if set > 0 {
		done = append(done, fmt.Sprintf("%d sysctls set", set))
	}
	return done, nil
}

// loadModules loads the modules that are not there yet and counts them.
func loadModules(ctx context.Context, h *host.Host) (int, error) {
	var missing []string
	for _, name := range modules() {
		if !h.Exists("/sys/module/" + name) {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return 0, nil
	}
	_, err := h.Run.Run(ctx, host.Command{Path: "/sbin/modprobe", Args: append([]string{"-a"}, missing...)})
	return len(missing), err
}

// setSysctls gives the kernel the values it does not have yet and counts them. Those
// of a NIC that is still to come it takes from the defaults, which come first.
func setSysctls(h *host.Host, sysctls []sysctl) (set int, err error) {
	for _, s := range sysctls {
		old, err := h.ReadFile(s.path())
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.name, "net.ipv4.conf.") {
			continue
		}
		if err == nil && strings.TrimSpace(string(old)) == s.value {
			continue
		}
		if err := os.WriteFile(h.Path(s.path()), []byte(s.value), 0o644); err != nil {
			return set, fmt.Errorf("sysctl %s: %w", s.name, host.Explain(err, unix.CAP_NET_ADMIN)) // all are the network's
		}
		set++
	}
	return set, nil
}
