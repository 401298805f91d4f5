// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// xfs is what matters of a mounted xfs.
type xfs struct{ xfsGeometry }

// xfsGeometry is struct xfs_fsop_geom_v4 of the kernel's fs/xfs/libxfs/xfs_fs.h,
// with names for the fields in use.
type xfsGeometry struct {
	blockSize   uint32
	_           uint32
	groupBlocks uint32 // agblocks
	_           [4]uint32
	inodesMax   uint32 // imaxpct: most percent of the space for inodes
	blocks      uint64 // datablocks
	_           [3]uint64
	uuid        [16]byte
	_           [8]uint32
}

// Layout of the superblock, at the beginning of the device: struct xfs_dsb of the
// kernel's fs/xfs/libxfs/xfs_format.h.
const (
	xfsMagic   = "XFSB"
	xfsUUID    = 32
	xfsMinimum = 64 // XFS_MIN_AG_BLOCKS: no allocation group is smaller
)

// readXFS takes the size from the kernel. The one on the device is late: it is
// written to the log first, and past the device's page cache.
func readXFS(m machine, device io.ReaderAt, mountPoint string) (filesystem, error) {
	var super [512]byte
	if _, err := device.ReadAt(super[:], 0); err != nil {
		return nil, fault.Wrap(fault.DiskUnsupported, err, "cannot read the superblock")
	}
	if magic := super[:len(xfsMagic)]; string(magic) != xfsMagic {
		return nil, unsupported("it is mounted as xfs, but its superblock has the magic %q", magic)
	}
	geometry, err := m.xfsGeometry(mountPoint)
	if err != nil {
		return nil, fault.Wrap(fault.DiskUnsupported, err, "cannot ask the kernel for its size")
	}
	if uuid := super[xfsUUID:][:len(geometry.uuid)]; !bytes.Equal(uuid, geometry.uuid[:]) {
		return nil, unsupported("its superblock has the uuid %x, the kernel has mounted an xfs with %x", uuid, geometry.uuid)
	}
	if geometry.blockSize == 0 || geometry.groupBlocks == 0 || geometry.blocks == 0 ||
		geometry.blocks > math.MaxInt64/uint64(geometry.blockSize) {
		return nil, unsupported("the kernel reports %d blocks of %d bytes in groups of %d", geometry.blocks, geometry.blockSize, geometry.groupBlocks)
	}
	return xfs{geometry}, nil
}

func (fs xfs) size() int64 { return int64(fs.blocks) * int64(fs.blockSize) }

// fit implements filesystem. A last allocation group that would be too small is
// left out: the kernel leaves it out as well, and reports success.
func (fs xfs) fit(device int64) int64 {
	blocks := device / int64(fs.blockSize)
	if last := blocks % int64(fs.groupBlocks); last < xfsMinimum {
		blocks -= last
	}
	return max(blocks*int64(fs.blockSize), fs.size())
}

func (xfs) check() error { return nil }

func (fs xfs) resize(m machine, mountPoint string, bytes int64) error {
	return m.growXFS(mountPoint, uint64(bytes)/uint64(fs.blockSize), fs.inodesMax)
}

// Requests of the kernel's fs/xfs/libxfs/xfs_fs.h, as amd64 and arm64 encode
// them. All kernels know this version of the geometry.
const (
	xfsIocFSGeometryV4 = 0x8070587c // _IOR('X', 124, struct xfs_fsop_geom_v4)
	xfsIocFSGrowFSData = 0x4010586e // _IOW('X', 110, struct xfs_growfs_data)
)

func (linux) xfsGeometry(mountPoint string) (xfsGeometry, error) {
	var geometry xfsGeometry
	_, err := ioctlMount(mountPoint, xfsIocFSGeometryV4, unsafe.Pointer(&geometry))
	return geometry, os.NewSyscallError("XFS_IOC_FSGEOMETRY_V4", err)
}

// xfsGrowth is struct xfs_growfs_data.
type xfsGrowth struct {
	blocks    uint64
	inodesMax uint32
	_         uint32
}

func (linux) growXFS(mountPoint string, blocks uint64, inodesMax uint32) error {
	request := xfsGrowth{blocks: blocks, inodesMax: inodesMax}
	_, err := ioctlMount(mountPoint, xfsIocFSGrowFSData, unsafe.Pointer(&request))
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("another program is resizing it")
	}
	return os.NewSyscallError("XFS_IOC_FSGROWFSDATA", host.Explain(err, unix.CAP_SYS_ADMIN))
}
