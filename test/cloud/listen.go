// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"net"
	"net/netip"
)

// Listen opens a TCP port of the router, for whatever else its network is to offer.
func (c *Cloud) Listen(port uint16) (net.Listener, error) {
	return c.network.listen(netip.AddrPortFrom(c.Router.Address, port))
}
