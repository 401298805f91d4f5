// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/fault"
)

// vm is a machine whose root is on partition 6 of an image with the shipped
// layout, on the partition itself or on an LVM volume. Its kernel believes in the
// partition's size until it is told otherwise or boots anew. An ext4 is a real
// one, in a file of its own since resize2fs knows no partitions; of an xfs or a
// btrfs, which grow only when mounted, the superblock is, and the size is kept
// here.
type vm struct {
	sysfs
	image      *image
	filesystem *image
	root       rootPartition
	lvm        *fakeLVM // nil without a volume
	xfs        xfsGeometry
	btrfs      fakeBtrfs

	steps int // things done to disk, kernel, volume or file system
	allow int // steps until the power fails; -1 for no end

	kernelLies, filesystemLies bool  // they report success and do nothing
	resizeErr                  error // what growing the file system returns in the end
}

type rootPartition struct{ start, size int64 }

const vdaPath = "pci0000:00/0000:00:04.0/virtio1/block/vda"

func newVM(t testing.TB) *vm { return newVMOn(t, "ext4", false) }

// newVMOn makes a machine with a kind of file system, which fills its partition
// or volume.
func newVMOn(t testing.TB, fstype string, onLVM bool) *vm {
	t.Helper()
	v := &vm{sysfs: newSysfs(t), image: openImage(t, 3*gib, shipped), allow: -1}
	v.root = rootPartition{1503232 * 512, 4786176 * 512}
	v.device("254:0", vdaPath, map[string]string{"ro": "0"})
	v.partition("254:1", vdaPath+"/vda1", 1, 2048, 497664)
	v.partition("254:2", vdaPath+"/vda2", 2, 501758, 2)
	v.partition("254:5", vdaPath+"/vda5", 5, 501760, 999424)
	v.partition("254:6", vdaPath+"/vda6", 6, 1503232, 4786176)
	v.image.resize = v.kernelSize
	number, source, size := "254:6", "/dev/vda6", v.root.size
	if onLVM {
		v.lvm = newFakeLVM(v)
		number, source, size = "253:0", "/dev/mapper/vg-root", v.lvm.size()
	}
	v.filesystem = openImage(t, size, "")
	switch fstype {
	case "ext4":
		tool(t, "", "mke2fs", "-q", "-F", "-t", "ext4", v.filesystem.Name())
	case "xfs":
		tool(t, "", "mkfs.xfs", "-q", v.filesystem.Name())
		v.xfs = xfsInfo(t, v.filesystem.Name())
	case "btrfs":
		tool(t, "", "mkfs.btrfs", "-q", v.filesystem.Name())
		v.btrfs = btrfsDump(t, v.filesystem.Name())
		number = "0:31"
		v.link("../../../../devices/"+vdaPath+"/vda6", "/sys/fs/btrfs/"+v.btrfs.text+"/devices/vda6")
	}
	v.mounts(fmt.Sprintf("22 1 %s / / rw,relatime - %s %s rw", number, fstype, source))
	return v
}

// kernelSize makes the kernel believe in a size of the root partition.
func (v *vm) kernelSize(size int64) {
	v.root.size = size
	v.Write("/sys/devices/"+vdaPath+"/vda6/size", strconv.FormatInt(size/sysSector, 10)+"\n")
}

// boot makes the kernel read the table.
func (v *vm) boot() {
	for _, e := range v.image.read(v.t).extents() {
		if e.number == 6 {
			v.kernelSize(e.size * 512)
		}
	}
}

func (v *vm) fsck() {
	v.t.Helper()
	if v.xfs != (xfsGeometry{}) || v.btrfs.bytes != 0 {
		return
	}
	tool(v.t, "", "e2fsck", "-f", "-n", v.filesystem.Name())
}

var errPowerCut = errors.New("power cut")

// step counts, until the power fails.
func (v *vm) step() error {
	if v.steps == v.allow {
		return errPowerCut
	}
	v.steps++
	if !v.image.locked {
		v.t.Error("the disk is not locked while something is done to it")
	}
	return nil
}

func (v *vm) openDisk(device string) (disk, error) {
	if want := v.Path("/dev/vda"); device != want {
		return nil, fmt.Errorf("opened %q, want %q", device, want)
	}
	return vmDisk{v.image, v}, nil
}

func (v *vm) openPartition(device string) (partitionReader, error) {
	want := v.Path("/dev/vda6")
	if v.lvm != nil {
		want = v.Path("/dev/dm-0")
	}
	if device != want {
		return nil, fmt.Errorf("opened %q, want %q", device, want)
	}
	return vmPartition{v}, nil
}

func (v *vm) resizeExt4(mountPoint string, blocks int64) error {
	return v.resize(mountPoint, func() {
		tool(v.t, "", "resize2fs", "-f", v.filesystem.Name(), strconv.FormatInt(blocks, 10))
	})
}

func (v *vm) xfsGeometry(mountPoint string) (xfsGeometry, error) {
	if want := v.Path("/"); mountPoint != want {
		return xfsGeometry{}, fmt.Errorf("asked about %q, want %q", mountPoint, want)
	}
	return v.xfs, nil
}

func (v *vm) growXFS(mountPoint string, blocks uint64, inodesMax uint32) error {
	if inodesMax != v.xfs.inodesMax {
		v.t.Errorf("the limit for inodes was set to %d %%, want %d %% as before", inodesMax, v.xfs.inodesMax)
	}
	return v.resize(mountPoint, func() { v.xfs.blocks = blocks })
}

func (v *vm) btrfsInfo(mountPoint string) (btrfsInfo, error) { return v.btrfs.btrfsInfo(mountPoint) }

func (v *vm) btrfsDeviceSize(_ string, id uint64) (uint64, error) { return v.btrfs.size(id) }

func (v *vm) resizeBtrfs(mountPoint string, id uint64, bytes int64) error {
	if _, err := v.btrfs.size(id); err != nil {
		return err
	}
	return v.resize(mountPoint, func() { v.btrfs.bytes = uint64(bytes) })
}

// resize grows the file system unless the machine is to behave otherwise.
func (v *vm) resize(mountPoint string, do func()) error {
	if want := v.Path("/"); mountPoint != want {
		return fmt.Errorf("resized %q, want %q", mountPoint, want)
	}
	if err := v.step(); err != nil {
		return err
	}
	if !v.filesystemLies {
		do()
	}
	return v.resizeErr
}

type vmDisk struct {
	*image
	vm *vm
}

func (d vmDisk) WriteAt(p []byte, offset int64) (int, error) {
	if err := d.vm.step(); err != nil {
		return 0, err
	}
	return d.image.WriteAt(p, offset)
}

func (d vmDisk) ResizePartition(number int, start, size int64) error {
	if err := d.vm.step(); err != nil {
		return err
	}
	if number != 6 || start != d.vm.root.start || size <= d.vm.root.size {
		return fmt.Errorf("resize of partition %d at %d to %d", number, start, size)
	}
	if d.vm.kernelLies {
		return nil
	}
	return d.image.ResizePartition(number, start, size)
}

type vmPartition struct{ vm *vm }

func (p vmPartition) ReadAt(b []byte, offset int64) (int, error) {
	return p.vm.filesystem.ReadAt(b, offset)
}
func (vmPartition) Close() error { return nil }

func (v *vm) grow(options Options) (Result, error) {
	v.t.Helper()
	result, err := grow(context.Background(), v.Host(), v, "/", options)
	if v.image.locked {
		v.t.Error("the disk is still locked")
	}
	return result, err
}

// The shipped layout grows whole in one run; the next one finds nothing to do
// and writes nothing (G11, G12, C36).
func TestGrow(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	v.image.truncate(t, 10*gib)
	const before, after = 4786176 * 512, 10*gib - 1503232*512

	dry, err := v.grow(Options{DryRun: true})
	want := Result{Disk: "/dev/vda", Partition: "/dev/vda6", Number: 6, FilesystemType: "ext4", DiskBytes: 10 * gib,
		PartitionBytes: Change{before, after}, FilesystemBytes: Change{before, after}, Changed: true,
		Note: "would grow 2.3 GiB -> 9.3 GiB"}
	if err != nil || dry != want || v.steps != 0 {
		t.Errorf("dry run = %+v, %v with %d steps\nwant %+v, nil with none", dry, err, v.steps, want)
	}

	got, err := v.grow(Options{})
	want.Note = "grew 2.3 GiB -> 9.3 GiB"
	if err != nil || got != want || v.steps != 5 {
		t.Errorf("grow = %+v, %v with %d steps\nwant %+v, nil with 3 writes and 2 resizes", got, err, v.steps, want)
	}
	v.image.judge(t)
	v.fsck()

	for _, name := range []string{"same boot", "next boot"} {
		v.steps = 0
		again, err := v.grow(Options{})
		want.PartitionBytes, want.FilesystemBytes = Change{after, after}, Change{after, after}
		want.Changed, want.Note = false, "nothing to grow"
		if err != nil || again != want || v.steps != 0 {
			t.Errorf("%s: grow = %+v, %v with %d steps\nwant %+v, nil with none", name, again, err, v.steps, want)
		}
		v.boot()
	}
}

// Whatever step the power fails before, the next run completes the growth, in
// the same boot or after another one (G11), on every kind of stack.
func TestGrowConverges(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fstype string
		onLVM  bool
		steps  int
		end    int64 // of the file system, from the partition's beginning
	}{
		"ext4":        {"ext4", false, 5, 4*gib - 1503232*512},
		"xfs":         {"xfs", false, 5, 4*gib - 1503232*512},
		"btrfs":       {"btrfs", false, 5, 4*gib - 1503232*512},
		"ext4 on LVM": {"ext4", true, 7, (840 - swapExtents) * lvmExtent},
	} {
		for cut := range test.steps {
			for _, reboot := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, cut before step %d, reboot %v", name, cut+1, reboot), func(t *testing.T) {
					t.Parallel()
					v := newVMOn(t, test.fstype, test.onLVM)
					v.image.truncate(t, 4*gib)
					v.allow = cut
					_, err := v.grow(Options{})
					if !errors.Is(err, errPowerCut) || fault.As(err).Code != fault.DiskGrowFailed {
						t.Errorf("error = %v, want the power cut with code %s", err, fault.DiskGrowFailed)
					}
					v.image.judge(t)
					v.fsck()
					if reboot {
						v.boot()
					}
					v.allow, v.steps = -1, 0
					result, err := v.grow(Options{})
					if err != nil || result.FilesystemBytes.After != test.end || result.PartitionBytes.After != 4*gib-v.root.start || !result.Changed ||
						test.onLVM && result.VolumeBytes.After != test.end || !strings.HasPrefix(result.Note, "grew 2.") {
						t.Errorf("next run = %+v, %v, want all of the disk", result, err)
					}
					if wantSteps := test.steps - cut; v.steps > wantSteps {
						t.Errorf("next run took %d steps, want at most %d", v.steps, wantSteps)
					}
					v.fsck()
					v.steps = 0
					if again, err := v.grow(Options{}); err != nil || again.Changed || v.steps != 0 {
						t.Errorf("run after that = %+v, %v with %d steps, want nothing to do", again, err, v.steps)
					}
				})
			}
		}
	}
}

// The size reached decides, not what a call said (G9).
func TestGrowIsJudgedBySize(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		lie  func(*vm)
		want string
	}{
		"all well although the call failed": {func(v *vm) { v.resizeErr = errors.New("superblock checksum does not match") }, ""},
		"kernel did nothing":                {func(v *vm) { v.kernelLies = true }, "cannot grow the partition /dev/vda6 from 2.3 GiB to 3.3 GiB: "},
		"file system did nothing":           {func(v *vm) { v.filesystemLies = true }, "cannot grow the file system on /dev/vda6 from 2.3 GiB to 3.3 GiB: the kernel reported success"},
		"file system failed": {func(v *vm) { v.filesystemLies, v.resizeErr = true, errors.New("needs CAP_SYS_RESOURCE") },
			"cannot grow the file system on /dev/vda6 from 2.3 GiB to 3.3 GiB: needs CAP_SYS_RESOURCE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVM(t)
			v.image.truncate(t, 4*gib)
			test.lie(v)
			result, err := v.grow(Options{})
			switch {
			case test.want == "" && err != nil:
				t.Errorf("error = %v, want none: %+v", err, result)
			case test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want) || fault.As(err).Code != fault.DiskGrowFailed):
				t.Errorf("error = %v, want %q", err, test.want)
			}
		})
	}
}

// What cannot be grown is refused before anything is written (G5, G7, G8).
func TestGrowRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(t *testing.T, v *vm)
		want  string
		code  fault.Code
	}{
		"read-only mount": {func(_ *testing.T, v *vm) { v.mounts("22 1 254:6 / / ro - ext4 /dev/vda6 ro") },
			"cannot grow /dev/vda6: it is mounted read-only", fault.DiskGrowFailed},
		"read-only disk": {func(_ *testing.T, v *vm) { v.Write("/sys/devices/"+vdaPath+"/ro", "1\n") },
			"the disk /dev/vda is read-only", fault.DiskGrowFailed},
		"other file system": {func(_ *testing.T, v *vm) { v.mounts("22 1 254:6 / / rw - f2fs /dev/vda6 rw") },
			`a file system of type "f2fs" cannot be grown`, fault.DiskUnsupported},
		"errors in the file system": {func(t *testing.T, v *vm) {
			tool(t, "", "debugfs", "-w", "-R", "set_super_value state 2", v.filesystem.Name())
		}, "marked as having errors", fault.DiskGrowFailed},
		"GPT": {func(t *testing.T, v *vm) {
			tool(t, "", "sgdisk", "-Z", v.image.Name())
			tool(t, "", "sgdisk", "-n", "0:0:0", v.image.Name())
		},
			"the table on /dev/vda has no partition 6 that begins at byte 769654784", fault.DiskTableInvalid},
		"no such partition in the table": {func(t *testing.T, v *vm) { tool(t, "", "sfdisk", "--delete", v.image.Name(), "6") },
			"has no partition 6 that begins at byte 769654784", fault.DiskTableInvalid},
		"table smaller than the partition": {func(_ *testing.T, v *vm) { v.kernelSize(v.root.size + mib) },
			"the table on /dev/vda gives partition 6", fault.DiskTableInvalid},
		"kernel has a partition behind it": {func(_ *testing.T, v *vm) { v.partition("254:7", vdaPath+"/vda7", 7, 8000000, 2048) },
			"the kernel has partition 7 at byte 4096000000", fault.DiskTableInvalid},
		"kernel has another swap": {func(_ *testing.T, v *vm) { v.Write("/sys/devices/"+vdaPath+"/vda5/size", "2048\n") },
			"the kernel has partition 5 at byte 256901120 with 1048576 bytes", fault.DiskTableInvalid},
		"nothing mounted there": {func(_ *testing.T, v *vm) { v.mounts("22 1 254:6 / /mnt rw - ext4 /dev/vda6 rw") },
			`nothing is mounted at "/"`, fault.DiskUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVM(t)
			v.image.truncate(t, 4*gib)
			test.spoil(t, v)
			_, err := v.grow(Options{})
			if err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != test.code {
				t.Errorf("error = %v, want %q with code %s", err, test.want, test.code)
			}
			if v.steps != 0 {
				t.Errorf("%d steps were done, want none", v.steps)
			}
		})
	}
}

// Where there is nothing to win, a read-only root is no error, and neither is a
// lost capability or a locked disk: nothing is tried.
func TestGrowNothing(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	v.mounts("22 1 254:6 / / ro - ext4 /dev/vda6 ro")
	v.allow = 0
	got, err := v.grow(Options{})
	if err != nil || got.Changed || got.Note != "nothing to grow" {
		t.Errorf("grow = %+v, %v, want nothing to grow", got, err)
	}
}

// The file system is compared with its partition whatever becomes of that: it
// fills it also when another partition is in the way, or less was asked for.
func TestGrowFilesystemAlone(t *testing.T) {
	t.Parallel()
	for _, options := range []Options{{}, {RequestedBytes: gib}} {
		v := newVM(t)
		tool(t, "", "resize2fs", "-f", v.filesystem.Name(), "300000")
		if options.RequestedBytes != 0 {
			v.image.truncate(t, 9*gib)
		}
		got, err := v.grow(options)
		want := "grew 1.1 GiB -> 2.3 GiB"
		if options.RequestedBytes != 0 {
			want += "; asked for 1.0 GiB of the disk, the partition ends at 3.0 GiB"
		}
		if err != nil || got.Note != want || v.steps != 1 {
			t.Errorf("grow = %+v, %v with %d steps, want %q with one", got, err, v.steps, want)
		}
	}
}

// A context that ended stops before the first write.
func TestGrowStopsWithContext(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	v.image.truncate(t, 4*gib)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := grow(ctx, v.Host(), v, "/", Options{})
	if !errors.Is(err, context.Canceled) || v.steps != 0 {
		t.Errorf("error = %v after %d steps, want canceled after none", err, v.steps)
	}
}

// The lock is waited for no longer than the context allows, and freed when it
// comes too late (G4).
func TestLockHasDeadline(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() *blockDisk {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return &blockDisk{device: path, reader: file}
	}
	holder, late, third := open(), open(), open()
	if err := holder.Lock(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := late.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock of a locked disk: %v, want that time ran out", err)
	}
	if err := errors.Join(late.Close(), holder.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := third.Lock(ctx); err != nil {
		t.Errorf("lock after all others closed: %v", err)
	}
	if err := third.Close(); err != nil {
		t.Error(err)
	}
}

// Reads of any range come through whole sectors, writes are of whole sectors.
func TestBlockDiskRanges(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk")
	content := make([]byte, 8192)
	for i := range content {
		content[i] = byte(i / 7)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &blockDisk{device: path, reader: file, sector: 4096, size: 8192}
	defer d.Close()
	for _, r := range [][2]int64{{0, 512}, {446, 66}, {4090, 10}, {4096, 4096}, {8191, 1}} {
		got := make([]byte, r[1])
		if n, err := d.ReadAt(got, r[0]); err != nil || n != len(got) || string(got) != string(content[r[0]:r[0]+r[1]]) {
			t.Errorf("ReadAt(%d bytes at %d) = %d, %v", r[1], r[0], n, err)
		}
	}
	if _, err := d.ReadAt(make([]byte, 2), 8191); err == nil {
		t.Error("a read beyond the end succeeded")
	}
	for _, offset := range []int64{1, 512} {
		if _, err := d.WriteAt(make([]byte, 4096), offset); err == nil {
			t.Errorf("a write at %d succeeded on sectors of 4096", offset)
		}
	}
	if _, err := d.WriteAt(make([]byte, 512), 0); err == nil {
		t.Error("a write of 512 bytes succeeded on sectors of 4096")
	}
}
