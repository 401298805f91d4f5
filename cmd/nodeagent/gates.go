// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"nodeagent/internal/agent"
	"nodeagent/internal/host"
	"nodeagent/internal/kubeadm"
)

// gate is one thing CloudStack's server will check on a node (contract 5.2).
type gate struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	// Unknown says that it could not be checked, for lack of root.
	Unknown bool `json:"unknown,omitempty"`
	// Cluster says that it takes more than this node for it to pass.
	Cluster bool `json:"cluster,omitempty"`
}

// gatesTimeout bounds the checks of all gates together. They take milliseconds;
// a node that is short of CPU must still get an answer.
const gatesTimeout = 10 * time.Second

// check is how a gate is looked at.
type check struct {
	name    string
	cluster bool
	probe   func(ctx context.Context) (detail string, err error)
}

// checkGates asks what the server will ask, side by side.
func checkGates(ctx context.Context, h *host.Host, nodeName string, instance *agent.Instance) []gate {
	ctx, cancel := context.WithTimeout(ctx, gatesTimeout)
	defer cancel()
	checks := []check{
		{name: "ssh", probe: probeSSH},
		{name: "api", probe: asking(h, kubeadm.OpenAPI, func(api *kubeadm.API) (string, error) {
			version, err := api.Version(ctx)
			return "/version says " + version, err
		})},
		{name: "kubeconfig", probe: func(context.Context) (string, error) {
			_, err := h.ReadFile(kubeadm.AdminConf)
			return kubeadm.AdminConf, err
		}},
		{name: "node-ready", probe: asking(h, kubeadm.OpenNodeAPI, func(api *kubeadm.API) (string, error) {
			ready, detail, err := api.NodeReady(ctx, strings.ToLower(nodeName))
			return detail, notOK(ready, detail, err)
		})},
		{name: "dashboard", cluster: true, probe: asking(h, kubeadm.OpenAPI, func(api *kubeadm.API) (string, error) { return probeDashboard(ctx, api) })},
		{name: "etcd", cluster: true, probe: func(context.Context) (string, error) { return kubeadm.EtcdHealthy(ctx, h) }},
		{name: "success", probe: func(context.Context) (string, error) {
			text, err := h.ReadFile(successFile)
			if err == nil && strings.TrimSpace(string(text)) != "true" {
				err = fmt.Errorf("%s does not hold true", successFile)
			}
			return successFile, err
		}},
	}
	mode := ""
	if instance != nil {
		mode = instance.Mode
	}
	// The server asks only control nodes for the cluster, and of an etcd node no more
	// than ssh; but the control plane needs its etcd.
	asked := map[string][]string{"join": {"ssh", "node-ready", "success"}, "etcd": {"ssh", "etcd"}, "none": {"ssh"}}[mode]
	checks = slices.DeleteFunc(checks, func(c check) bool {
		return asked != nil && !slices.Contains(asked, c.name) || asked == nil && c.name == "etcd"
	})
	return runChecks(ctx, checks)
}

// runChecks looks at all gates side by side.
func runChecks(ctx context.Context, checks []check) []gate {
	gates := make([]gate, len(checks))
	var all sync.WaitGroup
	for i, check := range checks {
		all.Go(func() {
			detail, err := check.probe(ctx)
			gates[i] = gate{Name: check.name, OK: err == nil, Detail: detail, Cluster: check.cluster}
			if err != nil {
				gates[i].Detail = err.Error()
				if gates[i].Unknown = errors.Is(err, fs.ErrPermission); gates[i].Unknown {
					gates[i].Detail = "needs root: " + gates[i].Detail
				}
			}
		})
	}
	all.Wait()
	return gates
}

// probeSSH checks that the ssh server greets on the port of a node.
func probeSSH(ctx context.Context) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:22")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	banner, err := bufio.NewReaderSize(conn, 256).ReadSlice('\n')
	if err != nil {
		return "", fmt.Errorf("port 22 is open, but no ssh server greets: %w", err)
	}
	return "port 22 greets with " + strings.TrimSpace(string(banner)), nil
}

// asking opens the API for a probe that asks it.
func asking(h *host.Host, open func(*host.Host) (*kubeadm.API, error), probe func(api *kubeadm.API) (string, error)) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		api, err := open(h)
		if err != nil {
			return "", err
		}
		defer api.Close()
		return probe(api)
	}
}

func notOK(ok bool, detail string, err error) error {
	if err == nil && !ok {
		return errors.New(detail)
	}
	return err
}

// probeDashboard looks for what the server looks for: the dashboard, or headlamp
// which newer versions have in its place.
func probeDashboard(ctx context.Context, api *kubeadm.API) (string, error) {
	running, detail, err := api.PodRunning(ctx, "kubernetes-dashboard", "kubernetes-dashboard")
	if err == nil && running {
		return detail, nil
	}
	if running, headlamp, err := api.PodRunning(ctx, "kube-system", "headlamp"); err == nil && running {
		return headlamp, nil
	}
	return "", notOK(running, detail, err)
}
