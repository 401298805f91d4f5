// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// syncID is what the host's patch.sh sends and wants to see again.
	syncID = 1234567890
	// bootArgsFile is where CloudStack's KVM host writes them (contract 1.1).
	bootArgsFile = "/var/cache/cloud/cmdline"

	hostPoll      = 100 * time.Millisecond // patch.sh's own pace
	answerTimeout = 5 * time.Second        // libvirt's patience with the agent
	execPoll      = 100 * time.Millisecond // the protocol has no event for it
	fileChunk     = 256 << 10
)

// Agent talks to the QEMU guest agent over the machine's serial port
// (https://www.qemu.org/docs/master/interop/qemu-ga-ref.html). A machine
// without a running agent answers nothing: every method blocks until its
// context ends. Calls are made one after the other.
type Agent struct {
	path string

	mu     sync.Mutex
	conn   net.Conn
	reader *bufio.Reader
	id     int64
}

// NewAgent is a client of the agent behind that unix socket; it connects with
// the first call, and anew after every failed one.
func NewAgent(path string) *Agent { return &Agent{path: path} }

// ExecResult is the end of a program run by Exec.
type ExecResult struct {
	Stdout, Stderr []byte
	// ExitCode is -1 when a signal ended the program.
	ExitCode int
	Signal   int
}

// AgentError is a refusal by the agent itself, as opposed to no answer.
type AgentError struct {
	Command, Class, Desc string
}

func (e *AgentError) Error() string {
	return fmt.Sprintf("cannot execute %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// Ping returns when the agent has answered.
func (a *Agent) Ping(ctx context.Context) error { return a.call(ctx, "guest-ping", nil, nil) }

// Sync is the host script's guest-sync; it fails when the agent sends back
// another number.
func (a *Agent) Sync(ctx context.Context) error {
	var echo int64
	if err := a.call(ctx, "guest-sync", map[string]any{"id": syncID}, &echo); err != nil {
		return err
	}
	if echo != syncID {
		return fmt.Errorf("cannot sync with guest agent: it sent %d, not %d", echo, syncID)
	}
	return nil
}

// FileWrite writes a file as the host does: open w+, write, close. The file is
// empty for a moment, and is not put on the disk.
func (a *Agent) FileWrite(ctx context.Context, path string, content []byte) error {
	return a.withFile(ctx, path, "w+", func(handle int64) error {
		for len(content) > 0 {
			var written struct {
				Count int `json:"count"`
			}
			chunk := content[:min(len(content), fileChunk)]
			arguments := map[string]any{"handle": handle, "buf-b64": chunk}
			if err := a.call(ctx, "guest-file-write", arguments, &written); err != nil {
				return err
			}
			if written.Count <= 0 || written.Count > len(chunk) {
				return fmt.Errorf("cannot write %s: agent wrote %d of %d bytes", path, written.Count, len(chunk))
			}
			content = content[written.Count:]
		}
		return nil
	})
}

// FileRead reads a whole file.
func (a *Agent) FileRead(ctx context.Context, path string) ([]byte, error) {
	var content []byte
	err := a.withFile(ctx, path, "r", func(handle int64) error {
		for {
			var read struct {
				Bytes []byte `json:"buf-b64"`
				EOF   bool   `json:"eof"`
			}
			arguments := map[string]any{"handle": handle, "count": fileChunk}
			if err := a.call(ctx, "guest-file-read", arguments, &read); err != nil {
				return err
			}
			content = append(content, read.Bytes...)
			if read.EOF || len(read.Bytes) == 0 {
				return nil
			}
		}
	})
	return content, err
}

func (a *Agent) withFile(ctx context.Context, path, mode string, use func(handle int64) error) error {
	var handle int64
	if err := a.call(ctx, "guest-file-open", map[string]any{"path": path, "mode": mode}, &handle); err != nil {
		return fmt.Errorf("cannot open %s: %w", path, err)
	}
	return errors.Join(use(handle), a.call(ctx, "guest-file-close", map[string]any{"handle": handle}, nil))
}

// Exec runs a program of the machine, without a shell, and returns when it
// ended. A non-zero exit code is no error.
func (a *Agent) Exec(ctx context.Context, path string, args ...string) (ExecResult, error) {
	pid, err := a.launch(ctx, path, args, true)
	if err != nil {
		return ExecResult{}, err
	}
	for {
		var status struct {
			Exited   bool   `json:"exited"`
			ExitCode *int   `json:"exitcode"`
			Signal   int    `json:"signal"`
			Out      []byte `json:"out-data"`
			Err      []byte `json:"err-data"`
		}
		if err := a.call(ctx, "guest-exec-status", map[string]any{"pid": pid}, &status); err != nil {
			return ExecResult{}, err
		}
		if status.Exited {
			result := ExecResult{Stdout: status.Out, Stderr: status.Err, ExitCode: -1, Signal: status.Signal}
			if status.ExitCode != nil {
				result.ExitCode = *status.ExitCode
			}
			return result, nil
		}
		if !pause(ctx, execPoll) {
			return ExecResult{}, fmt.Errorf("cannot wait for %s: %w", path, context.Cause(ctx))
		}
	}
}

func (a *Agent) launch(ctx context.Context, path string, args []string, capture bool) (int64, error) {
	if args == nil {
		args = []string{}
	}
	var started struct {
		PID int64 `json:"pid"`
	}
	arguments := map[string]any{"path": path, "arg": args, "capture-output": capture}
	if err := a.call(ctx, "guest-exec", arguments, &started); err != nil {
		return 0, fmt.Errorf("cannot start %s: %w", path, err)
	}
	return started.PID, nil
}

// DeliverBootArgs does what the KVM host's patch.sh does (contract 1.1, 1.2):
// every 100 ms a ping and a sync until the agent answers or ctx ends, then the
// boot args and a newline into /var/cache/cloud/cmdline.
func (a *Agent) DeliverBootArgs(ctx context.Context, args string) error {
	greet := func() error {
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		if err := a.Ping(ctx); err != nil {
			return err
		}
		return a.Sync(ctx)
	}
	for err := greet(); err != nil; err = greet() {
		if !pause(ctx, hostPoll) {
			return fmt.Errorf("cannot deliver boot args: guest agent does not answer: %w", err)
		}
	}
	if err := a.FileWrite(ctx, bootArgsFile, []byte(args+"\n")); err != nil {
		return fmt.Errorf("cannot deliver boot args: %w", err)
	}
	return nil
}

// call sends one command and decodes what it returns into result, unless nil.
func (a *Agent) call(ctx context.Context, command string, arguments, result any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer, err := a.exchange(ctx, command, arguments)
	if refused := (*AgentError)(nil); errors.As(err, &refused) {
		return err
	}
	if err != nil {
		// Its answer may still come, and would be taken for the next one's.
		a.hangUp()
		return fmt.Errorf("cannot execute %s: %w", command, err)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer, result)
}

func (a *Agent) exchange(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	if a.conn == nil {
		if err := a.connect(ctx); err != nil {
			return nil, err
		}
	}
	stop := a.obey(ctx)
	err := a.send(command, arguments, false)
	var answer json.RawMessage
	if err == nil {
		answer, err = a.receive(command)
	}
	if !stop() {
		a.hangUp() // its deadline lies in the past now, also for the next call
	}
	return answer, because(ctx, err)
}

// connect opens the socket and makes sure that what is read from now on is
// meant for us: the agent flushes at the byte 0xFF and sends one before its
// answer to guest-sync-delimited.
func (a *Agent) connect(ctx context.Context) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", a.path)
	if err != nil {
		return err
	}
	a.conn, a.reader = conn, bufio.NewReader(conn)
	stop := a.obey(ctx)
	defer stop()
	a.id = time.Now().UnixNano() >> 10
	if err := a.send("guest-sync-delimited", map[string]any{"id": a.id}, true); err != nil {
		return because(ctx, err)
	}
	for {
		if _, err := a.reader.ReadBytes(0xFF); err != nil {
			return because(ctx, err)
		}
		answer, err := a.receive("guest-sync-delimited")
		if refused := (*AgentError)(nil); errors.As(err, &refused) {
			continue
		}
		if err != nil {
			return because(ctx, err)
		}
		var echo int64
		if json.Unmarshal(answer, &echo) == nil && echo == a.id {
			return nil
		}
	}
}

// obey ends reads and writes when ctx does.
func (a *Agent) obey(ctx context.Context) (stop func() bool) {
	conn := a.conn
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}

// because prefers the context's reason over the broken read it caused.
func because(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (a *Agent) send(command string, arguments any, flush bool) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	if flush {
		line = append([]byte{0xFF}, line...)
	}
	_, err = a.conn.Write(append(line, '\n'))
	return err
}

func (a *Agent) receive(command string) (json.RawMessage, error) {
	line, err := a.reader.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(bytes.TrimLeft(line, "\xff"), &answer); err != nil {
		return nil, fmt.Errorf("cannot understand %q: %w", line, err)
	}
	if answer.Error != nil {
		return nil, &AgentError{Command: command, Class: answer.Error.Class, Desc: answer.Error.Desc}
	}
	return answer.Return, nil
}

func (a *Agent) hangUp() {
	if a.conn != nil {
		a.conn.Close()
		a.conn = nil
	}
}

// Close ends the connection.
func (a *Agent) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hangUp()
}
