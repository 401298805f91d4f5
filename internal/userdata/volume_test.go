// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeagent/internal/iso9660"
)

// runTool runs a program that makes or judges images.
func runTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name)
	}
	if err != nil {
		t.Fatalf("the test needs %s: %v", name, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MTOOLS_SKIP_CHECK=1")
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// writeTree puts files below a new folder. A text that begins with "-> " makes a
// symbolic link.
func writeTree(t testing.TB, files map[string]string) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "tree")
	for name, text := range files {
		path := filepath.Join(folder, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, link := strings.CutPrefix(text, "-> "); err == nil && link {
			err = os.Symlink(target, path)
		} else if err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// isoImage makes an ISO with xorriso and these options of mkisofs.
func isoImage(t testing.TB, label string, files map[string]string, options ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.iso")
	args := append([]string{"-as", "mkisofs", "-quiet", "-V", label, "-o", path}, options...)
	runTool(t, "xorriso", append(args, writeTree(t, files))...)
	return path
}

// jolietImage makes an ISO whose only whole names are Joliet's; xorriso always
// writes those of Rock Ridge as well.
func jolietImage(t testing.TB, label string, files map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.iso")
	runTool(t, "genisoimage", "-quiet", "-J", "-joliet-long", "-V", label, "-o", path, writeTree(t, files))
	return path
}

// fatImage makes a FAT file system of 12, 16 or 32 bits.
func fatImage(t testing.TB, label string, bits int, files map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.fat")
	size := map[int]string{12: "2048", 16: "16384", 32: "40960"}[bits]
	runTool(t, "mkfs.vfat", "-C", "-F", fmt.Sprint(bits), "-s", "1", "-n", label, path, size)
	folder := writeTree(t, files)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		runTool(t, "mcopy", "-i", path, "-s", "-o", filepath.Join(folder, entry.Name()), "::")
	}
	return path
}

func openImage(t testing.TB, path string) volume {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	v, err := openVolume(file)
	if err != nil {
		t.Fatal(err)
	}
	if v == nil {
		t.Fatalf("no volume in %s", path)
	}
	return v
}

func wantFile(t *testing.T, v volume, path, want string) {
	t.Helper()
	got, err := readVolume(v, path, MaxUserdata)
	if err != nil || string(got) != want {
		t.Errorf("%s: got %d bytes %.40q, %v; want %d bytes %.40q", path, len(got), got, err, len(want), want)
	}
}

// Images of the makers there are, read back whole: names of every kind, files of
// several clusters, more entries than one sector holds.
func TestVolumes(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"openstack/latest/user_data":      strings.Repeat("#cloud-config\n", 9000),
		"openstack/latest/meta_data.json": "{}",
		"user-data":                       "u",
		"empty.txt":                       "",
		"a-name-that-is-longer-than-any-of-the-short-ones.txt": "long",
	}
	for i := range 60 {
		files[fmt.Sprintf("cloudstack/metadata/some-parameter-%d.txt", i)] = fmt.Sprint(i)
	}
	for name, image := range map[string]func(testing.TB) string{
		"Joliet and Rock Ridge": func(t testing.TB) string { return isoImage(t, "config-2", files, "-J", "-joliet-long", "-R") },
		"Rock Ridge":            func(t testing.TB) string { return isoImage(t, "config-2", files, "-R") },
		"Joliet":                func(t testing.TB) string { return jolietImage(t, "config-2", files) },
		"FAT12":                 func(t testing.TB) string { return fatImage(t, "CONFIG-2", 12, files) },
		"FAT16":                 func(t testing.TB) string { return fatImage(t, "CONFIG-2", 16, files) },
		"FAT32":                 func(t testing.TB) string { return fatImage(t, "CONFIG-2", 32, files) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := openImage(t, image(t))
			if !strings.EqualFold(v.label(), "config-2") {
				t.Errorf("label %q, want config-2", v.label())
			}
			for path, text := range files {
				wantFile(t, v, path, text)
			}
			wantFile(t, v, "OpenStack/Latest/User_Data", files["openstack/latest/user_data"])
			for _, missing := range []string{"openstack/latest/nothing", "nothing/at/all", "user-data/below"} {
				if _, err := readVolume(v, missing, 1); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: error %v, want that it does not exist", missing, err)
				}
			}
			if _, err := readVolume(v, "openstack/latest/user_data", 1000); err == nil || !strings.Contains(err.Error(), "has 126000 bytes, 1000 at most") {
				t.Errorf("a file over its bound: error %v", err)
			}
			if _, err := readVolume(v, "openstack/latest", 1000); err == nil || !strings.Contains(err.Error(), "is a folder") {
				t.Errorf("a folder read as a file: error %v", err)
			}
		})
	}
}

// The label tools change is the one in the root folder.
func TestFATLabel(t *testing.T) {
	t.Parallel()
	path := fatImage(t, "OTHER", 16, map[string]string{"a": "b"})
	runTool(t, "mlabel", "-i", path, "::cidata")
	if got := openImage(t, path).label(); !strings.EqualFold(got, "cidata") {
		t.Errorf("label %q, want cidata", got)
	}
}

// Clusters of FAT32 have numbers of more than 16 bits.
func TestFAT32HighClusters(t *testing.T) {
	t.Parallel()
	path := fatImage(t, "X", 32, map[string]string{"filler": strings.Repeat("x", 65540*512)})
	runTool(t, "mcopy", "-i", path, filepath.Join(writeTree(t, map[string]string{"user-data": "behind"}), "user-data"), "::")
	wantFile(t, openImage(t, path), "user-data", "behind")
}

// A short name is read as it is, and a long one that belongs to another entry is
// not believed.
func TestFATShortNames(t *testing.T) {
	t.Parallel()
	path := fatImage(t, "X", 12, map[string]string{"user-data": "long", "META.TXT": "short"})
	v := openImage(t, path)
	wantFile(t, v, "meta.txt", "short")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte("USER-D~1"))
	if at < 0 {
		t.Fatal("the image has no short name USER-D~1")
	}
	copy(data[at:], "OTHER~99") // its checksum is another now
	v, err = openVolume(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, v, "other~99", "long")
	if _, err := readVolume(v, "user-data", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the long name of another entry: %v", err)
	}
}

// Links lead nowhere: not out of the medium and not within it. Of Rock Ridge, which
// tells kinds of files, only plain files and folders are there at all.
func TestISOFollowsNoLink(t *testing.T) {
	t.Parallel()
	files := map[string]string{"openstack/latest/user_data": "-> /etc/passwd", "openstack/2018": "-> latest", "other": "-> openstack/latest/meta_data.json",
		"openstack/latest/meta_data.json": "{}"}
	tree := writeTree(t, files)
	if err := unix.Mkfifo(filepath.Join(tree, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, option := range []string{"-R", "-J"} {
		path := filepath.Join(t.TempDir(), "image.iso")
		runTool(t, "xorriso", "-as", "mkisofs", "-quiet", "-V", "config-2", "-o", path, option, tree)
		v := openImage(t, path)
		for _, name := range []string{"openstack/latest/user_data", "openstack/2018/meta_data.json", "other", "pipe"} {
			got, err := readVolume(v, name, MaxUserdata)
			if len(got) > 0 || option == "-R" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s holds %q, %v; want nothing", option, name, got, err)
			}
		}
		wantFile(t, v, "openstack/latest/meta_data.json", "{}")
	}
}

// What else may be on a block device is no volume, and no error.
func TestOtherFileSystems(t *testing.T) {
	t.Parallel()
	disk := func(size int64) string {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ext4 := disk(4 << 20)
	runTool(t, "mkfs.ext4", "-q", ext4)
	swap := disk(1 << 20)
	runTool(t, "mkswap", swap)
	table := disk(4 << 20)
	runTool(t, "parted", "-s", table, "mklabel", "msdos", "mkpart", "primary", "fat32", "1MiB", "3MiB")
	// A boot loader's jump and a signature are in a master boot record as well.
	loader := make([]byte, 1<<20)
	copy(loader, "\xeb\x63\x90")
	copy(loader[510:], "\x55\xaa")
	ntfs := bytes.Clone(loader)
	copy(ntfs, "\xeb\x52\x90NTFS    \x00\x02\x08\x00\x00\x00\x00\x00\x00\xf8")
	for name, data := range map[string][]byte{
		"ext4": contents(t, ext4), "swap": contents(t, swap), "partition table": contents(t, table),
		"boot loader": loader, "NTFS": ntfs, "nothing": {}, "extended partition": make([]byte, 1024), "zeros": make([]byte, 1<<20),
	} {
		if v, err := openVolume(bytes.NewReader(data)); v != nil || err != nil {
			t.Errorf("%s: got %v, %v, want no volume", name, v, err)
		}
	}
}

func contents(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A medium that ends early, or whose folders are damaged, is an error and nothing
// worse.
func TestBrokenVolumes(t *testing.T) {
	t.Parallel()
	files := map[string]string{"openstack/latest/meta_data.json": "{}", "openstack/latest/user_data": strings.Repeat("x", 5000)}
	iso := contents(t, isoImage(t, "config-2", files, "-J", "-R"))
	fat := contents(t, fatImage(t, "CONFIG-2", 16, files))
	for _, image := range [][]byte{iso, fat} {
		for _, cut := range []int{512, 2048, 16 * 2048, 17 * 2048, 18*2048 + 100, 20 * 2048, len(image) / 2} {
			tryVolume(bytes.NewReader(image[:cut]))
		}
	}
	// The root folder: a record that reaches behind the folder's end.
	damaged := bytes.Clone(iso)
	v, err := openISO(bytes.NewReader(damaged))
	if err != nil {
		t.Fatal(err)
	}
	damaged[int(v.root().start)*iso9660.Sector] = 33
	if _, err := readVolume(v, "openstack", 1); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged record: error %v", err)
	}
	// A chain of clusters that leads back to itself ends with the bound.
	f, err := openFAT(bytes.NewReader(fat))
	if err != nil {
		t.Fatal(err)
	}
	folder, err := findPath(f, "openstack")
	if err != nil {
		t.Fatal(err)
	}
	looped := bytes.Clone(fat)
	entry := int(f.table) + 2*int(folder.start)
	looped[entry], looped[entry+1] = byte(folder.start), byte(folder.start>>8)
	f.device = bytes.NewReader(looped)
	if _, err := f.list(folder); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("an endless folder: error %v", err)
	}
}

// tryVolume does with a medium what a look at it does.
func tryVolume(device io.ReaderAt) {
	v, err := openVolume(device)
	if err != nil || v == nil {
		return
	}
	_, _ = readConfigDrive(v)
	_, _ = readNoCloud(func(name string, most int) ([]byte, error) { return readVolume(v, name, most) })
}

// patched is an image with some bytes of it changed at two places.
type patched struct {
	image *bytes.Reader
	at    [2]int64
	patch []byte
}

func (p patched) ReadAt(data []byte, offset int64) (int, error) {
	n, err := p.image.ReadAt(data, offset)
	for _, at := range p.at {
		for i, b := range p.patch {
			if to := at + int64(i) - offset; to >= 0 && to < int64(n) {
				data[to] = b
			}
		}
	}
	return n, err
}

// Whatever is on a medium, reading it ends, and takes no more memory than its
// bounds allow. The images are changed in a few places, as whole ones are too large
// for a fuzzer to find its way in.
func FuzzVolume(f *testing.F) {
	files := map[string]string{"openstack/latest/meta_data.json": `{"uuid":"4a6f"}`, "openstack/latest/user_data": "x", "user-data": "x", "meta-data": ""}
	images := [][]byte{
		contents(f, isoImage(f, "config-2", files, "-J", "-R")),
		contents(f, isoImage(f, "config-2", files, "-R")),
		contents(f, fatImage(f, "CONFIG-2", 12, files)),
		contents(f, fatImage(f, "CONFIG-2", 16, files)),
	}
	for i := range images {
		f.Add(uint8(i), uint32(156), uint32(16*2048+156), []byte{0xff, 0xff, 0xff, 0x7f})
		f.Add(uint8(i), uint32(11), uint32(512), []byte{0x01})
	}
	f.Fuzz(func(_ *testing.T, which uint8, first, second uint32, patch []byte) {
		image := images[int(which)%len(images)]
		tryVolume(patched{bytes.NewReader(image), [2]int64{int64(first), int64(second)}, patch})
	})
}
