// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// systemdName is systemd's name on a message bus.
const systemdName = "org.freedesktop.systemd1"

// socket is a place where systemd can be spoken to.
type socket struct {
	path string
	bus  bool // a message bus, where systemd may come later than the bus itself
}

// systemdSockets are this machine's: systemd's own is there before any unit starts,
// and only for root.
func systemdSockets() []socket {
	return []socket{{"/run/systemd/private", false}, {"/run/dbus/system_bus_socket", true}}
}

// reach connects to the first socket that answers. When none does it waits until one
// appears, which is an event, or ctx ends. retry is for what is no event: a socket is
// bound before it is listened on, and a server restarts behind the same socket.
func reach(ctx context.Context, sockets []socket, retry time.Duration) (*dbus.Conn, error) {
	conn, err := dialAny(ctx, sockets)
	if err == nil {
		return conn, nil
	}
	watch, watchErr := watchSockets(sockets)
	if watchErr != nil {
		return nil, watchErr
	}
	defer watch.close()
	ticker := time.NewTicker(retry)
	defer ticker.Stop()
	for ctx.Err() == nil {
		// Watched first and looked at then: what appears in between is seen.
		if err := watch.renew(); err != nil {
			return nil, err
		}
		if conn, err = dialAny(ctx, sockets); err == nil {
			return conn, nil
		}
		select {
		case <-watch.appeared:
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
	return nil, fmt.Errorf("%w (%w)", err, context.Cause(ctx))
}

func dialAny(ctx context.Context, sockets []socket) (*dbus.Conn, error) {
	var failed error
	for _, s := range sockets {
		conn, err := s.dial(ctx)
		switch {
		case err == nil:
			return conn, nil
		case failed == nil:
			failed = err
		default:
			failed = fmt.Errorf("%w; %w", failed, err)
		}
	}
	return nil, failed
}

// dial connects; the connection outlives ctx, but a peer that accepts and never
// answers holds nobody longer than that.
func (s socket) dial(ctx context.Context) (*dbus.Conn, error) {
	var stops []func() bool
	// The library asks for two, one of them for signals. Systemd's own socket sends all
	// signals, of a whole boot, over every connection: one is enough to read them on.
	var shared *godbus.Conn
	conn, err := dbus.NewConnection(func() (*godbus.Conn, error) {
		if shared != nil {
			return shared, nil
		}
		stream, err := (&net.Dialer{}).DialContext(ctx, "unix", s.path)
		if err != nil {
			return nil, err
		}
		stops = append(stops, context.AfterFunc(ctx, func() { stream.Close() }))
		var wire io.ReadWriteCloser = stream
		if !s.bus {
			wire = &fewerSignals{ReadWriteCloser: stream}
		}
		one, err := godbus.NewConn(wire)
		if err != nil {
			stream.Close()
			return nil, err
		}
		if err := s.greet(ctx, one); err != nil {
			one.Close()
			return nil, fmt.Errorf("%s: %w", s.path, err)
		}
		shared = one
		return one, nil
	})
	ended := false
	for _, stop := range stops {
		ended = !stop() || ended
	}
	if ended && err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", s.path, ctx.Err())
	}
	return conn, err
}

func (s socket) greet(ctx context.Context, conn *godbus.Conn) error {
	// By number: a look-up of the user's name would need a dynamic C library.
	if err := conn.Auth([]godbus.Auth{godbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		return err
	}
	if !s.bus {
		return nil
	}
	if err := conn.Hello(); err != nil {
		return err
	}
	return awaitSystemd(ctx, conn)
}

// awaitSystemd waits until systemd is on the bus, which it joins after the bus has
// started.
func awaitSystemd(ctx context.Context, conn *godbus.Conn) error {
	rule := []godbus.MatchOption{godbus.WithMatchInterface("org.freedesktop.DBus"),
		godbus.WithMatchMember("NameOwnerChanged"), godbus.WithMatchArg(0, systemdName)}
	if err := conn.AddMatchSignalContext(ctx, rule...); err != nil {
		return err
	}
	signals := make(chan *godbus.Signal, 16)
	conn.Signal(signals)
	defer conn.RemoveSignal(signals)
	for {
		var there bool
		if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, systemdName).Store(&there); err != nil {
			return fmt.Errorf("cannot find systemd on the bus: %w", err)
		}
		if there {
			return conn.RemoveMatchSignalContext(ctx, rule...)
		}
		select {
		case _, open := <-signals:
			if !open {
				return fmt.Errorf("cannot find systemd on the bus: %w", godbus.ErrClosed)
			}
		case <-ctx.Done():
			return fmt.Errorf("cannot find systemd on the bus: %w", context.Cause(ctx))
		}
	}
}

// died says whether a call failed because the connection did, or systemd behind it;
// sent is whether systemd may have got the call.
func died(conn *dbus.Conn, err error) (dead, sent bool) {
	// The peer of a write that breaks has at most the beginning of the call.
	if errors.Is(err, godbus.ErrClosed) || errors.Is(err, syscall.EPIPE) {
		return true, false
	}
	var refused godbus.Error
	if errors.As(err, &refused) {
		switch refused.Name {
		case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner",
			"org.freedesktop.DBus.Error.Spawn.ChildExited":
			return true, false
		case "org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected":
			return true, true
		}
		return false, true
	}
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET} {
		if errors.Is(err, end) {
			return true, true
		}
	}
	return !conn.Connected(), true
}

// socketWatch tells when something appears where a socket is expected.
type socketWatch struct {
	appeared chan struct{}
	sockets  []socket
	file     *os.File
	fd       int
}

func watchSockets(sockets []socket) (*socketWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init", err)
	}
	w := &socketWatch{appeared: make(chan struct{}, 1), sockets: sockets, file: os.NewFile(uintptr(fd), "inotify"), fd: fd}
	go func() {
		buffer := make([]byte, 4<<10)
		for {
			if _, err := w.file.Read(buffer); err != nil {
				return
			}
			notify(w.appeared)
		}
	}()
	return w, nil
}

func (w *socketWatch) close() error { return w.file.Close() }

// renew watches each socket's folder or, while that is missing, the nearest one
// above it.
func (w *socketWatch) renew() error {
	for _, s := range w.sockets {
		for watched := ""; ; {
			folder := nearestFolder(s.path)
			if folder == watched {
				break
			}
			_, err := unix.InotifyAddWatch(w.fd, folder, unix.IN_CREATE|unix.IN_MOVED_TO)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("cannot watch %s: %w", folder, os.NewSyscallError("inotify_add_watch", err))
			}
			watched = folder
		}
	}
	return nil
}

func nearestFolder(path string) string {
	for path = filepath.Dir(path); path != "/"; path = filepath.Dir(path) {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			break
		}
	}
	return path
}
