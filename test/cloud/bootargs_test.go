// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"
)

func addresses(texts ...string) []netip.Addr {
	var list []netip.Addr
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// The two lines of contract 1.4, letter by letter.
func TestNodeArgs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		args NodeArgs
		want string
	}{
		{
			name: "isolated network",
			args: NodeArgs{
				Name: "prod1-control-19a2f0c4d10",
				NICs: []NIC{
					{Prefix: netip.MustParsePrefix("10.1.1.57/24"), Gateway: netip.MustParseAddr("10.1.1.1")},
				},
				InternalDNS: addresses("10.0.0.10", "10.0.0.11"),
				DNS:         addresses("1.1.1.1", "9.9.9.9"),
			},
			want: " template=domP name=prod1-control-19a2f0c4d10 type=cksnode eth0ip=10.1.1.57 eth0mask=255.255.255.0 gateway=10.1.1.1 internaldns1=10.0.0.10 internaldns2=10.0.0.11 dns1=1.1.1.1 dns2=9.9.9.9",
		},
		{
			name: "second card without address",
			args: NodeArgs{
				Name: "k8s-dev-node-19a2f0d77ab",
				NICs: []NIC{
					{Prefix: netip.MustParsePrefix("192.168.80.23/22"), Gateway: netip.MustParseAddr("192.168.80.1")},
					{},
				},
				InternalDNS: addresses("192.168.10.2"),
				DNS:         addresses("192.168.10.2"),
			},
			want: " template=domP name=k8s-dev-node-19a2f0d77ab type=cksnode eth0ip=192.168.80.23 eth0mask=255.255.252.0 gateway=192.168.80.1 eth1ip=0.0.0.0 eth1mask=0.0.0.0 internaldns1=192.168.10.2 dns1=192.168.10.2",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := test.args.String(); got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestSystemVMArgs(t *testing.T) {
	t.Parallel()
	args := SystemVMArgs{
		Name: "v-2-VM", ID: 2, Hosts: []string{"10.0.0.5", "10.0.0.6"}, AuthorizedKey: "ssh-rsa AAAA",
		NICs: []NIC{
			{Prefix: netip.MustParsePrefix("169.254.3.9/16")},
			{Prefix: netip.MustParsePrefix("10.0.0.77/24")},
			{Prefix: netip.MustParsePrefix("203.0.113.9/24"), Gateway: netip.MustParseAddr("203.0.113.1")},
		},
		ManagementCIDRs: []string{"10.0.0.0/24", "10.0.8.0/24"}, LocalGateway: netip.MustParseAddr("10.0.0.1"),
		InternalDNS: addresses("10.0.0.2"), DNS: addresses("9.9.9.9"),
	}
	rest := " authorized_key=c3NoLXJzYSBBQUFB eth0ip=169.254.3.9 eth0mask=255.255.0.0 eth1ip=10.0.0.77 eth1mask=255.255.255.0" +
		" eth2ip=203.0.113.9 eth2mask=255.255.255.0 gateway=203.0.113.1 mgmtcidr=10.0.0.0/24,10.0.8.0/24 localgw=10.0.0.1 internaldns1=10.0.0.2 dns1=9.9.9.9"

	want := " template=domP type=consoleproxy host=10.0.0.5,10.0.0.6 port=8250 name=v-2-VM premium=true zone=1 pod=1 guid=Proxy.2 proxy_vm=2 disable_rp_filter=true" + rest
	if got := args.ConsoleProxy(); got != want {
		t.Errorf("console proxy\ngot  %q\nwant %q", got, want)
	}
	want = " template=domP type=secstorage host=10.0.0.5,10.0.0.6 port=8250 name=v-2-VM zone=1 pod=1 guid=v-2-VM workers=5" +
		" resource=org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource instance=SecStorage sslcopy=false role=templateProcessor" +
		" mtu=1500 private.network.device=eth1 public.network.device=eth2 nfsVersion=null" + rest
	if got := args.SecondaryStorage(); got != want {
		t.Errorf("secondary storage\ngot  %q\nwant %q", got, want)
	}
}

func TestRouterArgs(t *testing.T) {
	t.Parallel()
	got := RouterArgs{
		Name: "r-4-VM", AuthorizedKey: "ssh-rsa AAAA\n",
		Guest: netip.MustParsePrefix("10.1.1.1/20"), Control: netip.MustParsePrefix("169.254.1.2/16"), Public: netip.MustParsePrefix("203.0.113.7/24"),
		Gateway: netip.MustParseAddr("203.0.113.1"), Domain: "cs2cloud.internal", DNS: addresses("9.9.9.9"),
	}.String()
	key := base64.StdEncoding.EncodeToString([]byte("ssh-rsa AAAA\n"))
	if !strings.HasSuffix(key, "=") {
		t.Fatalf("key %q does not end in =, so it tests nothing", key)
	}
	want := " template=domP name=r-4-VM authorized_key=" + key + " eth0ip=10.1.1.1 eth0mask=255.255.240.0 privateMtu=1500" +
		" guestgw=10.1.1.1 guestbrd=10.1.15.255 guestcidrsize=20 domain=cs2cloud.internal cidrsize=20 dhcprange=10.1.0.1" +
		" eth1ip=169.254.1.2 eth1mask=255.255.0.0 eth2ip=203.0.113.7 eth2mask=255.255.255.0 gateway=203.0.113.1 publicMtu=1500" +
		" type=router disable_rp_filter=true dnssearchorder=cs2cloud.internal dns1=9.9.9.9 useextdns=true logrotatefrequency=*/10:*"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
