// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"nodeagent/internal/fault"
)

// fakeBtrfs is a kernel that has a btrfs mounted.
type fakeBtrfs struct {
	machine
	text  string // uuid
	info  btrfsInfo
	id    uint64 // of its device
	bytes uint64
	err   error
}

func (k fakeBtrfs) btrfsInfo(string) (btrfsInfo, error) { return k.info, k.err }

func (k fakeBtrfs) btrfsDeviceSize(_ string, id uint64) (uint64, error) { return k.size(id) }

func (k fakeBtrfs) size(id uint64) (uint64, error) {
	if id != k.id {
		return 0, fmt.Errorf("no device %d", id)
	}
	return k.bytes, nil
}

// btrfsDump is a kernel that has mounted the btrfs in a file, as btrfs-progs read
// it.
func btrfsDump(t testing.TB, path string) fakeBtrfs {
	t.Helper()
	fields := map[string]string{}
	for line := range strings.Lines(tool(t, "", "btrfs", "inspect-internal", "dump-super", path)) {
		if words := strings.Fields(line); len(words) > 1 {
			fields[words[0]] = words[1]
		}
	}
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(fields[name], 10, 64)
		if err != nil {
			t.Fatalf("btrfs gives %s as %q", name, fields[name])
		}
		return n
	}
	uuid, err := hex.DecodeString(strings.ReplaceAll(fields["fsid"], "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	return fakeBtrfs{
		text: fields["fsid"],
		info: btrfsInfo{devices: number("num_devices"), uuid: [16]byte(uuid), sector: uint32(number("sectorsize"))},
		id:   number("dev_item.devid"), bytes: number("dev_item.total_bytes"),
	}
}

// The superblocks mkfs.btrfs writes are known for what they are, the device's id
// comes from them and its size from the kernel (G9).
func TestReadBtrfs(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]string{
		"defaults":     nil,
		"sha256":       {"--csum", "sha256"},
		"mixed groups": {"--mixed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := openImage(t, 256*mib, "")
			tool(t, "", "mkfs.btrfs", append(append([]string{"-q"}, options...), disk.Name())...)
			kernel := btrfsDump(t, disk.Name())
			kernel.bytes += 1 << 20 // grown, and not yet in the superblock
			got, err := readFilesystem(kernel, disk, "btrfs", "/")
			if err != nil || got != (btrfs{id: 1, bytes: 257 * mib, sector: 4096}) {
				t.Errorf("read %+v, %v, want device 1 with 257 MiB", got, err)
			}
		})
	}
	first, second := openImage(t, 256*mib, ""), openImage(t, 256*mib, "")
	tool(t, "", "mkfs.btrfs", "-q", first.Name(), second.Name())
	got, err := readFilesystem(btrfsDump(t, second.Name()), second, "btrfs", "/")
	if err != nil || got.(btrfs).id != 2 {
		t.Errorf("read %+v, %v, want device 2", got, err)
	}
}

func TestBtrfsFit(t *testing.T) {
	t.Parallel()
	fs := btrfs{id: 1, bytes: 100 * 4096, sector: 4096}
	for device, want := range map[int64]int64{0: 409600, 409599: 409600, 413695: 409600, 413696: 413696, gib: gib} {
		if got := fs.fit(device); got != want {
			t.Errorf("fit(%d) = %d, want %d", device, got, want)
		}
	}
}

func TestReadBtrfsRefuses(t *testing.T) {
	t.Parallel()
	disk := openImage(t, 128*mib, "")
	tool(t, "", "mkfs.btrfs", "-q", disk.Name())
	sound := btrfsDump(t, disk.Name())
	for name, test := range map[string]struct {
		disk   *image
		change func(*fakeBtrfs)
		want   string
	}{
		"another file system": {openImage(t, mib, ""), func(*fakeBtrfs) {}, `its superblock has the magic "\x00`},
		"another btrfs":       {disk, func(k *fakeBtrfs) { k.info.uuid[0]++ }, "its superblock has the uuid"},
		"another device":      {disk, func(k *fakeBtrfs) { k.id = 7 }, "the size of its device 1: no device 1"},
		"no size":             {disk, func(k *fakeBtrfs) { k.bytes = 0 }, "the kernel reports 0 bytes"},
		"too large":           {disk, func(k *fakeBtrfs) { k.bytes = 1 << 63 }, "the kernel reports 9223372036854775808 bytes"},
		"no sectors":          {disk, func(k *fakeBtrfs) { k.info.sector = 0 }, "in sectors of 0"},
		"kernel does not say": {disk, func(k *fakeBtrfs) { k.err = errors.New("not a typewriter") }, "cannot ask the kernel about it: not a typewriter"},
		"short":               {openImage(t, 66000, ""), func(*fakeBtrfs) {}, "cannot read the superblock"},
	} {
		kernel := sound
		test.change(&kernel)
		_, err := readFilesystem(kernel, test.disk, "btrfs", "/")
		if err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != fault.DiskUnsupported {
			t.Errorf("%s: error = %v, want %q with code %s", name, err, test.want, fault.DiskUnsupported)
		}
	}
}

// A btrfs is found on its one device, through whichever of its mounts is
// writable; on several it is refused with their names (G7, G8).
func TestLocateBtrfs(t *testing.T) {
	t.Parallel()
	kernel := fakeBtrfs{info: btrfsInfo{devices: 1, uuid: [16]byte{0: 0x8e, 5: 0xb8, 15: 0x22}}}
	const folder = "/sys/fs/btrfs/8e000000-00b8-0000-0000-000000000022/devices/"
	one := []string{"sda3"}
	for name, test := range map[string]struct {
		devices []string
		counted uint64
		err     error
		lines   []string
		mount   string
		want    string
	}{
		"writable": {one, 1, nil, []string{"1 0 0:31 /@ / rw - btrfs /dev/root rw,subvol=/@"}, "/", ""},
		"read-only, but not everywhere": {one, 1, nil, []string{"1 0 0:31 /@ / ro - btrfs /dev/sda3 rw",
			"2 1 0:32 / /a rw - btrfs /dev/sdb rw", "3 1 0:31 /@home /home rw - btrfs /dev/sda3 rw"}, "/home", ""},
		"read-only": {one, 1, nil, []string{"1 0 0:31 /@ / ro - btrfs /dev/sda3 ro"}, "", ""},
		"two devices": {[]string{"sda3", "sdb"}, 2, nil, []string{"1 0 0:31 / / rw - btrfs /dev/sda3 rw"}, "",
			"/ is on a btrfs on 2 devices: sda3 and sdb"},
		"on a seed": {[]string{"sda3", "sdb"}, 1, nil, []string{"1 0 0:31 / / rw - btrfs /dev/sda3 rw"}, "",
			"/ is on a btrfs on 2 devices: sda3 and sdb"},
		"one of two is missing": {one, 2, nil, []string{"1 0 0:31 / / rw - btrfs /dev/sda3 rw"}, "", "/ is on a btrfs on 2 devices: sda3"},
		"on a disk": {[]string{"sdb"}, 1, nil, []string{"1 0 0:31 / / rw - btrfs /dev/sdb rw"}, "",
			"/ is on the device sdb, which is no partition"},
		"kernel does not say": {one, 1, errors.New("not a typewriter"), []string{"1 0 0:31 / / rw - btrfs /dev/sda3 rw"}, "",
			"cannot find the devices of the btrfs mounted at /: not a typewriter"},
	} {
		s := newSysfs(t)
		s.device("8:0", "block/sda", map[string]string{"size": "100", "ro": "0"})
		s.partition("8:3", "block/sda/sda3", 3, 1, 99)
		s.device("8:16", "block/sdb", map[string]string{"size": "100", "ro": "0"})
		for _, device := range test.devices {
			s.link("../../../../devices/block/"+map[string]string{"sda3": "sda/sda3", "sdb": "sdb"}[device], folder+device)
		}
		s.mounts(test.lines...)
		kernel.info.devices, kernel.err = test.counted, test.err
		got, err := locate(s.Host(), kernel, "/")
		switch {
		case test.want == "" && (err != nil || got.partition != "/dev/sda3" || got.device != "/dev/sda3" || got.mount != test.mount):
			t.Errorf("%s: locate = %+v, %v, want sda3 with the mount %q", name, got, err, test.mount)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != fault.DiskUnsupported):
			t.Errorf("%s: error = %v, want %q with code %s", name, err, test.want, fault.DiskUnsupported)
		}
	}
}
