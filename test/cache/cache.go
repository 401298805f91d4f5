// SPDX-License-Identifier: Apache-2.0

// Package cache keeps what the tests build once (the template, Kubernetes, the
// binaries ISO) in the user's cache folder, keyed by the inputs it was built
// from, so that a fresh clone on the same machine reuses it.
package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir returns the folder that holds the result of build for these inputs and
// builds it first when it is not there. build fills a folder of its own, which
// becomes visible under its final name only when build returned nil. A second
// process that asks for the same folder waits until the first has built it.
func Dir(kind string, inputs []string, build func(dir string) error) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cannot find the user's cache folder: %w", err)
	}
	root := filepath.Join(base, "nodeagent")
	final := filepath.Join(root, kind+"-"+Key(inputs...))
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}

	lock, err := os.OpenFile(final+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("cannot lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}

	temp := final + ".partial"
	if err := os.RemoveAll(temp); err != nil {
		return "", err
	}
	if err := os.MkdirAll(temp, 0o755); err != nil {
		return "", err
	}
	if err := build(temp); err != nil {
		return "", fmt.Errorf("cannot build %s: %w", kind, err)
	}
	return final, os.Rename(temp, final)
}

// Key is a short hash of its inputs, each bounded so that ("ab","c") and
// ("a","bc") differ.
func Key(inputs ...string) string {
	sum := sha256.New()
	for _, input := range inputs {
		fmt.Fprintf(sum, "%d:%s", len(input), input)
	}
	return hex.EncodeToString(sum.Sum(nil))[:16]
}

// Files returns a hash input that names every file below the given paths with
// its content, so that editing one of them changes the key.
func Files(paths ...string) (string, error) {
	var lines []string
	for _, path := range paths {
		err := filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			file, err := os.Open(name)
			if err != nil {
				return err
			}
			defer file.Close()
			sum := sha256.New()
			if _, err := io.Copy(sum, file); err != nil {
				return err
			}
			relative, err := filepath.Rel(path, name)
			if err != nil {
				return err
			}
			lines = append(lines, relative+" "+hex.EncodeToString(sum.Sum(nil)))
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n"), nil
}
