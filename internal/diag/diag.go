// SPDX-License-Identifier: Apache-2.0

// Package diag packs what is known about a machine into one tar.gz of bounded size:
// part by part, each with a deadline and a limit of its own, so that neither a tool that
// hangs nor a log without end keeps the rest from coming.
package diag

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime/debug"
	"strings"
	"time"
)

const (
	// MaxBytes is the most text an archive holds. The archive itself is below 20 MB even
	// where nothing of it can be compressed.
	MaxBytes = 17 << 20

	defaultLimit   = 1 << 20
	defaultTimeout = 10 * time.Second
	// grace is how long a part may take to end once its time is up.
	grace = 2 * time.Second
)

// Part is one file of the archive.
type Part struct {
	Name    string        // in the archive, with slashes
	What    string        // what it is, in a few words
	Limit   int           // most bytes; the newest, which come last, are kept; 0 is 1 MiB
	Timeout time.Duration // 0 is 10 s
	// Collect writes the text. What it has written counts also when it fails. It is left
	// behind when it does not heed ctx.
	Collect func(ctx context.Context, w io.Writer) error
}

// Options of Write.
type Options struct {
	Folder   string    // that all files are in
	Head     string    // first lines of the manifest
	Made     time.Time // now
	Timeout  time.Duration
	Redact   func(io.Writer) io.WriteCloser // strikes secrets out of all that is written
	Progress func(number int, name string)  // called before each part
}

// Summary is what an archive holds.
type Summary struct {
	Files, LeftOut int
}

// Write collects the parts, one after the other, and writes the archive to out, last of
// all its index, manifest.txt. A part that fails or hangs is a line there. Parts that come
// when Options.Timeout or MaxBytes is used up are left out, so the most important come
// first. The error is that of out, or of ctx.
func Write(ctx context.Context, out io.Writer, parts []Part, o Options) (Summary, error) {
	zip := gzip.NewWriter(out)
	a := &archive{options: o, tar: tar.NewWriter(zip), room: MaxBytes, names: map[string]bool{}}
	fmt.Fprintf(&a.manifest, "%s\nMade %s. Secrets are struck out. Of what is too long the newest lines are kept.\n\n", o.Head, o.Made.UTC().Format(time.RFC3339))
	within, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("%s for all parts together are over", o.Timeout))
	defer cancel()
	for i, part := range parts {
		o.Progress(i+1, part.Name)
		if err := a.part(within, part); err != nil {
			return Summary{}, err
		}
		if ctx.Err() != nil {
			return Summary{}, context.Cause(ctx)
		}
	}
	var manifest bytes.Buffer
	w := o.Redact(&manifest)
	_, err := w.Write(a.manifest.Bytes())
	if err := errors.Join(err, w.Close(), a.add("manifest.txt", manifest.Bytes()), a.tar.Close(), zip.Close()); err != nil {
		return Summary{}, err
	}
	return a.summary, nil
}

type archive struct {
	options  Options
	tar      *tar.Writer
	room     int // bytes that may still come
	names    map[string]bool
	manifest bytes.Buffer
	summary  Summary
}

// part adds one part. Only the archive's own failures are errors.
func (a *archive) part(ctx context.Context, part Part) error {
	limit := min(cmp.Or(part.Limit, defaultLimit), a.room)
	err := context.Cause(ctx)
	var text []byte
	var dropped int64
	switch {
	case err != nil:
	case limit < 4<<10:
		err = fmt.Errorf("the archive is full: %d MiB", MaxBytes>>20)
	default:
		text, dropped, err = part.collect(ctx, limit, a.options.Redact)
	}
	name := a.unique(part.Name)
	if len(text) == 0 {
		reason := "it is empty"
		if errors.Is(err, fs.ErrNotExist) {
			reason = "not on this machine"
		} else if err != nil {
			reason = oneLine(err)
		}
		a.summary.LeftOut++
		fmt.Fprintf(&a.manifest, "%-44s  LEFT OUT: %s (%s)\n", name, reason, part.What)
		return nil
	}
	fmt.Fprintf(&a.manifest, "%-44s  %s, %d bytes", name, part.What, len(text))
	if dropped > 0 {
		note := fmt.Sprintf("[%d bytes before this were left out]\n", dropped)
		text = append([]byte(note), text...)
		fmt.Fprintf(&a.manifest, "; CUT: %d bytes before these were left out", dropped)
	}
	if err != nil {
		fmt.Fprintf(&a.manifest, "; NOT WHOLE: %s", oneLine(err))
	}
	a.manifest.WriteByte('\n')
	a.summary.Files++
	return a.add(name, text)
}

func (a *archive) add(name string, text []byte) error {
	a.room -= len(text) + 1024
	header := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(a.options.Folder, name), Mode: 0o600, Size: int64(len(text)), ModTime: a.options.Made, Format: tar.FormatPAX}
	if err := a.tar.WriteHeader(header); err != nil {
		return err
	}
	_, err := a.tar.Write(text)
	return err
}

// unique returns a name that leads nowhere else and is not there yet.
func (a *archive) unique(name string) string {
	name = strings.Map(func(c rune) rune {
		if c <= ' ' || c == 0x7f || c == '\\' || c > 0x7e {
			return '_'
		}
		return c
	}, strings.TrimPrefix(path.Join("/", name), "/"))
	name = name[:min(len(name), 200)]
	free := name
	for n := 2; a.names[free]; n++ {
		free = fmt.Sprintf("%s.%d", name, n)
	}
	a.names[free] = true
	return free
}

func oneLine(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	return text[:min(len(text), 300)]
}

// collect runs a part for as long as it may. A panic is an error of the part.
func (p Part) collect(ctx context.Context, limit int, redact func(io.Writer) io.WriteCloser) (text []byte, dropped int64, err error) {
	timeout := cmp.Or(p.Timeout, defaultTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it did not end within %s", timeout))
	defer cancel()
	kept := &tail{limit: limit}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if panicked := recover(); panicked != nil {
				done <- fmt.Errorf("panic: %v: %s", panicked, debug.Stack())
			}
		}()
		w := redact(kept)
		err := p.Collect(ctx, w)
		done <- errors.Join(err, w.Close())
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-time.After(grace):
			err = context.Cause(ctx)
		}
	}
	text, dropped = kept.take()
	return text, dropped, err
}
