// SPDX-License-Identifier: Apache-2.0

package diag

import (
	"bytes"
	"errors"
	"sync"
)

// tail keeps the last bytes that were written to it, in whole lines, in memory of twice
// as many. It may be taken from while somebody still writes.
type tail struct {
	limit int

	mu      sync.Mutex
	text    []byte
	dropped int64
	closed  bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return 0, errors.New("nobody waits for it any more")
	}
	t.text = append(t.text, p...)
	if len(t.text) > 2*t.limit {
		t.cut()
	}
	return len(p), nil
}

// cut keeps limit bytes.
func (t *tail) cut() {
	over := len(t.text) - t.limit
	if over <= 0 {
		return
	}
	t.dropped += int64(over)
	t.text = append(t.text[:0], t.text[over:]...)
}

// take returns the whole lines among the last bytes, and how many bytes were before.
func (t *tail) take() (text []byte, dropped int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.cut()
	text = t.text
	if t.dropped > 0 {
		at := bytes.IndexByte(text, '\n') + 1
		text, t.dropped = text[at:], t.dropped+int64(at)
	}
	return text, t.dropped
}
