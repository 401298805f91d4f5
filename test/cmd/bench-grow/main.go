// SPDX-License-Identifier: Apache-2.0

// Command bench-grow runs inside a disposable machine. It grows the same disk
// images with `nodeagent grow` and with growpart and resize2fs or xfs_growfs, and
// prints wall time, CPU time and bytes written of both, and their ratios.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const gib = 1 << 30

// benchCase is one image: made for before, and then the disk has after bytes.
type benchCase struct {
	name          string
	table         string // sfdisk script
	root          string // partition's number
	mkfs          []string
	options       string // of mount
	before, after int64
	old           func(disk, partition, mount string) [][]string
}

const mbr = "label: dos\nunit: sectors\n" +
	"start=2048, size=819200, type=83\nstart=823294, size=6514690, type=5\n" +
	"start=823296, size=1048576, type=82\nstart=1873920, size=5464064, type=83\n"

const gpt = "label: gpt\nsize=538MiB, type=uefi\nsize=400MiB, type=linux\nsize=256MiB, type=swap\ntype=linux\n"

func cases() []benchCase {
	// What CloudStack's cloud-early-config does.
	cloudStack := func(disk, partition, _ string) [][]string {
		return [][]string{{"growpart", disk, "2"}, {"growpart", disk, "6"}, {"resize2fs", partition}}
	}
	one := func(tool func(partition, mount string) []string) func(disk, partition, mount string) [][]string {
		return func(disk, partition, mount string) [][]string {
			return [][]string{{"growpart", disk, "4"}, tool(partition, mount)}
		}
	}
	ext4 := []string{"mkfs.ext4", "-q", "-F"}
	const noInit = "noinit_itable" // else the kernel writes inode tables beside both
	resize2fs := one(func(partition, _ string) []string { return []string{"resize2fs", partition} })
	xfs := one(func(_, mount string) []string { return []string{"xfs_growfs", mount} })
	const small = 3584 << 20
	return []benchCase{
		{"MBR 1/2/5/6, ext4, 3.5 -> 10 GiB", mbr, "6", ext4, noInit, small, 10 * gib, cloudStack},
		{"MBR 1/2/5/6, ext4, nothing to do", mbr, "6", ext4, noInit, small, small, cloudStack},
		{"GPT 1/2/3/4, ext4, 3.5 -> 10 GiB", gpt, "4", ext4, noInit, small, 10 * gib, resize2fs},
		{"GPT 1/2/3/4, ext4, 3.5 -> 100 GiB", gpt, "4", ext4, noInit, small, 100 * gib, resize2fs},
		{"GPT 1/2/3/4, xfs, 3.5 -> 10 GiB", gpt, "4", []string{"mkfs.xfs", "-q", "-f"}, "defaults", small, 10 * gib, xfs},
		{"GPT 1/2/3/4, xfs, nothing to do", gpt, "4", []string{"mkfs.xfs", "-q", "-f"}, "defaults", small, small, xfs},
	}
}

// cost is what a way of growing took.
type cost struct {
	wall, cpu time.Duration
	written   int64 // bytes, on the grown disk
}

const rounds = 5

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench-grow:", err)
		os.Exit(1)
	}
}

func run() error {
	fmt.Printf("median of %d rounds              %21s %21s %24s\n", rounds, "wall ms", "CPU ms", "KiB written")
	fmt.Printf("%-34s %7s %6s %5s  %7s %6s %5s  %8s %7s %6s\n", "", "old", "ours", "ratio", "old", "ours", "ratio", "old", "ours", "ratio")
	for _, c := range cases() {
		var ours, old []cost
		for range rounds {
			for _, way := range []struct {
				costs    *[]cost
				commands func(disk, partition, mount string) [][]string
			}{
				{&old, c.old},
				{&ours, func(_, _, mount string) [][]string { return [][]string{{"nodeagent", "grow", mount}} }},
			} {
				taken, err := measure(c, way.commands)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				*way.costs = append(*way.costs, taken)
			}
		}
		a, b := median(old), median(ours)
		fmt.Printf("%-34s %7d %6d %5s  %7d %6d %5s  %8d %7d %6s\n", c.name,
			a.wall.Milliseconds(), b.wall.Milliseconds(), ratio(float64(b.wall), float64(a.wall)),
			a.cpu.Milliseconds(), b.cpu.Milliseconds(), ratio(float64(b.cpu), float64(a.cpu)),
			a.written>>10, b.written>>10, ratio(float64(b.written), float64(a.written)))
	}
	return nil
}

func ratio(ours, old float64) string {
	if old == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", ours/old)
}

// median takes each figure by itself.
func median(costs []cost) cost {
	pick := func(of func(cost) int64) int64 {
		var values []int64
		for _, c := range costs {
			values = append(values, of(c))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return cost{
		time.Duration(pick(func(c cost) int64 { return int64(c.wall) })),
		time.Duration(pick(func(c cost) int64 { return int64(c.cpu) })),
		pick(func(c cost) int64 { return c.written }),
	}
}

// measure makes the disk, grows it, and takes it down.
func measure(c benchCase, way func(disk, partition, mount string) [][]string) (taken cost, err error) {
	dir, err := os.MkdirTemp("/var/tmp", "bench-grow-")
	if err != nil {
		return cost{}, err
	}
	defer os.RemoveAll(dir)
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, c.before), os.Mkdir(mount, 0o700)); err != nil {
		return cost{}, err
	}
	if _, err := call(c.table, "sfdisk", "--quiet", image); err != nil {
		return cost{}, err
	}
	disk, err := call("", "losetup", "--partscan", "--show", "--find", image)
	if err != nil {
		return cost{}, err
	}
	defer func() {
		_, detached := call("", "losetup", "--detach", disk)
		err = errors.Join(err, detached)
	}()
	partition := disk + "p" + c.root
	if _, err := call("", "udevadm", "settle"); err != nil {
		return cost{}, err
	}
	if _, err := call("", c.mkfs[0], append(c.mkfs[1:], partition)...); err != nil {
		return cost{}, err
	}
	if _, err := call("", "mount", "-o", c.options, partition, mount); err != nil {
		return cost{}, err
	}
	defer func() {
		_, unmounted := call("", "umount", mount)
		err = errors.Join(err, unmounted)
	}()
	if err := os.Truncate(image, c.after); err != nil {
		return cost{}, err
	}
	for _, command := range [][]string{{"losetup", "--set-capacity", disk}, {"udevadm", "settle"}, {"sync"}} {
		if _, err := call("", command[0], command[1:]...); err != nil {
			return cost{}, err
		}
	}

	before, err := written(disk)
	if err != nil {
		return cost{}, err
	}
	for _, argv := range way(disk, partition, mount) {
		cmd := exec.Command(argv[0], argv[1:]...)
		began := time.Now()
		text, err := cmd.CombinedOutput()
		taken.wall += time.Since(began)
		// growpart ends with 1 when there is nothing to do.
		if err != nil && !(argv[0] == "growpart" && cmd.ProcessState.ExitCode() == 1) {
			return cost{}, fmt.Errorf("%q: %w: %s", argv, err, text)
		}
		taken.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() // with the children it waited for
	}
	if _, err := call("", "sync"); err != nil {
		return cost{}, err
	}
	after, err := written(disk)
	if err != nil {
		return cost{}, err
	}
	taken.written = after - before
	var stat syscall.Statfs_t
	if err := syscall.Statfs(mount, &stat); err != nil {
		return cost{}, err
	}
	if size := int64(stat.Blocks) * stat.Bsize; c.after > c.before && size < c.after/2 {
		return cost{}, fmt.Errorf("%s has %d bytes on a disk of %d: not grown", mount, size, c.after)
	}
	return taken, nil
}

// written returns how many bytes were written to a disk since it came: the
// seventh figure of its stat, in sectors of 512 (the kernel's
// Documentation/block/stat.rst).
func written(disk string) (int64, error) {
	data, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(disk), "stat"))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(data))
	if len(fields) < 7 {
		return 0, fmt.Errorf("stat of %s has %d figures", disk, len(fields))
	}
	sectors, err := strconv.ParseInt(fields[6], 10, 64)
	return sectors * 512, err
}

func call(stdin, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}
