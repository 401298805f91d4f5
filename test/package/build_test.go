// SPDX-License-Identifier: Apache-2.0

// Package deb tests the Debian package that `make deb` builds: what is in it, what
// its maintainer scripts do, that two builds are the same, and that the programs in
// it run.
package deb

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	version = "0.1.0"
	// epoch is 2027-01-01 00:30 in UTC, and December in the Americas.
	epoch = "1798763400"
)

// source is the top of the repository.
func source(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// conditions are those of one build.
type conditions struct {
	arch, umask string
	env         []string
}

// snapshot copies the tree as it is now. This process reads it, and not cp, so that
// go test knows what a kept result depends on.
func snapshot(t *testing.T, folder string) string {
	t.Helper()
	top := source(t)
	for _, name := range tree(t, top, "/.git", "/bin", "/dist") {
		info, err := os.Stat(filepath.Join(top, name))
		switch {
		case os.IsNotExist(err): // an editor's
			continue
		case err != nil:
			t.Fatal(err)
		case info.IsDir():
			if err := os.MkdirAll(filepath.Join(folder, name), 0o755); err != nil {
				t.Fatal(err)
			}
		default:
			write(t, filepath.Join(folder, name), read(t, filepath.Join(top, name)), info.Mode().Perm())
		}
	}
	return folder
}

// build copies a tree to a folder, so that each build has another folder with other
// times and modes, and runs `make deb` there. It returns dist/.
func build(t *testing.T, tree, folder string, c conditions) string {
	t.Helper()
	const script = `umask "$1"; mkdir "$3"
tar -C "$2" -c . | tar -C "$3" -x --touch --no-same-permissions --no-same-owner
exec make -C "$3" deb`
	command := exec.Command("bash", "-euo", "pipefail", "-c", script, "build", c.umask, tree, folder)
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		switch name {
		case "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "VERSION", "ARCH", "DIST", "GOARCH":
			// `make unit` may have been called with them.
		default:
			command.Env = append(command.Env, variable)
		}
	}
	command.Env = append(command.Env, "ARCH="+c.arch, "VERSION="+version, "SOURCE_DATE_EPOCH="+epoch)
	command.Env = append(command.Env, c.env...)
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("make deb for %s: %v\n%s", c.arch, err, output)
	}
	return filepath.Join(folder, "dist")
}

// tool runs a program and returns its standard output; it has to end with 0.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	command := exec.Command(name, args...)
	command.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", command, err, &stdout, &stderr)
	}
	return stdout.String()
}

// tree lists the files of a folder, but not those below skip.
func tree(t *testing.T, folder string, skip ...string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, folder)
		for _, other := range skip {
			if name == other {
				if entry.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}
