// SPDX-License-Identifier: Apache-2.0

package roles

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/host"
)

// S4: what is done in every state of a unit, with one that neither runs nor is about
// to, one that runs, and one whose start is queued.
func TestEveryUnitState(t *testing.T) {
	t.Parallel()
	const nothing = ""
	type outcome struct{ on, onDemand, off, offRunning string }
	enabled := outcome{"start", nothing, "disable stop", "disable stop"}
	plain := outcome{"start", nothing, nothing, "stop"}
	held := outcome{"start", nothing, nothing, "mask stop"} // nothing in it to disable
	refused := outcome{"refused", "refused", nothing, "stop"}
	for state, want := range map[string]outcome{
		"enabled":         enabled,
		"enabled-runtime": {"enable start", "enable", nothing, "mask stop"},
		"disabled":        {"enable start", "enable", nothing, "stop"},
		"linked":          {"enable start", "enable", nothing, "stop"},
		"linked-runtime":  {"enable start", "enable", nothing, "stop"},
		"static":          held,
		"indirect":        held,
		"generated":       held, // of an init script (SysV), too
		"transient":       plain,
		"alias":           plain,
		"masked":          refused,
		"masked-runtime":  refused,
		"bad":             {"refused", "refused", nothing, "mask stop"},
		"":                plain,
		"not-found":       {"refused", "refused", nothing, nothing},
		"quantum":         held,
	} {
		unit := host.Unit{Name: "docker.service", LoadState: "loaded", ActiveState: "inactive", FileState: state}
		if state == "not-found" {
			unit.LoadState, unit.FileState = state, ""
		}
		running, queued := unit, unit
		running.ActiveState, queued.JobID = "active", 5
		on := Role{Owner: NodeAgent, On: []string{"docker.service"}}
		onDemand := Role{Owner: NodeAgent, OnDemand: []string{"docker.service"}}
		off := Role{Owner: NodeAgent, Off: []string{"docker.service"}}
		for _, test := range []struct {
			what string
			role Role
			unit host.Unit
			want string
		}{
			{"on", on, unit, want.on},
			{"on, running", on, running, strings.TrimSuffix(strings.TrimSuffix(want.on, "start"), " ")},
			{"on demand", onDemand, unit, want.onDemand},
			{"off", off, unit, want.off},
			{"off, running", off, running, want.offRunning},
			{"off, queued", off, queued, want.offRunning},
		} {
			if got := outcomeOf(Diff(test.role, map[string]host.Unit{"docker.service": test.unit})); got != test.want {
				t.Errorf("%q %s: %q, want %q", state, test.what, got, test.want)
			}
		}
	}
}

func outcomeOf(plan Plan) string {
	if len(plan.Missing)+len(plan.Masked)+len(plan.Bad) > 0 {
		return "refused"
	}
	var verbs []string
	for _, change := range plan.Changes {
		verbs = append(verbs, change.Verb)
	}
	return strings.Join(verbs, " ")
}

// What a unit is loaded as says more than its file.
func TestLoadStates(t *testing.T) {
	t.Parallel()
	for load, want := range map[string]string{"loaded": "enabled", "masked": "masked", "error": "bad", "bad-setting": "bad", "not-found": "absent", "": "absent"} {
		if got := stateOf(host.Unit{LoadState: load, FileState: "enabled"}); got != want {
			t.Errorf("loaded as %q: %q, want %q", load, got, want)
		}
	}
	if got := stateOf(host.Unit{LoadState: "masked", FileState: "masked-runtime"}); got != "masked-runtime" {
		t.Errorf("masked for this boot: %q", got)
	}
}

// On CloudStack's roles what is on demand is enabled, or not, by CloudStack's scripts.
func TestOnDemandOfCloudStackIsNotEnabled(t *testing.T) {
	t.Parallel()
	role := Role{Owner: CloudStack, OnDemand: []string{"cloud-final.service"}}
	unit := host.Unit{LoadState: "loaded", FileState: "disabled"}
	if plan := Diff(role, map[string]host.Unit{"cloud-final.service": unit}); len(plan.Changes) > 0 {
		t.Errorf("%s", plan)
	}
}

// An alias is another name: the unit itself is changed, once, and it is not turned off
// where the role wants it on.
func TestAliases(t *testing.T) {
	t.Parallel()
	unit := host.Unit{ID: "moby.service", LoadState: "loaded", ActiveState: "active", FileState: "enabled"}
	units := map[string]host.Unit{"docker.service": unit, "moby.service": unit}
	plan := Diff(Role{Off: []string{"docker.service", "moby.service"}}, units)
	if want := []Change{{"moby.service", "disable"}, {"moby.service", "stop"}}; !slices.Equal(plan.Changes, want) {
		t.Errorf("%v, want %v", plan.Changes, want)
	}
	if plan := Diff(Role{On: []string{"moby.service"}, Off: []string{"docker.service"}}, units); len(plan.Changes) > 0 {
		t.Errorf("%v, want nothing: the role wants it on", plan.Changes)
	}
}

// Every state has one rule, and every rule what is needed to document it.
func TestStateRulesAreWhole(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, rule := range stateRules() {
		for _, state := range rule.states {
			if seen[state] || rule.because == "" || rule.on == "" || rule.off == "" {
				t.Errorf("state %q: %+v", state, rule)
			}
			seen[state] = true
		}
	}
	for _, state := range strings.Fields("enabled enabled-runtime linked linked-runtime alias masked masked-runtime static disabled indirect generated transient bad") {
		if !seen[state] {
			t.Errorf("systemd's state %s has no rule", state)
		}
	}
	if got := fmt.Sprint(ruleOf(host.Unit{LoadState: "loaded", FileState: "quantum"}).states); got != "["+stateOther+"]" {
		t.Errorf("a state of a later systemd falls under %s", got)
	}
}
