// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/agent"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/kubeadm"
	"nodeagent/internal/userdata"
)

const (
	otherID = "4a6f3c1e-0000-4000-8000-0000000000ff"
	member  = `{"phase":"member"}`
	journal = "/var/lib/nodeagent/kubeadm.json"
)

// madeMember is a made node that is a member of its cluster; its kubeadm has the
// version, and resets when it is told to.
func madeMember(t *testing.T, raw []byte, version string) (*node, *hosttest.Machine, *agent.State) {
	t.Helper()
	n, m, state := madeNode(t, raw)
	state.Installed = &agent.Installed{InstanceID: machineID, Version: "v1.34.4"}
	n.installed = state.Installed
	m.Write(kubeadm.Kubeadm, "x")
	m.Write(kubeadm.KubeletConf, "x")
	m.Write("/var/lib/etcd/member/snap", "x")
	m.Write("/etc/machine-id", "00000000000000000000000000000001\n")
	m.Write("/etc/systemd/system/kubelet.service", "x")
	m.AddUnit(host.Unit{Name: "kubelet.service", FileState: "enabled", ActiveState: "active"})
	m.Write(journal, member)
	m.Program(kubeadm.Kubeadm, func(command host.Command) (string, error) {
		if command.Args[0] == "reset" {
			return "", errors.Join(os.RemoveAll(m.Path("/etc/kubernetes")), os.RemoveAll(m.Path("/var/lib/etcd/member")))
		}
		return version + "\n", nil
	})
	return n, m, state
}

// K11: a copied disk with another instance id is a new instance: nothing makes it the
// node it was copied from, its cluster is not called, and it wants an ISO of its own.
// A kill on the way, also after the record of the first instance is gone, changes nothing.
func TestCloneIsANewInstance(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	for _, killed := range []bool{false, true} {
		n, m, state := madeMember(t, raw, "v1.34.4")
		n.instance.ID, n.installed.InstanceID = otherID, otherID
		attachDrive(t, m, raw)
		if killed { // in kubeadm reset
			m.Program(kubeadm.Kubeadm, func(host.Command) (string, error) { return "", errors.New("killed") })
			if _, err := n.fetchUserdata(t.Context(), t.Logf); err == nil {
				t.Fatal("it was not killed")
			}
			if state.Instance != nil || state.Installed == nil {
				t.Fatalf("state %+v; want the record of what was installed only", state)
			}
			again, _, _ := madeMember(t, raw, "v1.34.4")
			n = &node{host: m.Host(), update: n.update, role: again.role, args: again.args, installed: state.Installed}
			m.Program(kubeadm.Kubeadm, func(command host.Command) (string, error) {
				return "v1.34.4\n", os.RemoveAll(m.Path("/etc/kubernetes"))
			})
		}
		result, err := n.fetchUserdata(t.Context(), t.Logf)
		if err != nil || !strings.Contains(result.Note, "this disk is a copy of instance "+otherID+"'s") {
			t.Fatalf("result %+v, %v", result, err)
		}
		for _, name := range []string{kubeadm.KubeletConf, "/var/lib/etcd", journal} {
			if m.Host().Exists(name) {
				t.Errorf("%s is still there", name)
			}
		}
		if !slices.ContainsFunc(m.Actions(), func(action string) bool {
			return strings.Contains(action, "kubeadm reset") && strings.Contains(action, "--kubeconfig /run/nodeagent/no-kubeconfig")
		}) {
			t.Error("kubeadm reset did not run, or with the cluster's kubeconfig")
		}
		if id := m.Read("/etc/machine-id"); len(id) != 33 || id == "00000000000000000000000000000001\n" {
			t.Errorf("machine id %q, want a new one", id)
		}
		if n.hasISO() || state.Installed != nil || n.provisioned {
			t.Errorf("installed %+v; want a machine that waits for its ISO", state.Installed)
		}
		if result, err = n.fetchUserdata(t.Context(), t.Logf); err != nil || strings.Contains(result.Note, "copy of") {
			t.Errorf("once more: %+v, %v", result, err)
		}
	}
}

// An id alone makes no clone where the hypervisor says that the machine is the same:
// a node's data must not go because its userdata come from another source.
func TestSameMachineWithAnotherID(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	n, m, _ := madeMember(t, raw, "v1.34.4")
	m.Write("/sys/class/dmi/id/product_uuid", strings.ToUpper(machineID)+"\n")
	n.instance.ID, n.instance.SystemUUID = "i-2-34-VM", machineID
	attachDrive(t, m, raw)
	if _, err := n.fetchUserdata(t.Context(), t.Logf); err != nil || !m.Host().Exists("/var/lib/etcd/member/snap") {
		t.Errorf("%v; want etcd's data untouched", err)
	}
	for _, test := range []struct {
		was      agent.Instance
		id, uuid string
		want     bool
	}{
		{agent.Instance{ID: "a"}, "a", "", false},
		{agent.Instance{ID: "a"}, "b", "", true},
		{agent.Instance{ID: "a", SystemUUID: "1"}, "b", "2", true},
		{agent.Instance{ID: "a", SystemUUID: "1"}, "b", "1", false},
		{agent.Instance{ID: "a", SystemUUID: "1"}, "b", "", true},
		{agent.Instance{}, "b", "2", false},
	} {
		if got := isClone(test.was, test.id, test.uuid); got != test.want {
			t.Errorf("isClone(%+v, %q, %q) = %v", test.was, test.id, test.uuid, got)
		}
	}
}

// A copied control node's etcd must not speak to the original's cluster as its member:
// on a machine with another UUID the kubelet is off before anything else, until the
// userdata say that it is the same instance after all.
func TestMovedMachine(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	for _, same := range []bool{false, true} {
		n, m, state := madeMember(t, raw, "v1.34.4")
		m.Write("/sys/class/dmi/id/product_uuid", otherID)
		n.instance.SystemUUID, n.provisioned = machineID, false
		if _, err := n.findRole(t.Context(), t.Logf); err != nil || !strings.Contains(m.String(), "unit kubelet.service: disabled inactive") {
			t.Fatalf("after step role (%v):\n%s", err, m)
		}
		if !same {
			result, err := n.compareUserdata(nil, errors.New("no router"))
			if err == nil {
				err = n.settleMove(t.Context(), &result)
			}
			if err != nil || len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0].Error(), "the kubelet stays off") || !strings.Contains(m.String(), "disabled inactive") {
				t.Errorf("without userdata: %+v, %v\n%s", result, err, m)
			}
			continue
		}
		attachDrive(t, m, raw)
		result, err := n.fetchUserdata(t.Context(), t.Logf)
		if err != nil || !strings.HasSuffix(result.Note, "the same instance on another machine, "+otherID) || state.Instance.SystemUUID != otherID {
			t.Errorf("result %+v, %v, record %+v", result, err, state.Instance)
		}
		if !strings.Contains(m.String(), "unit kubelet.service: enabled active") || !m.Host().Exists("/var/lib/etcd/member/snap") {
			t.Errorf("the node does not go on\n%s", m)
		}
		if n.moved() {
			t.Error("it counts as moved once more")
		}
	}
}

// Contract 5.5: a member that is asked to run again stays one, with the version it was
// upgraded to, whatever its userdata say; one that the server has taken out is made anew.
func TestMadeAgainByMembership(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	n, m, _ := madeMember(t, raw, "v1.35.1")
	attachDrive(t, m, raw)
	removeSemaphores(t, m)
	result, err := n.fetchUserdata(t.Context(), t.Logf)
	if err != nil || !strings.HasSuffix(result.Note, "; stays in its cluster, with Kubernetes v1.35.1") {
		t.Fatalf("result %+v, %v", result, err)
	}
	if !n.hasISO() || n.version() != "v1.35.1" || !m.Host().Exists(kubeadm.KubeletConf) || m.Read(journal) != member {
		t.Errorf("version %s, ISO on the disk %v; want the member as it was", n.version(), n.hasISO())
	}

	n, m, _ = madeMember(t, raw, "v1.35.1")
	attachDrive(t, m, raw)
	removeSemaphores(t, m)
	if err := os.Remove(m.Path(kubeadm.KubeletConf)); err != nil { // kubeadm reset -f, by the server
		t.Fatal(err)
	}
	if _, err := n.fetchUserdata(t.Context(), t.Logf); err != nil || m.Host().Exists(journal) || n.hasISO() {
		t.Errorf("%v, journal %v, ISO on the disk %v; want a machine that joins, from an ISO of its version", err, m.Host().Exists(journal), n.hasISO())
	}
}

// A reboot after an upgrade, by nodeagent or by CloudStack's own upgrade-kubernetes.sh
// (which no record knows of), takes nothing from an ISO, and waits for none.
func TestRebootAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	for _, recorded := range []string{"v1.34.4", "v1.35.1"} {
		n, m, _ := madeMember(t, raw, "v1.35.1")
		n.installed.Version = recorded
		attachDrive(t, m, raw)
		if result, err := n.fetchUserdata(t.Context(), t.Logf); err != nil || !result.Skipped {
			t.Fatalf("userdata: %+v, %v", result, err)
		}
		for _, step := range bootPlan(n) {
			if !slices.Contains([]string{"iso", "install", "containerd", "images", "release", "kubeadm", "add-ons"}, step.Name) {
				continue
			}
			if result, err := step.Run(t.Context(), t.Logf); err != nil || !result.Skipped {
				t.Errorf("recorded %s: step %s: %+v, %v; want skipped", recorded, step.Name, result, err)
			}
		}
		if actions := m.Actions(); len(actions) > 0 {
			t.Errorf("done: %q, want nothing", actions)
		}
	}
}

// golden compares with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(file); err != nil || got != string(want) {
		t.Errorf("differs from %s (%v):\n%s", file, err, got)
	}
}

// What a reset removes is shown first; a kill between any two records, and the next
// call does the rest; after it the machine is one that nodeagent never ran on.
func TestReset(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	_, m, _ := madeMember(t, raw, "v1.34.4")
	m.Write(agent.StateFile, `{"schemaVersion":1,"bootID":"boot-1","role":"cksnode","owner":"nodeagent","node":"prod1-control-1","started":"2026-11-20T10:00:00Z","steps":[],"warnings":[],"cloudInit":"`+machineID+`"}`)
	m.Write("/var/lib/nodeagent/boot-args.json", "{}")
	plan := func() *nodeReset {
		plan, err := planNodeReset(m.Host(), kubeadm.ResetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return plan
	}
	golden(t, "reset.golden", plan().String())
	killed := plan()
	killed.files = killed.files[:1]
	if err := killed.run(t.Context(), m.Host(), t.Logf); err != nil {
		t.Fatal(err)
	}
	if rest := plan(); rest.empty() {
		t.Error("nothing is left to do after a kill")
	}
	if err := plan().run(t.Context(), m.Host(), t.Logf); err != nil {
		t.Fatal(err)
	}
	if rest := plan(); !rest.empty() || rest.String() != "nothing to reset\n" {
		t.Errorf("left: %s", rest)
	}
	if m.Host().Exists(successFile) || userdata.ReadSemaphores(m.Host(), machineID) == userdata.SemaphoresSet || !m.Host().Exists("/var/lib/nodeagent/boot-args.json") {
		t.Error("the marker or cloud-init's semaphores are there, or the boot args are gone")
	}
	if report, err := readStatus(t.Context(), m.Host()); err != nil || report.exitCode() != statusIdle {
		t.Errorf("status %+v, %v; want never ran", report, err)
	}
}

// A router is no node.
func TestResetRefuses(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write(agent.StateFile, `{"schemaVersion":1,"bootID":"boot-1","role":"router","owner":"cloudstack","started":"2026-11-20T10:00:00Z","steps":[],"warnings":[]}`)
	if _, err := planNodeReset(m.Host(), kubeadm.ResetOptions{}); err == nil || !strings.Contains(err.Error(), "this machine is a router") {
		t.Errorf("error = %v", err)
	}
}

// It goes without asking only when told to; --dry-run asks nobody.
func TestResetAsks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args  []string
		usage bool // wrong
		gone  bool
	}{
		{[]string{}, true, false},
		{[]string{"--dry-run"}, false, false},
		{[]string{"--dry-run", "--force"}, false, false},
		{[]string{"--force"}, false, true},
	} {
		m := hosttest.New(t)
		m.Write(successFile, "true\n")
		var out bytes.Buffer
		cmd := resetCommand(m.Host())
		cmd.SetArgs(test.args)
		cmd.SetIn(strings.NewReader("yes\n"))
		cmd.SetOut(&out)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.ExecuteContext(t.Context())
		var usage usageError
		if errors.As(err, &usage) != test.usage || (err != nil) != test.usage || m.Host().Exists(successFile) == test.gone {
			t.Errorf("reset %v: %v, marker still there: %v\n%s", test.args, err, m.Host().Exists(successFile), &out)
		}
	}
}
