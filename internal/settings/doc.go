// SPDX-License-Identifier: Apache-2.0

// Package settings makes the host settings of a Kubernetes node that are not its
// addresses and names: the ssh server, root locked, one time service, iptables,
// one owner of the network, swap off for good, kernel modules and sysctls. Each
// function compares, changes what differs and returns what it did; on a machine
// that is so already it writes nothing and starts no service.
package settings
