// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"

	"nodeagent/internal/host"
)

// turnOff stops units and keeps them from starting at boot. Those the template
// does not have are fine. It returns what it did.
func turnOff(ctx context.Context, h *host.Host, units ...string) (done []string, err error) {
	for _, name := range units {
		unit, err := h.Units.State(ctx, name)
		if err != nil {
			return done, err
		}
		if !unit.Exists() || !unit.Enabled() && !unit.Running() {
			continue
		}
		if unit.Enabled() {
			if _, err := h.Units.Disable(ctx, name); err != nil {
				return done, err
			}
		}
		// Its start may be queued as part of the boot: stopping takes that job out.
		if _, err := h.Units.Stop(ctx, name); err != nil {
			return done, err
		}
		done = append(done, name+" off")
	}
	return done, nil
}

// maskOff is turnOff for units that also sockets, D-Bus or generators start.
func maskOff(ctx context.Context, h *host.Host, units ...string) (done []string, err error) {
	for _, name := range units {
		unit, err := h.Units.State(ctx, name)
		if err != nil {
			return done, err
		}
		if !unit.Exists() || unit.FileState == "masked" && !unit.Running() {
			continue
		}
		if _, err := h.Units.Mask(ctx, name); err != nil {
			return done, err
		}
		if _, err := h.Units.Stop(ctx, name); err != nil {
			return done, err
		}
		done = append(done, name+" masked")
	}
	return done, nil
}

// restartFor is where it is noted that a service has to be restarted for a file
// that was about to change: a crash between the two must not leave it with the
// old one.
func restartFor(unit string) string { return "/run/nodeagent/restart-" + unit }

// reconfigure lets write change a service's files, which reports whether it did,
// and then makes the service run with them: restarted if it ran, else started.
// Both are queued, not waited for. A write that fails leaves the service as it is.
func reconfigure(ctx context.Context, h *host.Host, unit string, write func() (bool, error)) (changed bool, err error) {
	marker := restartFor(unit)
	interrupted := h.Exists(marker)
	if _, err := h.WriteFile(marker, nil, 0o644); err != nil {
		return false, err
	}
	changed, err = write()
	if err != nil {
		return changed, err
	}
	state, err := h.Units.State(ctx, unit)
	if err != nil {
		return changed, err
	}
	if (changed || interrupted) && state.Running() {
		_, err = h.Units.Restart(ctx, unit)
	} else {
		_, err = h.Units.Start(ctx, unit)
	}
	if err != nil {
		return changed, err
	}
	_, err = h.Remove(marker)
	return changed, err
}
