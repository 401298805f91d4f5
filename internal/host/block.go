// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"os"
	"strings"
)

// BlockDevices returns the drives, disks and partitions that may hold a medium
// CloudStack attached, as /dev/sr0. A CD drive is there also without a medium.
func (h *Host) BlockDevices() ([]string, error) {
	entries, err := os.ReadDir(h.Path("/sys/class/block"))
	if err != nil {
		return nil, fmt.Errorf("cannot list block devices: %w", err)
	}
	var devices []string
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, "ram") || strings.HasPrefix(name, "zram") || strings.HasPrefix(name, "fd") {
			continue
		}
		// The kernel writes a / in a device's name as !.
		device := "/dev/" + strings.ReplaceAll(name, "!", "/")
		size, err := h.ReadFile("/sys/class/block/" + name + "/size")
		if !IsOptical(device) && err == nil && strings.TrimSpace(string(size)) == "0" {
			continue
		}
		devices = append(devices, device)
	}
	return devices, nil
}

// IsOptical says whether a device is a CD drive.
func IsOptical(device string) bool { return strings.HasPrefix(device, "/dev/sr") }

// EnableMediaEvents makes the kernel look for media that come and go. It does not
// unless told to; systemd's udev rules tell it, later or not at all in a template
// without them (Documentation/admin-guide/kernel-parameters, events_dfl_poll_msecs).
func (h *Host) EnableMediaEvents() error {
	const name = "/sys/module/block/parameters/events_dfl_poll_msecs"
	if value, err := h.ReadFile(name); err != nil || strings.TrimSpace(string(value)) != "0" {
		return nil
	}
	if err := os.WriteFile(h.Path(name), []byte("2000"), 0o644); err != nil {
		return fmt.Errorf("a changed medium may go unnoticed: %w", err)
	}
	return nil
}
