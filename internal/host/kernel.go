// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LinuxKernel is the kernel this program runs on.
type LinuxKernel struct{}

// MountReadOnly implements Kernel.
func (LinuxKernel) MountReadOnly(device, target, fstype string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return explainFile(err)
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC)
	return explainAdmin("mount", unix.Mount(device, target, fstype, flags, ""))
}

// Unmount implements Kernel.
func (LinuxKernel) Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return explainAdmin("umount", err)
}

// SwapOff implements Kernel.
func (LinuxKernel) SwapOff(path string) error {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 {
		return explainAdmin("swapoff", errno)
	}
	return nil
}

// Sync implements Kernel.
func (LinuxKernel) Sync() { unix.Sync() }

// SetHostname implements Kernel.
func (LinuxKernel) SetHostname(name string) error {
	return explainAdmin("sethostname", unix.Sethostname([]byte(name)))
}

// explainAdmin is for the calls above, all of which take CAP_SYS_ADMIN.
func explainAdmin(call string, err error) error {
	return Explain(os.NewSyscallError(call, err), unix.CAP_SYS_ADMIN)
}
