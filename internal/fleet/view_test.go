// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestNextRole(t *testing.T) {
	t.Parallel()
	m := func(id uint64, isVoter bool) Member { return Member{ID: id, Voter: isVoter} }
	for _, test := range []struct {
		name    string
		members []Member
		gone    []uint64
		id      uint64
		to      role
		ok      bool
	}{
		{name: "alone", members: []Member{m(1, true)}},
		{name: "two have one voter", members: []Member{m(1, true), m(2, false)}},
		{name: "three", members: []Member{m(1, true), m(2, false), m(3, false)}, id: 2, to: voter, ok: true},
		{name: "three, one to go", members: []Member{m(1, true), m(2, true), m(3, false)}, id: 3, to: voter, ok: true},
		{name: "three voters", members: []Member{m(1, true), m(2, true), m(3, true)}},
		{name: "a spare that is away", members: []Member{m(1, true), m(2, false), m(3, false)}, gone: []uint64{2}, id: 3, to: voter, ok: true},
		{name: "four have three voters", members: []Member{m(1, true), m(2, true), m(3, true), m(4, false)}},
		{name: "a voter is gone, a spare steps in", members: []Member{m(1, true), m(2, true), m(3, true), m(4, false)}, gone: []uint64{3}, id: 4, to: voter, ok: true},
		{name: "then the one that is gone steps down", members: []Member{m(1, true), m(2, true), m(3, true), m(4, true)}, gone: []uint64{3}, id: 3, to: spare, ok: true},
		{name: "nobody steps in", members: []Member{m(1, true), m(2, true), m(3, true)}, gone: []uint64{3}},
	} {
		gone := map[uint64]bool{}
		for _, id := range test.gone {
			gone[id] = true
		}
		if id, to, ok := nextRole(test.members, gone); id != test.id || to != test.to || ok != test.ok {
			t.Errorf("%s: %d %v %v", test.name, id, to, ok)
		}
	}
}

func TestView(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) *time.Time { at := now.Add(-d); return &at }
	node := func(name, role, phase string, steps ...Step) Node {
		return Node{State: State{Node: name, Role: role, Boot: "b", Phase: phase, Steps: steps}, Seen: now.Add(-20 * time.Second)}
	}
	done := Step{Name: "hostname", Status: "done", Started: ago(4 * time.Minute), Seconds: 1}
	running := node("prod-node-19a2f0d77ab-with-a-long-name", "worker", "running", done, Step{Name: "join", Status: "running", Started: ago(200 * time.Second), Note: "waits for the API server at 10.1.1.57:6443"})
	failed := node("prod-control-19a2f0c4d10", "control", "failed", done, Step{Name: "kubeadm", Status: "failed", Started: ago(3 * time.Minute), Seconds: 60,
		Code: "kubeadm-init-failed", Message: "cannot initialise the cluster: kubeadm init: the kubelet is not healthy after 4 minutes"})
	silent := node("prod-node-2", "worker", "running", Step{Name: "userdata", Status: "running", Started: ago(time.Hour)})
	silent.Seen = now.Add(-58 * time.Minute)
	slow := node("prod-etcd-1", "etcd", "done", done)
	slow.ClockOffset = -7200
	members := []Member{{ID: 1, Voter: true, Leader: true}, {ID: 2, Voter: true}, {ID: 3, Voter: true}}
	for _, test := range []struct {
		name, blocker string
		known         Known
	}{
		{"empty", "", Known{At: now}},
		{"ready", "", Known{At: now, Members: members, Nodes: []Node{node("w1", "worker", "done", done), node("c1", "control", "degraded", done)}}},
		{"failed", "prod-control-19a2f0c4d10", Known{At: now, Members: members, Nodes: []Node{running, silent, failed, slow}}},
		{"silent", "prod-node-2", Known{At: now, Nodes: []Node{running, silent}}},
		{"running", running.Node, Known{At: now, Nodes: []Node{running, slow}}},
		{"stale", running.Node, Known{At: now.Add(-3 * time.Hour), Stale: "no quorum of the control nodes' databases", Nodes: []Node{running}, Damaged: []string{"/var/lib/nodeagent/fleet/db.damaged-20261122T000000Z"}}},
	} {
		view := NewView(test.known, now)
		if view.Blocker != test.blocker {
			t.Errorf("%s: %q holds the cluster back, want %q", test.name, view.Blocker, test.blocker)
		}
		var text strings.Builder
		if err := view.Write(&text, now); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(text.String()) {
			if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 80 {
				t.Errorf("%s: wider than 80 columns: %s", test.name, line)
			}
		}
		path := filepath.Join("testdata", "view-"+test.name+".golden")
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if text.String() != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", test.name, &text, want)
		}
	}
}
