// SPDX-License-Identifier: Apache-2.0

// Package iso9660 reads an ISO 9660 file system (ECMA-119) without mounting it:
// that needs no root, leaves no mount behind, follows no link, and a foreign medium
// never meets the kernel's file systems. Names are those of Rock Ridge (SUSP and
// RRIP 1.12), as on a mounted one, else those of Joliet.
package iso9660

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

// Sector is how many bytes a sector has.
const Sector = 2048

// ErrCutOff is that the medium ends before what is to be read.
var ErrCutOff = errors.New("the medium ends too early")

const (
	firstDescriptor = 16 // sector
	maxDescriptors  = 32
	recordBytes     = 33        // of a directory record before its name
	maxFolder       = 256 << 10 // bytes of one folder that are read
	maxEntries      = 4096      // of one folder

	flagFolder     = 0x02
	flagAssociated = 0x04
	flagMoreToCome = 0x80 // the file has further extents
)

// Volume is a file system. It is an fs.FS too.
type Volume struct {
	Label string // as it is on the medium, without the blanks around it
	Bytes int64  // how large it says it is, from the medium's first byte on
	Root  Entry

	device io.ReaderAt
	joliet bool
}

// Entry is a file or folder. Anything else is not listed, nor are files in several
// extents, which are those of 4 GiB and more.
type Entry struct {
	Name   string
	Folder bool
	Size   int64  // bytes
	Start  uint32 // sector
}

// Open returns nil when the device has no primary volume descriptor.
func Open(device io.ReaderAt) (*Volume, error) {
	var v *Volume
	for i := range int64(maxDescriptors) {
		d, err := readBytes(device, (firstDescriptor+i)*Sector, Sector)
		if err != nil && v == nil && errors.Is(err, ErrCutOff) {
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
			if size := binary.LittleEndian.Uint16(d[128:]); size != Sector {
				return nil, errors.New("an ISO 9660 file system whose blocks have not 2048 bytes")
			}
			v = &Volume{device: device, Label: strings.Trim(string(d[40:72]), " \x00"), Root: rootOf(d),
				Bytes: int64(binary.LittleEndian.Uint32(d[80:])) * Sector}
			if v.hasRockRidge() {
				return v, nil
			}
		case kind == supplementary && joliet:
			v.Root, v.joliet = rootOf(d), true
			return v, nil
		case kind == 255:
			return v, nil
		}
	}
	return v, nil
}

// rootOf reads the directory record of the root in a volume descriptor.
func rootOf(descriptor []byte) Entry {
	record := descriptor[156:]
	return Entry{Name: ".", Folder: true, Start: extent(record), Size: int64(binary.LittleEndian.Uint32(record[10:]))}
}

// hasRockRidge says whether the root's first record, which is the root itself,
// begins its system use area as SUSP wants it (5.3).
func (v *Volume) hasRockRidge() bool {
	sector, err := readBytes(v.device, int64(v.Root.Start)*Sector, Sector)
	if err != nil {
		return false
	}
	area := sector[recordBytes+1 : max(int(sector[0]), recordBytes+1)]
	return len(area) >= 7 && string(area[:2]) == "SP" && area[4] == 0xbe && area[5] == 0xef
}

// extent is where a record's data begins: behind its extended attributes.
func extent(record []byte) uint32 {
	return binary.LittleEndian.Uint32(record[2:]) + uint32(record[1])
}

// Content returns a file's bytes. What is behind the device's end is ErrCutOff.
func (v *Volume) Content(file Entry) *io.SectionReader {
	return io.NewSectionReader(wholeReader{v.device}, int64(file.Start)*Sector, file.Size)
}

// wholeReader makes an early end an error: a section of it has all its bytes.
type wholeReader struct{ io.ReaderAt }

func (r wholeReader) ReadAt(p []byte, offset int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, offset)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = ErrCutOff
	}
	return n, err
}

func readBytes(device io.ReaderAt, offset, n int64) ([]byte, error) {
	data := make([]byte, n)
	_, err := wholeReader{device}.ReadAt(data, offset)
	return data, err
}

// List returns what is in a folder.
func (v *Volume) List(folder Entry) ([]Entry, error) {
	if folder.Size > maxFolder {
		return nil, fmt.Errorf("the folder %s is larger than %d bytes", folder.Name, maxFolder)
	}
	data, err := readBytes(v.device, int64(folder.Start)*Sector, folder.Size)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for at := 0; at < len(data); {
		length := int(data[at])
		if length == 0 { // the rest of this sector is unused
			at = (at/Sector + 1) * Sector
			continue
		}
		if length <= recordBytes || at+length > len(data) || recordBytes+int(data[at+32]) > length {
			return nil, errors.New("a directory record is damaged")
		}
		if entry, ok := v.entry(data[at : at+length]); ok {
			if entries = append(entries, entry); len(entries) > maxEntries {
				return nil, fmt.Errorf("the folder %s has more than %d entries", folder.Name, maxEntries)
			}
		}
		at += length
	}
	return entries, nil
}

// entry reads a directory record; ok is false for what is neither a plain file
// nor a folder.
func (v *Volume) entry(record []byte) (entry Entry, ok bool) {
	length, flags := int(record[32]), record[25]
	name := record[recordBytes : recordBytes+length]
	dots := length == 1 && name[0] <= 1
	split := record[26] != 0 || record[27] != 0 // interleaved
	if length == 0 || dots || split || flags&(flagAssociated|flagMoreToCome) != 0 {
		return Entry{}, false
	}
	entry = Entry{Folder: flags&flagFolder != 0, Start: extent(record), Size: int64(binary.LittleEndian.Uint32(record[10:]))}
	if v.joliet {
		entry.Name = withoutVersion(decodeUTF16(name))
		return entry, true
	}
	entry.Name = withoutVersion(string(name))
	rest := recordBytes + length
	rest += rest % 2
	if rest < len(record) {
		return v.rockRidge(entry, record[rest:])
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
func (v *Volume) rockRidge(entry Entry, area []byte) (Entry, bool) {
	var name []byte
	for range 2 { // the area, and one it is continued in: where long names go
		var next []byte
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
					return Entry{}, false
				}
				if mode := binary.LittleEndian.Uint32(field[4:]) & kind; mode != plain && mode != folder {
					return Entry{}, false
				}
			case "SL", "CL", "PL", "RE": // a link, or a folder moved elsewhere
				return Entry{}, false
			case "CE":
				if length < 28 {
					return Entry{}, false
				}
				block, offset, bytes := binary.LittleEndian.Uint32(field[4:]), binary.LittleEndian.Uint32(field[12:]), binary.LittleEndian.Uint32(field[20:])
				var err error
				if next, err = readBytes(v.device, int64(block)*Sector+int64(offset), int64(min(bytes, Sector))); err != nil {
					return Entry{}, false
				}
			}
		}
		area = next
	}
	if len(name) > 0 {
		entry.Name = string(name)
	}
	return entry, true
}
