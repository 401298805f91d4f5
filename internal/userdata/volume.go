// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// volume is the file system of a medium, read without mounting it. What is wanted
// are a few small files of the two simplest file systems there are; reading them
// here needs no kernel module, cannot leave a mount behind, follows no link
// anywhere, and every read has a bound.
type volume interface {
	label() string
	root() dirent
	list(folder dirent) ([]dirent, error)
	read(file dirent) ([]byte, error) // size bytes; the caller has checked size
}

// dirent is a file or folder of a volume. Anything else is not listed.
type dirent struct {
	name   string
	folder bool
	size   int64
	start  uint32 // sector (ISO 9660) or cluster (FAT)
}

const (
	maxFolder  = 256 << 10 // bytes of one folder that are read
	maxEntries = 4096      // of one folder
)

// openVolume returns the volume on a device, or nil if it holds neither an
// ISO 9660 nor a FAT file system.
func openVolume(device io.ReaderAt) (volume, error) {
	iso, err := openISO(device)
	if err != nil {
		return nil, err
	}
	if iso != nil {
		return iso, nil
	}
	fat, err := openFAT(device)
	if fat == nil || err != nil {
		return nil, err
	}
	return fat, nil
}

// findPath returns the file or folder of a path, whatever its case. A missing one is
// fs.ErrNotExist.
func findPath(v volume, path string) (dirent, error) {
	at := v.root()
	for part := range strings.SplitSeq(path, "/") {
		entries, err := listFolder(v, at)
		if err != nil {
			return dirent{}, err
		}
		found := false
		for _, entry := range entries {
			if strings.EqualFold(entry.name, part) {
				at, found = entry, true
				break
			}
		}
		if !found {
			return dirent{}, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
	}
	return at, nil
}

func listFolder(v volume, folder dirent) ([]dirent, error) {
	if !folder.folder {
		return nil, fmt.Errorf("%s is no folder: %w", folder.name, fs.ErrNotExist)
	}
	return v.list(folder)
}

// readVolume returns a file of at most most bytes.
func readVolume(v volume, path string, most int) ([]byte, error) {
	file, err := findPath(v, path)
	if err != nil {
		return nil, err
	}
	if file.folder {
		return nil, fmt.Errorf("%s is a folder", path)
	}
	if file.size < 0 || file.size > int64(most) {
		return nil, fmt.Errorf("%s has %d bytes, %d at most are read", path, file.size, most)
	}
	data, err := v.read(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return data, nil
}

// readBytes reads n bytes at an offset; n is bounded by the caller. A device that
// ends before them is io.ErrUnexpectedEOF.
func readBytes(device io.ReaderAt, offset, n int64) ([]byte, error) {
	data := make([]byte, n)
	got, err := device.ReadAt(data, offset)
	switch {
	case int64(got) == n:
		return data, nil
	case err == nil || errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return nil, err
}

// printable makes a volume's label fit to be shown.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.Trim(text, " \x00"))
}
