// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
)

// Swaps returns the devices and files that the kernel swaps to (proc_swaps(5)); a kernel
// without swap has none.
func (h *Host) Swaps() ([]string, error) {
	table, err := h.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return parseSwaps(string(table)), nil
}

// parseSwaps reads proc_swaps(5): a heading, then a device or file in each line.
func parseSwaps(table string) (devices []string) {
	for i, line := range strings.Split(table, "\n") {
		if fields := strings.Fields(line); i > 0 && len(fields) > 0 {
			devices = append(devices, unescaped(fields[0]))
		}
	}
	return devices
}

// unescaped undoes the kernel's way to write blanks and the like in names: \040.
func unescaped(name string) string {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if name[i] == '\\' && i+3 < len(name) {
			if code, err := strconv.ParseUint(name[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		b.WriteByte(name[i])
	}
	return b.String()
}
