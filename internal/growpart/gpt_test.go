// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
)

const gptHead = "label: gpt\nlabel-id: 5EED1234-0000-4000-8000-000000000001\nunit: sectors\n"

// arm64 is the template for arm64: EFI, /boot, swap, root.
const arm64 = gptHead +
	"disk1 : start=2048, size=1101824, type=uefi\n" +
	"disk2 : start=1103872, size=819200, type=linux\n" +
	"disk3 : start=1923072, size=524288, type=swap\n" +
	"disk4 : start=2447360, size=3842048, type=linux\n"

type gptLayout struct {
	size int64 // of the disk; 3 GiB
	root int
	make func(t testing.TB, d *image)
}

func (l gptLayout) image(t testing.TB) *image {
	t.Helper()
	size := l.size
	if size == 0 {
		size = 3 * gib
	}
	disk := openImage(t, size, "")
	l.make(t, disk)
	return disk
}

func bySfdisk(script string) func(testing.TB, *image) {
	return func(t testing.TB, d *image) { tool(t, script, "sfdisk", "--quiet", "--no-tell-kernel", d.Name()) }
}

func bySgdisk(args ...string) func(testing.TB, *image) {
	return func(t testing.TB, d *image) { tool(t, "", "sgdisk", append(slices.Clone(args), d.Name())...) }
}

func byParted(args ...string) func(testing.TB, *image) {
	return func(t testing.TB, d *image) {
		sector := fmt.Sprintf("PARTED_SECTOR_SIZE=%d", d.sector)
		tool(t, "", "env", append([]string{sector, "parted", "--script", d.Name(), "mklabel", "gpt"}, args...)...)
	}
}

// gptLayouts are tables whose root can have all that a larger disk has more.
func gptLayouts() map[string]gptLayout {
	return map[string]gptLayout{
		"arm64 template": {root: 4, make: bySfdisk(arm64)},
		"arm64 template by parted": {root: 4, make: byParted("mkpart", "efi", "fat32", "1MiB", "539MiB", "mkpart", "boot", "ext2", "539MiB", "939MiB",
			"mkpart", "swap", "linux-swap", "939MiB", "1195MiB", "mkpart", "root", "ext4", "1195MiB", "100%", "set", "1", "esp", "on")},
		"root alone":            {root: 1, make: bySgdisk("-n", "1:2048:0")},
		"root alone by parted":  {root: 1, make: byParted("mkpart", "root", "ext4", "1MiB", "100%")},
		"root alone by sfdisk":  {root: 1, make: bySfdisk(gptHead + "type=linux\n")},
		"Debian cloud image":    {root: 1, make: bySgdisk("-n", "14:2048:+3M", "-t", "14:ef02", "-n", "15:8192:+124M", "-t", "15:ef00", "-n", "1:262144:0", "-t", "1:8304")},
		"BIOS boot before 1 MB": {root: 2, make: bySgdisk("-a", "1", "-n", "1:34:2047", "-t", "1:ef02", "-n", "2:2048:0")},
		"4 entries":             {root: 2, make: bySgdisk("-S", "4", "-n", "1:2048:+100M", "-n", "2:0:0")},
		"4 entries by sfdisk":   {root: 1, make: bySfdisk(gptHead + "table-length: 4\ntype=linux\n")},
		"6 entries by sfdisk":   {root: 6, make: bySfdisk(gptHead + "table-length: 6\ndisk6 : type=linux\n")},
		"56 entries":            {root: 50, make: bySgdisk("-S", "56", "-n", "1:2048:+100M", "-n", "50:0:0")},
		"256 entries":           {root: 201, make: bySgdisk("-S", "256", "-n", "1:2048:+100M", "-n", "255:0:+8M", "-n", "201:0:0")},
		"slots out of order":    {root: 3, make: bySfdisk(gptHead + "disk5 : start=2048, size=499712, type=swap\ndisk2 : start=501760, size=20480, type=linux\ndisk3 : start=522240, size=5767168, type=linux\n")},
		"entries in sector 64": {root: 2, make: func(t testing.TB, d *image) {
			bySgdisk("-n", "1:2048:+100M", "-n", "2:0:0")(t, d)
			bySgdisk("-j", "64")(t, d) // leaves a copy in sector 2
		}},
		"root ends early": {root: 2, make: bySfdisk(gptHead + "disk1 : size=20480, type=linux\ndisk2 : size=4000000, type=linux\n")},
		"largest protective entry": {root: 4, make: func(t testing.TB, d *image) {
			bySfdisk(arm64)(t, d)
			poke(t, d, mbrEntries+entryLength, 0xff, 0xff, 0xff, 0xff)
		}},
		"CHS of the protective entry": {root: 4, make: func(t testing.TB, d *image) {
			bySfdisk(arm64)(t, d)
			poke(t, d, mbrEntries+entryLastCHS, 0x9f, 0x58, 0x87)
		}},
		"hybrid MBR": {root: 4, make: func(t testing.TB, d *image) {
			bySfdisk(arm64)(t, d)
			bySgdisk("-h", "1:2")(t, d)
		}},
		"names and attributes": {root: 2, make: bySgdisk("-n", "1:2048:+100M", "-c", "1:Größe €", "-A", "1:set:2", "-n", "2:0:0", "-c", "2:根目录 с данными", "-A", "2:set:0", "-A", "2:set:60", "-A", "2:set:63")},
	}
}

func poke(t testing.TB, d *image, offset int64, value ...byte) {
	t.Helper()
	if _, err := d.File.WriteAt(value, offset); err != nil {
		t.Fatal(err)
	}
}

// kernelReadsGPT is what Linux makes of a disk without `gpt` on its command line:
// efi_partition of block/partitions/efi.c. The backup is never looked at.
func kernelReadsGPT(disk io.ReaderAt, sector int, sectors int64) ([]extent, error) {
	le := binary.LittleEndian
	read := func(lba uint64, size int) []byte {
		data := make([]byte, size)
		if lba >= uint64(sectors) {
			return nil
		}
		if _, err := disk.ReadAt(data, int64(lba)*int64(sector)); err != nil {
			return nil
		}
		return data
	}
	mbr, header := read(0, 512), read(1, sector)
	if mbr == nil || header == nil || mbr[510] != 0x55 || mbr[511] != 0xaa {
		return nil, errors.New("no MBR")
	}
	protective := false
	for i := range 4 {
		e := mbr[446+16*i:][:16]
		protective = protective || e[4] == 0xee && le.Uint32(e[8:]) == 1
	}
	if !protective {
		return nil, errors.New("no protective entry")
	}
	if string(header[:8]) != "EFI PART" {
		return nil, errors.New("no signature")
	}
	size := le.Uint32(header[12:])
	if size < 92 || size > uint32(sector) {
		return nil, errors.New("header size")
	}
	summed := slices.Clone(header[:size])
	copy(summed[16:20], make([]byte, 4))
	if crc32.ChecksumIEEE(summed) != le.Uint32(header[16:]) {
		return nil, errors.New("header checksum")
	}
	first, last := le.Uint64(header[40:]), le.Uint64(header[48:])
	if le.Uint64(header[24:]) != 1 || first >= uint64(sectors) || last >= uint64(sectors) || last < first {
		return nil, errors.New("header's own or usable sectors")
	}
	count := le.Uint32(header[80:])
	if le.Uint32(header[84:]) != 128 || count == 0 || count > 32768 {
		return nil, errors.New("size or number of entries")
	}
	entries := read(le.Uint64(header[72:]), int(count)*128)
	if entries == nil || crc32.ChecksumIEEE(entries) != le.Uint32(header[88:]) {
		return nil, errors.New("checksum of the entries")
	}
	var found []extent
	for i := range min(int(count), 255) {
		e := entries[128*i:][:128]
		start, end := le.Uint64(e[32:]), le.Uint64(e[40:])
		if !bytes.Equal(e[:16], make([]byte, 16)) && start < uint64(sectors) && end < uint64(sectors) {
			found = append(found, extent{number: i + 1, start: int64(start), size: int64(end - start + 1)})
		}
	}
	return found, nil
}

// plain leaves out what the kernel does not tell.
func plain(extents []extent) []extent {
	var all []extent
	for _, e := range extents {
		all = append(all, extent{number: e.number, start: e.start, size: e.size})
	}
	return all
}

// judgeGPT has all tools verify a table.
func (d *image) judgeGPT(t testing.TB) sfdiskTable {
	t.Helper()
	if verdict := tool(t, "", "sgdisk", "--verify", d.Name()); !strings.Contains(verdict, "No problems found") {
		t.Errorf("sgdisk says:\n%s", verdict)
	}
	out := tool(t, "", "parted", "--script", "--machine", d.Name(), "unit", "s", "print")
	if want := fmt.Sprintf(":%ds:file:512:512:gpt", d.Size()/512); !strings.Contains(out, want) || strings.Contains(out, "Warning") {
		t.Errorf("parted says:\n%s", out)
	}
	now := d.judge(t)
	seen, err := kernelReadsGPT(d, 512, d.Size()/512)
	if err != nil || len(seen) != len(now.Partitions) {
		t.Errorf("the kernel sees %+v, %v", seen, err)
	}
	return now
}

func (d *image) isHybrid(t testing.TB) bool {
	return d.bytesAt(t, mbrEntries+mbrEntrySize+entryType, 1)[0] != 0
}

func (d *image) bytesAt(t testing.TB, offset int64, size int) []byte {
	t.Helper()
	data := make([]byte, size)
	if _, err := d.ReadAt(data, offset); err != nil {
		t.Fatal(err)
	}
	return data
}

// run does what a run does; it returns the plan.
func (d *image) run(t testing.TB, number int) target {
	t.Helper()
	todo := d.plan(t, number, 0)
	if err := apply(d, nextRun(t, d.read(t), number, 0)); err != nil {
		t.Fatal(err)
	}
	return todo
}

// sgdisk sleeps for a second after it has written, so a layout is made once.
func TestGPTLayouts(t *testing.T) {
	t.Parallel()
	for name, layout := range gptLayouts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := layout.image(t)
			for _, size := range []int64{4 * gib, 8*gib - 512, 10*gib + 12345*512, 100 * gib, 3072 * gib} {
				t.Run(fmt.Sprintf("to %d", size), func(t *testing.T) { testGrowGPT(t, disk.copy(t), layout.root, size) })
			}
			sizes := []int64{9 * gib}
			if disk.plan(t, layout.root, 0).patches != nil { // the new backup's place meets the old one's
				sizes = append(sizes, 3*gib, 3*gib+512, 3*gib+20*512)
			}
			for _, size := range sizes {
				t.Run(fmt.Sprintf("every prefix to %d", size), func(t *testing.T) { testGPTPrefixes(t, disk.copy(t), layout.root, size) })
			}
		})
	}
}

// A layout grows to the last whole MiB of the disk, in one run, as all tools see
// it; only what has to change does; a second run finds nothing to do (G5, G12,
// G14).
func testGrowGPT(t *testing.T, disk *image, root int, size int64) {
	old := disk.judgeGPT(t)
	before := disk.blocks(t)
	disk.truncate(t, size)
	if patches, what := disk.read(t).mend(); len(patches) > 0 {
		t.Errorf("mends %s of a disk that has only grown", what)
	}
	todo := disk.run(t, root)
	if todo.reason != "" || todo.warning != nil {
		t.Errorf("reason %q, warning %v, want none", todo.reason, todo.warning)
	}
	checkOnlyIntended(t, disk, before, root)
	now := disk.judgeGPT(t)
	entries := binary.LittleEndian.Uint32(disk.bytesAt(t, 512+gptEntryCount, 4))
	end := (size - 512 - int64(entries)*128) / mib * mib / 512
	for i, p := range now.Partitions {
		want := old.Partitions[i]
		if strings.HasSuffix(p.Node, fmt.Sprintf("disk%d", root)) {
			want.Size = end - want.Start
		}
		if p != want {
			t.Errorf("partition = %+v, want %+v", p, want)
		}
	}
	if now.ID != old.ID || len(now.Partitions) != len(old.Partitions) {
		t.Errorf("table = %+v, was %+v", now, old)
	}
	le := binary.LittleEndian
	sizeInMBR := func(data []byte) uint32 { return le.Uint32(data[mbrEntries+entryLength:]) }
	want := uint32(min(size/512-1, 1<<32-1))
	if was := sizeInMBR(before[0]); was == 1<<32-1 || disk.isHybrid(t) {
		want = was
	}
	if got := sizeInMBR(sectorAt(t, disk, 0)); got != want {
		t.Errorf("the protective entry has %d sectors, want %d", got, want)
	}
	if again := nextRun(t, disk.read(t), root, 0); len(again) != 0 {
		t.Errorf("the next run writes %+v", again)
	}
}

// checkOnlyIntended compares a disk with its state before it was grown, byte for
// byte.
func checkOnlyIntended(t *testing.T, disk *image, before map[int64][]byte, root int) {
	t.Helper()
	le, sector := binary.LittleEndian, int64(disk.sector)
	header := disk.bytesAt(t, sector, disk.sector)
	size := int64(le.Uint32(header[gptEntrySize:]))
	length := int64(le.Uint32(header[gptEntryCount:])) * size
	at := int64(le.Uint64(header[gptEntriesLBA:])) * sector
	last := disk.Size()/sector - 1
	backupAt := (last - (length+sector-1)/sector) * sector
	var old []byte
	for start, block := range before {
		if start <= sector && sector+gptMinHeader <= start+int64(len(block)) {
			old = block[sector-start:]
		}
	}
	if was := int64(le.Uint64(old[gptEntriesLBA:])) * sector; was != at {
		t.Errorf("the primary's entries are at %d, were at %d", at, was)
	}
	ranges := [][2]int64{
		{sector + gptHeaderCRC, 4}, {sector + gptAlternate, 8}, {sector + gptLastUsable, 8}, {sector + gptEntriesCRC, 4},
		{at + int64(root-1)*size + gptEntryLast, 8},
		{backupAt, length}, {last * sector, sector},
	}
	if !disk.isHybrid(t) {
		ranges = append(ranges, [2]int64{mbrEntries + entryLastCHS, 3}, [2]int64{mbrEntries + entryLength, 4})
	}
	for _, offset := range disk.changed(t, before) {
		if !slices.ContainsFunc(ranges, func(r [2]int64) bool { return offset >= r[0] && offset < r[0]+r[1] }) {
			t.Errorf("byte %d changed", offset)
		}
	}
	if !bytes.Equal(disk.bytesAt(t, at, int(length)), disk.bytesAt(t, backupAt, int(length))) {
		t.Error("the entries of the backup differ")
	}
	backup := disk.bytesAt(t, last*sector, disk.sector)
	for field, want := range map[int]int64{gptMyLBA: last, gptAlternate: 1, gptEntriesLBA: backupAt / sector} {
		if got := le.Uint64(backup[field:]); got != uint64(want) {
			t.Errorf("byte %d of the backup header: %d, want %d", field, got, want)
		}
	}
	for _, field := range [][2]int{{gptHeaderCRC, 4}, {gptMyLBA, 16}, {gptEntriesLBA, 8}} {
		copy(backup[field[0]:][:field[1]], header[field[0]:])
	}
	if !bytes.Equal(backup, header) {
		t.Error("the backup header differs from the primary in more than its place")
	}
}

// torn returns what can be on the disk when the power fails during a patch of
// several sectors: only its first or its last ones are written.
func torn(p patch, sector int64) []patch {
	var parts []patch
	end := p.Offset + int64(len(p.New))
	for at := (p.Offset/sector + 1) * sector; at < end; at += sector {
		k := at - p.Offset
		parts = append(parts, patch{p.Offset, p.Old[:k], p.New[:k], p.What}, patch{at, p.Old[k:], p.New[k:], p.What})
	}
	return parts
}

// After each write, and within each, Linux finds every partition, the root with
// its old size or its new one; sfdisk and sgdisk read the table; and the next run
// comes to the same bytes (G11).
func testGPTPrefixes(t *testing.T, disk *image, root int, size int64) {
	disk.truncate(t, size)
	todo := disk.plan(t, root, 0)
	base := &overlay{disk: disk}
	whole := base.patched(t, todo.patches)
	old, err := kernelReadsGPT(disk, 512, size/512)
	if err != nil {
		t.Fatal(err)
	}
	grown := plain(disk.read(t).extents())
	for i := range grown {
		if grown[i].number == root {
			grown[i].size = todo.end - grown[i].start
		}
	}
	isNew, switches := false, 0
	check := func(what string, view *overlay) {
		t.Helper()
		seen, err := kernelReadsGPT(view, 512, size/512)
		if err != nil {
			t.Errorf("%s Linux finds no partitions: %v", what, err)
		}
		if now := slices.Equal(seen, grown); now != isNew {
			switches++
			isNew = now
		}
		if !isNew && !slices.Equal(seen, old) {
			t.Errorf("%s Linux sees %+v", what, seen)
		}
		table, err := readTable(view, 512, size/512)
		if err != nil {
			t.Fatalf("%s the table is refused: %v", what, err)
		}
		rest := nextRun(t, table, root, 0)
		if end := view.patched(t, rest); !end.equal(t, whole) {
			t.Errorf("%s the next run comes to another end by %+v", what, rest)
		}
	}
	for k := range len(todo.patches) + 1 {
		view := base.patched(t, todo.patches[:k])
		what := fmt.Sprintf("after %d of %d writes", k, len(todo.patches))
		check(what, view)
		written := disk.copy(t)
		if err := apply(written, todo.patches[:k]); err != nil {
			t.Fatal(err)
		}
		want := old
		if isNew {
			want = grown
		}
		for i, p := range toolsRead(t, written).Partitions {
			if p.Size != want[i].size || p.Start != want[i].start {
				t.Errorf("%s sfdisk sees %+v, want %+v", what, p, want[i])
			}
		}
		if k == len(todo.patches) {
			break
		}
		for _, part := range torn(todo.patches[k], 512) {
			check(fmt.Sprintf("during write %d, with %d bytes at %d,", k+1, len(part.New), part.Offset), view.patched(t, []patch{part}))
		}
	}
	if switches != 1 || !isNew {
		t.Errorf("Linux sees the root's size change %d times", switches)
	}
}

// toolsRead has sgdisk and sfdisk read a table in any state.
func toolsRead(t *testing.T, disk *image) sfdiskTable {
	t.Helper()
	var exit *exec.ExitError
	out, err := exec.Command("sgdisk", "--verify", disk.Name()).CombinedOutput()
	if err != nil && (!errors.As(err, &exit) || !exit.Exited()) {
		t.Errorf("sgdisk: %v\n%s", err, out)
	}
	return disk.sfdisk(t)
}

// checkConverges checks that after and within each of a run's writes the table can
// be read, by Linux too from when it can first, and that the next run comes to the
// same bytes.
func checkConverges(t *testing.T, disk *image, number int) {
	t.Helper()
	sectors := disk.Size() / 512
	patches := nextRun(t, disk.read(t), number, 0)
	base := &overlay{disk: disk}
	whole := base.patched(t, patches)
	linux := false
	check := func(what string, view *overlay) {
		t.Helper()
		if _, err := kernelReadsGPT(view, 512, sectors); err == nil {
			linux = true
		} else if linux {
			t.Errorf("%s Linux finds no partitions any more: %v", what, err)
		}
		table, err := readTable(view, 512, sectors)
		if err != nil {
			t.Fatalf("%s the table is refused: %v", what, err)
		}
		if rest := nextRun(t, table, number, 0); !view.patched(t, rest).equal(t, whole) {
			t.Errorf("%s the next run comes to another end by %+v", what, rest)
		}
	}
	for k := range len(patches) + 1 {
		view := base.patched(t, patches[:k])
		check(fmt.Sprintf("after %d of %d writes", k, len(patches)), view)
		if k == len(patches) {
			break
		}
		for _, part := range torn(patches[k], 512) {
			check(fmt.Sprintf("during write %d, with %d bytes at %d,", k+1, len(part.New), part.Offset), view.patched(t, []patch{part}))
		}
	}
	if !linux {
		t.Error("Linux finds no partitions in the end")
	}
}

// A copy that is damaged is made anew from the other one, on a disk that has
// grown as on one that has not, and through any interruption (G5, G11).
func TestGPTDamage(t *testing.T) {
	t.Parallel()
	const last = 3<<30/512 - 1
	zero := func(from, to int64) func(*testing.T, *image) {
		return func(t *testing.T, d *image) { poke(t, d, from*512, make([]byte, (to-from+1)*512)...) }
	}
	flip := func(offset int64) func(*testing.T, *image) {
		return func(t *testing.T, d *image) { poke(t, d, offset, d.bytesAt(t, offset, 1)[0]^0x10) }
	}
	const primary, backup = "the primary partition table", "the backup partition table"
	for name, test := range map[string]struct {
		damage func(*testing.T, *image)
		what   string
	}{
		"no damage":                     {func(*testing.T, *image) {}, ""},
		"primary header lost":           {zero(1, 1), primary},
		"primary header's checksum":     {flip(512 + gptDiskGUID), primary},
		"primary entries lost":          {zero(2, 33), primary},
		"primary entries' checksum":     {flip(1024 + 128 + 60), primary},
		"primary lost":                  {zero(1, 33), primary},
		"backup header lost":            {zero(last, last), backup},
		"backup header's checksum":      {flip(last*512 + gptDiskGUID), backup},
		"backup entries' checksum":      {flip((last-32)*512 + 128 + 60), backup},
		"backup lost":                   {zero(last-32, last), backup},
		"backup of another state":       {func(t *testing.T, d *image) { resign(t, d, last, gptFirstUsable, 40, 8) }, backup},
		"backup belongs elsewhere":      {func(t *testing.T, d *image) { resign(t, d, last, gptAlternate, 2, 8) }, backup},
		"primary names no backup":       {func(t *testing.T, d *image) { resign(t, d, 1, gptAlternate, 0, 8) }, backup},
		"primary names itself":          {func(t *testing.T, d *image) { resign(t, d, 1, gptAlternate, 1, 8) }, backup},
		"primary names a partition":     {func(t *testing.T, d *image) { resign(t, d, 1, gptAlternate, 4000, 8) }, backup},
		"primary leads to the backup's": {func(t *testing.T, d *image) { resign(t, d, 1, gptEntriesLBA, last-32, 8) }, primary},
	} {
		for script, table := range map[string]string{"root at the end": arm64, "room behind the root": strings.Replace(arm64, "size=3842048", "size=3000000", 1)} {
			t.Run(name+", "+script, func(t *testing.T) {
				t.Parallel()
				sound := openImage(t, 3*gib, table)
				damaged := sound.copy(t)
				test.damage(t, damaged)
				for _, size := range []int64{3 * gib, 3*gib + 512, 9 * gib} {
					disk, want := damaged.copy(t), sound.copy(t)
					disk.truncate(t, size)
					want.truncate(t, size)
					checkConverges(t, disk, 4)
					patches, what := disk.read(t).mend()
					if what != test.what || (len(patches) == 0) != (what == "") {
						t.Errorf("%d bytes: mends %q by %d writes, want %q", size, what, len(patches), test.what)
					}
					grows := len(want.run(t, 4).patches) > 0
					disk.run(t, 4)
					if again := nextRun(t, disk.read(t), 4, 0); len(again) != 0 {
						t.Errorf("%d bytes: the next run writes %+v", size, again)
					}
					moves := grows || size > 3*gib && test.what == backup
					if moves || size == 3*gib {
						disk.judgeGPT(t)
					}
					if moves != grows {
						continue // the sound one's backup is where it was
					}
					const oldBackup = (last - 32) * 512
					for _, offset := range disk.changed(t, want.blocks(t)) {
						if offset < oldBackup || offset >= min(3*gib, size-33*512) {
							t.Errorf("%d bytes: byte %d is not as on a disk without damage", size, offset)
						}
					}
				}
			})
		}
	}
}

// resign changes a number in a header of a table and makes its checksums right.
func resign(t *testing.T, d *image, lba int64, field int, value uint64, size int) {
	t.Helper()
	at := lba * int64(d.sector)
	header := d.bytesAt(t, at, d.sector)
	copy(header[field:][:size], binary.LittleEndian.AppendUint64(nil, value))
	put(t, d, lba, sealed(header))
}

// sealed makes the checksum of a header right.
func sealed(header []byte) []byte {
	length := min(max(int(binary.LittleEndian.Uint32(header[12:])), 20), len(header))
	copy(header[16:20], make([]byte, 4))
	binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header[:length]))
	return header
}

// resignEntry changes a number in an entry of the primary and makes all checksums
// right.
func resignEntry(t *testing.T, d *image, number, field int, value uint64) {
	t.Helper()
	entries := d.bytesAt(t, 1024, 128*128)
	binary.LittleEndian.PutUint64(entries[(number-1)*128+field:], value)
	poke(t, d, 1024, entries...)
	resign(t, d, 1, gptEntriesCRC, uint64(crc32.ChecksumIEEE(entries)), 4)
}

// A table that was left unfinished is completed when the disk has grown again
// meanwhile, also where the places of the old backup and the new one overlap (G11).
func TestGPTGrowsAgainWhenUnfinished(t *testing.T) {
	t.Parallel()
	disk := openImage(t, 3*gib, arm64)
	disk.truncate(t, 9*gib)
	patches := disk.plan(t, 4, 4*gib).patches
	for k := 1; k < len(patches); k++ {
		for _, more := range []int64{512, 10 * 512, 33 * 512, gib} {
			t.Run(fmt.Sprintf("after %d writes, %d bytes more", k, more), func(t *testing.T) {
				t.Parallel()
				disk := disk.copy(t)
				if err := apply(disk, patches[:k]); err != nil {
					t.Fatal(err)
				}
				disk.truncate(t, 9*gib+more)
				checkConverges(t, disk, 4)
				disk.run(t, 4)
				if got, want := disk.judgeGPT(t).size(t, 4), (9*gib+more-33*512)/mib*2048-2447360; got != want {
					t.Errorf("the root has %d sectors, want %d", got, want)
				}
				if again := nextRun(t, disk.read(t), 4, 0); len(again) != 0 {
					t.Errorf("the next run writes %+v", again)
				}
			})
		}
	}
}

// The size of the protective entry alone is corrected where the backup is at the
// end of the disk; and a primary that leads to entries elsewhere gets them back
// where they were.
func TestGPTMendsTheRest(t *testing.T) {
	t.Parallel()
	disk := openImage(t, 3*gib, arm64)
	disk.truncate(t, 9*gib)
	disk.run(t, 4)
	want := disk.blocks(t)
	poke(t, disk, mbrEntries+entryLength, 1, 2, 3, 0)
	patches, what := disk.read(t).mend()
	if what != "the protective MBR" || len(patches) != 1 || len(patches[0].New) != 4 {
		t.Errorf("mends %q by %+v", what, patches)
	}
	poke(t, disk, 512, 0)
	if _, what := disk.read(t).mend(); what != "the primary partition table and the protective MBR" {
		t.Errorf("mends %q", what)
	}
	disk.run(t, 4)
	if changed := disk.changed(t, want); len(changed) > 0 {
		t.Errorf("%d bytes differ", len(changed))
	}

	// Less than the tools use by themselves.
	limited := openImage(t, 3*gib, strings.Replace(arm64, "unit:", "last-lba: 6289500\nunit:", 1))
	want = limited.blocks(t)
	poke(t, limited, 3*gib-512, 0)
	limited.run(t, 4)
	if changed := limited.changed(t, want); len(changed) > 0 {
		t.Errorf("%d bytes differ", len(changed))
	}

	moved := gptLayouts()["entries in sector 64"].image(t)
	poke(t, moved, 1024, bytes.Repeat([]byte("boot"), 62*128)...) // a boot loader
	want = moved.blocks(t)
	for _, lost := range []int64{1, 64} { // the header, or entries
		poke(t, moved, lost*512, make([]byte, 512)...)
		checkConverges(t, moved, 2)
		moved.run(t, 2)
		if changed := moved.changed(t, want); len(changed) > 0 {
			t.Errorf("sector %d lost: bytes %v differ: the entries are not back where they were", lost, changed)
		}
	}
}

// A damaged table is refused, with what is wrong, and not written to.
func TestGPTRefuses(t *testing.T) {
	t.Parallel()
	const last = 3<<30/512 - 1
	header := func(field int, value uint64, size int) func(*testing.T, *image) {
		return func(t *testing.T, d *image) { resign(t, d, 1, field, value, size) }
	}
	// The backup would save it.
	alone := func(field int, value uint64, size int) func(*testing.T, *image) {
		return func(t *testing.T, d *image) {
			resign(t, d, 1, field, value, size)
			poke(t, d, last*512, 0)
		}
	}
	entry := func(number, field int, value uint64) func(*testing.T, *image) {
		return func(t *testing.T, d *image) { resignEntry(t, d, number, field, value) }
	}
	truncate := func(size int64) func(*testing.T, *image) {
		return func(t *testing.T, d *image) { d.truncate(t, size) }
	}
	const smaller = "the partition table was made for a disk of "
	for name, test := range map[string]struct {
		spoil func(*testing.T, *image)
		want  string
	}{
		"both copies lost": {func(t *testing.T, d *image) { poke(t, d, 512, 0); poke(t, d, last*512, 0) },
			"neither copy of the partition table is good: the primary in sector 1: there is no header; the backup in sector 6291455: there is no header"},
		"both copies lost, grown": {func(t *testing.T, d *image) { poke(t, d, 512, 0); poke(t, d, last*512, 0); d.truncate(t, 9*gib) },
			"the backup in sector 18874367: there is no header; the backup in sector 6291455: there is no header"},
		"primary lost, backup nowhere": {func(t *testing.T, d *image) {
			poke(t, d, 512, 0)
			poke(t, d, mbrEntries+entryLength, 0xff, 0xff, 0xff, 0xff)
			d.truncate(t, 9*gib)
		}, "neither copy"},
		"primary lost, backup refers to another": {func(t *testing.T, d *image) {
			poke(t, d, 512, 0)
			resign(t, d, last, gptAlternate, 7, 8)
		}, "the backup in sector 6291455: its header is the backup of one in sector 7"},
		"header lies": {func(t *testing.T, d *image) { poke(t, d, 512+gptDiskGUID, 1); poke(t, d, last*512+gptMyLBA, 1) },
			"the primary in sector 1: its header has the checksum 0x"},
		"backup of another table": {func(t *testing.T, d *image) {
			poke(t, d, 1024, 1) // the primary's header is good
			resign(t, d, last, gptDiskGUID, 1, 8)
		}, "it is of another table, 00000001-0000-0000-8000-000000000001"},
		"two backups, of different tables": {func(t *testing.T, d *image) {
			other := openImage(t, 9*gib, strings.Replace(arm64, "5EED1234", "00000000", 1))
			d.truncate(t, 9*gib)
			poke(t, d, 9*gib-33*512, other.bytesAt(t, 9*gib-33*512, 33*512)...)
			poke(t, d, 512, 0)
		}, "the backups in sectors 18874367 and 6291455 are of different tables, 00000000-0000-4000-8000-000000000001 and 5eed1234-"},
		"disk smaller":             {truncate(2 * gib), smaller + "3221225472 bytes (3.0 GiB), the disk has 2147483648 bytes (2.0 GiB)"},
		"disk a sector smaller":    {truncate(3*gib - 512), smaller + "3221225472 bytes (3.0 GiB), the disk has 3221224960 bytes (3.0 GiB)"},
		"disk very small":          {truncate(16 * 512), "neither copy"},
		"disk of two sectors":      {truncate(1024), "neither copy"},
		"backup beyond all disks":  {header(gptAlternate, 1<<64-1, 8), smaller + "more than 18446744073709551615 sectors"},
		"backup beyond int64":      {header(gptAlternate, 1<<63, 8), smaller + "more than 9223372036854775808 sectors"},
		"usable beyond the disk":   {header(gptLastUsable, 1<<40-1, 8), smaller + "562949953421312 bytes (512.0 TiB)"},
		"partition beyond disks":   {entry(4, gptEntryLast, 1<<64-2), smaller + "more than"},
		"usable ends before start": {header(gptLastUsable, 1, 8), "gives sectors 2048 to 1 to partitions, of 34 to 6291422"},
		"usable over the entries":  {header(gptFirstUsable, 33, 8), "gives sectors 33 to"},
		"usable begins nowhere":    {header(gptFirstUsable, 1<<63, 8), "gives sectors 9223372036854775808 to"},
		"usable over the backup":   {header(gptLastUsable, last-32, 8), "gives sectors 2048 to 6291423 to partitions"},
		"entries in a partition": {func(t *testing.T, d *image) {
			poke(t, d, 4096*512, d.bytesAt(t, 1024, 16384)...)
			resign(t, d, 1, gptEntriesLBA, 4096, 8)
		}, "has its entries in sector 4096, among those for partitions"},
		"partitions overlap":      {entry(2, gptEntryFirst, 1103871), "partition 1 (EFI) and partition 2 (Linux) overlap at sector 1103871"},
		"partitions are the same": {entry(2, gptEntryFirst, 2048), "overlap at sector 2048"},
		"partition inside out":    {entry(2, gptEntryLast, 1103871), "partition 2 (sectors 1103872 to 1103871) is not in the sectors for partitions (2048 to 6291422)"},
		"partition too early":     {entry(1, gptEntryFirst, 2047), "partition 1 (sectors 2047 to"},
		"partition begins beyond": {entry(1, gptEntryFirst, 1<<63+1), "partition 1 (sectors 9223372036854775809 to"},
		"partition too late":      {entry(4, gptEntryLast, last-32), "partition 4 (sectors 2447360 to 6291423) is not"},
		"header too small":        {alone(gptHeaderSize, 91, 4), "its header has 91 bytes, want 92 to 512"},
		"header too large":        {alone(gptHeaderSize, 513, 4), "its header has 513 bytes"},
		"header of other sector":  {alone(gptMyLBA, 2, 8), "its header is for sector 2"},
		"entries too small":       {alone(gptEntrySize, 64, 4), "it has entries of 64 bytes"},
		"entries of odd size":     {alone(gptEntrySize, 192, 4), "it has entries of 192 bytes"},
		"entries too large":       {alone(gptEntrySize, 8192, 4), "it has entries of 8192 bytes"},
		"no entries":              {alone(gptEntryCount, 0, 4), "it has 0 entries"},
		"too many entries":        {alone(gptEntryCount, 8193, 4), "it has 8193 entries of 128 bytes, want 1 to 8192"},
		"very many entries":       {alone(gptEntryCount, 1<<32-1, 4), "it has 4294967295 entries"},
		"entries beyond disks":    {alone(gptEntriesLBA, 1<<64-1, 8), "its entries begin at sector 18446744073709551615 of a disk with 6291456"},
		"entries reach out":       {alone(gptEntriesLBA, last-30, 8), "its entries begin at sector 6291425 of a disk"},
		"checksum of entries":     {alone(gptEntriesCRC, 5, 4), "its header says 0x00000005"},
		"protective entry elsewhere": {func(t *testing.T, d *image) { poke(t, d, mbrEntries+entryStart, 2) },
			"the MBR says that the disk has a GPT, but not that it begins at sector 1"},
		"backup header among the partitions": {func(t *testing.T, d *image) {
			poke(t, d, 4096*512, d.bytesAt(t, last*512, 512)...)
			resign(t, d, 4096, gptMyLBA, 4096, 8)
			poke(t, d, last*512, 0)
			resign(t, d, 1, gptAlternate, 4096, 8)
			poke(t, d, 1024, 1)
		}, "the backup partition table has its header in sector 4096"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := openImage(t, 3*gib, arm64)
			test.spoil(t, disk)
			_, err := readTable(disk, 512, disk.Size()/512)
			if err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != fault.DiskTableInvalid {
				t.Errorf("error = %v\nwant %q with code %s", err, test.want, fault.DiskTableInvalid)
			}
		})
	}
}

// Any number in a header or an entry, with right checksums, and any one byte
// changed without, is refused or leads to a plan that gives sound tables.
func TestGPTHostileNumbers(t *testing.T) {
	t.Parallel()
	const last = 3<<30/512 - 1
	disk := gptLayouts()["arm64 template by parted"].image(t)
	disk.truncate(t, 9*gib)
	sectors := disk.Size() / 512
	refused, planned := 0, 0
	content := &overlay{at: map[int64][]byte{}, sectors: sectors, sector: 512}
	for offset, block := range disk.blocks(t) {
		for i, sector := range slices.Collect(slices.Chunk(block, 512)) {
			content.at[offset/512+int64(i)] = sector
		}
	}
	try := func(what string, at map[int64][]byte) {
		t.Run(what, func(t *testing.T) {
			view := content.patched(t, nil)
			maps.Copy(view.at, at)
			table, err := readTable(view, 512, sectors)
			if err == nil {
				planned++
				checkGrowth(t, view, table)
				return
			}
			refused++
			if code := fault.As(err).Code; code != fault.DiskTableInvalid {
				t.Errorf("code %s of %v", code, err)
			}
		})
	}
	lost := make([]byte, 512)
	values := []uint64{0, 1, 2, 3, 31, 33, 34, 64, 91, 92, 127, 128, 129, 255, 256, 511, 512, 513, 2047, 2048, 8192, 8193, 6289407, 6289408, 6291421, 6291422, 6291423,
		last - 1, last, last + 1, uint64(sectors) - 34, uint64(sectors) - 33, uint64(sectors) - 1, uint64(sectors), 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1 << 54, 1<<55 - 1, 1<<63 - 1, 1 << 63, 1<<64 - 512, 1<<64 - 1}
	fields := map[int]int{gptHeaderSize: 4, gptMyLBA: 8, gptAlternate: 8, gptFirstUsable: 8, gptLastUsable: 8, gptEntriesLBA: 8, gptEntryCount: 4, gptEntrySize: 4}
	for _, lba := range []int64{1, last} {
		for field, size := range fields {
			for _, value := range values {
				header := sectorAt(t, disk, lba)
				copy(header[field:][:size], binary.LittleEndian.AppendUint64(nil, value))
				at := map[int64][]byte{lba: sealed(header)}
				if lba == last {
					at[1] = lost
				}
				try(fmt.Sprintf("byte %d of header %d is %d", field, lba, value), at)
			}
		}
	}
	for _, field := range []int{gptEntryFirst, gptEntryLast} {
		for _, number := range []int{0, 3, 4} {
			for _, value := range values {
				entries := disk.bytesAt(t, 1024, 128*128)
				binary.LittleEndian.PutUint64(entries[number*128+field:], value)
				header := sectorAt(t, disk, 1)
				binary.LittleEndian.PutUint32(header[gptEntriesCRC:], crc32.ChecksumIEEE(entries))
				try(fmt.Sprintf("byte %d of entry %d is %d", field, number+1, value), map[int64][]byte{1: sealed(header), 2: entries[:512], 3: entries[512:1024]})
			}
		}
	}
	for lba, r := range map[int64][2]int{0: {mbrEntries, mbrEntries + mbrEntrySize}, 1: {0, gptMinHeader}, 2: {384, 512}} {
		for offset := r[0]; offset < r[1]; offset++ {
			for _, flip := range []byte{0x01, 0x80} {
				sector := sectorAt(t, disk, lba)
				sector[offset] ^= flip
				try(fmt.Sprintf("byte %d of sector %d flipped by %d", offset, lba, flip), map[int64][]byte{lba: sector})
			}
		}
	}
	if refused < 100 || planned < 100 {
		t.Errorf("%d refused, %d planned: the test tests nothing", refused, planned)
	}
}

// What is in the way is named, and nothing is written then, not even the backup
// (G6, G12).
func TestGPTBlockedAndRequested(t *testing.T) {
	t.Parallel()
	const swapLast = gptHead + "start=2048, size=5000000, type=linux\nstart=5501952, size=788480, type=swap\n"
	const lowerSlot = gptHead + "disk1 : start=5003264, type=home\ndisk2 : start=2048, size=5001216, type=linux\n"
	hybrid := func(t testing.TB, d *image) {
		bySfdisk(arm64)(t, d)
		bySgdisk("-h", "4:1")(t, d)
	}
	for name, test := range map[string]struct {
		make      func(testing.TB, *image)
		root      int
		disk      int64
		requested int64
		end       int64 // sector; 0 for no change
		reason    string
		code      fault.Code
	}{
		"swap follows":                 {make: bySfdisk(lowerSlot), root: 2, disk: 9 * gib, reason: "blocked by partition 1 (home)", code: fault.DiskBlocked},
		"swap follows, nothing to win": {make: bySfdisk(lowerSlot), root: 2, disk: 3 * gib},
		"gap before swap":              {make: bySfdisk(swapLast), root: 1, disk: 9 * gib, end: 5501952 / 2048 * 2048, reason: "blocked by partition 2 (swap)", code: fault.DiskBlocked},
		"gap before swap, disk full":   {make: bySfdisk(swapLast), root: 1, disk: 3 * gib, end: 5501952 / 2048 * 2048},
		"hybrid MBR with the root": {make: hybrid, root: 4, disk: 9 * gib, code: fault.DiskUnsupported,
			reason: "partition 4 (Linux) is in a hybrid MBR"},
		"hybrid MBR, nothing to win":      {make: hybrid, root: 4, disk: 3 * gib},
		"the disk has not grown":          {make: bySfdisk(arm64), root: 4, disk: 3 * gib},
		"a MiB more less a sector":        {make: bySfdisk(arm64), root: 4, disk: 3*gib + mib - 512},
		"a MiB more is no gain":           {make: bySfdisk(arm64), root: 4, disk: 3*gib + mib},
		"two MiB more less the backup's":  {make: bySfdisk(arm64), root: 4, disk: 3*gib + mib + 32*512},
		"two MiB more":                    {make: bySfdisk(arm64), root: 4, disk: 3*gib + mib + 33*512, end: 3*gib/512 + 2048},
		"requested size":                  {make: bySfdisk(arm64), root: 4, disk: 9 * gib, requested: 4 * gib, end: 4 * gib / 512},
		"requested size is there":         {make: bySfdisk(arm64), root: 4, disk: 9 * gib, requested: 3 * gib},
		"requested size is smaller":       {make: bySfdisk(arm64), root: 4, disk: 9 * gib, requested: gib, reason: "asked for 1.0 GiB of the disk, the partition ends at 3.0 GiB"},
		"requested size is the disk's":    {make: bySfdisk(arm64), root: 4, disk: 9 * gib, requested: 9 * gib, end: 9*gib/512 - 2048},
		"requested size exceeds the disk": {make: bySfdisk(arm64), root: 4, disk: 9 * gib, requested: 20 * gib, end: 9*gib/512 - 2048, reason: "asked for 20.0 GiB of the disk, which has 9.0 GiB"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := openImage(t, 3*gib, "")
			test.make(t, disk)
			disk.truncate(t, test.disk)
			before := disk.blocks(t)
			todo := disk.plan(t, test.root, test.requested)
			if todo.reason != test.reason {
				t.Errorf("reason = %q, want %q", todo.reason, test.reason)
			}
			if code := codeOf(todo.warning); code != test.code {
				t.Errorf("warning = %v, want code %q", todo.warning, test.code)
			}
			if (len(todo.patches) > 0) != (test.end > 0) {
				t.Errorf("patches = %+v", todo.patches)
			}
			if err := apply(disk, nextRun(t, disk.read(t), test.root, test.requested)); err != nil {
				t.Fatal(err)
			}
			if test.end == 0 {
				if changed := disk.changed(t, before); len(changed) > 0 {
					t.Errorf("%d bytes were written, want none", len(changed))
				}
				return
			}
			table := disk.judgeGPT(t)
			for _, p := range table.Partitions {
				if strings.HasSuffix(p.Node, fmt.Sprintf("disk%d", test.root)) && p.Start+p.Size != test.end {
					t.Errorf("the partition ends at %d, want %d", p.Start+p.Size, test.end)
				}
			}
			if again := nextRun(t, disk.read(t), test.root, test.requested); len(again) != 0 {
				t.Errorf("the next run writes %+v", again)
			}
		})
	}
}

// A disk with sectors of 4096 bytes counts everything in those (G13, F3).
func TestGPTSectorsOf4096(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(testing.TB, *image){
		"fdisk": func(t testing.TB, d *image) {
			tool(t, "g\nn\n1\n\n+100M\nn\n2\n\n\nw\n", "fdisk", "-b", "4096", d.Name())
		},
		"parted": byParted("mkpart", "a", "fat32", "1MiB", "101MiB", "mkpart", "b", "ext4", "101MiB", "100%"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := openImage(t, 3*gib, "")
			disk.sector = 4096
			make(t, disk)
			disk.truncate(t, 3*gib)
			before := disk.blocks(t)
			disk.truncate(t, 11*gib+4096)
			root := disk.read(t).extents()[1]
			disk.run(t, 2)
			checkOnlyIntended(t, disk, before, 2)
			listed := tool(t, "", "fdisk", "-b", "4096", "-l", disk.Name())
			want := fmt.Sprintf("disk2 %d %d %d", root.start, 11*gib/4096-257, 11*gib/4096-256-root.start)
			if !strings.Contains(strings.Join(strings.Fields(listed), " "), want) {
				t.Errorf("fdisk sees\n%s\nwant a line with %q", listed, want)
			}
			if verdict := tool(t, "v\nq\n", "fdisk", "-b", "4096", disk.Name()); !strings.Contains(verdict, "No errors detected") {
				t.Errorf("fdisk says:\n%s", verdict)
			}
			out := tool(t, "", "env", "PARTED_SECTOR_SIZE=4096", "parted", "--script", "--machine", disk.Name(), "unit", "s", "print")
			if want := fmt.Sprintf("2:%ds:%ds:", root.start, 11*gib/4096-257); strings.Contains(out, "Warning") || !strings.Contains(out, want) {
				t.Errorf("parted says:\n%s", out)
			}
			if seen, err := kernelReadsGPT(disk, 4096, disk.Size()/4096); err != nil || !slices.Equal(seen, plain(disk.read(t).extents())) {
				t.Errorf("Linux sees %+v, %v", seen, err)
			}
			if again := nextRun(t, disk.read(t), 2, 0); len(again) != 0 {
				t.Errorf("the next run writes %+v", again)
			}
		})
	}
}

// An old GPT under an MBR without a protective entry is neither read nor written.
func TestStaleGPT(t *testing.T) {
	t.Parallel()
	disk := openImage(t, 3*gib, arm64)
	tool(t, shipped, "sfdisk", "--quiet", "--no-tell-kernel", "--wipe", "never", disk.Name())
	header := sectorAt(t, disk, 1)
	if !bytes.HasPrefix(header, []byte(gptSignature)) {
		t.Fatal("sfdisk has wiped the GPT")
	}
	disk.truncate(t, 9*gib)
	before := disk.blocks(t)
	disk.run(t, 6)
	if size := disk.sfdisk(t).size(t, 6); size != 9*gib/512-1503232 {
		t.Errorf("the root has %d sectors", size)
	}
	for _, offset := range disk.changed(t, before) {
		if offset >= 512 && offset < 34*512 || offset >= 3*gib-33*512 {
			t.Errorf("byte %d changed", offset)
		}
	}
}

func TestGPTKinds(t *testing.T) {
	t.Parallel()
	types := [][2]string{{"uefi", "EFI"}, {"21686148-6449-6E6F-744E-656564454649", "BIOS boot"}, {"9E1A2D38-C612-4316-AA26-8B49521E5A8B", "PReP boot"},
		{"BC13C2FF-59E6-4262-A352-B275FD6F7172", "XBOOTLDR"}, {"linux", "Linux"}, {"4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "Linux root, amd64"},
		{"B921B045-1DF0-41C3-AF44-4C6F280D3FAE", "Linux root, arm64"}, {"home", "home"}, {"3B8F8425-20E0-4F3B-907F-1A25A76F98E8", "srv"},
		{"4D21B016-B534-45C2-A9FB-5C16E091FD2D", "var"}, {"swap", "swap"}, {"lvm", "LVM"}, {"raid", "RAID"},
		{"EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "Windows data"}, {"01234567-89AB-CDEF-FEDC-BA9876543210", "type 01234567-89ab-cdef-fedc-ba9876543210"}}
	script := gptHead
	for _, kind := range types {
		script += "size=2048, type=" + kind[0] + "\n"
	}
	for i, e := range openImage(t, 3*gib, script).read(t).extents() {
		if want := (extent{number: i + 1, start: int64(i+1) * 2048, size: 2048, kind: types[i][1]}); e != want {
			t.Errorf("partition = %+v, want %+v", e, want)
		}
	}
}

// A machine with a GPT grows as one with an MBR does, whatever step the power
// fails before, in the same boot or after another one (G5, G11, G12).
func TestGrowWithGPT(t *testing.T) {
	t.Parallel()
	machine := func(t *testing.T) *vm {
		v := newVM(t)
		tool(t, gptHead+"disk1 : start=2048, size=497664, type=linux\ndisk5 : start=501760, size=999424, type=swap\ndisk6 : start=1503232, size=4786176, type=linux\n",
			"sfdisk", "--quiet", "--no-tell-kernel", "--wipe", "always", v.image.Name())
		if err := os.RemoveAll(v.Path("/sys/devices/" + vdaPath + "/vda2")); err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := machine(t)
	v.image.truncate(t, 10*gib)
	const before, after = 4786176 * 512, 10*gib - mib - 1503232*512
	result, err := v.grow(Options{})
	want := Result{Disk: "/dev/vda", Partition: "/dev/vda6", Number: 6, FilesystemType: "ext4", DiskBytes: 10 * gib,
		PartitionBytes: Change{before, after}, FilesystemBytes: Change{before, after}, Changed: true, Note: "grew 2.3 GiB -> 9.3 GiB"}
	if err != nil || result != want || v.steps != 8 {
		t.Errorf("grow = %+v, %v with %d steps\nwant %+v, nil with 6 writes and 2 resizes", result, err, v.steps, want)
	}
	v.image.judgeGPT(t)
	for range 2 {
		v.steps = 0
		again, err := v.grow(Options{})
		if err != nil || again.Changed || again.Note != "nothing to grow" || v.steps != 0 {
			t.Errorf("grow = %+v, %v with %d steps, want nothing to grow", again, err, v.steps)
		}
		v.boot()
	}
	poke(t, v.image, 512, 0)
	dry, err := v.grow(Options{DryRun: true})
	mended, err2 := v.grow(Options{})
	if err := errors.Join(err, err2); err != nil || dry.Note != "repaired the primary partition table" || !mended.Changed || mended != dry {
		t.Errorf("grow = %+v, after the dry run %+v, %v, want the primary repaired", mended, dry, err)
	}

	for cut := range 8 {
		for _, reboot := range []bool{false, true} {
			t.Run(fmt.Sprintf("cut before step %d, reboot %v", cut+1, reboot), func(t *testing.T) {
				t.Parallel()
				v := machine(t)
				v.image.truncate(t, 4*gib)
				v.allow = cut
				if _, err := v.grow(Options{}); !errors.Is(err, errPowerCut) {
					t.Errorf("error = %v, want the power cut", err)
				}
				if reboot {
					v.boot()
				}
				v.allow = -1
				result, err := v.grow(Options{})
				end := 4*gib - mib - v.root.start
				if err != nil || result.FilesystemBytes.After != end || result.PartitionBytes.After != end || !result.Changed {
					t.Errorf("next run = %+v, %v, want all of the disk", result, err)
				}
				v.image.judgeGPT(t)
				v.fsck()
			})
		}
	}
}
