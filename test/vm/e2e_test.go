// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"context"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/test/cloud"
	"nodeagent/test/iso"
	"nodeagent/test/lab"
)

// From power-on to a cluster of a Ready control node and a worker as an unmodified
// management server sees it (contract 5.2), then without the worker a reboot that
// changes nothing (contract 5.3).
func TestE2ECluster(t *testing.T) {
	ctx, l := newLab(t)
	path, err := iso.Build(ctx, os.Stderr, iso.Options{Version: lab.Version})
	if err != nil {
		t.Fatal(err)
	}
	spec, params, err := l.ControlNodeSpec("prod1-control-1", netip.MustParseAddr("10.1.1.57"))
	if err != nil {
		t.Fatal(err)
	}
	m := boot(t, ctx, l, spec)
	// All machines of a cluster run before the first one gets its ISO.
	params.Registry = cloud.Registry{Endpoint: "10.1.1.1:5000", URL: "http://10.1.1.1:5000", Username: "joe", Password: "hunter2hunter2"}
	workerSpec, err := l.WorkerSpec(workerName, netip.MustParseAddr("10.1.1.61"), params)
	if err != nil {
		t.Fatal(err)
	}
	worker := boot(t, ctx, l, workerSpec)
	if err := m.InsertISO(ctx, path); err != nil {
		t.Fatal(err)
	}
	checks := cloud.Checks{Cloud: l.Cloud, Control: m.Address, Key: l.Key, Pace: 2 * time.Second}
	if _, err := checks.WaitSSH(ctx); err != nil {
		t.Fatal(err)
	}
	status, code := follow(t, ctx, m, "")
	for _, step := range status.Steps {
		t.Logf("%-12s %7.1fs %s", step.Name, step.Seconds, step.Note)
	}
	// A gate may close for a moment on a machine this busy; wantGates waits for them.
	if code != 0 && code != 2 || len(status.Warnings) > 0 {
		t.Fatalf("exit code %d, phase %s, failures %v, warnings %v", code, status.Phase, status.Failures(), status.Warnings)
	}
	wantGates(t, ctx, m)
	wantHealth(t, ctx, m, "certificates disk etcd pods")
	serverChecks(t, checks, 1)
	if err := m.EjectISO(ctx); err != nil {
		t.Fatal(err)
	}
	wantMade(t, ctx, m, params)
	wantTold(t, ctx, l, m, params)
	joinWorker(t, ctx, worker, params, path)
	serverChecks(t, checks, 2)
	runFromRegistry(t, ctx, l, m)
	// Scaled down again (contract 5.5).
	output(t, ctx, m, "/opt/bin/kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "delete", "node", workerName)
	if err := worker.Stop(); err != nil {
		t.Fatal(err)
	}

	// K9: nothing of Kubernetes is looked up outside. What else asks is the
	// template's time service and CoreDNS, which looks for a loop with a name of
	// two numbers.
	harmless := regexp.MustCompile(`^(data-server.*|prod1-(control|node)-1.*|.*\.pool\.ntp\.org|\d+\.\d+)$`)
	for _, query := range l.Cloud.Router.Queries() {
		if !harmless.MatchString(query.Name) {
			t.Errorf("the node asked for the name %q", query.Name)
		}
	}
	if packets := l.Cloud.Outside(); len(packets) > 0 {
		t.Errorf("the nodes sent to the outside: %q", packets)
	}
	for line := range strings.Lines(output(t, ctx, m, "/usr/bin/cat", "/var/lib/nodeagent/state.json")) {
		if strings.Contains(line, "peakMemoryBytes") || strings.Contains(line, "cpuSeconds") {
			t.Log("of nodeagent itself:", strings.TrimSpace(line))
		}
	}

	before := fingerprint(t, ctx, m)
	first := status.BootID
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	status, code = follow(t, ctx, m, first)
	if code != 0 && code != 2 || len(status.Warnings) > 0 {
		t.Fatalf("after the reboot: exit code %d, failures %v, warnings %v", code, status.Failures(), status.Warnings)
	}
	for _, step := range status.Steps {
		if settings := []string{"hostname", "machine", "time", "iptables", "swap", "kernel"}; slices.Contains(settings, step.Name) && !strings.HasSuffix(step.Note, "unchanged") {
			t.Errorf("after the reboot: step %s did something: %s", step.Name, step.Note)
		}
	}
	wantNodeSettings(t, ctx, m)
	wantSteps(t, status, map[string]string{"userdata": "skipped", "iso": "skipped", "images": "skipped", "kubeadm": "skipped", "ready": "done", "success": "done"})
	wantGates(t, ctx, m) // an API server that has just come back may close one for a moment
	serverChecks(t, checks, 1)
	if status, code, err := lab.ReadStatus(ctx, m); err != nil || code != 0 {
		t.Errorf("in the end: exit code %d, closed gates %q, %v", code, status.ClosedGates(), err)
	}
	if after := fingerprint(t, ctx, m); after != before {
		t.Errorf("the reboot changed files:\n%s\nbefore\n%s", after, before)
	}
}

const workerName = "prod1-node-1"

// joinWorker has a worker join the cluster with those parameters. It is the one of the
// two that knows the private registry.
func joinWorker(t *testing.T, ctx context.Context, worker *cloud.Machine, params cloud.UserdataParams, isoPath string) {
	t.Helper()
	if err := worker.InsertISO(ctx, isoPath); err != nil {
		t.Fatal(err)
	}
	status, code := follow(t, ctx, worker, "")
	if code != 0 && code != 2 || len(status.Warnings) > 0 {
		t.Fatalf("worker: exit code %d, phase %s, failures %v, warnings %v", code, status.Phase, status.Failures(), status.Warnings)
	}
	// K3: CloudStack's join does not check the CA, and status says so.
	if step, _ := status.Step("kubeadm"); !strings.Contains(step.Note, "CA not verified, it was sha256:") {
		t.Errorf("worker: kubeadm's step says %q, want the CA that was seen", step.Note)
	}
	wantSteps(t, status, map[string]string{"add-ons": "skipped", "ready": "done", "success": "done"})
	wantGates(t, ctx, worker)
	wantMade(t, ctx, worker, params)
	if images := output(t, ctx, worker, "/usr/bin/ctr", "-n", "k8s.io", "images", "ls", "-q"); !strings.Contains(images, "/kube-proxy:") || strings.Contains(images, "/kube-apiserver:") {
		t.Errorf("the worker has the images\n%s", images)
	}
	if err := worker.EjectISO(ctx); err != nil {
		t.Fatal(err)
	}
}

// runFromRegistry has the worker run a pod whose image only the private registry has,
// and only for who logs in.
func runFromRegistry(t *testing.T, ctx context.Context, l *lab.Lab, control *cloud.Machine) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "pause")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "../iso/programs/pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	registry, err := lab.NewRegistry(program, "joe", "hunter2hunter2")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := l.Cloud.Listen(5000)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: registry, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	kubectl := func(args ...string) string {
		return output(t, ctx, control, "/opt/bin/kubectl", append([]string{"--kubeconfig=/etc/kubernetes/admin.conf"}, args...)...)
	}
	kubectl("run", "private", "--image=10.1.1.1:5000/team/private:v1", "--overrides={\"spec\":{\"nodeName\":\""+workerName+"\"}}")
	kubectl("wait", "--for=condition=Ready", "pod/private", "--timeout=5m")
	if registry.Pulls.Load() == 0 {
		t.Error("the pod runs and nobody asked the registry")
	}
	kubectl("delete", "pod", "private", "--wait=false")
}

// wantMade checks what a node that is made has and has not.
func wantMade(t *testing.T, ctx context.Context, m *cloud.Machine, params cloud.UserdataParams) {
	t.Helper()
	if marker := output(t, ctx, m, "/usr/bin/cat", "/home/cloud/success"); strings.TrimSpace(marker) != "true" {
		t.Errorf("success marker holds %q, want true", marker)
	}
	// C33: the secrets are in nothing an operator would paste into a report.
	for name, text := range map[string]string{
		"processes": output(t, ctx, m, "/usr/bin/ps", "-eo", "args"),
		"journal":   output(t, ctx, m, "/usr/bin/journalctl", "-b", "--no-pager", "-q", "-u", "nodeagent"),
		"state":     output(t, ctx, m, "/usr/bin/cat", "/var/lib/nodeagent/state.json"),
		"logs":      output(t, ctx, m, "/usr/bin/find", "/var/log/nodeagent", "-type", "f", "-exec", "/usr/bin/cat", "{}", "+"),
	} {
		for _, secret := range []string{params.Token, params.CertificateKey, "hunter2hunter2"} {
			if strings.Contains(text, secret) {
				t.Errorf("a secret of the userdata is in the %s of %s", name, m.Spec.Name)
			}
		}
	}
}

// wantTold checks where else than in status a node says what happened: the login prompt,
// the message of the day, the journal's fields, timeline, and diag, without secrets (C33).
func wantTold(t *testing.T, ctx context.Context, l *lab.Lab, m *cloud.Machine, params cloud.UserdataParams) {
	t.Helper()
	line := "cksnode " + m.Spec.Name + ": done"
	if issue := output(t, ctx, m, "/usr/bin/cat", "/etc/issue.d/nodeagent.issue"); !strings.Contains(issue, line) {
		t.Errorf("the login prompt says %q, want %q", issue, line)
	}
	screen, err := l.Cloud.LoginScreen(ctx, netip.AddrPortFrom(m.Address, 22), "cloud", l.Key)
	if err != nil || !strings.Contains(screen, "nodeagent: "+line) {
		t.Errorf("after a login the screen shows %q, want %q (%v)", screen, line, err)
	}
	if journal := output(t, ctx, m, "/usr/bin/journalctl", "-b", "-q", "--no-pager", "-o", "cat", "NODEAGENT_STEP=images"); !strings.Contains(journal, "done: ") {
		t.Errorf("the journal has of the step images %q", journal)
	}
	timeline := output(t, ctx, m, "/usr/bin/nodeagent", "timeline", "--order", "start")
	t.Logf("nodeagent timeline:\n%s", timeline)
	for _, part := range []string{"kernel", "kubeadm", "ready"} {
		if !strings.Contains(timeline, part) {
			t.Errorf("timeline lacks %q", part)
		}
	}
	const archive, folder = "/root/diag.tar.gz", "/root/diag"
	t.Log(output(t, ctx, m, "/usr/bin/nodeagent", "diag", "-o", archive))
	output(t, ctx, m, "/usr/bin/mkdir", folder)
	output(t, ctx, m, "/usr/bin/tar", "-xzf", archive, "-C", folder)
	t.Logf("diag: %s", output(t, ctx, m, "/usr/bin/du", "-b", archive))
	t.Logf("diag holds:\n%s", output(t, ctx, m, "/usr/bin/find", folder, "-type", "f", "-size", "-1"))
	for _, secret := range []string{params.Token, strings.Split(params.Token, ".")[1], params.CertificateKey} {
		result, err := m.Agent().Exec(ctx, "/usr/bin/grep", "-rlFe", secret, folder)
		if err != nil || result.ExitCode != 1 {
			t.Errorf("diag has a secret of the userdata in\n%s%s (%v)", result.Stdout, result.Stderr, err)
		}
	}
	output(t, ctx, m, "/usr/bin/rm", "-r", archive, folder)
}

// serverChecks are what the management server asks from outside.
func serverChecks(t *testing.T, checks cloud.Checks, nodes int) {
	t.Helper()
	ctx := t.Context()
	if version, err := checks.WaitAPI(ctx); err != nil || !strings.Contains(version, "v"+lab.Version) {
		t.Errorf("/version: %q, %v", version, err)
	}
	if err := checks.WaitNodes(ctx, nodes); err != nil {
		t.Error(err)
	}
	if _, err := checks.WaitKubeconfig(ctx); err != nil {
		t.Error(err)
	}
	if _, err := checks.WaitDashboard(ctx); err != nil {
		t.Error(err)
	}
}

func wantGates(t *testing.T, ctx context.Context, m *cloud.Machine) {
	t.Helper()
	if err := lab.WaitGates(ctx, m); err != nil {
		t.Error(err)
	}
}

// wantHealth checks what of a node's health is looked at (C27, C31, C37, K7).
func wantHealth(t *testing.T, ctx context.Context, m *cloud.Machine, names string) {
	t.Helper()
	status, _, err := lab.ReadStatus(ctx, m)
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, gate := range status.Health {
		t.Logf("%s: %s", gate.Name, gate.Detail)
		seen = append(seen, gate.Name)
	}
	if got := strings.Join(seen, " "); got != names {
		t.Errorf("the health of %s is that of %q, want %q", m.Spec.Name, got, names)
	}
}

// fingerprint lists the files a second boot has no reason to write, with size,
// mode and time. The state file tells of each boot.
func fingerprint(t *testing.T, ctx context.Context, m *cloud.Machine) string {
	t.Helper()
	return output(t, ctx, m, "/usr/bin/find", "/etc", "/opt", "/home", "/var/lib/cloud", "/var/lib/nodeagent",
		"-xdev", "(", "-path", "/etc/cni/net.d", "-o", "-path", "/opt/cni/bin", ")", "-prune", "-o",
		"-type", "f", "!", "-name", "state.json", "!", "-name", ".*", "-printf", "%p %s %m %T@\\n")
}
