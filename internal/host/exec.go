// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Path is the search path programs are started with; nodeagent does not trust
// its own environment (pain-point C16).
const Path = "/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Command is a program to run: an argument array, never a shell line. Secrets
// have no place in Args: every user of the machine can read them.
type Command struct {
	Path  string   // absolute
	Args  []string // without the program's name
	Env   []string // KEY=value, in addition to PATH, HOME and LC_ALL
	Stdin io.Reader
	// Stdout gets all of the standard output as it comes, which Run keeps only in part.
	Stdout io.Writer
	// Line is called with every line of output (both streams) as it comes, from
	// one goroutine at a time.
	Line func(line string)
}

func (c Command) String() string {
	return strings.Join(append([]string{c.Path}, c.Args...), " ")
}

// CommandError is a program that could not be started or did not end with 0.
type CommandError struct {
	Command  string   // program and arguments
	ExitCode int      // -1 when it did not start or was killed
	Tail     []string // last lines of its output, both streams
	Err      error
}

func (e *CommandError) Error() string {
	if last := lastLine(e.Tail); last != "" {
		return fmt.Sprintf("%s: %v: %s", e.Command, e.Err, last)
	}
	return fmt.Sprintf("%s: %v", e.Command, e.Err)
}

func (e *CommandError) Unwrap() error { return e.Err }

func lastLine(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

const (
	keepLines  = 40
	keepOutput = 4 << 20 // bytes of standard output kept
	lineLength = 4 << 10
)

// Exec runs programs of this machine.
type Exec struct{}

// Run implements Commander.
func (Exec) Run(ctx context.Context, command Command) ([]byte, error) {
	out, lines, err := run(ctx, command)
	// A program that has just been written is busy while a child that was forked before
	// it was closed has not come to its own exec. It has not started then.
	for pause := busyPause; errors.Is(err, syscall.ETXTBSY) && pause <= lastBusyPause; pause *= 2 {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		out, lines, err = run(ctx, command)
	}
	if err == nil {
		return out, nil
	}
	failed := &CommandError{Command: command.String(), ExitCode: -1, Tail: lines, Err: err}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		failed.ExitCode = exit.ExitCode()
	}
	if ctx.Err() != nil {
		failed.Err = fmt.Errorf("%w (%v)", context.Cause(ctx), err)
	}
	return out, Explain(failed, taken(command.Path)...)
}

// Pauses before a program that is busy is tried again: doubled each time, four seconds
// in all.
const (
	busyPause     = 10 * time.Millisecond
	lastBusyPause = 2 * time.Second
)

// run runs a program once; tail is the end of what it wrote.
func run(ctx context.Context, command Command) (out []byte, tail []string, err error) {
	var kept bytes.Buffer
	lines := &lineWriter{each: command.Line}

	cmd := exec.CommandContext(ctx, command.Path, command.Args...)
	cmd.Env = append([]string{"PATH=" + Path, "HOME=/root", "LC_ALL=C.UTF-8"}, command.Env...)
	cmd.Dir = "/"
	cmd.Stdin = command.Stdin
	cmd.Stdout = io.MultiWriter(&limitedBuffer{&kept}, lines)
	if command.Stdout != nil {
		cmd.Stdout = io.MultiWriter(command.Stdout, lines)
	}
	cmd.Stderr = lines
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second

	err = cmd.Run()
	lines.flush()
	return kept.Bytes(), lines.tail, err
}

type limitedBuffer struct{ *bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := keepOutput - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// lineWriter cuts both streams into lines; a mutex orders them.
type lineWriter struct {
	mu      sync.Mutex
	partial []byte
	tail    []string
	each    func(string)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range p {
		switch {
		case b == '\n':
			w.endLine(len(w.partial))
		case len(w.partial) >= lineLength:
			w.endLine(wordEnd(w.partial))
		}
		if b != '\n' {
			w.partial = append(w.partial, b)
		}
	}
	return len(p), nil
}

func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLine(len(w.partial))
}

// wordEnd returns where a line that is too long is cut: not inside of a word, which
// may be a secret that nobody would know by its halves.
func wordEnd(line []byte) int {
	const word = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_.-"
	end := len(bytes.TrimRight(line, word))
	if end == 0 {
		return len(line)
	}
	return end
}

// endLine ends a line after the first n bytes of what has come.
func (w *lineWriter) endLine(n int) {
	line := strings.TrimRight(strings.ToValidUTF8(string(w.partial[:n]), "?"), "\r ")
	w.partial = append(w.partial[:0], w.partial[n:]...)
	if line == "" {
		return
	}
	w.tail = append(w.tail, line)
	if len(w.tail) > keepLines {
		w.tail = w.tail[1:]
	}
	if w.each != nil {
		w.each(line)
	}
}
