// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// sumLine is a line of a manifest.
func sumLine(name, text string) string {
	return fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte(text)), name)
}

// withSums adds the manifest of the files.
func withSums(files map[string]string) map[string]string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text.WriteString(sumLine(name, files[name]))
	}
	files[SumsFile] = text.String()
	return files
}

func TestParseSums(t *testing.T) {
	t.Parallel()
	text := sumLine("k8s/kubeadm", "a") + "\\" + sumLine(`a\\b\nc\rd`, "b") + strings.Replace(sumLine("./x", "c"), "  ", " *", 1) +
		strings.ToUpper(sumLine("Y", "d")[:64]) + "  last without a newline"
	got, err := parseSums([]byte(text))
	want := map[string]sum{"k8s/kubeadm": sha256.Sum256([]byte("a")), "a\\b\nc\rd": sha256.Sum256([]byte("b")),
		"x": sha256.Sum256([]byte("c")), "last without a newline": sha256.Sum256([]byte("d"))}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("parseSums = %v, %v; want %v", got, err, want)
	}
	again, err := parseSums(formatSums(got))
	if err != nil || !maps.Equal(again, want) {
		t.Errorf("written and read again: %v, %v", again, err)
	}
}

func TestParseSumsRefuses(t *testing.T) {
	t.Parallel()
	for title, test := range map[string]struct{ text, want string }{
		"nothing":        {"", "it is empty"},
		"words":          {"hello\n", "line 1: want the sum"},
		"an empty line":  {sumLine("a", "") + "\n", "line 2: want the sum"},
		"no hex":         {strings.Repeat("x", 64) + "  a\n", "is no sha256 sum"},
		"sha512":         {strings.Repeat("a", 128) + "  a\n", "line 1: want the sum"},
		"BSD's format":   {"SHA256 (a) = " + strings.Repeat("a", 64) + "\n", "line 1: want the sum"},
		"absolute":       {sumLine("/etc/passwd", ""), `"/etc/passwd" is no name`},
		"climbing":       {sumLine("../a", ""), `"../a" is no name`},
		"hidden climb":   {sumLine("a/../../b", ""), "is no name"},
		"the root":       {sumLine(".", ""), "is no name"},
		"itself":         {sumLine("./"+SumsFile, ""), "is no name of another file"},
		"no name":        {sumLine("", ""), "is no name"},
		"CR LF":          {strings.ReplaceAll(sumLine("a", ""), "\n", "\r\n"), "CR LF"},
		"twice":          {sumLine("a", "") + sumLine("./a", "x"), `line 2: "a" comes twice`},
		"unknown escape": {"\\" + sumLine(`a\t`, ""), "unknown escape"},
		"half an escape": {"\\" + sumLine(`a\`, ""), "unknown escape"},
		"many":           {strings.Repeat("x\n", 50), "line 10: want the sum, two blanks and the file's name, as sha256sum writes them and 40 more"},
	} {
		if _, err := parseSums([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want one with %q", title, err, test.want)
		}
	}
}

func FuzzParseSums(f *testing.F) {
	f.Add([]byte(sumLine("k8s/kubeadm", "x") + "\\" + sumLine(`a\\b`, "")))
	f.Add([]byte(sumLine("../x", "")))
	f.Fuzz(func(t *testing.T, text []byte) {
		sums, err := parseSums(text)
		if err != nil {
			return
		}
		for name := range sums {
			if !fs.ValidPath(name) || !filepath.IsLocal(name) {
				t.Errorf("%q leads out of the ISO", name)
			}
		}
		if again, err := parseSums(formatSums(sums)); err != nil || !maps.Equal(again, sums) {
			t.Errorf("written and read again it is %v (%v), was %v", again, err, sums)
		}
	})
}

// All that does not fit is named at once.
func TestReadSums(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{"k8s/kubeadm": {}, "docker/new.tar": {}, "docker/new2.tar": {}}
	if sums, err := readSums(files); sums != nil || err != nil {
		t.Errorf("without a manifest: %v, %v", sums, err)
	}
	files[SumsFile] = &fstest.MapFile{Data: []byte(sumLine("k8s/kubeadm", "") + sumLine("lost", "") + sumLine("lost2", ""))}
	_, err := readSums(files)
	want := `SHA256SUMS lists files that are not there: "lost", "lost2"; SHA256SUMS does not list "docker/new.tar", "docker/new2.tar"`
	if err == nil || fault.As(err).Code != fault.ISOChecksum || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	for title, text := range map[string]string{"no manifest": "x", "huge": strings.Repeat("x", maxSumsBytes+1)} {
		files[SumsFile].Data = []byte(text)
		if _, err := readSums(files); err == nil || !strings.Contains(err.Error(), SumsFile) {
			t.Errorf("%s: error %v", title, err)
		}
	}
}

// What is written is what sha256sum checks, and what it would write.
func TestWriteManifest(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	files := bundleFiles(t, "v1.34.4")
	files["odd\\ na\nme"] = "x"
	size := 0
	for name, text := range files {
		writeFile(t, filepath.Join(folder, name), text)
		size += len(text)
	}
	for range 2 { // the second does not list the first's
		count, bytes, err := WriteManifest(t.Context(), &host.Host{}, folder)
		if err != nil || count != len(files) || bytes != int64(size) {
			t.Fatalf("%d files, %d bytes, %v; want %d of %d", count, bytes, err, len(files), size)
		}
	}
	check := exec.Command("sha256sum", "--check", "--strict", SumsFile)
	check.Dir = folder
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("sha256sum: %v: %s", err, out)
	}
	if sums, err := readSums(os.DirFS(folder)); err != nil || len(sums) != len(files) {
		t.Errorf("readSums: %d files, %v", len(sums), err)
	}
}

func TestWriteManifestRefuses(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(folder string) error{
		"it has no folders k8s and docker": func(folder string) error { return os.RemoveAll(folder + "/docker") },
		`neither files nor folders: "docker/a.tar", "network.yaml"`: func(folder string) error {
			return errors.Join(os.Symlink("pause.tar", folder+"/docker/a.tar"), os.Symlink("/etc/passwd", folder+"/network.yaml"))
		},
	} {
		folder := t.TempDir()
		writeFile(t, filepath.Join(folder, "k8s/kubeadm"), "x")
		writeFile(t, filepath.Join(folder, "docker/pause.tar"), "x")
		if err := change(folder); err != nil {
			t.Fatal(err)
		}
		_, _, err := WriteManifest(t.Context(), &host.Host{}, folder)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
		if _, err := os.Stat(filepath.Join(folder, SumsFile)); err == nil {
			t.Errorf("%s: a manifest was written", want)
		}
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}
