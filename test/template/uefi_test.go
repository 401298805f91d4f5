// SPDX-License-Identifier: Apache-2.0

package template

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The loader is where firmware without boot entries looks, on a sound FAT32 with the
// id that fstab names, and outside that partition nothing is written: the table, both
// its copies, stays sfdisk's.
func TestUEFIBootable(t *testing.T) {
	t.Parallel()
	sfdisk, blkid := need(t, "sfdisk"), need(t, "blkid")
	mtype := need(t, "mtype")
	need(t, "mkfs.fat")
	need(t, "grub-mkimage")
	if _, err := os.Stat(filepath.Join(grubFolder, "x86_64-efi")); err != nil {
		missing(t, "grub-efi-amd64-bin")
	}

	l, err := partition(imageSectors, true)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	disk := filepath.Join(work, "disk")
	if err := createSparse(disk, imageSectors*sectorSize); err != nil {
		t.Fatal(err)
	}
	tools := runner{log: io.Discard}
	if err := tools.run(t.Context(), l.script(), sfdisk, "--quiet", disk); err != nil {
		t.Fatal(err)
	}
	before := rest(t, disk, l.efi)
	if err := makeUEFIBootable(t.Context(), tools, findTestArchitecture(t, "amd64"), "/nonexistent", disk, l, work); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(rest(t, disk, l.efi), before) {
		t.Error("bytes outside the EFI system partition changed")
	}

	probe := output(t, blkid, "--probe", "--output", "export", "--offset", itoa(l.efi.offset()),
		"--size", itoa(int64(l.efi.size)*sectorSize), disk)
	for _, want := range []string{"TYPE=vfat", "VERSION=FAT32", "UUID=" + espUUID} {
		if !strings.Contains(probe, want+"\n") {
			t.Errorf("blkid: got %q, want %s", probe, want)
		}
	}
	written, err := os.ReadFile(filepath.Join(work, "grub.efi"))
	if err != nil {
		t.Fatal(err)
	}
	loader := output(t, mtype, "-i", disk+"@@"+itoa(l.efi.offset()), "::/EFI/BOOT/BOOTX64.EFI")
	if loader != string(written) || !strings.HasPrefix(loader, "MZ") {
		t.Errorf("the loader on the disk has %d bytes, grub-mkimage's %d", len(loader), len(written))
	}

	// The types by which firmware finds the partition and tools the others.
	var dump struct {
		PartitionTable struct {
			Label      string
			Partitions []struct{ Type string }
		}
	}
	if err := json.Unmarshal([]byte(output(t, sfdisk, "--json", disk)), &dump); err != nil {
		t.Fatal(err)
	}
	table := dump.PartitionTable
	if table.Label != "gpt" || len(table.Partitions) != 4 || table.Partitions[0].Type != "C12A7328-F81F-11D2-BA4B-00A0C93EC93B" {
		t.Errorf("got %+v, want four partitions in a GPT, the first for EFI", table)
	}
}

// rest is the disk's first and last MiB, and the MiB after the partition.
func rest(t *testing.T, disk string, partition extent) []byte {
	t.Helper()
	file, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var all []byte
	for _, sector := range []uint64{0, partition.end(), imageSectors - mib} {
		piece := make([]byte, mib*sectorSize)
		if _, err := file.ReadAt(piece, int64(sector)*sectorSize); err != nil {
			t.Fatal(err)
		}
		all = append(all, piece...)
	}
	return all
}

// Only a disk with an EFI system partition mounts one.
func TestFstab(t *testing.T) {
	t.Parallel()
	for gpt, lines := range map[bool]int{false: 3, true: 4} {
		text := fstab(gpt)
		if got := strings.Count(text, "\n"); got != lines {
			t.Errorf("GPT %v: %d lines, want %d:\n%s", gpt, got, lines, text)
		}
		if got := strings.Contains(text, "UUID="+espUUID+" /boot/efi vfat "); got != gpt {
			t.Errorf("GPT %v: EFI system partition mounted: %v", gpt, got)
		}
	}
}
