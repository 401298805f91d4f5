// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
)

const (
	grubFolder = "/usr/lib/grub/i386-pc" // of Debian's grub-pc-bin

	// Places in GRUB's first sectors, from its include/grub/i386/pc/boot.h.
	bootCodeSize      = 0x1b8 // what follows belongs to the partition table
	bootKernelSector  = 0x5c  // u64: where the core image starts
	bootDriveCheck    = 0x66  // a jump over the fix for BIOSes that pass no drive
	blockListOffset   = 512 - 12
	blockListSegment  = 0x820 // where the core image after its first sector is loaded
	coreSector        = 1     // right after the MBR, as grub-install does
	twoNoOps          = 0x9090
	maxBlockListCount = 0xffff
)

// kernelArgs is the kernel's command line, as the template's GRUB passes it.
func kernelArgs() string {
	return "root=UUID=" + rootUUID + " ro net.ifnames=0 biosdevname=0 console=tty0 console=ttyS0"
}

// grubConfig boots the one kernel at once.
func grubConfig(kernel kernelFiles) string {
	return fmt.Sprintf(`set default=0
set timeout=0
menuentry 'Debian GNU/Linux' {
	search --no-floppy --fs-uuid --set=root %s
	linux /%s %s
	initrd /%s
}
`, bootUUID, kernel.image, kernelArgs(), kernel.initrd)
}

// bootFolder returns a copy of boot below work with GRUB's configuration in it.
func bootFolder(ctx context.Context, tools runner, boot, work string) (string, error) {
	folder := filepath.Join(work, "boot")
	if err := tools.run(ctx, "", "cp", "-a", "--reflink=auto", boot, folder); err != nil {
		return "", err
	}
	kernel, err := findKernel(boot)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(folder, "grub"), 0o755); err != nil {
		return "", err
	}
	return folder, writeFile(filepath.Join(folder, "grub", "grub.cfg"), grubConfig(kernel))
}

// makeBootable puts GRUB's boot sector and a core image that holds all modules it
// needs before the first partition. grub-bios-setup would want a block device.
func makeBootable(ctx context.Context, tools runner, raw string, firstPartition uint64, work string) error {
	coreFile := filepath.Join(work, "core.img")
	if err := tools.run(ctx, "", "grub-mkimage", "--format=i386-pc", "--directory="+grubFolder, "--output="+coreFile,
		"--prefix=(,msdos1)/grub", "biosdisk", "part_msdos", "ext2", "normal", "linux", "search_fs_uuid"); err != nil {
		return err
	}
	boot, err := os.ReadFile(filepath.Join(grubFolder, "boot.img"))
	if err != nil {
		return err
	}
	core, err := os.ReadFile(coreFile)
	if err != nil {
		return err
	}
	code, err := bootCode(boot, coreSector)
	if err != nil {
		return err
	}
	core, err = placedCore(core, coreSector, firstPartition)
	if err != nil {
		return err
	}
	return writeAt(raw, map[int64][]byte{0: code, coreSector * sectorSize: core})
}

// bootCode is the part of GRUB's boot.img that goes before the partition table,
// told at which sector the core image starts.
func bootCode(boot []byte, core uint64) ([]byte, error) {
	if len(boot) != sectorSize {
		return nil, fmt.Errorf("cannot use GRUB's boot sector: it has %d bytes, want %d", len(boot), sectorSize)
	}
	code := append([]byte(nil), boot[:bootCodeSize]...)
	binary.LittleEndian.PutUint64(code[bootKernelSector:], core)
	binary.LittleEndian.PutUint16(code[bootDriveCheck:], twoNoOps)
	return code, nil
}

// placedCore is a core image padded to whole sectors, whose block list says that
// the rest of it follows its first sector, which is at start. It has to end before
// the sector limit.
func placedCore(core []byte, start, limit uint64) ([]byte, error) {
	sectors := (uint64(len(core)) + sectorSize - 1) / sectorSize
	if sectors < 2 || sectors > maxBlockListCount || start+sectors > limit {
		return nil, fmt.Errorf("cannot place GRUB's core image of %d sectors at sector %d: want 2 or more, below sector %d",
			sectors, start, limit)
	}
	placed := make([]byte, sectors*sectorSize)
	copy(placed, core)
	binary.LittleEndian.PutUint64(placed[blockListOffset:], start+1)
	binary.LittleEndian.PutUint16(placed[blockListOffset+8:], uint16(sectors-1))
	binary.LittleEndian.PutUint16(placed[blockListOffset+10:], blockListSegment)
	return placed, nil
}
