// SPDX-License-Identifier: Apache-2.0

// Package netsetup gives a node the network CloudStack's boot args say: host
// name and hosts file, addresses, default route and resolver, now through
// netlink and for later boots through the files Debian reads.
package netsetup
