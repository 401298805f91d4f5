// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"

	"nodeagent/internal/fault"
)

// Layout of a master boot record and of an extended one, which has the same form. A
// 16-byte entry is: boot flag, first sector as CHS (3 bytes), type, last sector
// as CHS (3 bytes), first sector (32 bit), number of sectors (32 bit).
const (
	mbrEntries   = 446
	mbrEntrySize = 16
	mbrSignature = 510
	mbrSize      = 512 // also on disks with larger sectors

	entryType    = 4
	entryLastCHS = 5
	entryStart   = 8
	entryLength  = 12

	typeProtective = 0xee // stands for a GPT
)

// maxLogical is the number of logical partitions the kernel can have (its
// DISK_MAX_PARTS is 256). The chain is not followed further.
const maxLogical = 251

// mbr is a master boot record with its chain of extended boot records, one for
// each logical partition. All numbers are sectors of the disk.
type mbr struct {
	sector  int
	sectors int64 // of the disk

	primaries []mbrEntry
	extended  *mbrEntry // one of primaries
	chain     []ebr
}

// mbrEntry is one used entry.
type mbrEntry struct {
	raw    [mbrEntrySize]byte
	offset int64 // of the entry on the disk, in bytes
	number int   // 0 for a link
	start  int64 // absolute
	size   int64
}

func (e mbrEntry) end() int64 { return e.start + e.size }

func (e mbrEntry) isExtended() bool {
	switch e.raw[entryType] {
	case 0x05, 0x0f, 0x85:
		return true
	}
	return false
}

// ebr is an extended boot record: a table with the logical partition that
// follows it and a link to the next record.
type ebr struct {
	lba     int64
	logical *mbrEntry // nil where a partition was deleted
	link    *mbrEntry // nil in the last one
}

func mbrInvalid(format string, args ...any) error {
	return fault.New(fault.DiskTableInvalid, format, args...)
}

// hasProtectiveEntry says whether the MBR says that the disk has a GPT (UEFI
// 2.10, 5.2.3).
func hasProtectiveEntry(disk io.ReaderAt) (bool, error) {
	var record [mbrSize]byte
	if _, err := disk.ReadAt(record[:], 0); err != nil {
		return false, fault.Wrap(fault.DiskTableInvalid, err, "cannot read the MBR")
	}
	if record[mbrSignature] != 0x55 || record[mbrSignature+1] != 0xaa {
		return false, mbrInvalid("sector 0 has no partition table")
	}
	for i := range 4 {
		if record[mbrEntries+i*mbrEntrySize+entryType] == typeProtective {
			return true, nil
		}
	}
	return false, nil
}

// readMBR reads a whole table and refuses one that is not sound: everything
// decided later relies on partitions that lie on the disk, inside their
// container and apart from each other.
func readMBR(disk io.ReaderAt, sectorSize int, sectors int64) (*mbr, error) {
	m := &mbr{sector: sectorSize, sectors: sectors}
	entries, err := m.readEntries(disk, 0)
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		if flag := e.raw[0]; flag != 0 && flag != 0x80 {
			return nil, mbrInvalid("entry %d of the MBR has the boot flag 0x%02x", i+1, flag)
		}
		if e.size == 0 {
			continue
		}
		e.number = i + 1
		m.primaries = append(m.primaries, e)
	}
	for i := range m.primaries {
		e := &m.primaries[i]
		if e.raw[entryType] == 0 {
			return nil, mbrInvalid("partition %d has no type", e.number)
		}
		if e.start < 1 || e.end() > sectors {
			return nil, mbrInvalid("partition %d (sectors %d to %d) is not on the disk of %d sectors", e.number, e.start, e.end()-1, sectors)
		}
		if !e.isExtended() {
			continue
		}
		if m.extended != nil {
			return nil, mbrInvalid("partitions %d and %d are both extended", m.extended.number, e.number)
		}
		m.extended = e
	}
	if err := apart(m.primaries); err != nil {
		return nil, err
	}
	if m.extended != nil {
		if err := m.readChain(disk); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// readEntries reads the four entries of the record at a sector. Their starts
// are as in the record.
func (m *mbr) readEntries(disk io.ReaderAt, lba int64) ([4]mbrEntry, error) {
	var entries [4]mbrEntry
	var record [mbrSize]byte
	offset := lba * int64(m.sector)
	if _, err := disk.ReadAt(record[:], offset); err != nil {
		return entries, fault.Wrap(fault.DiskTableInvalid, err, "cannot read the table in sector %d", lba)
	}
	if record[mbrSignature] != 0x55 || record[mbrSignature+1] != 0xaa {
		return entries, mbrInvalid("sector %d has no partition table", lba)
	}
	for i := range entries {
		e := &entries[i]
		at := mbrEntries + i*mbrEntrySize
		copy(e.raw[:], record[at:])
		e.offset = offset + int64(at)
		e.start = int64(binary.LittleEndian.Uint32(e.raw[entryStart:]))
		e.size = int64(binary.LittleEndian.Uint32(e.raw[entryLength:]))
	}
	return entries, nil
}

// readChain follows the extended boot records. A logical partition's start is
// relative to its record, a link's to the extended partition. Numbers are given
// as the kernel does: from 5 on, in the chain's order, records without a
// partition not counted.
func (m *mbr) readChain(disk io.ReaderAt) error {
	number := 5
	var taken []mbrEntry // partitions and the sectors of the records
	seen := map[int64]bool{}
	for lba := m.extended.start; ; {
		if seen[lba] {
			return mbrInvalid("the chain of logical partitions leads back to sector %d", lba)
		}
		if len(m.chain) == maxLogical {
			return mbrInvalid("there are more than %d logical partitions", maxLogical)
		}
		seen[lba] = true
		entries, err := m.readEntries(disk, lba)
		if err != nil {
			return err
		}
		record := ebr{lba: lba}
		taken = append(taken, mbrEntry{start: lba, size: 1})
		for i := range entries {
			e := &entries[i]
			switch {
			case e.size == 0:
			case i >= 2:
				return mbrInvalid("the table in sector %d has more than two entries", lba)
			case e.raw[entryType] == 0:
				return mbrInvalid("entry %d in sector %d has no type", i+1, lba)
			case e.isExtended() && record.link == nil:
				e.start += m.extended.start
				record.link = e
			case !e.isExtended() && record.logical == nil:
				e.start += lba
				e.number = number
				record.logical = e
			default:
				return mbrInvalid("the table in sector %d has two partitions or two links", lba)
			}
		}
		if e := record.logical; e != nil {
			if e.start <= lba || e.end() > m.extended.end() {
				return mbrInvalid("partition %d (sectors %d to %d) is not inside the extended partition %d (to sector %d)",
					e.number, e.start, e.end()-1, m.extended.number, m.extended.end()-1)
			}
			taken = append(taken, *e)
			number++
		}
		m.chain = append(m.chain, record)
		if record.link == nil {
			break
		}
		lba = record.link.start
		if lba <= m.extended.start || lba >= m.extended.end() {
			return mbrInvalid("the chain of logical partitions leads to sector %d, outside the extended partition %d", lba, m.extended.number)
		}
	}
	return apart(taken)
}

// apart refuses entries that overlap. Those without a number are records of the
// chain.
func apart(entries []mbrEntry) error {
	sorted := slices.SortedFunc(slices.Values(entries), func(a, b mbrEntry) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; b.start < a.end() {
			return mbrInvalid("%s and %s overlap at sector %d", a.name(), b.name(), b.start)
		}
	}
	return nil
}

func (e mbrEntry) name() string {
	if e.number == 0 {
		return fmt.Sprintf("the table in sector %d", e.start)
	}
	return fmt.Sprintf("partition %d", e.number)
}

func (m *mbr) sectorSize() int { return m.sector }

// usable implements table: the first sector after the last one that a 32-bit
// count of sectors from the start of the disk reaches.
func (m *mbr) usable() int64 { return min(m.sectors, math.MaxUint32) }

// mend implements table. Every prefix of resize's patches is a sound table from
// which the next run goes on, so there is nothing to repair.
func (m *mbr) mend() ([]patch, string) { return nil, "" }

func (m *mbr) extents() []extent {
	var all []extent
	for _, e := range m.primaries {
		all = append(all, e.extent())
	}
	for _, record := range m.chain {
		if record.logical != nil {
			all = append(all, record.logical.extent())
		}
	}
	return all
}

func (e mbrEntry) extent() extent {
	return extent{number: e.number, start: e.start, size: e.size, kind: mbrKind(e.raw[entryType]), container: e.isExtended()}
}

// room implements table. A logical partition takes its container along, so what
// follows the container is in its way as well.
func (m *mbr) room(e extent) (int64, obstacle) {
	end, by := m.usable(), obstacle{}
	if m.sectors > end {
		by.format = fmt.Sprintf("an MBR ends at %s, the disk has %s",
			formatBytes((end+1)*int64(m.sector)), formatBytes(m.sectors*int64(m.sector)))
	}
	meet := func(start int64, what *extent) {
		if start > e.start && start < end {
			end, by = start, obstacle{partition: what}
		}
	}
	for _, p := range m.primaries {
		what := p.extent()
		meet(p.start, &what)
	}
	if e.number < 5 {
		return end, by
	}
	for i, record := range m.chain {
		what := m.extended.extent()
		// A record without a partition is named after the next that has one.
		for _, later := range m.chain[i:] {
			if later.logical != nil {
				what = later.logical.extent()
				break
			}
		}
		meet(record.lba, &what)
		if record.logical != nil {
			meet(record.logical.start, &what)
		}
	}
	return end, by
}

// resize implements table. The container grows first, then the link that leads
// to the partition's record (its size is the one of record and partition
// together, as sfdisk and parted write it), then the partition.
func (m *mbr) resize(e extent, end int64) []patch {
	var patches []patch
	if e.number < 5 {
		for _, p := range m.primaries {
			if p.number == e.number {
				patches = append(patches, p.endAt(end, fmt.Sprintf("partition %d in the MBR", p.number)))
			}
		}
		return patches
	}
	if m.extended.end() < end {
		patches = append(patches, m.extended.endAt(end, fmt.Sprintf("extended partition %d in the MBR", m.extended.number)))
	}
	for i, record := range m.chain {
		if record.logical == nil || record.logical.number != e.number {
			continue
		}
		if i > 0 {
			if link := m.chain[i-1].link; link.end() < end {
				patches = append(patches, link.endAt(end, fmt.Sprintf("link to partition %d in sector %d", e.number, m.chain[i-1].lba)))
			}
		}
		patches = append(patches, record.logical.endAt(end, fmt.Sprintf("partition %d in sector %d", e.number, record.lba)))
	}
	return patches
}

// endAt returns the patch that moves an entry's end. It covers the size alone,
// or from the last sector's CHS to the size where that changes too.
func (e mbrEntry) endAt(end int64, what string) patch {
	grown := e.raw
	binary.LittleEndian.PutUint32(grown[entryLength:], uint32(end-e.start))
	chs := lastCHS([3]byte(e.raw[entryLastCHS:]), end-1)
	copy(grown[entryLastCHS:], chs[:])
	from := entryLength
	if !bytes.Equal(grown[:entryLength], e.raw[:entryLength]) {
		from = entryLastCHS
	}
	return patch{Offset: e.offset + int64(from), Old: slices.Clone(e.raw[from:]), New: slices.Clone(grown[from:]), What: what}
}

// lastCHS returns the cylinder, head and sector of a partition's last sector,
// with the 255 heads and 63 sectors all tools assume. A value that stands for
// "too large" or "not given" stays.
func lastCHS(old [3]byte, lba int64) [3]byte {
	tooLarge := [3]byte{0xfe, 0xff, 0xff}
	switch old {
	case tooLarge, [3]byte{0xff, 0xff, 0xff}, [3]byte{}:
		return old
	}
	const heads, perTrack = 255, 63
	cylinder := lba / (heads * perTrack)
	if cylinder > 1023 {
		return tooLarge
	}
	head, sector := lba/perTrack%heads, lba%perTrack+1
	return [3]byte{byte(head), byte(sector) | byte(cylinder>>8)<<6, byte(cylinder)}
}

func mbrKind(code byte) string {
	switch code {
	case 0x05, 0x0f, 0x85:
		return "extended"
	case 0x07:
		return "NTFS"
	case 0x0b, 0x0c:
		return "FAT"
	case 0x82:
		return "swap"
	case 0x83:
		return "Linux"
	case 0x8e:
		return "LVM"
	case 0xef:
		return "EFI"
	case 0xfd:
		return "RAID"
	}
	return fmt.Sprintf("type 0x%02x", code)
}
