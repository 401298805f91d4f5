// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/roles"
	"nodeagent/internal/userdata"
)

// etcdNode is a boot of an etcd node as CloudStack describes it, whose etcd answers.
func etcdNode(t *testing.T) (*node, *hosttest.Machine) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"health":"true"}`)) // the client sees
	}))
	t.Cleanup(server.Close)
	m := hosttest.New(t)
	m.AddUnit(host.Unit{Name: "etcd.service"})
	role, err := roles.Find(kubernetesRole)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{host: m.Host(), update: func(change func(*agent.State)) { change(&agent.State{}) }, role: role, args: userdata.ParseBootArgs(nodeArgs)}
	n.intent = userdata.Intent{Mode: userdata.ModeEtcd, Handover: userdata.HandoverNodeagent, Etcd: &userdata.Etcd{Name: "etcd-1", State: "new",
		InitialCluster: "etcd-1=http://10.1.1.61:2380", Flags: userdata.Words{"--initial-advertise-peer-urls", "http://10.1.1.61:2380",
			"--advertise-client-urls", "http://10.1.1.61:2379", "--listen-client-urls", server.URL}}}
	return n, m
}

// C29, C28: what is not encrypted is a warning and no failure, the note says what the
// cluster tolerates, and a later boot, which knows no userdata, only looks.
func TestRunEtcd(t *testing.T) {
	t.Parallel()
	n, m := etcdNode(t)
	result, err := n.runEtcd(t.Context(), t.Logf)
	if err != nil || result.Note != "member etcd-1 of 1, data in /var/lib/etcd; it stops when one of them does" {
		t.Fatalf("%+v, %v", result, err)
	}
	warning := (*fault.Error)(nil)
	if len(result.Warnings) != 1 || !errors.As(result.Warnings[0], &warning) || warning.Code != fault.EtcdUnencrypted || !strings.Contains(warning.Message, "http://10.1.1.61:2379") {
		t.Errorf("warnings %v", result.Warnings)
	}
	m.Write("/var/lib/etcd/member/wal/0000000000000000-0000000000000000.wal", "")
	m.Actions()
	instance := &agent.Instance{Mode: "etcd", By: userdata.HandoverNodeagent}
	n.intent, n.provisioned, n.instance = userdata.Intent{}, true, instance
	if !n.makesEtcd() || n.makesKubernetes() {
		t.Fatal("a later boot does not know the node for an etcd node")
	}
	if result, err := n.runEtcd(t.Context(), t.Logf); err != nil || !strings.Contains(result.Note, "etcd-1 of 1") {
		t.Errorf("later: %+v, %v", result, err)
	}
	if done := m.Actions(); slices.ContainsFunc(done, func(what string) bool { return what != "start etcd.service" }) {
		t.Errorf("a later boot did %q", done)
	}
	var names []string
	for _, gate := range checkGates(t.Context(), n.host, "etcd-1", instance) {
		names = append(names, gate.Name)
		if gate.Name == "etcd" && !gate.OK {
			t.Errorf("gate %+v", gate)
		}
	}
	if !slices.Equal(names, []string{"ssh", "etcd"}) {
		t.Errorf("gates %q", names)
	}
	for _, gate := range checkGates(t.Context(), n.host, "x", nil) {
		if gate.Name == "etcd" {
			t.Error("a node that is not known is asked for etcd")
		}
	}
}

// A node that was given another name is looked for by it, also on later boots.
func TestNodeNameOfTheUserdata(t *testing.T) {
	t.Parallel()
	n := &node{args: userdata.ParseBootArgs(nodeArgs), intent: userdata.Intent{NodeName: "Cp-1", Version: "1.34.4"}}
	if name := n.nodeName(); name != "cp-1" || n.initPlan().NodeName != name || n.joinPlan().NodeName != name {
		t.Errorf("node name %s", name)
	}
	n = &node{args: n.args, provisioned: true, instance: &agent.Instance{NodeName: "cp-1"}}
	if name := n.nodeName(); name != "cp-1" {
		t.Errorf("later %s", name)
	}
	n.instance = &agent.Instance{}
	if name := n.nodeName(); name != "prod1-control-1" {
		t.Errorf("without %s", name)
	}
}
