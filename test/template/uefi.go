// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// makeUEFIBootable makes the EFI system partition, with GRUB and all modules it
// needs in one file. grub-install would want a mounted file system.
func makeUEFIBootable(ctx context.Context, tools runner, arch architecture, root, raw string, l layout, work string) error {
	loader := filepath.Join(work, "grub.efi")
	if !arch.grubInside {
		root = ""
	}
	// Without efi_gop a machine with a display shows nothing on it.
	if err := makeCore(ctx, tools, root, arch.platform, "(,gpt2)/grub", loader, "part_gpt", "efi_gop"); err != nil {
		return err
	}
	// FAT32 at an offset, written without a loop device or a mount.
	if err := tools.run(ctx, "", "mkfs.fat", "-F", "32", "-i", strings.ReplaceAll(espUUID, "-", ""),
		fmt.Sprintf("--offset=%d", l.efi.start), "-h", fmt.Sprint(l.efi.start), raw, fmt.Sprint(l.efi.size*sectorSize/1024)); err != nil {
		return err
	}
	partition := fmt.Sprintf("%s@@%d", raw, l.efi.offset())
	if err := tools.run(ctx, "", "mmd", "-i", partition, "::/EFI", "::/EFI/BOOT"); err != nil {
		return err
	}
	return tools.run(ctx, "", "mcopy", "-i", partition, loader, "::/EFI/BOOT/"+arch.loader)
}
