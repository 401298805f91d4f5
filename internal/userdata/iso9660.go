// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"io"

	"nodeagent/internal/iso9660"
)

// isoVolume is an ISO 9660 file system as a volume.
type isoVolume struct{ iso *iso9660.Volume }

// openISO returns nil when the device has no ISO 9660 file system.
func openISO(device io.ReaderAt) (*isoVolume, error) {
	iso, err := iso9660.Open(device)
	if iso == nil || err != nil {
		return nil, err
	}
	return &isoVolume{iso}, nil
}

func (v *isoVolume) label() string { return printable(v.iso.Label) }
func (v *isoVolume) root() dirent  { return isoEntry(v.iso.Root) }

func (v *isoVolume) list(folder dirent) ([]dirent, error) {
	entries, err := v.iso.List(iso9660.Entry{Name: folder.name, Folder: true, Size: folder.size, Start: folder.start})
	var found []dirent
	for _, entry := range entries {
		found = append(found, isoEntry(entry))
	}
	return found, err
}

func (v *isoVolume) read(file dirent) ([]byte, error) {
	return readBytes(v.iso.Content(iso9660.Entry{Size: file.size, Start: file.start}), 0, file.size)
}

func isoEntry(e iso9660.Entry) dirent { return dirent{e.Name, e.Folder, e.Size, e.Start} }
