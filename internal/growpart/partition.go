// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// PartitionOptions say how far GrowPartition grows a partition.
type PartitionOptions struct {
	// FreePercent is how much of the disk stays unused, 0 to 99.
	FreePercent int
	// MinGain is what the partition has to gain to be written, in bytes.
	MinGain int64
	// Kernel says what to do about a partition the kernel has.
	Kernel KernelUpdate
	// DryRun decides without writing or locking anything.
	DryRun bool
}

// KernelUpdate says whether the kernel is told of a partition's new size.
type KernelUpdate int

const (
	// UpdateKnown tells it where it has the partition.
	UpdateKnown KernelUpdate = iota
	// UpdateRequired refuses to grow a partition the kernel does not have.
	UpdateRequired
	// UpdateNone grows the partition on the disk alone.
	UpdateNone
)

// PartitionResult is what GrowPartition did, or with DryRun would do. Numbers are
// sectors of the disk.
type PartitionResult struct {
	SectorSize int
	Sectors    int64 // of the disk
	Start      int64
	Before     int64 // size
	After      int64
	// Limit is the sector before which the rule has the partition end, whatever
	// there is to gain; less than its end where it is larger than that.
	Limit int64

	// Changed is set where the partition grew or the table was repaired.
	Changed  bool
	Repaired string   // what of the table, where nothing grew
	Old, New []string // the partitions, a line each
	Steps    []string // what was done, in order
	// Warning says what keeps disk space out of reach; nil where nothing does.
	Warning *fault.Error
}

// GrowPartition grows a partition of a disk, or of a file with the content of
// one, by its number: the table, and the kernel's idea of the partition where it
// has one. An LVM physical volume in the partition grows along. What it blocks
// for and what its errors mean is as with Grow.
func GrowPartition(ctx context.Context, h *host.Host, path, number string, options PartitionOptions) (PartitionResult, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return PartitionResult{}, cannotOpen(path, err)
	}
	device := ""
	if stat.Mode&unix.S_IFMT == unix.S_IFBLK {
		device = fmt.Sprintf("%d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	}
	disk, err := linux{}.openDisk(path)
	if err != nil {
		return PartitionResult{}, cannotOpen(path, err)
	}
	result, volume, err := growPartition(ctx, h, disk, namedDisk{path, device}, number, options)
	if err := errors.Join(err, disk.Close()); err != nil || !result.Changed || options.DryRun || device == "" {
		return result, err
	}
	// udev looks at the disk anew now that its writer is gone, and may take
	// partitions away for a moment (pain-point G4). Whoever started this grows a
	// file system next. Without udev there is nothing to wait for.
	_, _ = h.Run.Run(ctx, host.Command{Path: "/usr/bin/udevadm", Args: []string{"settle", "--timeout=30"}})
	if volume == "" {
		return result, nil
	}
	return result, growVolume(ctx, h, volume)
}

func cannotOpen(path string, err error) error {
	return fault.Wrap(fault.DiskGrowFailed, err, "cannot open %s", path).
		WithHint("Name a disk or an image of one, and run as a user who may write to it.")
}

// namedDisk is what a disk is called.
type namedDisk struct {
	path   string
	device string // major:minor; "" for a file
}

// growPartition returns the device file of the partition too, where the kernel
// has it.
func growPartition(ctx context.Context, h *host.Host, disk disk, at namedDisk, number string, options PartitionOptions) (result PartitionResult, device string, err error) {
	if !options.DryRun {
		lockCtx, cancel := context.WithTimeout(ctx, lockTimeout)
		defer cancel()
		if err := disk.Lock(lockCtx); err != nil {
			return result, "", fault.Wrap(fault.DiskGrowFailed, err, "cannot lock the disk %s", at.path).
				WithHint("Wait for the program that has it locked (`lslocks`), then try again.")
		}
	}
	sector := int64(disk.SectorSize())
	sectors := disk.Size() / sector
	table, err := readTable(disk, disk.SectorSize(), sectors)
	if err != nil {
		return result, "", fmt.Errorf("cannot read the partition table of %s: %w", at.path, err)
	}
	entry, err := entryOf(table, at.path, number)
	if err != nil {
		return result, "", err
	}
	var known *place
	if at.device != "" && options.Kernel != UpdateNone {
		if known, err = knownPartition(h, at, table, entry); err != nil {
			return result, "", err
		}
		if known == nil && options.Kernel == UpdateRequired && !entry.container {
			return result, "", fault.New(fault.DiskUnsupported, "the kernel has no partition %d of %s", entry.number, at.path).
				WithHint("Make it read the table (`partx --add`), or leave it alone (--update off); nothing was written.")
		}
	}

	todo := planGrowth(table, sectors, entry, known, options)
	result = todo.result(table, sectors)
	after, err := readTable(patchedDisk{disk, todo.patches}, disk.SectorSize(), sectors)
	if err == nil {
		err = todo.check(table, after)
	}
	if err != nil {
		return result, "", fault.Wrap(fault.DiskGrowFailed, err, "cannot grow partition %d of %s: the new table would not be sound", entry.number, at.path).
			WithHint("Nothing was written; report it with the output of `sfdisk --dump` of the disk.")
	}
	result.New = describe(after)
	if options.DryRun || todo.empty() {
		result.Changed = !todo.empty()
		return result, "", nil
	}

	if err := ctx.Err(); err != nil {
		return result, "", fault.Wrap(fault.DiskGrowFailed, err, "cannot grow partition %d of %s", entry.number, at.path)
	}
	if err := apply(disk, todo.patches); err != nil {
		return result, "", fault.Wrap(fault.DiskGrowFailed, err, "cannot write the partition table of %s", at.path).
			WithHint("The table is sound after every single write: see to the cause, then start again, and it goes on.")
	}
	if todo.kernel {
		if err := disk.ResizePartition(entry.number, entry.start*sector, result.After*sector); err != nil {
			return result, "", fault.Wrap(fault.DiskGrowFailed, err, "cannot tell the kernel the size of partition %d of %s", entry.number, at.path).
				WithHint("The table on the disk has it: start again, or reboot.")
		}
	}
	result.Changed = true
	if known != nil {
		device = known.partition
	}
	return result, device, nil
}

// entryOf finds a partition. A number is compared as text, so that 06 is none.
func entryOf(t table, path, number string) (extent, error) {
	there := []string{"Its partitions:"}
	for _, e := range t.extents() {
		text := strconv.Itoa(e.number)
		if text == number {
			return e, nil
		}
		there = append(there, text)
	}
	if len(there) == 1 {
		there = []string{"It has no partitions"}
	}
	return extent{}, fault.New(fault.DiskUnsupported, "failed to get start and end for partition %s in %s", number, path).
		WithHint("%s.", strings.Join(there, " "))
}

// knownPartition returns what the kernel has for an entry of the table, nil where
// there is nothing to tell it about, and refuses a disk of which it has other partitions than
// the table: one of them could be in use where the entry is to grow.
func knownPartition(h *host.Host, at namedDisk, t table, entry extent) (*place, error) {
	parts, err := kernelPartitions(h, at)
	if err != nil {
		return nil, fault.Wrap(fault.DiskUnsupported, err, "cannot tell which partitions of %s the kernel has", at.path).
			WithHint("To grow the table alone, give --update off.")
	}
	var own *place
	others := place{disk: at.path}
	for i, p := range parts {
		if p.number == entry.number {
			own = &parts[i]
		} else {
			others.siblings = append(others.siblings, sibling{p.number, p.start, p.size})
		}
	}
	if entry.container {
		own = nil // two sectors at most, whatever its size; see carryOut
	}
	if own != nil {
		if _, err := rootEntry(t, *own); err != nil {
			return nil, err
		}
	}
	return own, checkKernelAgrees(t, others)
}

// kernelPartitions returns the partitions the kernel has of a disk, found by its
// device number.
func kernelPartitions(h *host.Host, at namedDisk) ([]place, error) {
	path, err := filepath.EvalSymlinks(h.Path("/sys/dev/block/" + at.device))
	if err != nil {
		return nil, err
	}
	if sysDevice(path).has("partition") {
		return nil, errors.New("it is a partition, not a disk")
	}
	var parts []place
	for _, device := range sysDevice(path).partitions() {
		p, err1 := device.partition()
		file, err2 := device.file()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		parts = append(parts, place{disk: at.path, partition: file, number: p.number, start: p.start, size: p.size})
	}
	return parts, nil
}

// growth is what there is to do for a partition.
type growth struct {
	entry   extent
	before  int64 // sectors the partition has, as the kernel sees it where nothing grows
	limit   int64
	end     int64
	patches []patch
	kernel  bool // the kernel is to be told
	mended  string
	warning *fault.Error
}

func (g growth) empty() bool { return len(g.patches) == 0 && !g.kernel }

// planGrowth decides. A table that some run left unfinished, or that the kernel
// has not been told, is completed where nothing grows.
func planGrowth(t table, sectors int64, entry extent, known *place, options PartitionOptions) growth {
	sector := int64(t.sectorSize())
	limit, by := growthLimit(t, sectors, entry, options.FreePercent)
	g := growth{entry: entry, before: entry.size, limit: limit, end: entry.end()}
	var blocked target
	blocked.explain(t, entry, by)
	g.warning = blocked.warning

	if gain := limit - entry.end(); gain > 0 && gain >= options.MinGain/sector {
		g.end = limit
		g.patches = t.resize(entry, limit)
	} else {
		g.patches, g.mended = t.mend()
	}
	if known != nil {
		g.kernel = known.size < (g.end-entry.start)*sector
		if g.kernel && g.end == entry.end() {
			g.before = known.size / sector
		}
	}
	return g
}

// gptReserve is what growpart leaves at the end of a disk, in sectors: the place
// of a GPT's backup, on a disk with an MBR too, so that it can be converted.
const gptReserve = 33

// growthLimit returns the sector before which growpart 0.34 has a partition end.
// It makes sizes whole MiB, not ends. That does not do for an MBR's extended
// partition, which begins a sector or two before its first logical one: their
// ends would differ, and the logical one not fit. So there it is the ends.
func growthLimit(t table, sectors int64, e extent, freePercent int) (limit int64, by obstacle) {
	align := MinGain / int64(t.sectorSize())
	limit, by = t.room(e)
	limit = min(limit, sectors-gptReserve)
	aligned := e.start
	for _, c := range t.extents() {
		if c.container && c.start <= e.start && e.end() <= c.end() {
			aligned = 0
		}
	}
	limit = aligned + (limit-aligned)/align*align
	if freePercent > 0 {
		unused := sectors / 100 * int64(freePercent)
		if m, ok := t.(*mbr); ok {
			unused = max(0, unused-(sectors-m.usable())) // what no MBR reaches is unused
		}
		limit = (limit - 1 - unused) / align * align
	}
	return limit, by
}

// check compares the table as it will be with the one there is.
func (g growth) check(before, after table) error {
	old, now := before.extents(), after.extents()
	if len(old) != len(now) {
		return fmt.Errorf("it would have %d partitions, not %d", len(now), len(old))
	}
	for i, want := range old {
		if want.number == g.entry.number {
			want.size = g.end - want.start
		} else if want.container {
			want.size = max(want.size, now[i].size)
		}
		if now[i] != want {
			return fmt.Errorf("%s would be %d sectors at %d, not %d at %d", want, now[i].size, now[i].start, want.size, want.start)
		}
	}
	return nil
}

func (g growth) result(t table, sectors int64) PartitionResult {
	r := PartitionResult{
		SectorSize: t.sectorSize(), Sectors: sectors,
		Start: g.entry.start, Before: g.before, After: g.end - g.entry.start, Limit: g.limit,
		Repaired: g.mended, Warning: g.warning, Old: describe(t),
	}
	for _, p := range g.patches {
		r.Steps = append(r.Steps, "write "+p.What)
	}
	if g.kernel {
		r.Steps = append(r.Steps, fmt.Sprintf("tell the kernel the size of partition %d", g.entry.number))
	}
	return r
}

func describe(t table) []string {
	var lines []string
	for _, e := range t.extents() {
		lines = append(lines, fmt.Sprintf("%d : start=%12d, size=%12d, type=%s", e.number, e.start, e.size, e.kind))
	}
	return lines
}

// patchedDisk is a disk as it will be.
type patchedDisk struct {
	disk    io.ReaderAt
	patches []patch
}

func (d patchedDisk) ReadAt(b []byte, offset int64) (int, error) {
	n, err := d.disk.ReadAt(b, offset)
	for _, p := range d.patches {
		from, to := max(offset, p.Offset), min(offset+int64(n), p.Offset+int64(len(p.New)))
		if from < to {
			copy(b[from-offset:to-offset], p.New[from-p.Offset:])
		}
	}
	return n, err
}

// growVolume grows the LVM physical volume on a device, if there is one: lvm says
// so by exit code 5 if there is not.
func growVolume(ctx context.Context, h *host.Host, device string) error {
	const noVolume = 5
	if lvmProgram(h) == "" {
		return nil
	}
	_, err := lvm(ctx, h, "pvs", "--nolocking", "--readonly", "-o", "pvname", device)
	var failed *host.CommandError
	if errors.As(err, &failed) && failed.ExitCode == noVolume {
		return nil
	}
	if err == nil {
		_, err = lvm(context.WithoutCancel(ctx), h, "pvresize", device) // see volume.resize
	}
	if err != nil {
		return fault.Wrap(fault.DiskGrowFailed, err, "cannot grow the LVM physical volume on %s", device).
			WithHint("The partition has grown: see to the cause, then run `pvresize %s`.", device)
	}
	return nil
}
