// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"
)

// A systemd that dies has perhaps sent a part of a message. The connection ends then,
// wherever the cut is, and not the agent.
func TestMessageCutAnywhere(t *testing.T) {
	var whole bytes.Buffer
	signal := &godbus.Message{Type: godbus.TypeSignal, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldPath:      godbus.MakeVariant(godbus.ObjectPath("/org/freedesktop/systemd1")),
		godbus.FieldInterface: godbus.MakeVariant("org.freedesktop.systemd1.Manager"),
		godbus.FieldMember:    godbus.MakeVariant("Reloading"),
		godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf(true)),
	}, Body: []any{true}}
	if err := signal.EncodeTo(&whole, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "private")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	cut := make(chan int, 1)
	go func() {
		for length := range cut {
			stream, err := listener.Accept()
			if err != nil {
				return
			}
			greetClient(stream)
			stream.Write(whole.Bytes()[:length])
			stream.Close()
		}
	}()
	defer close(cut)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for length := range whole.Len() {
		for _, bus := range []bool{false, true} {
			cut <- length
			conn, err := socket{path: path, bus: bus}.dial(ctx)
			if bus {
				if err == nil {
					t.Fatalf("said hello to a bus that answers %d bytes", length)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.GetUnitPropertiesContext(ctx, "dbus.service"); err == nil {
				t.Fatalf("a call was answered after %d bytes", length)
			} else if dead, _ := died(conn, err); !dead {
				t.Fatalf("cut after %d of %d bytes: %v does not say that the connection died", length, whole.Len(), err)
			}
			conn.Close()
		}
	}
}

// greetClient is a server's side of authentication (D-Bus specification,
// Authentication Protocol) until the client begins with messages.
func greetClient(stream net.Conn) {
	reader := bufio.NewReader(stream)
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return
		}
		switch words := strings.Fields(strings.TrimLeft(line, "\x00")); {
		case len(words) == 1 && words[0] == "AUTH":
			io.WriteString(stream, "REJECTED EXTERNAL\r\n")
		case words[0] == "AUTH":
			io.WriteString(stream, "DATA\r\n")
		case words[0] == "DATA":
			io.WriteString(stream, "OK 0123456789abcdef0123456789abcdef\r\n")
		case words[0] == "BEGIN":
			return
		}
	}
}
