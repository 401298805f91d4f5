// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BootID returns the kernel's random id of this boot
// (/proc/sys/kernel/random/boot_id).
func (h *Host) BootID() (string, error) {
	data, err := h.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot read the boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// Uptime returns how long the running kernel has been up, suspended time
// included.
func Uptime() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("cannot read the time since boot: %w", err)
	}
	return time.Duration(now.Nano()), nil
}

// Monotonic returns the kernel's clock that systemd's timestamps are of
// (CLOCK_MONOTONIC): how long it has been up, suspended time left out. Nobody can set it.
func Monotonic() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("cannot read the monotonic clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
