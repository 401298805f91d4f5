// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeagent/internal/host/hosttest"
)

func TestDHCPServerNamesTheCapability(t *testing.T) {
	t.Parallel()
	hosttest.DropCapabilities(t, unix.CAP_NET_RAW)
	_, err := DHCPServer(context.Background(), "lo")
	if err == nil || !strings.HasPrefix(err.Error(), "cannot ask for a DHCP server on lo: ") ||
		!strings.HasSuffix(err.Error(), "operation not permitted: this process lacks CAP_NET_RAW") {
		t.Errorf("error = %v", err)
	}
}
