// SPDX-License-Identifier: Apache-2.0

package iso9660

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// image makes an ISO of the files with a program and its options.
func image(t testing.TB, files map[string]string, program string, options ...string) []byte {
	t.Helper()
	folder := t.TempDir()
	for name, text := range files {
		path := filepath.Join(folder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "image.iso")
	if out, err := exec.Command(program, append(options, "-quiet", "-V", "CDROM", "-o", path, folder)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func open(t testing.TB, data []byte) *Volume {
	t.Helper()
	v, err := Open(bytes.NewReader(data))
	if err != nil || v == nil {
		t.Fatalf("Open = %v, %v", v, err)
	}
	return v
}

// What CloudStack's builder makes, by either program. Joliet cannot spell a colon
// and cuts long names: Rock Ridge's are the ones, also where SUSP continues them.
func TestFS(t *testing.T) {
	t.Parallel()
	long := "docker/" + strings.Repeat("long", 60) + ":v1.tar"
	files := map[string]string{"docker/pause:3.10.tar": strings.Repeat("pause", 1000), long: "l", "network.yaml": "", "a/b/c/d": "deep"}
	for name, call := range map[string][]string{
		"xorriso":     {"xorriso", "-as", "mkisofs", "-J", "-R"},
		"genisoimage": {"genisoimage", "-J", "-R", "-l"},
		"Rock Ridge":  {"genisoimage", "-R"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := image(t, files, call[0], call[1:]...)
			v := open(t, data)
			var names []string
			for file, text := range files {
				names = append(names, file)
				if got, err := fs.ReadFile(v, file); err != nil || string(got) != text {
					t.Errorf("%s holds %q (%v), want %q", file, got, err, text)
				}
			}
			if err := fstest.TestFS(v, names...); err != nil {
				t.Error(err)
			}
			if v.Label != "CDROM" || v.Bytes <= 0 || v.Bytes > int64(len(data)) {
				t.Errorf("label %q, %d bytes; the image has %d", v.Label, v.Bytes, len(data))
			}
		})
	}
}

func TestJolietAlone(t *testing.T) {
	t.Parallel()
	v := open(t, image(t, map[string]string{"10-kubeadm.conf": "x"}, "genisoimage", "-J"))
	if got, err := fs.ReadFile(v, "10-kubeadm.conf"); err != nil || string(got) != "x" {
		t.Errorf("10-kubeadm.conf holds %q (%v)", got, err)
	}
}

// A file that is cut off has no silent end.
func TestCutOff(t *testing.T) {
	t.Parallel()
	data := image(t, map[string]string{"big": strings.Repeat("x", 1<<20)}, "xorriso", "-as", "mkisofs", "-R", "-no-pad")
	v := open(t, data[:len(data)-600<<10])
	if _, err := fs.ReadFile(v, "big"); !errors.Is(err, ErrCutOff) {
		t.Errorf("a file cut off: %v", err)
	}
	for _, size := range []int{0, 2048, 16 * 2048} {
		if v, err := Open(bytes.NewReader(data[:size])); v != nil || err != nil {
			t.Errorf("%d bytes: %v, %v; want nothing", size, v, err)
		}
	}
}

// Whatever is changed in an image, looking into it ends and does not panic.
func FuzzFS(f *testing.F) {
	data := image(f, map[string]string{"docker/" + strings.Repeat("n", 200): "x", "k8s/kubeadm": "y"}, "xorriso", "-as", "mkisofs", "-J", "-R")
	f.Add(uint32(16*Sector+156), []byte{0xff})
	f.Add(uint32(16*Sector+158), []byte{16})
	f.Fuzz(func(_ *testing.T, at uint32, patch []byte) {
		changed := bytes.Clone(data)
		copy(changed[int(at)%len(changed):], patch)
		v, err := Open(bytes.NewReader(changed))
		if v == nil || err != nil {
			return
		}
		seen := 0
		_ = fs.WalkDir(v, ".", func(name string, entry fs.DirEntry, err error) error {
			if seen++; seen > 100 {
				return fs.SkipAll
			}
			if err == nil && !entry.IsDir() {
				if file, err := v.Open(name); err == nil {
					_, _ = io.CopyN(io.Discard, file, 1<<20)
				}
			}
			return nil
		})
	})
}
