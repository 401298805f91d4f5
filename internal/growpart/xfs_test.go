// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"nodeagent/internal/fault"
)

// xfsInfo is the geometry of the xfs in a file as xfs_db reads it.
func xfsInfo(t testing.TB, path string) xfsGeometry {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(tool(t, "", "xfs_db", "-r", "-c", "sb 0", "-c", "p", path)) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), " = "); found {
			fields[name] = value
		}
	}
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(fields[name], 10, 64)
		if err != nil {
			t.Fatalf("xfs_db gives %s as %q", name, fields[name])
		}
		return n
	}
	uuid, err := hex.DecodeString(strings.ReplaceAll(fields["uuid"], "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	return xfsGeometry{
		blockSize: uint32(number("blocksize")), groupBlocks: uint32(number("agblocks")), inodesMax: uint32(number("imax_pct")),
		blocks: number("dblocks"), uuid: [16]byte(uuid),
	}
}

// kernelXFS is a kernel that has an xfs mounted.
type kernelXFS struct {
	machine
	geometry xfsGeometry
	err      error
}

func (k kernelXFS) xfsGeometry(string) (xfsGeometry, error) { return k.geometry, k.err }

// The superblocks mkfs.xfs writes are known for what they are, and the size is
// the kernel's (G9).
func TestReadXFS(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]string{
		"defaults":        nil,
		"old format":      {"-m", "crc=0"},
		"small blocks":    {"-b", "size=1024"},
		"many groups":     {"-d", "agcount=7"},
		"sectors of 4096": {"-s", "size=4096"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := openImage(t, 640*mib, "")
			tool(t, "", "mkfs.xfs", append(append([]string{"-q"}, options...), disk.Name())...)
			kernel := kernelXFS{geometry: xfsInfo(t, disk.Name())}
			kernel.geometry.blocks += 1000 // grown, and in the log only
			fs, err := readFilesystem(kernel, disk, "xfs", "/")
			if err != nil {
				t.Fatal(err)
			}
			if want := int64(kernel.geometry.blocks) * int64(kernel.geometry.blockSize); fs.size() != want {
				t.Errorf("size = %d, want %d", fs.size(), want)
			}
		})
	}
}

// A last allocation group of fewer than 64 blocks is left out, as the kernel does
// (G9, G12: it would be tried again at every boot).
func TestXFSFit(t *testing.T) {
	t.Parallel()
	const block, group = 4096, 1000 * 4096
	fs := xfs{xfsGeometry{blockSize: block, groupBlocks: 1000, blocks: 3500}}
	for _, test := range []struct{ device, want int64 }{
		{0, fs.size()},
		{fs.size() - block, fs.size()},
		{fs.size() + block - 1, fs.size()},
		{fs.size() + block, fs.size() + block},
		{4 * group, 4 * group},
		{4*group + 63*block, 4 * group},
		{4*group + 64*block - 1, 4 * group},
		{4*group + 64*block, 4*group + 64*block},
		{5*group - 1, 5*group - block},
	} {
		if got := fs.fit(test.device); got != test.want {
			t.Errorf("fit(%d) = %d, want %d", test.device, got, test.want)
		}
	}
}

func TestReadXFSRefuses(t *testing.T) {
	t.Parallel()
	disk := openImage(t, 320*mib, "")
	tool(t, "", "mkfs.xfs", "-q", disk.Name())
	sound := xfsInfo(t, disk.Name())
	ext4 := openImage(t, 16*mib, "")
	tool(t, "", "mke2fs", "-q", "-F", "-t", "ext4", ext4.Name())
	with := func(change func(*xfsGeometry)) kernelXFS {
		kernel := kernelXFS{geometry: sound}
		change(&kernel.geometry)
		return kernel
	}
	for name, test := range map[string]struct {
		disk   *image
		kernel kernelXFS
		want   string
	}{
		"another file system": {ext4, with(func(*xfsGeometry) {}), `its superblock has the magic "\x00\x00\x00\x00"`},
		"another xfs":         {disk, with(func(g *xfsGeometry) { g.uuid[15]++ }), "its superblock has the uuid"},
		"no blocks":           {disk, with(func(g *xfsGeometry) { g.blocks = 0 }), "the kernel reports 0 blocks"},
		"no block size":       {disk, with(func(g *xfsGeometry) { g.blockSize = 0 }), "blocks of 0 bytes"},
		"no groups":           {disk, with(func(g *xfsGeometry) { g.groupBlocks = 0 }), "in groups of 0"},
		"too many blocks":     {disk, with(func(g *xfsGeometry) { g.blocks = 1 << 60 }), "the kernel reports 1152921504606846976 blocks"},
		"kernel does not say": {disk, kernelXFS{err: errors.New("not a typewriter")}, "cannot ask the kernel for its size: not a typewriter"},
		"nothing":             {openImage(t, 0, ""), with(func(*xfsGeometry) {}), "cannot read the superblock"},
	} {
		_, err := readFilesystem(test.kernel, test.disk, "xfs", "/")
		if err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != fault.DiskUnsupported {
			t.Errorf("%s: error = %v, want %q with code %s", name, err, test.want, fault.DiskUnsupported)
		}
	}
}

// What the kernel fills in and reads has the size its request says.
func TestRequestSizes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		request uint32
		size    uintptr
	}{
		"xfs geometry": {xfsIocFSGeometryV4, unsafe.Sizeof(xfsGeometry{})},
		"btrfs info":   {btrfsIocFSInfo, unsafe.Sizeof(btrfsInfo{})},
		"btrfs device": {btrfsIocDevInfo, unsafe.Sizeof(btrfsDeviceInfo{})},
		"btrfs resize": {btrfsIocResize, unsafe.Sizeof(btrfsResize{})},
		"xfs growth":   {xfsIocFSGrowFSData, unsafe.Sizeof(xfsGrowth{})},
	} {
		if want := uintptr(test.request >> 16 & 0x3fff); test.size != want {
			t.Errorf("%s: %d bytes, want %d", name, test.size, want)
		}
	}
}
