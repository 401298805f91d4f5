// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// C11: nobody but nodeagent and ifupdown sets a NIC, also where netplan or D-Bus
// start what is disabled; a second boot changes nothing.
func TestOwnNetwork(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.AddUnit(host.Unit{Name: "systemd-networkd.service"})
	m.AddUnit(host.Unit{Name: "NetworkManager.service", FileState: "enabled", ActiveState: "active"})
	m.AddUnit(host.Unit{Name: "networking.service", FileState: "enabled"})
	done, err := OwnNetwork(context.Background(), m.Host())
	if err != nil || !slices.Equal(done, []string{"systemd-networkd.service masked", "NetworkManager.service masked"}) {
		t.Errorf("did %q, %v", done, err)
	}
	for _, want := range []string{"systemd-networkd.service: masked", "NetworkManager.service: masked", "networking.service: enabled"} {
		if !strings.Contains(m.String(), "unit "+want+" inactive\n") {
			t.Errorf("want %q in\n%s", want, m)
		}
	}
	m.Actions()
	if done, err := OwnNetwork(context.Background(), m.Host()); err != nil || len(done) > 0 || len(m.Actions()) > 0 {
		t.Errorf("the second boot did %q (%v), want nothing", done, err)
	}
}
