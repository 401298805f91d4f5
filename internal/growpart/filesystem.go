// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filesystem is a mounted file system as its superblock and the kernel tell. All
// but resize are pure.
type filesystem interface {
	// size returns the size in bytes.
	size() int64
	// fit returns the size in bytes the file system can have on a device of the
	// given size; never less than size.
	fit(device int64) int64
	// check says why it cannot grow now, if so.
	check() error
	// resize makes it grow to the size in bytes.
	resize(m machine, mountPoint string, bytes int64) error
}

// readFilesystem reads what there is to know of the file system that is on a
// device and mounted at mountPoint. The type comes from the kernel, and the
// superblock has to agree: neither an old superblock of another file system nor
// the type alone is believed. It is done before the table is touched.
func readFilesystem(m machine, device io.ReaderAt, fstype, mountPoint string) (filesystem, error) {
	switch fstype {
	case "ext2", "ext3", "ext4":
		return readExt4(device, fstype)
	case "xfs":
		return readXFS(m, device, mountPoint)
	case "btrfs":
		return readBtrfs(m, device, mountPoint)
	}
	return nil, unsupported("a file system of type %q cannot be grown", fstype)
}

// ioctlMount calls the file system mounted at mountPoint: through the mount and
// not through the device, whose node may be gone for a moment while udev looks
// at the partition. It returns what the call returned.
func ioctlMount(mountPoint string, request uintptr, argument unsafe.Pointer) (int, error) {
	dir, err := os.Open(mountPoint)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	result, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), request, uintptr(argument))
	if errno != 0 {
		return 0, errno
	}
	return int(result), nil
}
