// SPDX-License-Identifier: Apache-2.0

package roles_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/roles"
)

func find(t *testing.T, name string) roles.Role {
	t.Helper()
	role, err := roles.Find(name)
	if err != nil {
		t.Fatal(err)
	}
	return role
}

// template is a machine in the middle of its boot, as the packages of a Debian leave
// it: all is enabled, what is early runs, what is late is queued, and cloud-init's
// generator has its target started.
func template(t *testing.T, debian int) *hosttest.Machine {
	t.Helper()
	m := hosttest.New(t)
	add := func(state string, units ...string) {
		for _, name := range units {
			unit := host.Unit{Name: name, FileState: state, JobID: 17}
			if strings.HasSuffix(name, ".socket") {
				unit.ActiveState, unit.JobID = "active", 0
			}
			m.AddUnit(unit)
		}
	}
	add("enabled", "docker.socket", "docker.service", "containerd.service", "cloud-init-local.service", "cloud-config.service",
		"cloud-final.service", "cloud-init-hotplugd.socket")
	if debian == 12 {
		add("enabled", "cloud-init.service")
	} else {
		add("enabled", "cloud-init-main.service", "cloud-init-network.service")
	}
	add("enabled-runtime", "cloud-init.target")
	add("static", "cloud-config.target")
	m.AddUnit(host.Unit{Name: "cloud-init-hotplugd.service", FileState: "static"})
	return m
}

// reboot starts what starts at a boot: what is enabled, and the target, unless masked.
func reboot(t *testing.T, m *hosttest.Machine, units []string) {
	t.Helper()
	for _, name := range units {
		unit, err := m.Host().Units.State(context.Background(), name)
		if err != nil {
			t.Fatal(err)
		}
		unit.ActiveState, unit.JobID = "inactive", 0
		if unit.Enabled() {
			unit.JobID = 18
		}
		if unit.Exists() {
			m.AddUnit(unit)
		}
	}
}

// S4, S8: of every role and both Debians, what the role wants off is neither running
// nor queued nor started at the next boot; the second run and the second boot find
// nothing to do.
func TestApplyConverges(t *testing.T) {
	t.Parallel()
	for _, debian := range []int{12, 13} {
		for _, role := range roles.Table() {
			t.Run(fmt.Sprintf("%s on Debian %d", role.Name, debian), func(t *testing.T) {
				t.Parallel()
				m := template(t, debian)
				if role.UsesCloudInit() { // nothing has it started there but its owner
					m.AddUnit(host.Unit{Name: "cloud-init.target", FileState: "static"})
				}
				for _, run := range []string{"first boot", "same boot", "second boot"} {
					m.Actions()
					plan, err := roles.Apply(t.Context(), m.Host(), role)
					if err != nil {
						t.Fatal(err)
					}
					if actions := m.Actions(); run != "first boot" && (len(plan.Changes) > 0 || len(actions) > 0) {
						t.Errorf("%s: %s; %q, want nothing", run, plan, actions)
					}
					if strings.Contains(plan.String(), "not on this template") {
						t.Errorf("%s: %s: the template has all that there is", run, plan)
					}
					for _, name := range role.Off {
						unit, _ := m.Host().Units.State(t.Context(), name)
						if unit.Running() || unit.JobID != 0 || unit.Enabled() {
							t.Errorf("%s: %s is %s, %s, job %d", run, name, unit.FileState, unit.ActiveState, unit.JobID)
						}
					}
					for _, name := range role.On {
						if unit, _ := m.Host().Units.State(t.Context(), name); !unit.Running() || !unit.Enabled() {
							t.Errorf("%s: %s is %s, %s; want it on", run, name, unit.FileState, unit.ActiveState)
						}
					}
					if run == "same boot" {
						reboot(t, m, slices.Concat(role.OnDemand, role.Off))
					}
				}
			})
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
	router := find(t, "router")
	plan, err := roles.Apply(ctx, m.Host(), router)
	if err != nil {
		t.Fatal(err)
	}
	want := "disable docker.socket docker containerd cloud-final, stop docker.socket docker containerd cloud-final;"
	if got := plan.String(); !strings.HasPrefix(got, want) || !strings.Contains(got, "cloud-config.service") || strings.Contains(got, "network") {
		t.Errorf("plan = %q, want %q and the absent cloud-config.service, but not Debian 13's name of cloud-init.service", got, want)
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
	role := find(t, "cksnode")
	if _, err := roles.Apply(ctx, m.Host(), role); err == nil || fault.As(err).Code != fault.UnitMissing ||
		!strings.Contains(err.Error(), "containerd.service, cloud-init-local.service, cloud-init.service (or cloud-init-network.service), cloud-config") {
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

// Debian 12 and 13 have cloud-init's stages under other names; an init script that an
// upgrade left behind is none of them, and must not run beside them.
func TestOnTemplate(t *testing.T) {
	t.Parallel()
	debian12 := []string{"cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service"}
	debian13 := []string{"cloud-init-main.service", "cloud-init-local.service", "cloud-init-network.service", "cloud-config.service", "cloud-final.service"}
	for _, test := range []struct {
		name   string
		debian int
		extra  host.Unit
		want   []string
		off    string
	}{
		{"Debian 12", 12, host.Unit{Name: "other.service"}, debian12, "cloud-init-network.service"},
		{"Debian 13", 13, host.Unit{Name: "other.service"}, debian13, "cloud-init.service"},
		{"upgraded", 13, host.Unit{Name: "cloud-init.service", FileState: "generated", JobID: 3}, debian13, "cloud-init.service"},
		{"with the old name", 13, host.Unit{Name: "cloud-init.service", ID: "cloud-init-network.service", FileState: "enabled"}, debian13, "cloud-init.service"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := template(t, test.debian)
			m.AddUnit(test.extra)
			role, err := roles.OnTemplate(t.Context(), m.Host(), find(t, "cksnode"))
			if err != nil || !slices.Equal(role.OnDemand, test.want) || !slices.Contains(role.Off, test.off) || !role.UsesCloudInit() {
				t.Errorf("on demand %q, off %q, %v; want %q, and %s off", role.OnDemand, role.Off, err, test.want, test.off)
			}
			plan, err := roles.Apply(t.Context(), m.Host(), find(t, "cksnode"))
			if err != nil {
				t.Fatal(err)
			}
			masked := slices.Contains(plan.Changes, roles.Change{Unit: "cloud-init.service", Verb: "mask"})
			stopped := slices.ContainsFunc(plan.Changes, func(c roles.Change) bool {
				return c.Verb != "enable" && slices.Contains(test.want, c.Unit)
			})
			if masked != (test.extra.FileState == "generated") || stopped {
				t.Errorf("%s", plan)
			}
		})
	}
	m := hosttest.New(t)
	if role, err := roles.OnTemplate(t.Context(), m.Host(), find(t, "router")); err != nil || role.UsesCloudInit() || !slices.Equal(role.Off, find(t, "router").Off) {
		t.Errorf("a role without cloud-init: %+v, %v", role, err)
	}
}

// S8: whatever starts a service again goes with it, also what the table does not know;
// but not what the role, or an override, wants to run.
func TestTriggersGoWithTheirService(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.AddUnit(host.Unit{Name: "docker.service", FileState: "static", TriggeredBy: []string{"docker.socket", "docker-nightly.timer", "docker-kept.path"}})
	m.AddUnit(host.Unit{Name: "docker.socket", FileState: "enabled", ActiveState: "active"})
	m.AddUnit(host.Unit{Name: "docker-nightly.timer", FileState: "enabled", ActiveState: "active"})
	m.AddUnit(host.Unit{Name: "docker-kept.path", FileState: "enabled", ActiveState: "active"})
	role := find(t, "router")
	role.Leave = []string{"docker-kept.path"}
	plan, err := roles.Apply(t.Context(), m.Host(), role)
	if want := "disable docker.socket docker-nightly.timer, stop docker.socket docker-nightly.timer;"; err != nil || !strings.HasPrefix(plan.String(), want) {
		t.Errorf("%s, %v; want %q", plan, err, want)
	}
}

// What cannot be started is one failure that names all of it and says what to do.
func TestApplyRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name       string
		change     func(m *hosttest.Machine)
		code       fault.Code
		want, hint string
	}{
		{"masked", func(m *hosttest.Machine) {
			m.AddUnit(host.Unit{Name: "containerd.service", FileState: "masked", LoadState: "masked"})
			m.AddUnit(host.Unit{Name: "cloud-final.service", FileState: "masked-runtime"})
		}, fault.ServiceFailed, "cannot set the services of role cksnode: masked: containerd.service, cloud-final.service",
			"`systemctl unmask containerd.service cloud-final.service` and reboot"},
		{"bad", func(m *hosttest.Machine) {
			m.AddUnit(host.Unit{Name: "containerd.service", FileState: "enabled", LoadState: "bad-setting"})
		}, fault.ServiceFailed, "not readable for systemd: containerd.service", "systemctl status"},
		{"all", func(m *hosttest.Machine) {
			m.AddUnit(host.Unit{Name: "containerd.service", LoadState: "not-found"})
			m.AddUnit(host.Unit{Name: "cloud-config.service", FileState: "masked"})
			m.AddUnit(host.Unit{Name: "cloud-final.service", FileState: "bad"})
		}, fault.UnitMissing, "the template has no containerd.service; masked: cloud-config.service; not readable for systemd: cloud-final.service", "Install the package"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := template(t, 12)
			test.change(m)
			_, err := roles.Apply(t.Context(), m.Host(), find(t, "cksnode"))
			if err == nil || fault.As(err).Code != test.code || !strings.Contains(err.Error(), test.want) || !strings.Contains(fault.As(err).Hint, test.hint) {
				t.Errorf("%v (%s), hint %q; want %q (%s), hint %q", err, fault.As(err).Code, fault.As(err).Hint, test.want, test.code, test.hint)
			}
			if actions := m.Actions(); len(actions) > 0 {
				t.Errorf("done all the same: %q", actions)
			}
		})
	}
}

// brokenUnits is a systemd that refuses to mask and to stop one unit.
type brokenUnits struct{ host.Units }

func (u brokenUnits) Mask(context.Context, ...string) (bool, error) {
	return false, errors.New("cannot mask cloud-init.target: file exists")
}

func (u brokenUnits) Stop(ctx context.Context, name string) (host.Job, error) {
	if name == "docker.socket" {
		return host.Job{}, errors.New("cannot stop docker.socket: no")
	}
	return u.Units.Stop(ctx, name)
}

// One unit that cannot be changed does not keep the others running.
func TestApplyDoesWhatItCan(t *testing.T) {
	t.Parallel()
	m := template(t, 12)
	h := m.Host()
	h.Units = brokenUnits{h.Units}
	_, err := roles.Apply(t.Context(), h, find(t, "router"))
	if err == nil || fault.As(err).Code != fault.ServiceFailed ||
		!strings.Contains(err.Error(), "role router: cannot stop docker.socket: no; cannot mask cloud-init.target: file exists") {
		t.Errorf("%v; want both failures, in one line", err)
	}
	for _, name := range []string{"docker.service", "containerd.service", "cloud-init.target", "cloud-final.service"} {
		if unit, _ := h.Units.State(t.Context(), name); unit.Running() || unit.JobID != 0 {
			t.Errorf("%s is %s, job %d", name, unit.ActiveState, unit.JobID)
		}
	}
}
