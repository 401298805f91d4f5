// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// managerTimes answers for systemd's own timestamps, in microseconds.
type managerTimes map[string]any

func (m managerTimes) Get(_, property string) (godbus.Variant, *godbus.Error) {
	value, ok := m[property]
	if !ok {
		return godbus.Variant{}, godbus.NewError("org.freedesktop.DBus.Error.UnknownProperty", nil)
	}
	return godbus.MakeVariant(value), nil
}

func (f *fakeSystemd) tell(t *testing.T, times any) {
	t.Helper()
	if err := f.conn.Export(times, "/org/freedesktop/systemd1", "org.freedesktop.DBus.Properties"); err != nil {
		t.Fatal(err)
	}
}

func TestBootTimes(t *testing.T) {
	t.Parallel()
	s, f, _ := onBus(t, never)
	f.tell(t, managerTimes{"FirmwareTimestampMonotonic": uint64(4_000_000), "LoaderTimestampMonotonic": uint64(1_500_000),
		"InitRDTimestampMonotonic": uint64(0), "UserspaceTimestampMonotonic": uint64(3_870_123)})
	want := BootTimes{Firmware: 4 * time.Second, Loader: 1500 * time.Millisecond, Userspace: 3_870_123 * time.Microsecond, Service: 11 * time.Second}
	if got, err := s.BootTimes(t.Context(), "nodeagent.service"); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	// Not what the documentation says: an error, not a wrong time.
	for _, value := range []any{"soon", int32(5), uint64(1 << 63)} {
		f.tell(t, managerTimes{"FirmwareTimestampMonotonic": value})
		if got, err := s.BootTimes(t.Context(), "nodeagent.service"); err == nil {
			t.Errorf("%v: %+v", value, got)
		}
	}
}

// hangs never answers.
type hangs chan struct{}

func (h hangs) Get(_, _ string) (godbus.Variant, *godbus.Error) {
	<-h
	return godbus.Variant{}, godbus.NewError("org.freedesktop.DBus.Error.NoReply", nil)
}

func TestBootTimesOfASystemdThatHangs(t *testing.T) {
	t.Parallel()
	s, f, _ := onBus(t, never)
	h := make(hangs)
	defer close(h)
	f.tell(t, h)
	if _, err := s.State(t.Context(), "docker.service"); err != nil { // it is connected
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.BootTimes(ctx, "nodeagent.service"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the end of the wait", err)
	}
}
