// SPDX-License-Identifier: Apache-2.0

package template

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// Old images go, the one just asked for stays although it was the oldest, and what
// is not a finished image is left alone; locks do not count.
func TestPrune(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for age, name := range []string{"debian-1", "template-c", "template-b", "template-d.partial", "template-a", "template-old", "template-asked"} {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(filepath.Join(dir, "disk.qcow2"), ""); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(dir+".lock", ""); err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(-time.Duration(age+1) * time.Hour)
		if err := os.Chtimes(dir, used, used); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(filepath.Join(root, "template-asked"), 4); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		if entry.IsDir() {
			got = append(got, entry.Name())
		}
	}
	want := []string{"debian-1", "template-a", "template-asked", "template-b", "template-c", "template-d.partial"}
	if !slices.Equal(got, want) {
		t.Errorf("after prune: got %q, want %q", got, want)
	}
}
