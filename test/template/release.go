// SPDX-License-Identifier: Apache-2.0

package template

import (
	"fmt"
	"slices"
	"strings"
)

// release is a release of Debian with what a template has to know of it.
type release struct {
	suite string
	// cloudInit are the units that CloudStack's build turns off by the name
	// cloud-init. Those of cloud-init's other stages stay as Debian enables them:
	// switching them is the agent's work.
	cloudInit []string
}

// releases has the default first.
func releases() []release {
	return []release{
		{suite: "bookworm", cloudInit: []string{"cloud-init.service"}},
		// cloud-init 25.1 has one process for all stages, and a unit of its own for it.
		{suite: "trixie", cloudInit: []string{"cloud-init-main.service", "cloud-init-network.service"}},
	}
}

// Suites are the releases of Debian a template can be made of, the default first.
func Suites() []string {
	var suites []string
	for _, r := range releases() {
		suites = append(suites, r.suite)
	}
	return suites
}

func findRelease(suite string) (release, error) {
	known := releases()
	if suite == "" {
		return known[0], nil
	}
	i := slices.IndexFunc(known, func(r release) bool { return r.suite == suite })
	if i < 0 {
		return release{}, fmt.Errorf("suite %q: expected one of %s", suite, strings.Join(Suites(), ", "))
	}
	return known[i], nil
}
