// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// cloudStackEtcd is what CloudStack's userdata of an etcd node ask for, with its client
// URL where a test wants it.
func cloudStackEtcd(clients string) EtcdPlan {
	return EtcdPlan{Name: "etcd-1", State: "new", Token: "etcd-cluster-1",
		InitialCluster: "etcd-1=http://10.1.1.61:2380,etcd-2=http://10.1.1.62:2380,etcd-3=http://10.1.1.63:2380",
		Flags: []string{"--initial-advertise-peer-urls", "http://10.1.1.61:2380", "--listen-peer-urls", "http://10.1.1.61:2380",
			"--advertise-client-urls", "http://10.1.1.61:2379", "--listen-client-urls", clients}}
}

// C29: an explicit data folder, a notifying unit, and no way to begin anew later.
func TestEtcdUnit(t *testing.T) {
	t.Parallel()
	plan, there, err := cloudStackEtcd("http://10.1.1.61:2379,http://127.0.0.1:2379").withData(testMachine(t).Host())
	if err != nil || there {
		t.Fatalf("data there: %v, %v", there, err)
	}
	for name, joined := range map[string]bool{"new": false, "joined": true} {
		text, err := plan.unit(joined)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "etcd/"+name+".service", []byte(text))
	}
	for _, word := range []string{"a b", "x\nExecStartPre=/bin/false", "$HOME", "%n", `"`} {
		hostile := plan
		hostile.Flags = append(slices.Clone(plan.Flags), word)
		if _, err := hostile.unit(false); err == nil {
			t.Errorf("the word %q stands in the unit", word)
		}
	}
}

// healthServer plays an etcd that answers what answer holds.
func healthServer(t *testing.T, answer func() string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, answer())
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func healthy() string { return `{"health":"true","reason":""}` }

// A member is started once; a second run changes nothing, one with other flags restarts.
func TestMakeEtcd(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	m.AddUnit(host.Unit{Name: etcdUnit})
	plan := cloudStackEtcd(healthServer(t, healthy))
	member, err := MakeEtcd(t.Context(), m.Host(), plan, discard)
	if err != nil {
		t.Fatal(err)
	}
	if text := member.String(); text != "member etcd-1 of 3, data in /var/lib/etcd; it goes on without 1 of them" || !slices.Contains(member.URLs, "http://10.1.1.61:2380") {
		t.Errorf("member %s at %q", text, member.URLs)
	}
	want := []string{"enable etcd.service", "daemon-reload", "restart etcd.service", "daemon-reload"}
	if done := m.Actions(); !slices.Equal(done, want) {
		t.Errorf("did %q, want %q", done, want)
	}
	// etcd itself would have written it.
	m.Write("/var/lib/etcd/member/wal/0000000000000000-0000000000000000.wal", string(walOf(t, plan)))
	if _, err := MakeEtcd(t.Context(), m.Host(), plan, discard); err != nil {
		t.Fatal(err)
	}
	if done := m.Actions(); len(done) > 0 {
		t.Errorf("the second run did %q", done)
	}
	plan.Flags = append(plan.Flags, "--quota-backend-bytes=8589934592")
	if _, err := MakeEtcd(t.Context(), m.Host(), plan, discard); err != nil {
		t.Fatal(err)
	}
	if done := m.Actions(); !slices.Equal(done, []string{"daemon-reload", "restart etcd.service"}) {
		t.Errorf("with another flag it did %q", done)
	}
	if detail, err := EtcdHealthy(t.Context(), m.Host()); err != nil || !strings.Contains(detail, "has a quorum") {
		t.Errorf("healthy: %q, %v", detail, err)
	}
}

// A member without a leader is waited for, and named when the time is over.
func TestMakeEtcdWaitsForTheQuorum(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	m.AddUnit(host.Unit{Name: etcdUnit})
	ctx, cancel := context.WithCancel(t.Context())
	plan := cloudStackEtcd(healthServer(t, func() string { return `{"health":"false","reason":"RAFT NO LEADER"}` }))
	_, err := MakeEtcd(ctx, m.Host(), plan, func(string, ...any) { cancel() })
	wantCode(t, err, fault.EtcdUnhealthy, "RAFT NO LEADER")
	if settled(m.Read(etcdService)) {
		t.Error("a member that has not joined would never begin")
	}
}

// walOf is the beginning of a log as etcd writes it for the plan's member.
func walOf(t *testing.T, plan EtcdPlan) []byte {
	t.Helper()
	cluster, members := plan.ids()
	varint := func(n uint64) (out []byte) {
		for ; n >= 0x80; n >>= 7 {
			out = append(out, byte(n)|0x80)
		}
		return append(out, byte(n))
	}
	metadata := append(append([]byte{0x08}, varint(members[plan.Name])...), append([]byte{0x10}, varint(cluster)...)...)
	record := append([]byte{0x08, 1, 0x10, 0, 0x1a, byte(len(metadata))}, metadata...)
	return append([]byte{byte(len(record)), 0, 0, 0, 0, 0, 0, 0}, record...)
}

// The log of etcd 3.6.5, whose own words for the two are in its log.
func TestParseWAL(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/etcd/member.wal")
	if err != nil {
		t.Fatal(err)
	}
	cluster, member, err := parseWAL(data)
	if err != nil || cluster != 0x334bc059222cc046 || member != 0x6e6485fcf4156072 {
		t.Errorf("parseWAL = %x, %x, %v", cluster, member, err)
	}
	own := EtcdPlan{Name: "etcd-1", InitialCluster: "etcd-1=http://127.0.0.1:23980", Token: "etcd-cluster-1"}
	if of, members := own.ids(); of != cluster || members["etcd-1"] != member {
		t.Errorf("ids = %x, %x", of, members)
	}
	for _, broken := range [][]byte{nil, data[:7], data[:20], bytes.Repeat([]byte{0xff}, 64), make([]byte, 64)} {
		if _, _, err := parseWAL(broken); err == nil {
			t.Errorf("% x is a log", broken)
		}
	}
}

func FuzzParseWAL(f *testing.F) {
	data, err := os.ReadFile("testdata/etcd/member.wal")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		cluster, member, err := parseWAL(data)
		if (err == nil) != (cluster != 0 && member != 0) {
			t.Errorf("%x, %x, %v", cluster, member, err)
		}
	})
}

// C29: what lies in the data folder decides, and a file that is no log is nobody's.
func TestEtcdDataNotOurs(t *testing.T) {
	t.Parallel()
	const log = "member/wal/0000000000000000-0000000000000000.wal"
	other := cloudStackEtcd("")
	other.Token = "other"
	second := cloudStackEtcd("")
	second.Name = "etcd-2"
	for name, test := range map[string]struct {
		file, text string
		state      string
		dataDir    string
		want       string
	}{
		"another cluster":     {"/var/lib/etcd/" + log, string(walOf(t, other)), "new", "", "another cluster"},
		"another member":      {"/var/lib/etcd/" + log, string(walOf(t, second)), "new", "", "data of member etcd-2"},
		"no log":              {"/var/lib/etcd/" + log, "garbage", "new", "", "cannot tell whose"},
		"in the folder given": {"/data/" + log, string(walOf(t, other)), "new", "/data", "/data holds"},
		"of the own unit":     {"/etcd-1.etcd/" + log, string(walOf(t, other)), "new", "", "/etcd-1.etcd holds"},
		"joined later":        {"/var/lib/etcd/" + log, string(walOf(t, other)), "existing", "", ""},
		"snapshots only":      {"/var/lib/etcd/member/snap/db", "", "new", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := hosttest.New(t)
			m.Write(test.file, test.text)
			plan := cloudStackEtcd("http://127.0.0.1:1")
			plan.State = test.state
			if test.dataDir != "" {
				plan.Flags = append(plan.Flags, "--data-dir="+test.dataDir)
			}
			if test.want == "" {
				if _, _, err := plan.withData(m.Host()); err != nil {
					t.Error(err)
				}
				return
			}
			_, err := MakeEtcd(t.Context(), m.Host(), plan, discard)
			wantCode(t, err, fault.EtcdDataForeign, test.want)
			if done := m.Actions(); len(done) > 0 || m.Host().Exists(etcdService) {
				t.Errorf("did %q", done)
			}
		})
	}
}

// Contract 11.18: the archive is called amd64 on every machine; what counts is what is
// in it. An ISO that was built without etcd is named as such.
func TestInstallEtcd(t *testing.T) {
	t.Parallel()
	const archive = "etcd/etcd-linux-amd64.tar.gz"
	with := func(files map[string]string) (*hosttest.Machine, *Bundle) {
		all := bundleFiles(t, "v1.34.4")
		if files != nil {
			all[archive] = tarGz(t, files)
		}
		return mounted(t, all)
	}
	files := map[string]string{"etcd-v3.6.5-linux-amd64/etcd": program(runtime.GOARCH, "etcd"), "etcd-v3.6.5-linux-amd64/etcdctl": program(runtime.GOARCH, "etcdctl"),
		"etcd-v3.6.5-linux-amd64/README.md": "read", "etcd-v3.6.5-linux-amd64/Documentation/etcd": "not this one"}
	m, bundle := with(files)
	for i, want := range []bool{true, false} {
		if changed, err := InstallEtcd(t.Context(), m.Host(), bundle); err != nil || changed != want {
			t.Fatalf("run %d: changed %v, %v", i+1, changed, err)
		}
	}
	if m.Read("/opt/bin/etcd") != program(runtime.GOARCH, "etcd") || m.Read("/opt/bin/etcdctl") != program(runtime.GOARCH, "etcdctl") || m.Host().Exists("/opt/bin/README.md") {
		t.Error("not what the archive has")
	}
	m, bundle = with(nil)
	_, err := InstallEtcd(t.Context(), m.Host(), bundle)
	wantCode(t, err, fault.ISOIncomplete, "etcd/etcd*.tar.gz")
	m, bundle = with(map[string]string{"etcd": program(otherArch(), "etcd")})
	_, err = InstallEtcd(t.Context(), m.Host(), bundle)
	wantCode(t, err, fault.ISOInvalid, "this machine is "+runtime.GOARCH)
	m, bundle = with(map[string]string{"etcdctl": program(runtime.GOARCH, "etcdctl")})
	_, err = InstallEtcd(t.Context(), m.Host(), bundle)
	wantCode(t, err, fault.ISOInvalid, "has no etcd in it")
}

func otherArch() string {
	if runtime.GOARCH == "arm64" {
		return "amd64"
	}
	return "arm64"
}

// Whoever waits for the others is told for which.
func TestMissingPeers(t *testing.T) {
	t.Parallel()
	there := healthServer(t, healthy)
	gone := fmt.Sprintf("http://127.0.0.1:%d", freePorts(t, 1)[0])
	if text := missingPeers(t.Context(), EtcdMember{peers: []string{there, gone}}); !strings.HasPrefix(text, gone+": ") || strings.Contains(text, there+":") {
		t.Errorf("missing: %s", text)
	}
	if text := missingPeers(t.Context(), EtcdMember{peers: []string{there}}); !strings.Contains(text, "no quorum yet") {
		t.Errorf("missing: %s", text)
	}
}

// Two etcds with one member's identity must not meet: a machine that may be a copy holds
// its etcd back as it does its kubelet.
func TestHoldEtcd(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.AddUnit(host.Unit{Name: etcdUnit, FileState: "enabled", ActiveState: "active"})
	m.Write(etcdService, "")
	if err := HoldKubelet(t.Context(), m.Host()); err != nil {
		t.Fatal(err)
	}
	if err := LetKubeletGo(t.Context(), m.Host()); err != nil {
		t.Fatal(err)
	}
	if done := m.Actions(); !slices.Equal(done, []string{"disable etcd.service", "stop etcd.service", "enable etcd.service", "start etcd.service"}) {
		t.Errorf("did %q", done)
	}
}
