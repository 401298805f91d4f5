// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"nodeagent/internal/host"
)

const (
	dmiTable  = "/sys/firmware/dmi/tables/DMI"
	dmiMarker = "cmdline:"
)

// readDMI returns the boot args a VirtualBox machine has in one of its DMI
// strings.
func readDMI(_ context.Context, h *host.Host) (string, error) {
	table, err := h.ReadFile(dmiTable)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no DMI table %s", dmiTable)
	}
	if err != nil {
		return "", err
	}
	text, found, err := parseDMI(table)
	if err == nil && !found {
		err = fmt.Errorf("no DMI string has %q in it", dmiMarker)
	}
	return text, err
}

// parseDMI looks through all strings of an SMBIOS structure table (DMTF DSP0134,
// 6.1) for one with the marker and returns what follows it. A structure is a type
// (1 byte), the length of its formatted area (1), a handle (2), the rest of that
// area, and its strings, each ended by a NUL, all ended by one more.
func parseDMI(table []byte) (text string, found bool, err error) {
	const headerSize, endOfTable = 4, 127
	for rest := table; len(rest) >= headerSize; {
		kind, length := rest[0], int(rest[1])
		at := len(table) - len(rest)
		if length < headerSize || length > len(rest) {
			return "", false, fmt.Errorf("the DMI structure at byte %d cannot be %d bytes long", at, length)
		}
		end := bytes.Index(rest[length:], []byte{0, 0})
		if end < 0 {
			return "", false, fmt.Errorf("the DMI structure at byte %d has strings without end", at)
		}
		for _, value := range bytes.Split(rest[length:length+end], []byte{0}) {
			if _, after, ok := bytes.Cut(value, []byte(dmiMarker)); ok {
				return string(after), true, nil
			}
		}
		if kind == endOfTable {
			break
		}
		rest = rest[length+end+2:]
	}
	return "", false, nil
}
