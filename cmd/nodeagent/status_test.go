// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host/hosttest"
)

var update = flag.Bool("update", false, "write the golden files")

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func at(seconds float64) *time.Time {
	when := noon.Add(time.Duration(seconds * float64(time.Second)))
	return &when
}

// I1, I2: exit codes are fixed; JSON lists are never null.
func TestStatusOfAMachine(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	read := func() *statusReport {
		t.Helper()
		report, err := readStatus(context.Background(), m.Host())
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	if report := read(); report.exitCode() != 4 {
		t.Errorf("never ran: exit code %d, want 4", report.exitCode())
	}
	encoded, err := json.Marshal(read())
	if err != nil || strings.Contains(string(encoded), "null") {
		t.Errorf("JSON has null: %s (%v)", encoded, err)
	}
	state := func(steps string) string {
		return `{"schemaVersion":1,"bootID":"boot-1","role":"router","started":"2026-11-20T12:00:00Z","ended":"2026-11-20T12:00:09Z","warnings":[],"steps":[` + steps + `]}`
	}
	for steps, want := range map[string]int{
		`{"name":"disk","status":"done"}`:                                                     0,
		`{"name":"disk","status":"failed","error":{"code":"disk-blocked","message":"x"}}`:     1,
		`{"name":"disk","status":"running"},{"name":"services","status":"pending"}`:           1,
		`{"name":"disk","status":"done"},{"name":"services","status":"skipped","note":"..."}`: 0,
	} {
		m.Write(agent.StateFile, state(steps))
		if got := read().exitCode(); got != want {
			t.Errorf("steps %s: exit code %d, want %d", steps, got, want)
		}
	}
	m.SetBootID("boot-2")
	if report := read(); report.exitCode() != 4 || len(report.Warnings) != 1 {
		t.Errorf("state of the boot before: exit code %d, warnings %v; want 4 and one that says so", report.exitCode(), report.Warnings)
	}
}

// I3: --wait wakes when the agent ends, however it ends.
func TestWaitUnlocked(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	lock, err := agent.Lock(m.Host())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := agent.WaitUnlocked(short, m.Host()); err == nil {
		t.Error("waiting ended while the agent ran")
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.WaitUnlocked(context.Background(), m.Host()) }()
	lock.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("waiting did not end with the agent")
	}
}

// C41: the state is at the login prompt, in the message of the day and on the console,
// each change once.
func TestAnnounce(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	const issue = "Debian GNU/Linux 12 \\n \\l\n\n"
	m.Write("/etc/issue", issue)
	m.Write("/dev/console", "")
	m.Write(gettyReload, "")
	failure := &agent.Failure{Code: fault.ISOMissing, Message: "no medium \\n in sr0\x1b[2J"}
	for _, test := range []struct {
		name, want string
		state      agent.State
	}{
		{"begins", "role not known: running", agent.State{}},
		{"runs", "cksnode n1: running", agent.State{Role: "cksnode", Node: "n1"}},
		{"fails", "FAILED (cksnode n1) at step iso: iso-missing\nno medium /n in sr0 [2J\nFor more: nodeagent status", agent.State{Role: "cksnode", Node: "n1", Steps: []agent.Record{{Name: "iso", Error: failure}}}},
		{"is done", "router r-1-VM: done", agent.State{Role: "router", Node: "r-1-VM", Ended: &noon}},
		{"warns", "cksnode n1: done, with a warning: etcd-unencrypted", agent.State{Role: "cksnode", Node: "n1", Ended: &noon, Warnings: []agent.Warning{{Code: fault.EtcdUnencrypted}}}},
	} {
		if err := os.Chtimes(m.Path(gettyReload), noon, noon); err != nil {
			t.Fatal(err)
		}
		m.Write("/dev/console", "")
		for range 2 {
			if err := announce(m.Host(), &test.state); err != nil {
				t.Fatal(err)
			}
		}
		// Only a failure writes to the disk; the rest goes with the boot.
		file, boot := issue, "--- nodeagent ---\n"+test.want+"\n-----------------\n"
		if test.name == "fails" {
			file, boot = issue+boot, ""
		}
		if got := m.Read("/etc/issue"); got != file {
			t.Errorf("%s: /etc/issue is\n%q, want\n%q", test.name, got, file)
		}
		if got := m.Read(bootIssue); got != boot {
			t.Errorf("%s: %s is\n%q, want\n%q", test.name, bootIssue, got, boot)
		}
		if got, want := m.Read("/run/motd.d/nodeagent"), "nodeagent: "+strings.ReplaceAll(test.want, "\n", "\n  ")+"\n"; got != want {
			t.Errorf("%s: the message of the day is %q, want %q", test.name, got, want)
		}
		if got, want := m.Read("/dev/console"), "\r\nnodeagent: "+strings.ReplaceAll(test.want, "\n", "\r\n  ")+"\r\n"; got != want {
			t.Errorf("%s: the console shows %q, want %q", test.name, got, want)
		}
		if info, err := os.Stat(m.Path(gettyReload)); err != nil || info.ModTime().Equal(noon) {
			t.Errorf("%s: gettys were not told (%v)", test.name, err)
		}
	}
}
