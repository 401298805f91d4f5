// SPDX-License-Identifier: Apache-2.0

package template

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// The exported disk stands alone and has the same content; a failed export leaves
// nothing that looks like an image.
func TestExport(t *testing.T) {
	t.Parallel()
	qemuImg := need(t, "qemu-img")
	dir := t.TempDir()
	raw, disk, file := filepath.Join(dir, "raw"), filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "dist", "template.qcow2")
	if err := os.WriteFile(raw, bytes.Repeat([]byte("nodeagent"), 1<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	output(t, qemuImg, "convert", "-f", "raw", "-O", "qcow2", raw, disk)
	var log bytes.Buffer
	if err := Export(t.Context(), &log, Image{Disk: disk}, file); err != nil {
		t.Fatal(err)
	}
	output(t, qemuImg, "compare", "-f", "raw", "-F", "qcow2", raw, file)
	before, after := size(t, disk), size(t, file)
	if after >= before {
		t.Errorf("exported %d bytes of %d: not compressed", after, before)
	}

	if err := Export(t.Context(), &log, Image{Disk: raw}, file+"2"); err == nil {
		t.Error("a disk that is no qcow2: got no error, want one")
	}
	for _, name := range []string{file + ".partial", file + "2", file + "2.partial"} {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there (%v)", name, err)
		}
	}
}

func size(t *testing.T, name string) int64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
