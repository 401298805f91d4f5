// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/host/hosttest"
)

func certificateUntil(t *testing.T, end time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certificate := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: end.Add(-365 * 24 * time.Hour), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, certificate, certificate, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// C27: the first certificate to end is named, with what to do where that is near.
func TestCertificateDays(t *testing.T) {
	t.Parallel()
	now := time.Now().Truncate(time.Second)
	const day = 24 * time.Hour
	m := hosttest.New(t)
	if _, _, err := CertificateDays(m.Host(), now); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without certificates: %v", err)
	}
	m.Write(pkiFolder+"/ca.crt", certificateUntil(t, now.Add(3650*day)))
	m.Write(pkiFolder+"/etcd/server.crt", certificateUntil(t, now.Add(364*day+time.Hour)))
	check := func(wantOK bool, words ...string) {
		t.Helper()
		ok, detail, err := CertificateDays(m.Host(), now)
		if ok != wantOK || err != nil {
			t.Errorf("ok %v, error %v, want %v: %s", ok, err, wantOK, detail)
		}
		for _, word := range words {
			if !strings.Contains(detail, word) {
				t.Errorf("%q lacks %q", detail, word)
			}
		}
	}
	check(true, "364 days", "pki/etcd/server.crt")
	m.Write("/var/lib/kubelet/pki/kubelet-client-current.pem", certificateUntil(t, now.Add(29*day+time.Hour)))
	check(false, "29 days", "kubelet-client-current.pem", "kubeadm certs renew all")
	// That of newTestAPI's administrator lives an hour.
	m.Write(AdminConf, newTestAPI(t, nil).kubeconfig)
	check(false, "admin.conf expires in 0 days")
	m.Write(pkiFolder+"/apiserver.crt", certificateUntil(t, now.Add(-day)))
	check(false, "pki/apiserver.crt expired on "+now.Add(-day).UTC().Format(time.DateOnly))
	m.Write(pkiFolder+"/apiserver.crt", "nothing")
	if _, _, err := CertificateDays(m.Host(), now); err == nil || !strings.Contains(err.Error(), "/etc/kubernetes/pki/apiserver.crt") {
		t.Errorf("a file that is no certificate: %v", err)
	}
}

// K7: how many members of etcd work and may still fail.
func TestEtcdHealth(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		members []string // each "healthy", "sick", "gone", "learner" or "unstarted"
		ok      bool
		detail  string
	}{
		"one":       {[]string{"healthy"}, true, "1 of 1 members work, none may fail"},
		"three":     {[]string{"healthy", "healthy", "healthy"}, true, "3 of 3 members work, 1 may fail"},
		"one down":  {[]string{"healthy", "sick", "healthy"}, false, "2 of 3 members work, none may fail; m1: is not healthy: RAFT NO LEADER"},
		"two down":  {[]string{"healthy", "gone", "gone"}, false, "1 of 3 members work, too few for etcd to work; m1: "},
		"joining":   {[]string{"healthy", "learner"}, true, "1 of 1 members work, none may fail; m1 is joining"},
		"unstarted": {[]string{"healthy", "healthy", "unstarted"}, false, "2 of 3 members work, none may fail; m2: has not started"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			serve := func(health string) string {
				mux := http.NewServeMux()
				mux.HandleFunc("GET /health", says(health))
				server := httptest.NewServer(mux)
				t.Cleanup(server.Close)
				return server.URL
			}
			gone := httptest.NewServer(nil)
			gone.Close()
			var members []map[string]any
			for i, how := range test.members {
				member := map[string]any{"ID": fmt.Sprint(i), "name": fmt.Sprintf("m%d", i)}
				switch how {
				case "healthy":
					member["clientURLs"] = []string{serve(`{"health":"true","reason":""}`)}
				case "sick":
					member["clientURLs"] = []string{serve(`{"health":"false","reason":"RAFT NO LEADER"}`)}
				case "gone":
					member["clientURLs"] = []string{gone.URL}
				case "learner":
					member["clientURLs"], member["isLearner"] = []string{gone.URL}, true
				}
				members = append(members, member)
			}
			mux := http.NewServeMux()
			mux.HandleFunc("POST /v3/cluster/member/list", func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(map[string]any{"members": members})
			})
			server := httptest.NewServer(mux)
			t.Cleanup(server.Close)
			ok, detail, err := etcdHealth(t.Context(), server.Client(), server.URL)
			if err != nil || ok != test.ok || !strings.HasPrefix(detail, test.detail) {
				t.Errorf("ok %v, %q, %v; want %v, %q", ok, detail, err, test.ok, test.detail)
			}
		})
	}
}

func TestEtcdHealthOfStrangers(t *testing.T) {
	t.Parallel()
	for _, answer := range []string{"", "{}", "[]", `{"members":[` + strings.Repeat(`{},`, maxEtcdMembers) + `{}]}`} {
		server := httptest.NewServer(says(answer))
		if ok, _, err := etcdHealth(t.Context(), server.Client(), server.URL); ok || err == nil {
			t.Errorf("%.40q: ok %v, %v", answer, ok, err)
		}
		server.Close()
	}
}

// C31: a network plugin's init container that fails is named with its last line, and so is
// a part of the control plane that crashes again and again.
func TestFailingPods(t *testing.T) {
	t.Parallel()
	const good = `{"metadata":{"name":"etcd-n1"},"status":{}},
		{"metadata":{"name":"old"},"status":{"initContainerStatuses":[{"name":"x","ready":false,"state":{"terminated":{"exitCode":1,"finishedAt":"2026-11-20T10:00:00Z"}}}]}}`
	status := func(state string) string {
		return `{"items":[{"metadata":{"name":"calico-node-7"},"status":{"initContainerStatuses":[
			{"name":"upgrade-ipam","ready":true,"state":{"terminated":{"exitCode":0,"finishedAt":"2026-11-20T11:00:00Z"}}},
			{"name":"install-cni","ready":false,` + state + `}]}},` + good + `]}`
	}
	const ended = `"terminated":{"exitCode":127,"finishedAt":"2026-11-20T12:00:00Z"}`
	crashes := func(state string) string {
		return `{"items":[{"metadata":{"name":"calico-node-7"},"status":{"containerStatuses":[
			{"name":"install-cni","ready":false,"restartCount":7,` + state + `,"lastState":{"terminated":{"exitCode":1,"finishedAt":"2026-11-20T12:00:00Z"}}}]}},` + good + `]}`
	}
	for name, test := range map[string]struct{ pods, previous, detail string }{
		"crashes":      {crashes(`"state":{"waiting":{"reason":"CrashLoopBackOff"}}`), "", "install-cni of calico-node-7 ended with 1, started again 7 times: CPU ISA level?[31m is lower than required"},
		"crashed once": {strings.Replace(crashes(`"state":{"running":{"startedAt":"2026-11-20T12:00:01Z"}}`), good, `{}`, 1), "", ""},
		"is made":      {strings.Replace(crashes(`"state":{"waiting":{"reason":"ContainerCreating"}}`), good, `{}`, 1), "", ""},
		"waits":        {status(`"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{` + ended + `}`), "", "install-cni of calico-node-7 ended with 127: CPU ISA level?[31m is lower than required"},
		"ended":        {status(`"state":{` + ended + `}`), "", "install-cni of calico-node-7 ended with 127: CPU ISA level?[31m is lower than required"},
		"again":        {status(`"state":{"running":{"startedAt":"2026-11-20T12:00:01Z"}},"lastState":{` + ended + `}`), "true", "install-cni of calico-node-7 ended with 127: CPU ISA level?[31m is lower than required"},
		"running":      {`{"items":[` + strings.Replace(good, `"exitCode":1`, `"exitCode":0`, 1) + `]}`, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := newTestAPI(t, map[string]http.HandlerFunc{
				// What fails on other nodes is not this node's failure.
				"/api/v1/namespaces/kube-system/pods": func(w http.ResponseWriter, r *http.Request) {
					if got := r.URL.Query().Get("fieldSelector"); got != "spec.nodeName=n1" {
						t.Errorf("asked for the pods of %q", got)
					}
					fmt.Fprintln(w, test.pods)
				},
				"/api/v1/namespaces/kube-system/pods/calico-node-7/log": func(w http.ResponseWriter, r *http.Request) {
					if q := r.URL.Query(); q.Get("container") != "install-cni" || q.Get("previous") != test.previous {
						t.Errorf("asked for %v", q)
					}
					fmt.Fprintln(w, "CPU ISA level\x1b[31m is lower than required")
				},
			}).open(t)
			ok, detail, err := api.FailingPods(t.Context(), "N1")
			if err != nil || ok != (test.detail == "") || test.detail != "" && detail != test.detail {
				t.Errorf("ok %v, %q, %v", ok, detail, err)
			}
		})
	}
}
