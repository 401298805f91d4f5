// SPDX-License-Identifier: Apache-2.0

package roles

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Apply makes the units be as the role wants them and returns what it did.
// Starting and stopping is only queued: during boot a unit may be ordered after
// nodeagent. It blocks until systemd has answered, or ctx ends.
func Apply(ctx context.Context, h *host.Host, role Role) (Plan, error) {
	units, err := readStates(ctx, h.Units, role)
	if err != nil {
		return Plan{}, fault.Wrap(fault.ServiceFailed, err, "cannot set the services of role %s", role.Name)
	}
	plan := Diff(role, units)
	if err := plan.refused(role.Name); err != nil {
		return plan, err
	}
	if err := apply(ctx, h.Units, plan); err != nil {
		return plan, fault.Wrap(fault.ServiceFailed, err, "cannot set the services of role %s", role.Name)
	}
	return plan, nil
}

// OnTemplate returns the role with the names this machine's template has for its
// units (see variants). On an error the role is as it was.
func OnTemplate(ctx context.Context, h *host.Host, role Role) (Role, error) {
	units := map[string]host.Unit{}
	for _, name := range slices.Concat(slices.Concat(variants()...), optional()) {
		if !role.wants(name) {
			continue
		}
		unit, err := h.Units.State(ctx, name)
		if err != nil {
			return role, err
		}
		units[name] = unit
	}
	return role.onTemplate(units), nil
}

// readStates asks systemd for all units of a role, and for those that start one that
// is to be off.
func readStates(ctx context.Context, systemd host.Units, role Role) (map[string]host.Unit, error) {
	units := map[string]host.Unit{}
	names := slices.Concat(role.Enabled(), role.Leave, role.Off)
	for i := 0; i < len(names); i++ {
		name := names[i]
		if _, known := units[name]; known {
			continue
		}
		unit, err := systemd.State(ctx, name)
		if err != nil {
			return nil, err
		}
		units[name] = unit
		if slices.Contains(role.Off, name) {
			names = append(names, unit.TriggeredBy...)
		}
	}
	return units, nil
}

// refused is the failure of a plan whose units cannot all be had, naming every one.
// A mask is not overruled: only a person or an image sets one, to say that a unit
// must never start, and undoing that unasked would take away the one means to say so.
func (p Plan) refused(role string) error {
	if len(p.Missing)+len(p.Masked)+len(p.Bad) == 0 {
		return nil
	}
	code, hint := fault.ServiceFailed, "See `systemctl status` of the units named."
	var reasons []string
	if len(p.Missing) > 0 {
		code, hint = fault.UnitMissing, ""
		reasons = append(reasons, "the template has no "+strings.Join(p.Missing, ", "))
	}
	if len(p.Masked) > 0 {
		if len(p.Missing) == 0 {
			hint = fmt.Sprintf("`systemctl unmask %s` and reboot, if that was not meant; nodeagent overrules no mask.", strings.Join(p.Masked, " "))
		}
		reasons = append(reasons, "masked: "+strings.Join(p.Masked, ", "))
	}
	if len(p.Bad) > 0 {
		reasons = append(reasons, "not readable for systemd: "+strings.Join(p.Bad, ", "))
	}
	failure := fault.New(code, "cannot set the services of role %s: %s", role, strings.Join(reasons, "; "))
	failure.Hint = hint
	return failure
}

// apply changes what starts at boot in one call each: systemd looks at all unit files
// on every such call. What fails keeps nothing else from being done. Masks come last:
// where one cannot be set, the unit has been stopped all the same.
func apply(ctx context.Context, units host.Units, plan Plan) error {
	var failed []error
	files := func(verb string, change func(context.Context, ...string) (bool, error)) {
		if names := plan.units(verb); len(names) > 0 {
			_, err := change(ctx, names...)
			failed = append(failed, err)
		}
	}
	each := func(verb string, queue func(context.Context, string) (host.Job, error)) {
		for _, name := range plan.units(verb) {
			_, err := queue(ctx, name)
			failed = append(failed, err)
		}
	}
	files("enable", units.Enable)
	files("disable", units.Disable)
	each("stop", units.Stop)
	files("mask", units.Mask)
	each("start", units.Start)
	return joined(failed)
}

// joined is all errors in one line.
func joined(errs []error) error {
	var all error
	for _, err := range errs {
		switch {
		case all == nil:
			all = err
		case err != nil:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}
