// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// statementsIn finds the lines of a text that say whose work it is, but not those
// that a licence or a template has in this place.
func statementsIn(text string) (statements []string) {
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "Copyright ") {
			continue // quickly: most lines
		}
		line = strings.Join(strings.Fields(strings.Trim(line, " \t\r\n/*#;-")), " ")
		line = strings.TrimPrefix(line, "SPDX-FileCopyrightText: ")
		if statement.MatchString(line) && parse(line).holder != "" && !slices.Contains(statements, line) {
			statements = append(statements, line)
		}
	}
	return statements
}

var (
	// Words may stand before a statement only where nothing but one can follow.
	statement = regexp.MustCompile(`^((\w+ ){0,3}Copyright (\([cC]\)|©|[0-9]{4})|Copyright ([Tt]he )?[A-Z]).*[a-z]`)
	inParts   = regexp.MustCompile(`Copyright(?: \([cC]\)| ©)?([0-9 ,+–-]*)(?:by )?(.*?)(?i:[ .,]*all rights reserved.*)?$`)
	year      = regexp.MustCompile(`[0-9]{4}`)
)

// claim is what copyright statements say of one holder.
type claim struct {
	years  []string
	holder string
}

func parse(statement string) claim {
	match := inParts.FindStringSubmatch(statement)
	return claim{years: year.FindAllString(match[1], -1), holder: match[2]}
}

// key is the same for most ways in which one holder is written.
func (c claim) key() string {
	return strings.TrimPrefix(strings.ToLower(strings.TrimRight(c.holder, " .,")), "the ")
}

func (c claim) String() string {
	switch {
	case len(c.years) == 0:
		return "Copyright " + c.holder
	case slices.Min(c.years) == slices.Max(c.years):
		return "Copyright " + c.years[0] + " " + c.holder
	}
	return fmt.Sprintf("Copyright %s-%s %s", slices.Min(c.years), slices.Max(c.years), c.holder)
}

// holders are the statements of the licence files, word by word, and one for each
// further holder whom the sources name.
func holders(statements, further []string) (lines []string) {
	named := map[string]bool{}
	for _, statement := range statements {
		named[parse(statement).key()] = true
		if !slices.Contains(lines, statement) {
			lines = append(lines, statement)
		}
	}
	others := map[string]claim{}
	for _, statement := range further {
		c := parse(statement)
		if other, seen := others[c.key()]; seen {
			c.years, c.holder = append(c.years, other.years...), min(c.holder, other.holder)
		}
		if !named[c.key()] {
			others[c.key()] = c
		}
	}
	var more []string
	for _, c := range others {
		more = append(more, c.String())
	}
	slices.Sort(more)
	return append(lines, more...)
}
