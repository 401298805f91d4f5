// SPDX-License-Identifier: Apache-2.0

// Package roles is the table of SystemVM roles: for each type= of the boot args
// which units run, how large the root disk must be, and who sets the node up; what
// an operator changes in it; and its difference to the machine. docs/roles.md is the
// same for people.
package roles

import (
	"slices"
	"strings"

	"nodeagent/internal/fault"
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
	Name    string
	Aliases []string // other values of type= for it
	Owner   Owner
	// On are units enabled and started; OnDemand are cloud-init's, started later in
	// the boot, in this order, by the role's owner; Off ones are stopped and kept from
	// starting.
	On, OnDemand, Off []string
	// Leave are units that an override takes from the other lists: nodeagent neither
	// starts nor stops them.
	Leave       []string
	MinimumDisk int64 // bytes the root disk must have; 0 is no minimum
	SSHPort     int   // where CloudStack logs in
	// Theirs are the services that CloudStack's own scripts enable or disable on this
	// role. nodeagent does not touch them.
	Theirs []string
}

// Enabled returns all units the role has enabled.
func (r Role) Enabled() []string { return slices.Concat(r.On, r.OnDemand) }

// UsesCloudInit says whether cloud-init may run on the role: started by its owner.
func (r Role) UsesCloudInit() bool { return slices.ContainsFunc(r.OnDemand, isStage) }

const gib = 1 << 30

// Table returns all roles.
func Table() []Role {
	var (
		// Which of them a role has on depends on its kind and on whether it is redundant.
		ofRouters   = []string{"apache2", "cloud", "conntrackd", "dnsmasq", "haproxy", "keepalived", "nfs-common", "portmap"}
		ofDHCP      = append(slices.Clone(ofRouters), "radvd")
		ofProxies   = []string{"apache2", "cloud", "dnsmasq", "haproxy", "nfs-common", "portmap"}
		hostedNode  = slices.Concat(docker(), hotplug())
		hostedShare = slices.Concat(docker(), containerd(), hotplug())
		noneOfThem  = slices.Concat(docker(), containerd(), hotplug(), stages(), stageTargets())
	)
	return []Role{
		// CKS rejects a noderootdisksize below 8 (GiB).
		{Name: "cksnode", Owner: NodeAgent, On: containerd(), OnDemand: stages(), Off: hostedNode, MinimumDisk: 8 * gib, SSHPort: 22},
		// The builds from which CloudStack 4.20 came called it storagefsvm at first.
		{Name: "sharedfsvm", Aliases: []string{"storagefsvm"}, Owner: CloudStack, OnDemand: stages(), Off: hostedShare, SSHPort: 22},
		{Name: "router", Owner: CloudStack, Off: noneOfThem, SSHPort: 3922, Theirs: ofRouters},
		{Name: "vpcrouter", Owner: CloudStack, Off: noneOfThem, SSHPort: 3922, Theirs: ofRouters},
		{Name: "dhcpsrvr", Owner: CloudStack, Off: noneOfThem, SSHPort: 3922, Theirs: ofDHCP},
		{Name: "elbvm", Owner: CloudStack, Off: noneOfThem, SSHPort: 3922, Theirs: ofRouters},
		{Name: "ilbvm", Owner: CloudStack, Off: noneOfThem, SSHPort: 3922, Theirs: ofRouters},
		{Name: "consoleproxy", Owner: CloudStack, Off: noneOfThem, SSHPort: 3922, Theirs: ofProxies},
		{Name: "secstorage", Owner: CloudStack, Off: noneOfThem, SSHPort: 3922, Theirs: ofRouters},
	}
}

// Find returns the role of a type= value. A missing or unknown one is an error:
// a role is never guessed (pain-point C4).
func Find(name string) (Role, error) {
	var known []string
	for _, role := range Table() {
		if role.Name == name || slices.Contains(role.Aliases, name) {
			return role, nil
		}
		known = append(known, role.Name)
	}
	if name == "" {
		return Role{}, fault.New(fault.RoleMissing, "cannot find this VM's role: the boot args have no type=, expected one of %s", strings.Join(known, ", "))
	}
	return Role{}, fault.New(fault.RoleUnknown, "cannot find this VM's role: boot args say type=%q, expected one of %s", name, strings.Join(known, ", "))
}
