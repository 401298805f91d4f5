// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"strings"

	"nodeagent/internal/fault"
)

// Layout of a GPT header and of an entry (UEFI 2.10, 5.3.2 and 5.3.3). Numbers
// are little-endian, sectors have 64 bits, the last one belongs to its range.
const (
	gptSignature   = "EFI PART"
	gptHeaderSize  = 12
	gptHeaderCRC   = 16
	gptMyLBA       = 24
	gptAlternate   = 32
	gptFirstUsable = 40
	gptLastUsable  = 48
	gptDiskGUID    = 56
	gptEntriesLBA  = 72
	gptEntryCount  = 80
	gptEntrySize   = 84
	gptEntriesCRC  = 88
	gptMinHeader   = 92

	gptEntryFirst = 32
	gptEntryLast  = 40
	gptMinEntry   = 128
	gptMaxEntry   = 4096 // the kernel knows entries of 128 bytes only

	gptMaxEntries = 1 << 20 // bytes of an array; 16 KiB is usual

	gptPrimary = 1 // sector of the primary header
)

// gpt is a GUID partition table. Two copies are on the disk: the primary at its
// start and the backup at its end. Linux takes the primary, and without `gpt` on
// its command line nothing else (find_valid_gpt in the kernel's
// block/partitions/efi.c), so a primary that is sound is the truth, and stays
// sound through every write.
type gpt struct {
	sector  int
	sectors int64 // of the disk

	// The copy that is the truth.
	header    []byte // its whole sector
	entries   []byte
	entrySize int

	partitions  []extent
	first, last int64      // usable sectors
	alternate   int64      // sector of the backup header, good or not
	backedUp    bool       // a good backup of this table is there
	ownEntries  int64      // sector where the primary's entries belong
	protective  mbrEntry   // the MBR's entry for the GPT
	mbrOthers   []mbrEntry // further entries: a hybrid MBR, which is never written

	// What is on the disk where the primary is and where the backup belongs.
	primaryHeader, primaryEntries, backupHeader, backupEntries gptArea
}

// gptArea is a part of the disk with its content.
type gptArea struct {
	what   string
	offset int64
	now    []byte
}

// gptCopy is a header and the entries it leads to.
type gptCopy struct {
	header  []byte // nil where it is not sound
	entries []byte // nil where they are not sound
}

func (c gptCopy) u64(field int) uint64 { return binary.LittleEndian.Uint64(c.header[field:]) }
func (c gptCopy) u32(field int) uint32 { return binary.LittleEndian.Uint32(c.header[field:]) }
func (c gptCopy) diskGUID() []byte     { return c.header[gptDiskGUID:][:16] }

// readGPT reads a whole table and refuses one that is not sound: everything
// decided later relies on partitions that lie in the usable sectors, clear of
// each other, of both copies' places and of the disk's end.
func readGPT(disk io.ReaderAt, sectorSize int, sectors int64) (table, error) {
	g := &gpt{sector: sectorSize, sectors: sectors}
	if err := g.readProtective(disk); err != nil {
		return nil, err
	}
	primary, failed := g.readCopy(disk, gptPrimary)
	truth := primary
	if failed != nil {
		var err error
		if truth, err = g.findBackup(disk, primary, failed); err != nil {
			return nil, err
		}
	}
	if err := g.adopt(truth); err != nil {
		return nil, err
	}
	if failed != nil {
		g.alternate, g.backedUp = int64(truth.u64(gptMyLBA)), true
	} else {
		g.alternate = int64(truth.u64(gptAlternate))
		backup, err := g.readCopy(disk, g.alternate)
		g.backedUp = err == nil && g.alternate > g.last && agree(truth, backup)
	}
	g.ownEntries = g.placeOfEntries(disk, primary)
	if err := g.readAreas(disk); err != nil {
		return nil, err
	}
	return g, nil
}

// readProtective reads the MBR. The kernel wants an entry that begins at sector 1
// (pmbr_part_valid); with others besides, the MBR is a hybrid one and the GPT
// still the truth.
func (g *gpt) readProtective(disk io.ReaderAt) error {
	entries, err := (&mbr{sector: g.sector}).readEntries(disk, 0)
	if err != nil {
		return err
	}
	found := false
	for _, e := range entries {
		switch kind := e.raw[entryType]; {
		case kind == 0:
		case kind == typeProtective && e.start == gptPrimary && !found:
			g.protective, found = e, true
		default:
			g.mbrOthers = append(g.mbrOthers, e)
		}
	}
	if !found {
		return fault.New(fault.DiskTableInvalid, "the MBR says that the disk has a GPT, but not that it begins at sector %d", gptPrimary)
	}
	return nil
}

// readCopy reads a copy, by the kernel's rules (is_gpt_valid). Where only the
// entries are bad it returns the header along with the error.
func (g *gpt) readCopy(disk io.ReaderAt, lba int64) (gptCopy, error) {
	header := make([]byte, g.sector)
	if _, err := disk.ReadAt(header, lba*int64(g.sector)); err != nil {
		return gptCopy{}, fmt.Errorf("its header cannot be read: %w", err)
	}
	c := gptCopy{header: header}
	if !bytes.HasPrefix(header, []byte(gptSignature)) {
		return gptCopy{}, fmt.Errorf("there is no header")
	}
	if size := c.u32(gptHeaderSize); size < gptMinHeader || size > uint32(g.sector) {
		return gptCopy{}, fmt.Errorf("its header has %d bytes, want %d to %d", size, gptMinHeader, g.sector)
	}
	if sum := headerCRC(header); sum != c.u32(gptHeaderCRC) {
		return gptCopy{}, fmt.Errorf("its header has the checksum 0x%08x and says 0x%08x", sum, c.u32(gptHeaderCRC))
	}
	if my := c.u64(gptMyLBA); my != uint64(lba) {
		return gptCopy{}, fmt.Errorf("its header is for sector %d", my)
	}
	count, size := c.u32(gptEntryCount), c.u32(gptEntrySize)
	if size < gptMinEntry || size > gptMaxEntry || size&(size-1) != 0 {
		return c, fmt.Errorf("it has entries of %d bytes, want a power of two from %d to %d", size, gptMinEntry, gptMaxEntry)
	}
	length := uint64(count) * uint64(size)
	if length == 0 || length > gptMaxEntries {
		return c, fmt.Errorf("it has %d entries of %d bytes, want 1 to %d", count, size, gptMaxEntries/size)
	}
	at, span := c.u64(gptEntriesLBA), uint64(g.span(int(length)))
	if at >= uint64(g.sectors) || at+span > uint64(g.sectors) {
		return c, fmt.Errorf("its entries begin at sector %d of a disk with %d", at, g.sectors)
	}
	entries := make([]byte, length)
	if _, err := disk.ReadAt(entries, int64(at)*int64(g.sector)); err != nil {
		return c, fmt.Errorf("its entries cannot be read: %w", err)
	}
	if sum := crc32.ChecksumIEEE(entries); sum != c.u32(gptEntriesCRC) {
		return c, fmt.Errorf("its entries in sector %d have the checksum 0x%08x, its header says 0x%08x", at, sum, c.u32(gptEntriesCRC))
	}
	c.entries = entries
	return c, nil
}

// headerCRC returns the checksum of a header, computed with its own field zero.
func headerCRC(header []byte) uint32 {
	covered := slices.Clone(header[:binary.LittleEndian.Uint32(header[gptHeaderSize:])])
	clear(covered[gptHeaderCRC:][:4])
	return crc32.ChecksumIEEE(covered)
}

// findBackup returns the backup where the primary is bad. It is in the sector the
// primary names, where its header is sound, in the disk's last one, or, on a disk
// that has grown, where the protective MBR says that the disk ends.
func (g *gpt) findBackup(disk io.ReaderAt, primary gptCopy, failed error) (gptCopy, error) {
	places := []int64{g.sectors - 1, g.protective.end() - 1}
	if primary.header != nil {
		if at := primary.u64(gptAlternate); at < uint64(g.sectors) {
			places = slices.Insert(places, 0, int64(at))
		}
	}
	var found gptCopy
	problems := []string{fmt.Sprintf("the primary in sector %d: %v", gptPrimary, failed)}
	for i, at := range places {
		if at <= gptPrimary || at >= g.sectors || slices.Contains(places[:i], at) {
			continue
		}
		backup, err := g.readCopy(disk, at)
		switch {
		case err != nil:
		case backup.u64(gptAlternate) != gptPrimary:
			err = fmt.Errorf("its header is the backup of one in sector %d", backup.u64(gptAlternate))
		case primary.header != nil && !bytes.Equal(primary.diskGUID(), backup.diskGUID()):
			err = fmt.Errorf("it is of another table, %s", guid(backup.diskGUID()))
		case found.header == nil:
			found = backup
		case !bytes.Equal(found.diskGUID(), backup.diskGUID()):
			return found, fault.New(fault.DiskTableInvalid, "the primary partition table is bad, and the backups in sectors %d and %d are of different tables, %s and %s",
				found.u64(gptMyLBA), at, guid(found.diskGUID()), guid(backup.diskGUID())).
				WithHint("Choose one with gdisk's recovery menu; nothing was written.")
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("the backup in sector %d: %v", at, err))
		}
	}
	if found.header == nil {
		return found, fault.New(fault.DiskTableInvalid, "neither copy of the partition table is good: %s", strings.Join(problems, "; ")).
			WithHint("Give the disk the size it had, recover the table with gdisk or testdisk, or start again from the template; nothing was written.")
	}
	return found, nil
}

// adopt takes a copy for the truth if it is sound on this disk. After it all
// numbers are known to be on the disk.
func (g *gpt) adopt(c gptCopy) error {
	g.header, g.entries, g.entrySize = c.header, c.entries, int(c.u32(gptEntrySize))
	first, last, at := c.u64(gptFirstUsable), c.u64(gptLastUsable), c.u64(gptEntriesLBA)
	reaches := max(c.u64(gptAlternate), last)
	for entry := range slices.Chunk(g.entries, g.entrySize) {
		if used(entry) {
			reaches = max(reaches, binary.LittleEndian.Uint64(entry[gptEntryLast:]))
		}
	}
	if reaches >= uint64(g.sectors) {
		return fault.New(fault.DiskTableInvalid, "the partition table was made for a disk of %s, the disk has %s", g.amount(reaches), g.amount(uint64(g.sectors)-1)).
			WithHint("Make the disk that large again; nothing was written.")
	}
	g.first, g.last = int64(first), int64(last)
	span := g.span(len(g.entries))
	if first > last || g.first < gptPrimary+1+span || g.last >= g.usable() {
		return fault.New(fault.DiskTableInvalid, "the partition table gives sectors %d to %d to partitions, of %d to %d between its two copies",
			first, last, gptPrimary+1+span, g.usable()-1)
	}
	if at <= last && int64(at)+span > g.first {
		return fault.New(fault.DiskTableInvalid, "the partition table has its entries in sector %d, among those for partitions (%d to %d)", at, first, last)
	}
	if my := c.u64(gptMyLBA); my != gptPrimary && my <= last {
		return fault.New(fault.DiskTableInvalid, "the backup partition table has its header in sector %d, among those for partitions (%d to %d)", my, first, last)
	}
	return g.readPartitions()
}

// readPartitions reads the entries. A partition's number is its slot's.
func (g *gpt) readPartitions() error {
	number := 0
	for entry := range slices.Chunk(g.entries, g.entrySize) {
		number++
		if !used(entry) {
			continue
		}
		start, end := int64(binary.LittleEndian.Uint64(entry[gptEntryFirst:])), int64(binary.LittleEndian.Uint64(entry[gptEntryLast:]))
		if start < g.first || start > end || end > g.last {
			return fault.New(fault.DiskTableInvalid, "partition %d (sectors %d to %d) is not in the sectors for partitions (%d to %d)",
				number, uint64(start), end, g.first, g.last)
		}
		g.partitions = append(g.partitions, extent{number: number, start: start, size: end - start + 1, kind: gptKind(entry)})
	}
	sorted := slices.SortedFunc(slices.Values(g.partitions), func(a, b extent) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(sorted); i++ {
		if a, b := sorted[i-1], sorted[i]; b.start < a.end() {
			return fault.New(fault.DiskTableInvalid, "%s and %s overlap at sector %d", a, b, b.start)
		}
	}
	return nil
}

// used says whether an entry is in use: it has a type.
func used(entry []byte) bool { return [16]byte(entry) != [16]byte{} }

// amount writes the size of a disk whose last sector is the given one.
func (g *gpt) amount(last uint64) string {
	if last >= math.MaxInt64/uint64(g.sector) {
		return fmt.Sprintf("more than %d sectors", last)
	}
	size := (int64(last) + 1) * int64(g.sector)
	return fmt.Sprintf("%d bytes (%s)", size, formatBytes(size))
}

// agree says whether two copies are of the same table (compare_gpts in the
// kernel).
func agree(primary, backup gptCopy) bool {
	return backup.u64(gptAlternate) == gptPrimary &&
		bytes.Equal(primary.header[gptFirstUsable:gptEntriesLBA], backup.header[gptFirstUsable:gptEntriesLBA]) &&
		bytes.Equal(primary.header[gptEntryCount:gptMinHeader], backup.header[gptEntryCount:gptMinHeader])
}

// placeOfEntries returns the sector where the primary's entries belong. A sound
// header tells, unless it leads to the backup's (see rewrite); then, and where it
// is lost, they are recognised. They are in sector 2, or, where that is a boot
// loader's, right before the first usable sector; tools that move them there leave
// a copy behind, so the search begins at that end.
func (g *gpt) placeOfEntries(disk io.ReaderAt, primary gptCopy) int64 {
	const second = gptPrimary + 1
	if primary.header != nil {
		if at := primary.u64(gptEntriesLBA); at >= second && at <= uint64(g.first-g.span(len(g.entries))) {
			return int64(at)
		}
	}
	front := make([]byte, min(2*gptMaxEntries, (g.first-second)*int64(g.sector)))
	if _, err := disk.ReadAt(front, second*int64(g.sector)); err != nil {
		return second
	}
	for at := g.span(len(front)-len(g.entries)+1) - 1; at >= 0; at-- {
		if g.isOlder(front[at*int64(g.sector):][:len(g.entries)]) {
			return second + at
		}
	}
	return second
}

// isOlder says whether entries are those of the table but for the ends of
// partitions.
func (g *gpt) isOlder(entries []byte) bool {
	for i := 0; i < len(entries); i += g.entrySize {
		a, b := entries[i:][:g.entrySize], g.entries[i:][:g.entrySize]
		if !bytes.Equal(a[:gptEntryLast], b[:gptEntryLast]) || !bytes.Equal(a[gptEntryLast+8:], b[gptEntryLast+8:]) {
			return false
		}
	}
	return true
}

// readAreas reads what is where a table is written.
func (g *gpt) readAreas(disk io.ReaderAt) error {
	read := func(what string, lba int64, size int) (gptArea, error) {
		area := gptArea{what, lba * int64(g.sector), make([]byte, size)}
		if _, err := disk.ReadAt(area.now, area.offset); err != nil {
			return area, fault.Wrap(fault.DiskTableInvalid, err, "cannot read %s in sector %d", what, lba)
		}
		return area, nil
	}
	var errs [4]error
	g.primaryHeader, errs[0] = read("the header of the primary partition table", gptPrimary, g.sector)
	g.primaryEntries, errs[1] = read("the entries of the primary partition table", g.ownEntries, len(g.entries))
	g.backupHeader, errs[2] = read("the header of the backup partition table", g.sectors-1, g.sector)
	g.backupEntries, errs[3] = read("the entries of the backup partition table", g.usable(), len(g.entries))
	return cmp.Or(errs[:]...)
}

// span returns the number of sectors that many bytes take.
func (g *gpt) span(size int) int64 { return int64((size + g.sector - 1) / g.sector) }

func (g *gpt) sectorSize() int { return g.sector }

func (g *gpt) extents() []extent { return g.partitions }

// usable implements table: the place of the backup's entries, which end before
// its header in the last sector.
func (g *gpt) usable() int64 { return g.sectors - 1 - g.span(len(g.entries)) }

// room implements table.
func (g *gpt) room(e extent) (int64, obstacle) {
	for _, other := range g.mbrOthers {
		if other.start == e.start {
			return e.end(), obstacle{hybrid: true}
		}
	}
	end, by := g.usable(), obstacle{}
	for _, p := range g.partitions {
		if p.start > e.start && p.start < end {
			end, by = p.start, obstacle{partition: &p}
		}
	}
	return end, by
}

// resize implements table.
func (g *gpt) resize(e extent, end int64) []patch {
	entries := slices.Clone(g.entries)
	binary.LittleEndian.PutUint64(entries[(e.number-1)*g.entrySize+gptEntryLast:], uint64(end-1))
	d := gptDraft{gpt: *g}
	d.settle()
	d.rewrite(entries, end)
	d.measure()
	return d.patches
}

// mend implements table. A good backup that is not at the end of a grown disk is
// no damage: it moves when a partition grows.
func (g *gpt) mend() ([]patch, string) {
	d := gptDraft{gpt: *g}
	var mended []string
	note := func(what string, repair func()) {
		before := len(d.patches)
		if repair(); len(d.patches) > before {
			mended = append(mended, what)
		}
	}
	note("the primary partition table", d.settle)
	switch {
	case !g.backedUp:
		note("the backup partition table", func() { d.rewrite(g.entries, 0); d.measure() })
	case g.alternate == g.sectors-1:
		note("the protective MBR", d.measure)
	}
	return d.patches, strings.Join(mended, " and ")
}

// gptDraft is a table while it is patched: its areas hold what the disk has after
// the patches so far.
type gptDraft struct {
	gpt
	patches []patch
}

// put patches an area, from the first byte that differs to the last one.
func (d *gptDraft) put(area *gptArea, now []byte) {
	from, to := 0, len(now)
	for from < to && area.now[from] == now[from] {
		from++
	}
	for to > from && area.now[to-1] == now[to-1] {
		to--
	}
	if from == to {
		return
	}
	d.patches = append(d.patches, patch{Offset: area.offset + int64(from), Old: area.now[from:to], New: now[from:to], What: area.what})
	area.now = now
}

// makeHeader returns the header of a copy.
func (g *gpt) makeHeader(my, alternate, at, last int64, entries []byte) []byte {
	header := slices.Clone(g.header)
	le := binary.LittleEndian
	le.PutUint64(header[gptMyLBA:], uint64(my))
	le.PutUint64(header[gptAlternate:], uint64(alternate))
	le.PutUint64(header[gptLastUsable:], uint64(last))
	le.PutUint64(header[gptEntriesLBA:], uint64(at))
	le.PutUint32(header[gptEntriesCRC:], crc32.ChecksumIEEE(entries))
	le.PutUint32(header[gptHeaderCRC:], headerCRC(header))
	return header
}

// settle makes the primary sound with its entries at their own place, where it is
// bad or leads to the backup's. The copy that is the truth is not touched before
// the last write has made the other one sound.
func (d *gptDraft) settle() {
	d.put(&d.primaryEntries, d.entries)
	d.put(&d.primaryHeader, d.makeHeader(gptPrimary, d.alternate, d.ownEntries, d.last, d.entries))
}

// rewrite changes the entries, with a partition that is to end before the given
// sector, and has the backup at the end of the disk. The primary is sound after
// each write and during it: its header, one sector, leads to the entries of the
// new backup while its own are written.
func (d *gptDraft) rewrite(entries []byte, end int64) {
	backup, at, last := d.sectors-1, d.usable(), d.last
	if d.alternate != backup || end > last+1 {
		last = at - 1
	}
	d.put(&d.backupEntries, entries)
	d.put(&d.backupHeader, d.makeHeader(backup, gptPrimary, at, last, entries))
	if !bytes.Equal(d.primaryEntries.now, entries) {
		d.put(&d.primaryHeader, d.makeHeader(gptPrimary, backup, at, last, entries))
		d.put(&d.primaryEntries, entries)
	}
	d.put(&d.primaryHeader, d.makeHeader(gptPrimary, backup, d.ownEntries, last, entries))
}

// measure gives the protective entry the size of the disk, as far as its 32 bits
// reach (UEFI 2.10, 5.2.3). Many tools write the largest number for any disk; it
// stays.
func (d *gptDraft) measure() {
	size := min(d.sectors-gptPrimary, math.MaxUint32)
	if len(d.mbrOthers) == 0 && d.protective.size != size && d.protective.size != math.MaxUint32 {
		d.patches = append(d.patches, d.protective.endAt(gptPrimary+size, "the protective MBR"))
	}
}

// gptKind names an entry's type, of those in the UEFI specification (5.3.3) and
// the Discoverable Partitions Specification that root disks have.
func gptKind(entry []byte) string {
	switch id := guid(entry); id {
	case "c12a7328-f81f-11d2-ba4b-00a0c93ec93b":
		return "EFI"
	case "21686148-6449-6e6f-744e-656564454649":
		return "BIOS boot"
	case "9e1a2d38-c612-4316-aa26-8b49521e5a8b":
		return "PReP boot"
	case "bc13c2ff-59e6-4262-a352-b275fd6f7172":
		return "XBOOTLDR"
	case "0fc63daf-8483-4772-8e79-3d69d8477de4":
		return "Linux"
	case "4f68bce3-e8cd-4db1-96e7-fbcaf984b709":
		return "Linux root, amd64"
	case "b921b045-1df0-41c3-af44-4c6f280d3fae":
		return "Linux root, arm64"
	case "933ac7e1-2eb4-4f13-b844-0e14e2aef915":
		return "home"
	case "3b8f8425-20e0-4f3b-907f-1a25a76f98e8":
		return "srv"
	case "4d21b016-b534-45c2-a9fb-5c16e091fd2d":
		return "var"
	case "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f":
		return "swap"
	case "e6d6d379-f507-44c2-a23c-238f2a3df928":
		return "LVM"
	case "a19d880f-05fc-4d3b-a006-743f0f84911e":
		return "RAID"
	case "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7":
		return "Windows data"
	default:
		return "type " + id
	}
}

// guid writes the GUID at the start of b; its first three fields are
// little-endian (UEFI 2.10, appendix A).
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}
