// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"nodeagent/internal/fault"
	"nodeagent/internal/secret"
)

// captured is one failure of the real kubeadm, from test/cmd/capture-kubeadm.
type captured struct {
	name     string // the same for all versions of kubeadm
	path     string // version and name
	text     string
	Kubeadm  string
	Command  string
	ExitCode int
	Secrets  []string
}

func (c captured) verb() string { return strings.Fields(c.Command)[1] }

// read reads the output as a run does: secrets are taken out first.
func (c captured) read() kubeadmOutput {
	output, _ := readOutput(scrubber(c.Secrets)(c.text))
	return output
}

func failures(t testing.TB) []captured {
	t.Helper()
	paths, err := filepath.Glob("testdata/failures/*/*/output.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no captured failures (%v)", err)
	}
	var all []captured
	for _, path := range paths {
		dir := filepath.Dir(path)
		c := captured{name: filepath.Base(dir), path: strings.TrimPrefix(dir, "testdata/failures/")}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c.text = string(text)
		meta, err := os.ReadFile(filepath.Join(dir, "meta.json"))
		if err == nil {
			err = json.Unmarshal(meta, &c)
		}
		if err != nil || c.ExitCode == 0 || c.Command == "" {
			t.Fatalf("%s: %v, exit code %d", path, err, c.ExitCode)
		}
		all = append(all, c)
	}
	return all
}

// K5, C26: what every captured failure means; with a version, what it means there
// when kubeadm says something else. says is a part of the cause's sentence.
var classes = map[string]struct {
	code  fault.Code
	retry retry
	says  string
}{
	"init-port-in-use":   {fault.KubeadmPreflight, retryNever, "this machine is not fit: Port-6443: Port 6443 is in use"},
	"init-leftovers":     {fault.KubeadmPreflight, retryNever, "etcd.yaml already exists; DirAvailable--var-lib-etcd: /var/lib/etcd is not empty"},
	"init-unfit-machine": {fault.KubeadmPreflight, retryNever, "not found in system path; KubeletVersion: "},

	"init-containerd-unreachable": {fault.ContainerdFailed, retryOnce, "containerd does not answer kubeadm"},
	"init-containerd-without-cri": {fault.ContainerdFailed, retryOnce, "containerd does not answer kubeadm"},
	"init-image-not-there":        {fault.ImageMissing, retryNever, " is not there and cannot be pulled; ImagePull: registry.k8s.io/etcd:3."},
	"init-kubelet-not-healthy":    {fault.KubeletFailed, retryOnce, "kubelet did not get healthy (Get \"http://127.0.0.1:10248/healthz\": dial tcp 127.0.0.1:10248: connect: connection refused)"},
	"init-no-control-plane":       {fault.ControlPlaneFailed, retryOnce, "kube-scheduler check failed at https://127.0.0.1:10259/livez: "},
	"init-no-etcd":                {fault.ControlPlaneFailed, retryOnce, "did not get healthy: kube-apiserver check failed at https://10.1.1.10:6443/livez: "},
	"init-node-not-registered":    {fault.KubeletFailed, retryOnce, "kubelet runs, but has not registered the node control-1"},

	"1.29.15/init-containerd-unreachable": {fault.ContainerdFailed, retryOnce, "this machine is not fit: CRI: container runtime is not running: "},
	"1.29.15/join-containerd-unreachable": {fault.ContainerdFailed, retryOnce, "this machine is not fit: CRI: container runtime is not running: "},
	"1.29.15/init-kubelet-not-healthy":    {fault.ControlPlaneFailed, retryOnce, "kubelet or the control plane of this node did not"},
	"1.33.13/init-kubelet-not-healthy":    {fault.ControlPlaneFailed, retryOnce, "unable to create ClusterRoleBinding: "},
	"1.33.13/init-no-control-plane":       {fault.ControlPlaneFailed, retryOnce, "dial tcp 10.1.1.10:6443: connect: connection refused"},

	"init-bad-version":               {fault.UserdataInvalid, retryNever, `version "v1.34.x" doesn't match`},
	"init-version-too-old":           {fault.VersionSkew, retryNever, ".0 and newer, and the cluster has v1.27.3"},
	"init-wrong-type":                {fault.UserdataInvalid, retryNever, "refuses the value of ClusterConfiguration.networking: it must not be a string"},
	"init-unknown-feature-gate":      {fault.UserdataInvalid, retryNever, "Wrong is not a valid feature name"},
	"init-wrong-api-version":         {fault.VersionSkew, retryNever, "of kubeadm.k8s.io/v1beta9"},
	"init-old-api-version":           {fault.VersionSkew, retryNever, "of kubeadm.k8s.io/v1beta2"},
	"init-malformed-token":           {fault.UserdataInvalid, retryNever, `the bootstrap token "[redacted]" was not of the form`},
	"init-malformed-certificate-key": {fault.UserdataInvalid, retryNever, `the value of certificateKey: "[redacted]": invalid certificate key size 4`},
	"init-malformed-network":         {fault.UserdataInvalid, retryNever, `the value of networking.podSubnet: "10.244.0.0": couldn't parse subnet`},
	"init-invalid-name":              {fault.UserdataInvalid, retryNever, `the value of nodeRegistration.name: "node_1"`},

	"join-api-refused":        {fault.APIUnreachable, retryReachable, "the API server 10.1.1.10:6444 does not answer: dial tcp 10.1.1.10:6444: connect: connection refused"},
	"join-api-refused-killed": {fault.APIUnreachable, retryReachable, "the API server 10.1.1.10:6444 does not answer: dial tcp 10.1.1.10:6444: connect: connection refused"},
	"join-api-no-host":        {fault.APIUnreachable, retryReachable, "10.1.1.99:6443: connect: no route to host"},
	"join-api-no-route":       {fault.APIUnreachable, retryReachable, "192.0.2.7:6443: connect: no route to host"},
	"join-api-silent":         {fault.APIUnreachable, retryReachable, "(Client.Timeout exceeded while awaiting headers)"},
	"join-api-unknown-name":   {fault.APIUnreachable, retryReachable, "lookup api.example.invalid on "},
	"join-api-not-tls":        {fault.APIUnreachable, retryReachable, "http: server gave HTTP response to HTTPS client"},

	"join-token-unknown":              {fault.JoinTokenInvalid, retryNever, "the join token fedcba, or it has expired"},
	"join-token-wrong-secret":         {fault.JoinTokenInvalid, retryNever, "the second half of the join token"},
	"join-token-no-authentication":    {fault.JoinTokenInvalid, retryNever, "the cluster refuses the join token"},
	"join-token-expired":              {fault.JoinTokenInvalid, retryNever, "the join token abcdef, or it has expired"},
	"join-token-expired-still-signed": {fault.JoinTokenInvalid, retryNever, "the cluster refuses the join token"},
	"join-token-malformed":            {fault.UserdataInvalid, retryNever, `discovery.bootstrapToken.token: "[redacted]": the bootstrap token is invalid`},
	"join-token-without-rights":       {fault.ClusterNotJoinable, retryNever, "user system:bootstrap:abcdef may not get configmaps kubeadm-config"},
	"join-kubelet-config-forbidden":   {fault.ClusterNotJoinable, retryNever, "user system:bootstrap:abcdef may not get configmaps kubelet-config"},
	"join-nodes-forbidden":            {fault.ClusterNotJoinable, retryNever, "user system:bootstrap:abcdef may not get nodes node-1"},

	"join-ca-mismatch":                    {fault.ClusterCAMismatch, retryNever, "has the CA sha256:"},
	"join-ca-unknown-authority":           {fault.ClusterCAMismatch, retryNever, "the API server 10.1.1.10:6443 has a certificate of another CA"},
	"join-ca-hash-malformed":              {fault.UserdataInvalid, retryNever, `the CA's hash: invalid hash "sha256:zz"`},
	"join-api-address-not-in-certificate": {fault.APICertificateInvalid, retryNever, "is for 10.96.0.1, 10.1.1.10, not for 10.1.1.11"},
	"join-clock-behind":                   {fault.ClockSkew, retryClock, "the certificate of the API server 10.1.1.10:6443 begins at 20"},
	"join-clock-behind-pinned":            {fault.ClockSkew, retryClock, "the certificate of the API server 10.1.1.10:6443 begins at 20"},
	"join-clock-ahead":                    {fault.ClockSkew, retryClock, "the certificate of the API server 10.1.1.10:6443 ended at 20"},

	"join-containerd-unreachable":        {fault.ContainerdFailed, retryOnce, "containerd does not answer kubeadm"},
	"join-leftovers":                     {fault.KubeadmPreflight, retryNever, "kubelet.conf already exists; FileAvailable--etc-kubernetes-pki-ca.crt"},
	"join-ca-pinned-kubelet-not-healthy": {fault.KubeletFailed, retryOnce, "kubelet did not get healthy"},
	"join-kubelet-no-certificate":        {fault.KubeletFailed, retryOnce, "kubelet got no certificate"},
	"join-control-plane-not-healthy":     {fault.ControlPlaneFailed, retryOnce, "kube-apiserver check failed at "},

	"join-certificate-key-wrong":     {fault.CertificateKeyWrong, retryNever, "does not open the certificates"},
	"join-certificate-key-expired":   {fault.CertificateKeyExpired, retryNever, "does not hold the certificates"},
	"join-certificate-key-malformed": {fault.UserdataInvalid, retryNever, `controlPlane.certificateKey: "[redacted]": invalid certificate key size 2`},

	"join-no-control-plane-endpoint": {fault.ClusterNotJoinable, retryNever, "no controlPlaneEndpoint"},
	"join-cluster-too-old":           {fault.VersionSkew, retryNever, ".0 and newer, and the cluster has v1.30.2"},
	"join-etcd-unreachable":          {fault.EtcdUnhealthy, retryBackOff, "error syncing endpoints with etcd: context deadline exceeded"},
	"join-etcd-learner-not-started":  {fault.EtcdUnhealthy, retryOnce, "the etcd of this node did not start"},
	"join-etcd-learner-limit":        {fault.EtcdLearnerLimit, retryBackOff, "another control node is joining"},
	"join-etcd-quorum-lost":          {fault.APIUnreachable, retryReachable, "Client.Timeout exceeded"},
	"join-cluster-info-missing":      {fault.ClusterNotJoinable, retryBackOff, "its ConfigMap cluster-info not found"},
	"join-cluster-info-forbidden":    {fault.ClusterNotJoinable, retryBackOff, "its ConfigMap cluster-info is forbidden"},
	"join-cluster-config-missing":    {fault.ClusterNotJoinable, retryNever, "the cluster has no ConfigMap kubeadm-config"},
	"join-kubelet-config-missing":    {fault.ClusterNotJoinable, retryNever, "the cluster has no ConfigMap kubelet-config"},
	"upgrade-trial-job-slow":         {fault.UpgradeFailed, retryUnchecked, "did not complete in 15s"},
	"upgrade-api-busy":               {fault.APIUnreachable, retryReachable, "ControlPlaneNodesReady: could not list nodes"},
	"join-name-taken":                {fault.NodeNameTaken, retryNever, "a node node-1 already"},
}

func TestClassify(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range failures(t) {
		seen[c.name], seen[c.path] = true, true
		t.Run(c.path, func(t *testing.T) {
			want, known := classes[c.path]
			if !known {
				want, known = classes[c.name]
			}
			output := c.read()
			got := classify(c.verb(), &output)
			if !known {
				t.Fatalf("no class is wanted for it; it is %+v", got)
			}
			if got.code != want.code || got.retry != want.retry || !strings.Contains(got.cause, want.says) || want.says == "" {
				t.Errorf("class = %+v, want %+v", got, want)
			}
			if got.remedy == "" && got.code.Remedy() == "" {
				t.Errorf("code %s has no remedy", got.code)
			}
		})
	}
	for name := range classes {
		if !seen[name] {
			t.Errorf("%s has not been captured", name)
		}
	}
}

// No rule is made up: each is the first to match a failure that was captured.
func TestClassesAreAllCaptured(t *testing.T) {
	t.Parallel()
	rulesSeen, findingsSeen := make([]bool, len(rules)), make([]bool, len(findings))
	for _, c := range failures(t) {
		output := c.read()
		got := classify(c.verb(), &output)
		if len(output.preflight) > 0 {
			for i, f := range findings {
				findingsSeen[i] = findingsSeen[i] || got.code == f.code && got.remedy == f.remedy && f.check().MatchString(output.preflight[0])
			}
			continue
		}
		for i, r := range rules {
			text := output.lastWord()
			if text == "" {
				text = output.where()
			}
			if _, ok := r.match(text, output.warnings); ok && (r.verb == "" || r.verb == c.verb()) {
				rulesSeen[i] = true
				break
			}
		}
	}
	for i, seen := range rulesSeen {
		if !seen {
			t.Errorf("no captured failure is for the rule %s: %q", rules[i].code, rules[i].says)
		}
	}
	for i, seen := range findingsSeen {
		if !seen {
			t.Errorf("no captured failure is for the findings %s", findings[i].check())
		}
	}
}

// C33: kubeadm prints tokens and keys that it refuses; nothing that is kept has them.
func TestFailuresKeepNoSecret(t *testing.T) {
	t.Parallel()
	shown := 0
	for _, c := range failures(t) {
		output := c.read()
		got := classify(c.verb(), &output)
		kept := strings.Join(slices.Concat(output.preflight, output.warnings, output.tail,
			output.chain, []string{output.cause, output.waiting, output.lastWord(), output.where(), got.cause}), "\n")
		for _, hidden := range c.Secrets {
			if strings.Contains(c.text, hidden) {
				shown++
				if !strings.Contains(kept, secret.Redacted) {
					t.Errorf("%s: what is kept does not say that something was taken out", c.path)
				}
			}
			if strings.Contains(kept, hidden) {
				t.Errorf("%s: what is kept has the secret %s", c.path, hidden)
			}
		}
	}
	if shown == 0 {
		t.Error("no captured output has a secret: this test shows nothing")
	}
}

// What nobody has seen before has the verb's own code, kubeadm's word and one more try.
func TestClassifyUnknown(t *testing.T) {
	t.Parallel()
	for verb, code := range map[string]fault.Code{"init": fault.KubeadmInitFailed, "join": fault.KubeadmJoinFailed} {
		output, _ := readOutput("error: error execution phase x: something new\n")
		if got, want := classify(verb, &output), (class{code: code, cause: "error execution phase x: something new", retry: retryOnce}); got != want {
			t.Errorf("%s: class = %+v, want %+v", verb, got, want)
		}
	}
}

// K1, K5: the class decides whether init is tried again, and says what to do.
func TestInitFailsWithAClass(t *testing.T) {
	t.Parallel()
	for name, runs := range map[string]int{"init-malformed-network": 1, "init-no-etcd": 3} {
		f := newFakeKubeadm(t, existing(t))
		text := string(testdata(t, "failures/1.34.4/"+name+"/output.txt"))
		f.failures = []string{text, text}
		failed := fault.As(f.init(t, nil))
		want := classes[name]
		if failed.Code != want.code || !strings.Contains(failed.Message, want.says) || failed.Hint == "" || len(failed.Log) == 0 {
			t.Errorf("%s: failed with %+v, want %+v", name, failed, want)
		}
		if len(f.ran) != runs {
			t.Errorf("%s: kubeadm ran as %q, want %d runs", name, f.ran, runs)
		}
	}
}

func FuzzClassify(f *testing.F) {
	for _, c := range failures(f) {
		f.Add(c.verb(), c.text)
	}
	f.Add("join", "error: configmaps \"\x1b[2J\" is forbidden: User \"\" cannot get \n")
	codes := map[fault.Code]bool{}
	for _, entry := range fault.Catalogue() {
		codes[entry.Code] = true
	}
	f.Fuzz(func(t *testing.T, verb, text string) {
		output, _ := readOutput(text)
		got := classify(verb, &output)
		if !codes[got.code] {
			t.Errorf("code %q is not in the catalogue", got.code)
		}
		limit := 2 * keepChain * maxLine
		if len(output.preflight) > 0 {
			limit = (keepPreflight + 2) * 2 * maxLine
		}
		if len(got.cause) > limit {
			t.Errorf("the cause has %d bytes", len(got.cause))
		}
		if strings.ContainsFunc(got.cause, func(r rune) bool { return r != '\t' && unicode.IsControl(r) }) {
			t.Errorf("the cause %q has control characters", got.cause)
		}
	})
}
