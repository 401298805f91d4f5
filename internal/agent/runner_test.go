// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// messages collects what systemd is told.
type messages struct {
	mu   sync.Mutex
	list []string
}

func (m *messages) add(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, text)
}

func newRunner(t *testing.T, m *hosttest.Machine) (*agent.Runner, *messages) {
	t.Helper()
	told := &messages{}
	runner, err := agent.NewRunner(m.Host(), zap.NewNop(), "test", told.add)
	if err != nil {
		t.Fatal(err)
	}
	return runner, told
}

func step(name string, run func(ctx context.Context, report host.Report) (agent.Result, error), needs ...string) agent.Step {
	return agent.Step{Name: name, Needs: needs, Timeout: time.Minute, Run: run}
}

func ok(context.Context, host.Report) (agent.Result, error) { return agent.Result{Note: "fine"}, nil }

func statuses(t *testing.T, m *hosttest.Machine) (agent.Phase, map[string]agent.Status) {
	t.Helper()
	state, err := agent.Load(m.Host())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]agent.Status{}
	for _, record := range state.Steps {
		got[record.Name] = record.Status
	}
	return state.Phase(), got
}

func TestStepsRunSideBySideOnceTheirNeedsAreMet(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	runner, _ := newRunner(t, m)
	meet := make(chan struct{})
	both := func(ctx context.Context, _ host.Report) (agent.Result, error) {
		select {
		case meet <- struct{}{}:
		case <-meet:
		case <-ctx.Done():
			return agent.Result{}, ctx.Err()
		}
		return agent.Result{}, nil
	}
	err := runner.Run(context.Background(), []agent.Step{
		step("a", ok), step("b", both, "a"), step("c", both, "a"), step("d", ok, "b", "c"),
	})
	if err != nil {
		t.Fatal(err)
	}
	phase, got := statuses(t, m)
	if phase != agent.PhaseDone || got["d"] != agent.Done {
		t.Errorf("phase %s, steps %v", phase, got)
	}
}

// C1: the failed step is named with code, hint and log; what does not need it
// goes on; what always runs runs (C9).
func TestAFailureStopsOnlyWhatNeedsIt(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	runner, told := newRunner(t, m)
	fail := func(context.Context, host.Report) (agent.Result, error) {
		return agent.Result{}, fault.New(fault.DiskTooSmall, "disk of 5 GiB").WithLog([]string{"line"})
	}
	// It runs always, also when what it needs never ran.
	ssh := step("ssh", ok, "role")
	ssh.Always = true
	services := step("services", ok, "disk")
	services.Ready = true
	err := runner.Run(context.Background(), []agent.Step{step("disk", fail), step("role", ok, "disk"), ssh, services, step("network", ok)})
	if err == nil || !strings.Contains(err.Error(), "disk of 5 GiB") {
		t.Fatalf("error = %v", err)
	}
	phase, got := statuses(t, m)
	want := map[string]agent.Status{"disk": agent.Failed, "role": agent.Pending, "ssh": agent.Done, "services": agent.Pending, "network": agent.Done}
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("step %s is %s, want %s", name, got[name], want[name])
		}
	}
	if phase != agent.PhaseFailed {
		t.Errorf("phase %s, want failed", phase)
	}
	if slices.Contains(told.list, "READY=1") {
		t.Error("systemd was told READY=1 although services did not run")
	}
	state, err := agent.Load(m.Host())
	if err != nil {
		t.Fatal(err)
	}
	failure := state.Steps[0].Error
	if failure == nil || failure.Code != fault.DiskTooSmall || failure.Hint == "" || len(failure.Log) != 1 {
		t.Errorf("recorded failure %+v, want code, hint and log", failure)
	}
}

// I3: every step has a deadline, and the message says what it waited for.
func TestADeadlineNamesWhatWasAwaited(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	runner, _ := newRunner(t, m)
	wait := step("iso", func(ctx context.Context, report host.Report) (agent.Result, error) {
		report("no medium in %s", "sr0")
		<-ctx.Done()
		return agent.Result{}, ctx.Err()
	})
	wait.Timeout = 20 * time.Millisecond
	longer := wait // as an earlier step found out
	longer.Name, longer.Timeout = "longer", time.Millisecond
	longer.Longer = func() time.Duration { return 30 * time.Millisecond }
	err := runner.Run(context.Background(), []agent.Step{wait, longer})
	for _, want := range []string{"step iso did not end within 20ms (no medium in sr0)", "step longer did not end within 30ms (no medium in sr0)"} {
		if fault.As(err).Code != fault.Timeout || !strings.Contains(err.Error(), want) {
			t.Errorf("failure %v, want code timeout and %q", err, want)
		}
	}
}

func TestAPanicIsAFailureOfItsStep(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	runner, _ := newRunner(t, m)
	err := runner.Run(context.Background(), []agent.Step{
		step("bad", func(context.Context, host.Report) (agent.Result, error) { panic("boom") }), step("good", ok),
	})
	if failure := fault.As(err); failure.Code != fault.Internal || len(failure.Log) == 0 {
		t.Errorf("failure = %+v, want code internal with the stack", failure)
	}
	if _, got := statuses(t, m); got["good"] != agent.Done {
		t.Errorf("the other step is %s, want done", got["good"])
	}
}

func TestStepsThatDoNotApplyLeaveNoTrace(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	runner, _ := newRunner(t, m)
	kubernetes := step("iso", ok, "role")
	kubernetes.Applies = func() bool { return false }
	if err := runner.Run(context.Background(), []agent.Step{step("role", ok), kubernetes, step("end", ok, "iso")}); err != nil {
		t.Fatal(err)
	}
	_, got := statuses(t, m)
	if _, there := got["iso"]; there || got["end"] != agent.Done {
		t.Errorf("steps %v, want role and end only", got)
	}
}

// I3: a dead agent shows interrupted, not running, on this boot and the next.
func TestADeadAgentShowsInterrupted(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	runner, _ := newRunner(t, m)
	running := make(chan struct{})
	release := make(chan struct{})
	lock, err := agent.Lock(m.Host())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := agent.Lock(m.Host()); err == nil {
		t.Error("a second agent got the lock")
	}
	ended := make(chan error)
	go func() {
		ended <- runner.Run(context.Background(), []agent.Step{
			step("images", func(_ context.Context, report host.Report) (agent.Result, error) {
				report("image 6 of 12")
				report("image 7 of 12")
				close(running)
				<-release
				return agent.Result{}, nil
			}), step("kubeadm", ok, "images"),
		})
	}()
	<-running
	var state *agent.State
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if state, err = agent.Load(m.Host()); err != nil {
			t.Fatal(err)
		}
		// Progress is written a moment after it was reported.
		if state.Steps[0].Note != "" || time.Now().After(deadline) {
			break
		}
	}
	if state.Phase() != agent.PhaseRunning || state.Steps[0].Status != agent.Running || state.Steps[0].Note != "image 7 of 12" {
		t.Errorf("while it runs: phase %s, step %+v", state.Phase(), state.Steps[0])
	}
	atCrash := m.Read(agent.StateFile)
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	lock.Close()

	m.Write(agent.StateFile, atCrash)
	for _, boot := range []string{"boot-1", "boot-2"} {
		m.SetBootID(boot)
		phase, got := statuses(t, m)
		if phase != agent.PhaseFailed || got["images"] != agent.Interrupted || got["kubeadm"] != agent.Pending {
			t.Errorf("%s after the crash: phase %s, steps %v", boot, phase, got)
		}
	}
}

func TestStoppingTheAgentRecordsTheRunningStep(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	runner, _ := newRunner(t, m)
	ctx, cancel := context.WithCancel(context.Background())
	err := runner.Run(ctx, []agent.Step{
		step("wait", func(ctx context.Context, _ host.Report) (agent.Result, error) {
			cancel()
			<-ctx.Done()
			return agent.Result{}, ctx.Err()
		}), step("never", ok, "wait"),
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	if _, got := statuses(t, m); got["wait"] != agent.Interrupted || got["never"] != agent.Pending {
		t.Errorf("steps %v", got)
	}
}

// K11: what was made of the machine is remembered on later boots.
func TestTheInstanceOutlivesTheBoot(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	runner, _ := newRunner(t, m)
	runner.Update(func(s *agent.State) {
		s.Instance = &agent.Instance{ID: "i-1", Mode: "init"}
		s.Installed = &agent.Installed{InstanceID: "i-1", Version: "v1.34.4"}
	})
	m.SetBootID("boot-2")
	runner, _ = newRunner(t, m)
	if got := runner.State(); got.Instance == nil || got.Instance.ID != "i-1" || got.Installed == nil || got.BootID != "boot-2" {
		t.Errorf("state of the next boot = %+v, want the instance and what is installed", got)
	}
}

// D2: a disk that takes no write must not stop the boot, and status still works.
func TestStatusWorksOnAFullDisk(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	// A folder in the file's place makes every write of it fail, root or not.
	if err := os.MkdirAll(m.Path(agent.StateFile)+"/x", 0o755); err != nil {
		t.Fatal(err)
	}
	runner, _ := newRunner(t, m)
	if err := runner.Run(context.Background(), []agent.Step{step("a", ok)}); err != nil {
		t.Fatal(err)
	}
	if phase, got := statuses(t, m); phase != agent.PhaseDegraded && phase != agent.PhaseDone || got["a"] != agent.Done {
		t.Errorf("phase %s, steps %v", phase, got)
	}
}

func TestLoadRefusesWhatItCannotRead(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	if _, err := agent.Load(m.Host()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no state: %v, want fs.ErrNotExist", err)
	}
	for _, text := range []string{"", "{", `{"schemaVersion": 99}`, `{"steps": 1}`} {
		m.Write(agent.StateFile, text)
		if _, err := agent.Load(m.Host()); err == nil || fault.As(err).Code != fault.StateUnreadable {
			t.Errorf("state %q: error %v, want %s", text, err, fault.StateUnreadable)
		}
	}
}

func TestCheckPlan(t *testing.T) {
	t.Parallel()
	for name, steps := range map[string][]agent.Step{
		"is there twice":  {step("a", ok), step("a", ok)},
		"not listed":      {step("a", ok, "b"), step("b", ok)},
		"has no deadline": {{Name: "a", Run: ok}},
	} {
		if err := agent.CheckPlan(steps); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("CheckPlan: %v, want %q", err, name)
		}
	}
}

// C14: a step that hangs in the kernel does not hang the agent.
func TestAStepThatDoesNotHeedItsDeadlineIsLeftBehind(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	runner, _ := newRunner(t, m)
	runner.SetAbandonAfter(10 * time.Millisecond)
	var told []string
	runner.Changed = func(state *agent.State) {
		if failure := state.Steps[0].Error; failure != nil && state.Ended == nil {
			told = append(told, string(failure.Code))
		}
	}
	hang := make(chan struct{})
	defer close(hang)
	stuck := step("iso", func(_ context.Context, report host.Report) (agent.Result, error) {
		report("reading docker/kube-proxy.tar\nREADY=1")
		<-hang
		return agent.Result{}, nil
	})
	stuck.Timeout = 20 * time.Millisecond
	err := runner.Run(context.Background(), []agent.Step{stuck})
	if failure := fault.As(err); failure.Code != fault.Timeout || !strings.Contains(failure.Message, "reading docker/kube-proxy.tar READY=1") {
		t.Errorf("failure = %+v, want a timeout that names what it did, in one line", failure)
	}
	if !slices.Equal(told, []string{string(fault.Timeout)}) {
		t.Errorf("told of failures %q, want the timeout once", told)
	}
}
