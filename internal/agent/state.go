// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/redact"
)

// Where the agent keeps what happened. StateFile is the truth and survives
// reboots; RunState takes its place while the disk cannot be written; Progress
// says what running steps wait for and is written too often for a disk.
const (
	StateFile    = "/var/lib/nodeagent/state.json"
	RunState     = "/run/nodeagent/state.json"
	ProgressFile = "/run/nodeagent/progress.json"
	LockFile     = "/run/nodeagent/lock"
)

// SchemaVersion is raised when a key changes its meaning; new keys do not raise it.
const SchemaVersion = 1

// Status of a step.
type Status string

// The statuses.
const (
	Pending     Status = "pending"
	Running     Status = "running"
	Done        Status = "done"
	Skipped     Status = "skipped"
	Failed      Status = "failed"
	Interrupted Status = "interrupted"
)

// Phase is how the whole run stands.
type Phase string

// The phases.
const (
	PhaseDone     Phase = "done"
	PhaseFailed   Phase = "failed"
	PhaseDegraded Phase = "degraded"
	PhaseRunning  Phase = "running"
	PhaseIdle     Phase = "idle"
)

// State is what happened on a boot. It holds no secrets: every user may read it.
type State struct {
	SchemaVersion int       `json:"schemaVersion"`
	AgentVersion  string    `json:"agentVersion"`
	BootID        string    `json:"bootID"`
	Role          string    `json:"role,omitempty"`
	Owner         string    `json:"owner,omitempty"`
	Node          string    `json:"node,omitempty"`
	Started       time.Time `json:"started"`
	// StartedMonotonic is Started on the kernel's clock, in seconds: the time of day may
	// be set while steps run.
	StartedMonotonic float64    `json:"startedMonotonic,omitempty"`
	Ended            *time.Time `json:"ended,omitempty"`
	Steps            []Record   `json:"steps"`
	Warnings         []Warning  `json:"warnings"`
	// Instance is set once a node's one-time work is done; it outlives the boot.
	Instance *Instance `json:"instance,omitempty"`
	// Installed is set once all of the binaries ISO is on the disk; from then on the
	// ISO may be gone.
	Installed *Installed `json:"installed,omitempty"`
	// CloudInit is the instance whose users and files cloud-init has made, all of
	// them and on the disk.
	CloudInit string `json:"cloudInit,omitempty"`
	// Upgrade is the last one; it outlives the boot.
	Upgrade *Upgrade `json:"upgrade,omitempty"`
	Usage   *Usage   `json:"usage,omitempty"`
}

// Installed is what was taken from a binaries ISO.
type Installed struct {
	InstanceID string `json:"instanceID"` // CloudStack's, of the machine it was taken for
	Version    string `json:"version"`    // of Kubernetes: v1.34.4
	SystemUUID string `json:"systemUUID,omitempty"`
}

// Upgrade is an upgrade of Kubernetes on this node.
type Upgrade struct {
	From    string     `json:"from"` // v1.34.4
	To      string     `json:"to"`
	Status  Status     `json:"status"` // running, done, failed or interrupted
	Stage   string     `json:"stage"`  // the one that runs or ran last
	Started time.Time  `json:"started"`
	Ended   *time.Time `json:"ended,omitempty"`
	Error   *Failure   `json:"error,omitempty"`
}

// Usage is what the agent itself took of the machine, once it has ended.
type Usage struct {
	CPUSeconds      float64 `json:"cpuSeconds"` // user and system, without programs it ran
	PeakMemoryBytes int64   `json:"peakMemoryBytes"`
}

func usage() *Usage {
	var used unix.Rusage
	// It cannot fail for the process itself; if it did the zero values say so.
	_ = unix.Getrusage(unix.RUSAGE_SELF, &used)
	return &Usage{CPUSeconds: time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds(), PeakMemoryBytes: used.Maxrss << 10}
}

// Instance is the machine CloudStack asked for, once it has been made.
type Instance struct {
	ID   string `json:"id"`   // CloudStack's instance-id
	Mode string `json:"mode"` // what was made of it: init, join, none, ...
	// NodeName is the node's name in its cluster where it is not the machine's.
	NodeName string    `json:"nodeName,omitempty"`
	By       string    `json:"by"`     // nodeagent or cloud-init
	BootID   string    `json:"bootID"` // the boot on which it was made
	Made     time.Time `json:"made"`
	// UserdataSHA256 is of the userdata it was made of, by which a change is seen.
	UserdataSHA256 string `json:"userdataSHA256,omitempty"`
	// SystemUUID is the hypervisor's name for the machine, by which a clone is seen.
	SystemUUID string `json:"systemUUID,omitempty"`
}

// Record is what happened to one step.
type Record struct {
	Name    string     `json:"name"`
	Status  Status     `json:"status"`
	Short   string     `json:"short,omitempty"`
	Needs   []string   `json:"needs,omitempty"`
	Started *time.Time `json:"started,omitempty"`
	// StartedMonotonic is Started on the kernel's clock, in seconds.
	StartedMonotonic float64    `json:"startedMonotonic,omitempty"`
	Seconds          float64    `json:"seconds,omitempty"`
	Until            *time.Time `json:"until,omitempty"` // the deadline of a running step
	Note             string     `json:"note,omitempty"`
	Error            *Failure   `json:"error,omitempty"`
}

// Failure is why a step failed.
type Failure struct {
	Code    fault.Code `json:"code"`
	Message string     `json:"message"`
	Hint    string     `json:"hint,omitempty"`
	Log     []string   `json:"log,omitempty"`     // last lines of the tool that failed
	LogPath string     `json:"logPath,omitempty"` // the file with all of them
}

// NewFailure is err as it is recorded and shown: without what is secret by its form.
func NewFailure(err error) *Failure {
	known := fault.As(err)
	failure := &Failure{Code: known.Code, Message: redact.ByForm(known.Message), Hint: redact.ByForm(known.Hint), LogPath: known.LogPath}
	if len(known.Log) > 0 {
		failure.Log = strings.Split(redact.ByForm(strings.Join(known.Log, "\n")), "\n")
	}
	return failure
}

// Warning is something an operator should know that stopped nothing.
type Warning struct {
	Step    string     `json:"step,omitempty"`
	Code    fault.Code `json:"code"`
	Message string     `json:"message"`
}

// Phase derives how the run stands from its records.
func (s *State) Phase() Phase {
	phase := PhaseDone
	for _, record := range s.Steps {
		switch record.Status {
		case Failed, Interrupted:
			return PhaseFailed
		case Pending, Running:
			phase = PhaseRunning
		}
	}
	switch {
	case phase == PhaseRunning && s.Ended == nil:
		return PhaseRunning
	case phase == PhaseRunning:
		return PhaseFailed
	case len(s.Warnings) > 0:
		return PhaseDegraded
	}
	return PhaseDone
}

// Load reads the state. It returns fs.ErrNotExist when nodeagent never ran here.
// A state a dead agent left behind, of this boot or an earlier one, shows its
// unfinished steps as interrupted.
func Load(h *host.Host) (*State, error) {
	bootID, err := h.BootID()
	if err != nil {
		return nil, err
	}
	// An agent that ends while its state is read has not left it behind.
	locked := Locked(h)
	state, err := newest(h, bootID)
	if err != nil {
		return nil, err
	}
	locked = locked || Locked(h)
	if upgrade := state.Upgrade; !locked && upgrade != nil && upgrade.Status == Running {
		upgrade.Status = Interrupted
		upgrade.Error = &Failure{Code: fault.Interrupted, Message: "nodeagent upgrade ended in this stage",
			Hint: "`nodeagent upgrade`: it goes on where it stopped."}
	}
	if state.BootID == bootID && locked {
		state.addProgress(h)
		return state, nil
	}
	for i := range state.Steps {
		record := &state.Steps[i]
		if record.Status == Running {
			record.Status = Interrupted
			record.Until = nil
			record.Error = &Failure{Code: fault.Interrupted, Message: "nodeagent ended while this step ran",
				Hint: fault.Interrupted.Remedy()}
		}
	}
	if state.Ended == nil {
		state.Ended = state.lastSign()
	}
	return state, nil
}

// lastSign is when the agent last recorded something of a step.
func (s *State) lastSign() *time.Time {
	last := s.Started
	for _, record := range s.Steps {
		if record.Started == nil {
			continue
		}
		if ended := record.Started.Add(Seconds(record.Seconds)); ended.After(last) && ended.Year() < 10000 { // as JSON can have it
			last = ended
		}
	}
	return &last
}

// Seconds is a duration of a record, which may hold any number.
func Seconds(seconds float64) time.Duration {
	const most = 1e9 // some thirty years
	return time.Duration(min(max(seconds, 0), most) * float64(time.Second))
}

// newest reads the file that was written last.
func newest(h *host.Host, bootID string) (*State, error) {
	state, err := read(h, RunState)
	if err == nil && state.BootID == bootID {
		return state, nil
	}
	return read(h, StateFile)
}

// Change changes the state that the last run left. Only who holds the lock may call
// it. Where nodeagent never ran it does nothing.
func Change(h *host.Host, change func(*State)) error {
	bootID, err := h.BootID()
	if err != nil {
		return err
	}
	state, err := newest(h, bootID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	change(state)
	return state.save(h)
}

func read(h *host.Host, name string) (*State, error) {
	data, err := h.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fault.Wrap(fault.StateUnreadable, err, "cannot read the state").WithHint("Run it as root.")
	}
	if err != nil {
		return nil, fault.Wrap(fault.StateUnreadable, err, "cannot read the state")
	}
	// These two keys never change, whatever becomes of the others.
	var writer struct {
		SchemaVersion int    `json:"schemaVersion"`
		AgentVersion  string `json:"agentVersion"`
	}
	if err := json.Unmarshal(data, &writer); err != nil {
		return nil, fault.Wrap(fault.StateUnreadable, err, "cannot read %s (%d bytes)", name, len(data))
	}
	if writer.SchemaVersion > SchemaVersion {
		// What its keys mean is not known: a guess could call a failed node done.
		return nil, fault.New(fault.StateUnreadable, "cannot read %s: nodeagent %s wrote it with schema version %d, this one knows %d",
			name, writer.AgentVersion, writer.SchemaVersion, SchemaVersion).
			WithHint("Install nodeagent %s again, or a newer one.", writer.AgentVersion)
	}
	var state State
	if err := json.Unmarshal(data, &state); err != nil {
		return nil, fault.Wrap(fault.StateUnreadable, err, "cannot read %s", name)
	}
	return &state, nil
}

// save writes the state durably, or to RunState while the disk does not take it.
func (s *State) save(h *host.Host) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if _, err := h.WriteFile(StateFile, data, 0o644); err != nil {
		_, runErr := h.WriteFile(RunState, data, 0o644)
		return errors.Join(err, runErr)
	}
	_, err = h.Remove(RunState)
	return err
}

// addProgress fills in what running steps last reported.
func (s *State) addProgress(h *host.Host) {
	data, err := h.ReadFile(ProgressFile)
	if err != nil {
		return
	}
	var notes map[string]string
	if json.Unmarshal(data, &notes) != nil {
		return
	}
	for i := range s.Steps {
		if s.Steps[i].Status == Running {
			s.Steps[i].Note = notes[s.Steps[i].Name]
		}
	}
}

func saveProgress(h *host.Host, notes map[string]string) error {
	data, err := json.Marshal(notes)
	if err != nil {
		return err
	}
	// Progress is lost with the boot anyway: a rename is enough, no sync.
	temp := h.Path(ProgressFile + ".new")
	if err := os.WriteFile(temp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(temp, h.Path(ProgressFile))
}

// Lock makes this process the one agent of the machine until the file is closed
// or the process ends. It does not wait.
func Lock(h *host.Host) (*os.File, error) {
	path := h.Path(LockFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	// A `nodeagent status` that looks at this moment holds the lock, for an instant.
	for patience := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return file, nil
		}
		if time.Now().After(patience) {
			file.Close()
			return nil, fmt.Errorf("cannot lock %s: another nodeagent runs", LockFile)
		}
	}
}

// WaitUnlocked blocks until no agent runs, or ctx ends. It sleeps in the kernel,
// which wakes it when the agent ends, in whatever way.
func WaitUnlocked(ctx context.Context, h *host.Host) error {
	file, err := os.Open(h.Path(LockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	free := make(chan error, 1)
	go func() {
		defer file.Close()
		err := unix.Flock(int(file.Fd()), unix.LOCK_SH)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(file.Fd()), unix.LOCK_SH)
		}
		free <- err
	}()
	select {
	case err := <-free:
		return err
	case <-ctx.Done():
		return fmt.Errorf("cannot wait any longer: %w", context.Cause(ctx))
	}
}

// Locked says whether an agent runs. The kernel drops the lock of a process that
// dies, so the answer is right even after a crash.
func Locked(h *host.Host) bool {
	file, err := os.Open(h.Path(LockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		return true
	}
	defer file.Close()
	return unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}
