// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// ext4 is what matters of an ext4 superblock (also of ext2 and ext3, which the
// same driver mounts). Layout: the kernel's Documentation/filesystems/ext4,
// "The Super Block". It lies 1024 bytes into the partition.
type ext4 struct {
	blockSize      int64
	blocks         int64
	firstBlock     int64 // number of the block with the superblock
	groupBlocks    int64
	descriptorSize int64
	reservedGDT    int64 // blocks kept for descriptors of groups to come
	inodeTable     int64 // blocks of a group's inode table
	large          bool  // block numbers have 64 bits
	errors         bool
}

const (
	ext4Superblock = 1024
	ext4Magic      = 0xef53
	ext4Errors     = 0x2  // s_state
	ext4Large      = 0x80 // s_feature_incompat: 64bit
)

func readExt4(partition io.ReaderAt, fstype string) (filesystem, error) {
	var super [1024]byte
	if _, err := partition.ReadAt(super[:], ext4Superblock); err != nil {
		return nil, fault.Wrap(fault.DiskUnsupported, err, "cannot read the superblock")
	}
	le := binary.LittleEndian
	u16 := func(offset int) int64 { return int64(le.Uint16(super[offset:])) }
	u32 := func(offset int) int64 { return int64(le.Uint32(super[offset:])) }
	if magic := u16(0x38); magic != ext4Magic {
		return nil, unsupported("it is mounted as %s, but its superblock has the magic 0x%04x", fstype, magic)
	}
	logSize := u32(0x18)
	if logSize > 6 {
		return nil, unsupported("its superblock has a block size of 2^%d bytes", 10+logSize)
	}
	fs := ext4{
		blockSize:      1024 << logSize,
		blocks:         u32(0x4),
		firstBlock:     u32(0x14),
		groupBlocks:    u32(0x20),
		descriptorSize: 32,
		reservedGDT:    u16(0xce),
		errors:         u16(0x3a)&ext4Errors != 0,
		large:          u32(0x60)&ext4Large != 0,
	}
	if fs.large {
		fs.blocks |= u32(0x150) << 32
		fs.descriptorSize = max(fs.descriptorSize, u16(0xfe))
	}
	inodeSize := int64(128)
	if u32(0x4c) > 0 { // s_rev_level
		inodeSize = u16(0x58)
	}
	fs.inodeTable = (u32(0x28)*inodeSize + fs.blockSize - 1) / fs.blockSize
	if fs.groupBlocks == 0 || fs.blocks <= 0 || fs.blocks > math.MaxInt64/fs.blockSize {
		return nil, unsupported("its superblock has %d blocks in groups of %d", fs.blocks, fs.groupBlocks)
	}
	return fs, nil
}

func (fs ext4) size() int64 { return fs.blocks * fs.blockSize }

// fit implements filesystem. The kernel leaves out a last group too small for
// its own tables, and reports success; it would be tried again at every boot.
// So a short last group is left out here, with as much room to spare as
// resize2fs wants.
func (fs ext4) fit(partition int64) int64 {
	blocks := partition / fs.blockSize
	if !fs.large {
		blocks = min(blocks, math.MaxUint32)
	}
	if blocks <= fs.blocks {
		return fs.size()
	}
	group := func(count int64) int64 { return (count - fs.firstBlock - 1) / fs.groupBlocks }
	last := group(blocks)
	inLast := blocks - fs.firstBlock - last*fs.groupBlocks
	descriptors := ((last+1)*fs.descriptorSize + fs.blockSize - 1) / fs.blockSize
	const spare = 50
	tables := 1 + descriptors + fs.reservedGDT + 2 + fs.inodeTable
	if last > group(fs.blocks) && inLast < tables+spare {
		blocks -= inLast
	}
	return max(blocks, fs.blocks) * fs.blockSize
}

func (fs ext4) check() error {
	if fs.errors {
		return fault.New(fault.DiskGrowFailed, "it is marked as having errors, so the kernel will not grow it").
			WithHint("Have it checked at boot: add fsck.mode=force to the kernel command line once.")
	}
	return nil
}

func (fs ext4) resize(m machine, mountPoint string, bytes int64) error {
	return m.resizeExt4(mountPoint, bytes/fs.blockSize)
}

// ext4IocResizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64), of the kernel's
// include/uapi/linux/ext4.h, as amd64 and arm64 encode it.
const ext4IocResizeFS = 0x40086610

func (linux) resizeExt4(mountPoint string, blocks int64) error {
	count := uint64(blocks)
	_, err := ioctlMount(mountPoint, ext4IocResizeFS, unsafe.Pointer(&count))
	switch err = host.Explain(err, unix.CAP_SYS_RESOURCE); {
	case err == unix.EPERM: // it has the capability
		err = errors.New("the kernel does not permit it; `journalctl -k` says why")
	case errors.Is(err, unix.EBUSY):
		err = errors.New("another program is resizing it")
	}
	return os.NewSyscallError("EXT4_IOC_RESIZE_FS", err)
}
