// SPDX-License-Identifier: Apache-2.0

//go:build guest

package growpart

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/host"
)

// These tests grow real file systems on loop devices. They run as root inside a
// VM that may be ruined, with udev running.

// guestLayout is a disk with a table.
type guestLayout struct {
	name        string
	sector      int // size of the disk's sectors
	size, grown int64
	table       []string // the program that makes it, before the device
	script      string   // its input
	root, swap  int      // swap 0: none
}

func guestLayouts() []guestLayout {
	sgdisk := []string{"sgdisk", "-n1:0:+64M", "-t1:ef00", "-n2:0:+64M", "-n3:0:+64M", "-t3:8200", "-n4:0:0"}
	sfdisk := []string{"sfdisk", "--quiet"}
	return []guestLayout{
		shippedOnLoop(),
		{"MBR, primary root", 512, 600 * mib, 1536 * mib, sfdisk,
			dosHead + "disk1 : start=2048, size=204800, type=83, bootable\ndisk2 : start=206848, type=83\n", 2, 0},
		{"GPT", 512, 600 * mib, 1536 * mib, sgdisk, "", 4, 3},
		{"GPT, sectors of 4096", 4096, 600 * mib, 1536 * mib, sgdisk, "", 4, 3},
	}
}

func shippedOnLoop() guestLayout {
	return guestLayout{"MBR, logical root", 512, 3 * gib, 4 * gib, []string{"sfdisk", "--quiet"}, shipped, 6, 5}
}

// guestStack is what is on the root partition.
type guestStack struct {
	name  string
	onLVM bool
	mkfs  []string // before the device
	check []string // before the device; it must not be mounted
}

func guestStacks() []guestStack {
	ext4 := guestStack{"ext4", false, []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-f", "-n"}}
	xfs := guestStack{"xfs", false, []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}}
	btrfs := guestStack{"btrfs", false, []string{"mkfs.btrfs", "-q", "-f"}, []string{"btrfs", "check"}}
	ext4LVM, xfsLVM := ext4, xfs
	ext4LVM.name, ext4LVM.onLVM = "ext4 on LVM", true
	xfsLVM.name, xfsLVM.onLVM = "xfs on LVM", true
	return []guestStack{ext4, xfs, btrfs, ext4LVM, xfsLVM}
}

// Every stack on every layout grows whole while it is mounted and udev looks on;
// the next run changes nothing and writes nothing (G4, G5, G6, G9, G12, G13).
func TestGuestGrow(t *testing.T) {
	for _, layout := range guestLayouts() {
		for _, stack := range guestStacks() {
			t.Run(layout.name+"/"+stack.name, func(t *testing.T) { growOnLoop(t, layout, stack) })
		}
	}
}

// A race with udev shows once in many runs (G4): a hundred, or twenty with -short.
func TestGuestLoops(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	for round := range rounds {
		if !t.Run(fmt.Sprint(round+1), func(t *testing.T) { growOnLoop(t, shippedOnLoop(), guestStacks()[0]) }) {
			t.Fatalf("round %d of %d failed", round+1, rounds)
		}
	}
}

// loopRoot is a mounted file system on a partition of a loop device.
type loopRoot struct {
	disk      string // /dev/loop0
	partition string // /dev/loop0p6
	volume    string // group/name; "" without
	device    string // what the file system is on
	mount     string
}

func growOnLoop(t *testing.T, layout guestLayout, stack guestStack) {
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, layout.size); err != nil {
		t.Fatal(err)
	}
	root := makeLoopRoot(t, image, layout, stack)
	content := make([]byte, 8*mib)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root.mount, "file")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "", "sync")

	if err := os.Truncate(image, layout.grown); err != nil {
		t.Fatal(err)
	}
	before := root.measure(t)
	tool(t, "", "losetup", "--set-capacity", root.disk)
	result, err := Grow(context.Background(), host.New(), root.mount, Options{})
	if err != nil {
		t.Fatalf("grow: %v", err)
	}
	root.checkGrowth(t, layout, stack, result, before, root.measure(t))
	root.checkIdle(t)

	unmount(t, root.mount)
	tool(t, "", stack.check[0], append(stack.check[1:], root.device)...)
	tool(t, "", "mount", "-o", "ro", root.device, root.mount)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file's content is not what was written: %v", err)
	}
	unmount(t, root.mount)
	if verdict := tool(t, "", "sfdisk", "--verify", root.disk); !strings.Contains(verdict, "No errors detected") {
		t.Errorf("sfdisk --verify says:\n%s", verdict)
	}
	if layout.table[0] == "sgdisk" {
		if verdict := tool(t, "", "sgdisk", "--verify", root.disk); !strings.Contains(verdict, "No problems found") {
			t.Errorf("sgdisk --verify says:\n%s", verdict)
		}
	}
}

// makeLoopRoot makes and mounts it all; it goes away with the test.
func makeLoopRoot(t *testing.T, image string, layout guestLayout, stack guestStack) loopRoot {
	t.Helper()
	root := loopRoot{mount: t.TempDir()}
	root.disk = strings.TrimSpace(tool(t, "", "losetup", "--find", "--show", "--partscan", "--sector-size", strconv.Itoa(layout.sector), image))
	t.Cleanup(func() { tool(t, "", "losetup", "--detach", root.disk) })
	// The lock keeps udev away until the kernel has read the table.
	tool(t, layout.script, "flock", append(append([]string{root.disk}, layout.table...), root.disk)...)
	tool(t, "", "udevadm", "settle")
	partition := func(number int) string { return fmt.Sprintf("%sp%d", root.disk, number) }
	root.partition = partition(layout.root)
	root.device = root.partition
	if _, err := os.Stat("/sys/class/block/" + filepath.Base(root.partition)); err != nil { // a kernel that knows no tables
		tool(t, "", "partx", "--add", root.disk)
		tool(t, "", "udevadm", "settle")
	}
	if layout.swap != 0 {
		tool(t, "", "mkswap", partition(layout.swap))
		tool(t, "", "swapon", partition(layout.swap))
		t.Cleanup(func() { tool(t, "", "swapoff", partition(layout.swap)) })
	}
	if stack.onLVM {
		group := "guest" + filepath.Base(root.disk)
		root.volume = group + "/root"
		root.device = "/dev/" + root.volume
		tool(t, "", "lvm", "vgcreate", "--yes", group, root.partition)
		t.Cleanup(func() { tool(t, "", "lvm", "vgremove", "--force", "--yes", group) })
		tool(t, "", "lvm", "lvcreate", "--yes", "--extents", "100%FREE", "--name", "root", group)
	}
	tool(t, "", stack.mkfs[0], append(stack.mkfs[1:], root.device)...)
	tool(t, "", "mount", root.device, root.mount)
	t.Cleanup(func() {
		if isMounted(t, root.mount) {
			unmount(t, root.mount)
		}
	})
	return root
}

func unmount(t *testing.T, mountPoint string) {
	t.Helper()
	tool(t, "", "umount", mountPoint)
}

func isMounted(t *testing.T, mountPoint string) bool {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, mount := range parseMountinfo(string(data)) {
		if mount.point == mountPoint {
			return true
		}
	}
	return false
}

// loopSizes are bytes as the system's own tools tell them.
type loopSizes struct{ partition, volume, filesystem int64 }

func (r loopRoot) measure(t *testing.T) loopSizes {
	t.Helper()
	number := func(text string) int64 {
		n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	sizes := loopSizes{partition: number(tool(t, "", "blockdev", "--getsize64", r.partition))}
	if r.volume != "" {
		sizes.volume = number(tool(t, "", "lvm", "lvs", "--noheadings", "--units", "b", "--nosuffix", "--options", "lv_size", r.volume))
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(r.mount, &stat); err != nil {
		t.Fatal(err)
	}
	sizes.filesystem = int64(stat.Blocks) * stat.Bsize
	return sizes
}

func (r loopRoot) checkGrowth(t *testing.T, layout guestLayout, stack guestStack, result Result, before, after loopSizes) {
	t.Helper()
	start := guestNumber(t, "/sys/class/block/"+filepath.Base(r.partition)+"/start") * sysSector
	if free := layout.grown - start - after.partition; free < 0 || free > MinGain {
		t.Errorf("the partition leaves %d bytes of the disk, want at most %d", free, MinGain)
	}
	if result.PartitionBytes != (Change{before.partition, after.partition}) {
		t.Errorf("the partition's size is told as %+v, want %d and %d", result.PartitionBytes, before.partition, after.partition)
	}
	room := after.partition
	if stack.onLVM {
		const extent, metadata = 4 * mib, mib // what lvm uses unless told otherwise
		if free := after.partition - after.volume; free < 0 || free > extent+metadata {
			t.Errorf("the volume leaves %d bytes of the partition, want at most %d", free, extent+metadata)
		}
		if result.Volume != r.volume || result.VolumeBytes != (Change{before.volume, after.volume}) {
			t.Errorf("the volume is told as %s, %+v, want %s, %d and %d", result.Volume, result.VolumeBytes, r.volume, before.volume, after.volume)
		}
		room = after.volume
	}
	// ext4 may leave out a last group.
	if free := room - result.FilesystemBytes.After; free < 0 || free > 16*mib {
		t.Errorf("the file system is told to have %d of %d bytes", result.FilesystemBytes.After, room)
	}
	if gain, want := after.filesystem-before.filesystem, (after.partition-before.partition)/10*9; gain < want {
		t.Errorf("the file system gained %d bytes by statfs, want %d at least", gain, want)
	}
	if result.Disk != r.disk || result.Partition != r.partition || result.FilesystemType != strings.Fields(stack.name)[0] || !result.Changed {
		t.Errorf("result = %+v, want %s on %s grown", result, stack.name, r.partition)
	}
}

// checkIdle grows once more. The file system is frozen meanwhile, so that every
// write to the disk is this package's.
func (r loopRoot) checkIdle(t *testing.T) {
	t.Helper()
	tool(t, "", "udevadm", "settle")
	tool(t, "", "sync")
	tool(t, "", "fsfreeze", "--freeze", r.mount)
	// Were it to grow the file system, it would wait for the thaw.
	thaw := time.AfterFunc(time.Minute, func() { _ = exec.Command("fsfreeze", "--unfreeze", r.mount).Run() })
	writes := guestWrites(t, r.disk)
	again, err := Grow(context.Background(), host.New(), r.mount, Options{})
	now := guestWrites(t, r.disk)
	if thaw.Stop() {
		tool(t, "", "fsfreeze", "--unfreeze", r.mount)
	}
	if err != nil || again.Changed {
		t.Errorf("growing again: %+v, %v, want nothing to do", again, err)
	}
	if now != writes {
		t.Errorf("growing again wrote: %s before, %s after (writes, sectors)", writes, now)
	}
}

// guestWrites returns the counters of completed writes and of written sectors
// (Documentation/block/stat.rst).
func guestWrites(t *testing.T, disk string) string {
	t.Helper()
	data, err := os.ReadFile("/sys/class/block/" + filepath.Base(disk) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data))
	return fields[4] + ", " + fields[6]
}

func guestNumber(t *testing.T, path string) int64 {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
