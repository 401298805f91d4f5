// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

func newRunner(t *testing.T, m *hosttest.Machine) *agent.Runner {
	t.Helper()
	runner, err := agent.NewRunner(m.Host(), zap.NewNop(), "0.1.0", func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	runner.Update(func(s *agent.State) { s.Role = "router" })
	return runner
}

func step(name string, needs []string, run func(context.Context, host.Report) (agent.Result, error)) agent.Step {
	return agent.Step{Name: name, Short: name + " is done", Needs: needs, Timeout: 10 * time.Minute, Run: run}
}

// liveRun is a run of the real runner, with the agent's lock, that a test drives: step
// disk is done, iso waits for the test, kubeadm needs it.
type liveRun struct {
	machine *hosttest.Machine
	reports chan string
	ended   chan error
	over    chan struct{}
}

func startRun(t *testing.T, m *hosttest.Machine) *liveRun {
	t.Helper()
	lock, err := agent.Lock(m.Host())
	if err != nil {
		t.Fatal(err)
	}
	run := &liveRun{machine: m, reports: make(chan string), ended: make(chan error, 1), over: make(chan struct{})}
	runner := newRunner(t, m)
	waits := make(chan struct{})
	go func() {
		defer close(run.over)
		defer lock.Close()
		_ = runner.Run(t.Context(), []agent.Step{
			step("disk", nil, func(context.Context, host.Report) (agent.Result, error) { return agent.Result{Note: "grew it"}, nil }),
			step("iso", []string{"disk"}, func(ctx context.Context, report host.Report) (agent.Result, error) {
				close(waits)
				for {
					select {
					case note := <-run.reports:
						report("%s", note)
					case err := <-run.ended:
						return agent.Result{Note: "sr0"}, err
					}
				}
			}),
			step("kubeadm", []string{"iso"}, func(context.Context, host.Report) (agent.Result, error) { return agent.Result{Skipped: true}, nil }),
		})
	}()
	<-waits
	t.Cleanup(func() { run.end(nil) })
	return run
}

// report has step iso say what it waits for, and returns when that is on the disk.
func (r *liveRun) report(note string) {
	r.machine.Write(agent.ProgressFile, "{}")
	watch, err := r.machine.Host().WatchFile(agent.ProgressFile)
	if err != nil {
		panic(err)
	}
	defer watch.Close()
	r.reports <- note
	for !strings.Contains(r.machine.Read(agent.ProgressFile), note) {
		<-watch.Written
	}
}

// end ends step iso, and returns when the run is over.
func (r *liveRun) end(err error) {
	select {
	case r.ended <- err:
	default:
	}
	<-r.over
}

// Into a pipe every change is a line, as it comes, and the whole at the end.
func TestFollowIntoAPipe(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	run := startRun(t, m)
	from, to := io.Pipe()
	code := make(chan int, 1)
	go func() {
		code <- runOn(m.Host(), []string{"status", "--follow"}, to, io.Discard)
		to.Close()
	}()
	lines := bufio.NewScanner(from)
	expect := func(pattern string) {
		t.Helper()
		if !lines.Scan() || !regexp.MustCompile("^"+pattern+"$").MatchString(lines.Text()) {
			t.Fatalf("%q, want %q", lines.Text(), pattern)
		}
	}
	const clock = `\d\d:\d\d:\d\d  `
	expect(clock + `disk          done.*: grew it`)
	expect(clock + `iso           started`)
	run.report("waiting for the binaries ISO")
	expect(clock + `iso           waiting for the binaries ISO`)
	run.report("reading it: 1 %")
	expect(clock + `iso           reading it: 1 %`)
	run.report("reading it: 2 %") // no line: nothing else than a count
	go run.end(fault.New(fault.ISOInvalid, "no ISO"))
	expect(clock + `iso           failed.*: iso-invalid: no ISO`)
	expect(`router: FAILED.*`)
	for lines.Scan() {
	}
	if got := <-code; got != statusFailed {
		t.Errorf("exit code %d, want %d", got, statusFailed)
	}
}

// A line is for what changed, in the order in which it happened; counts that go on make
// one only now and then.
func TestChanges(t *testing.T) {
	t.Parallel()
	f := &lineFollower{}
	report := func(records ...agent.Record) *statusReport { return &statusReport{Started: &noon, Steps: records} }
	images := func(note string) agent.Record {
		return agent.Record{Name: "images", Status: agent.Running, Started: at(1), Note: note}
	}
	for i, test := range []struct {
		at     float64
		report *statusReport
		want   string
	}{
		{1, report(images(""), agent.Record{Name: "role", Status: agent.Done, Started: at(0), Seconds: 0.5, Note: "router"}), "12:00:00  role          done after 0.5s: router\n12:00:01  images        started"},
		{2, report(images("images 1 of 12")), "12:00:02  images        images 1 of 12"},
		{3, report(images("images 2 of 12")), ""},
		{11, report(images("images 3 of 12")), ""},
		{12, report(images("images 3 of 12")), "12:00:12  images        images 3 of 12"},
		{13, report(images("images 3 of 12, 40 MB/s")), "12:00:13  images        images 3 of 12, 40 MB/s"},
		{30, report(images("images 3 of 12, 40 MB/s")), ""},
		{31, report(agent.Record{Name: "images", Status: agent.Interrupted, Started: at(1), Error: &agent.Failure{Code: fault.Interrupted, Message: "cut\x1b[2J"}}), "12:00:01  images        interrupted: interrupted: cut [2J"},
		{32, &statusReport{Started: at(32), Steps: []agent.Record{{Name: "images", Status: agent.Skipped, Started: at(32), Note: "no need"}}, Warnings: []agent.Warning{{Code: "c", Message: "m"}}},
			"12:00:32  images        skipped: no need\n12:00:32  nodeagent     warning: c: m"},
	} {
		if got := strings.Join(f.changes(test.report, *at(test.at)), "\n"); got != test.want {
			t.Errorf("%d:\n%s\nwant\n%s", i, got, test.want)
		}
	}
}
