// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// BlockWatch tells when block devices come or change their medium.
type BlockWatch struct {
	// Changed gets a value on every add or change event of a block device.
	// Several events may come as one value.
	Changed chan struct{}

	file *os.File
}

// WatchBlock listens to the kernel's device events (NETLINK_KOBJECT_UEVENT,
// Documentation/driver-api/driver-model). It sees them without udev running.
func WatchBlock() (*BlockWatch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("cannot listen to device events: %w", os.NewSyscallError("socket", err))
	}
	const kernelEvents = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelEvents}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot listen to device events: %w", os.NewSyscallError("bind", err))
	}
	w := &BlockWatch{Changed: make(chan struct{}, 1), file: os.NewFile(uintptr(fd), "uevent")}
	go w.read()
	return w, nil
}

// Close ends the watch.
func (w *BlockWatch) Close() error { return w.file.Close() }

func (w *BlockWatch) read() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buffer)
		if errors.Is(err, unix.ENOBUFS) { // events were lost: look again
			notify(w.Changed)
			continue
		}
		if err != nil {
			return
		}
		if isBlockEvent(buffer[:n]) {
			notify(w.Changed)
		}
	}
}

// isBlockEvent reads one message: "action@path" and NUL-separated KEY=value.
func isBlockEvent(message []byte) bool {
	fields := bytes.Split(message, []byte{0})
	action, _, found := bytes.Cut(fields[0], []byte("@"))
	if !found || (string(action) != "add" && string(action) != "change") {
		return false
	}
	for _, field := range fields[1:] {
		if string(field) == "SUBSYSTEM=block" {
			return true
		}
	}
	return false
}
