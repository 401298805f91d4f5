// SPDX-License-Identifier: Apache-2.0

// Package roles is the table of SystemVM roles: for each type= of the boot args
// which units run, how large the root disk must be, and who sets the node up.
package roles

import (
	"context"
	"slices"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Owner is who sets a node up once its disk and services are right.
type Owner string

// The owners.
const (
	NodeAgent  Owner = "nodeagent"
	CloudStack Owner = "cloudstack" // CloudStack's own scripts of the template
)

// Role is one row of the table.
type Role struct {
	Name  string
	Owner Owner
	// On are units enabled and started; OnDemand ones are enabled and started by
	// whoever needs them, later in the boot and in this order; Off ones are stopped
	// and disabled.
	On, OnDemand, Off []string
	MinimumDisk       int64 // bytes the root disk must have; 0 is no minimum
	SSHPort           int   // where CloudStack logs in
}

// Enabled returns all units the role has enabled.
func (r Role) Enabled() []string { return slices.Concat(r.On, r.OnDemand) }

// UsesCloudInit says whether cloud-init may run on the role.
func (r Role) UsesCloudInit() bool { return slices.Contains(r.OnDemand, "cloud-init.service") }

const gib = 1 << 30

// Table returns all roles.
func Table() []Role {
	containerd := []string{"containerd.service"}
	docker := []string{"docker.socket", "docker.service"}
	cloudInit := []string{"cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service"}
	hotplug := []string{"cloud-init-hotplugd.socket"}
	nothing := slices.Concat(docker, containerd, hotplug, cloudInit)

	systemVM := func(name string) Role {
		return Role{Name: name, Owner: CloudStack, Off: nothing, SSHPort: 3922}
	}
	return []Role{
		// CKS rejects a noderootdisksize below 8 (GiB).
		{Name: "cksnode", Owner: NodeAgent, On: containerd, OnDemand: cloudInit, Off: slices.Concat(docker, hotplug),
			MinimumDisk: 8 * gib, SSHPort: 22},
		{Name: "sharedfsvm", Owner: CloudStack, OnDemand: cloudInit, Off: slices.Concat(docker, containerd, hotplug), SSHPort: 22},
		systemVM("router"),
		systemVM("vpcrouter"),
		systemVM("dhcpsrvr"),
		systemVM("elbvm"),
		systemVM("ilbvm"),
		systemVM("consoleproxy"),
		systemVM("secstorage"),
	}
}

// Find returns the role of a type= value. A missing or unknown one is an error:
// a role is never guessed (pain-point C4).
func Find(name string) (Role, error) {
	var known []string
	for _, role := range Table() {
		if role.Name == name {
			return role, nil
		}
		known = append(known, role.Name)
	}
	if name == "" {
		return Role{}, fault.New(fault.RoleMissing, "cannot find this VM's role: the boot args have no type=, expected one of %s", strings.Join(known, ", "))
	}
	return Role{}, fault.New(fault.RoleUnknown, "cannot find this VM's role: boot args say type=%q, expected one of %s", name, strings.Join(known, ", "))
}

// Change is one thing to do to one unit.
type Change struct {
	Unit string
	Verb string // enable, start, disable, stop
}

// Plan is what makes the units be as a role wants them.
type Plan struct {
	Changes []Change
	// Missing are units the role wants on that the template does not have, Absent
	// ones it wants off.
	Missing, Absent []string
}

// Diff compares a role with the units as they are. Units that are static,
// generated or masked have no enabling to change.
func Diff(role Role, units map[string]host.Unit) Plan {
	var plan Plan
	for _, name := range role.Enabled() {
		unit := units[name]
		switch {
		case !unit.Exists():
			plan.Missing = append(plan.Missing, name)
			continue
		// What CloudStack's scripts start they also enable or not, as they see fit.
		case unit.FileState == "disabled" && (role.Owner == NodeAgent || slices.Contains(role.On, name)):
			plan.Changes = append(plan.Changes, Change{name, "enable"})
		}
		if slices.Contains(role.On, name) && !unit.Running() {
			plan.Changes = append(plan.Changes, Change{name, "start"})
		}
	}
	for _, name := range role.Off {
		unit := units[name]
		if !unit.Exists() {
			plan.Absent = append(plan.Absent, name)
			continue
		}
		if unit.Enabled() {
			plan.Changes = append(plan.Changes, Change{name, "disable"})
		}
		// The start of an enabled unit may be queued already, as part of the boot:
		// stopping it takes that job out of the queue.
		if unit.Running() || unit.Enabled() {
			plan.Changes = append(plan.Changes, Change{name, "stop"})
		}
	}
	return plan
}

// Apply makes the units be as the role wants them and returns what it did.
// Starting and stopping is only queued: during boot a unit may be ordered after
// nodeagent.
func Apply(ctx context.Context, h *host.Host, role Role) (Plan, error) {
	units := map[string]host.Unit{}
	for _, name := range slices.Concat(role.Enabled(), role.Off) {
		unit, err := h.Units.State(ctx, name)
		if err != nil {
			return Plan{}, fault.Wrap(fault.ServiceFailed, err, "cannot set the services of role %s", role.Name)
		}
		units[name] = unit
	}
	plan := Diff(role, units)
	if len(plan.Missing) > 0 {
		return plan, fault.New(fault.UnitMissing, "cannot set the services of role %s: the template has no %s",
			role.Name, strings.Join(plan.Missing, ", "))
	}
	if err := apply(ctx, h.Units, plan); err != nil {
		return plan, fault.Wrap(fault.ServiceFailed, err, "cannot set the services of role %s", role.Name)
	}
	return plan, nil
}

// apply changes what starts at boot in one call each, before it starts or stops
// anything: systemd looks at all unit files on every such call.
func apply(ctx context.Context, units host.Units, plan Plan) error {
	if names := plan.units("enable"); len(names) > 0 {
		if _, err := units.Enable(ctx, names...); err != nil {
			return err
		}
	}
	if names := plan.units("disable"); len(names) > 0 {
		if _, err := units.Disable(ctx, names...); err != nil {
			return err
		}
	}
	for _, name := range plan.units("stop") {
		if _, err := units.Stop(ctx, name); err != nil {
			return err
		}
	}
	for _, name := range plan.units("start") {
		if _, err := units.Start(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// units returns the units of all changes with a verb, in order.
func (p Plan) units(verb string) (names []string) {
	for _, change := range p.Changes {
		if change.Verb == verb {
			names = append(names, change.Unit)
		}
	}
	return names
}

// String says what the plan does, in one line.
func (p Plan) String() string {
	var parts []string
	for _, verb := range []string{"enable", "start", "disable", "stop"} {
		if names := p.units(verb); len(names) > 0 {
			parts = append(parts, verb+" "+strings.ReplaceAll(strings.Join(names, " "), ".service", ""))
		}
	}
	text := strings.Join(parts, ", ")
	if text == "" {
		text = "all as they should be"
	}
	if len(p.Absent) > 0 {
		text += "; not on this template: " + strings.Join(p.Absent, ", ")
	}
	return text
}
