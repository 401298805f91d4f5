// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"go.uber.org/zap"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/redact"
)

// Runner runs a plan and keeps its state.
type Runner struct {
	Host *host.Host
	Log  *zap.Logger
	// Notify sends systemd a message as sd_notify(3) describes, for instance
	// "READY=1" or "STATUS=...".
	Notify func(message string)
	// Changed is called when the steps begin, after each that has ended, while others may
	// still run, and when all have.
	Changed func(state *State)
	Now     func() time.Time
	// Monotonic is the kernel's clock.
	Monotonic func() (time.Duration, error)

	mu    sync.Mutex
	state State
	notes map[string]string
	dirty bool // progress is about to be written

	abandonAfter time.Duration
}

// progressEvery bounds how often progress is written.
const progressEvery = 200 * time.Millisecond

// NewRunner returns a runner for this boot. The instance recorded by an earlier
// boot is carried over.
func NewRunner(h *host.Host, log *zap.Logger, version string, notify func(string)) (*Runner, error) {
	bootID, err := h.BootID()
	if err != nil {
		return nil, err
	}
	r := &Runner{Host: h, Log: log, Notify: notify, Changed: func(*State) {}, Now: time.Now, Monotonic: host.Monotonic, notes: map[string]string{}, abandonAfter: abandonAfter}
	r.state = State{SchemaVersion: SchemaVersion, AgentVersion: version, BootID: bootID, Warnings: []Warning{}}
	earlier, err := Load(h)
	switch {
	case err == nil:
		r.state.Instance, r.state.Installed, r.state.CloudInit = earlier.Instance, earlier.Installed, earlier.CloudInit
		r.state.Upgrade = earlier.Upgrade
	case fault.As(err).Code == fault.StateUnreadable:
		r.warn("", err)
	}
	return r, nil
}

// Update changes the state's facts (role, node, instance) and saves it.
func (r *Runner) Update(change func(*State)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.state)
	r.save()
}

// State returns a copy of the state as it is now.
func (r *Runner) State() *State {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := r.state
	state.Steps = slices.Clone(r.state.Steps)
	state.Warnings = slices.Clone(r.state.Warnings)
	return &state
}

type outcome struct {
	step   Step
	result Result
	err    error
}

// Run runs the plan and returns when no step can run any more. A failed step
// stops those that need it, and only those. The error joins the failures of all
// steps; when ctx ends, the running ones are recorded as interrupted.
func (r *Runner) Run(ctx context.Context, steps []Step) error {
	if err := CheckPlan(steps); err != nil {
		return err
	}
	r.begin(steps)
	r.Changed(r.State())

	waiting := slices.Clone(steps)
	ended := map[string]bool{} // name -> it succeeded
	outcomes := make(chan outcome)
	running := 0
	var failures []error
	for {
		// The steps are in an order in which needs come first, so one pass sees all
		// that follows from what has ended.
		waiting = slices.DeleteFunc(waiting, func(step Step) bool {
			if ctx.Err() != nil {
				return false
			}
			switch verdict(step, ended) {
			case stillWaits:
				return false
			case neverRuns:
				ended[step.Name] = false
				if step.Applies != nil && !step.Applies() {
					r.drop(step.Name)
				}
				return true
			}
			if step.Applies != nil && !step.Applies() {
				ended[step.Name] = true
				r.drop(step.Name)
				return true
			}
			running++
			r.start(step)
			go func() {
				result, err := r.perform(ctx, step)
				outcomes <- outcome{step, result, err}
			}()
			return true
		})
		if running == 0 {
			break
		}
		o := <-outcomes
		running--
		ended[o.step.Name] = o.err == nil
		r.finish(ctx, o)
		if o.err != nil {
			failures = append(failures, fmt.Errorf("step %s: %w", o.step.Name, o.err))
		}
		r.Changed(r.State())
	}
	r.end()
	r.Changed(r.State())
	if ctx.Err() != nil {
		failures = append(failures, context.Cause(ctx))
	}
	return errors.Join(failures...)
}

type readiness int

const (
	stillWaits readiness = iota
	neverRuns            // a step it needs has failed, or never runs itself
	mayRun
)

// verdict says what the steps that have ended mean for one that has not begun.
func verdict(step Step, ended map[string]bool) readiness {
	failed := false
	for _, need := range step.Needs {
		succeeded, over := ended[need]
		if !over {
			return stillWaits
		}
		failed = failed || !succeeded
	}
	if failed && !step.Always {
		return neverRuns
	}
	return mayRun
}

// abandonAfter is how long a step may go on after its deadline before it is left
// behind: a read of a medium whose storage hangs cannot be interrupted.
const abandonAfter = 30 * time.Second

// runBounded runs a step in a goroutine of its own, which is left behind when the
// step does not heed its deadline. A panic is an error.
func (r *Runner) runBounded(ctx context.Context, step Step) (Result, error) {
	done := make(chan outcome, 1)
	go func() {
		o := outcome{step: step}
		defer func() {
			if p := recover(); p != nil {
				o.err = fault.New(fault.Internal, "step %s panicked: %v", step.Name, p).
					WithLog(strings.Split(strings.TrimSpace(string(debug.Stack())), "\n"))
			}
			done <- o
		}()
		o.result, o.err = step.Run(ctx, func(format string, args ...any) { r.progress(step.Name, fmt.Sprintf(format, args...)) })
	}()
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
	}
	patience := time.NewTimer(r.abandonAfter)
	defer patience.Stop()
	select {
	case o := <-done:
		return o.result, o.err
	case <-patience.C:
		return Result{}, fmt.Errorf("it does not heed its deadline and was left behind: %w", context.Cause(ctx))
	}
}

func (r *Runner) perform(ctx context.Context, step Step) (result Result, err error) {
	timeout := step.timeout()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	result, err = r.runBounded(ctx, step)

	var known *fault.Error
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && !errors.As(err, &known) {
		err = fault.Wrap(fault.Timeout, err, "step %s did not end within %s%s", step.Name, timeout, r.lastNote(step.Name))
	}
	return result, err
}

func (r *Runner) lastNote(name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if note := r.notes[name]; note != "" {
		return " (" + note + ")"
	}
	return ""
}

func (r *Runner) begin(steps []Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Started, r.state.StartedMonotonic = r.Now(), r.seconds()
	r.state.Steps = nil
	for _, step := range steps {
		r.state.Steps = append(r.state.Steps, Record{Name: step.Name, Short: step.Short, Needs: step.Needs, Status: Pending})
	}
	r.save()
}

// seconds is the monotonic clock, or 0 where there is none.
func (r *Runner) seconds() float64 {
	now, err := r.Monotonic()
	if err != nil {
		return 0
	}
	return now.Round(time.Millisecond).Seconds()
}

func (r *Runner) drop(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.Steps = slices.DeleteFunc(r.state.Steps, func(record Record) bool { return record.Name == name })
}

func (r *Runner) record(name string) *Record {
	at := slices.IndexFunc(r.state.Steps, func(record Record) bool { return record.Name == name })
	return &r.state.Steps[at]
}

func (r *Runner) start(step Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.Now()
	until := now.Add(step.timeout())
	record := r.record(step.Name)
	record.Status, record.Started, record.StartedMonotonic, record.Until = Running, &now, r.seconds(), &until
	r.save()
	r.Log.Info("started", zap.String("step", step.Name))
	r.tellStatus()
}

// Printable returns text in one line without control characters and what changes the
// direction of writing: it goes to terminals and, as STATUS=, to systemd, where a new
// line would begin another message.
func Printable(text string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case unicode.IsControl(c) || unicode.IsSpace(c):
			return ' '
		case !unicode.IsPrint(c):
			return -1
		}
		return c
	}, text)
}

func (r *Runner) progress(name, note string) {
	note = redact.ByForm(Printable(note))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.notes[name] == note {
		return
	}
	r.notes[name] = note
	if !r.dirty {
		r.dirty = true
		time.AfterFunc(progressEvery, r.flushProgress)
	}
	r.tellStatus()
}

// flushProgress writes what the running steps reported last, once for all that
// came within progressEvery.
func (r *Runner) flushProgress() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dirty = false
	if err := saveProgress(r.Host, r.notes); err != nil {
		r.Log.Warn("cannot save progress, continuing", zap.Error(err))
	}
}

func (r *Runner) finish(ctx context.Context, o outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	record := r.record(o.step.Name)
	record.Seconds = r.Now().Sub(*record.Started).Round(time.Millisecond).Seconds()
	record.Until = nil
	o.result.Note = redact.ByForm(Printable(o.result.Note))
	record.Note = o.result.Note
	delete(r.notes, o.step.Name)

	switch {
	case o.err != nil && ctx.Err() != nil:
		record.Status = Interrupted
		record.Error = &Failure{Code: fault.Interrupted, Message: redact.ByForm(o.err.Error()), Hint: fault.Interrupted.Remedy()}
		r.Log.Warn("interrupted", append(r.fields(record), zap.String("error", record.Error.Message))...)
	case o.err != nil:
		record.Status = Failed
		record.Error = NewFailure(o.err)
		r.Log.Error("failed: "+record.Error.Message, append(r.fields(record), zap.String("hint", record.Error.Hint))...)
	case o.result.Skipped:
		record.Status = Skipped
		r.Log.Info("skipped: "+o.result.Note, r.fields(record)...)
	default:
		record.Status = Done
		r.Log.Info(strings.TrimSuffix("done: "+o.result.Note, ": "), r.fields(record)...)
	}
	for _, warning := range o.result.Warnings {
		r.warn(o.step.Name, warning)
	}
	r.save()
	if o.step.Ready && o.err == nil {
		r.Notify("READY=1")
	}
	r.tellStatus()
}

// fields are by what the line about a step's end can be found in the journal.
func (r *Runner) fields(record *Record) []zap.Field {
	fields := []zap.Field{zap.String("step", record.Name), zap.Float64("seconds", record.Seconds), zap.String("phase", string(r.state.Phase()))}
	if record.Error != nil {
		fields = append(fields, zap.String("code", string(record.Error.Code)))
	}
	return fields
}

func (r *Runner) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.Now()
	r.state.Ended = &now
	r.state.Usage = usage()
	r.save()
	r.Log.Info("ended", zap.String("phase", string(r.state.Phase())),
		zap.Float64("cpuSeconds", r.state.Usage.CPUSeconds), zap.Int64("peakMemoryBytes", r.state.Usage.PeakMemoryBytes))
	r.tellStatus()
}

func (r *Runner) warn(step string, err error) {
	failure := fault.As(err)
	message := redact.ByForm(failure.Message)
	r.state.Warnings = append(r.state.Warnings, Warning{Step: step, Code: failure.Code, Message: message})
	r.Log.Warn(message, zap.String("step", step), zap.String("code", string(failure.Code)))
}

// save is called with the lock held. A state that cannot be saved must not stop
// the boot: status then shows what RunState holds.
func (r *Runner) save() {
	if err := r.state.save(r.Host); err != nil {
		r.Log.Warn("cannot save the state, continuing", zap.Error(err))
	}
}

// tellStatus shows the running steps in `systemctl status`.
func (r *Runner) tellStatus() {
	var running []string
	for _, record := range r.state.Steps {
		if record.Status == Running {
			text := record.Name
			if note := r.notes[record.Name]; note != "" {
				text += " (" + note + ")"
			}
			running = append(running, text)
		}
	}
	text := strings.Join(running, ", ")
	if text == "" {
		text = string(r.state.Phase())
	}
	r.Notify("STATUS=" + text)
}
