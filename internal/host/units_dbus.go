// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Systemd is the systemd of this machine, spoken to over D-Bus: over systemd's
// private socket first, which is there before the system bus (pain-point S3).
type Systemd struct {
	mu   sync.Mutex
	conn *dbus.Conn
}

const (
	connectTimeout = 10 * time.Second
	// recheck bounds how long a lost job signal can go unnoticed (pain-point S6).
	recheck = 2 * time.Second
)

func (s *Systemd) connect(ctx context.Context) (*dbus.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && s.conn.Connected() {
		return s.conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	// The connection outlives this call, so it must not hang on ctx; the dialling
	// itself is bounded by running it beside the timer.
	type dialled struct {
		conn *dbus.Conn
		err  error
	}
	result := make(chan dialled, 1)
	go func() {
		conn, err := dbus.NewSystemdConnectionContext(context.WithoutCancel(ctx))
		if err != nil {
			var busErr error
			if conn, busErr = dbus.NewSystemConnectionContext(context.WithoutCancel(ctx)); busErr != nil {
				err = errors.Join(err, busErr)
			} else {
				err = nil
			}
		}
		result <- dialled{conn, err}
	}()
	select {
	case r := <-result:
		if r.err != nil {
			return nil, fmt.Errorf("cannot reach systemd over D-Bus: %w", r.err)
		}
		s.conn = r.conn
		return s.conn, nil
	case <-ctx.Done():
		go func() {
			if r := <-result; r.conn != nil {
				r.conn.Close()
			}
		}()
		return nil, fmt.Errorf("cannot reach systemd over D-Bus: %w", context.Cause(ctx))
	}
}

// State implements Units.
func (s *Systemd) State(ctx context.Context, name string) (Unit, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return Unit{}, err
	}
	properties, err := conn.GetAllPropertiesContext(ctx, name)
	if err != nil {
		return Unit{}, fmt.Errorf("cannot read the state of %s: %w", name, err)
	}
	text := func(key string) string {
		value, _ := properties[key].(string)
		return value
	}
	return Unit{Name: name, LoadState: text("LoadState"), ActiveState: text("ActiveState"),
		FileState: text("UnitFileState"), Result: text("Result")}, nil
}

// Enable implements Units.
func (s *Systemd) Enable(ctx context.Context, names ...string) (bool, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return false, err
	}
	_, changes, err := conn.EnableUnitFilesContext(ctx, names, false, false)
	if err != nil {
		return false, fmt.Errorf("cannot enable %s: %w", strings.Join(names, " "), err)
	}
	return len(changes) > 0, nil
}

// Disable implements Units.
func (s *Systemd) Disable(ctx context.Context, names ...string) (bool, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return false, err
	}
	changes, err := conn.DisableUnitFilesContext(ctx, names, false)
	if err != nil {
		return false, fmt.Errorf("cannot disable %s: %w", strings.Join(names, " "), err)
	}
	return len(changes) > 0, nil
}

// Mask implements Units.
func (s *Systemd) Mask(ctx context.Context, names ...string) (bool, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return false, err
	}
	changes, err := conn.MaskUnitFilesContext(ctx, names, false, true)
	if err != nil {
		return false, fmt.Errorf("cannot mask %s: %w", strings.Join(names, " "), err)
	}
	return len(changes) > 0, nil
}

// Start implements Units.
func (s *Systemd) Start(ctx context.Context, name string) (Job, error) {
	if unit, err := s.State(ctx, name); err == nil && unit.ActiveState == "active" {
		return Job{Unit: name}, nil
	}
	return s.queue(ctx, "start", name, (*dbus.Conn).StartUnitContext)
}

// Stop implements Units.
func (s *Systemd) Stop(ctx context.Context, name string) (Job, error) {
	return s.queue(ctx, "stop", name, (*dbus.Conn).StopUnitContext)
}

// Restart implements Units.
func (s *Systemd) Restart(ctx context.Context, name string) (Job, error) {
	return s.queue(ctx, "restart", name, (*dbus.Conn).RestartUnitContext)
}

// ReloadOrRestart implements Units.
func (s *Systemd) ReloadOrRestart(ctx context.Context, name string) (Job, error) {
	return s.queue(ctx, "reload", name, (*dbus.Conn).ReloadOrTryRestartUnitContext)
}

type unitCall func(conn *dbus.Conn, ctx context.Context, name, mode string, result chan<- string) (int, error)

func (s *Systemd) queue(ctx context.Context, verb, name string, call unitCall) (Job, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return Job{}, err
	}
	// go-systemd sends while it holds a lock: the channel must have room
	// (pain-point S1).
	job := Job{Unit: name, Result: make(chan string, 1)}
	if _, err := call(conn, ctx, name, "replace", job.Result); err != nil {
		return Job{}, fmt.Errorf("cannot %s %s: %w", verb, name, err)
	}
	return job, nil
}

// Reload implements Units.
func (s *Systemd) Reload(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	if err := conn.ReloadContext(ctx); err != nil {
		return fmt.Errorf("cannot reload systemd: %w", err)
	}
	return nil
}

// Wait implements Units. The job's result is a hint; the state of the unit and
// whether a job is still queued for it are the truth.
func (s *Systemd) Wait(ctx context.Context, job Job) (Unit, error) {
	if job.Result == nil {
		return s.State(ctx, job.Unit)
	}
	ticker := time.NewTicker(recheck)
	defer ticker.Stop()
	for {
		select {
		case <-job.Result:
			return s.State(ctx, job.Unit)
		case <-ctx.Done():
			return Unit{}, fmt.Errorf("cannot wait for %s: %w", job.Unit, context.Cause(ctx))
		case <-ticker.C:
			if queued, err := s.jobQueued(ctx, job.Unit); err == nil && !queued {
				return s.State(ctx, job.Unit)
			}
		}
	}
}

func (s *Systemd) jobQueued(ctx context.Context, name string) (bool, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return false, err
	}
	jobs, err := conn.ListJobsContext(ctx)
	if err != nil {
		return false, err
	}
	for _, job := range jobs {
		if job.Unit == name {
			return true, nil
		}
	}
	return false, nil
}

// List implements Units.
func (s *Systemd) List(ctx context.Context, suffix string) ([]string, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	units, err := conn.ListUnitsContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot list units: %w", err)
	}
	var names []string
	for _, unit := range units {
		if strings.HasSuffix(unit.Name, suffix) {
			names = append(names, unit.Name)
		}
	}
	return names, nil
}
