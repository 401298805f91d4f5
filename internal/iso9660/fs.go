// SPDX-License-Identifier: Apache-2.0

package iso9660

import (
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// maxDepth is how deep a name may be: folders of a damaged volume can hold
// themselves.
const maxDepth = 16

// Open opens a file or folder, as fs.FS wants it. A file is an io.ReaderAt too.
func (v *Volume) Open(name string) (fs.File, error) {
	entry, err := v.find(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if !entry.Folder {
		return &openFile{v.Content(entry), info{entry}}, nil
	}
	found, err := v.ReadDir(name)
	if err != nil {
		return nil, err
	}
	return &openFolder{info{entry}, found}, nil
}

// ReadDir implements fs.ReadDirFS.
func (v *Volume) ReadDir(name string) ([]fs.DirEntry, error) {
	folder, err := v.find(name)
	if err == nil && !folder.Folder {
		err = fmt.Errorf("it is no folder: %w", fs.ErrInvalid)
	}
	var entries []Entry
	if err == nil {
		entries, err = v.List(folder)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	var found []fs.DirEntry
	for _, entry := range entries {
		found = append(found, fs.FileInfoToDirEntry(info{entry}))
	}
	slices.SortFunc(found, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return found, nil
}

func (v *Volume) find(name string) (Entry, error) {
	if !fs.ValidPath(name) || strings.Count(name, "/") >= maxDepth {
		return Entry{}, fs.ErrInvalid
	}
	at := v.Root
	if name == "." {
		return at, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if !at.Folder {
			return Entry{}, fs.ErrNotExist
		}
		entries, err := v.List(at)
		if err != nil {
			return Entry{}, err
		}
		i := slices.IndexFunc(entries, func(e Entry) bool { return e.Name == part })
		if i < 0 {
			return Entry{}, fs.ErrNotExist
		}
		at = entries[i]
	}
	return at, nil
}

// info is an Entry as fs.FileInfo.
type info struct{ entry Entry }

func (i info) Name() string       { return i.entry.Name }
func (i info) Size() int64        { return i.entry.Size }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.entry.Folder }
func (i info) Sys() any           { return nil }

func (i info) Mode() fs.FileMode {
	if i.entry.Folder {
		return fs.ModeDir | 0o555
	}
	return 0o444
}

type openFile struct {
	*io.SectionReader
	info info
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Close() error               { return nil }

type openFolder struct {
	info info
	rest []fs.DirEntry
}

func (f *openFolder) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFolder) Close() error               { return nil }
func (f *openFolder) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: f.info.Name(), Err: fs.ErrInvalid}
}

// ReadDir implements fs.ReadDirFile.
func (f *openFolder) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 || n > len(f.rest) {
		if n > 0 && len(f.rest) == 0 {
			return nil, io.EOF
		}
		n = len(f.rest)
	}
	found := f.rest[:n]
	f.rest = f.rest[n:]
	return found, nil
}
