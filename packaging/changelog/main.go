// SPDX-License-Identifier: Apache-2.0

// Command changelog turns CHANGELOG.md (standard input) into a Debian changelog
// (standard output), so that there is one to keep up to date. SOURCE_DATE_EPOCH is
// the date of what has none, which is the version being built.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Getenv("SOURCE_DATE_EPOCH"), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "changelog:", err)
		os.Exit(1)
	}
}

func run(args []string, epoch string, in io.Reader, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: changelog VERSION MAINTAINER <CHANGELOG.md")
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("cannot read SOURCE_DATE_EPOCH: %w", err)
	}
	releases, err := parse(in, args[0], time.Unix(seconds, 0))
	if err != nil {
		return fmt.Errorf("cannot read CHANGELOG.md: %w", err)
	}
	text := bufio.NewWriter(out)
	for i, release := range releases {
		if i > 0 {
			fmt.Fprintln(text)
		}
		release.write(text, args[1])
	}
	return text.Flush()
}

// release is one version.
type release struct {
	version string
	date    time.Time
	items   []string // each one line
}

// parse reads the releases, the newest first. A heading is "## Unreleased", which
// is the version being built, or "## 0.1.0 (2026-11-21)".
func parse(in io.Reader, version string, now time.Time) ([]release, error) {
	heading := regexp.MustCompile(`^## (?:Unreleased|([0-9][0-9A-Za-z.+~]*)(?: \(([0-9-]{10})\))?)$`)
	var releases []release
	lines := bufio.NewScanner(in)
	for number := 1; lines.Scan(); number++ {
		line := lines.Text()
		var last *release
		if len(releases) > 0 {
			last = &releases[len(releases)-1]
		}
		switch {
		case strings.HasPrefix(line, "## "):
			match := heading.FindStringSubmatch(line)
			if match == nil {
				return nil, fmt.Errorf("line %d: want \"## Unreleased\" or \"## VERSION (YYYY-MM-DD)\": %q", number, line)
			}
			next := release{version: version, date: now}
			if match[1] != "" {
				next.version = match[1]
			}
			if match[2] != "" {
				var err error
				if next.date, err = time.Parse(time.DateOnly, match[2]); err != nil {
					return nil, fmt.Errorf("line %d: %w", number, err)
				}
			}
			releases = append(releases, next)
		case last != nil && strings.HasPrefix(line, "- "):
			last.items = append(last.items, line[2:])
		case last != nil && len(last.items) > 0 && strings.HasPrefix(line, "  "):
			last.items[len(last.items)-1] += " " + strings.TrimSpace(line)
		case last != nil && strings.TrimSpace(line) != "":
			return nil, fmt.Errorf("line %d: want a list item: %q", number, line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(releases) == 0 {
		return nil, errors.New("it has no release")
	}
	for _, r := range releases {
		if len(r.items) == 0 {
			return nil, fmt.Errorf("release %s has no items", r.version)
		}
	}
	return releases, nil
}

// write writes an entry of deb-changelog(5).
func (r release) write(out io.Writer, maintainer string) {
	fmt.Fprintf(out, "nodeagent (%s) unstable; urgency=medium\n\n", r.version)
	for _, item := range r.items {
		for i, line := range wrap(item, 76) {
			mark := "   "
			if i == 0 {
				mark = "  *"
			}
			fmt.Fprintln(out, mark, line)
		}
	}
	fmt.Fprintf(out, "\n -- %s  %s\n", maintainer, r.date.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700"))
}

// wrap breaks a text between words into lines of at most width characters, where
// the words allow it.
func wrap(text string, width int) (lines []string) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
