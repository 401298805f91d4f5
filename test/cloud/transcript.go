// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Transcript keeps what a process wrote and lets others wait for a piece of it.
// The zero value is ready for use.
type Transcript struct {
	mu     sync.Mutex
	text   []byte
	copy   io.Writer     // also gets every byte, when not nil
	change chan struct{} // closed at the next write, when not nil
}

// Write appends; it fails only when the copy cannot be written.
func (t *Transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if t.change != nil {
		close(t.change)
		t.change = nil
	}
	if t.copy != nil {
		return t.copy.Write(p)
	}
	return len(p), nil
}

// String is all that was written so far.
func (t *Transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// Len is the number of bytes written so far: a place to Wait from.
func (t *Transcript) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.text)
}

// Wait blocks until piece stands somewhere after the first from bytes. When ctx
// ends first, the error shows the last lines written.
func (t *Transcript) Wait(ctx context.Context, from int, piece string) error {
	for {
		t.mu.Lock()
		found := strings.Contains(string(t.text[min(from, len(t.text)):]), piece)
		if t.change == nil {
			t.change = make(chan struct{})
		}
		change := t.change
		t.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return fmt.Errorf("cannot find %q: %w; last lines:\n%s", piece, context.Cause(ctx), t.tail(15))
		}
	}
}

func (t *Transcript) tail(lines int) string {
	all := strings.Split(strings.TrimRight(t.String(), "\r\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
