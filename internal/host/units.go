// SPDX-License-Identifier: Apache-2.0

package host

import "context"

// Unit is what systemd says of a unit; the values are systemd's own words.
type Unit struct {
	Name        string
	ID          string   // its own name, where Name is another one for it (an alias)
	LoadState   string   // loaded, not-found, masked, ...
	ActiveState string   // active, inactive, failed, activating, ...
	FileState   string   // enabled, disabled, static, masked, generated, linked, "", as of when systemd last looked
	Result      string   // of the last run: success, exit-code, timeout, ...
	JobID       uint32   // of the job queued for it; 0 is none
	TriggeredBy []string // the sockets, timers and paths that start it
}

// Exists says whether the template has the unit at all.
func (u Unit) Exists() bool { return u.LoadState != "not-found" && u.LoadState != "" }

// Enabled says whether the unit is started at boot.
func (u Unit) Enabled() bool {
	return u.FileState == "enabled" || u.FileState == "enabled-runtime"
}

// Running says whether the unit is active or on its way there.
func (u Unit) Running() bool {
	return u.ActiveState == "active" || u.ActiveState == "activating" || u.ActiveState == "reloading"
}

// Job is a change of a unit that systemd has queued. The zero Job is no job: the
// unit was so already.
type Job struct {
	Unit string
	ID   uint32 // systemd's number of it; 0 is not known
	// Result gets one value: done, failed, canceled, timeout, dependency, skipped.
	// It may be lost: whoever must know the end calls Wait.
	Result chan string
}

// Units is systemd. All calls are idempotent and none waits for a unit except
// Wait: during boot a unit may be ordered after nodeagent itself, and waiting
// for it would then wait for ever (pain-point S2). A call may block until systemd
// answers or ctx ends.
type Units interface {
	State(ctx context.Context, name string) (Unit, error)
	// List returns the names of all units systemd has loaded that end in suffix.
	List(ctx context.Context, suffix string) ([]string, error)
	// Enable, Disable and Mask change whether units start at boot, all of them in
	// one call, and report whether they changed anything. None reloads systemd.
	Enable(ctx context.Context, names ...string) (changed bool, err error)
	Disable(ctx context.Context, names ...string) (changed bool, err error)
	Mask(ctx context.Context, names ...string) (changed bool, err error)
	Start(ctx context.Context, name string) (Job, error)
	Stop(ctx context.Context, name string) (Job, error)
	Restart(ctx context.Context, name string) (Job, error)
	// ReloadOrRestart queues it only for a unit that runs.
	ReloadOrRestart(ctx context.Context, name string) (Job, error)
	// Reload makes systemd read its unit files again.
	Reload(ctx context.Context) error
	// BootTimes returns when the parts of this boot and the process of a service began.
	BootTimes(ctx context.Context, service string) (BootTimes, error)
	// Wait blocks until the job has ended or ctx does, and returns the unit as it
	// is then. A job that failed is no error: the unit's state tells.
	Wait(ctx context.Context, job Job) (Unit, error)
}
