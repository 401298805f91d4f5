// SPDX-License-Identifier: Apache-2.0

package roles_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/roles"
)

func TestEveryRoleDecidesOnDockerContainerdAndCloudInit(t *testing.T) {
	t.Parallel()
	for _, role := range roles.Table() {
		for _, unit := range []string{"docker.service", "docker.socket", "containerd.service", "cloud-init.service",
			"cloud-init-local.service", "cloud-config.service", "cloud-final.service", "cloud-init-hotplugd.socket"} {
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
	for name, want := range map[string]fault.Code{"": fault.RoleMissing, "Router": fault.RoleUnknown, "rout": fault.RoleUnknown, "cksnode2": fault.RoleUnknown} {
		_, err := roles.Find(name)
		if err == nil || fault.As(err).Code != want {
			t.Errorf("Find(%q): %v, want %s", name, err, want)
		}
	}
}

// S4, S8: sockets go with their service; absent units are reported, not an error.
func TestApplyConvergesAndTheSecondRunDoesNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	m := hosttest.New(t)
	m.AddUnit(host.Unit{Name: "docker.service", FileState: "enabled", ActiveState: "active"})
	m.AddUnit(host.Unit{Name: "docker.socket", FileState: "enabled", ActiveState: "active"})
	m.AddUnit(host.Unit{Name: "containerd.service", FileState: "enabled", ActiveState: "activating"})
	m.AddUnit(host.Unit{Name: "cloud-init.service", FileState: "static"})
	// Enabled and not running yet: its start is queued behind nodeagent.
	m.AddUnit(host.Unit{Name: "cloud-final.service", FileState: "enabled"})
	router, err := roles.Find("router")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := roles.Apply(ctx, m.Host(), router)
	if err != nil {
		t.Fatal(err)
	}
	want := "disable docker.socket docker containerd cloud-final, stop docker.socket docker containerd cloud-final;"
	if got := plan.String(); !strings.HasPrefix(got, want) || !strings.Contains(got, "cloud-config.service") {
		t.Errorf("plan = %q, want %q and the absent cloud-config.service", got, want)
	}
	m.Actions()
	if plan, err = roles.Apply(ctx, m.Host(), router); err != nil || len(plan.Changes) != 0 || len(m.Actions()) != 0 {
		t.Errorf("second run: %v, %v", plan, err)
	}
}

func TestApplyOnAKubernetesNode(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	m := hosttest.New(t)
	role, err := roles.Find("cksnode")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := roles.Apply(ctx, m.Host(), role); err == nil || fault.As(err).Code != fault.UnitMissing ||
		!strings.Contains(err.Error(), "containerd.service, cloud-init-local.service") {
		t.Errorf("without containerd: %v, want all missing units named", err)
	}
	for _, unit := range role.Enabled() {
		m.AddUnit(host.Unit{Name: unit})
	}
	plan, err := roles.Apply(ctx, m.Host(), role)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range plan.Changes {
		if change.Verb == "start" && change.Unit != "containerd.service" {
			t.Errorf("%s was started; cloud-init must wait for its seed", change.Unit)
		}
	}
	if !strings.Contains(m.String(), "unit containerd.service: enabled active") ||
		!strings.Contains(m.String(), "unit cloud-init.service: enabled inactive") {
		t.Errorf("machine:\n%s", m)
	}
}
