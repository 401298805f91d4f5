// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host/hosttest"
)

// xsMessage is one message of xs_wire.h.
func xsMessage(kind, id uint32, payload string) []byte {
	message := make([]byte, 16, 16+len(payload))
	for i, number := range []uint32{kind, id, 0, uint32(len(payload))} {
		binary.NativeEndian.PutUint32(message[4*i:], number)
	}
	return append(message, payload...)
}

// serveXenstore plays xenstored with one key: it checks the request as xenstored
// would and answers after a watch event and somebody else's answer, in pieces.
func serveXenstore(conn io.ReadWriter, keys map[string]string) error {
	var header [16]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return err
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(header[4*i:]) }
	payload := make([]byte, word(3))
	if _, err := io.ReadFull(conn, payload); err != nil {
		return err
	}
	if word(0) != 2 || word(2) != 0 || !bytes.HasSuffix(payload, []byte{0}) {
		return fmt.Errorf("request %v %q is no XS_READ outside a transaction", header, payload)
	}
	answer := xsMessage(16, word(1), "ENOENT\x00")
	if value, ok := keys[strings.TrimSuffix(string(payload), "\x00")]; ok {
		answer = xsMessage(2, word(1), value) // without a NUL
	}
	stream := bytes.Join([][]byte{xsMessage(15, 0, "memory/target\x00token\x00"), xsMessage(2, word(1)+7, "type=wrong"), answer}, nil)
	for len(stream) > 0 {
		n := min(7, len(stream))
		if _, err := conn.Write(stream[:n]); err != nil {
			return err
		}
		stream = stream[n:]
	}
	return nil
}

func TestXenstoreRead(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer ours.Close()
	served := make(chan error, 1)
	go func() { served <- serveXenstore(theirs, map[string]string{xenstoreKey: "%template=domP%type=router"}) }()
	got, err := xenstoreRead(ours, xenstoreKey)
	if err != nil || got != "%template=domP%type=router" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// answers is a connection whose other end says what it likes.
type answers struct{ io.Reader }

func (answers) Write(p []byte) (int, error) { return len(p), nil }

func TestXenstoreReadOfStrangeAnswers(t *testing.T) {
	t.Parallel()
	long := xsMessage(2, 1, "")
	binary.NativeEndian.PutUint32(long[12:], 4097)
	for _, test := range []struct {
		name   string
		stream []byte
		want   string
		err    string
	}{
		{"NUL at its end", xsMessage(2, 1, "type=router\x00"), "type=router", ""},
		{"empty", xsMessage(2, 1, ""), "", ""},
		{"of the longest kind", xsMessage(2, 1, strings.Repeat("x", 4096)), strings.Repeat("x", 4096), ""},
		{"no such key", xsMessage(16, 1, "ENOENT\x00"), "", "no key " + xenstoreKey},
		{"not allowed", xsMessage(16, 1, "EACCES\x00"), "", "EACCES"},
		{"an error that is none", xsMessage(16, 1, "vmpassword=hunter2"), "", "type 16"},
		{"another type", xsMessage(1, 1, "hunter2"), "", "type 1"},
		{"too long", long, "", "4097 bytes is longer than 4096"},
		{"cut off in the header", []byte{2, 0, 0}, "", "cannot read xenstore's answer"},
		{"cut off", xsMessage(2, 1, "type=router")[:20], "", "cannot read xenstore's answer"},
		{"nothing", nil, "", "cannot read xenstore's answer"},
		{"events without end", bytes.Repeat(xsMessage(15, 0, "a\x00b\x00"), 1000), "", "64 messages but no answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := xenstoreRead(answers{bytes.NewReader(test.stream)}, xenstoreKey)
			if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %q, %v; want %q, error %q", got, err, test.want, test.err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("secret shown in %v", err)
			}
		})
	}
}

// newXen is a Xen guest whose xenbus is one end of a terminal: a character device
// that is opened once for both directions, as the real one.
func newXen(t *testing.T, guestType string, keys map[string]string) *hosttest.Machine {
	t.Helper()
	m := hosttest.New(t)
	m.Write("/sys/hypervisor/type", "xen\n")
	m.Write("/sys/hypervisor/guest_type", guestType+"\n")
	m.Write("/proc/cmdline", "root=UUID=1-2 ro console=hvc0\n")
	if keys == nil {
		return m
	}
	server, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	connection, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	var failed error
	if err := connection.Control(func(fd uintptr) {
		number, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		// Bytes as they are: no echo, no lines, no signals.
		raw := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.B38400}
		raw.Cc[unix.VMIN] = 1
		failed = errors.Join(failed, unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0), unix.IoctlSetTermios(int(fd), unix.TCSETS, &raw))
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	terminal := "/dev/pts/" + strconv.Itoa(number)
	// While it is open somewhere the server's end does not hang up.
	open, err := os.OpenFile(terminal, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { open.Close() })
	if err := os.MkdirAll(filepath.Dir(m.Path(xenbus)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(terminal, m.Path(xenbus)); err != nil {
		t.Fatal(err)
	}
	if len(keys) > 0 { // else it never answers
		done := make(chan error, 1)
		go func() {
			for {
				if err := serveXenstore(server, keys); err != nil {
					done <- err
					return
				}
			}
		}()
		t.Cleanup(func() {
			server.Close()
			if err := <-done; !errors.Is(err, os.ErrClosed) {
				t.Errorf("the xenstore of the test: %v", err)
			}
		})
	}
	return m
}

// percent is how CloudStack sends boot args to Xen.
var percent = strings.NewReplacer(" ", "%", "\n", "")

func TestXen(t *testing.T) {
	t.Parallel()
	hvm := newXen(t, "HVM", map[string]string{xenstoreKey: percent.Replace(testArgs)})
	pv := newXen(t, "PV", nil)
	pv.Write("/proc/cmdline", "root=UUID=1-2 ro console=hvc0 "+percent.Replace(testArgs)+"\n")
	pvh := newXen(t, "PVH", map[string]string{xenstoreKey: percent.Replace(testArgs)})
	for _, test := range []struct {
		machine    *hosttest.Machine
		source     string
		hypervisor Hypervisor
	}{{hvm, SourceXenstore, XenHVM}, {pv, SourceKernel, XenPV}, {pvh, SourceXenstore, XenPV}} {
		args, source, err := AwaitBootArgs(t.Context(), test.machine.Host(), AwaitOptions{}, quiet)
		if err != nil || args.Name() != "n1" || source.Name != test.source || source.Hypervisor != test.hypervisor || source.Stale {
			t.Errorf("got %v, %+v, %v; want the args from %s on %s", args, source, err, test.source, test.hypervisor)
		}
		if got := test.machine.Read(CmdlineFile); !strings.HasSuffix(got, testArgs) {
			t.Errorf("%s = %q, want spaces again", CmdlineFile, got)
		}
		if password, _ := args.Get("vmpassword"); password != "hunter2" {
			t.Errorf("vmpassword = %q", password)
		}
	}
	// The kernel's own arguments stay among them (contract 10.1).
	if got := pv.Read(CmdlineFile); !strings.HasPrefix(got, "root=UUID=1-2 ro console=hvc0  template=domP") {
		t.Errorf("%s = %q", CmdlineFile, got)
	}
}

func TestXenWithout(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		m    *hosttest.Machine
		want []string
	}{
		{"no device", newXen(t, "HVM", nil), []string{"hypervisor xen-hvm", "xenstore: no device /dev/xen/xenbus"}},
		{"no key", newXen(t, "HVM", map[string]string{"vm-data/ip": "10.1.1.5"}), []string{"xenstore: xenstore has no key vm-data/cloudstack/init"}},
		{"PV", newXen(t, "PV", nil), []string{"hypervisor xen-pv", "/proc/cmdline has no type=", "xenstore: no device"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := AwaitBootArgs(t.Context(), test.m.Host(), AwaitOptions{}, quiet)
			got := fault.As(err)
			if got.Code != fault.BootArgsMissing || !strings.Contains(got.Hint, "host") {
				t.Errorf("%+v, want %s with a hint for Xen", got, fault.BootArgsMissing)
			}
			for _, want := range test.want {
				if !strings.Contains(got.Message, want) {
					t.Errorf("message %q does not hold %q", got.Message, want)
				}
			}
			// An earlier boot's are better than none.
			test.m.Write(CmdlineFile, testArgs)
			args, source, err := AwaitBootArgs(t.Context(), test.m.Host(), AwaitOptions{}, quiet)
			if err != nil || args.Name() != "n1" || !source.Stale || source.Name != SourcePersisted {
				t.Errorf("with those of an earlier boot: %v, %+v, %v", args, source, err)
			}
		})
	}
}

// A xenstore that takes the question and never answers is waited for no longer
// than the caller allows.
func TestXenstoreThatHangs(t *testing.T) {
	t.Parallel()
	m := newXen(t, "HVM", map[string]string{})
	ctx, cancel := contextOf(t)
	defer cancel()
	_, err := readXenstore(ctx, m.Host())
	if err == nil || !strings.Contains(err.Error(), "xenstore does not answer") {
		t.Errorf("error = %v", err)
	}
	m.Write(CmdlineFile, testArgs) // a step that is out of time takes nothing stale
	if _, source, err := AwaitBootArgs(ctx, m.Host(), AwaitOptions{}, quiet); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%+v, %v; want the context's error", source, err)
	}
}

func FuzzXenstore(f *testing.F) {
	f.Add(xsMessage(2, 1, "%type=router"))
	f.Add(append(xsMessage(15, 0, "a\x00b\x00"), xsMessage(16, 1, "ENOENT\x00")...))
	f.Add(xsMessage(16, 1, "hunter2-and-more"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		value, err := xenstoreRead(answers{bytes.NewReader(stream)}, xenstoreKey)
		if err != nil && value != "" {
			t.Errorf("%q with the error %v", value, err)
		}
		if err == nil && !bytes.Contains(stream, []byte(value)) {
			t.Errorf("%q is not in the answer", value)
		}
		// The same stream cut off behind a secret must not show it.
		const planted = "hunter2-and-more"
		cut := append(xsMessage(15, 0, planted), stream...)
		cut = append(cut, xsMessage(16, 1, planted)...)
		if _, err := xenstoreRead(answers{bytes.NewReader(cut)}, xenstoreKey); err != nil && strings.Contains(err.Error(), planted) {
			t.Errorf("secret shown in %v", err)
		}
	})
}
