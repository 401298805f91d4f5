// SPDX-License-Identifier: Apache-2.0

package roles

import (
	"slices"

	"nodeagent/internal/host"
)

// The units of docker, containerd and cloud-init, as Debian 12 (docker.io 20.10,
// containerd 1.6, cloud-init 22.4) and Debian 13 (26.1, 1.7, 25.1) have them, and
// Docker's own packages too. None of these has a timer. A socket comes before the
// service it starts: stopped in this order nothing comes back.

func docker() []string { return []string{"docker.socket", "docker.service"} }

func containerd() []string { return []string{"containerd.service"} }

// hotplug are what runs cloud-init again when a device is added.
func hotplug() []string { return []string{"cloud-init-hotplugd.socket", "cloud-init-hotplugd.service"} }

// stages are cloud-init's stages in the order in which they run, under the names of
// both Debians (see variants and optional).
func stages() []string {
	return []string{"cloud-init-main.service", "cloud-init-local.service", "cloud-init.service", "cloud-init-network.service",
		"cloud-config.service", "cloud-final.service"}
}

// stageTargets pull stages in: the first all that are enabled, and cloud-init's
// generator has it started at boot; the second two of them even if they are not.
func stageTargets() []string { return []string{"cloud-init.target", "cloud-config.target"} }

func isStage(unit string) bool { return slices.Contains(stages(), unit) }

// variants are units that are one and the same under several names, of which a
// template has one: Debian 12's and Debian 13's.
func variants() [][]string {
	return [][]string{{"cloud-init.service", "cloud-init-network.service"}}
}

// optional are units without which a template can do: the process that Debian 13's
// stages are carried out by, where Debian 12's have one each.
func optional() []string { return []string{"cloud-init-main.service"} }

// needs are the units without which a unit does not run; for one of several variants
// any of them will do. A socket, timer or path also needs the service of its name.
func needs() map[string][]string {
	return map[string][]string{
		"docker.service":             {"docker.socket", "containerd.service"},
		"cloud-init.service":         {"cloud-init-local.service"},
		"cloud-init-network.service": {"cloud-init-local.service", "cloud-init-main.service"},
		"cloud-config.service":       {"cloud-config.target", "cloud-init.service"},
		"cloud-final.service":        {"cloud-config.service"},
	}
}

// reserved are units that no override may name: what would take them away, or
// bring them, is the boot itself. The values say whose they are.
func reserved() map[string]string {
	const own, scripts = "nodeagent's own", "CloudStack's own"
	return map[string]string{
		"nodeagent.service": own, "ssh.service": own, "ssh.socket": own, "sshd.service": own,
		"kubelet.service": own, "qemu-guest-agent.service": own,
		"cloud-preinit.service": scripts, "cloud-early-config.service": scripts, "cloud-postinit.service": scripts,
	}
}

// onTemplate returns the role with the names that a template has: of variants one,
// the others off, and no optional unit that is not there.
func (r Role) onTemplate(units map[string]host.Unit) Role {
	r.On, r.OnDemand, r.Off = slices.Clone(r.On), slices.Clone(r.OnDemand), slices.Clone(r.Off)
	for _, names := range variants() {
		wanted := slices.DeleteFunc(names, func(name string) bool { return !r.wants(name) })
		if len(wanted) == 0 {
			continue
		}
		chosen := chooseVariant(wanted, units)
		for _, name := range without(wanted, chosen) {
			r.On, r.OnDemand = without(r.On, name), without(r.OnDemand, name)
			r.Off = append(r.Off, name)
		}
	}
	for _, name := range optional() {
		if r.wants(name) && !units[name].Exists() {
			r.On, r.OnDemand = without(r.On, name), without(r.OnDemand, name)
		}
	}
	return r
}

// chooseVariant prefers what a package brought: an init script that an upgrade from
// Debian 12 left behind is a generated unit, and an alias is but a name.
func chooseVariant(names []string, units map[string]host.Unit) string {
	for _, real := range []bool{true, false} {
		for _, name := range names {
			unit := units[name]
			if unit.Exists() && (!real || unit.FileState != "generated" && realName(name, unit) == name) {
				return name
			}
		}
	}
	return names[0]
}

func (r Role) wants(unit string) bool {
	return slices.Contains(r.On, unit) || slices.Contains(r.OnDemand, unit)
}

func without(list []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(one string) bool { return one == name })
}

// realName is the name that a unit has itself, where systemd knows it under others.
func realName(name string, unit host.Unit) string {
	if unit.ID != "" {
		return unit.ID
	}
	return name
}
