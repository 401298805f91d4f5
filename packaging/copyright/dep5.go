// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

const own = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: nodeagent
Comment:
 /usr/bin/nodeagent is one static file. Besides nodeagent it holds parts of Go's
 standard library (std) and of the Go modules below, each under its path and
 version; https://proxy.golang.org has the source of each. Of C it holds parts of
 Debian 13's libdqlite, libuv, SQLite, lz4, xxHash and the GNU C Library, whose
 notices are in /usr/share/doc/nodeagent/libraries; Debian has the source of each.

Files: *
Copyright: 2026 nodeagent developers
License: Apache-2.0
`

// common are the licences whose text every Debian machine has.
var common = []string{"Apache-2.0", "MPL-2.0"}

// write writes copyright-format 1.0: works of the same holders under the same texts
// share a paragraph, and each text is there once.
func write(out io.Writer, works []work) error {
	var paragraphs []struct{ files, rest string }
	texts := texts{ids: map[string]string{}, count: map[string]int{}}
	texts.id(licence{name: "Apache-2.0"})
	for _, w := range works {
		var ids []string
		for _, l := range w.licences {
			if id := texts.id(l); !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		rest := "Copyright:\n" + indent(strings.Join(w.holders, "\n")) + "License: " + strings.Join(ids, " and ") + "\n"
		if w.comment != "" {
			rest += "Comment:\n" + indent(w.comment)
		}
		files := " " + w.name + "/*\n"
		// Folders of modules stay behind the modules.
		if at := slices.IndexFunc(paragraphs, func(p struct{ files, rest string }) bool { return p.rest == rest }); at >= 0 && !w.inModule {
			paragraphs[at].files += files
		} else {
			paragraphs = append(paragraphs, struct{ files, rest string }{files, rest})
		}
	}
	text := bufio.NewWriter(out)
	fmt.Fprint(text, own)
	for _, p := range paragraphs {
		fmt.Fprintf(text, "\nFiles:\n%s%s", p.files, p.rest)
	}
	slices.Sort(texts.paragraphs)
	for _, p := range texts.paragraphs {
		fmt.Fprintf(text, "\n%s", p)
	}
	return text.Flush()
}

// texts are the distinct texts of licences.
type texts struct {
	ids        map[string]string // by words
	count      map[string]int    // by name
	paragraphs []string
}

// id is the name that a licence's text goes by: its own, or that with a number when
// an earlier text of that name has other words, such as the name of who grants it.
func (t *texts) id(l licence) string {
	key, text := words(l.text), l.text
	if slices.Contains(common, l.name) {
		key, text = l.name, fmt.Sprintf("On Debian systems the full text is in /usr/share/common-licenses/%s.", l.name)
	}
	if t.ids[key] == "" {
		t.count[l.name]++
		t.ids[key] = l.name
		if n := t.count[l.name]; n > 1 {
			t.ids[key] = fmt.Sprintf("%s~%d", l.name, n)
		}
		t.paragraphs = append(t.paragraphs, "License: "+t.ids[key]+"\n"+indent(text))
	}
	return t.ids[key]
}

// indent makes lines the continuation of a field.
func indent(text string) string {
	var lines strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimRight(line, " \t\r"); line == "" {
			line = "."
		}
		fmt.Fprintln(&lines, " "+line)
	}
	return lines.String()
}
