// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/agent"
	"nodeagent/internal/host"
)

const (
	// A failure stands in issueFile, where it outlives the boot. What every boot says is in
	// bootIssue, to which /etc/issue.d/nodeagent.issue leads (agetty(8) reads that folder
	// after issueFile): a boot without trouble writes nothing to the disk.
	issueFile  = "/etc/issue"
	bootIssue  = "/run/nodeagent/issue"
	issueBegin = "--- nodeagent ---"
	issueEnd   = "-----------------"

	// pam_motd(8) shows every file of this folder after a login where it is not told
	// other places, as in Debian's settings. It goes with the boot.
	motdFile = "/run/motd.d/nodeagent"
	// A getty draws its prompt anew when this file is touched: what `agetty --reload` does.
	gettyReload = "/run/agetty.reload"
)

// announce says how the machine stands where an operator looks: at the login prompt, in
// the message of the day and, what is new there, on the console.
func announce(h *host.Host, state *agent.State) error {
	lines := headlines(state)
	// pam_motd reads it with the rights of who logs in.
	_, motdErr := h.WriteFile(motdFile, []byte("nodeagent: "+strings.Join(lines, "\n  ")+"\n"), 0o644)
	changed, err := writeIssues(h, block(lines), failed(state))
	if err != nil || !changed {
		return errors.Join(motdErr, err)
	}
	return errors.Join(motdErr, tellGettys(h), tellConsole(h, lines))
}

func failed(state *agent.State) bool {
	return slices.ContainsFunc(state.Steps, func(record agent.Record) bool { return record.Error != nil })
}

// headlines are the state in one line; after a failure one says what, and one where to go on.
func headlines(state *agent.State) []string {
	name := state.Role
	if name == "" {
		name = "role not known"
	}
	if state.Node != "" {
		name += " " + state.Node
	}
	for _, record := range state.Steps {
		if record.Error != nil {
			return []string{printable(fmt.Sprintf("FAILED (%s) at step %s: %s", name, record.Name, record.Error.Code)),
				printable(record.Error.Message), "For more: nodeagent status"}
		}
	}
	line := name + ": running"
	switch {
	case state.Ended == nil:
	case len(state.Warnings) == 1:
		line = name + ": done, with a warning: " + string(state.Warnings[0].Code)
	case len(state.Warnings) > 1:
		line = fmt.Sprintf("%s: done, with %d warnings: nodeagent status", name, len(state.Warnings))
	default:
		line = name + ": " + string(state.Phase())
	}
	return []string{printable(line)}
}

// writeIssues puts the block into one of the two files and takes it out of the other.
func writeIssues(h *host.Host, block string, lasting bool) (changed bool, err error) {
	old, err := h.ReadFile(issueFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("cannot read %s: %w", issueFile, err)
	}
	inBoot, inFile := block, ""
	if lasting {
		inBoot, inFile = "", block
	}
	changed, err = h.WriteFile(bootIssue, []byte(inBoot), 0o644)
	if text := withBlock(string(old), inFile); text != string(old) {
		_, fileErr := h.WriteFile(issueFile, []byte(text), 0o644)
		changed, err = true, errors.Join(err, fileErr)
	}
	return changed, err
}

// tellGettys has the prompts that are on screens already drawn anew.
func tellGettys(h *host.Host) error {
	path := h.Path(gettyReload)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil // no getty has ever been told, or waits for it
	}
	now := time.Now()
	return os.Chtimes(path, now, now)
}

// consoleLimit is how long a console may take: the kernel keeps who closes a serial line
// that nobody reads for up to 30 s (closing_wait of setserial(8)).
const consoleLimit = time.Second

// tellConsole writes the lines to the console, or leaves that behind when it hangs.
func tellConsole(h *host.Host, lines []string) error {
	written := make(chan error, 1)
	go func() { written <- writeConsole(h, lines) }()
	patience := time.NewTimer(consoleLimit)
	defer patience.Stop()
	select {
	case err := <-written:
		return err
	case <-patience.C:
		return fmt.Errorf("cannot write to the console: it did not take it within %s", consoleLimit)
	}
}

func writeConsole(h *host.Host, lines []string) error {
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

// block is what an issue(5) file says of nodeagent.
func block(lines []string) string {
	return issueBegin + "\n" + strings.Join(lines, "\n") + "\n" + issueEnd + "\n"
}

// withBlock returns an issue(5) file with this block, or none, in the old one's place.
func withBlock(old, block string) string {
	before, rest, found := strings.Cut(old, issueBegin+"\n")
	if found {
		_, after, ended := strings.Cut(rest, issueEnd+"\n")
		if !ended {
			after = ""
		}
		old = before + after
	}
	if block != "" && old != "" && !strings.HasSuffix(old, "\n") {
		old += "\n"
	}
	return old + block
}

// printable also keeps agetty from taking a backslash for one of its escapes.
func printable(text string) string {
	return strings.ReplaceAll(agent.Printable(cut(text, 300)), `\`, "/")
}
