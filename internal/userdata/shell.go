// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// shellScript is a shell script seen as the simple commands it can run. It is
// read, never run: enough of the shell's grammar to say which programs are called
// with which arguments, and to notice a text that was cut off.
type shellScript struct {
	commands []shellCommand
	// vars holds every value a variable is given anywhere; nil means a value that
	// is only known when the script runs.
	vars      map[string][]string
	functions map[string]bool
	// open names what the end of the text leaves unclosed ("if", "quote"), "" when
	// nothing.
	open string
	// beyond names grammar this reader does not know, "" when there was none.
	beyond string
}

// shellCommand is one simple command. Expansions stay in the words as
// expandStart NAME expandEnd; $(...) and the like have an empty name.
type shellCommand struct {
	line   int // 1-based
	words  []string
	writes []string // files that output is redirected to
}

const (
	expandStart = "\ue000"
	expandEnd   = "\ue001"
	maxCommands = 5000
	maxNesting  = 16
)

// readShell reads a script.
func readShell(text string) *shellScript {
	s := &shellScript{vars: map[string][]string{}, functions: map[string]bool{}}
	text = strings.NewReplacer("\r\n", "\n", expandStart, "?", expandEnd, "?").Replace(text)
	reader := &shellReader{script: s, text: text, line: 1}
	reader.read()
	return s
}

// shellReader reads one level of a script: the text itself or the inside of one
// command substitution.
type shellReader struct {
	script *shellScript
	text   string
	at     int
	line   int
	depth  int
	opened []string // constructs that are open, by the word that closes them

	current shellCommand
	started bool // the current command has a word
}

func (r *shellReader) read() {
	for r.at < len(r.text) && r.script.beyond == "" {
		r.next()
	}
	r.end()
	if len(r.opened) > 0 {
		r.unclosed(r.opened[len(r.opened)-1])
	}
}

func (r *shellReader) unclosed(what string) {
	if r.script.open == "" {
		r.script.open = what
	}
}

func (r *shellReader) unknown(format string, args ...any) {
	if r.script.beyond == "" {
		r.script.beyond = fmt.Sprintf(format, args...) + fmt.Sprintf(" in line %d", r.line)
	}
}

// next reads one token.
func (r *shellReader) next() {
	rest := r.text[r.at:]
	switch c := rest[0]; {
	case c == '\n':
		r.end()
		r.skip(1)
	case c == ' ' || c == '\t':
		r.skip(1)
	case strings.HasPrefix(rest, "\\\n"):
		r.skip(2)
	case c == '#':
		r.skip(len(rest) - len(strings.TrimLeftFunc(rest, func(c rune) bool { return c != '\n' })))
	case r.testing() && (c == '&' || c == '|' || c == '(' || c == ')' || c == '<' || c == '>'):
		r.skip(1) // inside [[ ]] these join conditions
	case strings.HasPrefix(rest, "((") && (!r.started || r.current.words[0] == "for"):
		r.arithmetic()
	case strings.HasPrefix(rest, "&>"):
		r.redirect()
	case c == ';' || c == '&' || c == '|':
		r.end()
		r.skip(1)
	case c == '(':
		r.parenthesis()
	case c == ')':
		r.end()
		r.closes(")")
		r.skip(1)
	case c == '<' || c == '>' || redirectStart.MatchString(rest):
		r.redirect()
	default:
		r.word()
	}
}

var redirectStart = regexp.MustCompile(`^[0-9]+[<>]`)

func (r *shellReader) testing() bool { return r.started && r.current.words[0] == "[[" }

func (r *shellReader) skip(n int) {
	r.line += strings.Count(r.text[r.at:r.at+n], "\n")
	r.at += n
}

// arithmetic skips (( ... )), as a command of its own or as the head of a for.
func (r *shellReader) arithmetic() {
	end := strings.Index(r.text[r.at:], "))")
	if end < 0 {
		r.unclosed("((")
		r.skip(len(r.text) - r.at)
		return
	}
	if !r.started {
		r.add("((")
	}
	r.skip(end + len("))"))
}

func (r *shellReader) parenthesis() {
	if rest := strings.TrimLeft(r.text[r.at+1:], " \t"); r.started && len(r.current.words) == 1 && strings.HasPrefix(rest, ")") {
		r.script.functions[r.current.words[0]] = true
		r.current, r.started = shellCommand{}, false
		r.skip(strings.IndexByte(r.text[r.at:], ')') + 1)
		return
	}
	if r.started {
		r.unknown("a parenthesis")
		return
	}
	r.opened = append(r.opened, ")")
	r.skip(1)
}

// word reads a word and puts it where it belongs: the shell's own words open and
// close constructs, everything else goes to the current command.
func (r *shellReader) word() {
	before := r.at
	text, quoted := r.readWord()
	if r.at == before { // cannot happen, but a reader that stands still would be worse
		r.skip(1)
		return
	}
	if r.started || quoted {
		r.add(text)
		if r.testing() && text == "]]" {
			r.end()
		}
		return
	}
	switch text {
	case "if":
		r.opened = append(r.opened, "fi")
	case "while", "until":
		r.opened = append(r.opened, "done")
	case "for":
		r.opened = append(r.opened, "done")
		r.add(text)
	case "{":
		r.opened = append(r.opened, "}")
	case "fi", "done", "}":
		r.closes(text)
	case "then", "else", "elif", "do", "!", "time":
	case "case", "select", "function", "coproc":
		r.unknown("%q", text)
	default:
		r.add(text)
	}
}

func (r *shellReader) closes(word string) {
	if len(r.opened) == 0 || r.opened[len(r.opened)-1] != word {
		r.unknown("a stray %q", word)
		return
	}
	r.opened = r.opened[:len(r.opened)-1]
}

func (r *shellReader) add(word string) {
	if !r.started {
		r.current.line = r.line
	}
	r.current.words = append(r.current.words, word)
	r.started = true
}

var assignment = regexp.MustCompile(`(?s)^([A-Za-z_][A-Za-z0-9_]*)=(.*)$`)

// end ends the current command and notes what it says of variables.
func (r *shellReader) end() {
	c := r.current
	r.current, r.started = shellCommand{}, false
	if len(c.words) == 0 && len(c.writes) == 0 {
		return
	}
	if len(r.script.commands) >= maxCommands {
		r.unknown("more than %d commands", maxCommands)
		return
	}
	if len(c.words) > 1 && c.words[0] == "for" {
		r.loop(c.words[1:])
	}
	assigns := c.words
	if len(assigns) > 0 && slices.Contains([]string{"export", "local", "declare", "readonly"}, assigns[0]) {
		assigns = assigns[1:]
	}
	for _, word := range assigns {
		match := assignment.FindStringSubmatch(word)
		if match == nil {
			break
		}
		r.assign(match[1], match[2])
	}
	if len(c.words) > 1 && c.words[0] == "read" {
		for _, name := range c.words[1:] {
			r.script.vars[name] = nil
		}
	}
	r.script.commands = append(r.script.commands, c)
}

func (r *shellReader) loop(words []string) {
	name, list := words[0], words[1:]
	if len(list) == 0 || list[0] != "in" {
		r.script.vars[name] = nil
		return
	}
	for _, value := range list[1:] {
		r.assign(name, value)
	}
}

func (r *shellReader) assign(name, value string) {
	known, assigned := r.script.vars[name]
	values := r.script.expand(value)
	if values == nil || assigned && known == nil || len(known)+len(values) > maxVariants {
		r.script.vars[name] = nil
		return
	}
	for _, v := range values {
		if !slices.Contains(known, v) {
			known = append(known, v)
		}
	}
	r.script.vars[name] = known
}

// redirect reads a redirection and its target.
func (r *shellReader) redirect() {
	rest := r.text[r.at:]
	operator := redirectOperator.FindString(rest)
	r.skip(len(operator))
	if strings.Contains(operator, "<<") && !strings.HasSuffix(operator, "<<<") {
		r.unknown("a here-document")
		return
	}
	for r.at < len(r.text) && (r.text[r.at] == ' ' || r.text[r.at] == '\t') {
		r.skip(1)
	}
	if r.at >= len(r.text) || strings.ContainsRune("\n;|()", rune(r.text[r.at])) {
		r.unclosed("redirection")
		return
	}
	target, _ := r.readWord()
	toDescriptor := strings.HasSuffix(operator, "&") && descriptor.MatchString(target)
	if strings.Contains(operator, ">") && !toDescriptor {
		r.current.writes = append(r.current.writes, target)
	}
}

var (
	redirectOperator = regexp.MustCompile(`^(&>>?|[0-9]*(<<<|<<-?|<>|<&|<|>>|>&|>\||>))`)
	descriptor       = regexp.MustCompile(`^([0-9]+-?|-)$`)
)

// readWord reads one word: quotes are taken away, expansions marked. It stops at
// whatever ends a word.
func (r *shellReader) readWord() (text string, quoted bool) {
	var b strings.Builder
	for r.at < len(r.text) {
		rest := r.text[r.at:]
		switch c := rest[0]; {
		case strings.HasPrefix(rest, "\\\n"):
			r.skip(2)
		case strings.IndexByte(" \t\n;&|<>()", c) >= 0:
			return b.String(), quoted
		case c == '\\':
			quoted = true
			if len(rest) > 1 {
				b.WriteByte(rest[1])
			}
			r.skip(min(2, len(rest)))
		case c == '\'':
			quoted = true
			end := strings.IndexByte(rest[1:], '\'')
			if end < 0 {
				r.unclosed("quote")
				r.skip(len(rest))
				return b.String(), quoted
			}
			b.WriteString(rest[1 : 1+end])
			r.skip(end + 2)
		case c == '"':
			quoted = true
			r.skip(1)
			r.doubleQuoted(&b)
		case c == '$' || c == '`':
			r.expansion(&b)
		default:
			b.WriteByte(c)
			r.skip(1)
		}
	}
	return b.String(), quoted
}

func (r *shellReader) doubleQuoted(b *strings.Builder) {
	for r.at < len(r.text) {
		rest := r.text[r.at:]
		switch c := rest[0]; {
		case c == '"':
			r.skip(1)
			return
		case c == '\\' && len(rest) > 1 && strings.IndexByte("$`\"\\\n", rest[1]) >= 0:
			if rest[1] != '\n' {
				b.WriteByte(rest[1])
			}
			r.skip(2)
		case c == '$' || c == '`':
			r.expansion(b)
		default:
			b.WriteByte(c)
			r.skip(1)
		}
	}
	r.unclosed("quote")
}

var (
	plainName  = regexp.MustCompile(`^\$([A-Za-z_][A-Za-z0-9_]*|[0-9?#@*!$-])`)
	bracedName = regexp.MustCompile(`^\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)
)

// expansion reads what begins with $ or a backtick. The commands of a command
// substitution are read too.
func (r *shellReader) expansion(b *strings.Builder) {
	rest := r.text[r.at:]
	mark := func(name string) { b.WriteString(expandStart + name + expandEnd) }
	match := bracedName.FindStringSubmatch(rest)
	if match == nil {
		match = plainName.FindStringSubmatch(rest)
	}
	switch {
	case match != nil:
		mark(match[1])
		r.skip(len(match[0]))
	case rest[0] == '`':
		end := 1
		for end < len(rest) && rest[end] != '`' {
			if rest[end] == '\\' {
				end++
			}
			end++
		}
		if end >= len(rest) {
			r.unclosed("backtick")
			r.skip(len(rest))
			return
		}
		r.inside(strings.NewReplacer("\\`", "`", `\\`, `\`, `\$`, `$`).Replace(rest[1:end]))
		mark("")
		r.skip(end + 1)
	case strings.HasPrefix(rest, "$(("):
		r.bracket(rest, 3, "))")
		mark("")
	case strings.HasPrefix(rest, "$["):
		r.bracket(rest, 2, "]")
		mark("")
	case strings.HasPrefix(rest, "${"):
		r.bracket(rest, 2, "}")
		mark("")
	case strings.HasPrefix(rest, "$("):
		end := closingParenthesis(rest[2:])
		if end < 0 {
			r.unclosed("$(")
			r.skip(len(rest))
			return
		}
		r.inside(rest[2 : 2+end])
		mark("")
		r.skip(end + 3)
	default:
		b.WriteByte('$')
		r.skip(1)
	}
}

func (r *shellReader) bracket(rest string, from int, closing string) {
	end := strings.Index(rest[from:], closing)
	if end < 0 {
		r.unclosed(rest[:from])
		r.skip(len(rest))
		return
	}
	// What is computed may call commands too; nothing known does.
	if inner := rest[from : from+end]; strings.Contains(inner, "$(") || strings.Contains(inner, "`") {
		r.unknown("a nested substitution")
	}
	r.skip(from + end + len(closing))
}

func (r *shellReader) inside(text string) {
	if r.depth >= maxNesting {
		r.unknown("substitutions nested more than %d deep", maxNesting)
		return
	}
	inner := &shellReader{script: r.script, text: text, line: r.line, depth: r.depth + 1}
	inner.read()
}

// closingParenthesis returns where the parenthesis that is open before text
// closes, or -1.
func closingParenthesis(text string) int {
	depth := 1
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '\'', '"':
			end := i + 1
			for end < len(text) && text[end] != text[i] {
				if text[end] == '\\' && text[i] == '"' {
					end++
				}
				end++
			}
			if end >= len(text) {
				return -1
			}
			i = end
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

var expansion = regexp.MustCompile(expandStart + `([^` + expandEnd + `]*)` + expandEnd)

const (
	maxVariants = 64      // of a word
	maxWord     = 4 << 10 // bytes of an expanded word
)

// expand returns every value a word can have, or nil when that depends on
// something only the running script knows.
func (s *shellScript) expand(word string) []string {
	variants := []string{word}
	for {
		at := expansion.FindStringSubmatchIndex(variants[0])
		if at == nil {
			return variants
		}
		// All variants grew out of the same word, so they have the same next name.
		name := variants[0][at[2]:at[3]]
		values := s.vars[name]
		if len(values) == 0 || len(variants)*len(values) > maxVariants {
			return nil
		}
		var grown []string
		for _, variant := range variants {
			span := expansion.FindStringIndex(variant)
			for _, value := range values {
				if len(variant)+len(value) > maxWord {
					return nil
				}
				grown = append(grown, variant[:span[0]]+value+variant[span[1]:])
			}
		}
		variants = grown
	}
}

// variants returns every argument vector a command can have: known variables
// replaced, others shown as $NAME.
func (s *shellScript) variants(words []string) [][]string {
	all := [][]string{nil}
	for _, word := range words {
		values := s.expand(word)
		if values == nil || len(all)*len(values) > maxVariants {
			values = []string{s.partly(word)}
		}
		var grown [][]string
		for _, before := range all {
			for _, value := range values {
				grown = append(grown, append(slices.Clip(before), value))
			}
		}
		all = grown
	}
	return all
}

// partly replaces the variables that have exactly one value and shows the others
// as $NAME.
func (s *shellScript) partly(word string) string {
	return expansion.ReplaceAllStringFunc(word, func(found string) string {
		name := strings.TrimSuffix(strings.TrimPrefix(found, expandStart), expandEnd)
		if values := s.vars[name]; len(values) == 1 {
			return values[0]
		}
		return "$" + name
	})
}
