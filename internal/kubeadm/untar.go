// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// No archive on a binaries ISO comes near these.
const (
	maxTarFile    = 256 << 20 // bytes of one file
	maxTarTotal   = 2 << 30   // bytes of all files
	maxTarEntries = 1000
)

// untar calls each with every regular file of a gzipped tar: its slash-separated
// name, which stays below the folder it is unpacked to, its permission bits and
// its content. Folders are passed over; links and devices are errors.
func untar(archive io.Reader, each func(name string, mode fs.FileMode, content []byte) error) error {
	unzipped, err := gzip.NewReader(archive)
	if err != nil {
		return fmt.Errorf("cannot unpack it: %w", err)
	}
	defer unzipped.Close()

	entries := tar.NewReader(unzipped)
	total := int64(0)
	for count := 0; ; count++ {
		entry, err := entries.Next()
		if errors.Is(err, io.EOF) {
			// gzip's checksum comes last.
			if _, err := io.Copy(io.Discard, io.LimitReader(unzipped, maxTarTotal)); err != nil {
				return fmt.Errorf("cannot unpack it: %w", err)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot unpack it: %w", err)
		}
		if count >= maxTarEntries {
			return fmt.Errorf("cannot unpack it: more than %d entries", maxTarEntries)
		}
		switch entry.Typeflag {
		case tar.TypeDir, tar.TypeXGlobalHeader:
			continue
		case tar.TypeReg:
		default:
			return fmt.Errorf("cannot unpack %q: neither a file nor a folder", entry.Name)
		}
		name := path.Clean(entry.Name)
		if !fs.ValidPath(name) || name == "." || strings.Contains(name, "\\") {
			return fmt.Errorf("cannot unpack %q: its name leads out of the folder", entry.Name)
		}
		if total += entry.Size; entry.Size < 0 || entry.Size > maxTarFile || total > maxTarTotal {
			return fmt.Errorf("cannot unpack %q: larger than %d bytes, or %d in all", entry.Name, maxTarFile, int64(maxTarTotal))
		}
		content, err := io.ReadAll(io.LimitReader(entries, entry.Size))
		if err != nil {
			return fmt.Errorf("cannot unpack %q: %w", entry.Name, err)
		}
		if err := each(name, fs.FileMode(entry.Mode).Perm(), content); err != nil {
			return err
		}
	}
}
