// SPDX-License-Identifier: Apache-2.0

// Package hosttest is a machine for tests: files in a temporary folder, systemd
// units and mounts kept in memory, programs played by functions. It is stateful,
// so that running a step twice shows what the second run changes; String shows
// the whole state for comparing.
package hosttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"

	"nodeagent/internal/host"
)

// Machine is a fake machine.
type Machine struct {
	t    testing.TB
	root string

	mu       sync.Mutex
	units    map[string]host.Unit
	programs map[string]Program
	media    map[string]string // device -> folder that mounting it shows
	mounts   map[string]string // target -> device
	swaps    []string
	hostname string
	actions  []string
	boot     *host.BootTimes
}

// Program plays a program: it gets the command and returns its standard output.
type Program func(command host.Command) (string, error)

// New returns an empty machine with the boot id "boot-1".
func New(t testing.TB) *Machine {
	t.Helper()
	m := &Machine{t: t, root: t.TempDir(), units: map[string]host.Unit{}, programs: map[string]Program{},
		media: map[string]string{}, mounts: map[string]string{}}
	m.SetBootID("boot-1")
	return m
}

// Host returns the machine as the code under test sees it.
func (m *Machine) Host() *host.Host {
	return &host.Host{Root: m.root, Run: commands{m}, Units: units{m}, Kernel: kernel{m}}
}

// SetBootID starts another boot as far as files tell.
func (m *Machine) SetBootID(id string) { m.Write("/proc/sys/kernel/random/boot_id", id+"\n") }

// Path returns where a file of the machine really is.
func (m *Machine) Path(name string) string { return filepath.Join(m.root, name) }

// Write puts a file on the machine.
func (m *Machine) Write(name, text string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(m.Path(name)), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.Path(name), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// Read returns a file's text; a missing file fails the test.
func (m *Machine) Read(name string) string {
	m.t.Helper()
	data, err := os.ReadFile(m.Path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(data)
}

// Program installs a program; running one that is not installed fails.
func (m *Machine) Program(path string, run Program) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.programs[path] = run
}

// AddUnit installs a unit; LoadState defaults to loaded, ActiveState to inactive,
// FileState to disabled, ID to its name.
func (m *Machine) AddUnit(unit host.Unit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if unit.LoadState == "" {
		unit.LoadState = "loaded"
	}
	if unit.ActiveState == "" {
		unit.ActiveState = "inactive"
	}
	if unit.FileState == "" {
		unit.FileState = "disabled"
	}
	if unit.ID == "" {
		unit.ID = unit.Name
	}
	m.units[unit.Name] = unit
}

// SetBootTimes is what systemd says of the boot; before, it does not answer.
func (m *Machine) SetBootTimes(times host.BootTimes) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boot = &times
}

// AddMedium makes mounting the device show a folder.
func (m *Machine) AddMedium(device, folder string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.media[device] = folder
}

// AddSwap makes the machine swap to a device.
func (m *Machine) AddSwap(device string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.swaps = append(m.swaps, device)
	m.writeSwaps()
}

// Actions returns what was done to the machine since the last call: commands run,
// unit changes, mounts, in order.
func (m *Machine) Actions() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	done := m.actions
	m.actions = nil
	return done
}

// String shows units, mounts, swap and host name, sorted.
func (m *Machine) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	for name, unit := range m.units {
		lines = append(lines, fmt.Sprintf("unit %s: %s %s", name, unit.FileState, unit.ActiveState))
	}
	for target, device := range m.mounts {
		lines = append(lines, fmt.Sprintf("mount %s on %s", device, target))
	}
	for _, device := range m.swaps {
		lines = append(lines, "swap "+device)
	}
	if m.hostname != "" {
		lines = append(lines, "hostname "+m.hostname)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n") + "\n"
}

func (m *Machine) did(format string, args ...any) {
	m.actions = append(m.actions, fmt.Sprintf(format, args...))
}

func (m *Machine) writeSwaps() {
	text := "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for _, device := range m.swaps {
		text += device + "\tpartition\t524284\t0\t-2\n"
	}
	m.Write("/proc/swaps", text)
}

type commands struct{ *Machine }

func (m commands) Run(ctx context.Context, command host.Command) ([]byte, error) {
	m.mu.Lock()
	m.did("run %s", command)
	program := m.programs[command.Path]
	m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, &host.CommandError{Command: command.String(), ExitCode: -1, Err: err}
	}
	if program == nil {
		return nil, &host.CommandError{Command: command.String(), ExitCode: -1, Err: os.ErrNotExist}
	}
	out, err := program(command)
	if command.Stdout != nil {
		if _, wrote := io.WriteString(command.Stdout, out); wrote != nil {
			return nil, wrote
		}
		return nil, err
	}
	if command.Line != nil {
		for line := range strings.Lines(out) {
			command.Line(strings.TrimRight(line, "\n"))
		}
	}
	return []byte(out), err
}

type kernel struct{ *Machine }

func (m kernel) MountReadOnly(device, target, fstype string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	folder, ok := m.media[device]
	if !ok {
		return fmt.Errorf("mount: no medium in %s", device)
	}
	// A link stands for the mount: the code under test sees the medium's files.
	os.Remove(target)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(folder, target); err != nil {
		return err
	}
	m.mounts[strings.TrimPrefix(target, m.root)] = device
	m.did("mount %s (%s)", device, fstype)
	return nil
}

func (m kernel) Unmount(target string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := strings.TrimPrefix(target, m.root)
	if device, ok := m.mounts[name]; ok {
		m.did("unmount %s", device)
		delete(m.mounts, name)
		return os.Remove(target)
	}
	return nil
}

func (m kernel) SwapOff(path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := slices.Index(m.swaps, path)
	if at < 0 {
		return fmt.Errorf("swapoff: %s is not swapped to", path)
	}
	m.did("swapoff %s", path)
	m.swaps = slices.Delete(m.swaps, at, at+1)
	m.writeSwaps()
	return nil
}

func (m kernel) Sync() {}

func (m kernel) SetHostname(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hostname != name {
		m.did("hostname %s", name)
	}
	m.hostname = name
	return nil
}

type units struct{ *Machine }

func (m units) State(_ context.Context, name string) (host.Unit, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if unit, ok := m.units[name]; ok {
		return unit, nil
	}
	return host.Unit{Name: name, LoadState: "not-found", ActiveState: "inactive"}, nil
}

func (m units) List(_ context.Context, suffix string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.units {
		if strings.HasSuffix(name, suffix) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names, nil
}

func (m units) change(verb, name string, change func(*host.Unit)) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	unit, ok := m.units[name]
	if !ok {
		return false, fmt.Errorf("cannot %s %s: unit not found", verb, name)
	}
	before := unit
	change(&unit)
	m.units[name] = unit
	changed := unit.FileState != before.FileState || unit.ActiveState != before.ActiveState || unit.JobID != before.JobID
	if changed || verb == "restart" || verb == "reload" {
		m.did("%s %s", verb, name)
	}
	return changed, nil
}

// Enable knows, as systemd does, that there is nothing to enable in some units, and
// that some cannot be.
func (m units) Enable(ctx context.Context, names ...string) (bool, error) {
	for _, name := range names {
		unit, err := m.State(ctx, name)
		if err != nil {
			return false, err
		}
		switch unit.FileState {
		case "masked", "masked-runtime", "generated", "transient", "bad":
			return false, fmt.Errorf("cannot enable %s: it is %s", name, unit.FileState)
		}
	}
	return m.setFileState("enable", names, func(state string) string {
		if state == "static" || state == "indirect" {
			return state
		}
		return "enabled"
	})
}

func (m units) Disable(_ context.Context, names ...string) (bool, error) {
	return m.setFileState("disable", names, func(state string) string {
		if state == "enabled" {
			return "disabled"
		}
		return state
	})
}

func (m units) Mask(_ context.Context, names ...string) (bool, error) {
	return m.setFileState("mask", names, func(string) string { return "masked" })
}

func (m units) setFileState(verb string, names []string, after func(string) string) (changed bool, err error) {
	for _, name := range names {
		one, err := m.change(verb, name, func(u *host.Unit) { u.FileState = after(u.FileState) })
		if err != nil {
			return changed, err
		}
		changed = changed || one
	}
	return changed, nil
}

func (m units) Start(_ context.Context, name string) (host.Job, error) {
	return m.job("start", name, "active")
}

func (m units) Stop(_ context.Context, name string) (host.Job, error) {
	return m.job("stop", name, "inactive")
}

func (m units) Restart(_ context.Context, name string) (host.Job, error) {
	return m.job("restart", name, "active")
}

func (m units) ReloadOrRestart(ctx context.Context, name string) (host.Job, error) {
	if unit, err := m.State(ctx, name); err != nil || !unit.Running() {
		return host.Job{Unit: name}, err
	}
	return m.job("reload", name, "active")
}

func (m units) job(verb, name, state string) (host.Job, error) {
	if _, err := m.change(verb, name, func(u *host.Unit) { u.ActiveState, u.JobID = state, 0 }); err != nil {
		return host.Job{}, err
	}
	return host.Job{Unit: name}, nil
}

func (m units) Reload(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.did("daemon-reload")
	return nil
}

func (m units) BootTimes(context.Context, string) (host.BootTimes, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.boot == nil {
		return host.BootTimes{}, errors.New("cannot reach systemd: this machine does not run it")
	}
	return *m.boot, nil
}

func (m units) Wait(ctx context.Context, job host.Job) (host.Unit, error) {
	return m.State(ctx, job.Unit)
}
