// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"unicode/utf16"
)

// FAT12, FAT16 and FAT32 with long names (Microsoft's FAT specification 1.03).
const (
	fatEntry      = 32 // bytes of a directory entry
	attrLabel     = 0x08
	attrFolder    = 0x10
	attrLongName  = 0x0f
	attrMask      = 0x3f
	lastLongEntry = 0x40
	longPart      = 13 // UTF-16 units of a name in one entry
	longParts     = 20
)

var errFAT = errors.New("the FAT file system is damaged")

type fatVolume struct {
	device   io.ReaderAt
	name     string
	bits     int   // 12, 16 or 32
	table    int64 // offset of the first table
	fixed    int64 // offset of the root folder of FAT12 and FAT16
	fixedLen int64
	data     int64 // offset of cluster 2
	cluster  int64 // bytes
	clusters int64
	top      dirent
}

func (v *fatVolume) label() string { return v.name }
func (v *fatVolume) root() dirent  { return v.top }

// openFAT returns nil when the first sector is not that of a FAT file system. A
// master boot record ends in the same signature, so every field is looked at.
func openFAT(device io.ReaderAt) (*fatVolume, error) {
	boot, err := readBytes(device, 0, 512)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	u16 := func(at int) int64 { return int64(binary.LittleEndian.Uint16(boot[at:])) }
	u32 := func(at int) int64 { return int64(binary.LittleEndian.Uint32(boot[at:])) }
	var (
		jump                      = boot[0] == 0xe9 || boot[0] == 0xeb && boot[2] == 0x90
		sector                    = u16(11)
		perCluster                = int64(boot[13])
		reserved                  = u16(14)
		tables                    = int64(boot[16])
		rootEntries               = u16(17)
		total, perTable, extended = u16(19), u16(22), 38
	)
	power := func(n int64) bool { return n > 0 && n&(n-1) == 0 }
	if !jump || u16(510) != 0xaa55 || !power(sector) || sector < 512 || sector > 4096 || !power(perCluster) ||
		reserved == 0 || tables < 1 || tables > 2 || boot[21] < 0xf0 {
		return nil, nil
	}
	if total == 0 {
		total = u32(32)
	}
	v := &fatVolume{device: device, cluster: sector * perCluster, table: reserved * sector}
	if perTable == 0 {
		v.bits, perTable, extended = 32, u32(36), 66
		v.top.start = uint32(u32(44))
	}
	v.fixed = (reserved + tables*perTable) * sector
	v.fixedLen = rootEntries * fatEntry
	first := reserved + tables*perTable + (v.fixedLen+sector-1)/sector
	v.data = first * sector
	v.clusters = (total - first) / perCluster
	switch {
	case perTable == 0 || v.clusters < 1:
		return nil, nil
	case v.bits == 32:
	case v.clusters < 4085:
		v.bits = 12
	case v.clusters < 65525:
		v.bits = 16
	default:
		return nil, nil
	}
	v.top.folder = true
	if boot[extended] == 0x29 {
		v.name = printable(string(boot[extended+5 : extended+16]))
	}
	// The label in the root folder is the one that tools change.
	if _, label, err := v.scan(v.top); err == nil && label != "" {
		v.name = label
	}
	return v, nil
}

func (v *fatVolume) read(file dirent) ([]byte, error) {
	data := make([]byte, 0, file.size)
	at := file.start
	for rest := file.size; rest > 0; rest -= v.cluster {
		block, err := v.readCluster(at, min(rest, v.cluster))
		if err != nil {
			return nil, err
		}
		data = append(data, block...)
		if rest > v.cluster {
			if at, err = v.next(at); err != nil {
				return nil, err
			}
		}
	}
	return data, nil
}

func (v *fatVolume) valid(cluster uint32) bool {
	return cluster >= 2 && int64(cluster) < v.clusters+2
}

func (v *fatVolume) readCluster(cluster uint32, n int64) ([]byte, error) {
	if !v.valid(cluster) {
		return nil, errFAT
	}
	return readBytes(v.device, v.data+int64(cluster-2)*v.cluster, n)
}

// next returns the cluster after one, which is not valid at a chain's end.
func (v *fatVolume) next(cluster uint32) (uint32, error) {
	at, n := int64(cluster)*int64(v.bits)/8, int64(2)
	if v.bits == 32 {
		n = 4
	}
	field, err := readBytes(v.device, v.table+at, n)
	if err != nil {
		return 0, err
	}
	switch {
	case v.bits == 32:
		return binary.LittleEndian.Uint32(field) & 0x0fffffff, nil
	case v.bits == 16:
		return uint32(binary.LittleEndian.Uint16(field)), nil
	case cluster%2 == 1:
		return uint32(binary.LittleEndian.Uint16(field) >> 4), nil
	}
	return uint32(binary.LittleEndian.Uint16(field) & 0xfff), nil
}

func (v *fatVolume) list(folder dirent) ([]dirent, error) {
	entries, _, err := v.scan(folder)
	return entries, err
}

// scan reads a folder's entries and, in the root, the volume's label.
func (v *fatVolume) scan(folder dirent) (entries []dirent, label string, err error) {
	data, err := v.readFolder(folder)
	if err != nil {
		return nil, "", err
	}
	var long longName
	for ; len(data) >= fatEntry && data[0] != 0; data = data[fatEntry:] {
		entry := data[:fatEntry]
		attr := entry[11] & attrMask
		switch {
		case entry[0] == 0xe5: // deleted
			long = longName{}
		case attr == attrLongName:
			long.add(entry)
		case attr&attrLabel != 0:
			label, long = printable(string(entry[:11])), longName{}
		default:
			name := long.take(entry)
			if name == "." || name == ".." {
				continue
			}
			start := uint32(binary.LittleEndian.Uint16(entry[26:]))
			if v.bits == 32 {
				start |= uint32(binary.LittleEndian.Uint16(entry[20:])) << 16
			}
			if entries = append(entries, dirent{name: name, folder: attr&attrFolder != 0, start: start,
				size: int64(binary.LittleEndian.Uint32(entry[28:]))}); len(entries) > maxEntries {
				return nil, "", errors.New("a folder has more entries than any config drive's")
			}
		}
	}
	return entries, label, nil
}

func (v *fatVolume) readFolder(folder dirent) ([]byte, error) {
	if folder == v.top && v.bits != 32 {
		return readBytes(v.device, v.fixed, v.fixedLen)
	}
	var data []byte
	for at := folder.start; v.valid(at); {
		if int64(len(data))+v.cluster > max(maxFolder, v.cluster) {
			return nil, errors.New("a folder is larger than any config drive's")
		}
		block, err := v.readCluster(at, v.cluster)
		if err != nil {
			return nil, err
		}
		data = append(data, block...)
		if at, err = v.next(at); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// longName is a long name on the way: its entries come before the short one,
// last part first.
type longName struct {
	units    []uint16
	next     byte // number of the part that must come next; 0: the short entry
	checksum byte
}

func (l *longName) add(entry []byte) {
	number := entry[0] &^ lastLongEntry
	if entry[0]&lastLongEntry != 0 {
		*l = longName{next: number, checksum: entry[13]}
	}
	if number == 0 || number > longParts || number != l.next || entry[13] != l.checksum {
		*l = longName{}
		return
	}
	part := make([]uint16, 0, longPart+len(l.units))
	for _, span := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for at := span[0]; at < span[1]; at += 2 {
			part = append(part, binary.LittleEndian.Uint16(entry[at:]))
		}
	}
	l.units = append(part, l.units...)
	l.next--
}

// take returns the name of a short entry: the long one if it belongs to it.
func (l *longName) take(entry []byte) string {
	long := *l
	*l = longName{}
	var sum byte
	for _, c := range entry[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	if len(long.units) > 0 && long.next == 0 && long.checksum == sum {
		for i, unit := range long.units {
			if unit == 0 {
				long.units = long.units[:i]
				break
			}
		}
		return string(utf16.Decode(long.units))
	}
	name := strings.TrimRight(string(entry[:8]), " ")
	if extension := strings.TrimRight(string(entry[8:11]), " "); extension != "" {
		name += "." + extension
	}
	return name
}
