// SPDX-License-Identifier: Apache-2.0

package roles

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// docs/roles.md has every row of the two tables, as they are in the code.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/roles.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for _, row := range slices.Concat(roleRows(), setRows(), stateRows()) {
		if !slices.Contains(lines, row) {
			t.Errorf("docs/roles.md lacks\n%s", row)
		}
	}
}

// sets are groups of units that roles have on or off together.
func sets() []struct {
	name  string
	units []string
} {
	return []struct {
		name  string
		units []string
	}{
		{"docker", docker()}, {"containerd", containerd()}, {"cloud-init", slices.Concat(stages(), stageTargets())}, {"hotplug", hotplug()},
	}
}

func setsOf(units []string) string {
	var names []string
	for _, set := range sets() {
		if !slices.ContainsFunc(set.units, func(unit string) bool { return !slices.Contains(units, unit) }) {
			names = append(names, set.name)
		}
	}
	return strings.Join(names, ", ")
}

func roleRows() (rows []string) {
	for _, role := range Table() {
		name := "`" + role.Name + "`"
		for _, alias := range role.Aliases {
			name += ", `" + alias + "`"
		}
		user, disk := "nobody", "none"
		if role.UsesCloudInit() {
			user = string(role.Owner)
		}
		if role.MinimumDisk > 0 {
			disk = fmt.Sprintf("%d GiB", role.MinimumDisk/gib)
		}
		rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %d | %s |", name, role.Owner, setsOf(role.On), user,
			setsOf(role.Off), disk, role.SSHPort, strings.Join(role.Theirs, ", ")))
	}
	return rows
}

func setRows() (rows []string) {
	for _, set := range sets() {
		rows = append(rows, fmt.Sprintf("| %s | `%s` |", set.name, strings.Join(set.units, "`, `")))
	}
	return rows
}

func stateRows() (rows []string) {
	for _, rule := range stateRules() {
		names := make([]string, len(rule.states))
		for i, state := range rule.states {
			names[i] = "`" + state + "`"
			switch state {
			case "":
				names[i] = "none"
			case stateAbsent, stateOther:
				names[i] = state
			}
		}
		rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s |", strings.Join(names, ", "), rule.on, rule.off, rule.because))
	}
	return rows
}
