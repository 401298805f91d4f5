// SPDX-License-Identifier: Apache-2.0

// Package growpart makes a mounted file system use the whole of its disk while
// it is in use: first the partition in the table on the disk, then the kernel's
// idea of the partition, then the LVM volume where there is one on the partition,
// then the file system.
//
// Each of them is compared with the one before it on every run, so a run that was
// killed anywhere, or that only got half way for another reason, is completed by
// the next one. What to do is decided by pure functions (decide, planPartition,
// the tables' patches); a table is patched, never written anew.
//
// place.go finds disk, partition and volume; mbr.go and gpt.go read and patch a
// table; lvm.go knows a volume; ext4.go, xfs.go and btrfs.go know a file system;
// disk.go is the disk itself.
package growpart

import (
	"context"
	"fmt"
	"io"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// MinGain is what a partition, volume or file system has to gain more than, in
// bytes, to be worth a write. Installers leave as much free at the end of a disk,
// so that a machine whose disk was not made larger is never written to.
const MinGain = 1 << 20

// lockTimeout bounds the wait for udev or another partitioning tool to let go of
// the disk; both hold it for well under a second.
const lockTimeout = 30 * time.Second

// Options say how far to grow.
type Options struct {
	// RequestedBytes is how much of the disk, from its beginning, the partition may
	// use; whole MiB count. 0 is all of it. A partition is never made smaller, and
	// what is on it is to fill it.
	RequestedBytes int64
	// DryRun decides without writing anything.
	DryRun bool
}

// Change is a size in bytes before and after.
type Change struct{ Before, After int64 }

// Result is what Grow did, or with DryRun what it would do.
type Result struct {
	Disk           string // device file: /dev/vda
	Partition      string // device file: /dev/vda6
	Number         int    // of the partition
	Volume         string // LVM group/volume on the partition; "" where there is none
	FilesystemType string // ext4

	DiskBytes       int64
	PartitionBytes  Change // as the kernel has it
	VolumeBytes     Change // zero without a volume
	FilesystemBytes Change

	Changed bool
	// Note is the outcome in a line: "grew 2.9 GiB -> 9.5 GiB", "nothing to
	// grow", or the reason why not.
	Note string
	// Warning says what keeps disk space out of reach; nil where nothing does.
	Warning *fault.Error
}

// Grow grows the partition and the file system mounted at mountPoint. It blocks
// while the kernel works, and up to 30 seconds for another program that has the
// disk locked. It writes nothing when there is no more than MinGain to win.
//
// Errors have a code (see fault.As): DiskUnsupported for a disk, table or file
// system this package cannot grow and DiskTableInvalid for a damaged table,
// before anything was written; DiskGrowFailed for all else. The Result tells the
// sizes reached then too, as far as they are known.
func Grow(ctx context.Context, h *host.Host, mountPoint string, options Options) (Result, error) {
	return grow(ctx, h, linux{}, mountPoint, options)
}

// machine is how grow reaches disks and mounted file systems.
type machine interface {
	// openDisk opens a whole disk. Writing and locking come on demand.
	openDisk(device string) (disk, error)
	// openPartition opens what a file system is on, a partition or a volume, for
	// reading what the file system has in memory.
	openPartition(device string) (partitionReader, error)

	// resizeExt4 grows the ext4 file system mounted at mountPoint.
	resizeExt4(mountPoint string, blocks int64) error

	// xfsGeometry returns the sizes of the xfs mounted at mountPoint.
	xfsGeometry(mountPoint string) (xfsGeometry, error)
	// growXFS grows it. The limit of space for inodes is set along.
	growXFS(mountPoint string, blocks uint64, inodesMax uint32) error

	// btrfsInfo identifies the btrfs mounted at mountPoint.
	btrfsInfo(mountPoint string) (btrfsInfo, error)
	// btrfsDeviceSize returns how many bytes of one of its devices it uses.
	btrfsDeviceSize(mountPoint string, id uint64) (uint64, error)
	// resizeBtrfs makes it use as many bytes of a device.
	resizeBtrfs(mountPoint string, id uint64, bytes int64) error
}

type partitionReader interface {
	io.ReaderAt
	io.Closer
}

func grow(ctx context.Context, h *host.Host, m machine, mountPoint string, options Options) (Result, error) {
	at, err := locate(h, m, mountPoint)
	if err != nil {
		return Result{}, err
	}
	disk, err := m.openDisk(h.Path(at.disk))
	if err != nil {
		return Result{}, fault.Wrap(fault.DiskGrowFailed, err, "cannot open the disk %s", at.disk)
	}
	defer disk.Close()

	before, err := survey(ctx, h, m, disk, mountPoint)
	if err != nil {
		return Result{}, err
	}
	todo, err := decide(before, options)
	if err != nil {
		return before.result(), err
	}
	if todo.empty() || options.DryRun {
		return todo.expect(before, options.DryRun), nil
	}

	// The lock is held until the file system has grown. udev probes a disk only
	// while it can lock it, so it cannot take the partition's node away in
	// between (pain-point G4); and no other tool writes the table meanwhile.
	lockCtx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if err := disk.Lock(lockCtx); err != nil {
		return before.result(), fault.Wrap(fault.DiskGrowFailed, err, "cannot lock the disk %s", at.disk)
	}
	if before, err = survey(ctx, h, m, disk, mountPoint); err != nil {
		return Result{}, err
	}
	if todo, err = decide(before, options); err != nil {
		return before.result(), err
	}

	failed := carryOut(ctx, h, m, disk, before, todo)
	// What counts is the size reached, not what a call returned (pain-point G9).
	after, err := survey(ctx, h, m, disk, mountPoint)
	if err != nil {
		if failed != nil {
			err = fmt.Errorf("%w; and then: %w", failed, err)
		}
		return before.result(), err
	}
	result := todo.achieved(before, after)
	switch {
	case after.place.size < todo.partitionBytes:
		return result, fault.Wrap(fault.DiskGrowFailed, cause(failed), "cannot grow the partition %s from %s to %s",
			at.partition, formatBytes(before.place.size), formatBytes(todo.partitionBytes))
	case after.volumeSize() < todo.volumeBytes:
		return result, fault.Wrap(fault.DiskGrowFailed, cause(failed), "cannot grow the volume %s from %s to %s",
			before.volume.name, formatBytes(before.volumeSize()), formatBytes(todo.volumeBytes))
	case after.filesystem.size() < todo.filesystemBytes:
		return result, fault.Wrap(fault.DiskGrowFailed, cause(failed), "cannot grow the file system on %s from %s to %s",
			before.holder(), formatBytes(before.filesystem.size()), formatBytes(todo.filesystemBytes))
	}
	return result, nil
}

// cause is for a size that was not reached although no call failed.
func cause(failed error) error {
	if failed == nil {
		return fmt.Errorf("the kernel reported success but the size is not reached")
	}
	return failed
}

// carryOut does what was decided, in an order in which every prefix is a valid
// state that the next run completes.
func carryOut(ctx context.Context, h *host.Host, m machine, disk disk, now facts, todo plan) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := apply(disk, todo.patches); err != nil {
		return err
	}
	if now.place.size < todo.partitionBytes {
		// The root partition alone. The kernel keeps an extended partition as its
		// first two sectors, whatever the table says (msdos_partition in the
		// kernel's block/partitions/msdos.c), and refuses to let it overlap a
		// logical one, so there is nothing to tell about it.
		if err := disk.ResizePartition(now.place.number, now.place.start, todo.partitionBytes); err != nil {
			return err
		}
	}
	if now.volumeSize() < todo.volumeBytes {
		if err := now.volume.resize(ctx, h, now.place, todo.partitionBytes, todo.volumeBytes); err != nil {
			return err
		}
	}
	if now.filesystem.size() < todo.filesystemBytes {
		return now.filesystem.resize(m, h.Path(now.place.mount), todo.filesystemBytes)
	}
	return nil
}

// facts is everything a decision needs.
type facts struct {
	place      place
	table      table
	volume     *volume // nil where the file system is on the partition itself
	filesystem filesystem
	diskBytes  int64
}

// holder names what the file system is on.
func (f facts) holder() string {
	if f.volume != nil {
		return f.volume.name
	}
	return f.place.partition
}

// volumeSize returns the volume's size in bytes, 0 without one.
func (f facts) volumeSize() int64 {
	if f.volume == nil {
		return 0
	}
	return f.volume.size()
}

// survey reads the facts; it changes nothing.
func survey(ctx context.Context, h *host.Host, m machine, disk disk, mountPoint string) (facts, error) {
	at, err := locate(h, m, mountPoint)
	if err != nil {
		return facts{}, err
	}
	now := facts{place: at, diskBytes: disk.Size()}
	if now.table, err = readTable(disk, disk.SectorSize(), disk.Size()/int64(disk.SectorSize())); err != nil {
		return facts{}, fmt.Errorf("cannot read the partition table of %s: %w", at.disk, err)
	}
	if at.volume.uuid != "" {
		if now.volume, err = readVolume(ctx, h, at); err != nil {
			return facts{}, err
		}
	}
	device, err := m.openPartition(h.Path(at.device))
	if err != nil {
		return facts{}, fault.Wrap(fault.DiskGrowFailed, err, "cannot open %s", at.device)
	}
	defer device.Close()
	if now.filesystem, err = readFilesystem(m, device, at.fstype, h.Path(mountPoint)); err != nil {
		return facts{}, fmt.Errorf("cannot read the file system on %s: %w", now.holder(), err)
	}
	return now, nil
}

// plan is what there is to do.
type plan struct {
	patches         []patch
	partitionBytes  int64 // what the partition is to have
	volumeBytes     int64 // what the volume is to have
	filesystemBytes int64 // what the file system is to have
	kernel          bool  // the kernel is to be told
	volume          bool  // the volume is to grow
	filesystem      bool  // the file system is to grow
	reason          string
	mended          string // what the patches repair where nothing grows
	warning         *fault.Error
}

func (p plan) empty() bool { return len(p.patches) == 0 && !p.kernel && !p.volume && !p.filesystem }

// decide compares the disk, the partition, the volume and the file system, each
// with the one it is on.
func decide(now facts, options Options) (plan, error) {
	at := now.place
	sector := int64(now.table.sectorSize())
	entry, err := rootEntry(now.table, at)
	if err != nil {
		return plan{}, err
	}
	target := planPartition(now.table, entry, options.RequestedBytes)
	todo := plan{reason: target.reason, warning: target.warning, patches: target.patches}
	todo.partitionBytes = max(at.size, (target.end-entry.start)*sector)
	if todo.partitionBytes-at.size <= MinGain {
		todo.partitionBytes, todo.patches = at.size, nil
	}
	if len(todo.patches) == 0 {
		todo.patches, todo.mended = now.table.mend()
	}
	todo.kernel = todo.partitionBytes > at.size
	room := todo.partitionBytes // for the file system
	if now.volume != nil {
		todo.volumeBytes = now.volume.fit(todo.partitionBytes)
		todo.volume = todo.volumeBytes-now.volume.size() > MinGain
		if !todo.volume {
			todo.volumeBytes = now.volume.size()
		}
		room = todo.volumeBytes
	}
	todo.filesystemBytes = now.filesystem.fit(room)
	todo.filesystem = todo.filesystemBytes-now.filesystem.size() > MinGain
	if !todo.filesystem {
		todo.filesystemBytes = now.filesystem.size()
	}
	if todo.empty() {
		return todo, nil
	}
	if at.readOnlyDisk {
		return plan{}, fault.New(fault.DiskGrowFailed, "cannot grow %s: the disk %s is read-only", at.partition, at.disk).
			WithHint("Attach the disk writable.")
	}
	if at.mount == "" {
		return plan{}, fault.New(fault.DiskGrowFailed, "cannot grow %s: it is mounted read-only", now.holder()).
			WithHint("Mount it writable (`mount -o remount,rw /`) and start growing again; see `journalctl -k` if the kernel made it read-only.")
	}
	if err := now.filesystem.check(); err != nil {
		return plan{}, fmt.Errorf("cannot grow the file system on %s: %w", now.holder(), err)
	}
	return todo, checkKernelAgrees(now.table, at)
}

// rootEntry returns the table's entry of the partition the kernel has mounted.
func rootEntry(t table, at place) (extent, error) {
	sector := int64(t.sectorSize())
	for _, entry := range t.extents() {
		if entry.number == at.number && entry.start*sector == at.start && !entry.container {
			if entry.size*sector < at.size {
				return extent{}, fault.New(fault.DiskTableInvalid,
					"the table on %s gives partition %d %d bytes, the kernel has %d", at.disk, at.number, entry.size*sector, at.size)
			}
			return entry, nil
		}
	}
	return extent{}, fault.New(fault.DiskTableInvalid,
		"the table on %s has no partition %d that begins at byte %d, where the kernel has %s", at.disk, at.number, at.start, at.partition)
}

// checkKernelAgrees refuses to grow over a partition that is in use though the
// table no longer has it.
func checkKernelAgrees(t table, at place) error {
	sector := int64(t.sectorSize())
	known := map[int]extent{}
	for _, entry := range t.extents() {
		known[entry.number] = entry
	}
	for _, other := range at.siblings {
		entry, found := known[other.number]
		if !found || entry.start*sector != other.start || (!entry.container && entry.size*sector != other.size) {
			return fault.New(fault.DiskTableInvalid,
				"the kernel has partition %d at byte %d with %d bytes, the table on %s has it otherwise or not at all",
				other.number, other.start, other.size, at.disk).
				WithHint("Reboot to make the kernel read the table again; nothing was written.")
		}
	}
	return nil
}

// result is the state of things with no change.
func (f facts) result() Result {
	result := Result{
		Disk: f.place.disk, Partition: f.place.partition, Number: f.place.number, FilesystemType: f.place.fstype,
		DiskBytes:       f.diskBytes,
		PartitionBytes:  Change{f.place.size, f.place.size},
		VolumeBytes:     Change{f.volumeSize(), f.volumeSize()},
		FilesystemBytes: Change{f.filesystem.size(), f.filesystem.size()},
	}
	if f.volume != nil {
		result.Volume = f.volume.name
	}
	return result
}

// expect is the result when all goes as decided.
func (p plan) expect(now facts, dryRun bool) Result {
	result := now.result()
	result.PartitionBytes.After = p.partitionBytes
	result.VolumeBytes.After = p.volumeBytes
	result.FilesystemBytes.After = p.filesystemBytes
	result.Changed = !p.empty()
	result.Warning = p.warning
	verb := "grew"
	if dryRun {
		verb = "would grow"
	}
	result.Note = p.note(verb, result)
	return result
}

// achieved is the result by what is there afterwards.
func (p plan) achieved(before, after facts) Result {
	result := before.result()
	result.PartitionBytes.After = after.place.size
	result.VolumeBytes.After = after.volumeSize()
	result.FilesystemBytes.After = after.filesystem.size()
	result.Changed = len(p.patches) > 0 || result.PartitionBytes.After != result.PartitionBytes.Before ||
		result.VolumeBytes.After != result.VolumeBytes.Before || result.FilesystemBytes.After != result.FilesystemBytes.Before
	result.Warning = p.warning
	result.Note = p.note("grew", result)
	return result
}

func (p plan) note(verb string, r Result) string {
	text := ""
	switch {
	case r.FilesystemBytes.After > r.FilesystemBytes.Before:
		text = fmt.Sprintf("%s %s -> %s", verb, formatBytes(r.FilesystemBytes.Before), formatBytes(r.FilesystemBytes.After))
	case r.VolumeBytes.After > r.VolumeBytes.Before:
		text = fmt.Sprintf("%s the volume %s -> %s", verb, formatBytes(r.VolumeBytes.Before), formatBytes(r.VolumeBytes.After))
	case r.PartitionBytes.After > r.PartitionBytes.Before:
		text = fmt.Sprintf("%s the partition %s -> %s", verb, formatBytes(r.PartitionBytes.Before), formatBytes(r.PartitionBytes.After))
	}
	if text == "" && p.mended != "" {
		text = "repaired " + p.mended
	}
	switch {
	case text == "" && p.reason == "":
		return "nothing to grow"
	case text == "":
		return p.reason
	case p.reason == "":
		return text
	}
	return text + "; " + p.reason
}

// formatBytes writes a size as operators do: 512 MiB, 9.5 GiB.
func formatBytes(n int64) string {
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB"}
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	value, unit := float64(n)/(1<<10), 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	if unit < 2 {
		return fmt.Sprintf("%.0f %s", value, units[unit])
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}
