// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const (
	nodeUser = "cloud"
	sshPort  = 22
	apiPort  = 6443

	commandTimeout = 20 * time.Second // of the node count and others
	requestTimeout = 30 * time.Second
)

// Checks are what the management server checks on a cluster, through its first
// control node (contract 5.2). Every method polls until it succeeds or ctx
// ends; the error then names the last obstacle.
type Checks struct {
	Cloud   *Cloud
	Control netip.Addr
	Key     *KeyPair
	// Pace is the time between two tries. Zero: the server's own 15 s. The
	// port of ssh is tried each second in any case.
	Pace time.Duration
}

// WaitSSH waits until the ssh port accepts a connection and the server says
// its name, which it returns.
func (c Checks) WaitSSH(ctx context.Context) (banner string, err error) {
	err = retry(ctx, time.Second, "reach ssh", func() error {
		banner, err = c.Cloud.DialSSHBanner(ctx, netip.AddrPortFrom(c.Control, sshPort))
		return err
	})
	return banner, err
}

// WaitAPI waits until the API server tells its version to anybody, and returns
// that text.
func (c Checks) WaitAPI(ctx context.Context) (version string, err error) {
	err = retry(ctx, c.pace(), "reach API server", func() error {
		version, err = c.apiVersion(ctx)
		return err
	})
	return version, err
}

func (c Checks) apiVersion(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	transport := &http.Transport{
		DialContext:       c.Cloud.DialContext,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the server trusts all
		DisableKeepAlives: true,
	}
	url := "https://" + netip.AddrPortFrom(c.Control, apiPort).String() + "/version"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK || len(body) == 0 {
		return "", fmt.Errorf("%s answers %s with %d bytes", url, response.Status, len(body))
	}
	return string(body), nil
}

// WaitNodes waits until exactly that many nodes are Ready.
func (c Checks) WaitNodes(ctx context.Context, want int) error {
	return retry(ctx, c.pace(), "count ready nodes", func() error {
		output, err := c.Run(ctx, "sudo /opt/bin/kubectl get nodes | grep -w 'Ready' | wc -l")
		if err != nil {
			return err
		}
		got, err := strconv.Atoi(strings.TrimSpace(output))
		if err != nil {
			return fmt.Errorf("node count %q is no number", output)
		}
		if got != want {
			return fmt.Errorf("%d of %d nodes are Ready", got, want)
		}
		return nil
	})
}

// WaitKubeconfig waits until the node shows its kubeconfig, and returns it.
func (c Checks) WaitKubeconfig(ctx context.Context) (kubeconfig string, err error) {
	err = retry(ctx, c.pace(), "read kubeconfig", func() error {
		kubeconfig, err = c.Run(ctx, "sudo cat /etc/kubernetes/user.conf 2>/dev/null || sudo cat /etc/kubernetes/admin.conf")
		if err != nil {
			return err
		}
		if !strings.Contains(kubeconfig, "server: https://") {
			return errors.New("it names no server")
		}
		return nil
	})
	return kubeconfig, err
}

// WaitDashboard waits until the dashboard's pod runs, or, as the newest server
// accepts, headlamp's. It returns the pod's line.
func (c Checks) WaitDashboard(ctx context.Context) (line string, err error) {
	err = retry(ctx, c.pace(), "find dashboard", func() error {
		output, err := c.Run(ctx, "sudo /opt/bin/kubectl get pods --namespace=kubernetes-dashboard")
		if err != nil {
			return err
		}
		if line = runningPod(output, "kubernetes-dashboard"); line != "" {
			return nil
		}
		other, err := c.Run(ctx, "sudo /opt/bin/kubectl get pods --namespace=kube-system")
		if err != nil {
			return err
		}
		if line = runningPod(other, "headlamp"); line != "" {
			return nil
		}
		return fmt.Errorf("no pod of it runs: %q", output)
	})
	return line, err
}

// runningPod is the first line that has both words, which is all that the
// server looks at.
func runningPod(output, name string) string {
	for line := range strings.Lines(output) {
		if strings.Contains(line, name) && strings.Contains(line, "Running") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// Run runs a command on the control node as the user cloud.
func (c Checks) Run(ctx context.Context, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, sshConnect+commandTimeout)
	defer cancel()
	return c.Cloud.SSH(ctx, netip.AddrPortFrom(c.Control, sshPort), nodeUser, c.Key, command)
}

func (c Checks) pace() time.Duration {
	if c.Pace > 0 {
		return c.Pace
	}
	return 15 * time.Second
}

// retry calls try until it succeeds or ctx ends.
func retry(ctx context.Context, pace time.Duration, what string, try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		if !pause(ctx, pace) {
			return fmt.Errorf("cannot %s: %w (%w)", what, err, context.Cause(ctx))
		}
	}
}
