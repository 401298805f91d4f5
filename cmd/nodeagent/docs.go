// SPDX-License-Identifier: Apache-2.0

//go:build docs

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// With the build tag docs the program is not nodeagent (main.go) but what writes its man
// pages, its completions and docs/cli: `go run -tags docs ./cmd/nodeagent docs DIR`.
// So the binary that is shipped has none of it in it.
func main() {
	if err := writeDocs(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nodeagent docs:", err)
		os.Exit(exitFail)
	}
}

// writeDocs fills a folder: man/, completions/ and cli/ (Markdown), with the
// codes of all failures.
func writeDocs(args []string) error {
	if len(args) != 2 || args[0] != "docs" {
		return errors.New("usage: docs DIR")
	}
	date, err := sourceDate()
	if err != nil {
		return err
	}
	folder := func(name string) (string, error) {
		path := filepath.Join(args[1], name)
		return path, os.MkdirAll(path, 0o755)
	}
	man, manErr := folder("man")
	cli, cliErr := folder("cli")
	completions, completionsErr := folder("completions")
	if err := errors.Join(manErr, cliErr, completionsErr); err != nil {
		return err
	}
	header := &doc.GenManHeader{Section: "8", Date: &date, Source: "nodeagent", Manual: "Apache CloudStack system VMs"}
	root := documented()
	return errors.Join(
		doc.GenManTree(root, header, man),
		doc.GenMarkdownTree(root, cli),
		os.WriteFile(filepath.Join(cli, "codes.md"), codesPage(), 0o644),
		// What `nodeagent completion` prints.
		root.GenBashCompletionFileV2(filepath.Join(completions, "nodeagent"), true),
		root.GenZshCompletionFile(filepath.Join(completions, "_nodeagent")),
		root.GenFishCompletionFile(filepath.Join(completions, "nodeagent.fish"), true),
	)
}

// sourceDate is the date in the man pages: of the last commit, by the convention of
// reproducible-builds.org, so that two builds are the same.
func sourceDate() (time.Time, error) {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("cannot read SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// codesPage is fault's catalogue, in Markdown.
func codesPage() []byte {
	var page bytes.Buffer
	page.WriteString("# Codes of failures and warnings\n\n" +
		"What `nodeagent status` names. Codes never change their meaning; new ones are added. A message beside the code names\n" +
		"the file, key or value that it is about, and where it can say better what to do than this page, it does.\n")
	for _, entry := range fault.Catalogue() {
		fmt.Fprintf(&page, "\n## %s\n\n%s\n\n%s\n\n[More](../%s)\n", entry.Code, entry.Cause, entry.Remedy, entry.Code.Section())
	}
	return page.Bytes()
}

// documented is the command tree as the generators are to see it.
func documented() *cobra.Command {
	root := rootCommand(host.New())
	root.InitDefaultCompletionCmd()
	root.Use = "nodeagent COMMAND"
	root.Long = rootPage
	for _, command := range append(root.Commands(), root) {
		command.DisableAutoGenTag = true
		for _, below := range command.Commands() {
			below.DisableAutoGenTag = true
		}
		switch command.Name() {
		case root.Name():
			command.DisableFlagsInUseLine = true
		case growpartName:
			// Its options are its own, which cobra knows nothing of.
			command.DisableFlagsInUseLine = true
			command.Long = command.Short + ".\n\n```\n" + growpartHelp() + "```"
		case "iso":
			command.DisableFlagsInUseLine = true
			command.Use = "iso check|manifest"
		case "completion":
			// One page for all shells. A command is documented when it can be run.
			command.DisableFlagsInUseLine = true
			command.Use = "completion bash|zsh|fish|powershell"
			command.Run = func(*cobra.Command, []string) {}
			for _, shell := range command.Commands() {
				shell.Hidden = true
			}
		}
	}
	return root
}

const rootPage = `nodeagent gives a machine made from Apache CloudStack's SystemVM template its role, at
every boot: systemd starts "nodeagent run" as nodeagent.service. All other commands look at a
machine, or do one part of that.

Files:

` + "```" + `
/etc/nodeagent/nodeagent.yaml      what this machine does differently
/etc/nodeagent/roles.d/            what a role does differently
/var/lib/nodeagent/state.json      what happened, for "nodeagent status"
/run/nodeagent/                    what only this boot needs
` + "```"
