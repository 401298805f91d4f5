// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// SwapOff turns swap off now and for all later boots: what is swapped to, the
// lines of /etc/fstab, services that make swap, and every swap unit, which also
// covers zram-generator's and the partitions systemd finds by their GPT type
// (pain-point C38). It returns what it did.
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
	off, err := turnOff(ctx, h, swapServices()...)
	done = append(done, off...)
	if err != nil {
		return fail(err)
	}
	devices, err := h.Swaps()
	if err != nil {
		return fail(err)
	}
	for _, device := range devices {
		if err := h.Kernel.SwapOff(device); err != nil {
			// A service that is being stopped may have been faster.
			if now, again := h.Swaps(); again == nil && !slices.Contains(now, device) {
				continue
			}
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

// swapServices make swap of their own, in no fstab and as no unit systemd knows
// before they run.
func swapServices() []string {
	return []string{"zramswap.service", "zram-config.service", "dphys-swapfile.service", "swapspace.service", "systemd-swap.service"}
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
