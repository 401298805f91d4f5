// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	godbus "github.com/godbus/dbus/v5"
)

// wire is a peer that has said all it will.
type wire struct{ io.Reader }

func (wire) Write(p []byte) (int, error) { return len(p), nil }
func (wire) Close() error                { return nil }

func encoded(t testing.TB, order binary.ByteOrder, message *godbus.Message) []byte {
	t.Helper()
	var text bytes.Buffer
	if err := message.EncodeTo(&text, order); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

func signal(member string, body ...any) *godbus.Message {
	message := &godbus.Message{Type: godbus.TypeSignal, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldPath: godbus.MakeVariant(godbus.ObjectPath("/org/freedesktop/systemd1")), godbus.FieldInterface: godbus.MakeVariant("org.freedesktop.systemd1.Manager"),
		godbus.FieldMember: godbus.MakeVariant(member)}, Body: body}
	message.Headers[godbus.FieldSignature] = godbus.MakeVariant(godbus.SignatureOf(body...))
	return message
}

func reply(text string) *godbus.Message {
	return &godbus.Message{Type: godbus.TypeMethodReply, Headers: map[godbus.HeaderField]godbus.Variant{
		godbus.FieldReplySerial: godbus.MakeVariant(uint32(7)), godbus.FieldSignature: godbus.MakeVariant(godbus.SignatureOf(text))}, Body: []any{text}}
}

// Replies and the ends of jobs come through, in their order and whole, and nothing else.
func TestFewerSignals(t *testing.T) {
	t.Parallel()
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		said := []byte("OK 1234\r\n")
		for _, message := range []*godbus.Message{
			signal("UnitNew", "docker.service"), reply("one"), signal("JobRemoved", uint32(12), "ssh.service"), signal("UnitRemoved", "docker.service"), reply("two"), reply(""),
			signal("PropertiesChanged", map[string]godbus.Variant{"ActiveState": godbus.MakeVariant("active")}),
		} {
			said = append(said, encoded(t, order, message)...)
		}
		for name, reader := range map[string]io.Reader{"at once": bytes.NewReader(said), "by bytes": iotest.OneByteReader(bytes.NewReader(said))} {
			f := &fewerSignals{ReadWriteCloser: wire{reader}}
			line := make([]byte, len("OK 1234\r\n"))
			if _, err := io.ReadFull(f, line); err != nil || string(line) != "OK 1234\r\n" {
				t.Fatalf("%s: authentication: %q, %v", name, line, err)
			}
			if _, err := f.Write([]byte("BEGIN\r\n")); err != nil {
				t.Fatal(err)
			}
			for i, want := range []any{"one", uint32(12), "two", ""} {
				message, err := godbus.DecodeMessage(f)
				if err != nil {
					t.Fatalf("%s: message %d: %v", name, i, err)
				}
				if message.Body[0] != want {
					t.Errorf("%s: message %d holds %v, want %v", name, i, message.Body, want)
				}
			}
			if _, err := godbus.DecodeMessage(f); !errors.Is(err, io.EOF) {
				t.Errorf("%s: in the end: %v, want %v", name, err, io.EOF)
			}
		}
	}
}

// What is cut off or too long is an error, not a hang or an allocation.
func TestFewerSignalsOfABrokenPeer(t *testing.T) {
	t.Parallel()
	whole := encoded(t, binary.LittleEndian, signal("UnitNew", "docker.service"))
	answer := encoded(t, binary.LittleEndian, reply("one"))
	long := bytes.Clone(answer)
	binary.LittleEndian.PutUint32(long[4:], 1<<31)
	for name, said := range map[string][]byte{"head": whole[:9], "fields": whole[:20], "signal": whole[:len(whole)-1], "reply": answer[:len(answer)-1], "long": long} {
		f := &fewerSignals{ReadWriteCloser: wire{bytes.NewReader(said)}}
		_, _ = f.Write([]byte("BEGIN\r\n")) // cannot fail
		if _, err := io.ReadAll(f); err == nil {
			t.Errorf("%s: read to the end without an error", name)
		}
	}
}
