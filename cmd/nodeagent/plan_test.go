// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/roles"
	"nodeagent/internal/userdata"
)

const nodeArgs = " template=domP name=prod1-control-1 type=cksnode eth0ip=10.1.1.57 eth0mask=255.255.255.0 gateway=10.1.1.1 internaldns1=10.0.0.10 dns1=1.1.1.1\n"

func controlUserdata(t *testing.T) []byte {
	t.Helper()
	raw, err := os.ReadFile("../../internal/userdata/testdata/corpus/control-4.23/user-data")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestTheBootPlanIsAPlan(t *testing.T) {
	t.Parallel()
	steps := bootPlan(&node{host: &host.Host{}})
	if err := agent.CheckPlan(steps); err != nil {
		t.Fatal(err)
	}
	ready := slices.IndexFunc(steps, func(s agent.Step) bool { return s.Ready })
	if ready < 0 || steps[ready].Name != "services" {
		t.Errorf("READY=1 comes with step %d, want services", ready)
	}
	for _, step := range steps {
		if step.Short == "" || step.Run == nil {
			t.Errorf("step %s lacks its short text or Run", step.Name)
		}
	}
}

// I7: the order of steps is fixed, per role.
func TestPlanListsTheStepsOfTheRole(t *testing.T) {
	t.Parallel()
	names := func(r *planReport) string {
		var list []string
		for _, step := range r.Steps {
			list = append(list, step.Name)
		}
		return strings.Join(list, " ")
	}
	for _, role := range roles.Table() {
		if role.Owner != roles.CloudStack {
			continue
		}
		report := makePlan("type="+role.Name+" name=x-1", nil)
		if got := names(report); got != "boot-args role disk services" || report.failed() {
			t.Errorf("role %s: steps %q, problems %v", role.Name, got, report.Problems)
		}
	}
	report := makePlan(nodeArgs, controlUserdata(t))
	want := "boot-args role ssh disk hostname network machine time iptables swap kernel services userdata cloud-init preflight iso install containerd images release kubeadm add-ons ready success"
	if got := names(report); got != want || report.failed() {
		t.Errorf("control node: steps\n%s\nwant\n%s\nproblems %v", got, want, report.Problems)
	}
	k := report.Kubernetes
	if k == nil || k.Mode != "init" || k.Handover != "nodeagent" || k.Endpoint == "" || k.Version == "" {
		t.Errorf("kubernetes = %+v", k)
	}
	if report.Disk.MinimumBytes != 8<<30 || !slices.Contains(report.Services.Enable, "containerd.service") || !slices.Contains(report.Services.Disable, "docker.service") {
		t.Errorf("disk %+v, services %+v", report.Disk, report.Services)
	}
}

// C33: a plan can be pasted anywhere.
func TestPlanShowsNoSecret(t *testing.T) {
	t.Parallel()
	raw := controlUserdata(t)
	bootArgs := strings.TrimSpace(nodeArgs) + " vmpassword=geheim77 router_password=geheim88"
	report := makePlan(bootArgs, raw)
	encoded, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	report.show(&text)
	if report.Kubernetes.Token.Empty() || report.Kubernetes.CertificateKey.Empty() {
		t.Fatal("the userdata's token or certificate key was not read; the test would see nothing")
	}
	for _, secret := range []string{"geheim77", "geheim88", report.Kubernetes.Token.Reveal(), report.Kubernetes.CertificateKey.Reveal()} {
		if strings.Contains(string(encoded), secret) || strings.Contains(text.String(), secret) {
			t.Errorf("the plan shows the secret %s...", secret[:3])
		}
	}
	if !strings.Contains(string(encoded), `"token":"[redacted]"`) {
		t.Errorf("the plan does not say that there is a token: %s", encoded)
	}
}

func TestPlanNamesAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "cmdline")
	if err := os.WriteFile(file, []byte("type=cksnode name=a_b eth0ip=10.1.1.300 eth0mask=255.0.255.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, _ := call(t, "plan", "--boot-args", file, "-o", "json")
	var report struct {
		Problems []struct{ Severity, Code, Message string }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if code != 1 || len(report.Problems) < 2 {
		t.Errorf("exit code %d, problems %+v; want 1 and at least those of name and eth0ip", code, report.Problems)
	}
	code, out, _ = call(t, "plan", "--boot-args", file)
	if code != 1 || !strings.Contains(out, "boot-args-invalid") {
		t.Errorf("text plan: exit code %d\n%s", code, out)
	}
}

// Every value says where it came from, and only when asked.
func TestPlanExplains(t *testing.T) {
	t.Parallel()
	const corpus = "../../internal/userdata/testdata/corpus/"
	args := []string{"plan", "--boot-args", corpus + "control-4.20/boot-args", "--user-data", corpus + "control-4.23/user-data"}
	_, plain, _ := call(t, args...)
	code, text, _ := call(t, append(args, "--explain")...)
	if code != 0 || !strings.HasPrefix(text, plain) || len(text) == len(plain) {
		t.Fatalf("exit code %d, explained\n%s", code, text)
	}
	for _, want := range []string{`(?m)^hostname +prod1-control-19a2f0c4d10 +boot args name$`, `(?m)^eth0 +10\.1\.1\.57/24 via 10\.1\.1\.1 +boot args eth0ip, eth0mask, gateway$`,
		`(?m)^endpoint +10\.1\.1\.57:6443 +user-data line \d+ \(/opt/bin/deploy-kube-system: kubeadm init --control-plane-endpoint\)$`,
		`(?m)^token +\[redacted\] +user-data line \d+ `} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no line matches %s in\n%s", want, text)
		}
	}
	for _, explain := range []bool{false, true} {
		json1 := append(slices.Clone(args), "-o", "json")
		if explain {
			json1 = append(json1, "--explain")
		}
		_, out, _ := call(t, json1...)
		var report struct {
			Explain []struct{ Key, Value, From string }
		}
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatal(err)
		}
		if (len(report.Explain) > 10) != explain {
			t.Errorf("with --explain %v: %d values explained", explain, len(report.Explain))
		}
		for _, e := range report.Explain {
			if e.Key == "" || e.Value == "" || e.From == "" {
				t.Errorf("%+v is not whole", e)
			}
		}
	}
}

// Each problem of each text says where it is, and no plan shows a secret.
func TestPlanOfTheCorpus(t *testing.T) {
	t.Parallel()
	const corpus = "../../internal/userdata/testdata/corpus/"
	folders, err := os.ReadDir(corpus)
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		raw, err := os.ReadFile(filepath.Join(corpus, folder.Name(), "user-data"))
		if err != nil {
			continue // kept compressed for its size
		}
		report := makePlan(nodeArgs, raw)
		encoded, err := json.Marshal(report)
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		report.show(&text)
		for _, secret := range []string{"5ecre7.0123456789abcdef", strings.Repeat("5ec2e75e", 7), "hunter2hunter2"} {
			if strings.Contains(string(encoded)+text.String(), secret) {
				t.Errorf("%s: the plan shows the secret %s...", folder.Name(), secret[:4])
			}
		}
		for _, problem := range report.Problems {
			if problem.Source != "user-data" || problem.Message == "" {
				t.Errorf("%s: %+v does not say where it is", folder.Name(), problem)
			}
		}
	}
}

// planIn runs plan as JSON for a role with a folder of overrides.
func planIn(t *testing.T, role, folder string, flags ...string) (code int, report planReport, out string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cmdline")
	if err := os.WriteFile(file, []byte("type="+role+" name=x-1 rootdisksize=4"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := call(t, append([]string{"plan", "--boot-args", file, "--roles-dir", folder, "-o", "json"}, flags...)...)
	if code == 0 || out != "" {
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
	}
	return code, report, out + stderr
}

// An operator sees what his files change before a machine boots with them, and which
// of them an entry came from.
func TestPlanWithOverrides(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for name, content := range map[string]string{
		"10-site.yaml": "router:\n  off: [snmpd.service]\n  sshPort: 3923\n",
		"20-team.yaml": "router:\n  on: [snmpd.service]\n  onDemand: [containerd.service]\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, report, out := planIn(t, "router", folder, "--explain")
	s := report.Services
	if code != 0 || report.SSHPort != 3923 || !slices.Equal(s.Enable, []string{"snmpd.service"}) || slices.Contains(s.Disable, "snmpd.service") ||
		slices.Contains(s.Disable, "containerd.service") || !slices.Equal(s.Leave, []string{"containerd.service"}) || !slices.Contains(s.CloudStack, "haproxy") {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	for _, want := range []userdata.Explanation{
		{Key: "on", Value: "snmpd.service", From: filepath.Join(folder, "20-team.yaml") + " line 2"},
		{Key: "onDemand", Value: "containerd.service", From: filepath.Join(folder, "20-team.yaml") + " line 3"},
		{Key: "sshPort", Value: "3923", From: filepath.Join(folder, "10-site.yaml") + " line 3"},
	} {
		if !slices.Contains(report.Explain, want) {
			t.Errorf("%+v is not explained in\n%s", want, out)
		}
	}
	if !slices.ContainsFunc(report.Explain, func(e userdata.Explanation) bool {
		return e.Key == "off" && strings.Contains(e.Value, "docker.service") && e.From == "role table"
	}) {
		t.Errorf("what the table has off is not explained in\n%s", out)
	}
	var text strings.Builder
	report.show(&text)
	for _, want := range []string{"ssh          port 3923", "enable       snmpd.service", "leave        containerd.service", "not ours     apache2, "} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}

	// A minimum counts for every role.
	if err := os.WriteFile(filepath.Join(folder, "30.yaml"), []byte("router: {minimumDisk: 5}"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, report, out = planIn(t, "router", folder)
	if code != 1 || len(report.Problems) != 1 || report.Problems[0].Code != fault.DiskTooSmall || !strings.Contains(report.Problems[0].Message, "role router needs 5.0 GiB") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

// All that is wrong with the files is in the plan, and none of them counts.
func TestPlanWithWrongOverrides(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for name, content := range map[string]string{"1.yaml": "router:\n  on: [snmpd.service]\n  minimumDisk: -1\n", "2.yaml": "coffee: {}"} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	code, report, out := planIn(t, "router", folder)
	if code != 1 || len(report.Problems) != 2 || len(report.Services.Enable) > 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	want := planProblem{userdata.SeverityError, fault.ConfigInvalid,
		filepath.Join(folder, "1.yaml") + " line 3: router.minimumDisk is -1; expected a number of GiB from 0, for none, to 1048576", "roles.d", "router.minimumDisk"}
	if report.Problems[0] != want {
		t.Errorf("%+v, want %+v", report.Problems[0], want)
	}
	if code, _, out := planIn(t, "router", filepath.Join(folder, "none")); code != 1 || !strings.Contains(out, "no such file") {
		t.Errorf("a folder that is not there: exit code %d, %s", code, out)
	}
}

// What is wrong with the userdata is said whatever else is wrong.
func TestPlanReadsTheUserdataOfAnyRole(t *testing.T) {
	t.Parallel()
	broken := []byte("#cloud-config\nwrite_files: [")
	for bootArgs, want := range map[string]string{
		"name=a":                 "error userdata-invalid",
		"name=a type=coffee":     "error userdata-invalid",
		"name=a type=cksnode":    "error userdata-invalid",
		"name=a type=sharedfsvm": "warning userdata-unknown",
	} {
		report := makePlan(bootArgs, broken)
		var found []string
		for _, problem := range report.Problems {
			if problem.Source == userdataSource {
				found = append(found, string(problem.Severity)+" "+string(problem.Code))
			}
		}
		if !slices.Equal(found, []string{want}) {
			t.Errorf("%s: problems of the userdata %q, want %q", bootArgs, found, want)
		}
	}
}

// An etcd node gets the template's disk, so the minimum of its role is no news, and of
// Kubernetes nothing but the ISO.
func TestPlanOfAnEtcdNode(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../internal/userdata/testdata/corpus/etcd-4.21/user-data")
	if err != nil {
		t.Fatal(err)
	}
	const args = nodeArgs + " rootdisksize=5"
	report := makePlan(args, raw)
	if report.Disk.MinimumBytes != 0 || report.failed() || report.Kubernetes.Etcd == nil || report.Kubernetes.Handover != userdata.HandoverNodeagent {
		t.Errorf("etcd node: minimum %d, %+v, problems %+v", report.Disk.MinimumBytes, report.Kubernetes, report.Problems)
	}
	var steps []string
	for _, step := range report.Steps[12:] {
		steps = append(steps, step.Name)
	}
	if got := strings.Join(steps, " "); got != "userdata cloud-init iso install release etcd success" {
		t.Errorf("steps %s", got)
	}
	if report := makePlan(args, nil); report.Disk.MinimumBytes != 8<<30 || !report.failed() {
		t.Errorf("without userdata: minimum %d, problems %+v", report.Disk.MinimumBytes, report.Problems)
	}
}

// A control plane on external etcd is nodeagent's, and its endpoints are shown.
func TestPlanOfExternalEtcd(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../internal/userdata/testdata/corpus/control-4.21-external-etcd/user-data")
	if err != nil {
		t.Fatal(err)
	}
	k := makePlan(nodeArgs, raw).Kubernetes
	if want := []string{"http://10.1.1.61:2379", "http://10.1.1.62:2379", "http://10.1.1.63:2379"}; !slices.Equal(k.ExternalEtcd, want) || k.Handover != userdata.HandoverNodeagent {
		t.Errorf("externalEtcd %q by %s", k.ExternalEtcd, k.Handover)
	}
}
