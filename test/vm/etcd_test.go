// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/test/cloud"
	"nodeagent/test/iso"
	"nodeagent/test/lab"
	"nodeagent/test/template"
)

// Two nodes for etcd alone and a control node on them, as CloudStack 4.21 makes them;
// then the etcd nodes lose their power and come back with their data.
func TestClusterExternalEtcd(t *testing.T) {
	ctx, l := newLabWith(t, template.Options{}, 60*time.Minute)
	path, err := iso.Build(ctx, os.Stderr, iso.Options{Version: lab.Version})
	if err != nil {
		t.Fatal(err)
	}
	var members []cloud.EtcdMember
	for i, address := range []string{"10.1.1.71", "10.1.1.72"} {
		members = append(members, cloud.EtcdMember{Name: fmt.Sprintf("prod1-etcd-%d", i+1), Address: netip.MustParseAddr(address)})
	}
	spec, params, err := l.ControlNodeSpec("prod1-control-1", netip.MustParseAddr("10.1.1.57"), members...)
	if err != nil {
		t.Fatal(err)
	}
	var etcd []*cloud.Machine
	for _, member := range members {
		spec, err := l.EtcdSpec(member.Name, params)
		if err != nil {
			t.Fatal(err)
		}
		etcd = append(etcd, boot(t, ctx, l, spec))
	}
	control := boot(t, ctx, l, spec)
	for _, m := range append(slices.Clone(etcd), control) {
		if err := m.InsertISO(ctx, path); err != nil {
			t.Fatal(err)
		}
	}
	boots := map[*cloud.Machine]string{}
	for _, m := range append(slices.Clone(etcd), control) {
		status, code := follow(t, ctx, m, "")
		// CloudStack's etcd has no encryption, which is said.
		if code != 2 || len(status.Warnings) != 1 || status.Warnings[0].Code != "etcd-unencrypted" {
			t.Fatalf("%s: exit code %d, failures %v, warnings %v", m.Spec.Name, code, status.Failures(), status.Warnings)
		}
		boots[m] = status.BootID
		wantGates(t, ctx, m)
	}
	for _, m := range etcd {
		awaitHealth(t, ctx, m, "etcd", "2 of 2 members work")
	}
	checks := cloud.Checks{Cloud: l.Cloud, Control: control.Address, Key: l.Key}
	if err := checks.WaitNodes(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if pods := output(t, ctx, control, "/opt/bin/kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "get", "pods", "-n", "kube-system", "-o", "name"); strings.Contains(pods, "/etcd-") {
		t.Errorf("the control node has an etcd of its own:\n%s", pods)
	}

	for _, m := range etcd {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range etcd {
		if err := m.PowerOn(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.DeliverBootArgs(ctx, m.Spec.BootArgs); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range etcd {
		status, code := follow(t, ctx, m, boots[m])
		if code != 0 && code != 2 {
			t.Fatalf("%s after its power cut: exit code %d, failures %v", m.Spec.Name, code, status.Failures())
		}
		wantSteps(t, status, map[string]string{"iso": "skipped", "install": "skipped", "etcd": "done"})
	}
	if err := checks.WaitNodes(ctx, 1); err != nil {
		t.Error(err)
	}
}
