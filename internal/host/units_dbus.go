// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Systemd is the systemd of this machine, spoken to over D-Bus: over systemd's
// private socket first, which is there before the system bus (pain-point S3). It
// survives a bus that comes late, a connection that dies and signals that are lost.
type Systemd struct {
	mu   sync.Mutex
	conn *dbus.Conn

	sockets []socket      // nil are this machine's
	recheck time.Duration // 0 is the default
}

const (
	// connectTimeout bounds the wait for a systemd that is not there yet.
	connectTimeout = 10 * time.Second
	// defaultRecheck bounds how long a lost job signal can go unnoticed (pain-point S6).
	defaultRecheck = 2 * time.Second
)

func (s *Systemd) again() time.Duration {
	if s.recheck > 0 {
		return s.recheck
	}
	return defaultRecheck
}

// connect returns the connection, a new one where the old one has died.
func (s *Systemd) connect(ctx context.Context) (*dbus.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && s.conn.Connected() {
		return s.conn, nil
	}
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
	sockets := s.sockets
	if sockets == nil {
		// As sd_booted(3) has it: nothing to wait for where systemd does not run.
		if _, err := os.Lstat("/run/systemd/system"); errors.Is(err, fs.ErrNotExist) {
			return nil, errors.New("cannot reach systemd: this machine does not run it")
		}
		sockets = systemdSockets()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("waited %s", connectTimeout))
	defer cancel()
	conn, err := reach(ctx, sockets, s.again())
	if err != nil {
		return nil, fmt.Errorf("cannot reach systemd over D-Bus: %w", err)
	}
	s.conn = conn
	return conn, nil
}

// discard closes a connection that is of no use any more.
func (s *Systemd) discard(conn *dbus.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn.Close()
	if s.conn == conn {
		s.conn = nil
	}
}

// call makes a call and, when the connection dies in the middle of it, once more on a
// new one: only if systemd cannot have got the first, or if twice is the same as once.
// repeated says that the first may have done the work.
func (s *Systemd) call(ctx context.Context, idempotent bool, do func(*dbus.Conn) error) (repeated bool, err error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return false, err
	}
	if err = do(conn); err == nil || ctx.Err() != nil {
		return false, err
	}
	dead, sent := died(conn, err)
	if !dead {
		return false, err
	}
	s.discard(conn)
	if sent && !idempotent {
		return false, fmt.Errorf("the connection to systemd died, and whether it was done is not known: %w", err)
	}
	if conn, err = s.connect(ctx); err != nil {
		return false, err
	}
	return sent, do(conn)
}

// State implements Units. It asks once, for what every unit has: the properties of
// services alone are hundreds, and each further call waits for a systemd that has a boot
// to see to.
func (s *Systemd) State(ctx context.Context, name string) (Unit, error) {
	var properties map[string]any
	_, err := s.call(ctx, true, func(conn *dbus.Conn) (err error) {
		properties, err = conn.GetUnitPropertiesContext(ctx, name)
		if state := properties["ActiveState"]; err != nil || state == "active" || state == "inactive" {
			return err
		}
		result, err := conn.GetUnitTypePropertyContext(ctx, name, unitType(name), "Result")
		if err == nil {
			properties["Result"] = result.Value.Value()
		} else if dead, _ := died(conn, err); dead || ctx.Err() != nil {
			return err
		}
		return nil // else it is a kind of unit that has none, such as a target
	})
	if err != nil {
		return Unit{}, fmt.Errorf("cannot read the state of %s: %w", name, err)
	}
	text := func(key string) string {
		value, _ := properties[key].(string)
		return value
	}
	unit := Unit{Name: name, ID: text("Id"), LoadState: text("LoadState"), ActiveState: text("ActiveState"),
		FileState: text("UnitFileState"), Result: text("Result")}
	unit.TriggeredBy, _ = properties["TriggeredBy"].([]string)
	// A job is its number and its path.
	if job, ok := properties["Job"].([]any); ok && len(job) == 2 {
		unit.JobID, _ = job[0].(uint32)
	}
	return unit, nil
}

// unitType is the D-Bus interface of a unit's own properties: Service, Socket, ...
func unitType(name string) string {
	kind := strings.TrimPrefix(filepath.Ext(name), ".")
	if kind == "" {
		return "Service"
	}
	return strings.ToUpper(kind[:1]) + kind[1:]
}

// Enable implements Units.
func (s *Systemd) Enable(ctx context.Context, names ...string) (bool, error) {
	return s.change(ctx, "enable", names, func(conn *dbus.Conn) (int, error) {
		_, changes, err := conn.EnableUnitFilesContext(ctx, names, false, false)
		return len(changes), err
	})
}

// Disable implements Units.
func (s *Systemd) Disable(ctx context.Context, names ...string) (bool, error) {
	return s.change(ctx, "disable", names, func(conn *dbus.Conn) (int, error) {
		changes, err := conn.DisableUnitFilesContext(ctx, names, false)
		return len(changes), err
	})
}

// Mask implements Units.
func (s *Systemd) Mask(ctx context.Context, names ...string) (bool, error) {
	return s.change(ctx, "mask", names, func(conn *dbus.Conn) (int, error) {
		changes, err := conn.MaskUnitFilesContext(ctx, names, false, true)
		return len(changes), err
	})
}

// change changes unit files, which may be repeated. What a call changed that never
// answered is not known: then it counts as changed.
func (s *Systemd) change(ctx context.Context, verb string, names []string, do func(*dbus.Conn) (int, error)) (bool, error) {
	changes := 0
	repeated, err := s.call(ctx, true, func(conn *dbus.Conn) (err error) {
		changes, err = do(conn)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("cannot %s %s: %w", verb, strings.Join(names, " "), err)
	}
	return changes > 0 || repeated, nil
}

// Start implements Units.
func (s *Systemd) Start(ctx context.Context, name string) (Job, error) {
	if unit, err := s.State(ctx, name); err == nil && unit.ActiveState == "active" {
		return Job{Unit: name}, nil
	}
	return s.queue(ctx, "start", name, true, (*dbus.Conn).StartUnitContext)
}

// Stop implements Units.
func (s *Systemd) Stop(ctx context.Context, name string) (Job, error) {
	return s.queue(ctx, "stop", name, true, (*dbus.Conn).StopUnitContext)
}

// Restart implements Units.
func (s *Systemd) Restart(ctx context.Context, name string) (Job, error) {
	return s.queue(ctx, "restart", name, false, (*dbus.Conn).RestartUnitContext)
}

// ReloadOrRestart implements Units.
func (s *Systemd) ReloadOrRestart(ctx context.Context, name string) (Job, error) {
	return s.queue(ctx, "reload", name, false, (*dbus.Conn).ReloadOrTryRestartUnitContext)
}

type unitCall func(conn *dbus.Conn, ctx context.Context, name, mode string, result chan<- string) (int, error)

func (s *Systemd) queue(ctx context.Context, verb, name string, idempotent bool, call unitCall) (Job, error) {
	job := Job{Unit: name}
	_, err := s.call(ctx, idempotent, func(conn *dbus.Conn) error {
		// go-systemd sends while it holds a lock: the channel must have room
		// (pain-point S1).
		job.Result = make(chan string, 1)
		id, err := call(conn, ctx, name, "replace", job.Result)
		job.ID = uint32(id)
		return err
	})
	if err != nil {
		return Job{}, fmt.Errorf("cannot %s %s: %w", verb, name, err)
	}
	return job, nil
}

// Reload implements Units.
func (s *Systemd) Reload(ctx context.Context) error {
	_, err := s.call(ctx, true, func(conn *dbus.Conn) error { return conn.ReloadContext(ctx) })
	if err != nil {
		return fmt.Errorf("cannot reload systemd: %w", err)
	}
	return nil
}

// Wait implements Units. The job's result is a hint that may get lost, with its
// connection or without; whether the unit still has the job is the truth.
func (s *Systemd) Wait(ctx context.Context, job Job) (Unit, error) {
	if job.Result == nil {
		return s.State(ctx, job.Unit)
	}
	ticker := time.NewTicker(s.again())
	defer ticker.Stop()
	var unit Unit
	var err error
	for {
		select {
		case <-job.Result:
			return s.State(ctx, job.Unit)
		case <-ctx.Done():
			return Unit{}, fmt.Errorf("cannot wait for %s: %w", job.Unit, errors.Join(context.Cause(ctx), err))
		case <-ticker.C:
			unit, err = s.State(ctx, job.Unit)
			if err == nil && (unit.JobID == 0 || job.ID != 0 && unit.JobID != job.ID) {
				return unit, nil
			}
		}
	}
}

// List implements Units.
func (s *Systemd) List(ctx context.Context, suffix string) ([]string, error) {
	var units []dbus.UnitStatus
	_, err := s.call(ctx, true, func(conn *dbus.Conn) (err error) {
		units, err = conn.ListUnitsContext(ctx)
		return err
	})
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
