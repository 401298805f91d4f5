// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FileWatch tells when a file has been written whole.
type FileWatch struct {
	// Written gets a value when a writer has closed the file or moved another one
	// into its place. Several such events may come as one value.
	Written chan struct{}

	file *os.File
}

// WatchFile watches for one file, which need not exist yet; its folder must.
func (h *Host) WatchFile(name string) (*FileWatch, error) {
	path := h.Path(name)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch %s: %w", name, os.NewSyscallError("inotify_init", err))
	}
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot watch %s: %w", name, os.NewSyscallError("inotify_add_watch", err))
	}
	w := &FileWatch{Written: make(chan struct{}, 1), file: os.NewFile(uintptr(fd), "inotify")}
	go w.read(filepath.Base(path))
	return w, nil
}

// Close ends the watch.
func (w *FileWatch) Close() error { return w.file.Close() }

func (w *FileWatch) read(base string) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buffer)
		if err != nil {
			return
		}
		for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			event := (*unix.InotifyEvent)(unsafe.Pointer(&rest[0]))
			name := rest[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+int(event.Len)]
			rest = rest[unix.SizeofInotifyEvent+int(event.Len):]
			overflow := event.Mask&unix.IN_Q_OVERFLOW != 0
			if overflow || string(bytes.TrimRight(name, "\x00")) == base {
				notify(w.Written)
			}
		}
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
