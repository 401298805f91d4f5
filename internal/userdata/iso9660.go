// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

// The parts of ISO 9660 (ECMA-119) that a config drive uses, with the names of
// Joliet or Rock Ridge (SUSP and RRIP 1.12).
const (
	isoSector       = 2048
	firstDescriptor = 16 // sector
	maxDescriptors  = 32
	isoRecord       = 33 // bytes of a directory record before its name

	flagFolder     = 0x02
	flagAssociated = 0x04
	flagMoreToCome = 0x80 // the file has further extents
)

type isoVolume struct {
	device io.ReaderAt
	name   string
	top    dirent
	joliet bool
}

func (v *isoVolume) label() string { return v.name }
func (v *isoVolume) root() dirent  { return v.top }

// openISO returns nil when the device has no primary volume descriptor. Of a
// primary and a Joliet tree it takes Joliet's, whose names are the whole ones.
func openISO(device io.ReaderAt) (*isoVolume, error) {
	var v *isoVolume
	for i := range int64(maxDescriptors) {
		d, err := readBytes(device, (firstDescriptor+i)*isoSector, isoSector)
		if err != nil && v == nil && errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, nil // too small to be one
		}
		if err != nil {
			return nil, err
		}
		const (
			primary       = 1
			supplementary = 2
		)
		kind := d[0]
		if string(d[1:6]) != "CD001" || (v == nil && kind != primary) {
			break
		}
		joliet := slices.Contains([]string{"%/@", "%/C", "%/E"}, string(d[88:91]))
		switch {
		case kind == primary && v == nil:
			if size := binary.LittleEndian.Uint16(d[128:]); size != isoSector {
				return nil, errors.New("an ISO 9660 file system whose blocks have not 2048 bytes")
			}
			v = &isoVolume{device: device, name: printable(string(d[40:72])), top: isoRoot(d)}
		case kind == supplementary && joliet:
			v.top, v.joliet = isoRoot(d), true
			return v, nil
		case kind == 255:
			return v, nil
		}
	}
	return v, nil
}

// isoRoot reads the directory record of the root in a volume descriptor.
func isoRoot(descriptor []byte) dirent {
	record := descriptor[156:]
	return dirent{folder: true, start: extent(record), size: int64(binary.LittleEndian.Uint32(record[10:]))}
}

// extent is where a record's data begins: behind its extended attributes.
func extent(record []byte) uint32 {
	return binary.LittleEndian.Uint32(record[2:]) + uint32(record[1])
}

func (v *isoVolume) read(file dirent) ([]byte, error) {
	return readBytes(v.device, int64(file.start)*isoSector, file.size)
}

func (v *isoVolume) list(folder dirent) ([]dirent, error) {
	if folder.size > maxFolder {
		return nil, errors.New("a folder is larger than any config drive's")
	}
	data, err := v.read(folder)
	if err != nil {
		return nil, err
	}
	var entries []dirent
	for at := 0; at < len(data); {
		length := int(data[at])
		if length == 0 { // the rest of this sector is unused
			at = (at/isoSector + 1) * isoSector
			continue
		}
		if length <= isoRecord || at+length > len(data) || isoRecord+int(data[at+32]) > length {
			return nil, errors.New("a directory record is damaged")
		}
		if entry, ok := v.entry(data[at : at+length]); ok {
			if entries = append(entries, entry); len(entries) > maxEntries {
				return nil, errors.New("a folder has more entries than any config drive's")
			}
		}
		at += length
	}
	return entries, nil
}

// entry reads a directory record; ok is false for what is neither a plain file
// nor a folder.
func (v *isoVolume) entry(record []byte) (entry dirent, ok bool) {
	length, flags := int(record[32]), record[25]
	name := record[isoRecord : isoRecord+length]
	dots := length == 1 && name[0] <= 1
	split := record[26] != 0 || record[27] != 0 // interleaved
	if length == 0 || dots || split || flags&(flagAssociated|flagMoreToCome) != 0 {
		return dirent{}, false
	}
	entry = dirent{folder: flags&flagFolder != 0, start: extent(record), size: int64(binary.LittleEndian.Uint32(record[10:]))}
	if v.joliet {
		entry.name = withoutVersion(decodeUTF16(name))
		return entry, true
	}
	entry.name = withoutVersion(string(name))
	rest := isoRecord + length
	rest += rest % 2
	if rest < len(record) {
		return rockRidge(entry, record[rest:])
	}
	return entry, true
}

// withoutVersion takes the ";1" and the "." of a name without extension away.
func withoutVersion(name string) string {
	name, _, _ = strings.Cut(name, ";")
	return strings.TrimSuffix(name, ".")
}

func decodeUTF16(name []byte) string {
	units := make([]uint16, len(name)/2)
	for i := range units {
		units[i] = binary.BigEndian.Uint16(name[2*i:])
	}
	return string(utf16.Decode(units))
}

// rockRidge reads the POSIX name and kind of an entry in its system use area. A
// link, or any other file that is not plain, is none.
func rockRidge(entry dirent, area []byte) (dirent, bool) {
	var name []byte
	for len(area) >= 4 {
		length := int(area[2])
		if length < 4 || length > len(area) {
			break
		}
		field := area[:length]
		area = area[length:]
		switch string(field[:2]) {
		case "NM":
			const parts = 0x06 // "." or ".."
			if length > 5 && field[4]&parts == 0 {
				name = append(name, field[5:]...)
			}
		case "PX":
			const kind, plain, folder = 0xf000, 0x8000, 0x4000
			if length < 8 {
				return dirent{}, false
			}
			if mode := binary.LittleEndian.Uint32(field[4:]) & kind; mode != plain && mode != folder {
				return dirent{}, false
			}
		case "SL", "CL", "PL", "RE": // a link, or a folder moved elsewhere
			return dirent{}, false
		}
	}
	if len(name) > 0 {
		entry.name = string(name)
	}
	return entry, true
}
