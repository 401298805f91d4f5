// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
)

const dosHead = "label: dos\nlabel-id: 0x5eed1234\nunit: sectors\n"

// shipped is the x86 template: 1 /boot, 2 extended, 5 swap, 6 root. The installer
// begins the extended partition two sectors before its first logical one.
const shipped = dosHead +
	"disk1 : start=2048, size=497664, type=83, bootable\n" +
	"disk2 : start=501758, size=5787650, type=5\n" +
	"disk5 : start=501760, size=999424, type=82\n" +
	"disk6 : start=1503232, size=4786176, type=83\n"

// layouts are tables with the number of the root partition, all on a disk of
// 3 GiB, of which they leave the last MiB at most.
func layouts() map[string]layout {
	const sectors = 6291456
	return map[string]layout{
		"shipped by the installer": {script: shipped, root: 6},
		"record of the root two sectors before it": {script: shipped, root: 6, alter: func(t *testing.T, d *image) {
			moveRecord(t, d, 1503231, 1503230)
		}},
		"record of the root directly after swap": {script: shipped, root: 6, alter: func(t *testing.T, d *image) {
			moveRecord(t, d, 1503231, 501760+999424)
		}},
		"made by sfdisk alone": {script: dosHead + "disk1 : size=499712, type=83, bootable\ndisk2 : type=5\ndisk5 : size=999424, type=82\ndisk6 : type=83\n", root: 6},
		"made by parted": {root: 6, alter: func(t *testing.T, d *image) {
			tool(t, "", "parted", "--script", d.Name(), "mklabel msdos mkpart primary ext2 1MiB 244MiB set 1 boot on "+
				"mkpart extended 245MiB 3071MiB mkpart logical linux-swap 246MiB 734MiB mkpart logical ext4 735MiB 3071MiB")
			tool(t, "", "sfdisk", "--quiet", "--disk-id", d.Name(), "0x5eed1234") // parted's is random
		}},
		"type 0f": {script: strings.Replace(shipped, "type=5\n", "type=f\n", 1), root: 6},
		"type 85": {script: strings.Replace(shipped, "type=5\n", "type=85\n", 1), root: 6},
		"CloudStack 4.11: 5, 6, 7": {root: 7, script: dosHead + "disk1 : size=120000, type=83, bootable\ndisk2 : type=5\n" +
			"disk5 : size=999424, type=82\ndisk6 : size=1000000, type=83\ndisk7 : type=83\n"},
		"root is the first logical":        {script: dosHead + "disk1 : size=499712, type=83\ndisk2 : type=5\ndisk5 : type=83\n", root: 5},
		"extended in the third slot":       {script: dosHead + "disk1 : size=100000, type=83\ndisk2 : size=100000, type=82\ndisk3 : type=f\ndisk5 : type=83\n", root: 5},
		"unaligned, of the days of CHS":    {script: dosHead + fmt.Sprintf("disk1 : start=63, size=498015, type=83\ndisk2 : start=498078, size=%d, type=5\ndisk5 : start=498141, size=999424, type=82\ndisk6 : start=1497636, type=83\n", sectors-498078), root: 6},
		"primary root":                     {script: dosHead + "disk1 : size=499712, type=83\ndisk2 : type=83, bootable\n", root: 2},
		"primary root, slots out of order": {script: dosHead + "disk3 : start=2048, size=499712, type=82\ndisk1 : start=501760, type=83\n", root: 1},
		"filler for CHS everywhere": {script: shipped, root: 6, alter: func(t *testing.T, d *image) {
			fillCHS(t, d)
		}},
	}
}

type layout struct {
	script string
	root   int
	alter  func(*testing.T, *image)
}

func (l layout) make(t *testing.T) *image {
	t.Helper()
	disk := openImage(t, 3*gib, l.script)
	if l.alter != nil {
		l.alter(t, disk)
		disk.judge(t)
	}
	return disk
}

// moveRecord moves an extended boot record, as other tools would have placed it:
// the root stays where it is.
func moveRecord(t *testing.T, d *image, from, to int64) {
	t.Helper()
	record, previous := sectorAt(t, d, from), sectorAt(t, d, 501758)
	entry := record[mbrEntries:]
	binary.LittleEndian.PutUint32(entry[entryStart:], uint32(int64(binary.LittleEndian.Uint32(entry[entryStart:]))+from-to))
	link := previous[mbrEntries+mbrEntrySize:]
	binary.LittleEndian.PutUint32(link[entryStart:], uint32(to-501758))
	binary.LittleEndian.PutUint32(link[entryLength:], uint32(int64(binary.LittleEndian.Uint32(link[entryLength:]))+from-to))
	put(t, d, from, make([]byte, 512))
	put(t, d, to, record)
	put(t, d, 501758, previous)
}

func fillCHS(t *testing.T, d *image) {
	t.Helper()
	for _, lba := range []int64{0, 501758, 1503231} {
		sector := sectorAt(t, d, lba)
		for i := range 4 {
			if e := sector[mbrEntries+i*mbrEntrySize:][:mbrEntrySize]; e[entryType] != 0 {
				copy(e[1:4], "\xfe\xff\xff")
				copy(e[entryLastCHS:], "\xfe\xff\xff")
			}
		}
		put(t, d, lba, sector)
	}
}

func sectorAt(t *testing.T, d *image, lba int64) []byte {
	t.Helper()
	sector := make([]byte, d.sector)
	if _, err := d.ReadAt(sector, lba*int64(d.sector)); err != nil {
		t.Fatal(err)
	}
	return sector
}

func put(t *testing.T, d *image, lba int64, sector []byte) {
	t.Helper()
	if _, err := d.WriteAt(sector, lba*int64(d.sector)); err != nil {
		t.Fatal(err)
	}
}

// Every layout grows to the last whole MiB of disks of several sizes, as sfdisk
// sees it; nothing but the sizes in the table changes; a second run finds
// nothing to do (F1, F2, G6, G14).
func TestGrowTable(t *testing.T) {
	t.Parallel()
	for name, layout := range layouts() {
		for _, size := range []int64{4 * gib, 8*gib - 1, 10*gib + 12345*512, 100 * gib, 2047 * gib} {
			t.Run(fmt.Sprintf("%s to %d", name, size), func(t *testing.T) {
				t.Parallel()
				disk := layout.make(t)
				old := disk.judge(t)
				if todo := disk.plan(t, layout.root, 0); len(todo.patches) != 0 {
					t.Errorf("patches for a disk that is full: %+v", todo.patches)
				}
				before := disk.blocks(t)
				boot := sectorAt(t, disk, 0)
				size = size / 512 * 512
				disk.truncate(t, size)

				todo := disk.plan(t, layout.root, 0)
				if todo.reason != "" || todo.warning != nil {
					t.Errorf("reason %q, warning %v, want none", todo.reason, todo.warning)
				}
				disk.apply(t, todo)

				now := disk.judge(t)
				for i, p := range now.Partitions {
					want := old.Partitions[i]
					if number := p.Node[strings.LastIndex(p.Node, "disk")+4:]; number == fmt.Sprint(layout.root) || p.Type == "5" || p.Type == "f" || p.Type == "85" {
						want.Size = size/mib*2048 - want.Start
					}
					if p != want {
						t.Errorf("partition = %+v, want %+v", p, want)
					}
				}
				if now.ID != old.ID || len(now.Partitions) != len(old.Partitions) {
					t.Errorf("table = %+v, was %+v", now, old)
				}
				if got := sectorAt(t, disk, 0); !bytes.Equal(got[:mbrEntries], boot[:mbrEntries]) {
					t.Error("boot code or disk id changed")
				}
				for _, offset := range disk.changed(t, before) {
					if !slices.ContainsFunc(todo.patches, func(p patch) bool { return offset >= p.Offset && offset < p.Offset+int64(len(p.New)) }) {
						t.Errorf("byte %d changed without a patch", offset)
					}
				}
				for _, p := range todo.patches {
					checkPatch(t, p)
				}
				if again := disk.plan(t, layout.root, 0); len(again.patches) != 0 || again.reason != "" {
					t.Errorf("second plan = %+v, want none", again)
				}
			})
		}
	}
}

// checkPatch makes sure that a patch stays in one sector and changes the last
// sector's CHS and the number of sectors only.
func checkPatch(t *testing.T, p patch) {
	t.Helper()
	in := (p.Offset%512 - mbrEntries) % mbrEntrySize
	switch {
	case in == entryLength && len(p.New) == 4 && len(p.Old) == 4:
	case in == entryLastCHS && len(p.New) == 11 && bytes.Equal(p.Old[3:7], p.New[3:7]):
	default:
		t.Errorf("patch %+v is not of the end CHS and the size of an entry", p)
	}
}

// The order is: container, link, partition; and a value that stands for no CHS
// stays.
func TestPatchesOfShippedLayout(t *testing.T) {
	t.Parallel()
	disk := layouts()["filler for CHS everywhere"].make(t)
	disk.truncate(t, 10*gib)
	var got []string
	for _, p := range disk.plan(t, 6, 0).patches {
		got = append(got, fmt.Sprintf("%s: byte %d, %d -> %d", p.What, p.Offset,
			binary.LittleEndian.Uint32(p.Old), binary.LittleEndian.Uint32(p.New)))
	}
	end := 10 * gib / 512
	want := []string{
		fmt.Sprintf("extended partition 2 in the MBR: byte %d, 5787650 -> %d", 446+16+12, end-501758),
		fmt.Sprintf("link to partition 6 in sector 501758: byte %d, 4786177 -> %d", 501758*512+446+16+12, end-1503231),
		fmt.Sprintf("partition 6 in sector 1503231: byte %d, 4786176 -> %d", 1503231*512+446+12, end-1503232),
	}
	if !slices.Equal(got, want) {
		t.Errorf("patches:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// After each write alone the table is one sfdisk accepts, the partition has its
// old or its new size, and the next run comes to the same bytes (G11).
func TestEveryPrefixIsValid(t *testing.T) {
	t.Parallel()
	for name, layout := range layouts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			whole := layout.make(t)
			whole.truncate(t, 9*gib)
			todo := whole.plan(t, layout.root, 0)
			oldSize := whole.judge(t).size(t, layout.root)
			whole.apply(t, todo)
			newSize := whole.judge(t).size(t, layout.root)
			if oldSize == newSize {
				t.Fatal("the partition did not grow")
			}
			want := whole.blocks(t)

			for cut := range len(todo.patches) {
				disk := layout.make(t)
				disk.truncate(t, 9*gib)
				if err := apply(disk, todo.patches[:cut]); err != nil {
					t.Fatal(err)
				}
				if got := disk.judge(t).size(t, layout.root); got != oldSize {
					t.Errorf("after %d of %d writes the partition has %d sectors, want the old %d", cut, len(todo.patches), got, oldSize)
				}
				rest := disk.plan(t, layout.root, 0)
				if len(rest.patches) != len(todo.patches)-cut {
					t.Errorf("after %d of %d writes the next run has %d", cut, len(todo.patches), len(rest.patches))
				}
				disk.apply(t, rest)
				if changed := disk.changed(t, want); len(changed) != 0 {
					t.Errorf("after %d writes and another run %d bytes differ", cut, len(changed))
				}
			}
		})
	}
}

// What is in the way is named, and space before it is used (G6).
func TestBlockedAndRequested(t *testing.T) {
	t.Parallel()
	const swapLast = dosHead + "disk1 : start=2048, size=499712, type=83\ndisk2 : start=501760, size=5000000, type=83\ndisk3 : start=5501952, size=789504, type=82\n"
	const logicalSwapLast = dosHead + "disk1 : start=2048, size=499712, type=83\ndisk2 : start=501760, size=5789696, type=5\n" +
		"disk5 : start=503808, size=4000000, type=83\ndisk6 : start=4506624, size=1784832, type=82\n"
	const gap = dosHead + "disk1 : start=2048, size=1000000, type=83\ndisk2 : start=4196352, size=2095104, type=82\n"
	const extendedLast = dosHead + "disk1 : start=2048, size=1000000, type=83\ndisk2 : start=1003520, type=5\ndisk5 : type=82\n"
	const primaryAfterExtended = dosHead + "disk1 : start=2048, size=499712, type=83\ndisk2 : start=501760, size=4000000, type=5\n" +
		"disk3 : start=4501760, type=7\ndisk5 : start=503808, size=1000000, type=83\n"
	// The logical one ends long before its container.
	const roomInside = dosHead + "disk2 : start=2048, size=6289408, type=5\ndisk5 : start=4096, size=1000000, type=83\n"

	for name, test := range map[string]struct {
		script    string
		root      int
		disk      int64
		requested int64
		end       int64 // sector; 0 for no change
		reason    string
		code      fault.Code
		patches   int
	}{
		"swap follows":                      {script: swapLast, root: 2, disk: 9 * gib, reason: "blocked by partition 3 (swap)", code: fault.DiskBlocked},
		"swap follows, nothing to win":      {script: swapLast, root: 2, disk: 3 * gib},
		"logical swap follows":              {script: logicalSwapLast, root: 5, disk: 9 * gib, reason: "blocked by partition 6 (swap)", code: fault.DiskBlocked},
		"gap before swap":                   {script: gap, root: 1, disk: 9 * gib, end: 4196352, reason: "blocked by partition 2 (swap)", code: fault.DiskBlocked, patches: 1},
		"gap before swap, disk full":        {script: gap, root: 1, disk: 3 * gib, end: 4196352, patches: 1},
		"extended follows":                  {script: extendedLast, root: 1, disk: 9 * gib, reason: "blocked by partition 2 (extended)", code: fault.DiskBlocked},
		"primary follows the container":     {script: primaryAfterExtended, root: 5, disk: 9 * gib, end: 4501760 / 2048 * 2048, reason: "blocked by partition 3 (NTFS)", code: fault.DiskBlocked, patches: 1},
		"space in the container is used":    {script: roomInside, root: 5, disk: 3 * gib, end: 6291456, patches: 1},
		"the MiB the installer left":        {script: shipped, root: 6, disk: 3 * gib},
		"less than a MiB is no gain":        {script: shipped, root: 6, disk: 3*gib - 512},
		"half a MiB more is no gain":        {script: shipped, root: 6, disk: 3*gib + mib/2},
		"one MiB more is":                   {script: shipped, root: 6, disk: 3*gib + mib, end: 3*gib/512 + 2048, patches: 3},
		"requested size":                    {script: shipped, root: 6, disk: 9 * gib, requested: 4 * gib, end: 4 * gib / 512, patches: 3},
		"requested size, odd":               {script: shipped, root: 6, disk: 9 * gib, requested: 4*gib + mib - 1, end: 4 * gib / 512, patches: 3},
		"requested size is there":           {script: shipped, root: 6, disk: 9 * gib, requested: 3 * gib},
		"requested size is smaller":         {script: shipped, root: 6, disk: 9 * gib, requested: gib, reason: "asked for 1.0 GiB of the disk, the partition ends at 3.0 GiB"},
		"requested size is the disk's":      {script: shipped, root: 6, disk: 9 * gib, requested: 9 * gib, end: 9 * gib / 512, patches: 3},
		"requested size exceeds the disk":   {script: shipped, root: 6, disk: 9 * gib, requested: 20 * gib, end: 9 * gib / 512, reason: "asked for 20.0 GiB of the disk, which has 9.0 GiB", patches: 3},
		"requested size is the largest int": {script: shipped, root: 6, disk: 9 * gib, requested: 1<<63 - 1, end: 9 * gib / 512, reason: "asked for 8192.0 PiB of the disk, which has 9.0 GiB", patches: 3},
		"requested size before swap":        {script: gap, root: 1, disk: 9 * gib, requested: gib, end: gib / 512, patches: 1},
		"beyond 2 TiB": {script: shipped, root: 6, disk: 3072 * gib, end: 4294967296 - 2048, patches: 3,
			reason: "an MBR ends at 2.0 TiB, the disk has 3.0 TiB", code: fault.DiskBlocked},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := openImage(t, 3*gib, test.script)
			disk.truncate(t, test.disk)
			todo := disk.plan(t, test.root, test.requested)
			if todo.reason != test.reason {
				t.Errorf("reason = %q, want %q", todo.reason, test.reason)
			}
			if code := codeOf(todo.warning); code != test.code {
				t.Errorf("warning = %v, want code %q", todo.warning, test.code)
			}
			if len(todo.patches) != test.patches {
				t.Errorf("patches = %+v, want %d", todo.patches, test.patches)
			}
			if test.end != 0 && todo.end != test.end {
				t.Errorf("end = %d, want %d", todo.end, test.end)
			}
			disk.apply(t, todo)
			disk.judge(t)
			if again := disk.plan(t, test.root, test.requested); len(again.patches) != 0 {
				t.Errorf("second plan = %+v, want no patches", again)
			}
		})
	}
}

func codeOf(warning *fault.Error) fault.Code {
	if warning == nil {
		return ""
	}
	return warning.Code
}

// A disk with sectors of 4096 bytes counts everything in those (G13, F3). fdisk
// makes and judges the table; sfdisk cannot be told the sector size.
func TestSectorsOf4096(t *testing.T) {
	t.Parallel()
	disk := openImage(t, 3*gib, "")
	disk.sector = 4096
	tool(t, "o\nn\np\n1\n256\n60000\nn\ne\n2\n60160\n786431\nn\n60416\n200000\nn\n200448\n786431\nt\n5\n82\nw\n",
		"fdisk", "-b", "4096", disk.Name())
	disk.truncate(t, 3*gib+8*gib+4096)
	if e := disk.read(t).extents(); len(e) != 4 || e[3] != (extent{number: 6, start: 200448, size: 585984, kind: "Linux"}) {
		t.Fatalf("partitions = %+v", e)
	}
	todo := disk.plan(t, 6, 0)
	disk.apply(t, todo)
	listed := tool(t, "", "fdisk", "-b", "4096", "-l", disk.Name())
	want := fmt.Sprintf("disk6 200448 %d %d", 11*gib/4096-1, 11*gib/4096-200448)
	if !strings.Contains(strings.Join(strings.Fields(listed), " "), want) {
		t.Errorf("fdisk sees\n%s\nwant a line with %q", listed, want)
	}
	verdict := tool(t, "v\nq\n", "fdisk", "-b", "4096", disk.Name())
	if !strings.Contains(verdict, "No errors detected") {
		t.Errorf("fdisk says:\n%s", verdict)
	}
	if again := disk.plan(t, 6, 0); len(again.patches) != 0 {
		t.Errorf("second plan = %+v, want none", again)
	}
}

// overlay is a disk in memory over another, or over zeros.
type overlay struct {
	disk    *image
	at      map[int64][]byte // by sector number
	sectors int64            // where there is no disk
	sector  int
}

func (o *overlay) SectorSize() int {
	if o.disk != nil {
		return o.disk.sector
	}
	return o.sector
}

func (o *overlay) ReadAt(p []byte, offset int64) (int, error) {
	size := int64(o.SectorSize())
	zeros := make([]byte, size)
	for done := int64(0); done < int64(len(p)); {
		lba, in := (offset+done)/size, (offset+done)%size
		sector, found := o.at[lba]
		switch {
		case found:
		case o.disk != nil:
			sector = make([]byte, size)
			if _, err := o.disk.ReadAt(sector, lba*size); err != nil {
				return int(done), err
			}
		case lba >= o.sectors:
			return int(done), os.ErrInvalid
		default:
			sector = zeros
		}
		done += int64(copy(p[done:], sector[in:]))
	}
	return len(p), nil
}

// patched returns the disk with patches in place; a patch not made for what is
// there fails the test.
func (o *overlay) patched(t testing.TB, patches []patch) *overlay {
	t.Helper()
	next := &overlay{disk: o.disk, at: map[int64][]byte{}, sectors: o.sectors, sector: o.sector}
	maps.Copy(next.at, o.at)
	size := int64(o.SectorSize())
	for _, p := range patches {
		first := p.Offset / size * size
		block := make([]byte, (p.Offset+int64(len(p.New))+size-1)/size*size-first)
		if _, err := next.ReadAt(block, first); err != nil {
			t.Fatal(err)
		}
		within := block[p.Offset-first:][:len(p.Old)]
		if !bytes.Equal(within, p.Old) {
			t.Fatalf("patch %+v is not for the bytes %x there", p, within)
		}
		copy(within, p.New)
		lba := first / size
		for sector := range slices.Chunk(block, int(size)) {
			next.at[lba] = sector
			lba++
		}
	}
	return next
}

// count returns the number of sectors.
func (o *overlay) count() int64 {
	if o.disk != nil {
		return o.disk.Size() / int64(o.disk.sector)
	}
	return o.sectors
}

// equal says whether two overlays of the same disk have the same content.
func (o *overlay) equal(t testing.TB, other *overlay) bool {
	t.Helper()
	size := o.SectorSize()
	a, b := make([]byte, size), make([]byte, size)
	for _, sectors := range []map[int64][]byte{o.at, other.at} {
		for lba := range sectors {
			_, err := o.ReadAt(a, lba*int64(size))
			_, err2 := other.ReadAt(b, lba*int64(size))
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(a, b) {
				return false
			}
		}
	}
	return true
}

// nextRun returns what a run writes, as decide does.
func nextRun(t testing.TB, table table, number int, requested int64) []patch {
	t.Helper()
	for _, e := range table.extents() {
		if e.number == number {
			if todo := planPartition(table, e, requested); len(todo.patches) > 0 {
				return todo.patches
			}
			patches, _ := table.mend()
			return patches
		}
	}
	t.Fatalf("no partition %d in %+v", number, table.extents())
	return nil
}

// checkGrowth grows every partition of a sound table, one at a time, and checks
// that each prefix of the patches is a sound table in which the partition has its
// old or its new size and nothing else differs, and from which the next run comes
// to the same bytes.
func checkGrowth(t testing.TB, disk *overlay, before table) {
	t.Helper()
	for _, root := range before.extents() {
		if root.container {
			continue
		}
		todo := planPartition(before, root, 0)
		if len(todo.patches) == 0 {
			continue
		}
		whole, size := disk.patched(t, todo.patches), root.size
		for cut := 1; cut <= len(todo.patches); cut++ {
			view := disk.patched(t, todo.patches[:cut])
			after, err := readTable(view, disk.SectorSize(), disk.count())
			if err != nil {
				t.Fatalf("after %d writes of %+v the table is refused: %v", cut, todo.patches, err)
			}
			for i, e := range after.extents() {
				want := before.extents()[i]
				if want.container {
					want.size = e.size
				}
				if e.number == root.number {
					if e.end() == todo.end {
						size = e.size
					}
					want.size = size
				}
				if e != want {
					t.Fatalf("after %d writes: %+v, want %+v", cut, e, want)
				}
			}
			rest := nextRun(t, after, root.number, 0)
			if !view.patched(t, rest).equal(t, whole) {
				t.Fatalf("after %d of %d writes the next run comes to another end by %+v", cut, len(todo.patches), rest)
			}
			if cut == len(todo.patches) && (size != todo.end-root.start || len(rest) > 0) {
				t.Fatalf("at the end partition %d has %d sectors, want %d, and the next run writes %+v", root.number, size, todo.end-root.start, rest)
			}
		}
	}
}

// A patch is not written over something else than it was made for.
func TestApplyChecksWhatIsThere(t *testing.T) {
	t.Parallel()
	disk := openImage(t, 3*gib, shipped)
	disk.truncate(t, 9*gib)
	todo := disk.plan(t, 6, 0)
	sector := sectorAt(t, disk, 1503231)
	sector[mbrEntries+entryLength] ^= 1
	put(t, disk, 1503231, sector)
	err := apply(disk, todo.patches)
	if err == nil || !strings.Contains(err.Error(), "partition 6 in sector 1503231: it has changed since it was read") {
		t.Errorf("error = %v, want that the record changed", err)
	}
	if got := sectorAt(t, disk, 1503231); !bytes.Equal(got, sector) {
		t.Error("the record was written")
	}
}
