// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// image is a disk in a file. Tables in it are made by sfdisk, fdisk, sgdisk or
// parted, never by this package.
type image struct {
	*os.File
	sector int

	resize func(size int64) // what the kernel does about a resized partition
	locked bool
}

// openImage makes an image file of a size, with a table if script is not "".
// The script's partitions are named by "disk1", "disk2".
func openImage(t testing.TB, size int64, script string) *image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if script != "" {
		tool(t, script, "sfdisk", "--quiet", "--no-tell-kernel", path)
	}
	return &image{File: file, sector: 512}
}

// copy returns an image with the same content in a file of its own.
func (d *image) copy(t testing.TB) *image {
	t.Helper()
	twin := openImage(t, d.Size(), "")
	twin.sector = d.sector
	for offset, block := range d.blocks(t) {
		if _, err := twin.File.WriteAt(block, offset); err != nil {
			t.Fatal(err)
		}
	}
	return twin
}

func (d *image) SectorSize() int { return d.sector }

func (d *image) Size() int64 {
	info, err := d.Stat()
	if err != nil {
		panic(err)
	}
	return info.Size()
}

func (d *image) WriteAt(p []byte, offset int64) (int, error) {
	if len(p)%d.sector != 0 || offset%int64(d.sector) != 0 {
		return 0, fmt.Errorf("a write of %d bytes at %d is not one of whole sectors", len(p), offset)
	}
	return d.File.WriteAt(p, offset)
}

// Sync does nothing: what was written is read back from memory, and hundreds of
// images would wait for the machine's disk.
func (d *image) Sync() error { return nil }

func (d *image) Lock(context.Context) error { d.locked = true; return nil }

func (d *image) ResizePartition(_ int, _, size int64) error {
	if d.resize != nil {
		d.resize(size)
	}
	return nil
}

func (d *image) Close() error { d.locked = false; return nil }

func (d *image) truncate(t testing.TB, size int64) {
	t.Helper()
	if err := d.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// read returns the table.
func (d *image) read(t testing.TB) table {
	t.Helper()
	table, err := readTable(d, d.sector, d.Size()/int64(d.sector))
	if err != nil {
		t.Fatalf("cannot read the table: %v", err)
	}
	return table
}

// plan returns what there is to do for a partition.
func (d *image) plan(t testing.TB, number int, requested int64) target {
	t.Helper()
	table := d.read(t)
	for _, e := range table.extents() {
		if e.number == number {
			return planPartition(table, e, requested)
		}
	}
	t.Fatalf("no partition %d in %+v", number, table.extents())
	return target{}
}

// apply writes a plan.
func (d *image) apply(t testing.TB, todo target) {
	t.Helper()
	if err := apply(d, todo.patches); err != nil {
		t.Fatal(err)
	}
}

// blocks returns the contents of all parts that are no holes, by offset.
func (d *image) blocks(t testing.TB) map[int64][]byte {
	t.Helper()
	found := map[int64][]byte{}
	const chunk = 4096
	for _, offset := range d.dataOffsets(t) {
		for at := offset[0]; at < offset[1]; at += chunk {
			block := make([]byte, min(chunk, offset[1]-at))
			if _, err := d.ReadAt(block, at); err != nil {
				t.Fatal(err)
			}
			found[at] = block
		}
	}
	return found
}

// dataOffsets returns the parts of the file that are no holes.
func (d *image) dataOffsets(t testing.TB) [][2]int64 {
	t.Helper()
	const seekData, seekHole = 3, 4
	var parts [][2]int64
	for at := int64(0); ; {
		start, err := d.Seek(at, seekData)
		if err != nil {
			return parts // ENXIO: no more data
		}
		end, err := d.Seek(start, seekHole)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, [2]int64{start, end})
		at = end
	}
}

// changed returns the offsets of all bytes that differ from an earlier state.
func (d *image) changed(t testing.TB, before map[int64][]byte) []int64 {
	t.Helper()
	var offsets []int64
	now := d.blocks(t)
	for at := range before {
		if _, found := now[at]; !found {
			t.Fatalf("block at %d is gone", at)
		}
	}
	for at, block := range now {
		old := before[at]
		if old == nil {
			old = make([]byte, len(block))
		}
		for i := range block {
			if block[i] != old[i] {
				offsets = append(offsets, at+int64(i))
			}
		}
	}
	return offsets
}

// tool runs a program of the machine; a missing one fails the test.
func tool(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	for _, folder := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(folder, name))
		}
	}
	if err != nil {
		t.Fatalf("the test needs %s: %v", name, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// sfdiskTable is what sfdisk makes of a table.
type sfdiskTable struct {
	Label      string `json:"label"`
	ID         string `json:"id"`
	Partitions []struct {
		Node     string `json:"node"`
		Start    int64  `json:"start"`
		Size     int64  `json:"size"`
		Type     string `json:"type"`
		Bootable bool   `json:"bootable"`
		Name     string `json:"name"`
		UUID     string `json:"uuid"`
		Attrs    string `json:"attrs"`
	} `json:"partitions"`
}

// judge has sfdisk read and verify the table, and returns it.
func (d *image) judge(t testing.TB) sfdiskTable {
	t.Helper()
	verdict := tool(t, "", "sfdisk", "--verify", d.Name())
	if !strings.Contains(verdict, "No errors detected") {
		t.Errorf("sfdisk --verify says:\n%s", verdict)
	}
	return d.sfdisk(t)
}

// sfdisk returns the table as sfdisk reads it.
func (d *image) sfdisk(t testing.TB) sfdiskTable {
	t.Helper()
	var parsed struct {
		Table sfdiskTable `json:"partitiontable"`
	}
	if err := json.Unmarshal([]byte(tool(t, "", "sfdisk", "--json", d.Name())), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed.Table
}

// size returns what sfdisk says about a partition, in sectors.
func (s sfdiskTable) size(t testing.TB, number int) int64 {
	t.Helper()
	for _, p := range s.Partitions {
		if strings.HasSuffix(p.Node, fmt.Sprintf("disk%d", number)) {
			return p.Size
		}
	}
	t.Fatalf("sfdisk sees no partition %d: %+v", number, s)
	return 0
}
