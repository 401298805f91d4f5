// SPDX-License-Identifier: Apache-2.0

package roles

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// OverridesDir is where an operator changes the table for one machine or template.
const OverridesDir = "/etc/nodeagent/roles.d"

// The keys of a role in a file of OverridesDir.
const (
	keyOn          = "on"
	keyOnDemand    = "onDemand"
	keyOff         = "off"
	keyMinimumDisk = "minimumDisk"
	keySSHPort     = "sshPort"
)

// Override is one thing that a file says of one role.
type Override struct {
	Role  string // of the table
	Key   string
	Unit  string // of the first three keys
	Value int64  // of the last two: GiB, a port
	File  string
	Line  int
}

// From says where the override stands.
func (o Override) From() string { return fmt.Sprintf("%s line %d", o.File, o.Line) }

// Overrides are what all files say, in the order in which they apply.
type Overrides []Override

// Apply returns the role with what the overrides change in it. Of two that say
// something of the same unit or number the later one holds.
func (o Overrides) Apply(role Role) Role {
	for _, one := range o {
		if one.Role != role.Name {
			continue
		}
		switch one.Key {
		case keyMinimumDisk:
			role.MinimumDisk = one.Value * gib
			continue
		case keySSHPort:
			role.SSHPort = int(one.Value)
			continue
		}
		role.On, role.OnDemand = without(role.On, one.Unit), without(role.OnDemand, one.Unit)
		role.Off, role.Leave = without(role.Off, one.Unit), without(role.Leave, one.Unit)
		switch {
		case one.Key == keyOn:
			role.On = append(role.On, one.Unit)
		case one.Key == keyOff:
			role.Off = append(role.Off, one.Unit)
		case isStage(one.Unit):
			role.OnDemand = append(role.OnDemand, one.Unit)
			slices.SortFunc(role.OnDemand, func(a, b string) int {
				return cmp.Compare(slices.Index(stages(), a), slices.Index(stages(), b))
			})
		default:
			role.Leave = append(role.Leave, one.Unit)
		}
	}
	return role
}

// Of returns how many overrides there are of a role.
func (o Overrides) Of(role Role) (count int) {
	for _, one := range o {
		if one.Role == role.Name {
			count++
		}
	}
	return count
}

// Origin says where one value of a role came from.
type Origin struct{ Key, Value, From string }

// Explain returns where the values of a role of the table come from once the
// overrides have been applied.
func (o Overrides) Explain(role Role) (origins []Origin) {
	const table = "role table"
	changed := o.Apply(role)
	for _, list := range []struct {
		key       string
		is, table []string
	}{
		{keyOn, changed.On, role.On},
		{keyOnDemand, slices.Concat(changed.OnDemand, changed.Leave), role.OnDemand},
		{keyOff, changed.Off, role.Off},
	} {
		var ofTable []string
		var overridden []Origin
		for _, unit := range list.is {
			if last, found := o.last(role.Name, unit, keyOn, keyOnDemand, keyOff); found {
				overridden = append(overridden, Origin{list.key, unit, last.From()})
			} else if slices.Contains(list.table, unit) {
				ofTable = append(ofTable, unit)
			}
		}
		if len(ofTable) > 0 {
			origins = append(origins, Origin{list.key, strings.Join(ofTable, " "), table})
		}
		origins = append(origins, overridden...)
	}
	number := func(key, value string) {
		from := table
		if last, found := o.last(role.Name, "", key); found {
			from = last.From()
		}
		origins = append(origins, Origin{key, value, from})
	}
	if changed.MinimumDisk > 0 || role.MinimumDisk > 0 {
		number(keyMinimumDisk, fmt.Sprintf("%d GiB", changed.MinimumDisk/gib))
	}
	number(keySSHPort, fmt.Sprint(changed.SSHPort))
	return origins
}

func (o Overrides) last(role, unit string, keys ...string) (Override, bool) {
	for i := len(o) - 1; i >= 0; i-- {
		if o[i].Role == role && o[i].Unit == unit && slices.Contains(keys, o[i].Key) {
			return o[i], true
		}
	}
	return Override{}, false
}

// contradictions are what cannot be once all overrides are applied: a unit that may
// run, while one it needs is off.
func (o Overrides) contradictions() (problems []Problem) {
	for _, role := range Table() {
		if o.Of(role) == 0 {
			continue
		}
		role = o.Apply(role)
		for _, unit := range slices.Concat(role.Enabled(), role.Leave) {
			for _, need := range needsOf(unit) {
				if !role.turnsOff(need) {
					continue
				}
				by, found := o.last(role.Name, unit, keyOn, keyOnDemand)
				if !found {
					by, _ = o.last(role.Name, need, keyOff)
				}
				problems = append(problems, Problem{File: by.File, Line: by.Line, Key: role.Name + "." + by.Key,
					Message: fmt.Sprintf("leaves %s to run and %s, which it needs, off; expected both of them on, or both off", unit, need)})
			}
		}
	}
	return problems
}

// turnsOff says whether a unit, and any variant of it, is off.
func (r Role) turnsOff(unit string) bool {
	names := []string{unit}
	for _, variant := range variants() {
		if slices.Contains(variant, unit) {
			names = variant
		}
	}
	return !slices.ContainsFunc(names, func(name string) bool { return !slices.Contains(r.Off, name) })
}

func needsOf(unit string) []string {
	list := needs()[unit]
	kind := filepath.Ext(unit)
	if kind == ".socket" || kind == ".timer" || kind == ".path" {
		list = append(list, strings.TrimSuffix(unit, kind)+".service")
	}
	return list
}
