// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// OwnNetwork keeps everybody else's hands off the NICs: nodeagent sets them, and
// ifupdown repeats it. All of these start after network-pre.target, which
// nodeagent is before, so none has touched a NIC yet (pain-point C11). They are
// masked because netplan, D-Bus and sockets start them also when disabled. It
// returns what it did.
//
// dhclient has nothing to do: it is started by ifupdown for "inet dhcp" only, of
// which nodeagent's /etc/network/interfaces has none. cloud-init is told not to by
// its seed, and its hotplug socket is off as the role's services say.
func OwnNetwork(ctx context.Context, h *host.Host) (done []string, err error) {
	done, err = maskOff(ctx, h,
		"systemd-networkd.socket", "systemd-networkd.service", "systemd-networkd-wait-online.service",
		"NetworkManager.service", "NetworkManager-wait-online.service",
		"connman.service", "dhcpcd.service")
	if err != nil {
		return done, fault.Wrap(fault.NetworkFailed, err, "cannot keep other network managers off")
	}
	return done, nil
}
