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

// FileWatch tells when a file, or any of some folders, has been written whole.
type FileWatch struct {
	// Written gets a value when a writer has closed a file or moved another one
	// into its place. Several such events may come as one value.
	Written chan struct{}

	host *Host
	fd   int // of file, which has it until Close
	file *os.File
}

// WatchFile watches for one file, which need not exist yet; its folder must.
func (h *Host) WatchFile(name string) (*FileWatch, error) {
	w, err := h.watch(filepath.Base(name))
	if err != nil {
		return nil, fmt.Errorf("cannot watch %s: %w", name, err)
	}
	if err := w.Add(filepath.Dir(name)); err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

// WatchFolders watches for every file of the folders that are added to it.
func (h *Host) WatchFolders() (*FileWatch, error) { return h.watch("") }

// watch watches for the files of that name, or for all where it is empty.
func (h *Host) watch(base string) (*FileWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init", err)
	}
	w := &FileWatch{Written: make(chan struct{}, 1), host: h, fd: fd, file: os.NewFile(uintptr(fd), "inotify")}
	go w.read(base)
	return w, nil
}

// Add watches a folder too, which must be there; one that is watched stays so.
func (w *FileWatch) Add(folder string) error {
	if _, err := unix.InotifyAddWatch(w.fd, w.host.Path(folder), unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO); err != nil {
		return fmt.Errorf("cannot watch %s: %w", folder, os.NewSyscallError("inotify_add_watch", err))
	}
	return nil
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
			if overflow || base == "" || string(bytes.TrimRight(name, "\x00")) == base {
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
