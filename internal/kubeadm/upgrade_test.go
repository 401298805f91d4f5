// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

const (
	oldVersion = "v1.34.4"
	newVersion = "v1.35.1"
)

// upgradable is a node of a cluster, with its API and a newer ISO in its drive. Its
// kubelet is the text of /opt/bin/kubelet, which says what version it reports.
type upgradable struct {
	*hosttest.Machine
	mu       sync.Mutex
	cluster  string // version in kubeadm-config
	node     string // what the kubelet reported last
	ran      []string
	imported []string
	sandbox  string
	dies     func(args string) error // when kubeadm has done its work
	says     string                  // then
}

// with changes what the handlers of the API read.
func (n *upgradable) with(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func newUpgradable(t *testing.T, controlPlane bool) *upgradable {
	t.Helper()
	n := &upgradable{Machine: testMachine(t), cluster: oldVersion, node: oldVersion}
	object := func() string {
		n.mu.Lock()
		defer n.mu.Unlock()
		if _, version, _ := strings.Cut(n.Read("/opt/bin/kubelet"), "kubelet "); strings.HasPrefix(version, "v") {
			n.node = version
		}
		return strings.Replace(condition("True", "KubeletReady", ""), `"bootID":"boot-1"`, `"bootID":"boot-1","kubeletVersion":"`+n.node+`"`, 1)
	}
	api := newTestAPI(t, map[string]http.HandlerFunc{
		"/api/v1/nodes/n1": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, object()) },
		"/api/v1/nodes": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"type":"ADDED","object":%s}`+"\n", object())
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
		"/version": func(w http.ResponseWriter, _ *http.Request) {
			n.with(func() { fmt.Fprintf(w, `{"gitVersion":%q}`, n.cluster) })
		},
		"/readyz/etcd": says("ok"),
		"/readyz":      says("ok"),
		"/api/v1/namespaces/kube-system/configmaps/kubeadm-config": func(w http.ResponseWriter, _ *http.Request) {
			n.with(func() {
				fmt.Fprintf(w, `{"data":{"ClusterConfiguration":"imageRepository: registry.example.com\nkubernetesVersion: %s\n"}}`, n.cluster)
			})
		},
	})
	n.Write(KubeletConf, api.kubeconfig)
	if controlPlane {
		n.Write(AdminConf, api.kubeconfig)
		n.Write(apiManifest, "image: kube-apiserver:"+oldVersion)
	}
	old := bundleFiles(t, oldVersion)
	n.Write("/opt/bin/kubelet", strings.TrimSuffix(old["k8s/kubelet"], "kubelet")+"kubelet "+oldVersion)
	n.Write(Kubeadm, old["k8s/kubeadm"])
	n.Write("/var/lib/kubelet/config.yaml", "of "+oldVersion)
	n.Write("/etc/systemd/system/kubelet.service", "unit of "+oldVersion)
	for _, name := range []string{"/opt/bin/kubelet", Kubeadm} {
		if err := os.Chmod(n.Path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.insert(t, newVersion, "kubelet "+newVersion)
	for _, path := range []string{Kubeadm, newKubeadm} {
		n.Program(path, func(command host.Command) (string, error) { return n.kubeadm(path, strings.Join(command.Args, " ")) })
	}
	return n
}

// insert puts an ISO into the drive.
func (n *upgradable) insert(t *testing.T, version, kubelet string) {
	files := maps.Clone(bundleFiles(t, version))
	files["k8s/kubelet"] = strings.TrimSuffix(files["k8s/kubelet"], "kubelet") + kubelet
	files["docker/kube-apiserver:"+version+".tar"] = strings.Repeat("x", 1000)
	addDevice(t, n.Machine, "sr0", "CDROM", files)
}

// kubeadm plays the program, whose version is in its text.
func (n *upgradable) kubeadm(path, args string) (string, error) {
	_, version, _ := strings.Cut(n.Read(path), "kubeadm ")
	switch {
	case args == "version -o short":
		return version + "\n", nil
	case args == "config images list --kubernetes-version "+version+" --image-repository registry.example.com":
		return "registry.example.com/kube-apiserver:" + version + "\nregistry.example.com/pause:3.10.2\n", nil
	}
	n.with(func() {
		n.ran = append(n.ran, path+" "+args)
		if strings.HasPrefix(args, "upgrade apply "+version) {
			n.cluster = version
		}
	})
	n.Write("/var/lib/kubelet/config.yaml", "of "+version)
	if n.dies != nil {
		return n.says, n.dies(args)
	}
	return "[upgrade] SUCCESS\n", nil
}

func (n *upgradable) plan(ctx context.Context, options UpgradeOptions) (*Upgrade, error) {
	options.NodeName = "n1"
	u, err := planUpgradeOf(ctx, n.Host(), options, discard, func(want string) (*Bundle, error) {
		return findUpgradeISO(ctx, n.Host(), want, nil, discard)
	}, func(context.Context, *host.Host) (Machine, error) { return fitMachine(), nil })
	if err != nil {
		return nil, err
	}
	u.importImages = func(_ context.Context, want, leave []string, _ host.Report) error {
		n.imported = []string{"want " + strings.Join(want, " "), "leave " + strings.Join(leave, " ")}
		return nil
	}
	u.configure = func(_ context.Context, sandbox string, _ host.Report) error { n.sandbox = sandbox; return nil }
	return u, nil
}

// upgrade plans and runs stages until one fails or most of them are done.
func (n *upgradable) upgrade(t *testing.T, ctx context.Context, most int) error {
	t.Helper()
	u, err := n.plan(ctx, UpgradeOptions{})
	if err != nil {
		return err
	}
	defer u.Close()
	for i, stage := range u.Stages {
		if i == most {
			return errors.New("killed")
		}
		if err := stage.Run(ctx, discard); err != nil {
			return err
		}
	}
	return nil
}

const (
	all         = 100
	applyCall   = Kubeadm + " upgrade apply " + newVersion + " -y --ignore-preflight-errors=CoreDNSUnsupportedPlugins --config /var/lib/nodeagent/upgrade/kubeadm.yaml --v=5"
	upgradeCall = Kubeadm + " upgrade node --config /var/lib/nodeagent/upgrade/kubeadm.yaml --v=5"
)

// upgraded checks that nothing of the old version is left, nor of the upgrade.
func (n *upgradable) upgraded(t *testing.T, ran ...string) {
	t.Helper()
	if n.node != newVersion || n.cluster != newVersion || n.Read("/var/lib/kubelet/config.yaml") != "of "+newVersion {
		t.Errorf("node %s, cluster %s, kubelet's settings %q; want all %s", n.node, n.cluster, n.Read("/var/lib/kubelet/config.yaml"), newVersion)
	}
	if !slices.Equal(n.ran, ran) {
		t.Errorf("kubeadm ran as %q, want %q", n.ran, ran)
	}
	if n.sandbox != "registry.example.com/pause:3.10.2" {
		t.Errorf("sandbox image %q", n.sandbox)
	}
	for _, name := range []string{upgradeJournalFile, upgradeFolder, isoFolder} {
		if n.Host().Exists(name) {
			t.Errorf("%s is still there", name)
		}
	}
}

// C30: the first control node changes the cluster; a second run finds nothing to do.
func TestUpgradeFirstControlNode(t *testing.T) {
	t.Parallel()
	n := newUpgradable(t, true)
	if err := n.upgrade(t, t.Context(), all); err != nil {
		t.Fatal(err)
	}
	n.upgraded(t, applyCall)
	if want := []string{"want registry.example.com/kube-apiserver:v1.35.1 registry.example.com/pause:3.10.2", "leave "}; !slices.Equal(n.imported, want) {
		t.Errorf("images: %q, want %q", n.imported, want)
	}
	if n.Read(rootKubeconfig) != n.Read(AdminConf) {
		t.Error("root's kubeconfig is not the renewed one")
	}
	u, err := n.plan(t.Context(), UpgradeOptions{})
	if err != nil || len(u.Stages) > 0 || u.String() != "Kubernetes v1.35.1 runs here already: nothing to do\n" {
		t.Errorf("a second run would do %v (%v)", u, err)
	}
}

// Workers and further control nodes follow; a worker leaves the control plane's images.
func TestUpgradeFollowers(t *testing.T) {
	t.Parallel()
	for _, controlPlane := range []bool{true, false} {
		n := newUpgradable(t, controlPlane)
		n.cluster = newVersion
		if err := n.upgrade(t, t.Context(), all); err != nil {
			t.Fatal(err)
		}
		n.upgraded(t, upgradeCall)
		if left := n.imported[1] == "leave registry.example.com/kube-apiserver:v1.35.1"; left == controlPlane {
			t.Errorf("images of control plane %v: %q", controlPlane, n.imported)
		}
	}
}

// A kill between any two stages: the next run does what is left, and kubeadm once.
func TestUpgradeKilledBetweenStages(t *testing.T) {
	t.Parallel()
	for done := range 6 {
		t.Run(fmt.Sprint(done, " stages done"), func(t *testing.T) {
			t.Parallel()
			n := newUpgradable(t, true)
			if err := n.upgrade(t, t.Context(), done); err == nil {
				t.Fatal("it was not killed")
			}
			if done >= 4 { // C17: the ISO may be gone
				n.AddMedium("/dev/sr0", t.TempDir())
			}
			n.SetBootID("boot-1") // the fake API's kubelet has no other
			if err := n.upgrade(t, t.Context(), all); err != nil {
				t.Fatal(err)
			}
			n.upgraded(t, applyCall)
		})
	}
}

// A kill in the middle of kubeadm, when the cluster says already that it has the
// version: it is the first control node's work all the same.
func TestUpgradeKilledInKubeadm(t *testing.T) {
	t.Parallel()
	n := newUpgradable(t, true)
	ctx, cancel := context.WithCancel(t.Context())
	n.dies = func(string) error { cancel(); return &host.CommandError{Err: context.Canceled} }
	if err := n.upgrade(t, ctx, all); err == nil || n.cluster != newVersion {
		t.Fatalf("error = %v, cluster %s; want a kill after the cluster was changed", err, n.cluster)
	}
	n.dies = nil
	if err := n.upgrade(t, t.Context(), all); err != nil {
		t.Fatal(err)
	}
	n.upgraded(t, applyCall, applyCall)
}

// A machine too slow for kubeadm's trial job is upgraded without it, one whose API server
// is too busy for its checks is checked again; any other failed check stays one.
func TestUpgradeOfASlowMachine(t *testing.T) {
	t.Parallel()
	const busy = "\t[ERROR CreateJob]: Job \"upgrade-health-check-1\" in the namespace \"kube-system\" did not complete in 15s: Get \"https://10.1.1.57:6443/apis/batch/v1/namespaces/kube-system/jobs/upgrade-health-check-1?timeout=10s\": net/http: request canceled (Client.Timeout exceeded while awaiting headers)\n" +
		"\t[ERROR ControlPlaneNodesReady]: could not list nodes labeled with \"node-role.kubernetes.io/control-plane\": Get \"https://10.1.1.57:6443/api/v1/nodes?labelSelector=node-role.kubernetes.io%2Fcontrol-plane%3D\": context deadline exceeded"
	const slow = "\t[ERROR CreateJob]: Job \"upgrade-health-check-1\" in the namespace \"kube-system\" did not complete in 15s: no condition of type Complete"
	for lines, want := range map[string][]string{
		slow: {applyCall, strings.TrimSuffix(applyCall, " --v=5") + " --ignore-preflight-errors=CreateJob --v=5"},
		slow + "\n\t[ERROR StaticPodManifest]: manifest kube-scheduler.yaml is missing": {applyCall},
		busy: {applyCall, applyCall},
	} {
		n := newUpgradable(t, true)
		n.dies = func(args string) error {
			if strings.Contains(args, "CreateJob") || len(n.ran) == 2 && lines == busy {
				return nil
			}
			return &host.CommandError{Err: errors.New("exit status 1")}
		}
		n.says = "[preflight] Some fatal errors occurred:\n" + lines + "\nerror: error execution phase preflight: preflight checks failed\n"
		err := n.upgrade(t, t.Context(), all)
		if (err == nil) != (len(want) > 1) || !slices.Equal(n.ran, want) {
			t.Errorf("%s: error = %v, kubeadm ran as %q, want %q", lines, err, n.ran, want)
		}
	}
}

// brokenKubelet is systemd on a machine whose new kubelet does not start.
type brokenKubelet struct {
	host.Units
	n *upgradable
}

func (u brokenKubelet) Wait(ctx context.Context, job host.Job) (host.Unit, error) {
	unit, err := u.Units.Wait(ctx, job)
	if strings.HasSuffix(u.n.Read("/opt/bin/kubelet"), "does not start") {
		unit.ActiveState, unit.Result = "failed", "exit-code"
	}
	return unit, err
}

// What the old kubelet said before it was stopped does not count for the new one.
func TestWaitForTheVersion(t *testing.T) {
	t.Parallel()
	n := newUpgradable(t, false)
	api, err := OpenNodeAPI(n.Host())
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	ctx, cancel := context.WithCancel(t.Context())
	err = api.waitReady(ctx, "n1", newVersion, func(format string, args ...any) {
		if strings.Contains(fmt.Sprintf(format, args...), "its kubelet has reported v1.34.4 so far") {
			cancel()
		}
	})
	if err == nil || fault.As(err).Code != fault.NodeNotReady {
		t.Errorf("error = %v, want %s", err, fault.NodeNotReady)
	}
	if err := api.waitReady(t.Context(), "n1", oldVersion, discard); err != nil {
		t.Error(err)
	}
}

// C16, C30: a kubelet that does not come up is put back with its settings, the exit
// is a failure, and a later run with a sound ISO ends it.
func TestUpgradeRollsTheKubeletBack(t *testing.T) {
	t.Parallel()
	n := newUpgradable(t, false)
	n.cluster = newVersion
	n.insert(t, newVersion, "kubelet that does not start")
	u, err := n.plan(t.Context(), UpgradeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	u.h.Units = brokenKubelet{u.h.Units, n}
	for _, stage := range u.Stages {
		if err = stage.Run(t.Context(), discard); err != nil {
			break
		}
	}
	if err := u.Close(); err != nil {
		t.Error(err)
	}
	if failed := fault.As(err); err == nil || failed.Code != fault.KubeletRolledBack || !strings.Contains(failed.Message, "kubelet.service is failed (exit-code)") {
		t.Fatalf("error = %v, want %s with the reason", err, fault.KubeletRolledBack)
	}
	if _, version, _ := strings.Cut(n.Read("/opt/bin/kubelet"), "kubelet "); version != oldVersion {
		t.Errorf("the kubelet is %s, want %s", version, oldVersion)
	}
	if info, err := os.Stat(n.Path("/opt/bin/kubelet")); err != nil || info.Mode() != 0o755 {
		t.Errorf("the kubelet is %v (%v), want mode 0755", info, err)
	}
	for name, want := range map[string]string{"/var/lib/kubelet/config.yaml": "of " + oldVersion, "/etc/systemd/system/kubelet.service": "unit of " + oldVersion} {
		if got := n.Read(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if n.Host().Exists("/etc/systemd/system/kubelet.service.d/10-kubeadm.conf") {
		t.Error("a drop-in that was not there before is still there")
	}
	if actions := n.Actions(); strings.Count(strings.Join(actions, "\n"), "restart kubelet.service") != 2 || actions[len(actions)-3] != "daemon-reload" {
		t.Errorf("done: %q; want a reload and a second restart", actions)
	}
	n.insert(t, newVersion, "kubelet "+newVersion)
	if err := n.upgrade(t, t.Context(), all); err != nil {
		t.Fatal(err)
	}
	n.upgraded(t, upgradeCall, upgradeCall) // the second one writes the new settings again
}

// kubeadm's words reach the operator; nothing but kubeadm has changed.
func TestUpgradeKubeadmFails(t *testing.T) {
	t.Parallel()
	n := newUpgradable(t, true)
	n.Program(Kubeadm, func(host.Command) (string, error) {
		return "error: error execution phase preflight: something new\n", &host.CommandError{ExitCode: 1, Err: errors.New(exitStatus)}
	})
	err := n.upgrade(t, t.Context(), all)
	if failed := fault.As(err); err == nil || failed.Code != fault.UpgradeFailed || !strings.Contains(failed.Message, "kubeadm upgrade apply failed: error execution phase preflight: something new") || len(failed.Log) == 0 {
		t.Errorf("error = %v", err)
	}
	if _, version, _ := strings.Cut(n.Read("/opt/bin/kubelet"), "kubelet "); version != oldVersion || !strings.Contains(n.Read(UpgradeLog), "something new") {
		t.Errorf("the kubelet is %s, log %q", version, n.Read(UpgradeLog))
	}
}

// All that is in the way is named at once, and --dry-run leaves no trace.
func TestUpgradeRefuses(t *testing.T) {
	t.Parallel()
	n := newUpgradable(t, false)
	before := n.Read(Kubeadm)
	_, err := n.plan(t.Context(), UpgradeOptions{})
	if failed := fault.As(err); err == nil || failed.Code != fault.VersionSkew || !strings.Contains(failed.Message, "before its workers") || !strings.Contains(failed.Message, "a kubelet v1.35.1 must not be newer") {
		t.Errorf("error = %v, want %s with both reasons", err, fault.VersionSkew)
	}
	for _, name := range []string{upgradeJournalFile, upgradeFolder, isoFolder} {
		if n.Host().Exists(name) {
			t.Errorf("%s is there", name)
		}
	}
	if n.Read(Kubeadm) != before {
		t.Error("the installed kubeadm is another")
	}
	empty := hosttest.New(t)
	if _, err := planUpgradeOf(t.Context(), empty.Host(), UpgradeOptions{}, discard, nil, nil); err == nil || !strings.Contains(err.Error(), "no Kubernetes node") {
		t.Errorf("on a machine without Kubernetes: %v", err)
	}
}

func TestUpgradeToAnotherVersionThanBegun(t *testing.T) {
	t.Parallel()
	n := newUpgradable(t, true)
	if err := n.upgrade(t, t.Context(), 3); err == nil {
		t.Fatal("it was not killed")
	}
	n.insert(t, "v1.35.2", "kubelet v1.35.2")
	u, err := n.plan(t.Context(), UpgradeOptions{Version: "1.35.2"})
	if err != nil || u.To != "v1.35.2" || u.Resumed != "" || u.Stages[0].Name != stageImages || u.journal.From != oldVersion {
		t.Errorf("plan %+v, %v; want all but what is kept", u, err)
	}
}

// What an upgrade left that others have overtaken, as the server's own script does, is
// no reason to go back.
func TestUpgradeOvertaken(t *testing.T) {
	t.Parallel()
	n := newUpgradable(t, false)
	n.cluster = newVersion
	if err := n.upgrade(t, t.Context(), 4); err == nil {
		t.Fatal("it was not killed")
	}
	n.cluster, n.node = "v1.36.0", "v1.36.0"
	n.Write("/opt/bin/kubelet", "kubelet v1.36.0")
	n.Program("/opt/bin/kubelet", func(host.Command) (string, error) { return "Kubernetes v1.36.0\n", nil })
	_, err := n.plan(t.Context(), UpgradeOptions{})
	if err == nil || fault.As(err).Code != fault.VersionSkew || n.Host().Exists(upgradeJournalFile) || n.Host().Exists(upgradeFolder) {
		t.Errorf("error = %v, journal %v; want a refusal to go back to %s", err, n.Host().Exists(upgradeJournalFile), newVersion)
	}
}

func TestUpgradeDryRun(t *testing.T) {
	t.Parallel()
	n := newUpgradable(t, true)
	u, err := n.plan(t.Context(), UpgradeOptions{AddOns: true})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "upgrade-apply.txt", []byte(u.String()))
	if err := u.Stages[0].Run(t.Context(), discard); err != nil {
		t.Fatal(err)
	}
	if u, err = n.plan(t.Context(), UpgradeOptions{}); err != nil {
		t.Fatal(err)
	}
	golden(t, "upgrade-resumed.txt", []byte(u.String()))
}

// The rules are those of kubernetes.io/releases/version-skew-policy.
func TestJudgeUpgrade(t *testing.T) {
	t.Parallel()
	good := upgradeFacts{iso: "v1.35.1", kubelet: "v1.34.4", cluster: "v1.34.4", api: "v1.34.4", controlPlane: true, ready: true,
		machine: fitMachine(), imageBytes: 300 << 20}
	for name, test := range map[string]struct {
		change func(f *upgradeFacts)
		verb   string
		code   fault.Code
		says   string
	}{
		"one minor version":        {func(*upgradeFacts) {}, verbApply, "", ""},
		"a patch":                  {func(f *upgradeFacts) { f.iso = "v1.34.10" }, verbApply, "", ""},
		"from a release candidate": {func(f *upgradeFacts) { f.iso, f.cluster, f.kubelet = "v1.34.0", "v1.34.0-rc.1", "v1.34.0-rc.1" }, verbApply, "", ""},
		"the others follow":        {func(f *upgradeFacts) { f.cluster, f.api = "v1.35.1", "v1.35.1" }, verbNode, "", ""},
		"a worker follows": {func(f *upgradeFacts) { f.controlPlane, f.cluster, f.api = false, "v1.35.1", "v1.35.1" }, verbNode, "",
			""},
		"kubelet first done":        {func(f *upgradeFacts) { f.kubelet = "v1.35.1" }, verbApply, "", ""},
		"two minor versions":        {func(f *upgradeFacts) { f.iso = "v1.36.0" }, "", fault.VersionSkew, "one minor version at a time"},
		"a major version":           {func(f *upgradeFacts) { f.iso = "v2.0.0" }, "", fault.VersionSkew, "one minor version at a time"},
		"back":                      {func(f *upgradeFacts) { f.iso = "v1.34.3" }, "", fault.VersionSkew, "older than the cluster's"},
		"older than the kubelet":    {func(f *upgradeFacts) { f.kubelet = "v1.35.2" }, "", fault.VersionSkew, "older than this node's kubelet"},
		"worker first":              {func(f *upgradeFacts) { f.controlPlane = false }, "", fault.VersionSkew, "before its workers"},
		"worker at an old server":   {func(f *upgradeFacts) { f.controlPlane, f.cluster = false, "v1.35.1" }, "", fault.VersionSkew, "must not be newer"},
		"not Ready":                 {func(f *upgradeFacts) { f.ready, f.notReady = false, noCNI }, "", fault.NodeNotReady, noCNI},
		"no etcd":                   {func(f *upgradeFacts) { f.etcd = errors.New("500") }, "", fault.EtcdUnhealthy, "500"},
		"no space":                  {func(f *upgradeFacts) { f.machine.Free = 2 << 30 }, "", fault.DiskSpaceLow, "/var/lib/containerd has 2048 MiB free"},
		"a version that paints":     {func(f *upgradeFacts) { f.api = "v1.34.4-\x1b[31m" }, "", fault.VersionSkew, `"v1.34.4-\x1b[31m"`},
		"a build of somebody's":     {func(f *upgradeFacts) { f.api = "v1.34.4+k3s1" }, verbApply, "", ""},
		"no version":                {func(f *upgradeFacts) { f.cluster = "latest" }, "", fault.VersionSkew, "the version of the cluster"},
		"all at once, the first is": {func(f *upgradeFacts) { f.iso, f.ready, f.machine.Free = "v1.36.0", false, 0 }, "", fault.VersionSkew, "not Ready: ; /var/lib/containerd has"},
		"cgroup v1":                 {func(f *upgradeFacts) { f.machine.CgroupV2 = false }, "", fault.RuntimeUnfit, "cgroup v1"},
	} {
		f := good
		test.change(&f)
		verb, _, err := f.judge()
		if verb != test.verb || (err == nil) != (test.code == "") {
			t.Errorf("%s: %q, %v; want %q", name, verb, err, test.verb)
		} else if err != nil && (fault.As(err).Code != test.code || !strings.Contains(err.Error(), test.says)) {
			t.Errorf("%s: error %v, want %s with %q", name, err, test.code, test.says)
		}
	}
}
