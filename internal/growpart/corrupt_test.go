// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
)

// corruption is damage to a field of a table, and what comes of it on a machine
// that has read the table before. Each byte of the field is damaged alone; of more
// than a header's 92 a sample.
type corruption struct {
	name     string
	lba      int64
	at, size int
	flip     byte   // what each byte is changed by
	value    []byte // or the whole field is replaced
	// want is the refusal; "" where the disk is grown as ever, or what is told of a
	// repair.
	want string
}

// variants returns the disk with each byte of the field damaged.
func (d corruption) variants(m medium) []medium {
	if d.value != nil {
		sector := slices.Clone(m.get(d.lba))
		copy(sector[d.at:], d.value)
		return []medium{m.with(map[int64][]byte{d.lba: sector})}
	}
	var all []medium
	for i := 0; i < d.size; i += 1 + d.size/93*4 {
		sector := slices.Clone(m.get(d.lba))
		sector[d.at+i] ^= d.flip
		all = append(all, m.with(map[int64][]byte{d.lba: sector}))
	}
	return all
}

// damaged is a machine to try corruptions on.
type damaged struct {
	*crashVM
	before, after int64 // bytes of the root
}

func newDamaged(t *testing.T, layout crashLayout) *damaged {
	t.Helper()
	c := newCrash(t, layout)
	c.final = c.run(c.base).medium
	d := &damaged{crashVM: newCrashVM(c, rootSuper(t))}
	for i, e := range c.partitions {
		if e.number == c.root {
			d.before, d.after = e.size*int64(c.base.sector), c.grown()[i].size*int64(c.base.sector)
		}
	}
	return d
}

// try grows the root of a damaged disk. A refusal leaves it as it is; else the
// root gets its size and nothing has changed but the table and, maybe, the damaged
// bytes.
func (d *damaged) try(what string, m medium, want string, spoiled corruption) {
	d.Helper()
	d.set(m, d.before, d.before)
	result, err := grow(context.Background(), d.Host(), d, "/", Options{})
	if want != "" && !strings.HasPrefix(want, "repaired") {
		if err == nil || !strings.Contains(err.Error(), want) || fault.As(err).Code != fault.DiskTableInvalid {
			d.Errorf("%s: error = %v\nwant %q with code %s", what, err, want, fault.DiskTableInvalid)
		}
		if len(d.log) > 0 {
			d.Errorf("%s: %d things are done to a disk that is refused", what, len(d.log))
		}
		return
	}
	if err != nil || result.PartitionBytes.After != d.after || want != "" && result.Note != want {
		d.Errorf("%s: %+v, %v\nwant %d bytes, %q", what, result, err, d.after, want)
	}
	whole := slices.Clone(d.get(spoiled.lba))
	copy(whole[spoiled.at:][:spoiled.size], d.final.get(spoiled.lba)[spoiled.at:])
	if !d.with(map[int64][]byte{spoiled.lba: whole}).equal(d.final) || d.checkKernel(what, d.medium) != newSize {
		d.Errorf("%s: the table does not become as it is without the damage", what)
	}
	if log := d.grow(what); len(log) > 0 {
		d.Errorf("%s: growing again does %d things, want none", what, len(log))
	}
}

// Every field of an MBR with logical partitions: damage that matters is refused,
// by the table alone or because the kernel has it otherwise, and nothing is
// written; the rest does not matter, and stays.
func TestCorruptMBR(t *testing.T) {
	t.Parallel()
	const mbr, swap, root = 0, 501758, 1503231
	d := newDamaged(t, crashLayouts()["MBR 1/2/5/6"])
	entry := func(slot, field int) int { return 446 + 16*slot + field }
	word := func(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
	// An entry that leads to a record.
	link := func(start uint32) []byte {
		return slices.Concat([]byte{0, 0, 0, 0, 5, 0, 0, 0}, word(start), word(1))
	}
	const (
		noTable  = "has no partition table"
		other    = "the kernel has partition %d at byte"
		noRoot   = "has no partition 6 that begins at byte 769654784"
		twoOfAll = "has two partitions or two links"
	)
	tests := []corruption{
		{"boot code", mbr, 0, 440, 0x55, nil, ""},
		{"disk id", mbr, 440, 6, 0x55, nil, ""},
		{"signature", mbr, 510, 2, 0x01, nil, "sector 0 " + noTable},

		{"partition 1, boot flag", mbr, entry(0, 0), 1, 0x80, nil, ""},
		{"partition 1, boot flag", mbr, entry(0, 0), 1, 0x01, nil, "entry 1 of the MBR has the boot flag 0x81"},
		{"partition 1, first CHS", mbr, entry(0, 1), 3, 0x55, nil, ""},
		{"partition 1, type", mbr, entry(0, 4), 1, 0x01, nil, ""},
		{"partition 1, no type", mbr, entry(0, 4), 1, 0, []byte{0}, "partition 1 has no type"},
		{"partition 1, extended", mbr, entry(0, 4), 1, 0, []byte{0x0f}, "partitions 1 and 2 are both extended"},
		{"partition 1, protective", mbr, entry(0, 4), 1, 0, []byte{0xee}, "has a GPT, but not that it begins at sector 1"},
		{"partition 1, last CHS", mbr, entry(0, 5), 3, 0x55, nil, ""},
		{"partition 1, start", mbr, entry(0, 8), 2, 0x01, nil, fmt.Sprintf(other, 1)},
		{"partition 1, start", mbr, entry(0, 10), 1, 0x01, nil, "partition 1 and partition 2 overlap at sector 501758"},
		{"partition 1, start", mbr, entry(0, 11), 1, 0x80, nil, "is not on the disk of 18874368 sectors"},
		{"partition 1, start 0", mbr, entry(0, 8), 4, 0, word(0), "partition 1 (sectors 0 to 497663) is not on the disk"},
		{"partition 1, size", mbr, entry(0, 12), 2, 0x01, nil, fmt.Sprintf(other, 1)},
		{"partition 1, size", mbr, entry(0, 14), 1, 0x08, nil, "partition 1 and partition 2 overlap at sector 501758"},
		{"partition 1, size", mbr, entry(0, 15), 1, 0x80, nil, "is not on the disk"},
		{"partition 1, size 0", mbr, entry(0, 12), 4, 0, word(0), fmt.Sprintf(other, 1)},
		{"partition 1, largest size", mbr, entry(0, 12), 4, 0, word(1<<32 - 1), "partition 1 (sectors 2048 to 4294969342) is not on the disk"},

		{"extended, boot flag", mbr, entry(1, 0), 1, 0x80, nil, ""},
		{"extended, boot flag", mbr, entry(1, 0), 1, 0x40, nil, "entry 2 of the MBR has the boot flag 0x40"},
		{"extended, first CHS", mbr, entry(1, 1), 3, 0x55, nil, ""},
		{"extended, type", mbr, entry(1, 4), 1, 0x80, nil, ""},
		{"extended, type", mbr, entry(1, 4), 1, 0, []byte{0x0f}, ""},
		{"extended, type", mbr, entry(1, 4), 1, 0x01, nil, noRoot},
		{"extended, last CHS", mbr, entry(1, 5), 3, 0x55, nil, ""},
		{"extended, start", mbr, entry(1, 8), 2, 0x01, nil, noTable},
		{"extended, start", mbr, entry(1, 10), 1, 0x08, nil, noTable},
		{"extended, start", mbr, entry(1, 11), 1, 0x80, nil, "partition 2 (sectors 2147985406 to 2153773055) is not on the disk"},
		{"extended, size", mbr, entry(1, 12), 1, 0x01, nil, ""},
		{"extended, size", mbr, entry(1, 12), 1, 0x02, nil, "partition 6 (sectors 1503232 to 6289407) is not inside the extended partition 2 (to sector 6289405)"},
		{"extended, size", mbr, entry(1, 13), 1, 0x10, nil, "is not inside the extended partition 2"},
		{"extended, size", mbr, entry(1, 14), 1, 0x80, nil, ""},
		{"extended, size", mbr, entry(1, 15), 1, 0x01, nil, "is not on the disk"},
		{"extended, size 0", mbr, entry(1, 12), 4, 0, word(0), noRoot},

		{"unused entry, boot flag", mbr, entry(2, 0), 1, 0x80, nil, ""},
		{"unused entry, boot flag", mbr, entry(2, 0), 1, 0x01, nil, "entry 3 of the MBR has the boot flag 0x01"},
		{"unused entry, CHS, type, CHS, start", mbr, entry(2, 1), 11, 0x55, nil, ""},
		{"unused entry, size", mbr, entry(2, 12), 4, 0x01, nil, "partition 3 has no type"},
		{"last entry, CHS, type, CHS, start", mbr, entry(3, 1), 11, 0x55, nil, ""},
		{"last entry, size", mbr, entry(3, 12), 4, 0x80, nil, "partition 4 has no type"},

		{"record of swap, no code", swap, 0, 446, 0x55, nil, ""},
		{"record of swap, signature", swap, 510, 2, 0x01, nil, "sector 501758 " + noTable},
		{"swap, boot flag and first CHS", swap, entry(0, 0), 4, 0x55, nil, ""},
		{"swap, type", swap, entry(0, 4), 1, 0x01, nil, ""},
		{"swap, no type", swap, entry(0, 4), 1, 0, []byte{0}, "entry 1 in sector 501758 has no type"},
		{"swap, link", swap, entry(0, 4), 1, 0, []byte{5}, twoOfAll},
		{"swap, last CHS", swap, entry(0, 5), 3, 0x55, nil, ""},
		{"swap, start", swap, entry(0, 8), 1, 0x01, nil, fmt.Sprintf(other, 5)},
		{"swap, start", swap, entry(0, 9), 1, 0x80, nil, "partition 5 and the table in sector 1503231 overlap at sector 1503231"},
		{"swap, start", swap, entry(0, 11), 1, 0x80, nil, "partition 5 (sectors 2147985408 to 2148984831) is not inside the extended partition 2"},
		{"swap, start 0", swap, entry(0, 8), 4, 0, word(0), "partition 5 (sectors 501758 to"},
		{"swap, size", swap, entry(0, 12), 1, 0x01, nil, fmt.Sprintf(other, 5)},
		{"swap, size", swap, entry(0, 13), 1, 0x40, nil, fmt.Sprintf(other, 5)},
		{"swap, size", swap, entry(0, 14), 1, 0x10, nil, "overlap at sector 1503231"},
		{"swap, size", swap, entry(0, 15), 1, 0x80, nil, "partition 5 (sectors 501760 to"},
		{"swap, size 0", swap, entry(0, 12), 4, 0, word(0), noRoot},

		{"link, boot flag and first CHS", swap, entry(1, 0), 4, 0x55, nil, ""},
		{"link, type", swap, entry(1, 4), 1, 0x80, nil, ""},
		{"link, type", swap, entry(1, 4), 1, 0x01, nil, twoOfAll},
		{"link, no type", swap, entry(1, 4), 1, 0, []byte{0}, "entry 2 in sector 501758 has no type"},
		{"link, last CHS", swap, entry(1, 5), 3, 0x55, nil, ""},
		{"link, start", swap, entry(1, 8), 3, 0x01, nil, noTable},
		{"link, start", swap, entry(1, 11), 1, 0x80, nil, "leads to sector 2148986879, outside the extended partition 2"},
		{"link, start 0", swap, entry(1, 8), 4, 0, word(0), "leads to sector 501758, outside"},
		{"link, size", swap, entry(1, 12), 3, 0x01, nil, ""},
		{"link, size 0", swap, entry(1, 12), 4, 0, word(0), noRoot},

		{"third entry, all but the size", swap, entry(2, 0), 12, 0x55, nil, ""},
		{"third entry, size", swap, entry(2, 12), 4, 0x01, nil, "the table in sector 501758 has more than two entries"},
		{"fourth entry, size", swap, entry(3, 12), 4, 0x80, nil, "more than two entries"},

		{"record of the root, no code", root, 0, 446, 0x55, nil, ""},
		{"record of the root, signature", root, 510, 2, 0x01, nil, "sector 1503231 " + noTable},
		{"root, boot flag and first CHS", root, entry(0, 0), 4, 0x55, nil, ""},
		{"root, type", root, entry(0, 4), 1, 0x01, nil, ""},
		{"root, no type", root, entry(0, 4), 1, 0, []byte{0}, "entry 1 in sector 1503231 has no type"},
		{"root, last CHS", root, entry(0, 5), 3, 0x55, nil, ""},
		{"root, start", root, entry(0, 8), 1, 0x01, nil, "partition 6 (sectors 1503231 to 6289406) is not inside"},
		{"root, start", root, entry(0, 9), 2, 0x01, nil, "is not inside"},
		{"root, start", root, entry(0, 11), 1, 0x80, nil, "partition 6 (sectors 2148986880 to"},
		{"root, size", root, entry(0, 12), 1, 0x01, nil, "partition 6 (sectors 1503232 to 6289408) is not inside the extended partition 2 (to sector 6289407)"},
		{"root, size", root, entry(0, 13), 1, 0x08, nil, "the table on /dev/vda gives partition 6 2449473536 bytes, the kernel has 2450522112"},
		{"root, size", root, entry(0, 15), 1, 0x80, nil, "is not inside"},
		{"root, size 0", root, entry(0, 12), 4, 0, word(0), noRoot},
		{"no link, all but the size", root, entry(1, 0), 12, 0x55, nil, ""},
		{"no link, size", root, entry(1, 12), 4, 0x01, nil, "entry 2 in sector 1503231 has no type"},
		{"link to its own record", root, entry(1, 0), 16, 0, link(root - swap), "leads back to sector 1503231"},
		{"link to the start", root, entry(1, 0), 16, 0, link(0), "leads to sector 501758, outside"},
		{"link beyond", root, entry(1, 0), 16, 0, link(0x7fffffff), "outside the extended partition 2"},
		{"link to data", root, entry(1, 0), 16, 0, link(1), "sector 501759 " + noTable},
		{"third entry a link", root, entry(2, 0), 16, 0, link(1), "more than two entries"},
	}
	for _, test := range tests {
		for i, m := range test.variants(d.base) {
			what := fmt.Sprintf("%s, variant %d, %#x%x", test.name, i, test.flip, test.value)
			spoiled := test
			if test.at >= 446 && test.at < 510 { // the rest of an entry is written along with its size
				spoiled.at = 446 + (test.at-446)/16*16
				spoiled.size = 16
			}
			d.try(what, m, test.want, spoiled)
		}
	}
}

// sealGPT makes the checksums of a copy right: of the header, and of the entries
// too where those were damaged.
func sealGPT(m medium, header, entries int64, entriesToo bool) medium {
	sector := slices.Clone(m.get(header))
	if entriesToo {
		array := make([]byte, 128*128)
		if _, err := m.ReadAt(array, entries*int64(m.sector)); err != nil {
			panic(err)
		}
		binary.LittleEndian.PutUint32(sector[88:], crc32.ChecksumIEEE(array))
	}
	return m.with(map[int64][]byte{header: sealed(sector)})
}

// Every byte of both copies of a GPT and of its MBR. A copy with a wrong checksum
// is made as the other one, byte for byte; where the checksums are right the
// primary is the truth, and what does not fit the disk or the kernel is refused.
func TestCorruptGPT(t *testing.T) {
	t.Parallel()
	const (
		last, array     = 3<<30/512 - 1, 3<<30/512 - 33
		primary, backup = "repaired the primary partition table", "repaired the backup partition table"
	)
	full := newDamaged(t, ofGPT(func(t *testing.T) *image { return openImage(t, 3*gib, arm64) }, 3*gib, 512, 4, true))
	grown := newDamaged(t, ofGPT(func(t *testing.T) *image { return openImage(t, 3*gib, arm64) }, 9*gib, 512, 4, true))
	tests := []corruption{
		{"boot code", 0, 0, 446, 0x55, nil, ""},
		{"protective entry, boot flag and first CHS", 0, 446, 4, 0x55, nil, ""},
		{"protective entry, type", 0, 450, 1, 0x01, nil, "has no partition 4 that begins at byte 1253048320"},
		{"protective entry, no type", 0, 450, 1, 0, []byte{0}, "partition 1 has no type"},
		{"protective entry, last CHS", 0, 451, 3, 0x55, nil, ""},
		{"protective entry, start", 0, 454, 4, 0x01, nil, "the MBR says that the disk has a GPT, but not that it begins at sector 1"},
		{"protective entry, size", 0, 458, 4, 0x01, nil, "repaired the protective MBR"},
		{"unused entry, boot flag and CHS", 0, 462, 4, 0x55, nil, ""},
		{"unused entry, type", 0, 466, 1, 0x55, nil, ""},
		{"unused entries, the rest", 0, 467, 11, 0x55, nil, ""},
		{"signature", 0, 510, 2, 0x01, nil, "sector 0 has no partition table"},

		{"primary header", 1, 0, 92, 0x01, nil, primary},
		{"primary header", 1, 0, 92, 0x80, nil, primary},
		{"beyond the primary header", 1, 92, 420, 0x55, nil, ""},
		{"primary, used entries", 2, 0, 512, 0x01, nil, primary},
		{"primary, used entries", 2, 0, 512, 0xff, nil, primary},
		{"primary, unused entries", 3, 0, 512, 0x80, nil, primary},
		{"primary, last entries", 33, 0, 512, 0x01, nil, primary},

		{"backup header", last, 0, 92, 0x01, nil, backup},
		{"backup header", last, 0, 92, 0x80, nil, backup},
		{"beyond the backup header", last, 92, 420, 0x55, nil, ""},
		{"backup, used entries", array, 0, 512, 0x01, nil, backup},
		{"backup, used entries", array, 0, 512, 0xff, nil, backup},
		{"backup, unused entries", array + 1, 0, 512, 0x80, nil, backup},
		{"backup, last entries", last - 1, 0, 512, 0x01, nil, backup},
	}
	for _, test := range tests {
		for i, m := range test.variants(full.base) {
			what := fmt.Sprintf("%s, variant %d, %#x%x", test.name, i, test.flip, test.value)
			spoiled := test
			if strings.HasPrefix(test.want, "repaired") {
				spoiled.size = 0
			}
			full.try(what, m, test.want, spoiled)
		}
		if test.want == "" {
			continue
		}
		// On a disk that has grown a repair does not show: the root grows.
		want, spoiled := test.want, corruption{}
		if strings.HasPrefix(want, "repaired") {
			want = ""
			if test.lba >= array {
				spoiled = test // what the old backup was is left
			}
		}
		for i, m := range test.variants(grown.base) {
			grown.try(fmt.Sprintf("grown: %s, variant %d, %#x%x", test.name, i, test.flip, test.value), m, want, spoiled)
		}
	}

	const notIn = "is not in the sectors for partitions"
	entry := func(number, field int) int { return (number-1)*128 + field }
	for _, test := range []corruption{
		{"revision", 1, 8, 4, 0x01, nil, ""},
		{"size", 1, 12, 1, 0x01, nil, ""},
		{"size, too small", 1, 12, 1, 0x04, nil, primary},
		{"size, too large", 1, 13, 3, 0x02, nil, primary},
		{"reserved", 1, 20, 4, 0x01, nil, ""},
		{"own sector", 1, 24, 8, 0x02, nil, primary},
		{"sector of the backup", 1, 32, 1, 0x01, nil, backup},
		{"sector of the backup, beyond the disk", 1, 35, 5, 0x40, nil, "the partition table was made for a disk of "},
		{"first usable", 1, 40, 1, 0x01, nil, "partition 1 (sectors 2048 to 1103871) " + notIn + " (2049 to 6291422)"},
		{"first usable, among the entries", 1, 40, 8, 0, []byte{33, 0, 0, 0, 0, 0, 0, 0}, "gives sectors 33 to 6291422 to partitions, of 34 to 6291422"},
		{"first usable, too small", 1, 41, 1, 0x08, nil, "gives sectors 0 to 6291422 to partitions, of 34 to 6291422"},
		{"first usable", 1, 42, 1, 0x40, nil, notIn},
		{"first usable, beyond", 1, 43, 5, 0x80, nil, "to 6291422 to partitions, of 34 to 6291422"},
		{"last usable", 1, 48, 1, 0x01, nil, "gives sectors 2048 to 6291423 to partitions, of 34 to 6291422"},
		{"last usable", 1, 49, 1, 0x80, nil, "partition 4 (sectors 2447360 to 6289407) " + notIn + " (2048 to 6258654)"},
		{"last usable, beyond", 1, 51, 5, 0x80, nil, "the partition table was made for a disk of "},
		{"disk id", 1, 56, 16, 0x01, nil, backup},
		{"sector of the entries", 1, 72, 8, 0x01, nil, primary},
		{"number of entries", 1, 80, 4, 0x01, nil, primary},
		{"no entries", 1, 80, 4, 0, make([]byte, 4), primary},
		{"size of entries", 1, 84, 4, 0x80, nil, primary},
		{"checksum of the entries", 1, 88, 4, 0x01, nil, primary},

		{"type of partition 1", 2, entry(1, 0), 16, 0x01, nil, backup},
		{"id of partition 1", 2, entry(1, 16), 16, 0x01, nil, backup},
		{"start of partition 1", 2, entry(1, 32), 1, 0x01, nil, "the kernel has partition 1 at byte 1048576"},
		{"start of partition 1", 2, entry(1, 33), 1, 0x08, nil, "partition 1 (sectors 0 to 1103871) " + notIn},
		{"start of partition 1", 2, entry(1, 35), 5, 0x01, nil, notIn},
		{"end of partition 1", 2, entry(1, 40), 1, 0x01, nil, "the kernel has partition 1 at byte 1048576"},
		{"end of partition 1", 2, entry(1, 42), 1, 0x20, nil, "overlap at sector 1103872"},
		{"end of partition 1", 2, entry(1, 43), 5, 0x80, nil, "the partition table was made for a disk of "},
		{"start of partition 2, a sector too early", 2, entry(2, 32), 3, 0, []byte{0xff, 0xd7, 0x10}, "partition 1 (EFI) and partition 2 (Linux) overlap at sector 1103871"},
		{"attributes and name of partition 1", 2, entry(1, 48), 80, 0x01, nil, backup},
		{"start of partition 4", 2, entry(4, 32), 1, 0x01, nil, "has no partition 4 that begins at byte 1253048320"},
		{"end of partition 4", 2, entry(4, 40), 1, 0x01, nil, "the table on /dev/vda gives partition 4"},
		{"no type of partition 4", 2, entry(4, 0), 16, 0, make([]byte, 16), "has no partition 4 that begins at byte 1253048320"},
		{"type of an unused entry", 3, entry(1, 0), 16, 0x01, nil, "partition 5 (sectors 0 to 0) " + notIn},
		{"start of an unused entry", 3, entry(1, 32), 16, 0x01, nil, backup},

		{"backup's revision, size", last, 8, 5, 0x01, nil, ""},
		{"backup's size, too large", last, 13, 3, 0x02, nil, backup},
		{"backup's reserved", last, 20, 4, 0x01, nil, ""},
		{"backup's own sector", last, 24, 8, 0x01, nil, backup},
		{"backup's sector of the primary", last, 32, 8, 0x01, nil, backup},
		{"backup's usable sectors, disk id", last, 40, 32, 0x01, nil, backup},
		{"backup's sector of the entries", last, 72, 8, 0x01, nil, backup},
		{"backup's entries", last, 80, 12, 0x01, nil, backup},
		{"entries of the backup", array, 0, 512, 0x01, nil, backup},
	} {
		for i, m := range test.variants(full.base) {
			m = sealGPT(m, 1, 2, test.lba > 1 && test.lba < array)
			m = sealGPT(m, last, array, test.lba >= array && test.lba < last)
			what := fmt.Sprintf("sealed: %s, variant %d, %#x%x", test.name, i, test.flip, test.value)
			full.trySealed(what, m, test.want)
		}
	}
}

// trySealed is try for damage that a checksum covers: both copies get it or lose
// it.
func (d *damaged) trySealed(what string, m medium, want string) {
	d.Helper()
	if want != "" && !strings.HasPrefix(want, "repaired") {
		d.try(what, m, want, corruption{})
		return
	}
	d.set(m, d.before, d.before)
	result, err := grow(context.Background(), d.Host(), d, "/", Options{})
	note := want
	if note == "" {
		note = "nothing to grow"
	}
	if err != nil || result.Note != note || result.PartitionBytes.After != d.after || d.checkKernel(what, d.medium) != newSize {
		d.Errorf("%s: %+v, %v\nwant %q", what, result, err, note)
	}
	if log := d.grow(what); len(log) > 0 {
		d.Errorf("%s: growing again does %d things, want none", what, len(log))
	}
	const last = 3<<30/512 - 1
	p, b := d.get(1), d.get(last)
	if want != "" && !(bytes.Equal(p[40:72], b[40:72]) && bytes.Equal(p[80:92], b[80:92])) {
		d.Errorf("%s: the copies differ", what)
	}
}

// Any one byte of a table changed, with the checksums wrong and right, is refused
// or leads to plans that give sound tables, in which Linux finds the same
// partitions as this package.
func TestAnyByteChanged(t *testing.T) {
	t.Parallel()
	mbr := load(t, openImage(t, 3*gib, shipped))
	const last = 3<<30/512 - 1
	gpt := load(t, openImage(t, 3*gib, gptHead+"table-length: 4\nfirst-lba: 34\ndisk1 : start=2048, size=20480, type=uefi\ndisk3 : start=22528, size=6266880, type=linux\n"))
	for name, test := range map[string]struct {
		medium
		fields []span
		flips  []byte
		seal   bool
	}{
		"MBR":         {mbr, []span{{0, 446, 512}, {501758, 446, 512}, {1503231, 446, 512}}, []byte{0x01, 0x02, 0x07, 0x80, 0x86, 0xff}, false},
		"GPT":         {gpt, []span{{0, 446, 512}, {1, 0, 92}, {2, 0, 384}, {last, 0, 92}, {last - 1, 0, 384}}, []byte{0xff}, false},
		"GPT, sealed": {gpt, []span{{1, 0, 92}, {2, 0, 384}, {last, 0, 92}, {last - 1, 0, 384}}, []byte{0x01, 0x80}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused, planned := 0, 0
			try := func(what string, m medium) {
				disk := &overlay{at: m.at, sectors: 9 * gib / 512, sector: 512}
				table, err := readTable(disk, 512, disk.sectors)
				if err != nil {
					if code := fault.As(err).Code; code != fault.DiskTableInvalid {
						t.Errorf("%s: code %s of %v", what, code, err)
					}
					refused++
					return
				}
				planned++
				checkGrowth(t, disk, table)
				checkLinux(t, disk, table)
			}
			for _, field := range test.fields {
				for i := field.from; i < field.to; i++ {
					for _, flip := range test.flips {
						sector := slices.Clone(test.get(field.lba))
						sector[i] ^= flip
						m := test.with(map[int64][]byte{field.lba: sector})
						for _, at := range [][2]int64{{1, 2}, {last, last - 1}} {
							if header := slices.Clone(m.get(at[0])); test.seal {
								if field.lba == at[1] {
									binary.LittleEndian.PutUint32(header[88:], crc32.ChecksumIEEE(m.get(at[1])))
								}
								m = m.with(map[int64][]byte{at[0]: sealed(header)})
							}
						}
						try(fmt.Sprintf("sector %d byte %d ^ %#x", field.lba, i, flip), m)
					}
				}
			}
			if refused == 0 || planned == 0 {
				t.Errorf("%d refused, %d planned: the test tests nothing", refused, planned)
			}
		})
	}
}

// checkLinux makes sure that Linux finds the partitions of a table that is
// accepted, and finds them after each write of every plan, the one that grows with
// its old size or its new one. What Linux does not read before is not asked for.
func checkLinux(t testing.TB, disk *overlay, before table) {
	t.Helper()
	found, err := kernelReads(disk, disk.SectorSize(), disk.count())
	if err != nil {
		return
	}
	var want []extent
	for _, e := range before.extents() {
		if e.container {
			e.size = min(e.size, max(1, 1024/int64(disk.SectorSize())))
		}
		if e.number < 256 { // the kernel's DISK_MAX_PARTS
			want = append(want, extent{number: e.number, start: e.start, size: e.size})
		}
	}
	if !slices.Equal(found, want) {
		t.Fatalf("Linux finds %+v, this package %+v", found, want)
	}
	for i, root := range want {
		for _, e := range before.extents() {
			if e.number != root.number || e.container {
				continue
			}
			todo := planPartition(before, e, 0)
			grown := slices.Clone(want)
			grown[i].size = todo.end - root.start
			isNew := false
			for cut := range todo.patches {
				view := disk.patched(t, todo.patches[:cut+1])
				found, err := kernelReads(view, disk.SectorSize(), disk.count())
				if slices.Equal(found, grown) {
					isNew = true
				} else if isNew || !slices.Equal(found, want) {
					t.Fatalf("after %d of %d writes Linux finds %+v, %v", cut+1, len(todo.patches), found, err)
				}
			}
			if len(todo.patches) > 0 && !isNew {
				t.Fatalf("after all writes Linux finds partition %d with its old size", root.number)
			}
		}
	}
}
