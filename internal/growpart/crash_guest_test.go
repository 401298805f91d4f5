// SPDX-License-Identifier: Apache-2.0

//go:build guest

package growpart

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodeagent/internal/host"
)

// What a power cut leaves after each write of a growth, and with only half of its
// sectors written, is a disk on which this kernel, without any option on its
// command line, finds every partition: a machine that cannot find its root cannot
// repair it. The next growth then ends at the full size (G11).
func TestGuestCrash(t *testing.T) {
	const start, end = 96 * mib, 256 * mib
	for name, layout := range map[string]struct {
		script string
		root   int
	}{
		"MBR": {dosHead + "disk1 : start=2048, size=8192, type=83\ndisk2 : start=12286, size=182274, type=5\n" +
			"disk5 : start=12288, size=8192, type=82\ndisk6 : start=22528, size=172032, type=83\n", 6},
		"GPT": {"label: gpt\nsize=4MiB, type=uefi\nsize=4MiB, type=linux\nsize=4MiB, type=swap\ntype=linux\n", 4},
	} {
		t.Run(name, func(t *testing.T) {
			pristine := openImage(t, start, layout.script)
			makeRoot(t, pristine, layout.root)
			pristine.truncate(t, end)
			todo := pristine.plan(t, layout.root, 0)
			if len(todo.patches) < 3 {
				t.Fatalf("only %d patches", len(todo.patches))
			}
			old := partitionsOnLoop(t, pristine.Name())
			states := 0
			try := func(what string, patches []patch) {
				t.Helper()
				states++
				disk := copyImage(t, pristine)
				if err := apply(disk, patches); err != nil {
					t.Fatal(err)
				}
				growAfterCrash(t, what, disk, layout.root, old)
			}
			for k := range len(todo.patches) + 1 {
				done := todo.patches[:k:k]
				try(fmt.Sprintf("after write %d of %d", k, len(todo.patches)), done)
				if k == len(todo.patches) {
					break
				}
				for half, torn := range halves(todo.patches[k]) {
					try(fmt.Sprintf("after half %d of write %d", half+1, k+1), append(done, torn))
				}
			}
			t.Logf("%s: %d states", name, states)
		})
	}
}

// Linux without the option gpt does not look at the backup table, which is why a
// growth must never leave the primary unsound. This is also the proof that
// TestGuestCrash would see it.
func TestGuestCrashControl(t *testing.T) {
	disk := openImage(t, 96*mib, "label: gpt\nsize=4MiB, type=swap\ntype=linux\n")
	if found := partitionsOnLoop(t, disk.Name()); len(found) != 2 {
		t.Fatalf("the kernel has %v, want 2 partitions", found)
	}
	put(t, disk, 2, make([]byte, 512)) // entries written, header not yet
	if found := partitionsOnLoop(t, disk.Name()); len(found) != 0 {
		t.Errorf("the kernel has %v although the primary is unsound", found)
	}
}

// halves returns a patch of several sectors as it is when only its first or its
// last sectors have been written.
func halves(p patch) []patch {
	const sector = 512
	cut := (p.Offset+int64(len(p.New))/2+sector-1)/sector*sector - p.Offset
	if cut <= 0 || cut >= int64(len(p.New)) {
		return nil
	}
	first, last := p, p
	first.Old, first.New = p.Old[:cut], p.New[:cut]
	last.Old, last.New, last.Offset = p.Old[cut:], p.New[cut:], p.Offset+cut
	return []patch{first, last}
}

// attach makes a disk of an image and returns its device.
func attach(t *testing.T, image string) (device string, detach func()) {
	t.Helper()
	device = strings.TrimSpace(tool(t, "", "losetup", "--partscan", "--show", "--find", image))
	tool(t, "", "udevadm", "settle")
	return device, func() { tool(t, "", "losetup", "--detach", device) }
}

// makeRoot makes an ext4 in a partition.
func makeRoot(t *testing.T, disk *image, number int) {
	t.Helper()
	device, detach := attach(t, disk.Name())
	defer detach()
	tool(t, "", "mkfs.ext4", "-q", "-F", fmt.Sprintf("%sp%d", device, number))
}

func copyImage(t *testing.T, from *image) *image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	tool(t, "", "cp", "--sparse=always", from.Name(), path)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return &image{File: file, sector: from.sector}
}

// partitionsOnLoop is what this kernel makes of the table: start and size by
// number, in units of 512 bytes.
func partitionsOnLoop(t *testing.T, path string) map[string]string {
	t.Helper()
	device, detach := attach(t, path)
	defer detach()
	name := filepath.Base(device)
	found, err := filepath.Glob(filepath.Join("/sys/class/block", name, name+"p*"))
	if err != nil {
		t.Fatal(err)
	}
	partitions := map[string]string{}
	for _, folder := range found {
		read := func(file string) string {
			data, err := os.ReadFile(filepath.Join(folder, file))
			if err != nil {
				t.Fatal(err)
			}
			return strings.TrimSpace(string(data))
		}
		partitions[read("partition")] = read("start") + "+" + read("size")
	}
	return partitions
}

// growAfterCrash boots on a disk, as far as it matters here: the kernel reads the
// table, the root is mounted and grown.
func growAfterCrash(t *testing.T, what string, disk *image, root int, old map[string]string) {
	t.Helper()
	number := fmt.Sprint(root)
	now := partitionsOnLoop(t, disk.Name())
	for n, want := range old {
		if got := now[n]; got != want && n != number {
			t.Errorf("%s the kernel has partition %s at %q, want %s", what, n, got, want)
		}
	}
	if start, _, _ := strings.Cut(old[number], "+"); !strings.HasPrefix(now[number], start+"+") {
		t.Fatalf("%s the kernel has the root at %q, want %s: the machine does not boot", what, now[number], old[number])
	}
	device, detach := attach(t, disk.Name())
	defer detach()
	mount := t.TempDir()
	partition := device + "p" + number
	tool(t, "", "mount", partition, mount)
	result, err := Grow(context.Background(), host.New(), mount, Options{})
	again, errAgain := Grow(context.Background(), host.New(), mount, Options{})
	tool(t, "", "umount", mount)
	if err != nil || result.FilesystemBytes.After < 200*mib {
		t.Errorf("%s growing ends with %+v, %v", what, result, err)
	}
	if errAgain != nil || again.Changed {
		t.Errorf("%s growing a second time ends with %+v, %v, want nothing to do", what, again, errAgain)
	}
	tool(t, "", "e2fsck", "-f", "-n", partition)
	disk.judge(t)
}
