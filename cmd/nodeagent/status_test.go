// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"flag"
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

// C41: one notice at the login prompt and on the console, once, and gone when the
// failure is.
func TestAnnounce(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	const issue = "Debian GNU/Linux 12 \\n \\l\n\n"
	m.Write("/etc/issue", issue)
	m.Write("/dev/console", "")
	failed := &agent.State{Role: "cksnode", Steps: []agent.Record{{Name: "iso", Error: &agent.Failure{Code: fault.ISOMissing, Message: "no medium \\n in sr0\x1b[2J"}}}}
	for range 2 {
		if err := announce(m.Host(), failed); err != nil {
			t.Fatal(err)
		}
	}
	got := m.Read("/etc/issue")
	if !strings.HasPrefix(got, issue) || strings.Count(got, "iso-missing") != 1 || strings.Contains(got, "\x1b") || strings.Contains(got, "medium \\n") {
		t.Errorf("/etc/issue:\n%q", got)
	}
	if console := m.Read("/dev/console"); strings.Count(console, "iso-missing") != 1 {
		t.Errorf("console: %q", console)
	}
	if err := announce(m.Host(), &agent.State{}); err != nil {
		t.Fatal(err)
	}
	if got := m.Read("/etc/issue"); got != issue {
		t.Errorf("/etc/issue after the failure is gone: %q", got)
	}
}
