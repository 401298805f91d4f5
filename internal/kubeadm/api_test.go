// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host/hosttest"
)

// apiServer is a TLS server that knows kubeadm's administrator by certificate.
type testAPI struct {
	*httptest.Server
	kubeconfig string
}

// newTestAPI serves paths; but for /version and cluster-info only to the
// administrator.
func newTestAPI(t testing.TB, paths map[string]http.HandlerFunc) *testAPI {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certificate := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes-admin"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, certificate, certificate, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for path, handler := range paths {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if path != "/version" && path != clusterInfoPath && len(r.TLS.PeerCertificates) == 0 {
				w.WriteHeader(http.StatusForbidden)
				fmt.Fprint(w, `{"message":"anonymous"}`)
				return
			}
			handler(w, r)
		})
	}
	server := httptest.NewUnstartedServer(mux)
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	server.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients}
	server.StartTLS()
	t.Cleanup(server.Close)

	encode := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return &testAPI{server, fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority-data: %s
    server: %s
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: kubernetes-admin
  name: kubernetes-admin@kubernetes
current-context: kubernetes-admin@kubernetes
users:
- name: kubernetes-admin
  user:
    client-certificate-data: %s
    client-key-data: %s
`, encode("CERTIFICATE", server.Certificate().Raw), server.URL, encode("CERTIFICATE", der), encode("EC PRIVATE KEY", keyDER))}
}

func (s *testAPI) open(t testing.TB) *API {
	t.Helper()
	api, err := parseKubeconfig([]byte(s.kubeconfig), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	api.bootID = "boot-1"
	return api
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

func condition(status, reason, message string) string {
	return fmt.Sprintf(`{"metadata":{"name":"n1"},"status":{"conditions":[{"type":"MemoryPressure","status":"False"},{"type":"Ready","status":%q,"reason":%q,"message":%q}],"nodeInfo":{"bootID":"boot-1"}}}`,
		status, reason, message)
}

const noCNI = "container runtime network not ready: cni plugin not initialized"

func TestWaitReadyByWatch(t *testing.T) {
	t.Parallel()
	var watches atomic.Int32
	server := newTestAPI(t, map[string]http.HandlerFunc{"/api/v1/nodes": func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		if query.Get("watch") != "1" || query.Get("fieldSelector") != "metadata.name=n1" {
			t.Errorf("query %v is no watch of the node", query)
		}
		send := func(kind, object string) {
			fmt.Fprintf(w, `{"type":%q,"object":%s}`+"\n", kind, object)
			w.(http.Flusher).Flush()
		}
		switch watches.Add(1) {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, "still starting")
		case 2:
			send("ADDED", condition("False", "KubeletNotReady", noCNI))
			send("MODIFIED", condition("False", "KubeletNotReady", noCNI))
			// and the connection ends
		case 3:
			send("ERROR", `{"kind":"Status","message":"too old resource version"}`)
		default:
			send("ADDED", condition("False", "KubeletNotReady", noCNI))
			send("MODIFIED", condition("True", "KubeletReady", "kubelet is posting ready status"))
			<-r.Context().Done() // a watch stays open
		}
	}})
	m := hosttest.New(t)
	m.Write(AdminConf, server.kubeconfig)
	var reports []string
	err := WaitReady(t.Context(), m.Host(), "N1", func(format string, args ...any) { reports = append(reports, fmt.Sprintf(format, args...)) })
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(reports, "\n")
	for _, want := range []string{"503", "not registered", "node n1 is not Ready: " + noCNI, "too old resource version"} {
		if !strings.Contains(all, want) {
			t.Errorf("reports\n%s\nlack %q", all, want)
		}
	}
	if got := watches.Load(); got != 4 {
		t.Errorf("%d watches, want 4", got)
	}
}

func TestWaitReadyGivesUpWithTheReason(t *testing.T) {
	t.Parallel()
	server := newTestAPI(t, map[string]http.HandlerFunc{
		"/api/v1/nodes": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"type":"ADDED","object":%s}`, condition("False", "KubeletNotReady", noCNI))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
		"/api/v1/namespaces/kube-system/pods": says(`{"items":[{"metadata":{"name":"scheduler-n1"},"status":{"containerStatuses":[{"name":"scheduler","restartCount":7,
			"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"exitCode":1,"finishedAt":"2026-11-20T12:00:00Z"}}}]}}]}`),
		"/api/v1/namespaces/kube-system/pods/scheduler-n1/log": says("panic: password hunter2 is wrong"),
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := server.open(t).waitReady(ctx, "n1", "", func(format string, args ...any) {
		if strings.Contains(fmt.Sprintf(format, args...), noCNI) {
			cancel()
		}
	})
	if err == nil || fault.As(err).Code != fault.NodeNotReady || !strings.Contains(err.Error(), noCNI) || !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want %s with the reason", err, fault.NodeNotReady)
	}
	// The message goes where every user may read it: what the container wrote may not.
	if want := "; scheduler of scheduler-n1 ended with 1, started again 7 times"; err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2")) {
		t.Errorf("error = %v, want that %s, and no more of it", err, want)
	}
}

func TestProbes(t *testing.T) {
	t.Parallel()
	server := newTestAPI(t, map[string]http.HandlerFunc{
		"/version":                    says(`{"gitVersion":"v1.34.4"}`),
		"/api/v1/nodes/n1":            says(condition("True", "KubeletReady", "")),
		"/api/v1/nodes/n2":            says(condition("False", "KubeletNotReady", noCNI)),
		"/api/v1/nodes/n3":            says(`{"status":{}}`),
		"/api/v1/nodes/n5":            says(strings.ReplaceAll(condition("True", "KubeletReady", ""), "boot-1", "boot-0")),
		"/api/v1/namespaces/web/pods": says(`{"items":[{"metadata":{"name":"kubernetes-dashboard-1"},"status":{"phase":"Pending"}},{"metadata":{"name":"kubernetes-dashboard-2"},"status":{"phase":"Running"}},{"metadata":{"name":"scraper"},"status":{"phase":"Failed"}}]}`),
		"/api/v1/namespaces/off/pods": says(`{"items":[{"metadata":{"name":"kubernetes-dashboard-1"},"status":{"phase":"Pending"}}]}`),
		"/api/v1/namespaces/bad/pods": says(`{"items":`),
	})
	api := server.open(t)
	if got, err := api.Version(t.Context()); err != nil || got != "v1.34.4" {
		t.Errorf("Version = %q, %v; want v1.34.4", got, err)
	}
	for name, want := range map[string]string{"n1": "true KubeletReady", "N1": "true KubeletReady", "n2": "false " + noCNI,
		"n3": "false the kubelet has not reported yet", "n4": "false the node has not registered yet",
		"n5": "false the kubelet has not reported since this machine booted"} {
		ready, detail, err := api.NodeReady(t.Context(), name)
		if got := fmt.Sprint(ready, " ", detail); err != nil || got != want {
			t.Errorf("NodeReady(%s) = %s, %v; want %s", name, got, err, want)
		}
	}
	for namespace, want := range map[string]string{
		"web": "true kubernetes-dashboard-1 Pending, kubernetes-dashboard-2 Running",
		"off": "false kubernetes-dashboard-1 Pending",
	} {
		running, detail, err := api.PodRunning(t.Context(), namespace, "kubernetes-dashboard")
		if got := fmt.Sprint(running, " ", detail); err != nil || got != want {
			t.Errorf("PodRunning(%s) = %s, %v; want %s", namespace, got, err, want)
		}
	}
	if _, detail, err := api.PodRunning(t.Context(), "web", "headlamp"); err != nil || !strings.Contains(detail, "no pod in web") {
		t.Errorf("PodRunning of none = %q, %v", detail, err)
	}
	if _, _, err := api.PodRunning(t.Context(), "bad", "x"); err == nil {
		t.Error("half an answer was taken for one")
	}
}

// The management server asks /version without credentials: a cluster that
// refuses that fails its check, though an administrator sees nothing wrong.
func TestVersionIsAskedAnonymously(t *testing.T) {
	t.Parallel()
	server := newTestAPI(t, map[string]http.HandlerFunc{"/version": func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) > 0 {
			t.Error("the client showed its certificate")
		}
		w.WriteHeader(http.StatusUnauthorized)
	}})
	_, err := server.open(t).Version(t.Context())
	var status *StatusError
	if !errors.As(err, &status) || status.Code != http.StatusUnauthorized {
		t.Errorf("error = %v, want 401", err)
	}
}

func TestProbesEndWithTheContext(t *testing.T) {
	t.Parallel()
	server := newTestAPI(t, map[string]http.HandlerFunc{"/version": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := server.open(t).Version(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v, want that of the context", err)
	}
}

func TestOpenAPIBeforeInit(t *testing.T) {
	t.Parallel()
	if _, err := OpenAPI(hosttest.New(t).Host()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error = %v, want a missing file", err)
	}
}

func TestParseKubeconfigRefuses(t *testing.T) {
	t.Parallel()
	good := newTestAPI(t, nil).kubeconfig
	for name, change := range map[string][2]string{
		"no YAML":          {"clusters:", "clusters: ]["},
		"no server":        {"server: https", "server: http"},
		"no such context":  {"current-context: ", "current-context: x"},
		"a CA of nonsense": {"certificate-authority-data: LS0", "certificate-authority-data: AAA"},
		"no base64":        {"client-key-data: ", "client-key-data: '*' #"},
		"another key":      {"client-key-data: ", "client-key-data: AAAA #"},
		"no user":          {"- name: kubernetes-admin", "- name: other"},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if text == good {
			t.Fatalf("%s: the text did not change", name)
		}
		if _, err := parseKubeconfig([]byte(text), nil); err == nil {
			t.Errorf("%s: it was taken", name)
		} else if strings.Contains(err.Error(), "BEGIN") || len(err.Error()) > 200 {
			t.Errorf("%s: error %q shows the file's content", name, err)
		}
	}
}
