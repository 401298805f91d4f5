// SPDX-License-Identifier: Apache-2.0

package roles_test

import (
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/roles"
)

func TestEveryRoleDecidesOnDockerContainerdAndCloudInit(t *testing.T) {
	t.Parallel()
	for _, role := range roles.Table() {
		for _, unit := range []string{"docker.service", "docker.socket", "containerd.service", "cloud-init.service",
			"cloud-init-local.service", "cloud-config.service", "cloud-final.service", "cloud-init-hotplugd.socket",
			"cloud-init-main.service", "cloud-init-network.service", "cloud-init-hotplugd.service"} {
			on, off := slices.Contains(role.Enabled(), unit), slices.Contains(role.Off, unit)
			if on == off {
				t.Errorf("role %s: %s on %v, off %v; want exactly one", role.Name, unit, on, off)
			}
		}
	}
}

// C4: an unknown or missing type is never a silent default.
func TestFindNeverGuesses(t *testing.T) {
	t.Parallel()
	if role, err := roles.Find("cksnode"); err != nil || role.Owner != roles.NodeAgent || role.MinimumDisk != 8<<30 || role.SSHPort != 22 {
		t.Errorf("cksnode = %+v, %v", role, err)
	}
	if role, err := roles.Find("storagefsvm"); err != nil || role.Name != "sharedfsvm" {
		t.Errorf("storagefsvm = %+v, %v; want sharedfsvm, which it was called at first", role, err)
	}
	for name, want := range map[string]fault.Code{"": fault.RoleMissing, "Router": fault.RoleUnknown, "rout": fault.RoleUnknown, "cksnode2": fault.RoleUnknown} {
		_, err := roles.Find(name)
		if err == nil || fault.As(err).Code != want {
			t.Errorf("Find(%q): %v, want %s", name, err, want)
		}
	}
}

// No role touches what CloudStack's scripts switch, and the names are those of the
// contract, section 2.
func TestTheirsAreLeftAlone(t *testing.T) {
	t.Parallel()
	for _, role := range roles.Table() {
		for _, unit := range slices.Concat(role.Enabled(), role.Off) {
			if slices.Contains(role.Theirs, strings.TrimSuffix(unit, ".service")) {
				t.Errorf("role %s touches %s", role.Name, unit)
			}
		}
		if hosted := role.SSHPort == 22; hosted != (len(role.Theirs) == 0) {
			t.Errorf("role %s on port %d: %q are CloudStack's; want some exactly on port 3922", role.Name, role.SSHPort, role.Theirs)
		}
	}
}
