// SPDX-License-Identifier: Apache-2.0

package template

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// missing skips a test that lacks something of the machine, or fails it in CI.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed and CI is set", what)
	}
	t.Skipf("%s is not installed", what)
}

// need returns the path of a tool.
func need(t *testing.T, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		for _, dir := range []string{"/usr/sbin", "/sbin"} {
			if _, err := os.Stat(filepath.Join(dir, tool)); err == nil {
				return filepath.Join(dir, tool)
			}
		}
		missing(t, tool)
	}
	return path
}

func output(t *testing.T, argv ...string) string {
	t.Helper()
	text, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, text)
	}
	return string(text)
}

// The table that sfdisk makes of the script has CloudStack's numbers, starts and
// slack (contract section 3; anchors section 0: growpart fails on it).
func TestPartitionTable(t *testing.T) {
	t.Parallel()
	sfdisk := need(t, "sfdisk")

	l, err := partition(imageSectors, false)
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := createSparse(disk, imageSectors*sectorSize); err != nil {
		t.Fatal(err)
	}
	tools := runner{log: io.Discard}
	if err := tools.run(t.Context(), l.script(), sfdisk, "--quiet", disk); err != nil {
		t.Fatal(err)
	}
	if got := output(t, sfdisk, "--verify", disk); !strings.Contains(got, "No errors detected") {
		t.Errorf("sfdisk --verify: got %q, want no errors", got)
	}

	type entry struct {
		Node        string
		Start, Size uint64
		Type        string
		Bootable    bool
	}
	var dump struct {
		PartitionTable struct {
			Label      string
			Partitions []entry
		}
	}
	if err := json.Unmarshal([]byte(output(t, sfdisk, "--json", disk)), &dump); err != nil {
		t.Fatal(err)
	}
	if got := dump.PartitionTable.Label; got != "dos" {
		t.Errorf("label: got %q, want dos", got)
	}
	want := []entry{
		{disk + "1", 2048, 819200, "83", true},
		{disk + "2", 823294, 6514690, "5", false},
		{disk + "5", 823296, 1048576, "82", false},
		{disk + "6", 1873920, 5464064, "83", false},
	}
	got := dump.PartitionTable.Partitions
	if len(got) != len(want) {
		t.Fatalf("got %d partitions, want %d: %v", len(got), len(want), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %+v, want %+v", got[i], want[i])
		}
	}
}

func TestPartitionSmallDisk(t *testing.T) {
	t.Parallel()
	for _, sectors := range []uint64{0, 400 * mib, 915*mib + 2*mib - 1} {
		for _, gpt := range []bool{false, true} {
			if l, err := partition(sectors, gpt); err == nil {
				t.Errorf("%d sectors, GPT %v: got %+v, want an error", sectors, gpt, l)
			}
		}
	}
	if _, err := partition(915*mib+2*mib, false); err != nil {
		t.Error(err)
	}
}

// File systems and swap land in their partitions and nowhere else.
func TestFileSystemsInPartitions(t *testing.T) {
	t.Parallel()
	blkid := need(t, "blkid")
	need(t, "mke2fs")
	need(t, "mkswap")

	l, err := partition(imageSectors, false)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	disk, content := filepath.Join(work, "disk"), filepath.Join(work, "content")
	if err := createSparse(disk, imageSectors*sectorSize); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(content, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(content, "hello"), "world"); err != nil {
		t.Fatal(err)
	}
	tools := runner{log: io.Discard}
	if err := makeExt(t.Context(), tools, "ext2", disk, l.boot, bootUUID, content); err != nil {
		t.Fatal(err)
	}
	if err := makeSwap(t.Context(), tools, disk, l.swap, work); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		at         extent
		kind, uuid string
	}{
		{l.boot, "ext2", bootUUID},
		{l.swap, "swap", swapUUID},
	} {
		got := output(t, blkid, "--probe", "--output", "export", "--offset", itoa(want.at.offset()),
			"--size", itoa(int64(want.at.size)*sectorSize), disk)
		for _, field := range []string{"TYPE=" + want.kind, "UUID=" + want.uuid} {
			if !strings.Contains(got, field) {
				t.Errorf("blkid at %d: got %q, want %s", want.at.offset(), got, field)
			}
		}
	}

	e2fsck, debugfs := need(t, "e2fsck"), need(t, "debugfs")
	boot := disk + "?offset=" + itoa(l.boot.offset())
	output(t, e2fsck, "-f", "-n", boot)
	if got := output(t, debugfs, "-R", "cat hello", boot); !strings.Contains(got, "world") {
		t.Errorf("hello in /boot: got %q, want world", got)
	}
}
