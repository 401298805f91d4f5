// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// never is a recheck that does not come: what a test sees then is an event's doing.
const never = time.Hour

// onBus returns a service manager on a bus and a Systemd that has not yet connected.
func onBus(t *testing.T, recheck time.Duration) (*Systemd, *fakeSystemd, *testBus) {
	t.Helper()
	bus, door := newTestBus(t)
	f := newFakeSystemd(t, bus)
	f.join(t)
	return through(t, door, recheck), f, bus
}

func through(t *testing.T, door string, recheck time.Duration) *Systemd {
	s := &Systemd{sockets: []socket{{filepath.Join(t.TempDir(), "private"), false}, {door, true}}, recheck: recheck}
	t.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.conn != nil {
			s.conn.Close()
		}
	})
	return s
}

type answer struct {
	unit Unit
	err  error
}

func stateOf(ctx context.Context, s *Systemd, name string) chan answer {
	result := make(chan answer, 1)
	go func() {
		unit, err := s.State(ctx, name)
		result <- answer{unit, err}
	}()
	return result
}

func TestStateOverABus(t *testing.T) {
	t.Parallel()
	s, f, _ := onBus(t, never)
	f.set("docker.service", func(u *Unit) {
		u.FileState, u.ActiveState, u.JobID, u.TriggeredBy = "enabled", "activating", 7, []string{"docker.socket"}
	})
	f.set("another-name.service", func(u *Unit) { u.ID = "docker.service" })
	want := Unit{Name: "docker.service", ID: "docker.service", LoadState: "loaded", ActiveState: "activating", FileState: "enabled",
		JobID: 7, TriggeredBy: []string{"docker.socket"}}
	if got, err := s.State(t.Context(), "docker.service"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got, err := s.State(t.Context(), "another-name.service"); err != nil || got.Name != "another-name.service" || got.ID != "docker.service" {
		t.Errorf("an alias: %+v, %v", got, err)
	}
	if got, err := s.State(t.Context(), "nothing.service"); err != nil || got.Exists() {
		t.Errorf("a unit that is not there: %+v, %v", got, err)
	}
	f.set("lvm2.socket", func(u *Unit) { u.ActiveState, u.Result = "failed", "exit-code" })
	if got, err := s.State(t.Context(), "lvm2.socket"); err != nil || got.Result != "exit-code" {
		t.Errorf("a unit that failed: %+v, %v", got, err)
	}
	asked := f.called("Get Result")
	f.set("fine.service", func(u *Unit) { u.ActiveState = "active" })
	if _, err := s.State(t.Context(), "fine.service"); err != nil || f.called("Get Result") != asked || f.called("GetAll ") > 0 {
		t.Errorf("how a unit's last run ended was asked for though it is active, or all that a service has (%v)", err)
	}
}

// awaitWatch blocks until this process watches a folder with inotify.
func awaitWatch(t *testing.T, folder string) {
	t.Helper()
	info, err := os.Stat(folder)
	if err != nil {
		t.Fatal(err)
	}
	watched := fmt.Sprintf(" ino:%x ", info.Sys().(*syscall.Stat_t).Ino)
	for t.Context().Err() == nil {
		files, _ := filepath.Glob("/proc/self/fdinfo/*")
		for _, file := range files {
			if text, _ := os.ReadFile(file); strings.Contains(string(text), "inotify wd:") && strings.Contains(string(text), watched) {
				return
			}
		}
	}
}

// S3: the bus comes after the call, in a folder that comes after it too; its coming
// is an event.
func TestBusComesLate(t *testing.T) {
	t.Parallel()
	bus, door := newTestBus(t)
	newFakeSystemd(t, bus).join(t)
	run := filepath.Join(filepath.Dir(door), "run")
	s := through(t, filepath.Join(run, "dbus", "bus"), never)
	result := stateOf(t.Context(), s, "docker.service")
	awaitWatch(t, filepath.Dir(run))
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	awaitWatch(t, run)
	if err := os.Mkdir(filepath.Join(run, "dbus"), 0o700); err != nil {
		t.Fatal(err)
	}
	awaitWatch(t, filepath.Join(run, "dbus"))
	if err := os.Rename(door, filepath.Join(run, "dbus", "bus")); err != nil {
		t.Fatal(err)
	}
	if got := <-result; got.err != nil || got.unit.Name != "docker.service" {
		t.Errorf("%+v", got)
	}
}

// S3: the bus is there and systemd is not on it yet.
func TestSystemdJoinsTheBusLate(t *testing.T) {
	t.Parallel()
	bus, door := newTestBus(t)
	f := newFakeSystemd(t, bus)
	asked := bus.hears("NameHasOwner")
	result := stateOf(t.Context(), through(t, door, never), "docker.service")
	<-asked
	f.join(t)
	if got := <-result; got.err != nil {
		t.Error(got.err)
	}
}

// S3: without systemd there is an end, and the message says what was tried.
func TestSystemdNeverComes(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	s := through(t, filepath.Join(t.TempDir(), "bus"), never)
	result := stateOf(ctx, s, "docker.service")
	awaitWatch(t, filepath.Dir(s.sockets[1].path))
	gaveUp := errors.New("gave up")
	cancel(gaveUp)
	got := <-result
	if !errors.Is(got.err, gaveUp) {
		t.Fatalf("%v, want one with %q", got.err, gaveUp)
	}
	for _, want := range []string{"cannot read the state of docker.service: cannot reach systemd over D-Bus", s.sockets[0].path, s.sockets[1].path} {
		if !strings.Contains(got.err.Error(), want) {
			t.Errorf("%q does not say %q", got.err, want)
		}
	}
}

// S3: the bus is there, and systemd never joins it.
func TestSystemdNeverJoinsTheBus(t *testing.T) {
	t.Parallel()
	bus, door := newTestBus(t)
	asked := bus.hears("NameHasOwner")
	ctx, cancel := context.WithCancel(t.Context())
	result := stateOf(ctx, through(t, door, never), "docker.service")
	<-asked
	cancel()
	if got := <-result; !errors.Is(got.err, context.Canceled) || !strings.Contains(got.err.Error(), "cannot find systemd on the bus") {
		t.Errorf("%v; want one that says systemd is not on the bus", got.err)
	}
}

// A peer that takes the connection and says nothing holds nobody.
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bus")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithCancel(t.Context())
	result := stateOf(ctx, through(t, path, never), "docker.service")
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	cancel()
	if got := <-result; !errors.Is(got.err, context.Canceled) {
		t.Errorf("%v, want %v", got.err, context.Canceled)
	}
}

// A connection that died between two calls is made anew, for any call: nothing was
// sent.
func TestConnectionDiesBetweenCalls(t *testing.T) {
	t.Parallel()
	s, f, bus := onBus(t, never)
	for _, call := range []func() error{
		func() error { _, err := s.State(t.Context(), "docker.service"); return err },
		func() error { _, err := s.Restart(t.Context(), "docker.service"); return err },
	} {
		if _, err := s.State(t.Context(), "docker.service"); err != nil {
			t.Fatal(err)
		}
		bus.slam()
		for s.conn.Connected() && t.Context().Err() == nil {
		}
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	if f.called("RestartUnit") != 1 || bus.connections() != 3 {
		t.Errorf("%d restarts over %d connections; want 1 over 3", f.called("RestartUnit"), bus.connections())
	}
}

// A call whose answer is lost is made again only where twice is the same as once.
func TestConnectionDiesInACall(t *testing.T) {
	t.Parallel()
	const name = "docker.service"
	file := func(change func(*Systemd, context.Context, ...string) (bool, error)) func(*Systemd, context.Context) error {
		return func(s *Systemd, ctx context.Context) error {
			// The first call has changed it, the second finds nothing to change.
			if changed, err := change(s, ctx, name); err != nil || !changed {
				return errors.Join(err, fmt.Errorf("changed: %v, want true", changed))
			}
			return nil
		}
	}
	job := func(queue func(*Systemd, context.Context, string) (Job, error)) func(*Systemd, context.Context) error {
		return func(s *Systemd, ctx context.Context) error {
			job, err := queue(s, ctx, name)
			if err == nil && (job.ID == 0 || job.Result == nil) {
				err = fmt.Errorf("job %+v is none", job)
			}
			return err
		}
	}
	for _, test := range []struct {
		method string
		call   func(*Systemd, context.Context) error
		times  int
	}{
		{"GetAll Unit", func(s *Systemd, ctx context.Context) error { _, err := s.State(ctx, name); return err }, 2},
		{"ListUnits", func(s *Systemd, ctx context.Context) error {
			names, err := s.List(ctx, ".service")
			if !slices.Equal(names, []string{name}) {
				err = errors.Join(err, fmt.Errorf("units %q", names))
			}
			return err
		}, 2},
		{"EnableUnitFiles", file((*Systemd).Enable), 2},
		{"DisableUnitFiles", file((*Systemd).Disable), 2},
		{"MaskUnitFiles", file((*Systemd).Mask), 2},
		{"Reload", func(s *Systemd, ctx context.Context) error { return s.Reload(ctx) }, 2},
		{"StartUnit", job((*Systemd).Start), 2},
		{"StopUnit", job((*Systemd).Stop), 2},
		{"RestartUnit", job((*Systemd).Restart), 1},
		{"ReloadOrTryRestartUnit", job((*Systemd).ReloadOrRestart), 1},
	} {
		t.Run(test.method, func(t *testing.T) {
			t.Parallel()
			s, f, bus := onBus(t, never)
			f.set(name, func(u *Unit) { u.FileState = "static" })
			f.mu.Lock()
			f.during = func(method string) {
				if method == test.method && f.called(method) == 1 {
					bus.slam()
				}
			}
			f.mu.Unlock()
			err := test.call(s, t.Context())
			if got := f.called(test.method); got != test.times {
				t.Errorf("called %d times, want %d", got, test.times)
			}
			switch {
			case test.times == 2 && err != nil:
				t.Error(err)
			case test.times == 1 && (err == nil || !strings.Contains(err.Error(), "whether it was done is not known")):
				t.Errorf("error %v; want one that says what is not known", err)
			}
			if _, err := s.State(t.Context(), name); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// systemd left the bus, as it does for a moment when it is upgraded, and the bus
// stayed: also what must not be done twice goes on, since nobody got the call.
func TestSystemdLeavesTheBus(t *testing.T) {
	t.Parallel()
	s, f, bus := onBus(t, never)
	if _, err := s.State(t.Context(), "docker.service"); err != nil {
		t.Fatal(err)
	}
	f.leave(t)
	asked := bus.hears("NameHasOwner")
	result := make(chan error, 1)
	go func() {
		_, err := s.Restart(t.Context(), "docker.service")
		result <- err
	}()
	<-asked
	f.join(t)
	if err := <-result; err != nil || f.called("RestartUnit") != 1 {
		t.Errorf("%v, %d restarts; want one", err, f.called("RestartUnit"))
	}
}

// S2: a unit that is ordered after nodeagent does not start while nodeagent is
// starting. Its start is queued, and not awaited.
func TestStartIsQueued(t *testing.T) {
	t.Parallel()
	s, f, _ := onBus(t, never)
	f.set("ssh.service", func(*Unit) {})
	job, err := s.Start(t.Context(), "ssh.service")
	if err != nil || job.ID == 0 || job.Unit != "ssh.service" {
		t.Fatalf("job %+v, %v", job, err)
	}
	if unit, err := s.State(t.Context(), "ssh.service"); err != nil || unit.ActiveState != "inactive" || unit.JobID != job.ID {
		t.Errorf("unit %+v, %v; want it still to be started by job %d", unit, err, job.ID)
	}
	f.set("ssh.service", func(u *Unit) { u.ActiveState, u.JobID = "active", 0 })
	if job, err := s.Start(t.Context(), "ssh.service"); err != nil || job.ID != 0 || job.Result != nil {
		t.Errorf("of a unit that runs: job %+v, %v; want none", job, err)
	}
}

// The signal ends the wait, without a look in between.
func TestWaitForTheSignal(t *testing.T) {
	t.Parallel()
	s, f, _ := onBus(t, never)
	job, err := s.Start(t.Context(), "containerd.service")
	if err != nil {
		t.Fatal(err)
	}
	f.finish("containerd.service", "active")
	if unit, err := s.Wait(t.Context(), job); err != nil || unit.ActiveState != "active" {
		t.Errorf("unit %+v, %v", unit, err)
	}
}

// S6: no signal ever comes. What ends the wait is the unit: it has no job any more, or
// another one.
func TestWaitWithoutSignals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		ends func(*fakeSystemd, *testBus)
		want string
	}{
		{"done", func(f *fakeSystemd, _ *testBus) { f.finish("containerd.service", "active") }, "active"},
		{"failed", func(f *fakeSystemd, _ *testBus) { f.finish("containerd.service", "failed") }, "failed"},
		{"replaced", func(f *fakeSystemd, _ *testBus) {
			f.set("containerd.service", func(u *Unit) { u.JobID += 100 })
		}, "inactive"},
		{"the connection died", func(f *fakeSystemd, bus *testBus) {
			bus.slam()
			f.finish("containerd.service", "active")
		}, "active"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, f, bus := onBus(t, time.Millisecond)
			f.mute = true
			job, err := s.Start(t.Context(), "containerd.service")
			if err != nil {
				t.Fatal(err)
			}
			looked := f.called("GetAll Unit")
			f.mu.Lock()
			f.during = func(method string) {
				if method == "GetAll Unit" && f.called("GetAll Unit") == looked+3 {
					go test.ends(f, bus)
				}
			}
			f.mu.Unlock()
			unit, err := s.Wait(t.Context(), job)
			if err != nil || unit.ActiveState != test.want {
				t.Errorf("unit %+v, %v; want %s", unit, err, test.want)
			}
			if looks := f.called("GetAll Unit") - looked; looks < 3 {
				t.Errorf("ended after %d looks, while the job was queued", looks)
			}
		})
	}
}

// S2: the wait for a unit that cannot start ends with its context.
func TestWaitIsBounded(t *testing.T) {
	t.Parallel()
	s, f, _ := onBus(t, time.Millisecond)
	job, err := s.Start(t.Context(), "ssh.service")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	late := errors.New("too late")
	looked := f.called("GetAll Unit")
	f.mu.Lock()
	f.during = func(string) {
		if f.called("GetAll Unit") > looked+3 {
			cancel(late)
		}
	}
	f.mu.Unlock()
	if unit, err := s.Wait(ctx, job); !errors.Is(err, late) || !strings.Contains(err.Error(), "cannot wait for ssh.service") {
		t.Errorf("unit %+v, %v; want %q", unit, err, late)
	}
}
