// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"io"
)

// filesystem is a mounted file system as its superblock tells. All but resize
// are pure.
type filesystem interface {
	// size returns the size in bytes.
	size() int64
	// fit returns the size in bytes the file system can have in a partition of
	// the given size; never less than size.
	fit(partition int64) int64
	// check says why it cannot grow now, if so.
	check() error
	// resize makes it grow to the size in bytes.
	resize(m machine, mountPoint string, bytes int64) error
}

// readFilesystem reads what there is to know of a mounted file system. The type
// comes from the kernel, and the superblock has to agree: neither an old
// superblock of another file system nor the type alone is believed. It is done
// before the table is touched.
func readFilesystem(m machine, partition io.ReaderAt, at place) (filesystem, error) {
	switch at.fstype {
	case "ext2", "ext3", "ext4":
		return readExt4(partition, at.fstype)
	}
	return nil, unsupported("a file system of type %q cannot be grown", at.fstype)
}
