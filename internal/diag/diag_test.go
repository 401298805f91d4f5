// SPDX-License-Identifier: Apache-2.0

package diag_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"nodeagent/internal/diag"
	"nodeagent/internal/redact"
)

func options() diag.Options {
	return diag.Options{Folder: "node", Head: "test", Made: time.Unix(1_800_000_000, 0), Timeout: time.Minute,
		Redact: redact.New([]string{"hunter22"}).Writer, Progress: func(int, string) {}}
}

func writes(name, text string) diag.Part {
	return diag.Part{Name: name, What: "what " + name + " is", Collect: func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}}
}

// unpack returns what an archive holds, by name.
func unpack(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for reader := tar.NewReader(zip); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(reader)
		if err != nil || header.Mode != 0o600 {
			t.Fatalf("%s: mode %o, %v", header.Name, header.Mode, err)
		}
		files[header.Name] = string(text)
	}
}

// A tool that hangs, that panics, that fails half way, or is not there costs one line.
func TestOnePartDoesNotSpoilTheRest(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	defer close(hang)
	var out bytes.Buffer
	parts := []diag.Part{
		{Name: "hangs", What: "df", Timeout: time.Millisecond, Collect: func(context.Context, io.Writer) error { <-hang; return nil }},
		{Name: "panics", Collect: func(context.Context, io.Writer) error { panic("password=hunter22") }},
		{Name: "half", Collect: func(_ context.Context, w io.Writer) error {
			fmt.Fprintln(w, "half of it")
			return errors.New("killed with hunter22")
		}},
		{Name: "missing", Collect: func(context.Context, io.Writer) error { return fs.ErrNotExist }},
		writes("../../etc/passwd \n", "harmless"), writes("etc/passwd__", "twice"),
		writes("empty", ""),
		writes("last", "the last\n"),
	}
	summary, err := diag.Write(t.Context(), &out, parts, options())
	if err != nil || summary.Files != 4 || summary.LeftOut != 4 {
		t.Fatalf("%+v, %v", summary, err)
	}
	files := unpack(t, out.Bytes())
	if files["node/last"] != "the last\n" || files["node/half"] != "half of it\n" || files["node/etc/passwd__"] != "harmless" || files["node/etc/passwd__.2"] != "twice" {
		t.Errorf("files %q", files)
	}
	manifest := files["node/manifest.txt"]
	for _, want := range []string{"LEFT OUT: it did not end within 1ms (df)", "NOT WHOLE: killed with [redacted]", "LEFT OUT: panic", "LEFT OUT: not on this machine", "LEFT OUT: it is empty", "what last is, 9 bytes"} {
		if !strings.Contains(manifest, want) {
			t.Errorf("the manifest does not say %q:\n%s", want, manifest)
		}
	}
	if strings.Contains(manifest, "hunter22") {
		t.Errorf("the manifest holds a secret:\n%s", manifest)
	}
}

// Whatever the node holds, the archive is below 20 MB, and of each part it has the end.
func TestBounded(t *testing.T) {
	t.Parallel()
	// Text that cannot be compressed.
	block := make([]byte, 256<<10)
	rand.NewChaCha8([32]byte{1}).Read(block)
	for i := range block {
		if block[i] |= 0x80; i%1000 == 999 {
			block[i] = '\n'
		}
	}
	endless := func(_ context.Context, w io.Writer) error {
		for range 5 {
			if _, err := w.Write(block); err != nil {
				return err
			}
		}
		_, err := io.WriteString(w, "\nthe newest line\n")
		return err
	}
	parts := []diag.Part{{Name: "small", Limit: 8 << 10, Collect: endless}}
	for i := range 19 {
		parts = append(parts, diag.Part{Name: fmt.Sprint("part", i), Collect: endless})
	}
	var out bytes.Buffer
	summary, err := diag.Write(t.Context(), &out, parts, options())
	if err != nil || out.Len() > 20_000_000 || out.Len() < 10_000_000 {
		t.Fatalf("%d bytes, %+v, %v", out.Len(), summary, err)
	}
	files := unpack(t, out.Bytes())
	small := files["node/small"]
	first, _, _ := strings.Cut(small, "\n")
	if len(small) > 9<<10 || !strings.HasSuffix(small, "\nthe newest line\n") || !strings.Contains(first, "bytes before this were left out") {
		t.Errorf("%d bytes, begins with %q", len(small), first)
	}
	if manifest := files["node/manifest.txt"]; !strings.Contains(manifest, "LEFT OUT: the archive is full") || !strings.Contains(manifest, "CUT: ") || summary.LeftOut == 0 {
		t.Errorf("%+v\n%s", summary, manifest)
	}
}

type fullDisk struct{ room int }

func (f *fullDisk) Write(p []byte) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, syscall.ENOSPC
	}
	return len(p), nil
}

// A full disk and an end from outside end it; time that is up does not.
func TestEnds(t *testing.T) {
	t.Parallel()
	for room := range 3 {
		if _, err := diag.Write(t.Context(), &fullDisk{room * 100}, []diag.Part{writes("a", "text")}, options()); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("on a disk with %d bytes: %v", room*100, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	stops := diag.Part{Name: "stops", Collect: func(context.Context, io.Writer) error { cancel(); return nil }}
	if _, err := diag.Write(ctx, io.Discard, []diag.Part{stops, writes("a", "text")}, options()); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	o := options()
	o.Timeout = 0
	var out bytes.Buffer
	if _, err := diag.Write(t.Context(), &out, []diag.Part{writes("a", "text")}, o); err != nil || !strings.Contains(unpack(t, out.Bytes())["node/manifest.txt"], "for all parts together are over") {
		t.Errorf("no time: %v", err)
	}
}
