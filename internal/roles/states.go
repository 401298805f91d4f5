// SPDX-License-Identifier: Apache-2.0

package roles

import (
	"slices"

	"nodeagent/internal/host"
)

// action is what is done about a unit's start at boot. Whether it is also started or
// stopped depends on whether it runs.
type action string

const (
	keep    action = "nothing"
	enable  action = "enable"
	disable action = "disable"
	// mask is done to a unit that runs or is about to although there is nothing to
	// disable in it: somebody else starts it, and would at the next boot.
	mask action = "mask, if it runs or its start is queued"
	// refuse is a failure of the step.
	refuse action = "fail"
)

// stateRule is what is done about units in some of systemd's unit file states.
type stateRule struct {
	states  []string
	on, off action
	because string
}

// stateAbsent and stateOther are no words of systemd's.
const (
	stateAbsent = "absent"
	stateOther  = "any other"
)

// stateRules are what is done about a unit in each state.
func stateRules() []stateRule {
	return []stateRule{
		{[]string{"enabled"}, keep, disable, "it is started at boot"},
		{[]string{"enabled-runtime"}, enable, mask, "enabled below /run for this boot, by somebody or by a generator that does it at every boot; disabling reaches neither"},
		{[]string{"disabled"}, enable, keep, "it is not started at boot"},
		{[]string{"linked", "linked-runtime"}, enable, keep, "its file is elsewhere and only linked, not enabled; disabling would remove the link"},
		{[]string{"static"}, keep, mask, "it cannot be enabled: other units start it"},
		{[]string{"indirect"}, keep, mask, "it cannot be enabled itself, only others with it"},
		{[]string{"generated"}, keep, mask, "made anew at every boot: of an init script (SysV), of fstab; systemd neither enables nor disables these"},
		{[]string{"transient"}, keep, keep, "made by a program, and gone with this boot"},
		{[]string{"alias"}, keep, keep, "another name: systemd says of which unit, and that one is looked at and changed"},
		{[]string{"masked", "masked-runtime"}, refuse, keep, "somebody has decided that it must never start"},
		{[]string{"bad"}, refuse, mask, "systemd cannot read its file"},
		{[]string{""}, keep, keep, "it has no file of its own"},
		{[]string{stateAbsent}, refuse, keep, "the template does not have it"},
		{[]string{stateOther}, keep, mask, "a word of a later systemd"},
	}
}

// stateOf is the state of a unit by which stateRules goes.
func stateOf(unit host.Unit) string {
	switch {
	case !unit.Exists():
		return stateAbsent
	case unit.LoadState == "masked" && unit.FileState != "masked-runtime":
		return "masked"
	case unit.LoadState == "error" || unit.LoadState == "bad-setting":
		return "bad"
	}
	return unit.FileState
}

func ruleOf(unit host.Unit) stateRule {
	state := stateOf(unit)
	rules := stateRules()
	for _, rule := range rules {
		if slices.Contains(rule.states, state) {
			return rule
		}
	}
	return rules[len(rules)-1]
}
