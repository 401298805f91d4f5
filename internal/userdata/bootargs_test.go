// SPDX-License-Identifier: Apache-2.0

package userdata_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/userdata"
)

// The two lines of the contract's section 1.4.
const (
	nodeArgs = " template=domP name=prod1-control-19a2f0c4d10 type=cksnode eth0ip=10.1.1.57 eth0mask=255.255.255.0 gateway=10.1.1.1" +
		" internaldns1=10.0.0.10 internaldns2=10.0.0.11 dns1=1.1.1.1 dns2=9.9.9.9\n"
	twoNICs = " template=domP name=k8s-dev-node-19a2f0d77ab type=cksnode eth0ip=192.168.80.23 eth0mask=255.255.252.0 gateway=192.168.80.1" +
		" eth1ip=0.0.0.0 eth1mask=0.0.0.0 internaldns1=192.168.10.2 dns1=192.168.10.2"
)

func TestBootArgsViews(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, text, want string
	}{
		{"one NIC", nodeArgs,
			"cksnode prod1-control-19a2f0c4d10 [{eth0 10.1.1.57/24 10.1.1.1}] [10.0.0.10 10.0.0.11 1.1.1.1 9.9.9.9] [] invalid IP"},
		{"a NIC without address, repeated nameserver", twoNICs,
			"cksnode k8s-dev-node-19a2f0d77ab [{eth0 192.168.80.23/22 192.168.80.1}] [192.168.10.2] [] invalid IP"},
		{"the gateway belongs to the network it is in",
			"type=secstorage name=s-1-VM eth0ip=169.254.1.2 eth0mask=255.255.0.0 eth2ip=10.2.0.5 eth2mask=255.255.0.0 eth10ip=10.3.0.5 eth10mask=255.255.255.255 gateway=10.2.0.1 mgmtcidr=10.0.0.0/8,192.168.0.0/16 localgw=169.254.0.1",
			"secstorage s-1-VM [{eth0 169.254.1.2/16 invalid IP} {eth2 10.2.0.5/16 10.2.0.1} {eth10 10.3.0.5/32 invalid IP}] [] [10.0.0.0/8 192.168.0.0/16] 169.254.0.1"},
		{"null is none", "type=cksnode name=n eth0ip=10.0.0.2 eth0mask=255.0.0.0 gateway=null localgw=null dns1=null",
			"cksnode n [{eth0 10.0.0.2/8 invalid IP}] [] [] invalid IP"},
		{"tabs, NULs and carriage returns part words", "cloudstack-vm-userdata\x00\x00\x00 type=router\r\n\tname=r-4-VM\x00\x00",
			"router r-4-VM [] [] [] invalid IP"},
		// C5: the shell's unanchored search finds two types here.
		{"keys are exact", "x_type=foo type=router mytype=bar name=r", "router r [] [] [] invalid IP"},
		{"empty", "", "  [] [] [] invalid IP"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := userdata.ParseBootArgs(test.text)
			got := fmt.Sprintf("%s %s %v %v %v %v", a.Type(), a.Name(), a.Interfaces(), a.Nameservers(), a.MgmtCIDR(), a.LocalGW())
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestBootArgsGet(t *testing.T) {
	t.Parallel()
	a := userdata.ParseBootArgs("authorized_key=c3NoLXJzYQ== a=1 plain =x a=2 empty=")
	for key, want := range map[string]string{"authorized_key": "c3NoLXJzYQ==", "a": "2", "empty": ""} {
		if got, ok := a.Get(key); !ok || got != want {
			t.Errorf("Get(%q) = %q, %v; want %q, true", key, got, ok, want)
		}
	}
	if _, ok := a.Get("plain"); ok {
		t.Error(`Get("plain") found a word without "="`)
	}
	if got, want := a.Keys(), []string{"authorized_key", "a", "empty"}; !slices.Equal(got, want) {
		t.Errorf("Keys() = %q, want %q", got, want)
	}
}

func TestBootArgsProblems(t *testing.T) {
	t.Parallel()
	const good = "type=cksnode name=n1 eth0ip=10.0.0.2 eth0mask=255.255.255.0 gateway=10.0.0.1 dns1=10.0.0.3 "
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"none", good, nil},
		{"upper case is fine", good + "name=N1", []string{`warning boot arg "name"="N1": given more than once`}},
		{"no type", "name=n1", []string{"error the boot args have no type="}},
		{"nothing", "", []string{"error the boot args have no type=", `warning boot arg "name": missing`}},
		{"node without name and address", "type=cksnode", []string{`error boot arg "name": missing`, `error boot arg "eth0ip": no interface has an address`}},
		{"all at once", "type=cksnode name=a_b eth0ip=10.0.0.256 eth0mask=255.0.255.0 eth1ip=10.1.0.2 eth1mask=255.0.255.0 gateway=10.0.0 dns1=x mgmtcidr=10/8",
			[]string{
				`error boot arg "name"="a_b": not a host name`,
				`error boot arg "eth0ip"="10.0.0.256": not an IPv4 address`,
				`error boot arg "eth1mask"="255.0.255.0": not a netmask`,
				`error boot arg "gateway"="10.0.0": not an IPv4 address`,
				`error boot arg "dns1"="x": not an IP address`,
				`warning boot arg "mgmtcidr"="10/8": not a network`,
			}},
		{"a key twice with one value, as a redundant router's line has it", good + "dns1=10.0.0.3", nil},
		{"a secret twice", good + "vmpassword=a vmpassword=b", []string{`warning boot arg "vmpassword"=[redacted]: given more than once`}},
		{"what only CloudStack's scripts read is a warning on a node too", good + "localgw=x mtu=big", []string{
			`warning boot arg "localgw"="x": not an IP address`, `warning boot arg "mtu"="big": not a number from 68 to 65535`}},
		{"other roles' settings are CloudStack's", "type=router name=a_b dns1=x", []string{"warning boot arg", "warning boot arg"}},
		{"mask missing", "type=cksnode name=n eth0ip=10.0.0.2", []string{`error boot arg "eth0mask": missing`}},
		{"mask without address", "type=router name=n eth1mask=255.0.0.0", []string{`warning boot arg "eth1mask"="255.0.0.0": there is a netmask but no eth1ip`}},
		{"gateway outside", good + "gateway=10.0.1.1", []string{
			`warning boot arg "gateway"="10.0.1.1": in none of the networks`, `warning boot arg "gateway"="10.0.1.1": given more than once`}},
		{"long name", "type=router name=" + strings.Repeat("a", 64), []string{`warning boot arg "name"=`}},
		{"too much", "type=router name=n pad=" + strings.Repeat(".", userdata.MaxBootArgs), []string{"error the boot args are longer"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			problems := userdata.ParseBootArgs(test.text).Problems()
			var got []string
			for _, p := range problems {
				got = append(got, string(p.Severity)+" "+p.Message)
			}
			if !slices.EqualFunc(got, test.want, strings.HasPrefix) {
				t.Errorf("got\n %s\nwant beginnings\n %s", strings.Join(got, "\n "), strings.Join(test.want, "\n "))
			}
		})
	}
}

func TestErr(t *testing.T) {
	t.Parallel()
	if err := userdata.Err(userdata.ParseBootArgs(nodeArgs + " dns1=1.1.1.1").Problems()); err != nil {
		t.Errorf("Err(warnings) = %v, want nil", err)
	}
	got := fault.As(userdata.Err(userdata.ParseBootArgs("eth0ip=x").Problems()))
	if got.Code != fault.RoleMissing {
		t.Errorf("Err = %+v, want code %s", got, fault.RoleMissing)
	}
	got = fault.As(userdata.Err(userdata.ParseBootArgs("type=cksnode name=n eth0ip=x dns1=y").Problems()))
	if got.Code != fault.BootArgsInvalid || len(got.Log) != 1 || !strings.Contains(got.Log[0], "dns1") {
		t.Errorf("Err = %+v, want the first problem with the second in its log", got)
	}
}

// C33: boot args hold passwords and keys.
func TestBootArgsNeverShowSecrets(t *testing.T) {
	t.Parallel()
	var words []string
	for _, key := range []string{"vmpassword", "router_password", "authorized_key", "userdata", "keystore_password",
		"baremetalnotificationapikey", "baremetalnotificationsecuritykey", "privatekey", "certificate", "secret"} {
		words = append(words, key+"=hunter2")
	}
	a := userdata.ParseBootArgs("type=cksnode name=n " + strings.Join(words, " ") + " " + strings.Join(words, " ") + " hunter2")
	holder := struct {
		Public  userdata.BootArgs
		private userdata.BootArgs
	}{a, a}
	asJSON, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	shown := []string{string(asJSON), fmt.Sprint(a.Problems())}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d"} {
		shown = append(shown, fmt.Sprintf(verb, a), fmt.Sprintf(verb, holder), fmt.Sprintf(verb, &holder))
	}
	for _, text := range shown {
		if strings.Contains(text, "hunter2") {
			t.Errorf("secret shown in %s", text)
		}
	}
	if !strings.Contains(a.String(), "name=n") || !strings.Contains(a.String(), "vmpassword=[redacted]") {
		t.Errorf("String() = %s, want open values shown and secret ones struck out", a)
	}
}

// One line of each role, as the management server builds it (contract 1.4; order
// and repeats as in VirtualNetworkApplianceManagerImpl). None of them is worth a
// word.
func TestLinesOfAllRoles(t *testing.T) {
	t.Parallel()
	const key = "c3NoLXJzYSBBQUFBQjNOemFDMXljMkVBQUFBREFRQUJBQUFCZ1FD"
	router := " template=domP name=r-4-VM vmpassword=hunter2 authorized_key=" + key + " eth0ip=10.1.1.1 eth0mask=255.255.255.0" +
		" eth0ip6=2001:db8::1 eth0ip6prelen=64 privateMtu=1500 ip6firewall=true redundant_router=1 advert_int=1 router_id=5" +
		" router_password=8342734 redundant_state=BACKUP guestgw=10.1.1.1 guestgw6=2001:db8::ff guestcidr6size=64 guestbrd=10.1.1.255" +
		" guestcidrsize=24 advert_int=1 domain=cs2cloud.internal cidrsize=24 dhcprange=10.1.1.1 eth1ip=169.254.3.2 eth1mask=255.255.0.0" +
		" redundant_router=1 advert_int=1 router_id=5 router_password=8342734 redundant_state=BACKUP eth2ip=192.168.9.7" +
		" eth2mask=255.255.255.0 gateway=192.168.9.1 ip6gateway=2001:db8:1::1 publicMtu=null"
	tail := " dnssearchorder=cs2cloud.internal dns1=8.8.8.8 dns2=8.8.4.4 ip6dns1=2001:4860:4860::8888 useextdns=true" +
		" userouteripresolver=true exposedns=true baremetalnotificationsecuritykey=hunter2 baremetalnotificationapikey=hunter2" +
		" host=10.2.0.5,10.2.0.6 port=8080 logrotatefrequency=*/10:* userdata=H4sIAAAAAAAA/w=="
	system := " host=10.2.0.5,10.2.0.6 port=8250 name=%s zone=1 pod=1 authorized_key=" + key + " eth0ip=169.254.1.9 eth0mask=255.255.0.0" +
		" eth1ip=10.2.0.9 eth1mask=255.255.0.0 mgmtcidr=10.2.0.0/16,10.4.0.0/16 localgw=10.2.0.1 private.network.device=eth1" +
		" eth2ip=192.168.9.8 eth2mask=255.255.255.0 gateway=192.168.9.1 public.network.device=eth2 internaldns1=10.2.0.2 dns1=8.8.8.8"
	for role, line := range map[string]string{
		"cksnode":      nodeArgs,
		"sharedfsvm":   strings.Replace(twoNICs, "cksnode", "sharedfsvm", 1),
		"router":       router + " type=router disable_rp_filter=true" + tail,
		"vpcrouter":    router + " has_public_network=true type=vpcrouter " + tail + " vpccidr=10.0.0.0/8 nic_macs=02:00:0a:01:00:01|0e:00:a9:fe:03:02",
		"dhcpsrvr":     strings.Replace(router, " eth2ip", " is_routed=true eth2ip", 1) + " sshonguest=false type=dhcpsrvr extra_pubnics=2" + tail,
		"elbvm":        router + " type=elbvm" + tail,
		"ilbvm":        " template=domP type=ilbvm name=b-5-VM eth0ip=10.1.1.9 eth0mask=255.255.255.0 eth1ip=169.254.3.9 eth1mask=255.255.0.0",
		"consoleproxy": " template=domP type=consoleproxy premium=true guid=Proxy.2 proxy_vm=2 disable_rp_filter=true bootproto=dhcp" + fmt.Sprintf(system, "v-2-VM"),
		"secstorage": " template=domP type=secstorage guid=s-1-VM workers=5 resource=org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource" +
			" instance=SecStorage sslcopy=false role=templateProcessor mtu=1500 nfsVersion=null storageip=10.3.0.9 storagenetmask=255.255.255.0" +
			" storagegateway=null useHttpsToUpload=true ntpserverlist=pool.ntp.org,10.2.0.2" + fmt.Sprintf(system, "s-1-VM"),
	} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			args := userdata.ParseBootArgs(line)
			if problems := args.Problems(); len(problems) > 0 || args.Type() != role || args.Name() == "" {
				t.Errorf("type %q, name %q, problems %v", args.Type(), args.Name(), problems)
			}
		})
	}
}

// Every key that has a form, with a value that has it and one that has not.
func TestKindsOfKeys(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		keys         string
		right, wrong []string
	}{
		{"internaldns1 internaldns2 dns1 dns2 localgw", []string{"10.0.0.1", "2001:db8::1", "0.0.0.0", "null", ""}, []string{"10.0.0", "x", "10.0.0.1/8"}},
		{"ip6dns1 ip6dns2 eth0ip6 eth12ip6 ip6gateway guestgw6", []string{"2001:db8::1", "::", "0.0.0.0", "null"}, []string{"10.0.0.1", "2001"}},
		{"eth0ip6prelen eth3ip6prelen guestcidr6size", []string{"0", "64", "128"}, []string{"129", "-1", "/64"}},
		{"storageip storagegateway guestgw guestbrd", []string{"10.0.0.1", "0.0.0.0"}, []string{"2001:db8::1", "300.1.1.1"}},
		{"storagenetmask", []string{"255.255.255.0", "0.0.0.0"}, []string{"255.0.255.0", "24"}},
		{"mgmtcidr storagecidr vpccidr", []string{"10.0.0.0/8", "10.0.0.0/8,192.168.0.0/16"}, []string{"10.0.0.0", "10/8", "10.0.0.0/8,x"}},
		{"mtu privateMtu publicMtu", []string{"68", "9000", "null"}, []string{"67", "65536", "1500B", "99999999999999999999"}},
		{"port vncport", []string{"1", "65535"}, []string{"0", "65536"}},
		{"proxy_vm workers advert_int router_id router_pr extra_pubnics", []string{"0", "2147483647"}, []string{"-1", "two", "2147483648"}},
		{"guestcidrsize cidrsize", []string{"0", "32"}, []string{"33"}},
		{"premium sslcopy useHttpsToUpload disable_rp_filter is_routed ip6firewall has_public_network defaultroute useextdns userouteripresolver exposedns sshonguest",
			[]string{"true", "false"}, []string{"yes", "1", "TRUE"}},
		{"redundant_router", []string{"1", "0", "true", "false"}, []string{"2"}},
		{"redundant_state", []string{"PRIMARY", "BACKUP", "MASTER"}, []string{"primary"}},
		{"bootproto", []string{"dhcp", "static"}, []string{"none"}},
		{"private.network.device public.network.device", []string{"eth0", "eth12"}, []string{"ens3", "eth01"}},
		{"dhcprange", []string{"10.1.1.1", "10.1.1.1,10.1.1.9", "10.1.1.1:10.1.1.9"}, []string{"10.1.1.1-10.1.1.9"}},
		{"nic_macs", []string{"02:00:0a:01:00:01", "02:00:0a:01:00:01|02:00:0a:01:00:02"}, []string{"02:00:0a:01:00", "02:00:0a:01:00:01|", "02:00:0a:01:00:01:02:03"}},
		{"authorized_key userdata", []string{"aGVsbG8=", "null"}, []string{"aGVsbG8", "not base64"}},
		// Keys that only look like one of these have no form.
		{"xdns1 dns11 eth0ip6x mtus eth01ip6 Port", []string{"x", "-1", "yes"}, nil},
	} {
		for key := range strings.FieldsSeq(test.keys) {
			named := func(value string) (found bool) {
				args := userdata.ParseBootArgs("type=router name=r " + key + "=" + strings.ReplaceAll(value, " ", "\x01"))
				for _, problem := range args.Problems() {
					found = found || problem.Key == key && problem.Severity == userdata.SeverityWarning
				}
				return found
			}
			for _, value := range test.right {
				if named(value) {
					t.Errorf("%s=%s is a problem", key, value)
				}
			}
			for _, value := range test.wrong {
				if !named(value) {
					t.Errorf("%s=%s is no problem", key, value)
				}
			}
		}
	}
}

// C5: a key is found by its whole name and by nothing else, the last of several
// holds, and what is behind the first "=" is its value. Against a table kept
// beside the line, with keys that are parts of each other.
func TestASubstringKeyIsNeverReturned(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	separators := []string{" ", "  ", "\t", "\r\n", "\x00", "\x00\x00 "}
	word := func(letters string, least int) string {
		text := make([]byte, least+random.IntN(5))
		for i := range text {
			text[i] = letters[random.IntN(len(letters))]
		}
		return string(text)
	}
	for range 3000 {
		want := map[string]string{}
		var order []string
		line := separators[random.IntN(len(separators))]
		for range random.IntN(12) {
			key, value := word("tyx", 1), word("ty=x", 0)
			if random.IntN(4) == 0 {
				key = "type"
			}
			if _, known := want[key]; !known {
				order = append(order, key)
			}
			want[key] = value
			line += key + "=" + value + separators[random.IntN(len(separators))]
			if random.IntN(5) == 0 {
				line += []string{"word", "=type", "=", "type"}[random.IntN(4)] + " "
			}
		}
		args := userdata.ParseBootArgs(line)
		if got := args.Keys(); !slices.Equal(got, order) {
			t.Fatalf("Keys() of %q = %q, want %q", line, got, order)
		}
		if args.Type() != want["type"] {
			t.Fatalf("Type() of %q = %q, want %q", line, args.Type(), want["type"])
		}
		asked := append(slices.Clone(order), "type", "word", "")
		for _, key := range order {
			for i := range key {
				asked = append(asked, key[i:], key[:i], key+key[i:], " "+key, key+"=")
			}
		}
		for _, key := range asked {
			value, given := want[key]
			if got, ok := args.Get(key); got != value || ok != given {
				t.Fatalf("Get(%q) of %q = %q, %v; want %q, %v", key, line, got, ok, value, given)
			}
		}
	}
}

func FuzzBootArgs(f *testing.F) {
	f.Add(nodeArgs)
	f.Add(twoNICs)
	f.Add("x_type=a type=b type=c eth99999999999ip=1 eth0mask=0 =\x00=\r")
	f.Add("mtu=x nic_macs=| eth7ip6=1.2.3.4 dhcprange=:, userdata==== mgmtcidr=,")
	f.Fuzz(func(t *testing.T, text string) {
		const planted = "hunter2-and-more"
		whole := text + " vmpassword=" + planted + " userdata=" + planted
		a := userdata.ParseBootArgs(whole)
		shown := a.String() + fmt.Sprint(a.Problems(), a.Interfaces(), a.Nameservers(), a.MgmtCIDR(), a.LocalGW(), a.RootDiskBytes())
		if strings.Contains(shown, planted) && !strings.Contains(text, planted) {
			t.Errorf("secret shown in %s", shown)
		}
		// C5: each key and value is a word of the text, the last with this key.
		last := map[string]string{}
		for word := range strings.FieldsFuncSeq(whole, func(r rune) bool { return r == 0 || r == ' ' || '\t' <= r && r <= '\r' }) {
			if at := strings.IndexByte(word, '='); at > 0 {
				last[word[:at]] = word[at+1:]
			}
		}
		if len(a.Keys()) != len(last) {
			t.Errorf("keys %q of %q", a.Keys(), whole)
		}
		for _, key := range a.Keys() {
			want, known := last[key]
			if got, ok := a.Get(key); !ok || !known || got != want {
				t.Errorf("Get(%q) of %q = %q, %v; want %q", key, whole, got, ok, want)
			}
		}
	})
}

// What is no size asks for nothing, and is named; CloudStack's words for none are
// not.
func TestRootDiskBytes(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]int64{"20": 20 << 30, "8589934591": 8589934591 << 30, "": 0, "null": 0, "-1": 0,
		"0": -1, "-2": -1, "8589934592": -1, "20GB": -1, "99999999999999999999": -1} {
		args := userdata.ParseBootArgs("type=cksnode name=n eth0ip=10.1.1.5 eth0mask=255.255.255.0 rootdisksize=" + value)
		named := false
		for _, problem := range args.Problems() {
			named = named || problem.Key == "rootdisksize"
		}
		if got := args.RootDiskBytes(); got != max(want, 0) || named != (want < 0) {
			t.Errorf("rootdisksize=%s: %d bytes, named %v", value, got, named)
		}
	}
}
