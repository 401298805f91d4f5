// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"nodeagent/internal/fault"
)

// The superblock is read as e2fsprogs writes and reads it, and a file system
// resize2fs made as large as fit says is whole, and has nothing more to gain.
func TestExt4AgainstE2fsprogs(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]string{
		"ext4":                      {"-t", "ext4"},
		"ext4, small blocks":        {"-t", "ext4", "-b", "1024"},
		"ext4, 32 bit":              {"-t", "ext4", "-O", "^64bit"},
		"ext4, no flex_bg":          {"-t", "ext4", "-O", "^flex_bg"},
		"ext4, meta_bg":             {"-t", "ext4", "-O", "meta_bg,^resize_inode"},
		"ext4, many inodes":         {"-t", "ext4", "-i", "4096"},
		"ext3":                      {"-t", "ext3"},
		"ext2":                      {"-t", "ext2"},
		"ext2 with inodes of 128 B": {"-t", "ext2", "-I", "128"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := openImage(t, 160*mib, "")
			tool(t, "", "mke2fs", append(append([]string{"-q", "-F"}, options...), disk.Name())...)
			before := readSuper(t, disk)
			if before.size() != 160*mib {
				t.Errorf("size = %d, want %d", before.size(), 160*mib)
			}
			if got := before.fit(160 * mib); got != before.size() {
				t.Errorf("fit(its size) = %d, want %d", got, before.size())
			}
			// Sizes with last groups from nothing to whole ones.
			for _, size := range []int64{256*mib + 4096, 257 * mib, 262 * mib, 270 * mib, 300 * mib, 384*mib + 64*1024, 400 * mib} {
				want := before.fit(size)
				if want > size || size-want > 16*mib {
					t.Errorf("fit(%d) = %d, too far away", size, want)
				}
				if before.fit(want) != want {
					t.Errorf("fit(%d) = %d, want the same: %d fits", want, before.fit(want), want)
				}
			}
			disk.truncate(t, 400*mib)
			want := before.fit(400 * mib)
			tool(t, "", "resize2fs", "-f", disk.Name(), strconv.FormatInt(want/before.blockSize, 10))
			tool(t, "", "e2fsck", "-f", "-n", disk.Name())
			after := readSuper(t, disk)
			if after.size() != want || after.fit(400*mib) != want {
				t.Errorf("size = %d, fit = %d, want %d for both", after.size(), after.fit(400*mib), want)
			}
		})
	}
}

func readSuper(t *testing.T, disk *image) ext4 {
	t.Helper()
	fs, err := readExt4(disk, "ext4")
	if err != nil {
		t.Fatal(err)
	}
	return fs.(ext4)
}

// A last group with no room for its own tables is left out, unless the file
// system ends in that group already (G9, G12: the kernel would leave it out and
// report success).
func TestExt4Fit(t *testing.T) {
	t.Parallel()
	// As mke2fs makes a root of a few GiB: groups of 128 MiB.
	fs := ext4{blockSize: 4096, blocks: 598272, groupBlocks: 32768, descriptorSize: 64, reservedGDT: 292, inodeTable: 512, large: true}
	const group = 128 * mib
	for _, test := range []struct{ partition, want int64 }{
		{fs.size() - 4096, fs.size()},
		{fs.size(), fs.size()},
		{fs.size() + 4095, fs.size()},
		{fs.size() + 4096, fs.size() + 4096},
		{fs.size() + mib, fs.size() + mib},
		{19 * group, 19 * group},
		{19*group + mib, 19 * group},
		{19*group + 3*mib, 19 * group},
		{19*group + 4*mib, 19*group + 4*mib},
		{20*group + mib + 100, 20 * group},
		{9 * gib, 9 * gib},
	} {
		if got := fs.fit(test.partition); got != test.want {
			t.Errorf("fit(%d) = %d, want %d", test.partition, got, test.want)
		}
	}
	fs.large = false
	if got, want := fs.fit(20<<40), int64(1<<32-1)*4096; got != want {
		t.Errorf("fit(20 TiB) without 64-bit blocks = %d, want %d", got, want)
	}
}

func TestReadFilesystemRefuses(t *testing.T) {
	t.Parallel()
	super := func(change func(s []byte)) string {
		block := make([]byte, 2048)
		s := block[1024:]
		binary.LittleEndian.PutUint32(s[0x4:], 1000)
		binary.LittleEndian.PutUint32(s[0x18:], 2)
		binary.LittleEndian.PutUint32(s[0x20:], 32768)
		binary.LittleEndian.PutUint16(s[0x38:], ext4Magic)
		change(s)
		return string(block)
	}
	if _, err := readExt4(strings.NewReader(super(func([]byte) {})), "ext4"); err != nil {
		t.Errorf("a sound superblock is refused: %v", err)
	}
	for _, test := range []struct{ fstype, data, want string }{
		{"ext4", super(func(s []byte) { s[0x38] = 0 }), "its superblock has the magic 0xef00"},
		{"ext4", super(func(s []byte) { s[0x18] = 7 }), "block size of 2^17"},
		{"ext4", super(func(s []byte) { s[0x20], s[0x21] = 0, 0 }), "1000 blocks in groups of 0"},
		{"ext4", super(func(s []byte) { s[0x4], s[0x5] = 0, 0 }), "0 blocks in groups of 32768"},
		{"ext4", super(func(s []byte) { s[0x60] = ext4Large; copy(s[0x150:], "\xff\xff\xff\xff") }), "blocks in groups of 32768"},
		{"ext4", "short", "cannot read the superblock"},
	} {
		_, err := readExt4(strings.NewReader(test.data), test.fstype)
		if err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != fault.DiskUnsupported {
			t.Errorf("error = %v, want %q with code %s", err, test.want, fault.DiskUnsupported)
		}
	}
}

func TestFormatBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 bytes", 1023: "1023 bytes", 512 << 10: "512 KiB", 512 << 20: "512 MiB",
		3114270720: "2.9 GiB", 2 << 40: "2.0 TiB", 1<<63 - 1: "8192.0 PiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("formatBytes(%s) = %q, want %q", fmt.Sprint(n), got, want)
		}
	}
}
