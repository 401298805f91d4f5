// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Path returns the name of a file of this machine for use with package os.
func (h *Host) Path(name string) string { return filepath.Join(h.Root, name) }

// MaxFile is the most bytes ReadFile reads: no configuration file is larger.
const MaxFile = 8 << 20

// ReadFile reads a whole file of at most MaxFile bytes. A missing file is
// fs.ErrNotExist.
func (h *Host) ReadFile(name string) ([]byte, error) {
	file, err := os.Open(h.Path(name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", name, err)
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("cannot read %s: larger than %d bytes", name, MaxFile)
	}
	return data, nil
}

// Exists says whether a file, of whatever kind, is there.
func (h *Host) Exists(name string) bool {
	_, err := os.Lstat(h.Path(name))
	return err == nil
}

// WriteFile makes a file hold data with the given mode, atomically and durably:
// after a power cut the file holds the old or the new content whole. A file that
// is so already is not touched. A symbolic link in its place is replaced.
// Missing folders are made with mode 0755. It reports whether it wrote.
func (h *Host) WriteFile(name string, data []byte, mode fs.FileMode) (changed bool, err error) {
	path := h.Path(name)
	if info, err := os.Lstat(path); err == nil && info.Mode() == mode && info.Size() == int64(len(data)) {
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
			return false, nil
		}
	}
	return true, h.WriteFrom(name, bytes.NewReader(data), mode)
}

// WriteFrom streams a file into place as WriteFile does, whatever was there.
func (h *Host) WriteFrom(name string, from io.Reader, mode fs.FileMode) (err error) {
	path := h.Path(name)
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot write %s: %w", name, explainFile(err))
		}
	}()
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	temp, err := os.CreateTemp(folder, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	if err := temp.Chmod(mode); err != nil {
		return err
	}
	if _, err := io.Copy(temp, from); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return SyncDir(folder)
}

// Remove removes a file; a missing one is no error. It reports whether there was
// one.
func (h *Host) Remove(name string) (changed bool, err error) {
	err = os.Remove(h.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, explainFile(err)
}

// SyncDir makes the names in a folder durable.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
