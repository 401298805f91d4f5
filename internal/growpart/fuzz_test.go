// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
)

var update = flag.Bool("update", false, "write the fuzz seeds anew from tables made by sfdisk, sgdisk and parted")

// seed is a disk as a fuzzer is to change it: only the bytes that count.
type seed interface {
	// bytes returns the seed.
	bytes() []byte
	// disk returns the disk it stands for.
	disk() *overlay
}

// checkFuzz takes a disk. It is refused with a code, or every partition can be
// grown through tables that are sound for this package and for Linux. Neither
// takes more than a bounded number of reads and amount of memory.
func checkFuzz(t testing.TB, disk *overlay) {
	t.Helper()
	const most = 64 << 20
	reader := &countingReader{ReaderAt: disk}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	table, err := readTable(reader, disk.sector, disk.sectors)
	if err == nil {
		extents := table.extents()
		for _, root := range extents[max(0, len(extents)-2):] {
			planPartition(table, root, 0)
		}
		table.mend()
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > most {
		t.Errorf("reading the table takes %d bytes of memory, want at most %d", got, most)
	}
	if reader.calls > 2*maxLogical || reader.bytes > 16<<20 {
		t.Errorf("reading the table takes %d reads of %d bytes", reader.calls, reader.bytes)
	}
	if err != nil {
		if code := fault.As(err).Code; code != fault.DiskTableInvalid && code != fault.DiskUnsupported {
			t.Errorf("code %s of %v", code, err)
		}
		return
	}
	checkGrowth(t, disk, table)
	checkLinux(t, disk, table)
}

type countingReader struct {
	io.ReaderAt
	calls, bytes int
}

func (r *countingReader) ReadAt(p []byte, offset int64) (int, error) {
	r.calls++
	r.bytes += len(p)
	return r.ReaderAt.ReadAt(p, offset)
}

// mbrSeed is the number of a disk's last sector (32 bit), then for each sector
// with a table its number (32 bit) and its bytes from the first entry to the
// signature.
type mbrSeed []byte

const mbrSeedRecord = 4 + mbrSize - mbrEntries

func (s mbrSeed) bytes() []byte { return s }

func (s mbrSeed) disk() *overlay {
	if len(s) < 4 || len(s) > 4+300*mbrSeedRecord {
		return nil
	}
	disk := &overlay{at: map[int64][]byte{}, sectors: int64(binary.LittleEndian.Uint32(s)) + 1, sector: 512}
	for s = s[4:]; len(s) >= mbrSeedRecord; s = s[mbrSeedRecord:] {
		disk.at[int64(binary.LittleEndian.Uint32(s))] = slices.Concat(make([]byte, mbrEntries), s[4:mbrSeedRecord])
	}
	return disk
}

// mbrSeedOf makes a seed of a disk that has grown to a size.
func mbrSeedOf(t testing.TB, disk *image, size int64) mbrSeed {
	t.Helper()
	s := binary.LittleEndian.AppendUint32(nil, uint32(size/512-1))
	for _, lba := range recordsOf(t, disk) {
		s = binary.LittleEndian.AppendUint32(s, uint32(lba))
		s = append(s, disk.bytesAt(t, lba*512+mbrEntries, mbrSize-mbrEntries)...)
	}
	return s
}

// recordsOf returns the sectors with a table.
func recordsOf(t testing.TB, disk *image) []int64 {
	t.Helper()
	sectors := []int64{0}
	for _, record := range disk.read(t).(*mbr).chain {
		sectors = append(sectors, record.lba)
	}
	return sectors
}

func FuzzMBR(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		if disk := mbrSeed(data).disk(); disk != nil {
			checkFuzz(t, disk)
		}
	})
}

// ebrSeed is a chain of extended boot records in an extended partition from
// sector 2048 to 6291455 of a disk of 4 GiB: for each record flags (8 bit), how
// far it is after the one before (32 bit), the beginning of its two entries (4 and
// 16 bytes each, without CHS), and its third entry's size (8 bit). The flags keep
// a fuzzer in the chain: it need not find out what leads to the next record.
type ebrSeed []byte

const (
	ebrNoSignature = 1 << iota
	ebrOwnLink     // the link is as the entry says, not to the next record
	ebrOwnSize     // so is the partition's size, else it ends before the next record
)

const (
	ebrSeedRecord    = 1 + 4 + 9 + 9 + 1
	ebrFirst, ebrEnd = 2048, 6291456
)

func (s ebrSeed) bytes() []byte { return s }

func (s ebrSeed) disk() *overlay {
	const most = maxLogical + 10
	if len(s) > most*ebrSeedRecord {
		return nil
	}
	disk := &overlay{at: map[int64][]byte{}, sectors: 4 * gib / 512, sector: 512}
	le := binary.LittleEndian
	entry := func(kind byte, start, size uint32) []byte {
		e := []byte{0, 0, 0, 0, kind, 0, 0, 0}
		return le.AppendUint32(le.AppendUint32(e, start), size)
	}
	record := func(entries ...[]byte) []byte {
		sector := make([]byte, 512)
		copy(sector[mbrEntries:], slices.Concat(entries...))
		copy(sector[mbrSignature:], "\x55\xaa")
		return sector
	}
	disk.at[0] = record(entry(5, ebrFirst, ebrEnd-ebrFirst))
	at := int64(ebrFirst)
	for ; len(s) >= ebrSeedRecord; s = s[ebrSeedRecord:] {
		flags, third := s[0], uint32(s[ebrSeedRecord-1])
		distance := int64(0)
		if len(s) >= 2*ebrSeedRecord {
			distance = int64(le.Uint32(s[ebrSeedRecord+1:]))
		}
		next := at + distance
		first := entry(s[5], le.Uint32(s[6:]), le.Uint32(s[10:]))
		if flags&ebrOwnSize == 0 && distance > 0 {
			le.PutUint32(first[entryLength:], uint32(distance)-min(uint32(distance), le.Uint32(s[6:])))
		}
		second := entry(s[14], le.Uint32(s[15:]), le.Uint32(s[19:]))
		if flags&ebrOwnLink == 0 {
			if second = entry(0, 0, 0); distance > 0 {
				second = entry(5, uint32(next-ebrFirst), uint32(distance))
			}
		}
		sector := record(first, second, entry(byte(third), third, third))
		if flags&ebrNoSignature != 0 {
			sector[mbrSignature] = 0
		}
		disk.at[at] = sector
		at = next
	}
	return disk
}

// ebrSeedOf makes a seed of the chain of a disk. Whatever the records' first
// sector, it becomes ebrFirst.
func ebrSeedOf(t testing.TB, disk *image) ebrSeed {
	t.Helper()
	var s ebrSeed
	before := int64(0)
	for i, lba := range recordsOf(t, disk)[1:] {
		flags := byte(ebrOwnSize)
		if i%3 == 2 {
			flags = 0
		}
		distance := uint32(0)
		if i > 0 {
			distance = uint32(lba - before)
		}
		before = lba
		record := disk.bytesAt(t, lba*512+mbrEntries, 2*mbrEntrySize)
		s = append(s, flags)
		s = binary.LittleEndian.AppendUint32(s, distance)
		for entry := range slices.Chunk(record, mbrEntrySize) {
			s = append(s, entry[entryType])
			s = append(s, entry[entryStart:]...)
		}
		s = append(s, 0)
	}
	return s
}

func FuzzEBR(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		if disk := ebrSeed(data).disk(); disk != nil {
			checkFuzz(t, disk)
		}
	})
}

// gptSeed is a disk with a GPT: flags (8 bit), the number of its last sector (32
// bit), four MBR entries, the primary header and the backup's (92 bytes each), then
// entries of 128 bytes. The headers' own places are the first sector and, by the
// flags, the last one or the one the primary names; the entries are where each
// header says. The flags also say which checksums are made right.
type gptSeed []byte

const (
	gptBadPrimary    = 1 << iota // the checksum of the primary header is as it is
	gptBadEntries                // that of its entries
	gptBadBackup                 // of the backup header
	gptBadBackups                // of its entries
	gptAtAlternate               // the backup is where the primary says
	gptOthersEntries             // the backup's entries have their second half only
	gptLarge                     // sectors of 4096 bytes
	gptNoCopy                    // there are no entries of the backup
)

const gptSeedFixed = 1 + 4 + 4*mbrEntrySize + 2*gptMinHeader

func (s gptSeed) bytes() []byte { return s }

func (s gptSeed) disk() *overlay {
	const most = 64
	if len(s) < gptSeedFixed || len(s) > gptSeedFixed+most*gptMinEntry {
		return nil
	}
	le := binary.LittleEndian
	flags := s[0]
	disk := &overlay{at: map[int64][]byte{}, sectors: int64(le.Uint32(s[1:])) + 1, sector: 512}
	if flags&gptLarge != 0 {
		disk.sector = 4096
	}
	put := func(lba uint64, data []byte) {
		for chunk := range slices.Chunk(data, disk.sector) {
			if lba < uint64(disk.sectors) {
				disk.at[int64(lba)] = append(slices.Clone(chunk), make([]byte, disk.sector-len(chunk))...)
			}
			lba++
		}
	}
	mbr, headers, entries := s[5:][:4*mbrEntrySize], s[5+4*mbrEntrySize:gptSeedFixed], s[gptSeedFixed:]
	put(0, slices.Concat(make([]byte, mbrEntries), mbr, []byte("\x55\xaa")))
	primary, backup := slices.Clone(headers[:gptMinHeader]), slices.Clone(headers[gptMinHeader:])
	at := uint64(disk.sectors - 1)
	if flags&gptAtAlternate != 0 {
		at = le.Uint64(primary[gptAlternate:])
	}
	put(le.Uint64(primary[gptEntriesLBA:]), entries)
	// A second copy before the partitions is left out: which of the two is the
	// primary's own is not to be known while its header leads to the backup's.
	if place := le.Uint64(backup[gptEntriesLBA:]); flags&gptNoCopy == 0 && place >= le.Uint64(primary[gptFirstUsable:]) {
		others := slices.Clone(entries)
		if flags&gptOthersEntries != 0 {
			clear(others[:len(others)/2])
		}
		put(place, others)
	}
	// The entries go in first, so that they never hide a header; what they are is
	// read back for the checksum, as far as a table is read at all.
	seal := func(header []byte, badHeader, badEntries bool) {
		length := uint64(le.Uint32(header[gptEntryCount:])) * uint64(le.Uint32(header[gptEntrySize:]))
		from := le.Uint64(header[gptEntriesLBA:])
		if !badEntries && length <= gptMaxEntries && from < uint64(disk.sectors) {
			array := make([]byte, length)
			if _, err := disk.ReadAt(array, int64(from)*int64(disk.sector)); err == nil {
				le.PutUint32(header[gptEntriesCRC:], crc32.ChecksumIEEE(array))
			}
		}
		if size := le.Uint32(header[gptHeaderSize:]); !badHeader && size >= gptMinHeader && size <= uint32(disk.sector) {
			clear(header[gptHeaderCRC:][:4])
			le.PutUint32(header[gptHeaderCRC:], crc32.ChecksumIEEE(append(slices.Clone(header), make([]byte, size-gptMinHeader)...)))
		}
	}
	put(gptPrimary, primary)
	put(at, backup)
	seal(primary, flags&gptBadPrimary != 0, flags&gptBadEntries != 0)
	seal(backup, flags&gptBadBackup != 0, flags&gptBadBackups != 0)
	put(at, backup)
	put(gptPrimary, primary)
	return disk
}

// gptSeedOf makes a seed of a disk of which a size is to be seen.
func gptSeedOf(t testing.TB, disk *image, size int64) gptSeed {
	t.Helper()
	sector := int64(disk.sector)
	last := disk.Size()/sector - 1
	flags := byte(0)
	if size > disk.Size() {
		flags |= gptAtAlternate
	}
	if sector == 4096 {
		flags |= gptLarge
	}
	s := binary.LittleEndian.AppendUint32([]byte{flags}, uint32(size/sector-1))
	s = append(s, disk.bytesAt(t, mbrEntries, 4*mbrEntrySize)...)
	s = append(s, disk.bytesAt(t, sector, gptMinHeader)...)
	s = append(s, disk.bytesAt(t, last*sector, gptMinHeader)...)
	header := s[5+4*mbrEntrySize:]
	at := int64(binary.LittleEndian.Uint64(header[gptEntriesLBA:]))
	length := int(binary.LittleEndian.Uint32(header[gptEntryCount:]) * binary.LittleEndian.Uint32(header[gptEntrySize:]))
	entries := bytes.TrimRight(disk.bytesAt(t, at*sector, length), "\x00")
	return append(s, entries[:min(len(entries), 20*gptMinEntry)]...)
}

func FuzzGPT(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		if disk := gptSeed(data).disk(); disk != nil {
			checkFuzz(t, disk)
		}
	})
}

// fuzzSeeds are the tables of this package's tests, by target and name.
func fuzzSeeds(t *testing.T) map[string]seed {
	t.Helper()
	seeds := map[string]seed{}
	add := func(target, name string, s seed) {
		name = strings.NewReplacer(" ", "-", ":", "", ",", "", "'", "").Replace(name)
		seeds[filepath.Join(target, name)] = s
	}
	for name, layout := range layouts() {
		disk := layout.make(t)
		add("FuzzMBR", name, mbrSeedOf(t, disk, 9*gib))
		if len(recordsOf(t, disk)) > 1 {
			add("FuzzEBR", name, ebrSeedOf(t, disk))
		}
	}
	many := dosHead + "disk2 : type=5\n"
	for i := range 56 {
		many += fmt.Sprintf("disk%d : size=%d, type=%x\n", i+5, 20480+2048*i, 0x80+i%4)
	}
	add("FuzzEBR", "56 logical partitions", ebrSeedOf(t, openImage(t, 3*gib, many)))
	for name, layout := range gptLayouts() {
		disk := layout.image(t)
		add("FuzzGPT", name, gptSeedOf(t, disk, 9*gib))
	}
	full := openImage(t, 3*gib, arm64)
	add("FuzzGPT", "full", gptSeedOf(t, full, 3*gib))
	for name, size := range map[string]int64{"full, primary lost": 3 * gib, "primary lost": 9 * gib} {
		lost := gptSeedOf(t, full, size)
		lost[0] |= gptBadPrimary
		lost[5+4*mbrEntrySize] = 0
		add("FuzzGPT", name, lost)
	}
	large := crashLayouts()["GPT 4096"].make(t)
	add("FuzzGPT", "4096", gptSeedOf(t, large, 9*gib))
	return seeds
}

// The seeds that are checked in are such tables, and each is read, so that the
// fuzzer begins beyond the first checks.
func TestFuzzSeeds(t *testing.T) {
	t.Parallel()
	for name, s := range fuzzSeeds(t) {
		path := filepath.Join("testdata", "fuzz", name)
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\n", s.bytes()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%v; make it with -update", err)
		}
		disk := s.disk()
		if disk == nil {
			t.Fatalf("%s is no seed", name)
		}
		table, err := readTable(disk, disk.sector, disk.sectors)
		if err != nil {
			t.Errorf("%s is refused: %v", name, err)
			continue
		}
		checkGrowth(t, disk, table)
		checkLinux(t, disk, table)
	}
}
