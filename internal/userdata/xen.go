// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"nodeagent/internal/host"
)

const (
	kernelCmdline = "/proc/cmdline"
	xenbus        = "/dev/xen/xenbus"
	xenstoreKey   = "vm-data/cloudstack/init" // relative to this machine's own home
)

// xenText undoes what CloudStack does for Xen, whose kernel arguments part at
// spaces: it sends "%" for each of them.
func xenText(text string) string { return strings.ReplaceAll(text, "%", " ") }

// readKernelCmdline returns the kernel's command line when CloudStack has put boot
// args into it. The kernel's own arguments stay among them.
func readKernelCmdline(_ context.Context, h *host.Host) (string, error) {
	data, err := h.ReadFile(kernelCmdline)
	if err != nil {
		return "", err
	}
	text := xenText(string(data))
	if !fromCloudStack(text) {
		return "", fmt.Errorf("%s has no type=", kernelCmdline)
	}
	return text, nil
}

// xenstoreWait bounds the one question to xenstore, which answers at once if it
// does at all.
const xenstoreWait = 10 * time.Second

// readXenstore asks xenstore by the device the kernel has for it. What CloudStack
// writes there is there before the machine starts.
func readXenstore(ctx context.Context, h *host.Host) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, xenstoreWait)
	defer cancel()
	device, err := os.OpenFile(h.Path(xenbus), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no device %s", xenbus)
	}
	if err != nil {
		return "", err
	}
	defer device.Close()
	type answer struct {
		value string
		err   error
	}
	// In a goroutine of its own: a read of a dead xenstore may be one that not
	// even closing the device ends.
	answered := make(chan answer, 1)
	go func() {
		value, err := xenstoreRead(device, xenstoreKey)
		answered <- answer{value, err}
	}()
	select {
	case a := <-answered:
		return xenText(a.value), a.err
	case <-ctx.Done():
		return "", fmt.Errorf("xenstore does not answer: %w", context.Cause(ctx))
	}
}

// Xenstore's messages (xen/include/public/io/xs_wire.h): four native 32-bit
// numbers, the message's type, an id that the answer repeats, a transaction (0:
// none) and the length of what follows.
const (
	xsRead       = 2
	xsError      = 16 // answers with the name of an errno
	xsHeaderSize = 16
	xsMaxPayload = 4096
	xsRequestID  = 1
)

var errnoName = pattern(`^E[A-Z0-9]{1,20}$`)

// xenstoreRead asks for the value of one key.
func xenstoreRead(conn io.ReadWriter, key string) (string, error) {
	request := make([]byte, 0, xsHeaderSize+len(key)+1)
	for _, number := range []uint32{xsRead, xsRequestID, 0, uint32(len(key) + 1)} {
		request = binary.NativeEndian.AppendUint32(request, number)
	}
	request = append(append(request, key...), 0)
	if _, err := conn.Write(request); err != nil {
		return "", fmt.Errorf("cannot ask xenstore: %w", err)
	}
	// Events of watches somebody left behind may come before the answer.
	const mostMessages = 64
	for range mostMessages {
		var header [xsHeaderSize]byte
		if _, err := io.ReadFull(conn, header[:]); err != nil {
			return "", fmt.Errorf("cannot read xenstore's answer: %w", err)
		}
		kind, id := binary.NativeEndian.Uint32(header[0:]), binary.NativeEndian.Uint32(header[4:])
		length := binary.NativeEndian.Uint32(header[12:])
		if length > xsMaxPayload {
			return "", fmt.Errorf("xenstore's answer of %d bytes is longer than %d", length, xsMaxPayload)
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(conn, payload); err != nil {
			return "", fmt.Errorf("cannot read xenstore's answer: %w", err)
		}
		text := untilNUL(payload)
		switch {
		case id != xsRequestID:
		case kind == xsRead:
			return text, nil
		case kind == xsError && text == "ENOENT":
			return "", fmt.Errorf("xenstore has no key %s", key)
		case kind == xsError && errnoName().MatchString(text):
			return "", fmt.Errorf("xenstore does not give the key %s: %s", key, text)
		default:
			return "", fmt.Errorf("xenstore answered a read with a message of type %d", kind)
		}
	}
	return "", fmt.Errorf("xenstore sent %d messages but no answer", mostMessages)
}
