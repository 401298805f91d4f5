// SPDX-License-Identifier: Apache-2.0

package roles

import (
	"slices"
	"strings"

	"nodeagent/internal/host"
)

// Change is one thing to do to one unit.
type Change struct {
	Unit string
	Verb string // enable, start, disable, mask, stop
}

// Plan is what makes the units be as a role wants them.
type Plan struct {
	Changes []Change
	// Missing are units the role wants on that the template does not have, Masked
	// and Bad those that cannot be started for another reason.
	Missing, Masked, Bad []string
	// Absent are units the role wants off that the template does not have.
	Absent []string
}

// Diff compares a role with the units as they are; units holds the state of every
// unit the role names, and of those that trigger them. What is done about a unit is
// stateRules' to say.
func Diff(role Role, units map[string]host.Unit) Plan {
	role = role.onTemplate(units)
	var plan Plan
	wanted := map[string]bool{} // by their real names: an alias must not turn them off
	for _, name := range slices.Concat(role.Enabled(), role.Leave) {
		wanted[realName(name, units[name])] = true
	}
	for _, name := range role.Enabled() {
		unit := units[name]
		switch rule := ruleOf(unit); {
		case stateOf(unit) == stateAbsent:
			plan.Missing = append(plan.Missing, named(name))
			continue
		case rule.on == refuse && stateOf(unit) == "bad":
			plan.Bad = append(plan.Bad, name)
			continue
		case rule.on == refuse:
			plan.Masked = append(plan.Masked, name)
			continue
		// What CloudStack's scripts start they also enable or not, as they see fit.
		case rule.on == enable && (role.Owner == NodeAgent || slices.Contains(role.On, name)):
			plan.add(realName(name, unit), "enable")
		}
		if slices.Contains(role.On, name) && !unit.Running() {
			plan.add(realName(name, unit), "start")
		}
	}
	for _, name := range offWithTriggers(role, units) {
		unit := units[name]
		if !unit.Exists() {
			plan.Absent = append(plan.Absent, name)
			continue
		}
		real := realName(name, unit)
		if wanted[real] {
			continue
		}
		starts := unit.Running() || unit.JobID != 0
		switch ruleOf(unit).off {
		case disable:
			plan.add(real, "disable")
			// Its start may be queued already, as part of the boot, even if that cannot
			// be seen yet: stopping it takes that job out of the queue.
			starts = true
		case mask:
			if starts {
				plan.add(real, "mask")
			}
		}
		if starts {
			plan.add(real, "stop")
		}
	}
	plan.Absent = worthTelling(plan.Absent, units)
	return plan
}

// offWithTriggers returns the units that are to be off, each after the sockets,
// timers and paths that would start it again (pain-point S8).
func offWithTriggers(role Role, units map[string]host.Unit) (names []string) {
	for _, name := range role.Off {
		for _, trigger := range units[name].TriggeredBy {
			if units[trigger].Exists() && !slices.Contains(names, trigger) {
				names = append(names, trigger)
			}
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// named is a unit's name with those it has on other templates.
func named(unit string) string {
	for _, names := range variants() {
		if slices.Contains(names, unit) {
			return unit + " (or " + strings.Join(without(names, unit), ", ") + ")"
		}
	}
	return unit
}

// worthTelling leaves out of the units that a template does not have those that no
// template has all of.
func worthTelling(absent []string, units map[string]host.Unit) []string {
	return slices.DeleteFunc(absent, func(unit string) bool {
		for _, names := range variants() {
			there := slices.ContainsFunc(names, func(name string) bool { return units[name].Exists() })
			if slices.Contains(names, unit) && (there || unit != names[0]) {
				return true
			}
		}
		return slices.Contains(optional(), unit)
	})
}

func (p *Plan) add(unit, verb string) {
	if change := (Change{unit, verb}); !slices.Contains(p.Changes, change) {
		p.Changes = append(p.Changes, change)
	}
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
	for _, verb := range []string{"enable", "start", "disable", "mask", "stop"} {
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
