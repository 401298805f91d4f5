// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/roles"
	"nodeagent/internal/userdata"
)

// bootedAs is a boot of a machine with a role's boot args and an override file.
func bootedAs(t *testing.T, role, override string) (*node, *hosttest.Machine, *agent.State) {
	t.Helper()
	m := hosttest.New(t)
	if override != "" {
		m.Write(roles.OverridesDir+"/50-site.yaml", override)
	}
	state := &agent.State{}
	args := userdata.ParseBootArgs("type=" + role + " name=vm-1 eth0ip=10.1.1.57 eth0mask=255.255.255.0 gateway=10.1.1.1")
	return &node{host: m.Host(), update: func(change func(*agent.State)) { change(state) }, args: args}, m, state
}

// What the files of roles.d say holds in the boot, not only in the plan.
func TestBootWithOverrides(t *testing.T) {
	t.Parallel()
	n, m, _ := bootedAs(t, "router", "router:\n  on: [node-exporter.service]\n  onDemand: [containerd.service]\n  minimumDisk: 5\n")
	for _, unit := range []string{"node-exporter.service", "containerd.service", "docker.service"} {
		m.AddUnit(host.Unit{Name: unit, FileState: "disabled", ActiveState: "active"})
	}
	result, err := n.findRole(t.Context(), t.Logf)
	if err != nil || result.Note != "router, with 3 overrides of /etc/nodeagent/roles.d" {
		t.Fatalf("%+v, %v", result, err)
	}
	n.disk.Disk, n.diskBytes = "/dev/vda", 5<<30-1
	want := "the root disk /dev/vda has 5.0 GiB (5368709119 bytes); role router needs 5.0 GiB (5368709120 bytes) at least"
	if _, err := n.setServices(t.Context(), t.Logf); err == nil || err.Error() != want || fault.As(err).Code != fault.DiskTooSmall {
		t.Errorf("%v, want %q", err, want)
	}
	// The services were set all the same.
	wantUnits := "unit containerd.service: disabled active\nunit docker.service: disabled inactive\nunit node-exporter.service: enabled active\n"
	if m.String() != wantUnits {
		t.Errorf("machine\n%swant\n%s", m, wantUnits)
	}
	n.diskBytes++
	if result, err := n.setServices(t.Context(), t.Logf); err != nil || !strings.HasPrefix(result.Note, "all as they should be") {
		t.Errorf("%+v, %v", result, err)
	}
}

// A wrong override fails the step, on whichever role, but whose node it is is known:
// the gates stand as ever, and on a router nobody but CloudStack's scripts starts ssh.
func TestBootWithWrongOverrides(t *testing.T) {
	t.Parallel()
	for role, ours := range map[string]bool{"router": false, "cksnode": true, "sharedfsvm": false} {
		n, _, state := bootedAs(t, role, "router:\n  off: [docker]\n  minimumDisk: -1\n")
		_, err := n.findRole(t.Context(), t.Logf)
		if err == nil || fault.As(err).Code != fault.ConfigInvalid || len(fault.As(err).Log) != 1 ||
			!strings.HasPrefix(err.Error(), `/etc/nodeagent/roles.d/50-site.yaml line 2: router.off has "docker"`) {
			t.Errorf("%s: %v, want all that is wrong with the file", role, err)
		}
		if n.host.Exists(ownsNodeFile) != ours || n.ownsSSH() != ours || state.Role != role || n.role.MinimumDisk < 0 {
			t.Errorf("%s: owns-node %v, owns ssh %v, role %q, disk %d; want what the table says", role,
				n.host.Exists(ownsNodeFile), n.ownsSSH(), state.Role, n.role.MinimumDisk)
		}
		if n.host.Exists(cloudInitFile) != (role == "sharedfsvm") {
			t.Errorf("%s: cloud-init's gate is open: %v", role, n.host.Exists(cloudInitFile))
		}
	}
}

// cloud-init's stages are those the template has, under the names it has for them.
func TestCloudInitOfTheTemplate(t *testing.T) {
	t.Parallel()
	for name, stages := range map[string][]string{
		"Debian 12": {"cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service"},
		"Debian 13": {"cloud-init-main.service", "cloud-init-local.service", "cloud-init-network.service", "cloud-config.service", "cloud-final.service"},
	} {
		n, m, _ := bootedAs(t, "cksnode", "")
		for _, unit := range append([]string{"containerd.service"}, stages...) {
			m.AddUnit(host.Unit{Name: unit})
		}
		if _, err := n.findRole(t.Context(), t.Logf); err != nil || !slices.Equal(n.role.OnDemand, stages) {
			t.Errorf("%s: on demand %q, %v; want %q", name, n.role.OnDemand, err, stages)
		}
		if _, err := n.setServices(t.Context(), t.Logf); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		m.Actions()
		jobs, err := n.startCloudInit(t.Context())
		if err != nil || len(jobs) != len(stages) || len(m.Actions()) != len(stages) {
			t.Errorf("%s: %d stages started, %v; want %d", name, len(jobs), err, len(stages))
		}
	}
}

// storagefsvm is the name that sharedfsvm had before its first release.
func TestStorageFSIsSharedFS(t *testing.T) {
	t.Parallel()
	n, _, state := bootedAs(t, "storagefsvm", "")
	if _, err := n.findRole(t.Context(), t.Logf); err != nil || state.Role != "sharedfsvm" || !n.host.Exists(cloudInitFile) {
		t.Errorf("role %q, %v", state.Role, err)
	}
}
