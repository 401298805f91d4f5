// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestWriteFileIsIdempotentAndSetsTheMode(t *testing.T) {
	t.Parallel()
	h := &Host{Root: t.TempDir()}
	for i, want := range []bool{true, false} {
		changed, err := h.WriteFile("/etc/a/b.conf", []byte("x"), 0o600)
		if err != nil || changed != want {
			t.Fatalf("write %d: changed %v, %v; want %v", i, changed, err, want)
		}
	}
	if changed, err := h.WriteFile("/etc/a/b.conf", []byte("x"), 0o644); err != nil || !changed {
		t.Errorf("another mode: changed %v, %v; want true", changed, err)
	}
	if err := os.Symlink("/dev/null", h.Path("/etc/a/link")); err != nil {
		t.Fatal(err)
	}
	if changed, err := h.WriteFile("/etc/a/link", nil, 0o644); err != nil || !changed {
		t.Errorf("a link in the file's place: changed %v, %v; want true", changed, err)
	}
	entries, err := os.ReadDir(h.Path("/etc/a"))
	if err != nil || len(entries) != 2 {
		t.Errorf("folder holds %v (%v), want the two files and no temporary one", entries, err)
	}
}

func TestReadFileIsBounded(t *testing.T) {
	t.Parallel()
	h := &Host{Root: t.TempDir()}
	if err := os.WriteFile(h.Path("big"), make([]byte, MaxFile+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ReadFile("big"); err == nil {
		t.Error("a file over MaxFile was read")
	}
}

func TestExecKeepsTheTailAndFixesTheEnvironment(t *testing.T) {
	t.Parallel()
	var lines []string
	out, err := Exec{}.Run(context.Background(), Command{Path: "/usr/bin/env", Env: []string{"X=1"},
		Line: func(line string) { lines = append(lines, line) }})
	if err != nil {
		t.Fatal(err)
	}
	if want := "PATH=" + Path; !strings.Contains(string(out), want) || !strings.Contains(string(out), "X=1\n") {
		t.Errorf("environment is %q, want %s and X=1", out, want)
	}
	if len(lines) != 4 {
		t.Errorf("saw lines %q, want 4", lines)
	}

	_, err = Exec{}.Run(context.Background(), Command{Path: "/bin/ls", Args: []string{"/does-not-exist"}})
	var failed *CommandError
	if !errors.As(err, &failed) || failed.ExitCode != 2 || len(failed.Tail) != 1 {
		t.Errorf("error = %#v, want exit code 2 with one line", err)
	}
}

func TestExecKillsTheWholeGroupAtTheDeadline(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := Exec{}.Run(ctx, Command{Path: "/usr/bin/nice", Args: []string{"/bin/sleep", "600"}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v, want the deadline", err)
	}
}

// A program that somebody still has open for writing, as a child does that was forked
// while it was written, runs once that is over.
func TestExecWaitsForABusyProgram(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "program")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString("#!/bin/sh\necho ran\n"); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(path).Run(); !errors.Is(err, syscall.ETXTBSY) {
		t.Skipf("this kernel runs a program that is being written: %v", err)
	}
	time.AfterFunc(5*busyPause, func() { file.Close() })
	if out, err := (Exec{}).Run(t.Context(), Command{Path: path}); err != nil || string(out) != "ran\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// A secret in a line that is too long stays in one piece, so that it can be found.
func TestLongLinesAreCutBetweenWords(t *testing.T) {
	t.Parallel()
	const token = "abcdef.0123456789abcdef"
	for before := lineLength - len(token) - 2; before <= lineLength+2; before++ {
		w := &lineWriter{}
		w.Write([]byte(strings.Repeat("x", 9) + strings.Repeat(" ", before-9) + `"` + token + `"}`))
		w.flush()
		if !slices.ContainsFunc(w.tail, func(line string) bool { return strings.Contains(line, token) }) {
			t.Fatalf("after %d bytes the token is in two lines", before)
		}
	}
}

func TestLinesAreBounded(t *testing.T) {
	t.Parallel()
	w := &lineWriter{}
	w.Write(bytes.Repeat([]byte("x"), 10*lineLength))
	w.flush()
	for _, line := range w.tail {
		if len(line) > lineLength {
			t.Fatalf("a line of %d bytes was kept", len(line))
		}
	}
}

// C3, S2: the host's write is seen when it is closed, not while it goes on.
func TestWatchFileSeesClosedWritesOnly(t *testing.T) {
	t.Parallel()
	h := &Host{Root: t.TempDir()}
	watch, err := h.WatchFile("/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	file, err := os.Create(h.Path("/cmdline"))
	if err != nil {
		t.Fatal(err)
	}
	file.WriteString("type=rou")
	other, err := os.Create(filepath.Join(h.Root, "other"))
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	select {
	case <-watch.Written:
		t.Error("an unfinished write, or one of another file, was reported")
	case <-time.After(50 * time.Millisecond):
	}
	file.Close()
	select {
	case <-watch.Written:
	case <-time.After(10 * time.Second):
		t.Error("the closed write was not reported")
	}
}

func TestIsBlockEvent(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]bool{
		"change@/devices/x/block/sr0\x00ACTION=change\x00SUBSYSTEM=block\x00DISK_MEDIA_CHANGE=1\x00": true,
		"add@/devices/x/block/vdb\x00SUBSYSTEM=block":                                                true,
		"remove@/devices/x/block/vdb\x00SUBSYSTEM=block":                                             false,
		"add@/devices/x/net/eth0\x00SUBSYSTEM=net":                                                   false,
		"libudev\x00\xfe\xed\xca\xfe":                                                                false,
		"":                                                                                           false,
	} {
		if got := isBlockEvent([]byte(message)); got != want {
			t.Errorf("isBlockEvent(%q) = %v, want %v", message, got, want)
		}
	}
}

// Stdout gets all that a program prints, also what is more than Run keeps, and nothing
// of its errors.
func TestStdoutIsWhole(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	const size = 5 << 20
	if _, err := (Exec{}).Run(t.Context(), Command{Path: "/usr/bin/head", Args: []string{"-c", strconv.Itoa(size), "/dev/zero"}, Stdout: &out}); err != nil || out.Len() != size {
		t.Errorf("%d bytes, %v; want %d", out.Len(), err, size)
	}
	out.Reset()
	if _, err := (Exec{}).Run(t.Context(), Command{Path: "/usr/bin/head", Args: []string{"/does/not/exist"}, Stdout: &out}); err == nil || out.Len() != 0 {
		t.Errorf("a failure: %q, %v", out.String(), err)
	}
}
