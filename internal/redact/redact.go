// SPDX-License-Identifier: Apache-2.0

// Package redact strikes secrets out of text that is to leave the machine: those that
// are known, in every form they are written in, and all that looks like one. It errs on
// the side of striking too much. It works on a stream, line by line, in bounded memory.
package redact

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"nodeagent/internal/secret"
)

// maxLine is the most bytes of a line that are looked at and kept; the rest is left out.
const maxLine = 64 << 10

// Rules are what is struck out. They may be used by several goroutines at once.
type Rules struct {
	forms   map[[shortest]byte][]form // by their first bytes, the longest first
	longest int
}

// New returns rules that know these secrets besides those that are known by their
// form. Of a secret of
// several lines each line is one; lines of less than 4 bytes, or of more than 4096, are
// not looked for.
func New(secrets []string) *Rules {
	r := &Rules{forms: map[[shortest]byte][]form{}}
	for _, known := range secrets {
		for line := range strings.Lines(known) {
			r.learn(strings.TrimSpace(line))
		}
	}
	for _, forms := range r.forms {
		slices.SortFunc(forms, func(a, b form) int { return len(b.text) - len(a.text) })
	}
	return r
}

// String strikes the secrets out of a text.
func (r *Rules) String(text string) string {
	var out strings.Builder
	w := r.Writer(&out)
	// A strings.Builder takes everything.
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return out.String()
}

// Writer returns what passes on to w all that is written to it, without the secrets.
// The last line comes with Close, which does not close w. How the text is cut into
// writes makes no difference.
func (r *Rules) Writer(w io.Writer) io.WriteCloser { return &writer{out: w, reader: reader{rules: r}} }

type writer struct {
	out     io.Writer
	reader  reader
	line    []byte
	skipped int // bytes of the line that were left out
	err     error
}

func (w *writer) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0 && w.err == nil; {
		at := bytes.IndexByte(rest, '\n')
		piece := rest
		if at >= 0 {
			piece = rest[:at]
		}
		room := min(len(piece), maxLine-len(w.line))
		w.line = append(w.line, piece[:room]...)
		w.skipped += len(piece) - room
		if at < 0 {
			break
		}
		w.endLine("\n")
		rest = rest[at+1:]
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

func (w *writer) Close() error {
	if w.err == nil && (len(w.line) > 0 || w.skipped > 0) {
		w.endLine("")
	}
	return w.err
}

func (w *writer) endLine(end string) {
	line, note := string(w.line), ""
	if w.skipped > 0 {
		// What was cut in two would not be known by its first half.
		whole := max(len(line)-w.reader.rules.longest, 0)
		whole = strings.LastIndexAny(line[:whole], " \t,;\"'") + 1
		note = fmt.Sprintf("[%d bytes of this line left out]", w.skipped+len(line)-whole)
		line = line[:whole]
	}
	w.line, w.skipped = w.line[:0], 0
	_, w.err = io.WriteString(w.out, w.reader.strike(line)+note+end)
}

// span is a piece of a line.
type span struct{ from, to int }

// reader reads lines one after the other and knows what they are in the middle of.
type reader struct {
	rules *Rules

	pem     int                // how many lines of a private key may still come
	encoded bool               // the line before ended with base64
	block   int                // the column of a secret key whose value goes on in deeper lines, plus one
	data    int                // the column of the key data, plus one
	env     int                // the column of the secret name of a pod's variable, plus one
	hex     int                // how many lines may still have a certificate key
	open    int                // how many brackets of a secret list are open
	left    int                // how many lines that list may still have
	found   func(value string) // told the values of secret keys, or nil
}

// strike returns a line, without its end, without secrets.
func (r *reader) strike(line string) string {
	spans := r.rules.known(line)
	spans = append(spans, r.privateKey(line)...)
	spans = append(spans, r.yaml(line)...)
	spans = append(spans, r.base64(line)...)
	spans = append(spans, r.list(line)...)
	spans = append(spans, r.keyed(line)...)
	spans = append(spans, r.variables(line)...)
	spans = append(spans, r.psk(line)...)
	spans = append(spans, r.certificateKey(line)...)
	return cutOut(line, append(spans, byForm(line)...))
}

// cutOut replaces spans of a line, which may overlap.
func cutOut(line string, spans []span) string {
	if len(spans) == 0 {
		return line
	}
	slices.SortFunc(spans, func(a, b span) int { return a.from - b.from })
	var out strings.Builder
	end := 0
	for _, s := range spans {
		if s.to <= end {
			continue
		}
		if s.from >= end {
			out.WriteString(line[end:s.from])
			out.WriteString(secret.Redacted)
		}
		end = s.to
	}
	out.WriteString(line[end:])
	return out.String()
}
