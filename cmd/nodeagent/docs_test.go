// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// What README and docs/ say is so: links lead somewhere, codes are in the catalogue,
// commands and flags exist. docs/cli is generated, so only its links are looked at.
func TestDocumentationIsTrue(t *testing.T) {
	t.Parallel()
	pages := readPages(t, os.DirFS("../.."))
	for name, page := range pages {
		for _, problem := range append(page.badLinks(name, pages), page.wrongWords(name)...) {
			t.Errorf("%s: %v", name, problem)
		}
	}
	for _, entry := range fault.Catalogue() {
		file, anchor, _ := strings.Cut(entry.Code.Section(), "#")
		if page := pages["docs/"+file]; page == nil || !page.anchors[anchor] {
			t.Errorf("code %s: docs/ has no section %s", entry.Code, entry.Code.Section())
		}
		if !pages["docs/cli/codes.md"].anchors[string(entry.Code)] {
			t.Errorf("docs/cli/codes.md lacks %s: run `make docs`", entry.Code)
		}
	}
}

// The test above finds what is made up, and passes over what is not about nodeagent.
func TestMadeUpDocumentationIsFound(t *testing.T) {
	t.Parallel()
	pages := map[string]*page{
		"docs/b.md": parsePage("# B `x`: y\n\n## The end\n\n## The end\n"),
		"docs/a.md": parsePage("[](b.md#b-x-y) [](b.md#the-end-1) [](https://example.com/x) [](#here)\n# Here\n" +
			"`iso-missing` `boot-args` `cloud-init` `nodeagent status --wait` `journalctl -u nodeagent`\n" +
			"```\nsudo nodeagent plan --boot-args F | less\nnodeagent never ran on this machine\n$ nodeagent grow --dry-run   what\n```\n"),
	}
	if problems := append(pages["docs/a.md"].badLinks("docs/a.md", pages), pages["docs/a.md"].wrongWords("docs/a.md")...); len(problems) != 1 ||
		!strings.Contains(problems[0].Error(), "nodeagent never") {
		t.Errorf("of a page that is true but for one line: %v", problems)
	}
	for text, want := range map[string]string{
		"[x](c.md)":                          "c.md",
		"[x](b.md#start)":                    "b.md#start",
		"[x](#nowhere)":                      "#nowhere",
		"`iso-lost`":                         "iso-lost",
		"`nodeagent mend`":                   "mend",
		"`nodeagent status --loud`":          "--loud",
		"`nodeagent status extra`":           "extra",
		"`nodeagent iso mend X`":             "mend",
		"`nodeagent growpart --all D 1`":     "--all",
		"```\nx && nodeagent run --now\n```": "--now",
	} {
		made := parsePage(text)
		pages["docs/c"] = made
		problems := append(made.badLinks("docs/c", pages), made.wrongWords("docs/c")...)
		if len(problems) != 1 || !strings.Contains(problems[0].Error(), want) {
			t.Errorf("%q: %v, want one problem with %s", text, problems, want)
		}
	}
}

// page is a Markdown file: what can be linked to in it, what it links to, and the
// code in it.
type page struct {
	anchors map[string]bool
	links   []string
	words   []string // between backticks
	lines   []string // of fenced blocks
}

func readPages(t *testing.T, tree fs.FS) map[string]*page {
	t.Helper()
	names, err := fs.Glob(tree, "docs/*.md")
	more, moreErr := fs.Glob(tree, "docs/cli/*.md")
	if err := errors.Join(err, moreErr); err != nil {
		t.Fatal(err)
	}
	pages := map[string]*page{}
	for _, name := range slices.Concat([]string{"README.md", "CHANGELOG.md"}, names, more) {
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			t.Fatal(err)
		}
		pages[name] = parsePage(string(text))
	}
	return pages
}

func parsePage(text string) *page {
	p := &page{anchors: map[string]bool{}}
	var prose strings.Builder
	fenced := false
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced:
			p.lines = append(p.lines, strings.TrimSpace(line))
		default:
			if heading := strings.TrimLeft(line, "#"); heading != line {
				p.addAnchor(heading)
			}
			prose.WriteString(line)
		}
	}
	for _, match := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(prose.String(), -1) {
		p.words = append(p.words, strings.Join(strings.Fields(match[1]), " "))
	}
	for _, match := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(prose.String(), -1) {
		p.links = append(p.links, match[1])
	}
	return p
}

// addAnchor adds the anchor that GitHub gives a heading: small letters, digits,
// hyphens and underscores, blanks as hyphens, with a number when it is there already.
func (p *page) addAnchor(heading string) {
	text := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
	slug := strings.ReplaceAll(text, " ", "-")
	for i, base := 1, slug; p.anchors[slug]; i++ {
		slug = fmt.Sprintf("%s-%d", base, i)
	}
	p.anchors[slug] = true
}

func (p *page) badLinks(name string, pages map[string]*page) (problems []error) {
	for _, link := range p.links {
		if strings.Contains(link, "://") {
			continue
		}
		file, anchor, hasAnchor := strings.Cut(link, "#")
		target := name
		if file != "" {
			target = path.Join(path.Dir(name), file)
		}
		if other := pages[target]; other != nil {
			if hasAnchor && !other.anchors[anchor] {
				problems = append(problems, fmt.Errorf("the link %s leads to no heading", link))
			}
			continue
		}
		if _, err := os.Stat(filepath.Join("../..", target)); err != nil || hasAnchor {
			problems = append(problems, fmt.Errorf("the link %s leads nowhere", link))
		}
	}
	return problems
}

// wrongWords names codes, commands and flags that there are not.
func (p *page) wrongWords(name string) (problems []error) {
	if path.Dir(name) == "docs/cli" || name == "CHANGELOG.md" {
		return nil
	}
	known := otherNames()
	for _, word := range p.words {
		if first, _, _ := strings.Cut(word, "-"); isName(word) && known[first] && !known[word] {
			problems = append(problems, fmt.Errorf("`%s` looks like a code, and the catalogue has none of this name", word))
		}
	}
	call := regexp.MustCompile(`(?:^|[;&|(] *|[$#-] |sudo )nodeagent ([a-z-][^|;&)]*)`)
	for _, line := range slices.Concat(p.words, p.lines) {
		for _, match := range call.FindAllStringSubmatch(line, -1) {
			if err := checkCall(match[1]); err != nil {
				problems = append(problems, err)
			}
		}
	}
	return problems
}

func isName(word string) bool { return regexp.MustCompile(`^[a-z]+(-[a-z]+)+$`).MatchString(word) }

// otherNames has all codes, steps, gates and their like, and the first words of codes.
func otherNames() map[string]bool {
	known := map[string]bool{}
	for _, entry := range fault.Catalogue() {
		first, _, _ := strings.Cut(string(entry.Code), "-")
		known[string(entry.Code)], known[first] = true, true
	}
	for _, step := range bootPlan(&node{}) {
		known[step.Name] = true
	}
	for _, name := range []string{
		"node-ready", "api-lb", // a gate, a rule of CloudStack
		"cloud-preinit", "cloud-early-config", "cloud-postinit", "cloud-config", "cloud-final", "cloud-init-local", // units
		"cloud-guest-utils", "cluster-info", "kubeadm-config", "kubeadm-certs", // of others
	} {
		known[name] = true
	}
	return known
}

// checkCall checks what follows `nodeagent` in a command line: up to a comment, or the
// two blanks before an explanation.
func checkCall(text string) error {
	text, _, _ = strings.Cut(text, "  ")
	text, _, _ = strings.Cut(text, " #")
	text, _, _ = strings.Cut(text, " >")
	words := strings.Fields(text)
	command, rest, err := rootCommand(host.New()).Find(words)
	if err != nil || !command.HasParent() {
		return fmt.Errorf("there is no command `nodeagent %s`", text)
	}
	if command.DisableFlagParsing { // growpart's options are its own
		for _, word := range rest {
			if strings.HasPrefix(word, "-") && !strings.Contains(growpartHelp(), word) {
				return fmt.Errorf("`nodeagent %s`: there is no %s", text, word)
			}
		}
		return nil
	}
	return checkFlags(command, rest, text)
}

func checkFlags(command *cobra.Command, rest []string, text string) error {
	if err := command.ParseFlags(rest); err != nil {
		return fmt.Errorf("`nodeagent %s`: %w", text, err)
	}
	if len(rest) > 0 { // without any it is the command's name
		if err := command.ValidateArgs(command.Flags().Args()); err != nil {
			return fmt.Errorf("`nodeagent %s`: %w", text, err)
		}
	}
	return nil
}
