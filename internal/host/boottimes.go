// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// BootTimes are systemd's monotonic timestamps of a boot (org.freedesktop.systemd1(5)).
// Firmware and Loader are how long before the kernel's start these began, the others how
// long after it; 0 was not there.
type BootTimes struct {
	Firmware, Loader, InitRD, Userspace time.Duration
	Service                             time.Duration // the process of the unit asked for
}

// BootTimes implements Units.
func (s *Systemd) BootTimes(ctx context.Context, service string) (BootTimes, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return BootTimes{}, err
	}
	type answer struct {
		times BootTimes
		err   error
	}
	// The library's call takes no context.
	answers := make(chan answer, 1)
	go func() {
		times, err := askBootTimes(ctx, conn, service)
		answers <- answer{times, err}
	}()
	select {
	case a := <-answers:
		return a.times, a.err
	case <-ctx.Done():
		return BootTimes{}, fmt.Errorf("cannot ask systemd for the times of the boot: %w", context.Cause(ctx))
	}
}

func askBootTimes(ctx context.Context, conn *dbus.Conn, service string) (times BootTimes, err error) {
	for _, ask := range []struct {
		name string
		into *time.Duration
	}{
		{"FirmwareTimestampMonotonic", &times.Firmware}, {"LoaderTimestampMonotonic", &times.Loader},
		{"InitRDTimestampMonotonic", &times.InitRD}, {"UserspaceTimestampMonotonic", &times.Userspace},
	} {
		text, err := conn.GetManagerProperty(ask.name)
		if err != nil {
			return times, fmt.Errorf("cannot ask systemd for %s: %w", ask.name, err)
		}
		// A variant as text: @t 1234567, in microseconds.
		microseconds, err := strconv.ParseInt(strings.TrimPrefix(text, "@t "), 10, 54)
		if err != nil {
			return times, fmt.Errorf("cannot ask systemd for %s: %q is no time", ask.name, text)
		}
		*ask.into = time.Duration(microseconds) * time.Microsecond
	}
	property, err := conn.GetUnitTypePropertyContext(ctx, service, "Service", "ExecMainStartTimestampMonotonic")
	if err != nil {
		return times, fmt.Errorf("cannot ask systemd for the start of %s: %w", service, err)
	}
	if microseconds, ok := property.Value.Value().(uint64); ok && microseconds < 1<<53 {
		times.Service = time.Duration(microseconds) * time.Microsecond
	}
	return times, nil
}
