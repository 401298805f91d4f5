// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"strings"
	"testing"

	"nodeagent/internal/secret"
)

const testHash = "sha256:e5b5c1a1c1d6f0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f6071829"

// workerPlan is what the management server's userdata asks of a worker.
func workerPlan() JoinPlan {
	return JoinPlan{NodeName: "Prod1-node-19a2f0c4d11", Version: "v1.34.4", Endpoint: "10.1.1.57:6443", Token: secret.New(testToken), UnsafeSkipCA: true}
}

func TestRenderJoin(t *testing.T) {
	t.Parallel()
	old := workerPlan()
	old.Version = "v1.30.14"
	pinned := workerPlan() // a hash wins over not looking at all (K3)
	pinned.CAHashes = []string{testHash}
	control := workerPlan()
	control.ControlPlane, control.AdvertiseAddress, control.CertificateKey = true, "10.1.1.58", secret.New(testKey)
	flags := JoinPlan{Version: "1.35.0", Flags: []string{
		"--control-plane", "--discovery-token-unsafe-skip-ca-verification", "--token", testToken, "--tls-bootstrap-token=" + testToken, "--certificate-key", testKey,
		"--discovery-token-ca-cert-hash=" + testHash, "--discovery-token-ca-cert-hash", strings.Replace(testHash, "e5", "00", 1), "--node-name", "other",
		"--cri-socket=/run/x.sock", "--apiserver-advertise-address=10.1.1.58", "--apiserver-bind-port=6444", "--skip-phases=preflight", "--patches=/etc/patches",
		"--ignore-preflight-errors", "NumCPU,Mem", "--v=9", "--unheard-of=1",
	}}
	byFile := JoinPlan{Version: "1.34.4", DiscoveryFile: "/etc/kubernetes/discovery.conf", TLSBootstrapToken: secret.New(testToken)}
	for name, test := range map[string]struct {
		plan JoinPlan
		args string
	}{
		"worker":        {workerPlan(), ""},
		"before-1.31":   {old, ""},
		"pinned":        {pinned, ""},
		"control-plane": {control, ""},
		"all-flags":     {flags, "--ignore-preflight-errors NumCPU,Mem --v=9 --unheard-of=1"},
		"by-file":       {byFile, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, err := renderJoin(test.plan)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "kubeadm/join-"+name+".yaml", config.file)
			if got := strings.Join(config.args, " "); got != test.args {
				t.Errorf("arguments = %q, want %q", got, test.args)
			}
			// C33: in the file only, and known for scrubbing.
			for _, hidden := range []string{testToken, testKey} {
				if strings.Contains(string(config.file), hidden) && strings.Contains(scrubber(config.secrets)("with "+hidden+"."), hidden) {
					t.Errorf("%s is shown", hidden)
				}
			}
		})
	}
}

// Every problem at once.
func TestRenderJoinRefuses(t *testing.T) {
	t.Parallel()
	_, err := renderJoin(JoinPlan{Version: "newest", Flags: []string{"--apiserver-bind-port=x", "--control-plane=perhaps", "--patches", "--node-name"}})
	if err == nil {
		t.Fatal("a senseless plan was taken")
	}
	for _, want := range []string{"newest", "apiserver-bind-port", "control-plane", "patches", "node-name"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
}
