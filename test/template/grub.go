// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

const (
	grubFolder = "/usr/lib/grub" // of Debian's grub-pc-bin and grub-efi-*-bin

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

// kernelCommandLine is what the template's GRUB passes to the kernel.
func kernelCommandLine(arch architecture) string {
	return "root=UUID=" + rootUUID + " ro net.ifnames=0 biosdevname=0 " + arch.kernelArgs
}

// grubConfig boots the one kernel at once.
func grubConfig(kernel kernelFiles, arch architecture) string {
	return fmt.Sprintf(`set default=0
set timeout=0
menuentry 'Debian GNU/Linux' {
	search --no-floppy --fs-uuid --set=root %s
	linux /%s %s
	initrd /%s
}
`, bootUUID, kernel.image, kernelCommandLine(arch), kernel.initrd)
}

// bootFolder returns a copy of boot below work with GRUB's configuration in it and,
// on a GPT, the place to mount the EFI system partition at.
func bootFolder(ctx context.Context, tools runner, arch architecture, boot, work string, gpt bool) (string, error) {
	folder := filepath.Join(work, "boot")
	if err := tools.run(ctx, "", "cp", "-a", "--reflink=auto", boot, folder); err != nil {
		return "", err
	}
	kernel, err := findKernel(boot)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(folder, "grub"), 0o755); err != nil {
		return "", err
	}
	if gpt {
		if err := os.Mkdir(filepath.Join(folder, "efi"), 0o700); err != nil {
			return "", err
		}
	}
	return folder, writeFile(filepath.Join(folder, "grub", "grub.cfg"), grubConfig(kernel, arch))
}

// grubModules read grub.cfg and run what is in it. GRUB is not in /boot: a module that
// is missing is missed.
func grubModules() []string { return []string{"ext2", "normal", "search", "linux"} }

// makeCore makes GRUB's program for a platform, which finds grub.cfg by its prefix,
// with the modules for grub.cfg and more. It does so with this machine's GRUB, or with
// that in root.
func makeCore(ctx context.Context, tools runner, root, platform, prefix, file string, more ...string) error {
	var chroot []string
	target := file
	if root != "" {
		chroot, target = []string{"chroot", root}, "/grub.core"
	}
	argv := []string{"grub-mkimage", "--format=" + platform, "--directory=" + filepath.Join(grubFolder, platform),
		"--prefix=" + prefix, "--output=" + target}
	err := tools.run(ctx, "", slices.Concat(chroot, argv, more, grubModules())...)
	if err != nil || root == "" {
		return err
	}
	made := filepath.Join(root, target)
	return errors.Join(copyFile(made, file), os.Remove(made))
}

// makeBIOSBootable puts GRUB's boot sector and a core image that holds all modules
// it needs before the first partition. grub-bios-setup would want a block device.
func makeBIOSBootable(ctx context.Context, tools runner, raw string, l layout, work string) error {
	coreFile := filepath.Join(work, "core.img")
	if err := makeCore(ctx, tools, "", "i386-pc", "(,msdos1)/grub", coreFile, "biosdisk", "part_msdos"); err != nil {
		return err
	}
	boot, err := os.ReadFile(filepath.Join(grubFolder, "i386-pc", "boot.img"))
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
	core, err = placedCore(core, coreSector, l.boot.start)
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
