// SPDX-License-Identifier: Apache-2.0

// Package settings makes the host settings of a Kubernetes node that are not its
// network: swap off for good, kernel modules and sysctls, the ssh server.
package settings

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// SwapOff turns swap off now and for all later boots: what is swapped to, the
// lines of /etc/fstab, and every swap unit, which also covers the partitions
// systemd finds by their GPT type (pain-point C38). It returns what it did.
func SwapOff(ctx context.Context, h *host.Host) (done []string, err error) {
	fail := func(err error) ([]string, error) {
		return done, fault.Wrap(fault.HostSettingsFailed, err, "cannot turn swap off")
	}
	// Units first: systemd must not turn on again what is turned off below.
	units, err := h.Units.List(ctx, ".swap")
	if err != nil {
		return fail(err)
	}
	if len(units) > 0 {
		changed, err := h.Units.Mask(ctx, units...)
		if err != nil {
			return fail(err)
		}
		if changed {
			done = append(done, fmt.Sprintf("%d swap units masked", len(units)))
		}
	}
	table, err := h.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	for _, device := range swapDevices(string(table)) {
		if err := h.Kernel.SwapOff(device); err != nil {
			return fail(fmt.Errorf("%s: %w", device, err))
		}
		done = append(done, device+" off")
	}
	fstab, err := h.ReadFile("/etc/fstab")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	without, count := withoutSwap(string(fstab))
	if count > 0 {
		if _, err := h.WriteFile("/etc/fstab", []byte(without), 0o644); err != nil {
			return fail(err)
		}
		done = append(done, fmt.Sprintf("%d line(s) of /etc/fstab commented", count))
	}
	return done, nil
}

// swapDevices reads proc_swaps(5). File names in it have blanks as \040.
func swapDevices(table string) (devices []string) {
	for i, line := range strings.Split(table, "\n") {
		if fields := strings.Fields(line); i > 0 && len(fields) > 0 {
			devices = append(devices, strings.ReplaceAll(fields[0], `\040`, " "))
		}
	}
	return devices
}

// withoutSwap comments out the swap lines of an fstab(5).
func withoutSwap(fstab string) (text string, count int) {
	lines := strings.Split(fstab, "\n")
	for i, line := range lines {
		fields := strings.Fields(line)
		if len(fields) >= 3 && !strings.HasPrefix(fields[0], "#") && fields[2] == "swap" {
			lines[i] = "# swap is off on a Kubernetes node (nodeagent): " + line
			count++
		}
	}
	return strings.Join(lines, "\n"), count
}
