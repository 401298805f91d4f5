// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/sys/unix"

	"nodeagent/internal/host"
)

// DHCPServer asks for the DHCP server of the network behind a device and returns
// its identifier (RFC 2132, option 54). The offer is not taken up: the node's
// address comes from the boot args. It blocks until an offer comes, for at most
// some 12 s.
func DHCPServer(ctx context.Context, device string) (netip.Addr, error) {
	client, err := nclient4.New(device, nclient4.WithTimeout(4*time.Second), nclient4.WithRetry(2))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("cannot ask for a DHCP server on %s: %w", device, host.Explain(err, unix.CAP_NET_RAW))
	}
	defer client.Close()
	offer, err := client.DiscoverOffer(ctx)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("no DHCP server answered on %s: %w", device, err)
	}
	server, ok := netip.AddrFromSlice(offer.ServerIdentifier().To4())
	if !ok || server.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("the DHCP server on %s gave no identifier", device)
	}
	return server, nil
}
