// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"nodeagent/test/cloud"
	"nodeagent/test/iso"
	"nodeagent/test/lab"
	"nodeagent/test/template"
)

// Three control nodes and a worker: all machines run before the first one gets its ISO,
// the two further control nodes and the worker join at the same time (K6). Then one of them is cut off and comes back (K7), and the whole cluster is
// stopped and started (contract 5.3).
func TestClusterHighAvailability(t *testing.T) {
	ctx, l := newLabWith(t, template.Options{}, 80*time.Minute)
	path, err := iso.Build(ctx, os.Stderr, iso.Options{Version: lab.Version})
	if err != nil {
		t.Fatal(err)
	}
	spec, params, err := l.ControlNodeSpec("prod1-control-1", netip.MustParseAddr("10.1.1.57"))
	if err != nil {
		t.Fatal(err)
	}
	specs := []cloud.MachineSpec{spec}
	for i, address := range []string{"10.1.1.58", "10.1.1.59"} {
		further, err := l.ControlNodeAddSpec(fmt.Sprintf("prod1-control-%d", i+2), netip.MustParseAddr(address), params)
		if err != nil {
			t.Fatal(err)
		}
		specs = append(specs, further)
	}
	for i := range specs[1:] { // the first makes the cluster while the others wait
		oneCPU(&specs[1+i])
	}
	worker, err := l.WorkerSpec(workerName, netip.MustParseAddr("10.1.1.61"), params)
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*cloud.Machine
	for _, spec := range append(specs, worker) {
		nodes = append(nodes, boot(t, ctx, l, spec))
	}
	control := nodes[0]
	began := time.Now()
	if err := control.InsertISO(ctx, path); err != nil {
		t.Fatal(err)
	}
	// On two emulated CPUs an API server that is being made is not asked by four machines.
	if status, code := follow(t, ctx, control, ""); code != 0 && code != 2 {
		t.Fatalf("%s: exit code %d, failures %v", control.Spec.Name, code, status.Failures())
	}
	t.Logf("%s is done %v after its ISO", control.Spec.Name, time.Since(began).Round(time.Second))
	for _, m := range nodes[1:] {
		if err := m.InsertISO(ctx, path); err != nil {
			t.Fatal(err)
		}
	}
	made := func(before map[*cloud.Machine]string) {
		t.Helper()
		for _, m := range nodes {
			status, code := follow(t, ctx, m, before[m])
			if code != 0 && code != 2 || len(status.Warnings) > 0 {
				t.Fatalf("%s: exit code %d, failures %v, warnings %v", m.Spec.Name, code, status.Failures(), status.Warnings)
			}
			t.Logf("%s is done %v after the first ISO", m.Spec.Name, time.Since(began).Round(time.Second))
		}
		for _, m := range nodes {
			wantGates(t, ctx, m)
		}
	}
	made(nil)
	checks := cloud.Checks{Cloud: l.Cloud, Control: control.Address, Key: l.Key}
	if err := checks.WaitNodes(ctx, 4); err != nil {
		t.Fatal(err)
	}
	awaitHealth(t, ctx, control, "etcd", "3 of 3 members work, 1 may fail")
	for _, m := range nodes {
		if err := m.EjectISO(ctx); err != nil {
			t.Fatal(err)
		}
		wantMade(t, ctx, m, params)
	}

	third := nodes[2]
	if err := third.SetLink(ctx, false); err != nil {
		t.Fatal(err)
	}
	awaitHealth(t, ctx, control, "etcd", "2 of 3 members work, none may fail; "+third.Spec.Name)
	if err := third.SetLink(ctx, true); err != nil {
		t.Fatal(err)
	}
	awaitHealth(t, ctx, control, "etcd", "3 of 3 members work, 1 may fail")

	boots := map[*cloud.Machine]string{}
	for _, m := range nodes {
		status, _, err := lab.ReadStatus(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		boots[m] = status.BootID
	}
	for _, m := range nodes {
		if err := m.PowerOff(ctx); err != nil {
			t.Fatal(err)
		}
	}
	began = time.Now()
	for _, m := range nodes {
		if err := m.PowerOn(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.DeliverBootArgs(ctx, m.Spec.BootArgs); err != nil {
			t.Fatal(err)
		}
	}
	made(boots)
	if err := checks.WaitNodes(ctx, 4); err != nil {
		t.Error(err)
	}
	awaitHealth(t, ctx, control, "etcd", "3 of 3 members work, 1 may fail")
}

// oneCPU makes a control node with one CPU, which an administrator's flag lets kubeadm
// take: eight emulated CPUs on the two of the host would mostly wait for each other.
func oneCPU(spec *cloud.MachineSpec) {
	spec.CPUs = 1
	call := regexp.MustCompile(`(?m)^( *kubeadm (?:init|join) .*?)--token `)
	spec.Userdata = call.ReplaceAll(spec.Userdata, []byte("${1}--ignore-preflight-errors=NumCPU --token "))
}

// C17, K1: the power is cut while kubeadm runs and the ISO is gone at the next
// boot. The node still becomes Ready: from its own disk, after kubeadm's partial
// state has been taken back.
func TestClusterPowerCut(t *testing.T) {
	ctx, l := newLab(t)
	path, err := iso.Build(ctx, os.Stderr, iso.Options{Version: lab.Version})
	if err != nil {
		t.Fatal(err)
	}
	spec, _, err := l.ControlNodeSpec("prod1-control-2", netip.MustParseAddr("10.1.1.58"))
	if err != nil {
		t.Fatal(err)
	}
	m := boot(t, ctx, l, spec)
	if err := m.InsertISO(ctx, path); err != nil {
		t.Fatal(err)
	}
	var first string
	for first == "" {
		time.Sleep(2 * time.Second)
		status, _, err := lab.ReadStatus(ctx, m)
		if err != nil {
			continue // the guest agent does not run yet
		}
		if codes := status.Failures(); len(codes) > 0 {
			t.Fatalf("failed before the power cut: %v", codes)
		}
		if step, _ := status.Step("kubeadm"); step.Status == "running" && strings.Contains(step.Note, "control-plane") {
			first = status.BootID
		}
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.EjectISO(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.DeliverBootArgs(ctx, spec.BootArgs); err != nil {
		t.Fatal(err)
	}
	status, code := follow(t, ctx, m, first)
	if code != 0 && code != 2 || len(status.Warnings) > 0 {
		t.Fatalf("after the power cut: exit code %d, failures %v, warnings %v", code, status.Failures(), status.Warnings)
	}
	wantSteps(t, status, map[string]string{"iso": "skipped", "images": "skipped", "kubeadm": "done", "ready": "done", "success": "done"})
	wantGates(t, ctx, m)
}

// awaitHealth waits until something of a node's health is said like this.
func awaitHealth(t *testing.T, ctx context.Context, m *cloud.Machine, name, begins string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	last := "not said"
	for {
		status, _, err := lab.ReadStatus(ctx, m)
		if err == nil {
			for _, gate := range status.Health {
				if gate.Name != name {
					continue
				}
				if last = gate.Detail; strings.HasPrefix(last, begins) {
					return
				}
			}
		}
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			t.Fatalf("%s of %s: %s, want %s", name, m.Spec.Name, last, begins)
		}
	}
}
