// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"nodeagent/test/cloud"
	"nodeagent/test/iso"
	"nodeagent/test/lab"
	"nodeagent/test/template"
)

// oldVersion is what a cluster is upgraded from.
const oldVersion = "1.33.13"

// C16, C30: a control node goes to the version of a new ISO; a reboot afterwards, with
// userdata that still name the old one, undoes nothing. Then it is reset, and the next
// boot makes it anew from what is in its drive. In the end the management server's own
// way to upgrade does so too, and no reboot undoes it (contract 5.4).
func TestClusterUpgradeAndReset(t *testing.T) {
	ctx, l := newLabWith(t, template.Options{}, 100*time.Minute)
	isos := map[string]string{}
	for _, version := range []string{oldVersion, lab.Version} {
		path, err := iso.Build(ctx, os.Stderr, iso.Options{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		isos[version] = path
	}
	spec, params, err := l.ControlNodeSpec("prod1-control-1", netip.MustParseAddr("10.1.1.57"))
	if err != nil {
		t.Fatal(err)
	}
	params.Version = oldVersion
	if spec.Userdata, err = cloud.ControlNodeUserdata(params); err != nil {
		t.Fatal(err)
	}
	m := boot(t, ctx, l, spec)
	if err := m.InsertISO(ctx, isos[oldVersion]); err != nil {
		t.Fatal(err)
	}
	status, code := follow(t, ctx, m, "")
	if code != 0 && code != 2 {
		t.Fatalf("exit code %d, phase %s, failures %v", code, status.Phase, status.Failures())
	}
	sudo := func(command string) string {
		t.Helper()
		out, err := l.Cloud.SSH(ctx, netip.AddrPortFrom(m.Address, 22), "cloud", l.Key, "sudo "+command)
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		t.Logf("%s\n%s", command, out)
		return out
	}
	kubelet := func() string {
		return strings.TrimSpace(sudo("/opt/bin/kubectl get node prod1-control-1 -o jsonpath={.status.nodeInfo.kubeletVersion}"))
	}
	if got := kubelet(); got != "v"+oldVersion {
		t.Fatalf("the kubelet is %s, want v%s", got, oldVersion)
	}

	if err := m.InsertISO(ctx, isos[lab.Version]); err != nil {
		t.Fatal(err)
	}
	if plan := sudo("nodeagent upgrade --dry-run"); !strings.Contains(plan, "kubeadm upgrade apply v"+lab.Version) {
		t.Fatalf("the plan is\n%s", plan)
	}
	sudo("nodeagent upgrade")
	if got := kubelet(); got != "v"+lab.Version {
		t.Fatalf("the kubelet is %s, want v%s", got, lab.Version)
	}
	if out := sudo("nodeagent upgrade"); !strings.Contains(out, "nothing to do") {
		t.Errorf("a second upgrade says\n%s", out)
	}
	if err := m.EjectISO(ctx); err != nil {
		t.Fatal(err)
	}
	first := status.BootID
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if status, code = follow(t, ctx, m, first); code != 0 && code != 2 {
		t.Fatalf("after the reboot: exit code %d, failures %v", code, status.Failures())
	}
	wantSteps(t, status, map[string]string{"iso": "skipped", "install": "skipped", "kubeadm": "skipped", "ready": "done"})
	if got := kubelet(); got != "v"+lab.Version {
		t.Errorf("after the reboot the kubelet is %s, want v%s", got, lab.Version)
	}

	sudo("nodeagent reset --force")
	if out := sudo("nodeagent reset --dry-run"); !strings.Contains(out, "nothing to reset") {
		t.Errorf("after a reset there is more to do\n%s", out)
	}
	if err := m.InsertISO(ctx, isos[oldVersion]); err != nil {
		t.Fatal(err)
	}
	second := status.BootID
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if status, code = follow(t, ctx, m, second); code != 0 && code != 2 {
		t.Fatalf("after the reset: exit code %d, failures %v", code, status.Failures())
	}
	wantSteps(t, status, map[string]string{"iso": "done", "kubeadm": "done", "ready": "done"})
	if got := kubelet(); got != "v"+oldVersion {
		t.Errorf("after the reset the kubelet is %s, want v%s", got, oldVersion)
	}

	// The management server upgrades by a script of its own.
	if err := m.InsertISO(ctx, isos[lab.Version]); err != nil {
		t.Fatal(err)
	}
	checks := cloud.Checks{Cloud: l.Cloud, Control: m.Address, Key: l.Key}
	if out, err := checks.Upgrade(ctx, "prod1-control-1", m.Address, lab.Version, true); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantGates(t, ctx, m)
	third := status.BootID
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if status, code = follow(t, ctx, m, third); code != 0 && code != 2 {
		t.Fatalf("after the server's upgrade and a reboot: exit code %d, failures %v", code, status.Failures())
	}
	if got := kubelet(); got != "v"+lab.Version {
		t.Errorf("after the server's upgrade and a reboot the kubelet is %s, want v%s", got, lab.Version)
	}
}
