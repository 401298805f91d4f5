// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/roles"
	"nodeagent/internal/userdata"
	"nodeagent/test/cloud"
)

const (
	machineID  = "4a6f3c1e-0000-4000-8000-00000000c051"
	semaphore  = "/var/lib/cloud/instances/" + machineID + "/sem/config_runcmd"
	driveLabel = "config drive /dev/sr0 (label config-2)"
)

// madeNode is a boot of a control node that was made of this userdata on an earlier
// boot, and the state file it writes.
func madeNode(t *testing.T, raw []byte) (*node, *hosttest.Machine, *agent.State) {
	t.Helper()
	m := hosttest.New(t)
	m.Write(successFile, "true\n")
	m.Write(semaphore, "")
	state := &agent.State{CloudInit: machineID, Instance: &agent.Instance{ID: machineID, Mode: "init", By: userdata.HandoverNodeagent,
		UserdataSHA256: userdata.Userdata{Raw: raw}.Digest()}}
	role, err := roles.Find(kubernetesRole)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{host: m.Host(), update: func(change func(*agent.State)) { change(state) }, provisioned: true, role: role,
		args: userdata.ParseBootArgs(nodeArgs), instance: state.Instance, cloudInit: state.CloudInit}
	return n, m, state
}

// attachDrive puts a config drive with this userdata into the machine's CD drive.
func attachDrive(t *testing.T, m *hosttest.Machine, raw []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "drive")
	drive := cloud.ConfigDrive{Userdata: raw, Metadata: map[string]string{"vm-id": machineID, "local-hostname": "prod1-control-1"}}
	if err := drive.Build(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m.Write("/sys/class/block/sr0/size", "800\n")
	m.Write("/dev/sr0", string(image))
}

// removeSemaphores is what CloudStack's server does: rm -rf .../sem/*
func removeSemaphores(t *testing.T, m *hosttest.Machine) {
	t.Helper()
	if err := os.Remove(m.Path(semaphore)); err != nil {
		t.Fatal(err)
	}
}

// Contract 5.3: a stopped cluster that is started has the same userdata; nothing
// may happen to it.
func TestMadeNodeWithTheSameUserdata(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	n, m, state := madeNode(t, raw)
	attachDrive(t, m, raw)
	result, err := n.fetchUserdata(t.Context(), t.Logf)
	if err != nil || !result.Skipped || result.Note != "done on an earlier boot; the userdata is the same" || len(result.Warnings) > 0 {
		t.Errorf("result %+v, %v; want skipped", result, err)
	}
	if !n.provisioned || state.Instance == nil || state.CloudInit != machineID || !n.host.Exists(successFile) || !n.makesKubernetes() {
		t.Errorf("node %v, state %+v; want a node that is made", n.provisioned, state)
	}
}

// Contract 5.5: other userdata or removed semaphores make the machine again, also
// when the power is cut between any two steps of it.
func TestMadeNodeIsMadeAgain(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	other := append([]byte{}, raw...)
	other = append(other, "# changed\n"...)
	for _, test := range []struct {
		name, why string
		raw       []byte
		removed   bool
	}{
		{"changed", "changed: the userdata is another", other, false},
		{"asked", "asked to run again: cloud-init's semaphores were removed", raw, true},
		{"both", "asked to run again: cloud-init's semaphores were removed and the userdata is another", other, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n, m, state := madeNode(t, raw)
			attachDrive(t, m, test.raw)
			if test.removed {
				removeSemaphores(t, m)
			}
			var order []string
			update := n.update
			n.update = func(change func(*agent.State)) {
				update(change)
				order = append(order, fmt.Sprintf("record %v cloud-init %q marker %v", state.Instance != nil, state.CloudInit, n.host.Exists(successFile)))
			}
			result, err := n.fetchUserdata(t.Context(), t.Logf)
			if err != nil || result.Skipped || result.Note != "init, from "+driveLabel+"; "+test.why {
				t.Errorf("result %+v, %v; want a note that ends in %q", result, err, test.why)
			}
			if n.provisioned || n.cloudInit != "" || state.Instance != nil || n.host.Exists(successFile) || !n.makesKubernetes() || n.instanceID() != machineID {
				t.Errorf("node provisioned %v, state %+v; want a node to be made", n.provisioned, state)
			}
			want := `[record true cloud-init "" marker true record false cloud-init "" marker false]`
			if got := fmt.Sprint(order); got != want {
				t.Errorf("states on the way: %s, want %s", got, want)
			}
			if err := n.forgetHalfDone(context.Background()); err != nil || n.host.Exists(semaphore) {
				t.Errorf("cloud-init's semaphores are still there (%v)", err)
			}
		})
	}
}

// Userdata that cannot be used do not take a working node apart.
func TestMadeNodeWithBrokenUserdata(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	n, m, state := madeNode(t, raw)
	attachDrive(t, m, raw[:len(raw)/2])
	result, err := n.fetchUserdata(t.Context(), t.Logf)
	if err != nil || !result.Skipped || len(result.Warnings) != 1 || fault.As(result.Warnings[0]).Code != fault.UserdataInvalid ||
		!strings.Contains(result.Warnings[0].Error(), "the userdata is another, but cannot be used; the machine stays as it is") {
		t.Errorf("result %+v, %v; want skipped with one warning", result, err)
	}
	if !n.provisioned || state.Instance == nil || !n.host.Exists(successFile) {
		t.Errorf("the node is not made any more: %+v", state)
	}
}

// A node works without its router: that it is gone is worth a word only when the
// server asked for something.
func TestMadeNodeWithoutUserdata(t *testing.T) {
	t.Parallel()
	n, m, _ := madeNode(t, controlUserdata(t))
	gone := fault.New(fault.UserdataUnreachable, "no userdata after 10s: default gateway: no answer")
	result, err := n.compareUserdata(nil, gone)
	if err != nil || !result.Skipped || len(result.Warnings) > 0 || !n.provisioned {
		t.Errorf("result %+v, %v; want skipped without a warning", result, err)
	}
	removeSemaphores(t, m)
	result, err = n.compareUserdata(nil, gone)
	if err != nil || !result.Skipped || !n.provisioned || len(result.Warnings) != 1 || !errors.Is(result.Warnings[0], gone) {
		t.Errorf("asked to run again: result %+v, %v; want skipped with a warning that names the router", result, err)
	}
}

// A node made by an earlier nodeagent, or by CloudStack's scripts, has nothing to
// compare with; the former takes note for the next time.
func TestMadeNodeWithoutRecord(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	n, m, state := madeNode(t, raw)
	attachDrive(t, m, raw)
	state.Instance.UserdataSHA256 = ""
	result, err := n.fetchUserdata(t.Context(), t.Logf)
	if err != nil || !result.Skipped || state.Instance.UserdataSHA256 != (userdata.Userdata{Raw: raw}).Digest() {
		t.Errorf("result %+v, %v, record %+v; want skipped and recorded", result, err, state.Instance)
	}
	n, _, _ = madeNode(t, raw)
	n.instance = nil
	if result, err = n.fetchUserdata(t.Context(), t.Logf); err != nil || !result.Skipped || result.Note != "done on an earlier boot" {
		t.Errorf("result %+v, %v; want skipped", result, err)
	}
}

// An etcd node is cloud-init's and gets no success marker: later boots neither need
// the router nor write the seed anew, but cloud-init runs as on any boot.
func TestHandedOverNodeOnALaterBoot(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	n, m, state := madeNode(t, raw)
	state.Instance.By = userdata.HandoverCloudInit
	n.provisioned = false
	if _, err := n.host.Remove(successFile); err != nil {
		t.Fatal(err)
	}
	for _, unit := range n.role.OnDemand {
		m.AddUnit(host.Unit{Name: unit, LoadState: "loaded", FileState: "disabled", ActiveState: "inactive"})
	}
	if _, err := n.findRole(t.Context(), t.Logf); err != nil || !n.provisioned || n.makesKubernetes() {
		t.Fatalf("provisioned %v, nodeagent's %v, %v; want a machine that cloud-init has", n.provisioned, n.makesKubernetes(), err)
	}
	result, err := n.compareUserdata(nil, fault.New(fault.UserdataUnreachable, "no userdata after 10s"))
	if err != nil || !result.Skipped || len(result.Warnings) > 0 {
		t.Errorf("without its router: %+v, %v; want skipped", result, err)
	}
	if result, err = n.runCloudInit(t.Context(), t.Logf); err != nil || result.Skipped || result.Note != "runs with the userdata of an earlier boot" {
		t.Errorf("cloud-init: %+v, %v; want it to run", result, err)
	}
	var want []string
	for _, unit := range n.role.OnDemand {
		want = append(want, "start "+unit)
	}
	if actions := m.Actions(); !slices.Equal(actions, want) {
		t.Errorf("done: %q, want %q", actions, want)
	}
	if !n.host.Exists(cloudInitFile) || n.host.Exists("/var/lib/cloud/seed/nocloud") {
		t.Error("want cloud-init's gate open and no seed written")
	}
}

// An administrator who has given the node longer to wait for the ISO gets it.
func TestISOPatienceFollowsTheUserdata(t *testing.T) {
	t.Parallel()
	n := &node{intent: userdata.Intent{WaitInterval: time.Minute, WaitAttempts: 90}}
	steps := bootPlan(n)
	iso := steps[slices.IndexFunc(steps, func(s agent.Step) bool { return s.Name == "iso" })]
	if got := iso.Longer(); iso.Timeout != isoTimeout || got != 90*time.Minute {
		t.Errorf("waits %s, at most %s; want %s, or 90 attempts a minute apart", iso.Timeout, got, isoTimeout)
	}
}

// What the host settings have done is in status, and that a second boot had nothing
// to do (contract 2.1, 10 item 11).
func TestHostSettingsShowInStatus(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write("/etc/shadow", "root:*:20778:0:99999:7:::\n")
	m.Write("/etc/logrotate.d/cloud", "")
	m.Write("/proc/sys/kernel/osrelease", "6.1.0\n")
	m.Write("/lib/modules/6.1.0/modules.dep", "")
	m.Write("/lib/modules/6.1.0/modules.builtin", "")
	m.AddUnit(host.Unit{Name: "systemd-timesyncd.service", FileState: "disabled"})
	for _, name := range []string{"ipv4/ip_forward", "bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables", "ipv4/conf/eth0/rp_filter"} {
		m.Write("/proc/sys/net/"+name, "7\n")
	}
	m.Program("/sbin/modprobe", func(command host.Command) (string, error) {
		for _, name := range command.Args[1:] {
			m.Write("/sys/module/"+name+"/initstate", "live\n")
		}
		return "", nil
	})
	n := &node{host: m.Host(), args: userdata.ParseBootArgs(nodeArgs + " ntpserverlist=10.0.0.1,x;y")}
	steps := bootPlan(n)
	for _, test := range []struct{ step, first, second string }{
		{"machine", "/opt/bin on the search path, /etc/logrotate.d/cloud removed", "unchanged"},
		{"time", "systemd-timesyncd asks 10.0.0.1: enabled, /etc/systemd/timesyncd.conf.d/nodeagent.conf edited", "systemd-timesyncd asks 10.0.0.1, unchanged"},
		{"iptables", "none on this template, unchanged", "none on this template, unchanged"},
		{"swap", "unchanged", "unchanged"},
		{"kernel", "wrote /etc/modules-load.d/nodeagent.conf, wrote /etc/sysctl.d/99-zz-nodeagent.conf, 7 modules loaded, 4 sysctls set", "unchanged"},
	} {
		step := steps[slices.IndexFunc(steps, func(s agent.Step) bool { return s.Name == test.step })]
		for boot, want := range []string{test.first, test.second} {
			result, err := step.Run(t.Context(), t.Logf)
			if err != nil || result.Note != want {
				t.Errorf("boot %d, step %s: %q, %v; want %q", boot, test.step, result.Note, err, want)
			}
			if test.step == "time" && (len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0].Error(), `ntpserverlist: ["x;y"]`)) {
				t.Errorf("warnings %v, want the value that is no server", result.Warnings)
			}
		}
	}
}

// The template's cloud-init waits for nodeagent, under the names its units have in
// Debian 12 and 13, and then for nothing else; CloudStack's own units come after
// nodeagent and leave its nodes alone.
func TestDropInsCoverTheTemplatesUnits(t *testing.T) {
	t.Parallel()
	settings := func(unit string) string {
		t.Helper()
		text, err := os.ReadFile("../../systemd/" + unit + ".service.d/nodeagent.conf")
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, " ")
	}
	const gate = "[Unit] ConditionPathExists= ConditionPathExists=" + cloudInitFile
	for _, unit := range []string{"cloud-init-main", "cloud-init", "cloud-init-network", "cloud-config", "cloud-final"} {
		if got := settings(unit); got != gate {
			t.Errorf("%s: %q, want %q", unit, got, gate)
		}
	}
	if got, want := settings("cloud-init-local"), gate+" Wants=cloud-init-main.service"; got != want {
		t.Errorf("cloud-init-local: %q, want %q", got, want)
	}
	if got, want := settings("cloud-init-hotplugd"), "[Unit] ConditionPathExists=!"+ownsNodeFile+" ConditionPathExists="+cloudInitFile; got != want {
		t.Errorf("cloud-init-hotplugd: %q, want %q", got, want)
	}
	for _, unit := range []string{"cloud-preinit", "cloud-early-config", "cloud-postinit"} {
		if got, want := settings(unit), "[Unit] After=nodeagent.service ConditionPathExists=!"+ownsNodeFile; got != want {
			t.Errorf("%s: %q, want %q", unit, got, want)
		}
	}
}
