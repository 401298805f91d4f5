// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/secret"
)

const joinCommand = "join --config /run/nodeagent/kubeadm.yaml --v=5"

// clusterInfoOf is the ConfigMap of a cluster with that server's certificate for a CA,
// signed for the tokens with those ids.
func clusterInfoOf(api *testAPI, tokenIDs ...string) string {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: api.Certificate().Raw})
	data := map[string]string{"kubeconfig": fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters:\n- name: \"\"\n  cluster:\n    server: %s\n    certificate-authority-data: %s\n",
		api.URL, base64.StdEncoding.EncodeToString(ca))}
	for _, id := range tokenIDs {
		data["jws-kubeconfig-"+id] = "header..signature"
	}
	text, _ := json.Marshal(map[string]any{"metadata": map[string]any{"creationTimestamp": time.Now().UTC().Add(-time.Minute).Format(time.RFC3339)}, "data": data})
	return string(text)
}

// The controller manager of a cluster that is being made may come up minutes after its
// API server; one that has run for long signs at once, or never.
func TestSignerLimit(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		info clusterInfo
		want time.Duration
	}{
		{clusterInfo{date: now, made: now.Add(-time.Minute)}, 10 * time.Minute},
		{clusterInfo{date: now, made: now.Add(-24 * time.Hour)}, 30 * time.Second},
		{clusterInfo{date: now}, 30 * time.Second},
		{clusterInfo{made: now}, 30 * time.Second},
	} {
		if got := test.info.signerLimit(); got != test.want {
			t.Errorf("%+v: %s, want %s", test.info, got, test.want)
		}
	}
}

func hashOf(api *testAPI) string {
	hash := sha256.Sum256(api.Certificate().RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(hash[:])
}

// joinable is a cluster that can be joined, with what else it serves.
func joinable(t *testing.T, paths map[string]http.HandlerFunc) *testAPI {
	var api *testAPI
	handlers := map[string]http.HandlerFunc{"/readyz": says("ok"), clusterInfoPath: func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, clusterInfoOf(api, "abcdef"))
	}}
	for path, handler := range paths {
		handlers[path] = handler
	}
	api = newTestAPI(t, handlers)
	return api
}

func planFor(api *testAPI) JoinPlan {
	plan := workerPlan()
	plan.Endpoint = strings.TrimPrefix(api.URL, "https://")
	return plan
}

// K3: where the userdata says nothing of the CA, kubeadm is held to the one that was
// seen, which the caller can tell.
func TestJoinOnce(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, joinable(t, nil))
	var config string
	f.m.Program(Kubeadm, func(command host.Command) (string, error) {
		config = f.m.Read(configFile)
		return f.run(command)
	})
	plan := planFor(f.api)
	plan.CertificateKey = secret.New(testKey) // which the fake shows
	ca, err := Join(t.Context(), f.m.Host(), plan, discard)
	if want := (CA{Hash: hashOf(f.api)}); err != nil || ca != want {
		t.Fatalf("Join = %+v, %v; want %+v", ca, err, want)
	}
	if !strings.Contains(config, "- "+hashOf(f.api)) || strings.Contains(config, "unsafeSkipCAVerification") {
		t.Errorf("kubeadm's configuration does not name the CA that was seen:\n%s", config)
	}
	if _, err := Join(t.Context(), f.m.Host(), planFor(f.api), discard); err != nil || !slices.Equal(f.ran, []string{joinCommand}) {
		t.Errorf("kubeadm ran as %q, %v; want %q once", f.ran, err, joinCommand)
	}
	if info, err := os.Stat(f.m.Path(JoinLog)); err != nil || info.Mode() != 0o600 {
		t.Errorf("%s is %v (%v), want mode 0600", JoinLog, info, err)
	}
	if f.m.Host().Exists(rootKubeconfig) || f.m.Host().Exists(configFile) {
		t.Error("a worker has root's kubeconfig, or kubeadm's configuration is still there")
	}
	f.noSecrets(t)
}

// kubeadm joins nodes of any version; the pair is refused before it runs.
func TestJoinSkew(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		cluster, iso string
		control      bool
		want         string
	}{
		{cluster: "v1.34.4", iso: "1.34.4", control: true},
		{cluster: "v1.34.5", iso: "v1.34.4", control: true, want: "images of the cluster's version"},
		{cluster: "v1.34.5", iso: "v1.34.4"},
		{cluster: "v1.34.4", iso: "v1.31.0"},
		{cluster: "v1.34.4", iso: "v1.30.14", want: "3 minor versions older"},
		{cluster: "v1.34.4", iso: "v1.35.0", want: "must not be newer"},
		{cluster: "", iso: "v1.35.0", control: true},
		{cluster: "nightly", iso: "v1.35.0"},
	} {
		err := joinSkew(test.cluster, test.iso, test.control)
		if (err == nil) != (test.want == "") || err != nil && (!strings.Contains(err.Error(), test.want) || fault.As(err).Code != fault.VersionSkew) {
			t.Errorf("%s in a cluster of %s: %v, want %q", test.iso, test.cluster, err, test.want)
		}
	}
	f := newFakeKubeadm(t, joinable(t, map[string]http.HandlerFunc{"/version": says(`{"gitVersion":"v1.20.0"}`)}))
	if _, err := Join(t.Context(), f.m.Host(), planFor(f.api), discard); err == nil || fault.As(err).Code != fault.VersionSkew || len(f.ran) > 0 {
		t.Errorf("Join = %v and ran %q; want %s and nothing", err, f.ran, fault.VersionSkew)
	}
}

// Issue 6: a node that knows its cluster by a file waits for that cluster too, and
// leaves the CA to kubeadm.
func TestJoinByFile(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, joinable(t, nil))
	plan := planFor(f.api)
	plan.Endpoint, plan.UnsafeSkipCA, plan.DiscoveryFile = "", false, "/etc/kubernetes/discovery.conf"
	for text, want := range map[string]string{"a: 1": "does not describe one cluster", "clusters: [{cluster: {server: http://x}}]": "https://host:port"} {
		f.m.Write(plan.DiscoveryFile, text)
		_, err := Join(t.Context(), f.m.Host(), plan, discard)
		wantCode(t, err, fault.KubeadmJoinFailed, want)
	}
	f.m.Write(plan.DiscoveryFile, f.api.kubeconfig)
	var config string
	f.m.Program(Kubeadm, func(command host.Command) (string, error) {
		config = f.m.Read(configFile)
		return f.run(command)
	})
	ca, err := Join(t.Context(), f.m.Host(), plan, discard)
	if want := (CA{Hash: hashOf(f.api), Verified: true}); err != nil || ca != want {
		t.Fatalf("Join = %+v, %v; want %+v", ca, err, want)
	}
	if !strings.Contains(config, "kubeConfigPath: /etc/kubernetes/discovery.conf") || !strings.Contains(config, "tlsBootstrapToken: "+testToken) || strings.Contains(config, "caCertHashes") {
		t.Errorf("kubeadm's configuration:\n%s", config)
	}
}

func TestJoinWithAHash(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, joinable(t, nil))
	plan := planFor(f.api)
	plan.CAHashes, plan.ControlPlane, plan.AdvertiseAddress = []string{testHash}, true, "127.0.0.1"
	ca, err := Join(t.Context(), f.m.Host(), plan, discard)
	if err != nil || !ca.Verified {
		t.Errorf("Join = %+v, %v; want a CA that kubeadm has verified", ca, err)
	}
	if f.m.Read(rootKubeconfig) != f.api.kubeconfig {
		t.Error("root of a control node has no kubeconfig")
	}
}

// A node that is faster than its control plane waits, and says for what.
func TestJoinWaitsForTheCluster(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	var api *testAPI
	api = joinable(t, map[string]http.HandlerFunc{clusterInfoPath: func(w http.ResponseWriter, _ *http.Request) {
		switch asked.Add(1) {
		case 1:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"message":"configmaps \"cluster-info\" not found"}`)
		case 2:
			fmt.Fprint(w, clusterInfoOf(api, "others"))
		default:
			fmt.Fprint(w, clusterInfoOf(api, "others", "abcdef"))
		}
	}})
	f := newFakeKubeadm(t, api)
	var reports []string
	_, err := Join(t.Context(), f.m.Host(), planFor(f.api), func(format string, args ...any) { reports = append(reports, fmt.Sprintf(format, args...)) })
	if err != nil || asked.Load() != 3 {
		t.Fatalf("error %v after %d requests, want none after 3", err, asked.Load())
	}
	all := strings.Join(reports, "\n")
	for _, want := range []string{"waiting for the API server " + planFor(api).Endpoint + ": the API server answers 404", "not signed its description for the bootstrap token abcdef yet, which may take 10m0s"} {
		if !strings.Contains(all, want) {
			t.Errorf("reports\n%s\nlack %q", all, want)
		}
	}
}

func TestJoinWithoutACluster(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, joinable(t, nil))
	plan := planFor(f.api)
	f.api.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := Join(ctx, f.m.Host(), plan, discard)
	if err == nil || fault.As(err).Code != fault.APIUnreachable || !strings.Contains(err.Error(), plan.Endpoint+": ") || !strings.Contains(err.Error(), "connection refused") || len(f.ran) > 0 {
		t.Errorf("error %v after %q, want %s with server and cause", err, f.ran, fault.APIUnreachable)
	}
}

// K4: a clock that differs is named with by how much; one that is set meanwhile is
// waited for.
func TestJoinWithAWrongClock(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wrongFor int32 // requests
		ahead    time.Duration
		want     string
	}{
		"ahead":  {1000, 2 * time.Hour, "ahead of that of the API server"},
		"behind": {1000, -10 * time.Minute, "behind that of the API server"},
		"set":    {1, time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			var api *testAPI
			api = joinable(t, map[string]http.HandlerFunc{clusterInfoPath: func(w http.ResponseWriter, _ *http.Request) {
				if asked.Add(1) <= test.wrongFor {
					w.Header().Set("Date", time.Now().Add(-test.ahead).UTC().Format(http.TimeFormat))
				}
				fmt.Fprint(w, clusterInfoOf(api, "abcdef"))
			}})
			f := newFakeKubeadm(t, api)
			ctx := t.Context()
			if test.want != "" {
				limited, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				ctx = limited
			}
			_, err := Join(ctx, f.m.Host(), planFor(api), discard)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("error %v", err)
			case test.want != "" && (err == nil || fault.As(err).Code != fault.ClockSkew || !strings.Contains(err.Error(), test.want) || len(f.ran) > 0):
				t.Errorf("error %v after %q, want %s with %q", err, f.ran, fault.ClockSkew, test.want)
			}
		})
	}
}

// A kill at any instruction of an earlier Join: what is found decides. What may be a
// member is never reset (K1, K7).
func TestJoinAfterAKill(t *testing.T) {
	t.Parallel()
	const node = `{"metadata":{"name":"prod1-node-19a2f0c4d11"}}`
	const controlNode = `{"metadata":{"name":"prod1-node-19a2f0c4d11","labels":{"node-role.kubernetes.io/control-plane":""}}}`
	const reset = resetCommand
	for name, test := range map[string]struct {
		phase   phase
		control bool
		object  string // of the node
		without string // a file
		clean   bool
		want    []string
	}{
		"before kubeadm ran":               {phase: phaseStarted, clean: true, want: []string{joinCommand}},
		"before kubelet was a member":      {phase: phaseStarted, without: KubeletConf, want: []string{reset, joinCommand}},
		"before kubelet registered":        {phase: phaseStarted, want: []string{reset, joinCommand}},
		"after kubelet registered":         {phase: phaseStarted, object: node},
		"control plane without API server": {phase: phaseStarted, control: true, object: node, without: apiManifest, want: []string{reset, joinCommand}},
		"control plane without its label":  {phase: phaseStarted, control: true, object: node, want: []string{"join phase control-plane-join mark-control-plane --config /run/nodeagent/kubeadm.yaml --v=5"}},
		"control plane, before the note":   {phase: phaseStarted, control: true, object: controlNode},
		"a member":                         {phase: phaseMember, clean: true},
		"a member that others made":        {object: node},
		"leftovers that others made (K1)":  {want: []string{joinCommand}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			paths := map[string]http.HandlerFunc{}
			if test.object != "" {
				paths[nodePath("prod1-node-19a2f0c4d11")] = says(test.object)
			}
			f := newFakeKubeadm(t, joinable(t, paths))
			if !test.clean {
				f.leave()
				f.m.Write(KubeletConf, f.api.kubeconfig)
				if !test.control {
					f.remove(t, apiManifest)
				}
			}
			if test.without != "" {
				f.remove(t, test.without)
			}
			if test.phase != phaseNone {
				if err := (journal{Phase: test.phase}).write(f.m.Host()); err != nil {
					t.Fatal(err)
				}
			}
			plan := planFor(f.api)
			if test.control {
				host, port, _ := strings.Cut(plan.Endpoint, ":")
				plan.ControlPlane, plan.AdvertiseAddress = true, "192.0.2.1" // the flags win
				plan.Flags = []string{"--apiserver-advertise-address=" + host, "--apiserver-bind-port", port}
			}
			if _, err := Join(t.Context(), f.m.Host(), plan, discard); err != nil {
				t.Errorf("error = %v", err)
			}
			if !slices.Equal(f.ran, test.want) {
				t.Errorf("kubeadm ran as %q, want %q", f.ran, test.want)
			}
			if got, err := readJournal(f.m.Host()); err != nil || got.Phase != phaseMember {
				t.Errorf("journal = %+v, %v; want a member", got, err)
			}
		})
	}
}

// K5, K6: what only other nodes can mend is tried again, what needs an operator is
// not, and the first error is the one that is told.
func TestJoinRetries(t *testing.T) {
	t.Parallel()
	const learners = "error: error execution phase etcd-join: error creating local etcd static pod manifest file: etcdserver: too many learner members in cluster\n"
	const noCertificates = `error: error execution phase control-plane-prepare/download-certs: error downloading certs: error downloading the secret: Secret "kubeadm-certs" was not found in the "kube-system" Namespace.` + "\n"
	for name, test := range map[string]struct {
		failures []string
		want     fault.Code // "" for none
		runs     []string
	}{
		"another control node joins":   {[]string{learners}, "", []string{joinCommand, resetCommand, joinCommand}},
		"the certificates have gone":   {[]string{noCertificates}, fault.CertificateKeyExpired, []string{joinCommand}},
		"the certificates go then":     {[]string{learners, noCertificates}, fault.EtcdLearnerLimit, []string{joinCommand, resetCommand, joinCommand}},
		"nobody knows, and then works": {[]string{"error: strange\n"}, "", []string{joinCommand, resetCommand, joinCommand}},
		"nobody knows":                 {[]string{"error: strange\n", "error: stranger\n"}, fault.KubeadmJoinFailed, []string{joinCommand, resetCommand, joinCommand}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeKubeadm(t, joinable(t, nil))
			f.failures = test.failures
			_, err := Join(t.Context(), f.m.Host(), planFor(f.api), discard)
			if (err == nil) != (test.want == "") || err != nil && fault.As(err).Code != test.want {
				t.Errorf("error = %v, want %q", err, test.want)
			}
			if !slices.Equal(f.ran, test.runs) {
				t.Errorf("kubeadm ran as %q, want %q", f.ran, test.runs)
			}
		})
	}
}

func (f *fakeKubeadm) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(f.m.Path(name)); err != nil {
		t.Fatal(err)
	}
}

func TestClusterInfoRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "]", "clusters: []", "clusters: [{cluster: {certificate-authority-data: '*'}}]", "clusters: [{cluster: {certificate-authority-data: AAAA}}]",
		"clusters: [{cluster: {certificate-authority-data: " + base64.StdEncoding.EncodeToString([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")) + "}}]"} {
		if hash, err := caHashOf(text); err == nil {
			t.Errorf("caHashOf(%q) = %s, want an error", text, hash)
		}
	}
}
