// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// shown is the screen of a report, checked.
func shown(t *testing.T, report *statusReport) string {
	t.Helper()
	var out bytes.Buffer
	(&screen{out: &out, width: 80}).show(report, *at(63))
	checkScreen(t, out.String(), 80)
	return out.String()
}

// I2, I3: whatever is in the place of the state, status says what is known, with a
// reason where it ends with 1, and never calls a node done that may not be.
func TestStatusOfOddStates(t *testing.T) {
	t.Parallel()
	schema := statusSchema(t)
	const begin = `{"schemaVersion":1,"bootID":"boot-1","role":"router","started":"2026-11-20T12:00:00Z","warnings":[],`
	for name, test := range map[string]struct {
		state string
		code  int
		says  string
	}{
		"empty":          {"", 1, "state-unreadable"},
		"truncated":      {begin + `"steps":[{"name":"disk","sta`, 1, "state-unreadable"},
		"damaged":        {"\x00\xff\x00", 1, "state-unreadable"},
		"a list":         {"[]", 1, "state-unreadable"},
		"huge":           {strings.Repeat(" ", host.MaxFile) + "{}", 1, "larger than 8388608 bytes"},
		"of wrong types": {begin + `"steps":{"name":7}}`, 1, "state-unreadable"},
		"newer":          {`{"schemaVersion":2,"agentVersion":"9.1.0","bootID":{"other":"type"}}`, 1, "Install nodeagent 9.1.0 again, or a newer one."},
		"without keys":   {`{}`, 4, "earlier-boot"},
		"null":           {`null`, 4, "earlier-boot"},
		"older":          {`{"bootID":"boot-1","role":"router","steps":[{"name":"disk","status":"done"}]}`, 0, "router: done"},
		"no steps":       {begin + `"steps":null,"ended":"2026-11-20T12:00:09Z"}`, 0, "router: done"},
		"no reason":      {begin + `"steps":[{"name":"disk","status":"failed"}],"ended":"2026-11-20T12:00:09Z"}`, 1, "the state does not say why"},
		"unknown status": {begin + `"steps":[{"name":"disk","status":"asleep"}],"ended":"2026-11-20T12:00:09Z"}`, 1, `"asleep" here, which is unknown`},
		"never begun":    {begin + `"steps":[{"name":"disk","status":"pending"}]}`, 1, "nodeagent ended before all steps had run"},
		"odd upgrade":    {begin + `"steps":[],"upgrade":{"from":"a","to":"b","status":"asleep"}}`, 2, "Upgrade failed: state-unreadable"},
		"odd times":      {begin + `"steps":[{"name":"disk","status":"running","started":"9999-12-31T23:59:59Z","seconds":1e300}]}`, 1, "interrupted"},
		"hostile": {begin + `"node":` + quoted(hostile) + `,"steps":[{"name":` + quoted(hostile) + `,"status":"failed","note":` + quoted(hostile) +
			`,"error":{"code":` + quoted(hostile) + `,"message":` + quoted(hostile) + `,"log":[` + quoted(hostile) + `]}}]}`, 1, "evil"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := hosttest.New(t)
			m.Write(agent.StateFile, test.state)
			report, err := readStatus(t.Context(), m.Host())
			if err != nil {
				t.Fatal(err)
			}
			if text := shown(t, report); report.exitCode() != test.code || !strings.Contains(strings.Join(strings.Fields(text), " "), test.says) {
				t.Errorf("exit code %d, want %d, and to read %q in\n%s", report.exitCode(), test.code, test.says, text)
			}
			checkOutput(t, schema, report)
		})
	}
}

func quoted(text string) string {
	data, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// Any user may ask, on a disk that takes nothing: status writes nothing, and what only
// root can see is said.
func TestStatusOfAnyUser(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write(agent.StateFile, `{"schemaVersion":1,"bootID":"boot-1","steps":[]}`)
	if err := os.Chmod(m.Path(agent.StateFile), 0); err != nil {
		t.Fatal(err)
	}
	before := tree(t, m.Path("/"))
	hosttest.DropCapabilities(t, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH)
	report, err := readStatus(t.Context(), m.Host())
	if err != nil {
		t.Fatal(err)
	}
	if report.exitCode() != statusFailed || report.Error.Hint != "Run it as root." {
		t.Errorf("a state that may not be read: exit code %d, %+v", report.exitCode(), report.Error)
	}
	gates := runChecks(t.Context(), []check{{name: "kubeconfig", probe: func(context.Context) (string, error) {
		return "", &fs.PathError{Op: "open", Path: "/etc/kubernetes/admin.conf", Err: syscall.EACCES}
	}}})
	if got := gates[0]; got.OK || !got.Unknown || !strings.HasPrefix(got.Detail, "needs root: ") {
		t.Errorf("gate %+v", got)
	}
	if text := shown(t, &statusReport{Phase: agent.PhaseDone, Gates: gates, Steps: []agent.Record{{Name: "x", Status: agent.Done}}}); strings.Contains(text, "All local gates pass") || !strings.Contains(text, "As root") {
		t.Errorf("what was not checked passes:\n%s", text)
	}
	if after := tree(t, m.Path("/")); after != before {
		t.Errorf("status changed\n%s to\n%s", before, after)
	}
}

// tree lists the files of a folder with their times.
func tree(t *testing.T, folder string) string {
	t.Helper()
	var all strings.Builder
	if err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			all.WriteString(path + " " + info.ModTime().Format(time.RFC3339Nano) + "\n")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// A disk that takes nothing: the state is in /run, and status shows it.
func TestStatusOfAFullDisk(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write("/var/lib/nodeagent", "a file where the folder would be")
	runner := newRunner(t, m)
	if err := runner.Run(t.Context(), []agent.Step{step("disk", nil, func(context.Context, host.Report) (agent.Result, error) {
		return agent.Result{}, fault.New(fault.DiskBlocked, "vda2 follows")
	})}); err == nil {
		t.Fatal("the step did not fail")
	}
	report, err := readStatus(t.Context(), m.Host())
	if err != nil || report.exitCode() != statusFailed || report.Steps[0].Error.Code != fault.DiskBlocked {
		t.Errorf("%+v, %v", report, err)
	}
}

// A tool that fails is shown with the file that has all it said.
func TestAFailureNamesItsLog(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	err := newRunner(t, m).Run(t.Context(), []agent.Step{step("kubeadm", nil, func(context.Context, host.Report) (agent.Result, error) {
		failed := fault.New(fault.KubeadmInitFailed, "it failed").WithLog([]string{"its last line"}).WithLogPath("/var/log/nodeagent/kubeadm-init.log")
		return agent.Result{}, fault.Wrap(fault.KubeadmInitFailed, failed, "kubeadm")
	})})
	if err == nil {
		t.Fatal("the step did not fail")
	}
	report, err := readStatus(t.Context(), m.Host())
	if err != nil {
		t.Fatal(err)
	}
	if text := shown(t, report); !strings.Contains(text, "  Last lines of /var/log/nodeagent/kubeadm-init.log:\n    its last line\n") {
		t.Errorf("%s", text)
	}
}

// I3: a wait that is given up says what was awaited, and does not end with 3.
func TestWaitGivenUp(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	run := startRun(t, m)
	run.report("waiting for the binaries ISO")
	for _, how := range []string{"--wait", "--follow"} {
		var out, errs bytes.Buffer
		code := runOn(m.Host(), []string{"status", how, "--timeout", "1ns"}, &out, &errs)
		if code != statusFailed || !strings.Contains(errs.String(), "cannot wait any longer: the 1ns of --timeout are over; still running: iso (waiting for the binaries ISO)\n") {
			t.Errorf("%s: exit code %d, %s", how, code, &errs)
		}
		if !strings.Contains(out.String(), "run   iso") {
			t.Errorf("%s:\n%s", how, &out)
		}
	}
	// So does one that a signal ends.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cmd := statusCommand(m.Host())
	cmd.SetArgs([]string{"--wait"})
	cmd.SetOut(io.Discard)
	cmd.SetErr(io.Discard)
	var code exitCode
	if err := cmd.ExecuteContext(ctx); !errors.As(err, &code) || int(code) != statusFailed {
		t.Errorf("stopped: %v", err)
	}
	run.end(nil)
	var out, errs bytes.Buffer
	if code := runOn(m.Host(), []string{"status", "--wait", "-o", "yaml"}, &out, &errs); code != statusDone || errs.Len() > 0 || !strings.Contains(out.String(), "\nphase: done\n") {
		t.Errorf("of one that is over: exit code %d, %s%s", code, &out, &errs)
	}
}

func TestFollowIsForPeople(t *testing.T) {
	t.Parallel()
	if code, _, errs := call(t, "status", "--follow", "-o", "json"); code != exitUsage || !strings.Contains(errs, "--wait -o json") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

// Shells are told what -o takes.
func TestFlagsAreCompleted(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{"status -o": "text\njson\nyaml\n:4\n", "plan -o": "text\njson\n:4\n", "timeline -o": "text\njson\n:4\n", "iso check -o": "text\njson\n:4\n", "status --timeout": ":4\n", "status": ":4\n"} {
		if code, out, _ := call(t, append(append([]string{"__complete"}, strings.Fields(args)...), "")...); code != 0 || out != want {
			t.Errorf("%s: exit code %d, %q, want %q", args, code, out, want)
		}
	}
}

// FuzzStatus: no state and no progress makes status panic, a terminal obey, or an output
// that is not of the schema.
func FuzzStatus(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":1,"bootID":"boot-1","started":"2026-11-20T12:00:00Z","steps":[{"name":"images","status":"running","started":"2026-11-20T12:00:00Z","until":"2026-11-20T12:30:00Z"}]}`), []byte(`{"images":"7 of 12"}`), true)
	f.Add([]byte(`{"bootID":"boot-1","steps":[{"name":"a","status":"failed","needs":["b"],"error":{"code":"x","message":"y; z","log":["l"],"logPath":"p"}},{"status":"pending"}],"warnings":[{"code":"c"}]}`), []byte(`[]`), false)
	f.Add([]byte(`{"bootID":"boot-1","upgrade":{"from":"v1","to":"v2","status":"failed","stage":"s","ended":"2026-11-20T12:00:00Z"},"ended":"0001-01-01T00:00:00Z"}`), []byte(`null`), false)
	schema := statusSchema(f)
	f.Fuzz(func(t *testing.T, state, progress []byte, locked bool) {
		m := hosttest.New(t)
		m.Write(agent.StateFile, string(state))
		m.Write(agent.ProgressFile, string(progress))
		if locked {
			lock, err := agent.Lock(m.Host())
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Close()
		}
		report, _, err := readReport(m.Host())
		if err != nil {
			t.Fatal(err)
		}
		shown(t, report)
		(&screen{width: 60}).lines(report, *at(63), 20)
		for _, line := range (&lineFollower{}).changes(report, *at(63)) {
			if agent.Printable(line) != line {
				t.Errorf("a terminal would obey %q", line)
			}
		}
		checkOutput(t, schema, report)
	})
}

// BenchmarkStatus is what `nodeagent status` does of a node, without its gates. Less
// than 20 ms is wanted of the whole program.
func BenchmarkStatus(b *testing.B) {
	m := hosttest.New(b)
	state := agent.State{SchemaVersion: agent.SchemaVersion, BootID: "boot-1", Role: kubernetesRole, Node: "prod1-control-1", Started: noon, Ended: at(187)}
	for _, step := range bootPlan(&node{}) {
		state.Steps = append(state.Steps, agent.Record{Name: step.Name, Short: step.Short, Needs: step.Needs, Status: agent.Done, Started: &noon, Seconds: 1.5, Note: strings.Repeat("what it did ", 8)})
	}
	data, err := json.Marshal(state)
	if err != nil {
		b.Fatal(err)
	}
	m.Write(agent.StateFile, string(data))
	for b.Loop() {
		report, _, err := readReport(m.Host())
		if err != nil {
			b.Fatal(err)
		}
		(&screen{out: &bytes.Buffer{}, width: 80, colour: true}).show(report, *at(300))
	}
}
