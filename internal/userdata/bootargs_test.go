// SPDX-License-Identifier: Apache-2.0

package userdata_test

import (
	"encoding/json"
	"fmt"
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

func FuzzBootArgs(f *testing.F) {
	f.Add(nodeArgs)
	f.Add(twoNICs)
	f.Add("x_type=a type=b type=c eth99999999999ip=1 eth0mask=0 =\x00=\r")
	f.Fuzz(func(t *testing.T, text string) {
		a := userdata.ParseBootArgs(text + " vmpassword=hunter2-and-more")
		shown := a.String() + fmt.Sprint(a.Problems(), a.Interfaces(), a.Nameservers(), a.MgmtCIDR(), a.LocalGW())
		if strings.Contains(shown, "hunter2-and-more") {
			t.Errorf("secret shown in %s", shown)
		}
		for _, key := range a.Keys() {
			// C5: never a part of another key.
			if !strings.Contains(" "+text+" vmpassword=", key+"=") || strings.ContainsAny(key, " \t\r\n\x00=") {
				t.Errorf("key %q is none of %q", key, text)
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
