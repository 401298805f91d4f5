// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// medium is what a disk holds, in memory. Its sectors are never written to, so
// that copies of the map share them.
type medium struct {
	sector  int
	sectors int64
	at      map[int64][]byte // by number; absent ones are zero
}

func (m medium) ReadAt(p []byte, offset int64) (int, error) {
	size := int64(m.sector)
	if offset < 0 || offset+int64(len(p)) > m.sectors*size {
		return 0, io.ErrUnexpectedEOF
	}
	for done := int64(0); done < int64(len(p)); {
		in := (offset + done) % size
		part := p[done:min(int64(len(p)), done+size-in)]
		if sector := m.at[(offset+done)/size]; sector != nil {
			copy(part, sector[in:])
		} else {
			clear(part)
		}
		done += int64(len(part))
	}
	return len(p), nil
}

// get returns a sector.
func (m medium) get(lba int64) []byte {
	if sector := m.at[lba]; sector != nil {
		return sector
	}
	return make([]byte, m.sector)
}

// with returns the medium with other sectors in it.
func (m medium) with(sectors map[int64][]byte) medium {
	m.at = maps.Clone(m.at)
	maps.Copy(m.at, sectors)
	return m
}

func (m medium) equal(other medium) bool {
	for _, sectors := range []map[int64][]byte{m.at, other.at} {
		for lba := range sectors {
			if !bytes.Equal(m.get(lba), other.get(lba)) {
				return false
			}
		}
	}
	return true
}

// load reads an image into memory.
func load(t testing.TB, disk *image) medium {
	t.Helper()
	m := medium{sector: disk.sector, sectors: disk.Size() / int64(disk.sector), at: map[int64][]byte{}}
	zero := make([]byte, disk.sector)
	for offset, block := range disk.blocks(t) {
		for sector := range slices.Chunk(block, disk.sector) {
			if len(sector) == len(zero) && !bytes.Equal(sector, zero) {
				m.at[offset/int64(disk.sector)] = sector
			}
			offset += int64(len(sector))
		}
	}
	return m
}

// store writes it to an image, for other programs.
func (m medium) store(t testing.TB) *image {
	t.Helper()
	disk := openImage(t, m.sectors*int64(m.sector), "")
	disk.sector = m.sector
	for lba, sector := range m.at {
		if _, err := disk.WriteAt(sector, lba*int64(m.sector)); err != nil {
			t.Fatal(err)
		}
	}
	return disk
}

// event is one thing done to a disk: a write where it has data, else a sync,
// unless the kernel or the file system was told a size.
type event struct {
	lba        int64
	data       []byte
	kernel     int64 // bytes the kernel was told the partition has
	filesystem int64 // bytes the file system was grown to
}

func (e event) isSync() bool { return e.data == nil && e.kernel == 0 && e.filesystem == 0 }

// sectors returns what a write writes.
func (e event) sectors(size int) map[int64][]byte {
	found, lba := map[int64][]byte{}, e.lba
	for sector := range slices.Chunk(e.data, size) {
		found[lba] = sector
		lba++
	}
	return found
}

// recorder is a disk in memory that notes every event.
type recorder struct {
	medium
	log []event
}

func (r *recorder) WriteAt(p []byte, offset int64) (int, error) {
	size := int64(r.sector)
	if offset%size != 0 || len(p) == 0 || int64(len(p))%size != 0 || offset < 0 || offset+int64(len(p)) > r.sectors*size {
		return 0, fmt.Errorf("a write of %d bytes at %d is not one of whole sectors of the disk", len(p), offset)
	}
	e := event{lba: offset / size, data: slices.Clone(p)}
	r.log = append(r.log, e)
	r.medium = r.with(e.sectors(r.sector))
	return len(p), nil
}

func (r *recorder) Sync() error                { r.log = append(r.log, event{}); return nil }
func (r *recorder) Size() int64                { return r.sectors * int64(r.sector) }
func (r *recorder) SectorSize() int            { return r.sector }
func (r *recorder) Lock(context.Context) error { return nil }
func (r *recorder) Close() error               { return nil }

func (r *recorder) ResizePartition(_ int, _, size int64) error {
	r.log = append(r.log, event{kernel: size})
	return nil
}

// afterCrash returns what can be on the medium when the power fails after the
// events: all that was written before the last sync; of what was written since
// then any sectors, in any order. That is every choice where there are few, else
// the first sectors and the last ones, all but one and one alone, and some
// hundreds chosen at random.
func afterCrash(before medium, log []event) iter.Seq[medium] {
	synced := before
	var pending []int64 // sectors, in the order of their first write
	versions := map[int64][][]byte{}
	for i, e := range log {
		switch {
		case e.data != nil:
			for offset := 0; offset < len(e.data); offset += before.sector {
				lba, sector := e.lba+int64(offset/before.sector), e.data[offset:][:before.sector]
				if versions[lba] == nil {
					versions[lba] = [][]byte{synced.get(lba)}
				}
				if !slices.ContainsFunc(versions[lba], func(v []byte) bool { return bytes.Equal(v, sector) }) {
					versions[lba] = append(versions[lba], sector)
					if len(versions[lba]) == 2 {
						pending = append(pending, lba)
					}
				}
			}
		case e.isSync():
			synced = written(before, log[:i])
			pending, versions = nil, map[int64][][]byte{}
		}
	}
	return func(yield func(medium) bool) {
		choose := func(pick func(i, n int) int) bool {
			chosen := map[int64][]byte{}
			for i, lba := range pending {
				chosen[lba] = versions[lba][pick(i, len(versions[lba]))]
			}
			return yield(synced.with(chosen))
		}
		const few, random = 256, 300
		all := 1
		for _, lba := range pending {
			if all *= len(versions[lba]); all > few {
				break
			}
		}
		if all <= few {
			for k := range all {
				rest := k
				if !choose(func(_, n int) int { one := rest % n; rest /= n; return one }) {
					return
				}
			}
			return
		}
		for k := range len(pending) + 1 {
			for _, in := range []func(i int) bool{
				func(i int) bool { return i < k }, func(i int) bool { return i >= k },
				func(i int) bool { return i != k }, func(i int) bool { return i == k },
			} {
				if !choose(func(i, n int) int {
					if in(i) {
						return n - 1
					}
					return 0
				}) {
					return
				}
			}
		}
		source := rand.New(rand.NewPCG(1, uint64(len(log))))
		for range random {
			if !choose(func(_, n int) int { return source.IntN(n) }) {
				return
			}
		}
	}
}

// written returns the medium when all events have reached it.
func written(before medium, log []event) medium {
	for _, e := range log {
		if e.data != nil {
			before = before.with(e.sectors(before.sector))
		}
	}
	return before
}

// kernelReadsMBR is what Linux makes of a disk: msdos_partition and
// parse_extended of block/partitions/msdos.c. Of an extended partition it has the
// first two sectors.
func kernelReadsMBR(disk io.ReaderAt, sector int, sectors int64) ([]extent, error) {
	type slot struct {
		kind        byte
		start, size int64
	}
	read := func(lba int64) (slots [4]slot, flags [4]byte, found bool) {
		record := make([]byte, 512)
		if lba >= sectors {
			return slots, flags, false
		}
		if _, err := disk.ReadAt(record, lba*int64(sector)); err != nil || record[510] != 0x55 || record[511] != 0xaa {
			return slots, flags, false
		}
		for i := range slots {
			e := record[446+16*i:][:16]
			flags[i] = e[0]
			slots[i] = slot{e[4], int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))}
		}
		return slots, flags, true
	}
	isExtended := func(s slot) bool { return s.kind == 0x05 || s.kind == 0x0f || s.kind == 0x85 }

	slots, flags, found := read(0)
	if !found {
		return nil, errors.New("no MBR")
	}
	for i, s := range slots {
		if flags[i] != 0 && flags[i] != 0x80 {
			return nil, errors.New("boot flag")
		}
		if s.kind == 0xee {
			return nil, errors.New("protective entry")
		}
	}
	const limit = 256
	var primaries, logicals []extent
	walk := func(first, firstSize int64) {
		this, thisSize, idle := first, firstSize, 0
		for {
			if idle++; idle > 100 || len(logicals)+5 == limit {
				return
			}
			slots, _, found := read(this)
			if !found {
				return
			}
			for i, s := range slots {
				if s.size == 0 || isExtended(s) {
					continue
				}
				next := this + s.start
				if i >= 2 && (s.start+s.size > thisSize || next < first || next+s.size > first+firstSize) {
					continue
				}
				logicals = append(logicals, extent{number: len(logicals) + 5, start: next, size: s.size})
				idle = 0
				if len(logicals)+5 == limit {
					return
				}
			}
			link := slices.IndexFunc(slots[:], func(s slot) bool { return s.size > 0 && isExtended(s) })
			if link < 0 {
				return
			}
			this, thisSize = first+slots[link].start, slots[link].size
		}
	}
	for i, s := range slots {
		if s.size == 0 {
			continue
		}
		size := s.size
		if isExtended(s) {
			size = min(size, max(1, 1024/int64(sector)))
			walk(s.start, s.size)
		}
		primaries = append(primaries, extent{number: i + 1, start: s.start, size: size})
	}
	return append(primaries, logicals...), nil
}

func kernelReads(disk io.ReaderAt, sector int, sectors int64) ([]extent, error) {
	if protective, err := hasProtectiveEntry(disk); err == nil && protective {
		return kernelReadsGPT(disk, sector, sectors)
	}
	return kernelReadsMBR(disk, sector, sectors)
}

// span is bytes of a sector.
type span struct {
	lba      int64
	from, to int
}

// endOf returns where an MBR or EBR entry has the CHS of its last sector and its
// size.
func endOf(lba int64, slot int) []span {
	at := 446 + 16*slot
	return []span{{lba, at + 5, at + 8}, {lba, at + 12, at + 16}}
}

// crashLayout is a table on a disk that has grown.
type crashLayout struct {
	make  func(t *testing.T) *image
	size  int64 // of the disk in the end
	alter func(t *testing.T, d *image)
	root  int
	// end is the sector before which the root has to end.
	end int64
	// fields are the bytes that may change, written down from the format.
	fields []span
}

// ofMBR returns a layout on a disk of the size given.
func ofMBR(script string, size int64, root int, fields ...[]span) crashLayout {
	return crashLayout{
		make: func(t *testing.T) *image { return openImage(t, 3*gib, script) },
		size: size, root: root, end: size / mib * 2048, fields: slices.Concat(fields...),
	}
}

// ofGPT returns a layout of 128 entries from sector 2 on. The whole of the
// primary's entries may change where they are lost.
func ofGPT(make func(t *testing.T) *image, size int64, sector, root int, lost bool) crashLayout {
	last, array := size/int64(sector)-1, 128*128/int64(sector)
	l := crashLayout{make: make, size: size, root: root, end: (last - array) / (mib / int64(sector)) * (mib / int64(sector))}
	l.fields = append(endOf(0, 0), span{1, 16, 20}, span{1, 32, 40}, span{1, 48, 56}, span{1, 72, 80}, span{1, 88, 92})
	for i := range array {
		l.fields = append(l.fields, span{last - 1 - i, 0, sector})
		if lost {
			l.fields = append(l.fields, span{2 + i, 0, sector})
		}
	}
	at := (root-1)*128 + 40
	l.fields = append(l.fields, span{last, 0, sector}, span{2 + int64(at/sector), at % sector, at%sector + 8})
	if lost {
		l.fields = append(l.fields, span{1, 0, 92})
	}
	return l
}

// altered returns the layout with something done to the disk that has grown.
func (l crashLayout) altered(alter func(t *testing.T, d *image)) crashLayout {
	l.alter = alter
	return l
}

// image returns the disk before the run, and the partitions Linux had when the
// table was whole.
func (l crashLayout) image(t *testing.T) (medium, []extent) {
	t.Helper()
	disk := l.make(t)
	disk.truncate(t, l.size)
	whole := load(t, disk)
	partitions, err := kernelReads(whole, whole.sector, whole.sectors)
	if err != nil {
		t.Fatal(err)
	}
	if l.alter != nil {
		l.alter(t, disk)
	}
	return load(t, disk), partitions
}

func crashLayouts() map[string]crashLayout {
	const head = dosHead + "disk1 : start=2048, size=120000, type=83, bootable\ndisk2 : start=122048, size=6169408, type=5\n"
	shippedFields := [][]span{endOf(0, 1), endOf(501758, 1), endOf(1503231, 0)}
	gpt := func(args ...string) func(t *testing.T) *image {
		return func(t *testing.T) *image {
			disk := openImage(t, 3*gib, "")
			tool(t, "", "sgdisk", append(args, disk.Name())...)
			return disk
		}
	}
	arm := func(t *testing.T) *image { return openImage(t, 3*gib, arm64) }
	early := func(t *testing.T) *image {
		return openImage(t, 3*gib, gptHead+"disk1 : size=20480, type=linux\ndisk2 : size=4000000, type=linux\n")
	}
	fill := func(t *testing.T, d *image, from, to int64) {
		junk := make([]byte, (to-from)*int64(d.sector))
		source := rand.New(rand.NewPCG(2, uint64(from)))
		for i := range junk {
			junk[i] = byte(source.Uint32())
		}
		if _, err := d.WriteAt(junk, from*int64(d.sector)); err != nil {
			t.Fatal(err)
		}
	}
	clearHeader := func(t *testing.T, d *image) { put(t, d, 1, make([]byte, d.sector)) }
	fillEntries := func(t *testing.T, d *image) { fill(t, d, 2, 2+16384/int64(d.sector)) }
	fillEnd := func(t *testing.T, d *image) {
		last := d.Size() / int64(d.sector)
		fill(t, d, last-1-16384/int64(d.sector), last)
	}
	parted4096 := func(args ...string) func(t *testing.T) *image {
		return func(t *testing.T) *image {
			disk := openImage(t, 3*gib, "")
			disk.sector = 4096
			tool(t, "", "env", append([]string{"PARTED_SECTOR_SIZE=4096", "parted", "--script", disk.Name(), "mklabel", "gpt"}, args...)...)
			return disk
		}
	}
	const all = 16384/512 + 2
	fdisk4096 := func(t *testing.T) *image {
		disk := openImage(t, 3*gib, "")
		disk.sector = 4096
		tool(t, "o\nn\np\n1\n256\n60000\nn\ne\n2\n60160\n786431\nn\n60416\n200000\nn\n200448\n786431\nt\n5\n82\nw\n", "fdisk", "-b", "4096", disk.Name())
		return disk
	}
	return map[string]crashLayout{
		"MBR 1/2/5/6":             ofMBR(shipped, 9*gib, 6, shippedFields...),
		"MBR 1/2/5/6, CHS in use": ofMBR(shipped, 4*gib, 6, shippedFields...),
		"MBR 1/2/5/6/7":           ofMBR(head+"disk5 : start=124096, size=999424, type=82\ndisk6 : start=1125568, size=1000000, type=83\ndisk7 : start=2127616, size=4163840, type=83\n", 9*gib, 7, endOf(0, 1), endOf(1123520, 1), endOf(2125568, 0)),
		"MBR root first logical":  ofMBR(head+"disk5 : start=124096, size=6167360, type=83\n", 9*gib, 5, endOf(0, 1), endOf(122048, 0)),
		"MBR primary root":        ofMBR(dosHead+"disk1 : size=499712, type=83\ndisk2 : type=83, bootable\n", 4*gib, 2, endOf(0, 1)),
		"MBR 4096": {make: fdisk4096, size: 9 * gib, root: 6, end: 9 * gib / 4096,
			fields: slices.Concat(endOf(0, 1), endOf(60160, 1), endOf(200192, 0))},
		"GPT arm64":                         ofGPT(arm, 9*gib, 512, 4, false),
		"GPT arm64, old data at the end":    ofGPT(arm, 9*gib, 512, 4, false).altered(fillEnd),
		"GPT arm64, header lost":            ofGPT(arm, 9*gib, 512, 4, true).altered(clearHeader),
		"GPT arm64, entries lost":           ofGPT(arm, 9*gib, 512, 4, true).altered(fillEntries),
		"GPT arm64, primary lost":           ofGPT(arm, 9*gib, 512, 4, true).altered(func(t *testing.T, d *image) { clearHeader(t, d); fillEntries(t, d) }),
		"GPT arm64, backup lost":            ofGPT(arm, 9*gib, 512, 4, false).altered(func(t *testing.T, d *image) { fill(t, d, 3*gib/512-all, 3*gib/512) }),
		"GPT single root":                   ofGPT(gpt("-n", "1:2048:0"), 9*gib, 512, 1, false),
		"GPT single root, one MiB to gain":  ofGPT(gpt("-n", "1:2048:0"), 3*gib+2*mib+512*5, 512, 1, false).altered(fillEnd),
		"GPT primary lost, nothing to gain": ofGPT(arm, 3*gib, 512, 4, true).altered(func(t *testing.T, d *image) { clearHeader(t, d); fillEntries(t, d) }),
		"GPT backup lost, nothing to gain":  ofGPT(arm, 3*gib, 512, 4, false).altered(fillEnd),
		// The places of the old backup and of the new one overlap.
		"GPT a sector more, primary lost":  ofGPT(early, 3*gib+512, 512, 2, true).altered(func(t *testing.T, d *image) { clearHeader(t, d); fillEntries(t, d) }),
		"GPT 20 sectors more":              ofGPT(early, 3*gib+20*512, 512, 2, false),
		"GPT 20 sectors more, header lost": ofGPT(early, 3*gib+20*512, 512, 2, true).altered(clearHeader),
		// The primary leads to the entries of a backup in the way of the new one.
		"GPT unfinished, 10 sectors more": ofGPT(func(t *testing.T) *image {
			disk := arm(t)
			disk.truncate(t, 9*gib)
			if err := apply(disk, disk.plan(t, 4, 4*gib).patches[:3]); err != nil {
				t.Fatal(err)
			}
			return disk
		}, 9*gib+10*512, 512, 4, false),
		"GPT 14/15/1": ofGPT(gpt("-n", "14:2048:+3M", "-t", "14:ef02", "-n", "15:8192:+124M", "-t", "15:ef00", "-n", "1:262144:0", "-t", "1:8304"),
			9*gib+12345*512, 512, 1, false),
		"GPT 4096": ofGPT(parted4096("mkpart", "efi", "fat32", "1MiB", "539MiB", "mkpart", "swap", "linux-swap", "939MiB", "1195MiB", "mkpart", "root", "ext4", "1195MiB", "100%"),
			9*gib, 4096, 3, false).altered(fillEnd),
		"GPT 4096, primary lost": ofGPT(parted4096("mkpart", "root", "ext4", "1MiB", "100%"), 9*gib, 4096, 1, true).
			altered(func(t *testing.T, d *image) { clearHeader(t, d); fillEntries(t, d) }),
	}
}

// crash replays crashes of one layout.
type crash struct {
	*testing.T
	crashLayout
	base       medium
	final      medium
	partitions []extent         // as Linux has them before
	allowed    map[int64][]bool // bytes that may change
	sorted     []int64          // the sectors of those
	judged     map[[sha256.Size]byte]seen
	points     int // those in a next run among them
}

func newCrash(t *testing.T, layout crashLayout) *crash {
	t.Helper()
	c := &crash{T: t, crashLayout: layout, allowed: map[int64][]bool{}, judged: map[[sha256.Size]byte]seen{}}
	c.base, c.partitions = layout.image(t)
	for _, f := range layout.fields {
		if c.allowed[f.lba] == nil {
			c.allowed[f.lba] = make([]bool, c.base.sector)
		}
		for i := f.from; i < f.to; i++ {
			c.allowed[f.lba][i] = true
		}
	}
	c.sorted = slices.Sorted(maps.Keys(c.allowed))
	return c
}

// run does what a run does to the table.
func (c *crash) run(m medium) *recorder {
	c.Helper()
	r := &recorder{medium: m}
	table, err := readTable(r, r.sector, r.sectors)
	if err != nil {
		c.Fatalf("the table is refused: %v", err)
	}
	if err := apply(r, nextRun(c, table, c.root, 0)); err != nil {
		c.Fatal(err)
	}
	c.checkOutside(r.log)
	return r
}

// replay lets the power fail after every event of a run. Where whole is set, all
// that was written until then is there; and unless the run is one after a crash
// already, the power fails in the next one as well.
func (c *crash) replay(what string, before medium, log []event, whole, again bool) {
	c.Helper()
	least := refused
	for k := range len(log) + 1 {
		c.points++
		at := fmt.Sprintf("%s after %d of %d events", what, k, len(log))
		if whole {
			least = c.judge(at, written(before, log[:k]), least, again)
			continue
		}
		lastSync := k
		for lastSync > 0 && !log[lastSync-1].isSync() {
			lastSync--
		}
		least = c.judge(at, written(before, log[:lastSync]), least, again)
		n := 0
		for state := range afterCrash(before, log[:k]) {
			n++
			c.judge(fmt.Sprintf("%s, state %d,", at, n), state, least, again)
		}
	}
}

// seen is what Linux makes of a table. It never goes back: a file system that has
// grown needs the partition's new size.
type seen int

const (
	refused seen = iota
	oldSize
	newSize
)

// judge checks a medium as a crash has left it, once. It returns what Linux makes
// of it.
func (c *crash) judge(what string, state medium, least seen, again bool) seen {
	c.Helper()
	sum := sha256.New()
	for _, lba := range c.sorted {
		sum.Write(state.get(lba))
	}
	key := [sha256.Size]byte(sum.Sum(nil))
	now, known := c.judged[key]
	if !known {
		now = c.checkKernel(what, state)
		c.judged[key] = now
	}
	if now < least {
		c.Errorf("%s Linux does not find the partitions, or the root with its old size: %d after %d", what, now, least)
	}
	if known {
		return now
	}

	next := c.run(state)
	if !next.medium.equal(c.final) {
		c.Errorf("%s the next run comes to other bytes", what)
	}
	if idle := c.run(next.medium); len(idle.log) > 0 {
		c.Errorf("%s the run after the next does %d things, want none", what, len(idle.log))
	}
	if again {
		c.replay(what+" and in the next run", state, next.log, true, false)
	}
	return now
}

// checkOutside makes sure that what a run writes differs from what was on the disk
// before all of them in the bytes alone that are to change. What a crash leaves is
// made of such sectors.
func (c *crash) checkOutside(log []event) {
	c.Helper()
	for _, e := range log {
		for lba, sector := range e.sectors(c.base.sector) {
			old, allowed := c.base.get(lba), c.allowed[lba]
			for i := range sector {
				if sector[i] != old[i] && (allowed == nil || !allowed[i]) {
					c.Fatalf("byte %d of sector %d is changed", i, lba)
				}
			}
		}
	}
}

// checkKernel makes sure that Linux finds every partition, or none, the root with
// its old or its new size.
func (c *crash) checkKernel(what string, state medium) seen {
	c.Helper()
	found, err := kernelReads(state, state.sector, state.sectors)
	if err != nil {
		return refused
	}
	switch {
	case slices.Equal(found, c.grown()):
		return newSize
	case slices.Equal(found, c.partitions):
		return oldSize
	}
	c.Fatalf("%s Linux finds %+v", what, found)
	return refused
}

// grown returns the partitions as they are to be.
func (c *crash) grown() []extent {
	grown := slices.Clone(c.partitions)
	for i := range grown {
		if grown[i].number == c.root {
			grown[i].size = c.end - grown[i].start
		}
	}
	return grown
}

// Wherever the power fails in a run, whatever of the unsynced sectors is on the
// medium: Linux finds every partition, no byte outside the table has changed, the
// next run, even one that is interrupted as well, comes to the same bytes as one
// that is not, and the one after it writes nothing (G5, G11, G12, G14).
func TestCrash(t *testing.T) {
	t.Parallel()
	var points, states atomic.Int64
	t.Run("layouts", func(t *testing.T) {
		for name, layout := range crashLayouts() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := newCrash(t, layout)
				whole := c.run(c.base)
				c.final = whole.medium
				if c.checkKernel("in the end", c.final) != newSize {
					t.Fatal("in the end Linux does not find the root with its new size")
				}
				c.replay("a crash", c.base, whole.log, false, true)
				for k := range whole.log {
					c.judgeByTools(fmt.Sprintf("after %d events", k), written(c.base, whole.log[:k]))
				}
				c.judgeFinal()
				points.Add(int64(c.points))
				states.Add(int64(len(c.judged)))
			})
		}
	})
	t.Logf("crash points replayed: %d, states: %d", points.Load(), states.Load())
}

// judgeByTools has other programs read a state in the middle of a run. sfdisk is
// to find the partitions where Linux does.
func (c *crash) judgeByTools(what string, state medium) {
	c.Helper()
	if state.sector != 512 {
		return // sfdisk knows no other sectors
	}
	partitions, err := kernelReads(state, state.sector, state.sectors)
	if err != nil {
		return
	}
	disk := state.store(c)
	if _, err := kernelReadsMBR(state, state.sector, state.sectors); err == nil {
		disk.judge(c)
	}
	found := disk.sfdisk(c)
	for _, e := range partitions {
		if size := found.size(c, e.number); size != e.size && e.size != 2 {
			c.Errorf("%s sfdisk finds partition %d with %d sectors, Linux with %d", what, e.number, size, e.size)
		}
	}
}

// judgeFinal has other programs verify the end of a run.
func (c *crash) judgeFinal() {
	c.Helper()
	disk := c.final.store(c)
	switch protective, err := hasProtectiveEntry(disk); {
	case err != nil:
		c.Fatal(err)
	case disk.sector != 512:
		verdict := tool(c, "v\nq\n", "fdisk", "-b", fmt.Sprint(disk.sector), disk.Name())
		if !strings.Contains(verdict, "No errors detected") {
			c.Errorf("fdisk says:\n%s", verdict)
		}
	case protective:
		verdict := tool(c, "", "sgdisk", "--verify", disk.Name())
		if !strings.Contains(verdict, "No problems found") {
			c.Errorf("sgdisk says:\n%s", verdict)
		}
		fallthrough
	default:
		disk.judge(c)
	}
}

// crashVM is a machine whose root is a partition of a disk in memory. Its file
// system is a superblock.
type crashVM struct {
	machine // nothing else is asked of it
	sysfs
	*recorder
	*crash
	super []byte
}

// newCrashVM returns the machine as it has booted from a disk.
func newCrashVM(c *crash, super []byte) *crashVM {
	c.Helper()
	v := &crashVM{sysfs: newSysfs(c), crash: c, super: slices.Clone(super)}
	v.device("254:0", vdaPath, map[string]string{"ro": "0"})
	unit := int64(c.base.sector / sysSector)
	for _, e := range c.partitions {
		v.partition(fmt.Sprintf("254:%d", e.number), fmt.Sprintf("%s/vda%d", vdaPath, e.number), e.number, e.start*unit, e.size*unit)
	}
	v.mounts(fmt.Sprintf("22 1 254:%d / / rw,relatime - ext4 /dev/vda%d rw", c.root, c.root))
	return v
}

const crashBlock = 4096

// rootSuper returns the start of a file system as mke2fs makes it.
func rootSuper(t *testing.T) []byte {
	t.Helper()
	small := openImage(t, 512*mib, "")
	tool(t, "", "mke2fs", "-q", "-F", "-t", "ext4", "-b", fmt.Sprint(crashBlock), small.Name())
	return small.bytesAt(t, 0, 2*ext4Superblock)
}

// set puts the machine into a state: what the disk holds, the size the kernel has
// of the root, and that of its file system.
func (v *crashVM) set(m medium, kernel, filesystem int64) {
	v.recorder = &recorder{medium: m}
	v.kernelHas(kernel)
	v.filesystemHas(filesystem)
}

func (v *crashVM) kernelHas(bytes int64) {
	v.Write(fmt.Sprintf("/sys/devices/%s/vda%d/size", vdaPath, v.root), fmt.Sprintln(bytes/sysSector))
}

func (v *crashVM) filesystemHas(bytes int64) {
	binary.LittleEndian.PutUint32(v.super[ext4Superblock+0x4:], uint32(bytes/crashBlock))
}

func (v *crashVM) openDisk(string) (disk, error) { return v, nil }

func (v *crashVM) openPartition(string) (partitionReader, error) {
	return struct {
		io.ReaderAt
		io.Closer
	}{bytes.NewReader(v.super), io.NopCloser(nil)}, nil
}

func (v *crashVM) ResizePartition(_ int, _, size int64) error {
	v.kernelHas(size)
	return v.recorder.ResizePartition(0, 0, size)
}

func (v *crashVM) resizeExt4(_ string, blocks int64) error {
	v.filesystemHas(blocks * crashBlock)
	v.log = append(v.log, event{filesystem: blocks * crashBlock})
	return nil
}

// grow grows everything, and checks that only what is on the medium is built on.
func (v *crashVM) grow(what string) []event {
	v.Helper()
	v.log = nil
	if _, err := grow(context.Background(), v.Host(), v, "/", Options{}); err != nil {
		v.Errorf("%s growing fails: %v", what, err)
	}
	synced := true
	for _, e := range v.log {
		switch {
		case e.isSync():
			synced = true
		case !synced:
			v.Errorf("%s something is done before a write is synced: %+v", what, e)
		case e.data != nil:
			synced = false
		}
	}
	return v.log
}

// Wherever a whole growth ends, by the power that fails or by being killed, the
// next one completes it: the table to the byte, the kernel and the file system to
// their sizes; and the one after it does nothing (G9, G11, G12).
func TestCrashOfGrow(t *testing.T) {
	t.Parallel()
	super := rootSuper(t)
	for name, layout := range crashLayouts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCrash(t, layout)
			c.final = c.run(c.base).medium
			v := newCrashVM(c, super)
			sector := int64(c.base.sector)
			size := func(partitions []extent) int64 {
				for _, e := range partitions {
					if e.number == c.root {
						return e.size * sector
					}
				}
				t.Fatalf("no partition %d in %+v", c.root, partitions)
				return 0
			}
			before, after := size(c.partitions), size(c.grown())
			check := func(what string) {
				t.Helper()
				if !v.medium.equal(c.final) {
					t.Errorf("%s the table has other bytes", what)
				}
				if log := v.grow(what + " growing again"); len(log) > 0 {
					t.Errorf("%s growing again does %d things, want none", what, len(log))
				}
				fs, err := readExt4(bytes.NewReader(v.super), "ext4")
				at, err2 := locate(v.Host(), v, "/")
				if err := errors.Join(err, err2); err != nil {
					t.Fatal(err)
				}
				if at.size != after || after-fs.size() > 16*mib || fs.fit(after) != fs.size() {
					t.Errorf("%s the kernel has %d bytes, the file system %d, want %d", what, at.size, fs.size(), after)
				}
			}
			v.set(c.base, before, before)
			log := slices.Clone(v.grow("the first time"))
			check("the first time")
			kernel, filesystem := before, before
			for k, e := range log {
				m := written(c.base, log[:k])
				booted := kernel
				if seen, err := kernelReads(m, m.sector, m.sectors); err == nil {
					booted = size(seen)
				}
				for _, kernel := range []int64{kernel, booted} {
					what := fmt.Sprintf("after %d of %d events, with %d bytes for the kernel,", k, len(log), kernel)
					v.set(m, kernel, filesystem)
					v.grow(what)
					check(what)
				}
				kernel, filesystem = max(kernel, e.kernel), max(filesystem, e.filesystem)
			}
		})
	}
}
