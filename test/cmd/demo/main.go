// SPDX-License-Identifier: Apache-2.0

// Command demo boots one machine of the template in the emulated cloud and shows
// what nodeagent does there, step by step, until it is done.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"nodeagent/test/cloud"
	"nodeagent/test/iso"
	"nodeagent/test/lab"
	"nodeagent/test/template"
)

func main() {
	role := flag.String("role", "cksnode", "role of the machine: cksnode or router")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, *role); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context, role string) (err error) {
	began := time.Now()
	if role != "cksnode" && role != "router" {
		return fmt.Errorf("role %q: expected cksnode or router", role)
	}
	logs, err := os.MkdirTemp("", "nodeagent-demo-")
	if err != nil {
		return err
	}
	build, err := os.Create(filepath.Join(logs, "build.log"))
	if err != nil {
		return err
	}
	defer build.Close()
	fmt.Println("logs, also of the machine's console:", logs)

	var isoPath string
	if role == "cksnode" {
		fmt.Println("building the binaries ISO (Kubernetes from source: some ten minutes, once)")
		if isoPath, err = iso.Build(ctx, build, iso.Options{}); err != nil {
			return err
		}
	}
	fmt.Println("building the template")
	l, err := lab.New(ctx, logs, build, template.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	fmt.Printf("all is built after %s; power on\n\n", time.Since(began).Round(time.Second))

	powerOn := time.Now()
	var m *cloud.Machine
	if role == "router" {
		m, err = l.Boot(ctx, l.RouterSpec("r-7-vm"))
	} else {
		m, err = bootNode(ctx, l, isoPath)
	}
	if err != nil {
		return err
	}
	_, code, err := lab.Follow(ctx, m, "", follower(powerOn))
	if err != nil {
		return err
	}
	fmt.Printf("\n%s after power-on nodeagent had ended.\n", time.Since(powerOn).Round(time.Second))
	if role == "cksnode" && code != 1 {
		fmt.Println("Waiting for the last thing CloudStack's server checks, the dashboard's pod.")
		if err := lab.WaitGates(ctx, m); err != nil {
			return err
		}
	}
	fmt.Print("On the node:\n\n$ nodeagent status\n")
	result, err := m.Agent().Exec(ctx, "/usr/bin/nodeagent", "status")
	if err != nil {
		return err
	}
	os.Stdout.Write(result.Stdout)
	if code == 1 {
		return errors.New("the node failed")
	}
	if role == "cksnode" {
		nodes, err := lab.Text(ctx, m, "/opt/bin/kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "get", "nodes", "-o", "wide")
		if err != nil {
			return err
		}
		fmt.Printf("\n$ kubectl get nodes\n%s", nodes)
	}
	fmt.Printf("\nwhole demo: %s\n", time.Since(began).Round(time.Second))
	return nil
}

// bootNode starts a control node and attaches the ISO once the machine runs.
func bootNode(ctx context.Context, l *lab.Lab, isoPath string) (*cloud.Machine, error) {
	spec, _, err := l.ControlNodeSpec("demo-control-1", netip.MustParseAddr("10.1.1.57"))
	if err != nil {
		return nil, err
	}
	m, err := l.Boot(ctx, spec)
	if err != nil {
		return nil, err
	}
	return m, m.InsertISO(ctx, isoPath)
}

// follower prints every change of a step, and what a running one reports at most
// every ten seconds.
func follower(powerOn time.Time) func(lab.Step) {
	type shown struct {
		status string
		when   time.Time
	}
	last := map[string]shown{}
	return func(step lab.Step) {
		if before := last[step.Name]; before.status == step.Status && time.Since(before.when) < 10*time.Second {
			return
		}
		last[step.Name] = shown{step.Status, time.Now()}
		fmt.Printf("%6.1fs  %-12s %-8s %s\n", time.Since(powerOn).Seconds(), step.Name, step.Status, step.Note)
	}
}
