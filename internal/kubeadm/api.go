// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// API is the cluster's API server as this control node's administrator sees it.
// Its methods return when ctx ends at the latest.
type API struct {
	server    string // https://10.1.1.57:6443
	bootID    string // of this machine; what its kubelet said on an earlier boot is old news
	admin     *http.Client
	anonymous *http.Client

	certificate *x509.Certificate // which admin shows
}

const (
	maxReply     = 32 << 20
	dialTimeout  = 10 * time.Second
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 2 * time.Second
	watchSeconds = 300 // the API server ends a watch after this
)

func client(settings *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{
		// No proxy: the API is this machine or its cluster's address.
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:       settings,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: 30 * time.Second,
		MaxIdleConnsPerHost:   1,
		IdleConnTimeout:       30 * time.Second,
	}}
}

// Close drops idle connections.
func (a *API) Close() {
	a.admin.CloseIdleConnections()
	a.anonymous.CloseIdleConnections()
}

// StatusError is an answer of the API server other than success.
type StatusError struct {
	Code    int // of HTTP
	Message string
}

func (e *StatusError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the API server answers %d %s", e.Code, http.StatusText(e.Code))
	}
	return fmt.Sprintf("the API server answers %d: %s", e.Code, e.Message)
}

// get calls the server; the caller closes the body.
func (a *API) get(ctx context.Context, client *http.Client, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	reply, err := client.Do(request)
	if err != nil {
		return nil, withoutAddress(err)
	}
	if reply.StatusCode == http.StatusOK {
		return reply.Body, nil
	}
	defer reply.Body.Close()
	return nil, statusError(reply)
}

// statusError reads an answer other than success.
func statusError(reply *http.Response) error {
	var status struct{ Message string }
	_ = json.NewDecoder(io.LimitReader(reply.Body, 64<<10)).Decode(&status) // a plain text has no message
	return &StatusError{Code: reply.StatusCode, Message: status.Message}
}

// withoutAddress takes from a failed call what every caller knows.
func withoutAddress(err error) error {
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return failed.Err
	}
	return err
}

func (a *API) getJSON(ctx context.Context, client *http.Client, path string, into any) error {
	body, err := a.get(ctx, client, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxReply)).Decode(into); err != nil {
		return fmt.Errorf("cannot read the API server's answer to %s: %w", path, err)
	}
	return nil
}

// Version returns what /version tells anyone who asks, such as v1.34.4. The
// management server asks it the same way, without credentials.
func (a *API) Version(ctx context.Context) (string, error) {
	var version struct{ GitVersion string }
	if err := a.getJSON(ctx, a.anonymous, "/version", &version); err != nil {
		return "", fmt.Errorf("cannot read /version: %w", err)
	}
	return version.GitVersion, nil
}

// nodeObject is a node as far as its readiness goes.
type nodeObject struct {
	Metadata struct {
		Name   string
		Labels map[string]string
	}
	Status struct {
		Conditions []struct{ Type, Status, Reason, Message string }
		NodeInfo   struct{ BootID, KubeletVersion string }
	}
}

// ready says whether the node's kubelet has said on this boot that the node is
// Ready: after a reboot the API still has what it said before.
func (n nodeObject) ready(bootID string) (ready bool, detail string) {
	for _, condition := range n.Status.Conditions {
		if condition.Type != "Ready" {
			continue
		}
		if condition.Status == "True" && n.Status.NodeInfo.BootID != bootID {
			return false, "the kubelet has not reported since this machine booted"
		}
		if condition.Status == "True" {
			return true, condition.Reason
		}
		if condition.Message != "" {
			return false, condition.Message
		}
		return false, condition.Reason
	}
	return false, "the kubelet has not reported yet"
}

func nodePath(name string) string { return "/api/v1/nodes/" + url.PathEscape(strings.ToLower(name)) }

// NodeReady says whether the node is Ready on this boot; detail is the reason in the kubelet's
// words.
func (a *API) NodeReady(ctx context.Context, name string) (ready bool, detail string, err error) {
	var node nodeObject
	err = a.getJSON(ctx, a.admin, nodePath(name), &node)
	if status := (*StatusError)(nil); errors.As(err, &status) && status.Code == http.StatusNotFound {
		return false, "the node has not registered yet", nil
	}
	if err != nil {
		return false, "", fmt.Errorf("cannot read node %s: %w", name, err)
	}
	ready, detail = node.ready(a.bootID)
	return ready, detail, nil
}

// PodRunning says whether the namespace has a pod that runs and whose name
// contains part; detail names the pods that match.
func (a *API) PodRunning(ctx context.Context, namespace, part string) (running bool, detail string, err error) {
	var pods struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct{ Phase, Reason string }
		}
	}
	if err := a.getJSON(ctx, a.admin, "/api/v1/namespaces/"+url.PathEscape(namespace)+"/pods?limit=1000", &pods); err != nil {
		return false, "", fmt.Errorf("cannot list the pods of %s: %w", namespace, err)
	}
	var seen []string
	for _, pod := range pods.Items {
		if !strings.Contains(pod.Metadata.Name, part) {
			continue
		}
		seen = append(seen, pod.Metadata.Name+" "+pod.Status.Phase)
		running = running || pod.Status.Phase == "Running"
	}
	if len(seen) == 0 {
		return false, fmt.Sprintf("no pod in %s has %s in its name", namespace, part), nil
	}
	return running, strings.Join(seen, ", "), nil
}

// exists asks for an object.
func (a *API) exists(ctx context.Context, path string) (bool, error) {
	body, err := a.get(ctx, a.admin, path)
	if status := (*StatusError)(nil); errors.As(err, &status) && status.Code == http.StatusNotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, body.Close()
}

// waitAnswer blocks until the server says it is ready.
func (a *API) waitAnswer(ctx context.Context) error {
	var last error
	for pause := firstBackoff; ; pause = min(pause*2, maxBackoff) {
		body, err := a.get(ctx, a.admin, "/readyz")
		if err == nil {
			return body.Close()
		}
		if ctx.Err() == nil {
			last = err
		}
		if !sleep(ctx, pause) {
			if last == nil {
				last = context.Cause(ctx)
			}
			return fmt.Errorf("cannot reach the API server %s: %w", a.server, last)
		}
	}
}

// sleep is for what gives no event: a server that is not there. It returns false
// when ctx ended.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// WaitReady waits until the node is Ready, by a watch on the API, and reports the
// kubelet's reason until then. When ctx ends first the error is
// fault.NodeNotReady with the last reason, and on a control node with the pod that fails.
func WaitReady(ctx context.Context, h *host.Host, nodeName string, report host.Report) error {
	api, err := OpenNodeAPI(h)
	if err != nil {
		return fault.Wrap(fault.NodeNotReady, err, "cannot watch node %s", nodeName)
	}
	defer api.Close()
	return api.waitReady(ctx, strings.ToLower(nodeName), "", say(report))
}

func (a *API) waitReady(ctx context.Context, name, version string, report host.Report) error {
	w := &nodeWatch{api: a, name: name, version: version, report: report, last: "the API server has not answered yet"}
	for pause := firstBackoff; ; pause = min(pause*2, maxBackoff) {
		began := time.Now()
		err := w.watch(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fault.Wrap(fault.NodeNotReady, context.Cause(ctx), "node %s is not Ready: %s%s", name, w.last, a.failingPod(ctx, name))
		}
		if !errors.Is(err, io.EOF) { // the server ends every watch some time
			w.tell(err.Error())
		}
		if time.Since(began) > maxBackoff {
			pause = firstBackoff
		}
		sleep(ctx, pause)
	}
}

// failingPod names the pod of kube-system that fails on the node, if one does and the
// machine may know it: without what it wrote, as the message is stored where every user
// may read it. ctx has ended: it has a few seconds of its own.
func (a *API) failingPod(ctx context.Context, nodeName string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), failingPodLimit)
	defer cancel()
	if last, _, err := a.lastFailure(ctx, nodeName); err == nil && last.pod != "" {
		return "; " + last.String()
	}
	return ""
}

const failingPodLimit = 10 * time.Second

// nodeWatch follows one node.
type nodeWatch struct {
	api        *API
	name       string
	report     host.Report
	version    string // that the kubelet must have; "" is any
	last       string // what was reported last
	registered bool
}

func (w *nodeWatch) tell(detail string) {
	if detail != w.last {
		w.last = detail
		w.report("node %s is not Ready: %s", w.name, detail)
	}
}

// watch returns nil once the node is Ready, and an error when the watch ends
// before.
func (w *nodeWatch) watch(ctx context.Context) error {
	// Without a resourceVersion a watch begins with what there is.
	query := url.Values{"watch": {"1"}, "fieldSelector": {"metadata.name=" + w.name}, "timeoutSeconds": {fmt.Sprint(watchSeconds)}}
	body, err := w.api.get(ctx, w.api.admin, "/api/v1/nodes?"+query.Encode())
	if err != nil {
		return err
	}
	defer body.Close()
	if !w.registered {
		w.tell("the node has not registered yet")
	}
	for events := json.NewDecoder(&eventLimit{from: body, left: maxReply}); ; {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		if err := events.Decode(&event); err != nil {
			return err
		}
		switch event.Type {
		case "ADDED", "MODIFIED":
			var node nodeObject
			if err := json.Unmarshal(event.Object, &node); err != nil {
				return fmt.Errorf("cannot read a node: %w", err)
			}
			w.registered = true
			ready, detail := node.ready(w.api.bootID)
			if has := node.Status.NodeInfo.KubeletVersion; w.version != "" && has != w.version {
				ready, detail = false, "its kubelet has reported "+has+" so far"
			}
			if ready {
				return nil
			}
			w.tell(detail)
		case "DELETED":
			w.registered = false
			w.tell("the node has been deleted")
		case "ERROR":
			var status struct{ Message string }
			_ = json.Unmarshal(event.Object, &status) // the message is for people
			return fmt.Errorf("the API server ended the watch: %s", status.Message)
		}
	}
}

// eventLimit ends a stream that sends more than any watch of one node does; the
// watch then begins anew.
type eventLimit struct {
	from io.Reader
	left int
}

func (l *eventLimit) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, io.EOF
	}
	n, err := l.from.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}
