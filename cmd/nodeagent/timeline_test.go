// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// controlNode is the state of a control node's first boot, with the times of a real one:
// the steps of the plan, begun as soon as what they need is done.
func controlNode() *agent.State {
	seconds := map[string]float64{"boot-args": 1.1, "role": 0.02, "ssh": 0.31, "disk": 5.04, "hostname": 0.03, "network": 0.41, "machine": 0.12, "time": 0.22, "iptables": 0.05,
		"swap": 0.02, "kernel": 0.37, "services": 0.64, "userdata": 0.4, "cloud-init": 46.2, "preflight": 0.1, "iso": 9.3, "install": 23.1, "containerd": 6.6, "images": 100.4,
		"release": 1.1, "kubeadm": 147.3, "add-ons": 31.2, "ready": 51.4, "success": 0.1}
	notes := map[string]string{"disk": "grew 4.9 GiB -> 19.9 GiB", "iso": "v1.34.4 on /dev/sr0, 12 images", "images": "12 files, 842 MB, verified", "kubeadm": "control plane v1.34.4",
		"cloud-init": "users and files"}
	const begun = 11.32
	state := &agent.State{SchemaVersion: 1, BootID: "boot-1", Role: "cksnode", Owner: "nodeagent", Node: "prod1-control-1", Started: noon, StartedMonotonic: begun, Warnings: []agent.Warning{}}
	ends := map[string]float64{}
	last := 0.0
	for _, step := range bootPlan(&node{}) {
		took, is := seconds[step.Name]
		if !is { // etcd's own node
			continue
		}
		start := begun + 0.01
		for _, need := range step.Needs {
			start = max(start, ends[need]+0.01)
		}
		ends[step.Name] = start + took
		last = max(last, start+took)
		state.Steps = append(state.Steps, agent.Record{Name: step.Name, Short: step.Short, Needs: step.Needs, Status: agent.Done, Started: at(start - begun), StartedMonotonic: start,
			Seconds: took, Note: notes[step.Name]})
	}
	state.Ended = at(last - begun)
	return state
}

// timelines are states of every kind.
func timelines() map[string]*agent.State {
	record := func(state *agent.State, name string) *agent.Record {
		return &state.Steps[slices.IndexFunc(state.Steps, func(r agent.Record) bool { return r.Name == name })]
	}
	failed := controlNode()
	images := record(failed, "images")
	images.Status, images.Seconds, images.Error = agent.Failed, 61.5, &agent.Failure{Code: fault.ImageImportFailed, Message: `<script>alert("x")</script> & 'y'` + "\x00\x1b[2J"}
	for _, name := range []string{"release", "kubeadm", "add-ons", "ready", "success"} {
		*record(failed, name) = agent.Record{Name: name, Status: agent.Pending}
	}
	// The time of day went back by an hour while the userdata were fetched and then ahead
	// by a day, and the state is of a nodeagent that did not know the kernel's clock.
	stepped := controlNode()
	stepped.StartedMonotonic = 0
	for i := range stepped.Steps {
		step := &stepped.Steps[i]
		if step.StartedMonotonic > 19.5 {
			*step.Started = step.Started.Add(-time.Hour)
		}
		if step.StartedMonotonic > 100 {
			*step.Started = step.Started.Add(25 * time.Hour)
		}
		step.StartedMonotonic = 0
	}
	return map[string]*agent.State{"done": controlNode(), "failed": failed, "clock-stepped": stepped, "empty": {BootID: "boot-1", Started: noon, Ended: &noon}}
}

// Where the time went, in all forms: goldens, which `go test -update` writes.
func TestTimelineGoldens(t *testing.T) {
	for name, state := range timelines() {
		m := hosttest.New(t)
		m.SetBootTimes(host.BootTimes{InitRD: 1_210_000_000, Userspace: 3_870_000_000, Service: 11_300_000_000})
		data, err := json.Marshal(state)
		if err != nil {
			t.Fatal(err)
		}
		m.Write(agent.StateFile, string(data))
		svg := filepath.Join(t.TempDir(), "boot.svg")
		for form, args := range map[string][]string{"txt": {"--svg", svg}, "start.txt": {"--order", "start"}, "json": {"-o", "json"}, "svg": {"--svg", "-"}} {
			var out bytes.Buffer
			cmd := timelineCommand(m.Host())
			cmd.SetArgs(args)
			cmd.SetOut(&out)
			if err := cmd.Execute(); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(out.String()) {
				if form != "json" && form != "svg" && len([]rune(strings.TrimRight(line, "\n"))) > 80 {
					t.Errorf("%s.%s: a line is wider than 80: %q", name, form, line)
				}
			}
			golden(t, filepath.Join("timeline", name+"."+form), out.String())
		}
		if text, err := os.ReadFile(svg); err != nil || !bytes.Contains(text, []byte("<svg ")) {
			t.Errorf("--svg FILE: %v, %.40q", err, text)
		}
	}
}

// Without D-Bus, on another boot, and while it runs.
func TestTimelineDegrades(t *testing.T) {
	t.Parallel()
	show := func(state *agent.State, bootID string) string {
		t.Helper()
		m := hosttest.New(t)
		m.SetBootID(bootID)
		data, err := json.Marshal(state)
		if err != nil {
			t.Fatal(err)
		}
		m.Write(agent.StateFile, string(data))
		var out bytes.Buffer
		cmd := timelineCommand(m.Host())
		cmd.SetArgs([]string{})
		cmd.SetOut(&out)
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := show(controlNode(), "boot-1"); !strings.Contains(got, "* before nodeagent       11s") {
		t.Errorf("without systemd:\n%s", got)
	}
	if got := show(controlNode(), "boot-2"); !strings.Contains(got, "on the boot before") {
		t.Errorf("of another boot:\n%s", got)
	}
	m := hosttest.New(t)
	cmd := timelineCommand(m.Host())
	cmd.SetArgs([]string{})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "never ran") {
		t.Errorf("without a state: %v", err)
	}
}

// A step that was renamed is not silently drawn as one that works.
func TestWaitingStepsAreOfThePlan(t *testing.T) {
	t.Parallel()
	for _, name := range waitingSteps() {
		if !slices.ContainsFunc(bootPlan(&node{}), func(step agent.Step) bool { return step.Name == name }) {
			t.Errorf("the plan has no step %s", name)
		}
	}
}
