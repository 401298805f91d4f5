// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"fmt"
	"io"

	"nodeagent/internal/fault"
)

// extent is a partition of a table. Start and size are in sectors of the disk.
type extent struct {
	number    int
	start     int64
	size      int64
	kind      string // for people: swap, Linux
	container bool   // holds other partitions: an extended one
}

func (e extent) end() int64 { return e.start + e.size }

func (e extent) String() string { return fmt.Sprintf("partition %d (%s)", e.number, e.kind) }

// table is a partition table as it was read. Its methods are pure.
type table interface {
	sectorSize() int
	// extents returns all partitions, containers among them.
	extents() []extent
	// room returns the sector before which a partition has to end, and what is
	// there.
	room(extent) (end int64, by obstacle)
	// resize returns the patches that move a partition's end, with that of the
	// container around it where it has one. The new end is within room. After
	// every prefix of the patches the table is valid, with the partition's old
	// end or its new one.
	resize(e extent, end int64) []patch
	// mend returns the patches that complete a table an interrupted run left
	// unfinished, or of which one of two copies is damaged, without moving any
	// partition; and what they repair, for people. A sound table needs none.
	mend() (patches []patch, what string)
	// usable returns the first sector no partition can have.
	usable() int64
}

// obstacle is what a partition that grows meets. The zero value is the end of
// the disk.
type obstacle struct {
	partition *extent
	format    string // a limit of the table's format
	hybrid    bool   // the partition is in the MBR beside the GPT as well
}

// readTable reads the partition table of a disk with the given number of
// sectors. The MBR decides which kind it is, as it does for the kernel: a GPT
// without its protective entry is a stale one.
func readTable(disk io.ReaderAt, sectorSize int, sectors int64) (table, error) {
	protective, err := hasProtectiveEntry(disk)
	if err != nil {
		return nil, err
	}
	if protective {
		return readGPT(disk, sectorSize, sectors)
	}
	return readMBR(disk, sectorSize, sectors)
}

// target is where a partition is to end.
type target struct {
	end     int64 // sector; the partition's own end when it stays
	patches []patch
	reason  string // why it is not larger; "" when it has all of the disk
	warning *fault.Error
}

// planPartition says how far a partition can grow: to the last whole MiB of the
// disk or of its first requested bytes (0 for all of it), or to the next
// partition.
func planPartition(t table, root extent, requested int64) target {
	sector := int64(t.sectorSize())
	align := MinGain / sector
	room, by := t.room(root)
	limit := room / align * align
	stay := target{end: root.end()}

	if wanted := requested / sector / align * align; requested > 0 && wanted < limit {
		if wanted < root.end() {
			stay.reason = fmt.Sprintf("asked for %s of the disk, the partition ends at %s", formatBytes(requested), formatBytes(root.end()*sector))
			return stay
		}
		limit = wanted
	} else {
		if wanted-t.usable() > align {
			stay.reason = fmt.Sprintf("asked for %s of the disk, which has %s", formatBytes(requested), formatBytes(t.usable()*sector))
		}
		stay.explain(t, root, by)
	}
	if limit-root.end() <= align {
		return stay
	}
	grown := stay
	grown.end = limit
	grown.patches = t.resize(root, limit)
	return grown
}

// explain says what keeps the partition from space that no partition has.
func (g *target) explain(t table, root extent, by obstacle) {
	sector := int64(t.sectorSize())
	last := int64(0)
	for _, e := range t.extents() {
		last = max(last, e.end())
	}
	switch free := (t.usable() - last) * sector; {
	case by.partition != nil && free > MinGain:
		g.reason = "blocked by " + by.partition.String()
		g.warning = fault.New(fault.DiskBlocked, "cannot grow partition %d into %s of free disk: %s follows it",
			root.number, formatBytes(free), by.partition)
	case by.hybrid && free > MinGain:
		g.reason = fmt.Sprintf("%s is in a hybrid MBR", root)
		g.warning = fault.New(fault.DiskUnsupported, "cannot grow %s: it is in the GPT and in a hybrid MBR, where it would keep its size", root).
			WithHint("Replace the hybrid MBR by a protective one (gdisk: x, n, w), unless the machine boots by it.")
	case by.format != "":
		g.reason = by.format
		g.warning = fault.New(fault.DiskBlocked, "cannot grow partition %d to the end of the disk: %s", root.number, by.format).
			WithHint("Use a smaller disk, or a template with a GPT.")
	}
}

// patch replaces bytes of the disk.
type patch struct {
	Offset   int64
	Old, New []byte
	What     string // for messages
}

// apply writes patches in their order. Each is one write of whole sectors that
// reaches the medium before the next begins. Nothing is written over bytes that
// are not the ones the patch was made for.
func apply(disk disk, patches []patch) error {
	sector := int64(disk.SectorSize())
	for _, p := range patches {
		first := p.Offset / sector * sector
		last := (p.Offset + int64(len(p.New)) + sector - 1) / sector * sector
		block := make([]byte, last-first)
		if _, err := disk.ReadAt(block, first); err != nil {
			return fmt.Errorf("cannot read %s: %w", p.What, err)
		}
		within := block[p.Offset-first:][:len(p.Old)]
		if !bytes.Equal(within, p.Old) {
			return fmt.Errorf("cannot write %s: it has changed since it was read", p.What)
		}
		copy(within, p.New)
		if _, err := disk.WriteAt(block, first); err != nil {
			return fmt.Errorf("cannot write %s: %w", p.What, err)
		}
		if err := disk.Sync(); err != nil {
			return fmt.Errorf("cannot write %s: %w", p.What, err)
		}
	}
	return nil
}
