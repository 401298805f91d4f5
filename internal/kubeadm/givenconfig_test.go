// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/secret"
)

// cloudStackDocuments are those of a control plane on external etcd.
const cloudStackDocuments = `apiVersion: kubeadm.k8s.io/v1beta3
kind: ClusterConfiguration
apiServer:
  certSANs:
  - 203.0.113.9
controlPlaneEndpoint: 10.1.1.57:6443
etcd:
  external:
    endpoints:
    - http://10.1.1.61:2379
    - http://10.1.1.62:2379
---
apiVersion: kubeadm.k8s.io/v1beta3
kind: InitConfiguration
bootstrapTokens:
  - token: "` + testToken + `"
    ttl: "0"
nodeRegistration:
  criSocket: /run/containerd/containerd.sock
localAPIEndpoint:
  advertiseAddress: 10.1.1.57
  bindPort: 6443
certificateKey: ` + testKey + "\n"

// editedDocuments are an administrator's, who knows more than nodeagent.
const editedDocuments = `# mine
apiVersion: kubeadm.k8s.io/v1beta2
kind: ClusterConfiguration
kubernetesVersion: 1.30
useHyperKubeImage: false
dns: {type: CoreDNS, imageTag: v1.12.1}
imageRepository: example.com/k8s
unheardOf: {a: 007}
apiServer:
  timeoutForControlPlane: 20m0s
  extraArgs: {audit-log-maxage: "30"}
etcd:
  external:
    endpoints: [https://etcd.example.com:2379]
    caFile: /etc/ssl/etcd/ca.crt
    certFile: /etc/ssl/etcd/client.crt
    keyFile: /etc/ssl/etcd/client.key
---
apiVersion: kubeadm.k8s.io/v1beta2
kind: InitConfiguration
nodeRegistration:
  kubeletExtraArgs: {node-labels: a=b}
  imagePullPolicy: Always
skipPhases: [addon/kube-proxy]
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
maxPods: 200
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
`

// Issue 6: the userdata's file stays, nodeagent's additions come where it says nothing,
// in the words that the kubeadm on the ISO reads.
func TestRenderGivenInit(t *testing.T) {
	t.Parallel()
	plan := func(documents, version string, flags ...string) InitPlan {
		p := cloudStackPlan()
		p.Version, p.Documents, p.Flags = version, secret.New(documents), flags
		return p
	}
	edited := strings.Replace(editedDocuments, "kubernetesVersion: 1.30\n", "", 1)
	for name, test := range map[string]struct {
		plan InitPlan
		args string
	}{
		"given":             {plan(cloudStackDocuments, "1.34.4"), "--upload-certs"},
		"given-before-1.31": {plan(cloudStackDocuments, "1.30.14"), "--upload-certs"},
		"given-edited":      {plan(edited, "1.34.4", "--skip-phases=addon/coredns", "--ignore-preflight-errors", "NumCPU"), "--ignore-preflight-errors NumCPU --upload-certs"},
		"given-edited-1.30": {plan(strings.Replace(editedDocuments, "1.30\n", "1.30.1\n", 1), "1.34.4"), "--upload-certs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, err := renderInit(test.plan)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "kubeadm/init-"+name+".yaml", config.file)
			if args := strings.Join(config.args, " "); args != test.args || !config.externalEtcd || config.criSocket != "unix://"+CRISocket {
				t.Errorf("args %q, external etcd %v, socket %s", args, config.externalEtcd, config.criSocket)
			}
			again := test.plan
			again.Documents = secret.New(string(config.file))
			twice, err := renderInit(again)
			if err != nil || string(twice.file) != string(config.file) {
				t.Errorf("rendered again it differs (%v):\n%s", err, twice.file)
			}
		})
	}
	config, err := renderInit(plan(cloudStackDocuments, "1.34.4"))
	if err != nil || !slices.Contains(config.secrets, testToken) || !slices.Contains(config.secrets, testKey) {
		t.Errorf("secrets are not known as such: %d, %v", len(config.secrets), err)
	}
	access, err := plan(edited, "1.34.4").externalEtcd()
	if err != nil || access.CAFile != "/etc/ssl/etcd/ca.crt" || access.KeyFile != "/etc/ssl/etcd/client.key" || !slices.Equal(access.endpoints, []string{"https://etcd.example.com:2379"}) {
		t.Errorf("etcd %+v, %v", access, err)
	}
	if repository := plan(edited, "1.34.4").ImageRepository(); repository != "example.com/k8s" {
		t.Errorf("image repository %q", repository)
	}
	for want, p := range map[string]InitPlan{
		"reads kubeadm.k8s.io/v1beta3":  plan(strings.ReplaceAll(cloudStackDocuments, "v1beta3", "v1beta4"), "1.30.1"),
		"is no YAML":                    plan("a: [", "1.34.4"),
		"more than 16 documents":        plan(strings.Repeat("a: 1\n---\n", 20), "1.34.4"),
		`cannot read the version "vx"`:  plan(cloudStackDocuments, "x"),
		"--skip-phases lacks its value": plan(cloudStackDocuments, "1.34.4", "--skip-phases"),
	} {
		if _, err := renderInit(p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("renderInit: %v, want %q", err, want)
		}
	}
}

// What a NodeConfig says of external etcd stands in nodeagent's own file.
func TestRenderExternalEtcd(t *testing.T) {
	t.Parallel()
	plan := cloudStackPlan()
	plan.ExternalEtcd = []string{"http://10.1.1.61:2379"}
	config, err := renderInit(plan)
	if err != nil || !config.externalEtcd || !strings.Contains(string(config.file), "etcd:\n  external:\n    endpoints:\n      - http://10.1.1.61:2379\n") {
		t.Errorf("%v:\n%s", err, config.file)
	}
}

// K3: also with a file of the userdata, kubeadm is bound to the CA that was seen.
func TestRenderGivenJoin(t *testing.T) {
	t.Parallel()
	const join = `apiVersion: kubeadm.k8s.io/v1beta3
kind: JoinConfiguration
controlPlane:
  certificateKey: ` + testKey + `
discovery:
  timeout: 3m0s
  bootstrapToken:
    token: ` + testToken + `
    apiServerEndpoint: 10.1.1.57:6443
    unsafeSkipCAVerification: true
nodeRegistration:
  taints: []
`
	plan := JoinPlan{NodeName: "Cp-2", Version: "v1.34.4", ControlPlane: true, AdvertiseAddress: "10.1.1.58", CAHashes: []string{"sha256:" + testKey}, Documents: secret.New(join)}
	config, err := renderJoin(plan)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "kubeadm/join-given.yaml", config.file)
	if !slices.Contains(config.secrets, testKey) || !slices.Contains(config.secrets, testToken) {
		t.Error("secrets are not known as such")
	}
	plan.Documents = secret.New(cloudStackDocuments)
	if _, err := renderJoin(plan); err == nil || !strings.Contains(err.Error(), "has no JoinConfiguration") {
		t.Errorf("renderJoin: %v", err)
	}
}

// K1: with etcd elsewhere a control plane is whole without data of its own, and is not
// reset after a kill; but what an earlier one has left there is not its own.
func TestInitWithExternalEtcdAfterAKill(t *testing.T) {
	t.Parallel()
	again := []string{resetCommand, initCommand}
	for name, test := range map[string]struct {
		documents string
		described bool // cluster-info has this machine's CA
		want      []string
	}{
		"whole":            {cloudStackDocuments, true, nil},
		"of an earlier CA": {cloudStackDocuments, false, again},
		"its own etcd":     {"", true, again},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			info := func(w http.ResponseWriter, _ *http.Request) {}
			api := newTestAPI(t, map[string]http.HandlerFunc{"/readyz": says("ok"), proxyRolePath: says("{}"),
				clusterInfoPath: func(w http.ResponseWriter, r *http.Request) { info(w, r) }})
			described := api.kubeconfig
			if !test.described { // some other certificate
				described = regexp.MustCompile("certificate-authority-data: .*").ReplaceAllString(described,
					"certificate-authority-data: "+regexp.MustCompile("client-certificate-data: *(.*)").FindStringSubmatch(described)[1])
			}
			info = func(w http.ResponseWriter, _ *http.Request) {
				if err := json.NewEncoder(w).Encode(map[string]any{"data": map[string]string{"kubeconfig": described}}); err != nil {
					t.Error(err)
				}
			}
			f := newFakeKubeadm(t, api)
			f.leave()
			if _, err := f.m.Host().Remove(etcdData); err != nil {
				t.Fatal(err)
			}
			f.m.Write(journalFile, `{"phase":"started","bootID":"boot-0"}`)
			plan := cloudStackPlan()
			plan.Documents = secret.New(test.documents)
			if err := Init(t.Context(), f.m.Host(), plan, discard); err != nil || !slices.Equal(f.ran, test.want) {
				t.Errorf("kubeadm ran as %q (%v), want %q", f.ran, err, test.want)
			}
		})
	}
}
