// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"nodeagent/internal/host/hosttest"
)

// What the kernel refuses a process without capabilities is said with their names.
func TestRefusalsNameTheCapability(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root to mount loop devices")
		}
		t.Skip("this test needs root to mount loop devices")
	}
	const size = 400 * mib // xfs wants 300 at least
	wantError := func(t *testing.T, err error, want string) {
		t.Helper()
		if err == nil || err.Error() != want {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	partitioned := func(t *testing.T) string {
		device, _ := loop(t, size, 512, "label: gpt\nsize=380MiB\n")
		return device
	}
	t.Run("partition", func(t *testing.T) {
		t.Parallel()
		disk, err := linux{}.openDisk(partitioned(t))
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		hosttest.DropCapabilities(t, unix.CAP_SYS_ADMIN)
		wantError(t, disk.ResizePartition(1, mib, 381*mib), "BLKPG_RESIZE_PARTITION: permission denied: this process lacks CAP_SYS_ADMIN")
	})
	t.Run("disk", func(t *testing.T) {
		t.Parallel()
		path := partitioned(t)
		if err := os.Chmod(path, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(path, 0o660) })
		hosttest.DropCapabilities(t, unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH)
		want := "open " + path + ": permission denied: this process lacks CAP_DAC_OVERRIDE"
		_, err := linux{}.openDisk(path)
		wantError(t, err, want)
		_, err = linux{}.openPartition(path)
		wantError(t, err, want)
	})
	for name, test := range map[string]struct {
		mkfs   []string
		takes  int
		resize func(mountPoint string) error
		want   string
	}{
		"ext4": {[]string{"mkfs.ext4", "-q", "-F", "-b", "4096"}, unix.CAP_SYS_RESOURCE,
			func(at string) error { return linux{}.resizeExt4(at, 100*mib/4096) },
			"EXT4_IOC_RESIZE_FS: operation not permitted: this process lacks CAP_SYS_RESOURCE"},
		"xfs": {[]string{"mkfs.xfs", "-q", "-f"}, unix.CAP_SYS_ADMIN,
			func(at string) error { return linux{}.growXFS(at, uint64(390*mib/4096), 25) },
			"XFS_IOC_FSGROWFSDATA: operation not permitted: this process lacks CAP_SYS_ADMIN"},
		"btrfs": {[]string{"mkfs.btrfs", "-q", "-f"}, unix.CAP_SYS_ADMIN,
			func(at string) error { return linux{}.resizeBtrfs(at, 1, 390*mib) },
			"BTRFS_IOC_RESIZE: operation not permitted: this process lacks CAP_SYS_ADMIN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			partition := partitioned(t) + "p1"
			tool(t, "", test.mkfs[0], append(test.mkfs[1:], partition)...)
			at := t.TempDir()
			tool(t, "", "mount", partition, at)
			t.Cleanup(func() { tool(t, "", "umount", at) })
			hosttest.DropCapabilities(t, test.takes)
			wantError(t, test.resize(at), test.want)
		})
	}
}
