// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"slices"
	"strings"
)

// This file renders the few constructs of Jinja (jinja.palletsprojects.com, "Template
// Designer Documentation") that CloudStack's templates use, as cloud-init renders them
// (cloudinit/templater.py: trim_blocks, undefined variables named in the text). Without
// the instance's metadata only one variable is known for certain: registry, which
// CloudStack's templates ask for and cloud-init never defines.

const (
	registryVariable = "registry"
	missingVariable  = "CI_MISSING_JINJA_VAR/"
	jinjaTitle       = "## template: jinja"
	maxJinjaTags     = 10_000
)

var (
	jinjaEngine  = pattern(`(?i)^##\s*template:(.*)`)
	jinjaMark    = pattern(`\{[%{#]`)
	jinjaTag     = pattern(`^\{%[-+]?\s*([\w.\s]*?)\s*(\+%\}|-%\}|%\}\n?)`)
	jinjaPrint   = pattern(`^\{\{[-+]?\s*([\w.]*?)\s*(-\}\}|\}\})`)
	jinjaComment = pattern(`(?s)^\{#[-+]?.*?(\+#\}|-#\}|#\}\n?)`)
	jinjaName    = pattern(`^[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*$`)
	jinjaTest    = pattern(`^(not\s+)?([\w.]+)(?:\s+is\s+(not\s+)?(defined|undefined))?$`)
)

// jinjaBranch is an {% if %} that is open.
type jinjaBranch struct {
	live   bool // what is around it is put out
	taken  bool // a branch of it was taken
	now    bool // the branch that is open is put out
	closed bool // its else was seen
}

type jinjaRenderer struct {
	tags    int
	out     strings.Builder
	open    []jinjaBranch
	missing bool
}

// renderJinja renders a template with its header line. why is not "" where it is not
// understood, or where cloud-init is sure to leave it out; it quotes nothing of the
// text. missing says that an undefined variable was put out.
func renderJinja(template []byte) (rendered string, missing bool, why string) {
	title, source, _ := strings.Cut(string(template), "\n")
	match := jinjaEngine().FindStringSubmatch(title)
	if match == nil || strings.TrimFunc(strings.ToLower(match[1]), pythonSpace) != "jinja" {
		return "", false, fmt.Sprintf("its first line is not just %q, so cloud-init leaves it out", jinjaTitle)
	}
	// Jinja takes away one end of a line at the end, cloud-init gives it back.
	end := ""
	if strings.HasSuffix(source, "\n") {
		end = "\n"
	}
	source = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(source)
	source = strings.TrimSuffix(source, "\n")

	var r jinjaRenderer
	for at := 0; at < len(source); {
		taken, problem := r.step(source[at:])
		if at += taken; problem != "" {
			return "", false, fmt.Sprintf("it is a jinja template, and line %d %s", 2+strings.Count(source[:at], "\n"), problem)
		}
	}
	if len(r.open) > 0 {
		return "", false, "it is a jinja template in which an if is not closed"
	}
	return r.out.String() + end, r.missing, ""
}

func (r *jinjaRenderer) live() bool {
	return len(r.open) == 0 || r.open[len(r.open)-1].now
}

// step renders the text up to the next tag and that tag. It returns how many bytes that
// was or, with a problem, where the problem is.
func (r *jinjaRenderer) step(rest string) (taken int, problem string) {
	start := len(rest)
	if match := jinjaMark().FindStringIndex(rest); match != nil {
		start = match[0]
	}
	text, tag := rest[:start], rest[start:]
	if len(tag) > 2 && tag[2] == '-' {
		text = strings.TrimRightFunc(text, pythonSpace)
	}
	if r.live() {
		r.out.WriteString(text)
	}
	if tag == "" {
		return len(rest), ""
	}
	pattern, do := jinjaComment(), func(string) string { return "" }
	switch tag[1] {
	case '%':
		pattern, do = jinjaTag(), r.tag
	case '{':
		pattern, do = jinjaPrint(), r.print
	}
	if r.tags++; r.tags > maxJinjaTags {
		return start, fmt.Sprintf("has a tag more than the %d that are read", maxJinjaTags)
	}
	match := pattern.FindStringSubmatch(tag)
	if match == nil {
		return start, "has a jinja expression that is not understood"
	}
	if problem := do(match[1]); problem != "" {
		return start, problem
	}
	taken = start + len(match[0])
	if strings.HasPrefix(match[len(match)-1], "-") {
		taken = len(rest) - len(strings.TrimLeftFunc(rest[taken:], pythonSpace))
	}
	return taken, ""
}

// print puts out a variable.
func (r *jinjaRenderer) print(name string) string {
	if !isJinjaName(name) {
		return "has a jinja expression that is not understood"
	}
	if !r.live() {
		return ""
	}
	if problem := r.lookup(name); problem != "" {
		return problem
	}
	r.missing = true
	r.out.WriteString(missingVariable + name)
	return ""
}

// lookup says why a variable's value is not known to be undefined. Asking an undefined
// one for an attribute is an error, and cloud-init leaves the template out then.
func (r *jinjaRenderer) lookup(name string) string {
	first, _, attribute := strings.Cut(name, ".")
	switch {
	case first != registryVariable:
		return "uses a variable whose value is not known here"
	case attribute:
		return "uses an attribute of the variable registry, which is not defined, so cloud-init leaves the template out"
	}
	return ""
}

// tag handles if, elif, else and endif.
func (r *jinjaRenderer) tag(content string) string {
	word, condition := content, ""
	if at := strings.IndexFunc(content, pythonSpace); at >= 0 {
		word, condition = content[:at], strings.TrimFunc(content[at:], pythonSpace)
	}
	last := len(r.open) - 1
	if word != "if" && last < 0 || (word == "else" || word == "endif") && condition != "" ||
		(word == "elif" || word == "else") && r.open[last].closed {
		return "has a jinja tag out of place or not understood"
	}
	switch word {
	case "if":
		branch := jinjaBranch{live: r.live()}
		holds, problem := r.holds(condition, branch.live)
		branch.taken, branch.now = holds, holds
		r.open = append(r.open, branch)
		return problem
	case "elif":
		branch := &r.open[last]
		holds, problem := r.holds(condition, branch.live && !branch.taken)
		branch.taken, branch.now = branch.taken || holds, holds
		return problem
	case "else":
		branch := &r.open[last]
		branch.now, branch.taken, branch.closed = branch.live && !branch.taken, true, true
	case "endif":
		r.open = r.open[:last]
	default:
		return "has a jinja tag that is not understood"
	}
	return ""
}

// holds decides a condition. One that Jinja does not come to (asked is false) need only
// be one it can parse, and does not hold.
func (r *jinjaRenderer) holds(condition string, asked bool) (holds bool, problem string) {
	match := jinjaTest().FindStringSubmatch(condition)
	if match == nil || !isJinjaName(match[2]) {
		return false, "has a jinja condition that is not understood"
	}
	if !asked {
		return false, ""
	}
	if problem := r.lookup(match[2]); problem != "" {
		return false, problem
	}
	holds = match[4] == "undefined" // an undefined variable is false, and not defined
	return holds != (match[1] != "") != (match[3] != ""), ""
}

// isJinjaName says that a text is a variable or an attribute of one, and no word that
// means something else to Jinja.
func isJinjaName(text string) bool {
	first, _, _ := strings.Cut(text, ".")
	return jinjaName().MatchString(text) &&
		!slices.Contains([]string{"and", "or", "not", "in", "is", "if", "else", "elif", "true", "false", "none", "True", "False", "None"}, first)
}
