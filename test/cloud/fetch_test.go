// SPDX-License-Identifier: Apache-2.0

//go:build vm

package cloud

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"nodeagent/internal/host"
	"nodeagent/internal/userdata"
)

// fetchVariable makes the test binary a machine that looks for its userdata.
const fetchVariable = "CLOUD_TEST_FETCH"

// nodeagent's own code asks a router by DHCP and HTTP from a namespace of its own
// (C8): in a shared network the gateway is another machine, and the name
// data-server is not known to the zone's resolver, so the identifier of the DHCP
// server is the only way.
func TestFetchFromVirtualRouter(t *testing.T) {
	if address := os.Getenv(fetchVariable); address != "" {
		fetchAsMachine(t, netip.MustParseAddr(address))
		return
	}
	t.Parallel()
	for name, test := range map[string]struct{ router, source string }{
		"isolated": {"10.1.1.1", "http://10.1.1.1:80 (d"}, // by default gateway or DHCP server
		"shared":   {"10.1.1.5", "http://10.1.1.5:80 (DHCP server)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTestCloud(t, Options{Router: netip.MustParseAddr(test.router)})
			ctx := deadline(t, time.Minute)
			m, err := c.reserve(MachineSpec{Name: "control", Userdata: []byte("#cloud-config\n")})
			if err != nil {
				t.Fatal(err)
			}
			c.Router.metadata.set(m.Address, instance{userdata: m.Spec.Userdata, keys: m.metadata()})
			if err := c.Router.add(ctx, "control", m.MAC, m.Address); err != nil {
				t.Fatal(err)
			}
			client := newClient(t, c, m.MAC)
			child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestFetchFromVirtualRouter$")
			child.Env = append(os.Environ(), fetchVariable+"="+m.Address.String())
			var output Transcript
			child.Stdout, child.Stderr = &output, &output
			err = client.do(func() error {
				link, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				if err := addAddress(link, netip.PrefixFrom(m.Address, guestNetwork.Bits())); err != nil {
					return err
				}
				if err := netlink.RouteAdd(&netlink.Route{Gw: net.IP(gateway.AsSlice())}); err != nil {
					return err
				}
				return child.Start() // in the namespace of this thread
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Wait(); err != nil {
				t.Errorf("%v: %s", err, output.String())
			}
			want := "fetched 14 bytes of userdata from " + test.source
			if !strings.Contains(output.String(), want) || !strings.Contains(output.String(), "instance "+m.ID+"\n") {
				t.Errorf("got %s\nwant %s and instance %s", output.String(), want, m.ID)
			}
			if !slices.ContainsFunc(c.Router.Requests(), func(r Request) bool { return r.Client == m.Address && r.Path == "/latest/user-data" }) {
				t.Errorf("got requests %v, want one for user-data from %s", c.Router.Requests(), m.Address)
			}
		})
	}
}

func fetchAsMachine(t *testing.T, address netip.Addr) {
	h := &host.Host{Root: t.TempDir()} // no block device of this host is looked at
	if err := os.MkdirAll(filepath.Join(h.Root, "sys/class/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	options := userdata.FetchOptions{Name: "control", Gateway: gateway, Local: address, Timeout: 45 * time.Second}
	got, err := userdata.Fetch(t.Context(), h, options, func(format string, args ...any) { fmt.Printf(format+"\n", args...) })
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("fetched %v\ninstance %s\n", got, got.Meta["instance-id"])
}
