// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// place is where a mounted file system is, as the kernel sees it: on a partition
// of a disk, or on an LVM volume on one. Sizes and starts are in bytes.
type place struct {
	disk, partition string // device files
	number          int
	start, size     int64
	siblings        []sibling
	readOnlyDisk    bool

	device string    // device file the file system is on: that of the partition or of its volume
	volume sysVolume // the LVM volume on the partition; its zero value is none

	fstype string
	mount  string // a writable mount point of the file system; "" if there is none
}

// sibling is another partition of the disk.
type sibling struct {
	number      int
	start, size int64
}

// sysVolume is an LVM volume as the kernel has it.
type sysVolume struct {
	uuid  string // LVM's name for it: "LVM-", the group's uuid, the volume's uuid
	size  int64
	stack string // for people: "the LVM volume vg-root (dm-0) on vda3"
}

// sysSector is the unit of sizes in sysfs, whatever the disk's sectors are.
const sysSector = 512

func unsupported(format string, args ...any) error {
	return fault.New(fault.DiskUnsupported, format, args...)
}

// locate finds the partition under the file system mounted at mountPoint and its
// disk by device number (/proc/self/mountinfo, /sys/dev/block), never by names:
// those differ between hypervisors, and partition names have no general form.
func locate(h *host.Host, m machine, mountPoint string) (place, error) {
	data, err := h.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return place{}, fault.Wrap(fault.DiskUnsupported, err, "cannot tell what is mounted at %s", mountPoint)
	}
	mounts := parseMountinfo(string(data))
	top := map[string]mount{} // by mount point: the last one covers those before it
	for _, mount := range mounts {
		top[mount.point] = mount
	}
	mounted, found := top[mountPoint]
	if !found {
		return place{}, unsupported("nothing is mounted at %q", mountPoint)
	}
	device, err := mountedDevice(h, m, mounted)
	if err != nil {
		return place{}, err
	}
	partition, isVolume := device, false
	if below, ok := device.belowVolume(); ok {
		partition, isVolume = below, true
	}
	if !partition.has("partition") {
		return place{}, unsupported("%s is on %s, which is no partition of a disk, nor a plain LVM volume on a single one",
			mountPoint, device.describe(0))
	}
	parent := sysDevice(filepath.Dir(string(partition)))

	at := place{fstype: mounted.fstype}
	if mounted.writable {
		at.mount = mountPoint
	}
	for _, other := range mounts {
		if at.mount == "" && other.device == mounted.device && other.writable && other == top[other.point] {
			at.mount = other.point
		}
	}
	var problems []error
	number := func(d sysDevice, name string) int64 {
		n, err := d.number(name)
		if err != nil {
			problems = append(problems, err)
		}
		return n
	}
	text := func(d sysDevice) string {
		name, err := d.file()
		if err != nil {
			problems = append(problems, err)
		}
		return name
	}
	at.disk, at.partition, at.device = text(parent), text(partition), text(device)
	known := func(d sysDevice) sibling {
		p, err := d.partition()
		if err != nil {
			problems = append(problems, err)
		}
		return p
	}
	own := known(partition)
	at.number, at.start, at.size = own.number, own.start, own.size
	at.readOnlyDisk = number(parent, "ro") != 0
	if isVolume {
		at.volume = sysVolume{uuid: device.volumeUUID(), size: number(device, "size") * sysSector, stack: device.describe(0)}
	}
	for _, other := range parent.partitions() {
		if other != partition {
			at.siblings = append(at.siblings, known(other))
		}
	}
	slices.SortFunc(at.siblings, func(a, b sibling) int { return a.number - b.number })
	if len(problems) > 0 {
		return place{}, fault.Wrap(fault.DiskUnsupported, problems[0], "cannot find the disk of %s", mountPoint)
	}
	return at, nil
}

// mountedDevice finds the block device of a mounted file system.
func mountedDevice(h *host.Host, m machine, mounted mount) (sysDevice, error) {
	if mounted.fstype == "btrfs" { // its device number stands for no device
		return btrfsDevice(h, m, mounted.point)
	}
	if strings.HasPrefix(mounted.device, "0:") {
		return "", unsupported("%s is a file system of type %s on %q, which is on no single partition",
			mounted.point, mounted.fstype, mounted.source)
	}
	path, err := filepath.EvalSymlinks(h.Path("/sys/dev/block/" + mounted.device))
	if err != nil {
		return "", fault.Wrap(fault.DiskUnsupported, err, "cannot find the device %s mounted at %s", mounted.device, mounted.point)
	}
	return sysDevice(path), nil
}

// mount is a line of /proc/self/mountinfo.
type mount struct {
	device   string // major:minor
	point    string
	fstype   string
	source   string
	writable bool
}

// parseMountinfo reads proc_pid_mountinfo(5). Lines it cannot read are left out:
// the mount looked for is then not found.
func parseMountinfo(text string) []mount {
	var mounts []mount
	for line := range strings.Lines(text) {
		before, after, found := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !found || len(left) < 6 || len(right) < 3 {
			continue
		}
		mounts = append(mounts, mount{
			device: left[2], point: unescape(left[4]), fstype: right[0], source: unescape(right[1]),
			// The mount's own options and those of the file system.
			writable: hasOption(left[5], "rw") && hasOption(right[2], "rw"),
		})
	}
	return mounts
}

func hasOption(options, want string) bool {
	return slices.Contains(strings.Split(options, ","), want)
}

// unescape undoes the octal escapes of blanks and backslashes in mountinfo.
func unescape(text string) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(text[i])
	}
	return out.String()
}

// sysDevice is the folder of a block device in sysfs.
type sysDevice string

func (d sysDevice) name() string { return filepath.Base(string(d)) }

func (d sysDevice) has(name string) bool {
	_, err := os.Lstat(filepath.Join(string(d), name))
	return err == nil
}

func (d sysDevice) read(name string) (string, error) {
	data, err := os.ReadFile(filepath.Join(string(d), name))
	return strings.TrimSpace(string(data)), err
}

func (d sysDevice) number(name string) (int64, error) {
	text, err := d.read(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 54) // times sysSector stays in 63 bits
	if err != nil || n < 0 {
		return 0, fmt.Errorf("cannot read %s of %s: %q is no number", name, d.name(), text)
	}
	return n, nil
}

// partitions returns the partitions the kernel has of a disk.
func (d sysDevice) partitions() []sysDevice {
	entries, _ := os.ReadDir(string(d)) // a disk that is gone has none
	var found []sysDevice
	for _, entry := range entries {
		if child := sysDevice(filepath.Join(string(d), entry.Name())); child.has("partition") {
			found = append(found, child)
		}
	}
	return found
}

// partition returns a partition's number, and where it is.
func (d sysDevice) partition() (sibling, error) {
	number, err1 := d.number("partition")
	start, err2 := d.number("start")
	size, err3 := d.number("size")
	return sibling{number: int(number), start: start * sysSector, size: size * sysSector}, cmp.Or(err1, err2, err3)
}

// file returns the device file the kernel itself makes in devtmpfs; links made
// by udev are not needed.
func (d sysDevice) file() (string, error) {
	text, err := d.read("uevent")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if name, found := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); found && name != "" {
			return filepath.Join("/dev", filepath.Join("/", name)), nil
		}
	}
	return "", fmt.Errorf("cannot find the device file of %s: its uevent has no DEVNAME", d.name())
}

// volumeUUID returns the name LVM gave a device; "" for any other device, and for
// the hidden layers of volumes that are more than an area of the disk, which have
// a suffix (build_dm_uuid in LVM's lib/activate/dev_manager.c).
func (d sysDevice) volumeUUID() string {
	const length = len("LVM-") + 32 + 32 // the group's, the volume's
	uuid, err := d.read("dm/uuid")
	if err != nil || len(uuid) != length || !strings.HasPrefix(uuid, "LVM-") {
		return ""
	}
	return uuid
}

// belowVolume returns the one device an LVM volume is on.
func (d sysDevice) belowVolume() (sysDevice, bool) {
	if d.volumeUUID() == "" {
		return "", false
	}
	below := d.slaves()
	if len(below) != 1 {
		return "", false
	}
	return below[0], true
}

// slaves returns the devices a device is made of.
func (d sysDevice) slaves() []sysDevice { return linkedDevices(filepath.Join(string(d), "slaves")) }

// linkedDevices returns the devices that the links of a folder lead to.
func linkedDevices(folder string) []sysDevice {
	links, err := os.ReadDir(folder)
	if err != nil {
		return nil
	}
	var devices []sysDevice
	for _, link := range links {
		name := filepath.Join(folder, link.Name())
		path, err := filepath.EvalSymlinks(name)
		if err != nil {
			path = name // counts, and shows under its name
		}
		devices = append(devices, sysDevice(path))
	}
	return devices
}

// describe names a stack of devices for the operator: "the LVM volume vg-root
// (dm-0) on vda3".
func (d sysDevice) describe(depth int) string {
	text := "the device " + d.name()
	if uuid, err := d.read("dm/uuid"); err == nil {
		label, err := d.read("dm/name")
		if err != nil || label == "" {
			label = "?"
		}
		kind := "device-mapper volume"
		switch prefix, _, _ := strings.Cut(uuid, "-"); prefix {
		case "LVM":
			kind = "LVM volume"
		case "CRYPT":
			kind = "encrypted volume"
		case "mpath", "part1", "part2", "part3", "part4":
			kind = "multipath device"
		}
		text = fmt.Sprintf("the %s %s (%s)", kind, label, d.name())
	} else if level, err := d.read("md/level"); err == nil {
		text = fmt.Sprintf("the %s array %s", level, d.name())
	}
	const deepest = 8
	below := d.slaves()
	if len(below) == 0 || depth == deepest {
		return text
	}
	var names []string
	for _, slave := range below {
		names = append(names, strings.TrimPrefix(slave.describe(depth+1), "the device "))
	}
	return text + " on " + strings.Join(names, " and ")
}
