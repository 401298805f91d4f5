// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	sectorSize = 512
	mib        = 1 << 20 / sectorSize // sectors

	// imageSectors makes a root of 2668 MiB; the real template's recipe says 2240
	// to 4000 MB.
	imageSectors = 3584 * mib

	bootUUID = "6e6f6465-6167-456e-8400-000000000001"
	swapUUID = "6e6f6465-6167-456e-8400-000000000005"
	rootUUID = "6e6f6465-6167-456e-8400-000000000006"
	espUUID  = "6E6F-6465" // FAT's volume id, as blkid writes it
)

// extent is a run of sectors of 512 bytes.
type extent struct{ start, size uint64 }

func (e extent) end() uint64   { return e.start + e.size }
func (e extent) offset() int64 { return int64(e.start) * sectorSize }

// layout is the x86_64 SystemVM template's MBR: partition 1 /boot, 2 extended, in
// it 5 swap and 6 root; or the aarch64 template's GPT: 1 EFI, 2 /boot, 3 swap, 4
// root.
type layout struct {
	gpt                             bool
	efi, boot, extended, swap, root extent
}

// partition lays a disk out as debian-installer's partman does: partitions start
// at a MiB, the extended one two sectors before its first logical, and the last
// MiB of the disk stays free ("partition 2 could only be grown by 2015", as
// growpart says on CloudStack's own image).
func partition(sectors uint64, gpt bool) (layout, error) {
	l := layout{gpt: gpt}
	end := sectors - mib
	var rootStart uint64
	if gpt {
		l.efi = extent{1 * mib, 538 * mib}
		l.boot = extent{l.efi.end(), 400 * mib}
		l.swap = extent{l.boot.end(), 256 * mib}
		rootStart = l.swap.end()
	} else {
		l.boot = extent{1 * mib, 400 * mib}
		l.swap = extent{l.boot.end() + mib, 512 * mib}
		l.extended = extent{l.swap.start - 2, end - (l.swap.start - 2)}
		rootStart = l.swap.end() + mib
	}
	if sectors < rootStart+2*mib {
		return layout{}, fmt.Errorf("cannot partition disk of %d sectors: too small", sectors)
	}
	l.root = extent{rootStart, end - rootStart}
	return l, nil
}

// script is the layout as sfdisk's input.
func (l layout) script() string {
	line := func(e extent, rest string) string {
		return fmt.Sprintf("start=%d, size=%d, %s\n", e.start, e.size, rest)
	}
	if l.gpt {
		return "label: gpt\nunit: sectors\n" +
			line(l.efi, "type=uefi") +
			line(l.boot, "type=linux") +
			line(l.swap, "type=swap") +
			line(l.root, "type=linux")
	}
	return "label: dos\nlabel-id: 0x6e6f6465\nunit: sectors\n" +
		line(l.boot, "type=83, bootable") +
		line(l.extended, "type=5") +
		line(l.swap, "type=82") +
		line(l.root, "type=83")
}

// makeDisk writes the qcow2 file disk with the folders root and boot as content of
// / and /boot, bootable by a BIOS from an MBR, by UEFI firmware from a GPT; work is
// for temporary files.
func makeDisk(ctx context.Context, tools runner, arch architecture, l layout, root, boot, work, disk string) error {
	raw := filepath.Join(work, "disk.raw")
	if err := createSparse(raw, imageSectors*sectorSize); err != nil {
		return err
	}
	if err := tools.run(ctx, l.script(), "sfdisk", "--quiet", raw); err != nil {
		return err
	}

	bootDir, err := bootFolder(ctx, tools, arch, boot, work, l.gpt)
	if err != nil {
		return err
	}
	if err := makeExt(ctx, tools, "ext2", raw, l.boot, bootUUID, bootDir); err != nil {
		return err
	}
	if err := makeExt(ctx, tools, "ext4", raw, l.root, rootUUID, root); err != nil {
		return err
	}
	if err := makeSwap(ctx, tools, raw, l.swap, work); err != nil {
		return err
	}
	if l.gpt {
		err = makeUEFIBootable(ctx, tools, arch, root, raw, l, work)
	} else {
		err = makeBIOSBootable(ctx, tools, raw, l, work)
	}
	if err != nil {
		return err
	}
	return tools.run(ctx, "", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk)
}

func createSparse(name string, size int64) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(size), file.Close())
}

// makeExt makes a file system inside the image: mke2fs can write at an offset and
// fill it from a folder, so that no loop device, mount or copy is needed.
func makeExt(ctx context.Context, tools runner, kind, raw string, at extent, uuid, content string) error {
	// Not lazily: on a sparse file it costs nothing, in the guest a thread that writes.
	options := fmt.Sprintf("offset=%d,lazy_itable_init=0,lazy_journal_init=0", at.offset())
	return tools.run(ctx, "", "mke2fs", "-q", "-F", "-t", kind, "-U", uuid, "-E", options, "-d", content,
		raw, fmt.Sprintf("%dk", at.size*sectorSize/1024))
}

// makeSwap lets mkswap write its header, one page, into a file as large as the
// partition, and copies it to its place.
func makeSwap(ctx context.Context, tools runner, raw string, at extent, work string) error {
	swap := filepath.Join(work, "swap")
	if err := createSparse(swap, int64(at.size)*sectorSize); err != nil {
		return err
	}
	if err := os.Chmod(swap, 0o600); err != nil {
		return err
	}
	if err := tools.run(ctx, "", "mkswap", "--uuid", swapUUID, swap); err != nil {
		return err
	}
	file, err := os.Open(swap)
	if err != nil {
		return err
	}
	defer file.Close()
	header := make([]byte, 4096)
	if _, err := file.ReadAt(header, 0); err != nil {
		return err
	}
	return writeAt(raw, map[int64][]byte{at.offset(): header})
}

// writeAt writes pieces into a file, keyed by their offsets in bytes.
func writeAt(name string, pieces map[int64][]byte) error {
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for offset, piece := range pieces {
		if _, err := file.WriteAt(piece, offset); err != nil {
			file.Close()
			return err
		}
	}
	return file.Close()
}
