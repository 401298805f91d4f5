// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// btrfs is what matters of a mounted btrfs on one device.
type btrfs struct {
	id     uint64 // of the device within the file system
	bytes  int64  // of the device, as far as the file system uses it
	sector int64  // sizes are multiples of it
}

// btrfsInfo is struct btrfs_ioctl_fs_info_args of the kernel's
// include/uapi/linux/btrfs.h, with names for the fields in use.
type btrfsInfo struct {
	_       uint64
	devices uint64 // num_devices
	uuid    [16]byte
	_       uint32
	sector  uint32
	_       [984]byte
}

// Layout of the superblock, 64 KiB into the device: struct btrfs_super_block of
// the kernel's include/uapi/linux/btrfs_tree.h.
const (
	btrfsSuperblock = 64 << 10
	btrfsUUID       = 0x20
	btrfsMagicAt    = 0x40
	btrfsMagic      = "_BHRfS_M"
	btrfsDeviceID   = 0xc9 // of dev_item, which is about the device itself
)

// btrfsDevice finds the one device of the btrfs mounted at mountPoint. All its
// subvolumes are mounted under one device number, which belongs to no device.
func btrfsDevice(h *host.Host, m machine, mountPoint string) (sysDevice, error) {
	info, err := m.btrfsInfo(h.Path(mountPoint))
	if err != nil {
		return "", fault.Wrap(fault.DiskUnsupported, err, "cannot find the devices of the btrfs mounted at %s", mountPoint)
	}
	u := info.uuid
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	devices := linkedDevices(h.Path("/sys/fs/btrfs/" + uuid + "/devices"))
	if len(devices) == 1 && info.devices == 1 {
		return devices[0], nil
	}
	var names []string
	for _, device := range devices { // with those of a seed, which info does not count
		names = append(names, device.name())
	}
	return "", unsupported("%s is on a btrfs on %d devices: %s", mountPoint, max(info.devices, uint64(len(names))), strings.Join(names, " and "))
}

// readBtrfs takes the size from the kernel. The superblock may be late.
func readBtrfs(m machine, device io.ReaderAt, mountPoint string) (filesystem, error) {
	var super [4096]byte
	if _, err := device.ReadAt(super[:], btrfsSuperblock); err != nil {
		return nil, fault.Wrap(fault.DiskUnsupported, err, "cannot read the superblock")
	}
	if magic := super[btrfsMagicAt:][:len(btrfsMagic)]; string(magic) != btrfsMagic {
		return nil, unsupported("it is mounted as btrfs, but its superblock has the magic %q", magic)
	}
	info, err := m.btrfsInfo(mountPoint)
	if err != nil {
		return nil, fault.Wrap(fault.DiskUnsupported, err, "cannot ask the kernel about it")
	}
	if uuid := super[btrfsUUID:][:len(info.uuid)]; !bytes.Equal(uuid, info.uuid[:]) {
		return nil, unsupported("its superblock has the uuid %x, the kernel has mounted a btrfs with %x", uuid, info.uuid)
	}
	fs := btrfs{id: binary.LittleEndian.Uint64(super[btrfsDeviceID:]), sector: int64(info.sector)}
	size, err := m.btrfsDeviceSize(mountPoint, fs.id)
	if err != nil {
		return nil, fault.Wrap(fault.DiskUnsupported, err, "cannot ask the kernel for the size of its device %d", fs.id)
	}
	if size == 0 || size > math.MaxInt64 || fs.sector == 0 {
		return nil, unsupported("the kernel reports %d bytes in sectors of %d", size, fs.sector)
	}
	fs.bytes = int64(size)
	return fs, nil
}

func (fs btrfs) size() int64 { return fs.bytes }

func (fs btrfs) fit(device int64) int64 { return max(device/fs.sector*fs.sector, fs.bytes) }

func (btrfs) check() error { return nil }

func (fs btrfs) resize(m machine, mountPoint string, bytes int64) error {
	return m.resizeBtrfs(mountPoint, fs.id, bytes)
}

// Requests of the kernel's include/uapi/linux/btrfs.h, as amd64 and arm64 encode
// them.
const (
	btrfsIocResize  = 0x50009403 // _IOW(0x94, 3, struct btrfs_ioctl_vol_args)
	btrfsIocDevInfo = 0xd000941e // _IOWR(0x94, 30, struct btrfs_ioctl_dev_info_args)
	btrfsIocFSInfo  = 0x8400941f // _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)

	btrfsExclusive = 8 // BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS, a result above 0
)

func (linux) btrfsInfo(mountPoint string) (btrfsInfo, error) {
	var info btrfsInfo
	_, err := ioctlMount(mountPoint, btrfsIocFSInfo, unsafe.Pointer(&info))
	return info, os.NewSyscallError("BTRFS_IOC_FS_INFO", err)
}

// btrfsDeviceInfo is struct btrfs_ioctl_dev_info_args.
type btrfsDeviceInfo struct {
	id    uint64 // devid
	_     [3]uint64
	bytes uint64 // total_bytes
	_     [4056]byte
}

func (linux) btrfsDeviceSize(mountPoint string, id uint64) (uint64, error) {
	device := btrfsDeviceInfo{id: id}
	_, err := ioctlMount(mountPoint, btrfsIocDevInfo, unsafe.Pointer(&device))
	return device.bytes, os.NewSyscallError("BTRFS_IOC_DEV_INFO", err)
}

// btrfsResize is struct btrfs_ioctl_vol_args.
type btrfsResize struct {
	_    int64
	text [4088]byte // "device:bytes"
}

func (linux) resizeBtrfs(mountPoint string, id uint64, size int64) error {
	var request btrfsResize
	copy(request.text[:], fmt.Sprintf("%d:%d", id, size))
	result, err := ioctlMount(mountPoint, btrfsIocResize, unsafe.Pointer(&request))
	switch {
	case err == nil && result == btrfsExclusive:
		err = errors.New("a balance, a device replacement or another resize is running")
	case err == nil && result != 0:
		err = fmt.Errorf("the kernel returned %d", result)
	}
	return os.NewSyscallError("BTRFS_IOC_RESIZE", host.Explain(err, unix.CAP_SYS_ADMIN))
}
