// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/agent"
	"nodeagent/internal/host"
)

const (
	issueFile  = "/etc/issue"
	issueBegin = "--- nodeagent ---"
	issueEnd   = "-----------------"
)

// announce puts a failure where an operator looks who cannot log in: the login
// prompt (/etc/issue) and, when it is new there, the console. Without a failure
// it takes an old one away.
func announce(h *host.Host, state *agent.State) error {
	var lines []string
	for _, record := range state.Steps {
		if record.Error != nil {
			role := state.Role
			if role == "" {
				role = "role not known"
			}
			lines = append(lines, fmt.Sprintf("FAILED (%s) at step %s: %s", role, record.Name, record.Error.Code),
				printable(record.Error.Message), "For more: nodeagent status")
			break
		}
	}
	old, err := h.ReadFile(issueFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read %s: %w", issueFile, err)
	}
	text := withNotice(string(old), lines)
	changed, err := h.WriteFile(issueFile, []byte(text), 0o644)
	if err != nil {
		return err
	}
	if !changed || len(lines) == 0 {
		return nil
	}
	// Opening a console can block on a stuck serial line: never wait for it.
	console, err := os.OpenFile(h.Path("/dev/console"), os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("cannot write to the console: %w", err)
	}
	defer console.Close()
	// A file that is no terminal takes no deadline, and does not block either.
	_ = console.SetWriteDeadline(time.Now().Add(time.Second))
	_, err = fmt.Fprintf(console, "\r\nnodeagent: %s\r\n", strings.Join(lines, "\r\n  "))
	return err
}

// withNotice replaces the block of nodeagent in an issue(5) file.
func withNotice(old string, lines []string) string {
	before, rest, found := strings.Cut(old, issueBegin+"\n")
	if found {
		_, after, ended := strings.Cut(rest, issueEnd+"\n")
		if !ended {
			after = ""
		}
		old = before + after
	}
	if len(lines) == 0 {
		return old
	}
	return old + issueBegin + "\n" + strings.Join(lines, "\n") + "\n" + issueEnd + "\n"
}

// printable also keeps agetty from taking a backslash for one of its escapes.
func printable(text string) string {
	return strings.ReplaceAll(agent.Printable(cut(text, 300)), `\`, "/")
}
