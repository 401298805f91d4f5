// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// nodeFiles is what a control node has; kept are files that no reset may touch.
var (
	nodeFiles = []string{AdminConf, KubeletConf, apiManifest, "/etc/kubernetes/kubeadm-config.yaml", "/var/lib/kubelet/kubeadm-flags.env",
		etcdData + "/snap", "/etc/cni/net.d/10-podnet.conf", "/root/.kube/config", "/home/cloud/.kube/config", journalFile, upgradeJournalFile, keptFolder + "/opt/bin/kubelet",
		"/opt/bin/kubelet", "/opt/bin/kubectl", "/opt/bin/crictl", "/opt/cni/bin/bridge", "/opt/provider/provider.yaml", Manifests + "/network.yaml",
		"/etc/systemd/system/kubelet.service", "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf"}
	kept = []string{"/etc/ssh/ssh_host_rsa_key", "/home/cloud/.ssh/authorized_keys", "/etc/network/interfaces", "/opt/bin/autoscale-kube-cluster", "/var/lib/nodeagent/boot-args.json"}
)

// controlNode is a machine with all of a control node, whose kubeadm reset works.
func controlNode(t *testing.T) (m *hosttest.Machine, resets *[]string) {
	t.Helper()
	m = testMachine(t)
	for _, name := range slices.Concat(nodeFiles, kept, []string{Kubeadm}) {
		m.Write(name, "x")
	}
	m.AddUnit(host.Unit{Name: kubeletUnit, FileState: "enabled", ActiveState: "active"})
	m.Write("/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:5 / /var rw - tmpfs tmpfs rw\n")
	for _, link := range []string{"eth0", "lo", "cni0", "flannel.1", "cali0123"} {
		m.Write("/sys/class/net/"+link+"/mtu", "1500")
	}
	m.Program("/sbin/ip", func(command host.Command) (string, error) {
		return "", os.RemoveAll(m.Path("/sys/class/net/" + command.Args[2]))
	})
	resets = new([]string)
	m.Program(Kubeadm, func(command host.Command) (string, error) {
		*resets = append(*resets, strings.Join(command.Args, " "))
		for _, name := range leftovers {
			if err := os.RemoveAll(m.Path(name)); err != nil {
				return "", err
			}
		}
		return "[reset] done\n", nil
	})
	return m, resets
}

func planned(t *testing.T, m *hosttest.Machine, options ResetOptions) []ResetStep {
	t.Helper()
	steps, err := PlanReset(m.Host(), options)
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

func TestResetPlan(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	list := func(title string, steps []ResetStep) {
		fmt.Fprintf(&text, "%s\n", title)
		for _, step := range steps {
			fmt.Fprintf(&text, "  %s\n", step)
		}
	}
	m, _ := controlNode(t)
	list("control node", planned(t, m, ResetOptions{}))
	list("copy of its disk", planned(t, m, ResetOptions{Clone: true}))
	m.Write(containerdConfig, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"r.example.com\".auth]\nusername = \"joe\"\n")
	list("with a registry, and the images", planned(t, m, ResetOptions{Images: true}))
	etcd := hosttest.New(t)
	for _, name := range []string{"/opt/bin/etcd", "/etc/systemd/system/etcd.service", "/var/lib/etcd/member"} {
		etcd.Write(name, "x")
	}
	list("etcd node", planned(t, etcd, ResetOptions{}))
	list("a machine that was never a node", planned(t, hosttest.New(t), ResetOptions{}))
	golden(t, "reset-plan.txt", []byte(text.String()))
}

// C25, K1: a kill after any step; what is left is done by the next call, and kubeadm
// is still there for it.
func TestResetKilledAnywhere(t *testing.T) {
	t.Parallel()
	m, _ := controlNode(t)
	count := len(planned(t, m, ResetOptions{}))
	for done := range count {
		t.Run(fmt.Sprint(done), func(t *testing.T) {
			t.Parallel()
			m, resets := controlNode(t)
			if err := Reset(t.Context(), m.Host(), planned(t, m, ResetOptions{})[:done], discard); err != nil {
				t.Fatal(err)
			}
			if err := Reset(t.Context(), m.Host(), planned(t, m, ResetOptions{}), discard); err != nil {
				t.Fatal(err)
			}
			if left := planned(t, m, ResetOptions{}); len(left) > 0 {
				t.Errorf("left to do: %v", left)
			}
			for _, name := range slices.Concat(nodeFiles, []string{Kubeadm}) {
				if m.Host().Exists(name) {
					t.Errorf("%s is still there", name)
				}
			}
			for _, name := range kept {
				if !m.Host().Exists(name) {
					t.Errorf("%s is gone", name)
				}
			}
			if want := []string{"reset --force --cri-socket unix:///run/containerd/containerd.sock --v=5"}; !slices.Equal(*resets, want) {
				t.Errorf("kubeadm ran as %q, want %q", *resets, want)
			}
			if state := m.String(); !strings.Contains(state, "unit kubelet.service: disabled inactive") {
				t.Errorf("units\n%s", state)
			}
		})
	}
}

// A copy of a control node's disk must not take the original's etcd member out of the
// cluster, nor call it at all; programs and images stay.
func TestResetOfAClone(t *testing.T) {
	t.Parallel()
	m, resets := controlNode(t)
	if err := Reset(t.Context(), m.Host(), planned(t, m, ResetOptions{Clone: true}), discard); err != nil {
		t.Fatal(err)
	}
	if want := []string{"reset --force --cri-socket unix:///run/containerd/containerd.sock --kubeconfig " + noKubeconfig + " --v=5"}; !slices.Equal(*resets, want) {
		t.Errorf("kubeadm ran as %q, want %q", *resets, want)
	}
	for _, name := range []string{KubeletConf, etcdData, journalFile, "/etc/cni/net.d", rootKubeconfig} {
		if m.Host().Exists(name) {
			t.Errorf("%s is still there", name)
		}
	}
	if !m.Host().Exists(Kubeadm) || !m.Host().Exists("/opt/bin/kubelet") {
		t.Error("programs are gone")
	}
}

// The data of a volume that is still mounted below the kubelet's folder is not ours.
func TestResetLeavesMountedVolumes(t *testing.T) {
	t.Parallel()
	m, _ := controlNode(t)
	const data = "/var/lib/kubelet/pods/1/volumes/data"
	m.Write(data+"/precious", "x")
	m.Write("/proc/self/mountinfo", "90 22 0:5 / "+data+" rw - nfs4 server:/ rw\n")
	err := Reset(t.Context(), m.Host(), planned(t, m, ResetOptions{}), discard)
	if err == nil || fault.As(err).Code != fault.ResetFailed || !strings.Contains(err.Error(), data+" is mounted there") {
		t.Errorf("error = %v", err)
	}
	if m.Read(data+"/precious") != "x" {
		t.Error("the volume is empty")
	}
	// A disk of its own for etcd is no volume: what is on it goes.
	m.Write("/proc/self/mountinfo", "91 22 254:16 / /var/lib/etcd rw - ext4 /dev/vdb rw\n")
	for range 2 {
		if err := Reset(t.Context(), m.Host(), planned(t, m, ResetOptions{}), discard); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(m.Path("/var/lib/etcd")); err != nil || len(entries) > 0 {
		t.Errorf("/var/lib/etcd has %v (%v), want the empty mount point", entries, err)
	}
}

// Where kubeadm reset fails nothing more goes, so that it can be called again.
func TestResetStopsAtKubeadm(t *testing.T) {
	t.Parallel()
	m, _ := controlNode(t)
	m.Program(Kubeadm, func(host.Command) (string, error) {
		return "error: something new\n", &host.CommandError{ExitCode: 1, Err: errors.New(exitStatus)}
	})
	err := Reset(t.Context(), m.Host(), planned(t, m, ResetOptions{}), discard)
	if failed := fault.As(err); err == nil || failed.Code != fault.ResetFailed || !strings.Contains(err.Error(), "something new") || len(failed.Log) == 0 {
		t.Errorf("error = %v", err)
	}
	if !m.Host().Exists(KubeletConf) || !m.Host().Exists(journalFile) {
		t.Error("the node's identity is gone all the same")
	}
}

// C33: no credentials of a registry stay, whichever containerd it is.
func TestResetRemovesCredentials(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1.6", "1.7", "2.0", "2.4"} {
		m := containerdMachine(t)
		text, _, err := editContainerdConfig(testdata(t, "containerd/"+version+"-default.toml"), wanted{pause, privateRegistry()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Host().WriteFile(containerdConfig, text, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := Reset(t.Context(), m.Host(), planned(t, m, ResetOptions{}), discard); err != nil {
				t.Fatal(err)
			}
		}
		if got := m.Read(containerdConfig); strings.Contains(got, "hunter2") || !strings.Contains(got, pause) {
			t.Errorf("%s: the configuration is\n%s", version, got)
		}
		if actions := m.Actions(); !slices.Equal(actions, []string{"restart containerd.service", "daemon-reload"}) {
			t.Errorf("%s: done %q, want one restart", version, actions)
		}
	}
}
