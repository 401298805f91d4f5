// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// client reads nodes from the Kubernetes API.
type client struct {
	base      string // https://HOST:PORT
	tokenFile string // read for every request: the kubelet renews it
	http      *http.Client
}

// inCluster is the client of a pod: see "Accessing the Kubernetes API from a
// Pod" in the Kubernetes documentation.
func inCluster(getenv func(string) string) (*client, error) {
	const account = "/var/run/secrets/kubernetes.io/serviceaccount"
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("cannot find the API server: KUBERNETES_SERVICE_HOST or KUBERNETES_SERVICE_PORT is not set")
	}
	authority, err := os.ReadFile(filepath.Join(account, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the cluster's authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("cannot use %s: no certificate in it", filepath.Join(account, "ca.crt"))
	}
	return &client{
		base:      "https://" + net.JoinHostPort(host, port),
		tokenFile: filepath.Join(account, "token"),
		http: &http.Client{Transport: &http.Transport{
			TLSClientConfig:       &tls.Config{RootCAs: roots},
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout:   30 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
		}},
	}, nil
}

// node is what is read of a Node object (core/v1).
type node struct {
	Metadata struct {
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Status struct {
		Addresses []struct {
			Type    string `json:"type"`
			Address string `json:"address"`
		} `json:"addresses"`
	} `json:"status"`
}

// address is the node's first internal IPv4 address; ok is false when it has
// none yet.
func (n node) address() (address netip.Addr, ok bool) {
	for _, candidate := range n.Status.Addresses {
		parsed, err := netip.ParseAddr(candidate.Address)
		if candidate.Type == "InternalIP" && err == nil && parsed.Is4() {
			return parsed, true
		}
	}
	return netip.Addr{}, false
}

// nodeList is a list of nodes (core/v1 NodeList).
type nodeList struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Items []node `json:"items"`
}

// watchEvent is one line of a watch (meta/v1 WatchEvent).
type watchEvent struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

// watchTime is how long the server lets one watch last.
const watchTime = 5 * time.Minute

// followNodes lists the nodes, then watches them, and calls apply with the
// address by name of all of them at first and after each change. It returns nil
// when the watch has run its time.
func (c *client) followNodes(ctx context.Context, apply func(map[string]netip.Addr) error) error {
	// The grace lets the server end the watch; a connection that died without a
	// word ends here.
	ctx, cancel := context.WithTimeout(ctx, watchTime+time.Minute)
	defer cancel()

	body, err := c.get(ctx, url.Values{})
	if err != nil {
		return fmt.Errorf("cannot list nodes: %w", err)
	}
	var list nodeList
	err = json.NewDecoder(body).Decode(&list)
	body.Close()
	if err != nil {
		return fmt.Errorf("cannot list nodes: %w", err)
	}
	nodes := map[string]netip.Addr{}
	for _, item := range list.Items {
		if address, ok := item.address(); ok {
			nodes[item.Metadata.Name] = address
		}
	}
	if err := apply(nodes); err != nil {
		return err
	}

	body, err = c.get(ctx, url.Values{
		"watch":           {"1"},
		"resourceVersion": {list.Metadata.ResourceVersion},
		"timeoutSeconds":  {fmt.Sprint(int(watchTime.Seconds()))},
	})
	if err != nil {
		return fmt.Errorf("cannot watch nodes: %w", err)
	}
	defer body.Close()
	if err := readEvents(body, nodes, apply); err != nil {
		return fmt.Errorf("cannot watch nodes: %w", err)
	}
	return nil
}

// readEvents keeps nodes up to date with the stream and calls apply when an
// address has come, gone or changed.
func readEvents(stream io.Reader, nodes map[string]netip.Addr, apply func(map[string]netip.Addr) error) error {
	decoder := json.NewDecoder(stream)
	for {
		var event watchEvent
		if err := decoder.Decode(&event); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		before := maps.Clone(nodes)
		var changed node
		switch event.Type {
		case "ADDED", "MODIFIED", "DELETED":
			if err := json.Unmarshal(event.Object, &changed); err != nil {
				return err
			}
			delete(nodes, changed.Metadata.Name)
			if address, ok := changed.address(); ok && event.Type != "DELETED" {
				nodes[changed.Metadata.Name] = address
			}
		case "ERROR":
			return fmt.Errorf("the server says: %s", event.Object)
		}
		if maps.Equal(before, nodes) {
			continue
		}
		if err := apply(nodes); err != nil {
			return err
		}
	}
}

// get requests the nodes; the caller closes the body.
func (c *client) get(ctx context.Context, query url.Values) (io.ReadCloser, error) {
	token, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/api/v1/nodes?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		return nil, fmt.Errorf("the server answers %s", response.Status)
	}
	return response.Body, nil
}
