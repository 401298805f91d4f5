// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// fewerSignals is a connection to systemd's own socket without the signals that nobody
// here waits for. Systemd sends there whatever happens in a boot, asked for or not, and
// to make sense of it all took most of the CPU time that nodeagent needs on a router.
type fewerSignals struct {
	io.ReadWriteCloser
	messages *bufio.Reader // nil until authentication is over
	rest     []byte        // of the message that is being read
}

// The frame of a message (D-Bus specification, Message Format).
const (
	messageHead    = 16        // up to the length of the header's fields
	messageSignal  = 4         // a type of message
	maxMessage     = 128 << 20 // by the specification
	signalOfJobs   = "JobRemoved"
	messagesBuffer = 64 << 10
)

// Write notices the end of authentication, after which both sides send messages.
func (f *fewerSignals) Write(p []byte) (int, error) {
	if f.messages == nil && bytes.HasPrefix(p, []byte("BEGIN")) {
		f.messages = bufio.NewReaderSize(f.ReadWriteCloser, messagesBuffer)
	}
	return f.ReadWriteCloser.Write(p)
}

// Read passes on what is not left out.
func (f *fewerSignals) Read(p []byte) (int, error) {
	if f.messages == nil {
		return f.ReadWriteCloser.Read(p)
	}
	for len(f.rest) == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// next reads a message into rest, unless it is left out.
func (f *fewerSignals) next() error {
	var head [messageHead]byte
	if _, err := io.ReadFull(f.messages, head[:]); err != nil {
		return err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[0] == 'B' {
		order = binary.BigEndian
	}
	body, fields := int64(order.Uint32(head[4:])), int64(order.Uint32(head[12:]))
	fields = (fields + 7) &^ 7 // padded
	if messageHead+fields+body > maxMessage {
		return fmt.Errorf("cannot read a D-Bus message of %d bytes: longer than any may be", messageHead+fields+body)
	}
	message := make([]byte, messageHead+fields, messageHead+fields+body)
	copy(message, head[:])
	if _, err := io.ReadFull(f.messages, message[messageHead:]); err != nil {
		return noEOF(err)
	}
	if head[1] == messageSignal && !bytes.Contains(message, []byte(signalOfJobs)) {
		_, err := io.CopyN(io.Discard, f.messages, body)
		return noEOF(err)
	}
	message = message[:cap(message)]
	if _, err := io.ReadFull(f.messages, message[messageHead+fields:]); err != nil {
		return noEOF(err)
	}
	f.rest = message
	return nil
}

// noEOF is the error of a message that ends too early.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
