// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host/hosttest"
)

// sysfs fills in a machine's /sys and /proc/self/mountinfo.
type sysfs struct {
	*hosttest.Machine
	t testing.TB
}

func newSysfs(t testing.TB) sysfs { return sysfs{hosttest.New(t), t} }

// device adds a device at a path below /sys/devices.
func (s sysfs) device(number, path string, files map[string]string) {
	s.t.Helper()
	dir := "/sys/devices/" + path
	s.Write(dir+"/dev", number+"\n")
	s.Write(dir+"/uevent", "MAJOR=1\nDEVNAME="+strings.ReplaceAll(filepath.Base(path), "!", "/")+"\nDEVTYPE=disk\n")
	for name, text := range files {
		s.Write(dir+"/"+name, text+"\n")
	}
	s.link("../../devices/"+path, "/sys/dev/block/"+number)
}

func (s sysfs) link(to, name string) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(s.Path(name)), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Symlink(to, s.Path(name)); err != nil {
		s.t.Fatal(err)
	}
}

// partition adds a partition. Start and size are units of 512 bytes.
func (s sysfs) partition(number, path string, index int, start, size int64) {
	s.t.Helper()
	s.device(number, path, map[string]string{"partition": fmt.Sprint(index), "start": fmt.Sprint(start), "size": fmt.Sprint(size), "ro": "0"})
}

func (s sysfs) mounts(lines ...string) {
	s.Write("/proc/self/mountinfo", strings.Join(lines, "\n")+"\n")
}

// Disk, number, start and size come from sysfs for every form of name (G1, G2,
// C34, C35); the device in mountinfo's source is not looked at.
func TestLocate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		device, path    string
		partition, disk string
		number          int
	}{
		{"8:3", "pci0000:00/host0/target0:0:0/0:0:0:0/block/sda/sda3", "/dev/sda3", "/dev/sda", 3},
		{"254:6", "pci0000:00/0000:00:04.0/virtio1/block/vda/vda6", "/dev/vda6", "/dev/vda", 6},
		{"202:6", "vbd-768/block/xvda/xvda6", "/dev/xvda6", "/dev/xvda", 6},
		{"259:5", "pci0000:00/0000:00:05.0/nvme/nvme0/nvme0n1/nvme0n1p6", "/dev/nvme0n1p6", "/dev/nvme0n1", 6},
		{"259:7", "virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nvme0n1p4", "/dev/nvme0n1p4", "/dev/nvme0n1", 4},
		{"179:2", "platform/soc/mmc_host/mmc0/mmc0:0001/block/mmcblk0/mmcblk0p2", "/dev/mmcblk0p2", "/dev/mmcblk0", 2},
		{"259:1", "virtual/block/loop0/loop0p6", "/dev/loop0p6", "/dev/loop0", 6},
		{"104:1", "pci0000:00/block/cciss!c0d0/cciss!c0d0p1", "/dev/cciss/c0d0p1", "/dev/cciss/c0d0", 1},
	} {
		t.Run(test.partition, func(t *testing.T) {
			t.Parallel()
			s := newSysfs(t)
			parent := filepath.Dir(test.path)
			s.device("1:0", parent, map[string]string{"size": "20971520", "ro": "0"})
			s.partition(test.device, test.path, test.number, 1503232, 4786176)
			s.partition("1:99", parent+"/other", 12, 2048, 4096)
			s.Write("/sys/devices/"+parent+"/queue/rotational", "1\n")
			s.mounts("1 0 0:5 / /proc rw - proc proc rw",
				"22 1 "+test.device+" / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro")
			got, err := locate(s.Host(), nil, "/")
			if err != nil {
				t.Fatal(err)
			}
			want := place{disk: test.disk, partition: test.partition, number: test.number, start: 1503232 * 512, size: 4786176 * 512,
				device: test.partition, siblings: []sibling{{12, 2048 * 512, 4096 * 512}}, fstype: "ext4", mount: "/"}
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
				t.Errorf("locate = %+v\nwant     %+v", got, want)
			}
		})
	}
}

// An LVM volume is found with the partition it is on, which must be the only one
// (G7).
func TestLocateVolume(t *testing.T) {
	t.Parallel()
	s := newSysfs(t)
	s.device("8:0", "block/sda", map[string]string{"size": "100", "ro": "0"})
	s.partition("8:3", "block/sda/sda3", 3, 1, 99)
	s.partition("8:4", "block/sda/sda4", 4, 100, 9)
	s.device("8:16", "block/sdb", map[string]string{"size": "100", "ro": "0"})
	volume := func(number, name, uuid string, slaves ...string) {
		s.device(number, "virtual/block/"+name, map[string]string{"dm/name": "vg-" + name, "dm/uuid": uuid, "size": "88"})
		for _, slave := range slaves {
			s.link("../../../../"+slave, "/sys/devices/virtual/block/"+name+"/slaves/"+filepath.Base(slave))
		}
	}
	uuid := dmUUID(fakeGroup, fakeVolume)
	volume("253:0", "dm-0", uuid, "block/sda/sda3")
	volume("253:1", "dm-1", uuid, "block/sda/sda3", "block/sda/sda4")
	volume("253:2", "dm-2", uuid, "block/sdb")
	volume("253:3", "dm-3", uuid+"-real", "block/sda/sda3")
	volume("253:4", "dm-4", uuid, "virtual/block/dm-3") // the origin of a snapshot
	volume("253:5", "dm-5", "CRYPT-LUKS2-"+uuid[13:], "block/sda/sda3")
	volume("253:6", "dm-6", uuid, "virtual/block/dm-5")
	volume("253:7", "dm-7", uuid, "block/sda/sda3", "block/gone")
	volume("253:8", "dm-8", uuid)
	const end = ", which is no partition of a disk, nor a plain LVM volume on a single one"
	for number, want := range map[string]string{
		"253:0": "",
		"253:1": "/ is on the LVM volume vg-dm-1 (dm-1) on sda3 and sda4" + end,
		"253:2": "/ is on the LVM volume vg-dm-2 (dm-2) on sdb" + end,
		"253:3": "/ is on the LVM volume vg-dm-3 (dm-3) on sda3" + end,
		"253:4": "/ is on the LVM volume vg-dm-4 (dm-4) on the LVM volume vg-dm-3 (dm-3) on sda3" + end,
		"253:5": "/ is on the encrypted volume vg-dm-5 (dm-5) on sda3" + end,
		"253:6": "/ is on the LVM volume vg-dm-6 (dm-6) on the encrypted volume vg-dm-5 (dm-5) on sda3" + end,
		"253:7": "/ is on the LVM volume vg-dm-7 (dm-7) on gone and sda3" + end,
		"253:8": "/ is on the LVM volume vg-dm-8 (dm-8)" + end,
	} {
		s.mounts("22 1 "+number+" / / ro - ext4 /dev/mapper/vg-x rw", "23 1 "+number+" / /b rw - ext4 /dev/mapper/vg-x rw")
		got, err := locate(s.Host(), nil, "/")
		if want != "" {
			if err == nil || err.Error() != want || fault.As(err).Code != fault.DiskUnsupported {
				t.Errorf("%s: error = %v, want %q with code %s", number, err, want, fault.DiskUnsupported)
			}
			continue
		}
		volume := sysVolume{uuid: uuid, size: 88 * 512, stack: "the LVM volume vg-dm-0 (dm-0) on sda3"}
		if err != nil || got.volume != volume || got.device != "/dev/dm-0" || got.partition != "/dev/sda3" || got.disk != "/dev/sda" ||
			got.number != 3 || got.size != 99*512 || got.mount != "/b" {
			t.Errorf("%s: locate = %+v, %v, want %+v on sda3, mounted at /b", number, got, err, volume)
		}
	}
}

// What is no partition is named, with what it stands on (G7).
func TestLocateUnsupported(t *testing.T) {
	t.Parallel()
	s := newSysfs(t)
	s.device("8:0", "block/sda", map[string]string{"size": "100", "ro": "0"})
	s.partition("8:3", "block/sda/sda3", 3, 1, 99)
	s.device("253:0", "virtual/block/dm-0", map[string]string{"dm/name": "vg-root", "dm/uuid": "LVM-abc"})
	s.device("253:1", "virtual/block/dm-1", map[string]string{"dm/name": "crypt", "dm/uuid": "CRYPT-LUKS2-abc"})
	s.link("../../dm-1", "/sys/devices/virtual/block/dm-0/slaves/dm-1")
	s.link("../../../../block/sda/sda3", "/sys/devices/virtual/block/dm-1/slaves/sda3")
	s.device("9:0", "virtual/block/md0", map[string]string{"md/level": "raid1"})
	s.link("../../../../block/sda/sda3", "/sys/devices/virtual/block/md0/slaves/sda3")
	s.device("253:2", "virtual/block/dm-2", map[string]string{"dm/name": "loop", "dm/uuid": "x"})
	s.link("../../dm-2", "/sys/devices/virtual/block/dm-2/slaves/dm-2")
	s.partition("8:9", "block/sda/sda9", 9, 1, 99)
	if err := os.Remove(s.Path("/sys/devices/block/sda/sda9/start")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ line, want string }{
		{"1 0 253:0 / / rw - ext4 /dev/mapper/vg-root rw", "/ is on the LVM volume vg-root (dm-0) on the encrypted volume crypt (dm-1) on sda3, which is no partition"},
		{"1 0 9:0 / / rw - ext4 /dev/md0 rw", "/ is on the raid1 array md0 on sda3, which is no partition"},
		{"1 0 253:2 / / rw - ext4 /dev/dm-2 rw", "the device-mapper volume loop (dm-2) on the device-mapper volume loop (dm-2)"},
		{"1 0 8:0 / / rw - ext4 /dev/sda rw", "/ is on the device sda, which is no partition"},
		{"1 0 0:31 / / rw - overlay overlay rw,lowerdir=/x", `file system of type overlay on "overlay"`},
		{"1 0 7:7 / / rw - ext4 /dev/loop7 rw", "cannot find the device 7:7"},
		{"1 0 8:9 / / rw - ext4 /dev/sda9 rw", "cannot find the disk of /"},
		{"1 0 8:3 / /boot rw - ext4 /dev/sda3 rw", `nothing is mounted at "/"`},
		{"broken", `nothing is mounted at "/"`},
	} {
		s.mounts(test.line)
		_, err := locate(s.Host(), nil, "/")
		if err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != fault.DiskUnsupported {
			t.Errorf("%s: error = %v, want %q with code %s", test.line, err, test.want, fault.DiskUnsupported)
		}
	}
}

// A read-only mount is looked past when the same file system is mounted writable
// elsewhere, where no other covers it (G8).
func TestLocateWritableMount(t *testing.T) {
	t.Parallel()
	s := newSysfs(t)
	s.device("8:0", "block/sda", map[string]string{"size": "100", "ro": "0"})
	s.partition("8:3", "block/sda/sda3", 3, 1, 99)
	for _, test := range []struct {
		lines []string
		want  string
	}{
		{[]string{"1 0 8:3 / / rw - ext4 /dev/sda3 rw"}, "/"},
		{[]string{"1 0 8:3 / / ro - ext4 /dev/sda3 rw"}, ""},
		{[]string{"1 0 8:3 / / rw - ext4 /dev/sda3 ro"}, ""},
		{[]string{"1 0 8:3 / / ro - ext4 /dev/sda3 rw", `2 1 8:3 / /a\040b rw - ext4 /dev/sda3 rw`}, "/a b"},
		{[]string{"1 0 8:3 / / ro - ext4 /dev/sda3 rw", "2 1 8:3 / /a rw - ext4 /dev/sda3 rw", "3 1 8:4 / /a rw - ext4 /dev/sda4 rw"}, ""},
		{[]string{"1 0 8:3 / / ro - ext4 /dev/sda3 rw", "2 1 8:3 / /a rw - ext4 /dev/sda3 rw", "3 1 8:4 / /a rw - ext4 /dev/sda4 rw",
			"4 1 8:3 / /b rw - ext4 /dev/sda3 rw"}, "/b"},
		{[]string{"1 0 8:4 / / rw - ext4 /dev/sda4 rw", "2 1 8:3 / / rw - ext4 /dev/sda3 rw"}, "/"},
	} {
		s.mounts(test.lines...)
		got, err := locate(s.Host(), nil, "/")
		if err != nil || got.mount != test.want {
			t.Errorf("%q: mount = %q, %v, want %q", test.lines, got.mount, err, test.want)
		}
	}
}
