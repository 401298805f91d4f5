// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// EtcdTLS are the files by which etcd is spoken to; "" where it takes none.
type EtcdTLS struct{ CAFile, CertFile, KeyFile string }

func etcdHTTP(h *host.Host, files EtcdTLS) (*http.Client, error) {
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if files.CAFile != "" {
		ca, err := h.ReadFile(files.CAFile)
		if err != nil {
			return nil, err
		}
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s holds no certificate", files.CAFile)
		}
	}
	if files.CertFile != "" || files.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(h.Path(files.CertFile), h.Path(files.KeyFile))
		if err != nil {
			return nil, err
		}
		settings.Certificates = []tls.Certificate{pair}
	}
	return client(settings), nil
}

const (
	askEtcdLimit = 5 * time.Second // etcd itself takes less to tell that it has no leader
	maxEtcdReply = 64 << 10
)

// askEtcd asks an endpoint for its health, once: that it can read what a quorum agrees
// on (etcd documentation, "Monitoring etcd", /health; open to all since 3.0).
func askEtcd(ctx context.Context, client *http.Client, endpoint string) error {
	ctx, cancel := context.WithTimeout(ctx, askEtcdLimit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(endpoint, "/")+"/health", nil)
	if err != nil {
		return err
	}
	reply, err := client.Do(request)
	if err != nil {
		return withoutAddress(err)
	}
	defer reply.Body.Close()
	var health struct{ Health, Reason string }
	_ = json.NewDecoder(io.LimitReader(reply.Body, maxEtcdReply)).Decode(&health) // what is no JSON is not healthy
	if health.Health != "true" {
		return errors.New("is not healthy: " + printable(cmp.Or(health.Reason, reply.Status)))
	}
	return nil
}

// awaitEtcd waits until most of the endpoints are healthy, and returns what is wrong with
// the others. Nothing announces them. When ctx ends first the error, fault.EtcdUnhealthy,
// names each that is not.
func awaitEtcd(ctx context.Context, client *http.Client, endpoints []string, report host.Report) (down []string, err error) {
	last := ""
	for {
		answers := make([]error, len(endpoints))
		var all sync.WaitGroup
		for i, endpoint := range endpoints {
			all.Go(func() { answers[i] = askEtcd(ctx, client, endpoint) })
		}
		all.Wait()
		down = nil
		for i, answer := range answers {
			if answer != nil {
				down = append(down, fmt.Sprintf("%s: %v", endpoints[i], answer))
			}
		}
		if healthy := len(endpoints) - len(down); healthy > len(endpoints)/2 {
			return down, nil
		}
		text := fmt.Sprintf("%d of %d endpoints of etcd are healthy; %s", len(endpoints)-len(down), len(endpoints), strings.Join(down, ", "))
		if ctx.Err() != nil {
			if last != "" { // what ended with ctx says nothing of etcd
				text = last
			}
			return nil, fault.Wrap(fault.EtcdUnhealthy, context.Cause(ctx), "etcd has no quorum: %s", text)
		}
		if text != last {
			last = text
			report("waiting for etcd: %s", text)
		}
		sleep(ctx, awaitPause)
	}
}

// AwaitExternalEtcd is the preflight of a control plane whose etcd is elsewhere: it waits
// until most of the endpoints are healthy and returns what is wrong with the others. An
// etcd that holds a cluster of Kubernetes already, which this machine has not begun, is
// fault.EtcdDataForeign: a new control plane would not know its secrets (C29).
func AwaitExternalEtcd(ctx context.Context, h *host.Host, plan InitPlan, report host.Report) (down []string, err error) {
	access, err := plan.externalEtcd()
	if err != nil || len(access.endpoints) == 0 {
		return nil, err
	}
	client, err := etcdHTTP(h, access.EtcdTLS)
	if err != nil {
		return nil, fault.Wrap(fault.EtcdUnhealthy, err, "cannot ask etcd")
	}
	defer client.CloseIdleConnections()
	if down, err = awaitEtcd(ctx, client, access.endpoints, say(report)); err != nil {
		return nil, err
	}
	journal, err := readJournal(h)
	if err != nil {
		return nil, fault.Wrap(fault.KubeadmInitFailed, err, "cannot tell what became of an earlier kubeadm init")
	}
	if journal.Phase != phaseNone {
		return down, nil
	}
	for _, endpoint := range access.endpoints {
		keys, err := countKeys(ctx, client, endpoint, "/registry/")
		switch {
		case err != nil: // one that is down, or that has no such interface
			say(report)("cannot ask %s what it holds: %v", endpoint, err)
		case keys > 0:
			return nil, fault.New(fault.EtcdDataForeign, "etcd at %s holds a Kubernetes cluster already: %d objects below /registry", endpoint, keys).
				WithHint("Give the control plane an etcd of its own. If the old cluster is given up for good, empty it with `etcdctl del --prefix /registry/`, then `systemctl restart nodeagent`.")
		default:
			return down, nil
		}
	}
	return down, nil
}

// countKeys asks how many keys begin with prefix, over etcd's JSON interface (etcd
// documentation, "gRPC gateway").
func countKeys(ctx context.Context, client *http.Client, endpoint, prefix string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, askEtcdLimit)
	defer cancel()
	end := []byte(prefix)
	end[len(end)-1]++
	body, err := json.Marshal(map[string]any{"key": base64.StdEncoding.EncodeToString([]byte(prefix)),
		"range_end": base64.StdEncoding.EncodeToString(end), "count_only": true})
	if err != nil {
		return 0, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(endpoint, "/")+"/v3/kv/range", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	reply, err := client.Do(request)
	if err != nil {
		return 0, withoutAddress(err)
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("it answers %d", reply.StatusCode)
	}
	var answer struct {
		Count int `json:"count,string"` // left out when it is 0
	}
	err = json.NewDecoder(io.LimitReader(reply.Body, maxEtcdReply)).Decode(&answer)
	return answer.Count, err
}

// dialAll says which of the URLs' ports can be reached.
func dialAll(ctx context.Context, urls []string) []error {
	ctx, cancel := context.WithTimeout(ctx, askEtcdLimit)
	defer cancel()
	answers := make([]error, len(urls))
	var all sync.WaitGroup
	for i, text := range urls {
		all.Go(func() {
			u, err := url.Parse(text)
			if err != nil {
				answers[i] = err
				return
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
			if err != nil {
				if failed := (*net.OpError)(nil); errors.As(err, &failed) {
					err = failed.Err
				}
				answers[i] = err
				return
			}
			conn.Close()
		})
	}
	all.Wait()
	return answers
}
