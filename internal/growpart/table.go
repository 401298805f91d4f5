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
	// every prefix of the patches the table is valid, and only the last one
	// changes the partition itself.
	resize(e extent, end int64) []patch
	// usable returns the first sector no partition can have.
	usable() int64
}

// obstacle is what a partition that grows meets. The zero value is the end of
// the disk.
type obstacle struct {
	partition *extent
	format    string // a limit of the table's format
}

// readTable reads the partition table of a disk with the given number of
// sectors. This is where a further kind of table joins in.
func readTable(disk io.ReaderAt, sectorSize int, sectors int64) (table, error) {
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
// disk, to the next partition, or to the size that is asked for (bytes; 0 for
// all there is).
func planPartition(t table, root extent, requested int64) (target, error) {
	sector := int64(t.sectorSize())
	align := MinGain / sector
	room, by := t.room(root)
	limit := room / align * align
	stay := target{end: root.end()}

	end := limit
	if requested > 0 {
		// In sectors first: the sum cannot overflow then.
		wanted := root.start + requested/sector
		if requested%sector != 0 {
			wanted++
		}
		if wanted < root.end() {
			stay.reason = fmt.Sprintf("asked for %s, which is less than the %s it has", formatBytes(requested), formatBytes(root.size*sector))
			return stay, nil
		}
		end = min(end, (wanted+align-1)/align*align)
		if wanted > room {
			stay.reason = fmt.Sprintf("asked for %s, there is room for %s", formatBytes(requested), formatBytes((room-root.start)*sector))
		}
	}
	if end == limit {
		stay.explain(t, root, by)
	}
	if end-root.end() <= align {
		return stay, nil
	}
	grown := stay
	grown.end = end
	grown.patches = t.resize(root, end)
	return grown, nil
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
