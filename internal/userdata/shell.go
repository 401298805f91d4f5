// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"slices"
	"strings"
)

// shellScript is a shell script seen as the simple commands it can run. It is
// read, never run: enough of the shell's grammar to say which programs are called
// with which arguments and which of them never are (reach.go), and to notice a
// text that was cut off.
type shellScript struct {
	commands []shellCommand
	// vars holds every value a variable is given anywhere; nil means a value that
	// is only known when the script runs.
	vars map[string][]string
	// given are the commands that assign a variable whenever the script gets there.
	given map[string][]int
	// blocks holds for each block of commands, which all run or none, the one around
	// it; the script itself is block 0.
	blocks    []int
	functions map[string]bool
	// loops holds for each loop the one around it; what stands in none is in loop 0.
	loops []int
	// foreign holds the variables that get a value from outside, isoLoops the loops that
	// look for the ISO; nil until own and waitsForISO ask.
	foreign  map[string]bool
	isoLoops map[int]bool
	// open names what the end of the text leaves unclosed ("if", "quote"), "" when
	// nothing.
	open  string
	words int // of all commands
	// beyond names grammar this reader does not know, "" when there was none.
	beyond string
}

// shellCommand is one simple command. Expansions stay in the words as
// expandStart NAME expandEnd; arithmetic has the name computed, $(...) and the like
// an empty one.
type shellCommand struct {
	line       int // 1-based
	words      []string
	bare       []int    // the words that hold an expansion without quotes
	writes     []string // files that output is redirected to
	arithmetic string   // what stands in (( ))
	loop       int      // number of the innermost loop around it, 0 outside of all
	joint      string   // what joins it to the command before: "", "&&", "||" or "|"
	negated    bool
	depth      int // of command substitutions around it
	nest       int // of constructs around it, within that substitution
	block      int
	guard      *guard
}

const (
	expandStart = "\ue000"
	expandEnd   = "\ue001"
	computed    = "(("
	maxCommands = 5000
	maxWords    = 20000 // of all commands
	maxNesting  = 16    // of substitutions
	maxOpen     = 100   // of constructs
)

// readShell reads a script.
func readShell(text string) *shellScript {
	s := &shellScript{vars: map[string][]string{}, given: map[string][]int{}, blocks: []int{0}, loops: []int{0}, functions: map[string]bool{}}
	text = strings.NewReplacer("\r\n", "\n", expandStart, "?", expandEnd, "?").Replace(text)
	reader := &shellReader{script: s, text: text, line: 1}
	reader.newList()
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
	opened []construct

	current shellCommand
	started bool // the current command has a word
	bare    bool // the word being read has an expansion without quotes

	outer   *guard // of the command this reader's text is substituted into
	within  int    // the loop around this reader's text
	block   int
	body    bool   // what opens next is a function's
	joint   string // what was read since the last command
	negated bool
	chain   int  // the first command of the list that && and || join
	whole   bool // the list from there on is simple commands only
}

// construct is something that is open: an if, a loop, a group.
type construct struct {
	closes string // the word that closes it
	loop   int
	guard  *guard // of what stands in it now
	before *guard // of the construct itself
	from   int    // where the condition of an if, elif or loop begins
	want   string // how a loop's condition goes on: while, until, or "" of a for
	chain  int    // of the list it is in
	block  int    // it is in
}

func (r *shellReader) read() {
	for r.at < len(r.text) && r.script.beyond == "" {
		r.next()
	}
	r.end()
	if len(r.opened) > 0 {
		r.unclosed(r.opened[len(r.opened)-1].closes)
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
		if r.end(); r.joint == "" { // a line may end behind && or ||
			r.newList()
		}
		r.skip(1)
	case c == ' ' || c == '\t':
		r.skip(1)
	case strings.HasPrefix(rest, "\\\n"):
		r.skip(2)
	case c == '#':
		r.skip(len(rest) - len(strings.TrimLeftFunc(rest, func(c rune) bool { return c != '\n' })))
	case r.testing() && strings.IndexByte("&|()<>", c) >= 0: // here these join conditions
		n := 1
		if (c == '&' || c == '|') && len(rest) > 1 && rest[1] == c {
			n = 2
		}
		r.add(rest[:n])
		r.skip(n)
	case strings.HasPrefix(rest, "((") && (!r.started || r.current.words[0] == "for"):
		r.arithmetic()
	case strings.HasPrefix(rest, "&>"):
		r.redirect()
	case strings.HasPrefix(rest, "&&") || strings.HasPrefix(rest, "||"):
		r.end()
		r.joint = rest[:2]
		r.skip(2)
	case c == '|':
		r.end()
		r.apart()
		r.joint = "|"
		r.skip(1)
	case c == '&':
		r.end()
		r.apart()
		r.newList()
		r.skip(1)
	case c == ';':
		r.end()
		r.newList()
		r.skip(1)
	case c == '(':
		r.parenthesis()
	case c == ')':
		r.end()
		r.closes(")")
		r.skip(1)
	case c == '<' || c == '>' || redirectStart().MatchString(rest):
		r.redirect()
	default:
		r.word()
	}
}

var redirectStart = pattern(`^[0-9]+[<>]`)

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
	r.current.arithmetic = r.text[r.at+len("((") : r.at+end]
	r.script.forget(r.current.arithmetic)
	r.skip(end + len("))"))
}

// arithmeticChange finds variables that arithmetic gives a value.
var arithmeticChange = pattern(`([A-Za-z_][A-Za-z0-9_]*)\s*(?:\+\+|--|(?:[-+*/%&|^]|<<|>>)?=)|(?:\+\+|--)\s*([A-Za-z_][A-Za-z0-9_]*)`)

// forget gives up what is known of the variables that arithmetic changes.
func (s *shellScript) forget(arithmetic string) {
	for _, match := range arithmeticChange().FindAllStringSubmatch(arithmetic, -1) {
		s.vars[match[1]+match[2]] = nil
	}
}

func (r *shellReader) parenthesis() {
	if rest := strings.TrimLeft(r.text[r.at+1:], " \t"); r.started && len(r.current.words) == 1 && strings.HasPrefix(rest, ")") {
		r.joint = r.current.joint
		r.script.functions[r.current.words[0]], r.body = true, true
		r.current, r.started = shellCommand{}, false
		r.skip(strings.IndexByte(r.text[r.at:], ')') + 1)
		return
	}
	if r.started {
		r.unknown("a parenthesis")
		return
	}
	r.open(")")
	r.skip(1)
}

// apart says that the command before runs in a shell of its own: what it assigns
// is lost.
func (r *shellReader) apart() {
	last := len(r.script.commands) - 1
	for name, at := range r.script.given {
		r.script.given[name] = slices.DeleteFunc(at, func(i int) bool { return i == last })
	}
}

// newBlock begins a block in another.
func (r *shellReader) newBlock(around int) {
	r.block = len(r.script.blocks)
	r.script.blocks = append(r.script.blocks, around)
}

// open begins a construct. What stands in it runs only if the list it is in gets
// there.
func (r *shellReader) open(closes string) *construct {
	if len(r.opened) >= maxOpen {
		r.unknown("more than %d constructs in each other", maxOpen)
	}
	before := r.guardNow()
	if r.body { // when and whether it is called is not followed
		before, r.body = r.unknownCondition(before), false
	}
	r.opened = append(r.opened, construct{closes: closes, guard: before, before: before, chain: r.chain, block: r.block})
	r.newBlock(r.block)
	r.joint, r.negated = "", false
	r.newList()
	return &r.opened[len(r.opened)-1]
}

func (r *shellReader) newList() { r.joint, r.chain, r.whole = "", len(r.script.commands), true }

// guardNow is the guard of a command that begins here.
func (r *shellReader) guardNow() *guard {
	g := r.outer
	if n := len(r.opened); n > 0 {
		g = r.opened[n-1].guard
	}
	switch joined := r.joint == "&&" || r.joint == "||"; {
	case joined && r.whole:
		g = r.condition(r.chain, r.joint == "&&", g)
	case joined:
		g = r.unknownCondition(g)
	}
	return g
}

// condition guards what runs only if the commands from there to here succeed, or
// fail.
func (r *shellReader) condition(from int, want bool, parent *guard) *guard {
	return &guard{from: from, to: len(r.script.commands), depth: r.depth, nest: len(r.opened), want: want, parent: parent}
}

// unknownCondition guards what may run or not.
func (r *shellReader) unknownCondition(parent *guard) *guard {
	return r.condition(len(r.script.commands), true, parent)
}

// word reads a word and puts it where it belongs: the shell's own words open and
// close constructs, everything else goes to the current command.
func (r *shellReader) word() {
	before := r.at
	r.bare = false
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
		r.open("fi").from = len(r.script.commands)
	case "while", "until":
		r.loop(text)
	case "for":
		r.loop("")
		r.add(text)
	case "{":
		r.open("}")
	case "fi", "done", "}":
		r.closes(text)
	case "then", "else", "elif":
		r.branch(text)
	case "do":
		r.loopBody()
	case "!":
		r.negated = !r.negated
	case "time":
	case "case", "select", "function", "coproc":
		r.unknown("%q", text)
	default:
		r.add(text)
	}
}

func (r *shellReader) loop(want string) {
	r.script.loops = append(r.script.loops, r.loopNow())
	c := r.open("done")
	c.loop, c.want, c.from = len(r.script.loops)-1, want, len(r.script.commands)
}

// loopNow is the innermost loop around what is read.
func (r *shellReader) loopNow() int {
	for _, open := range slices.Backward(r.opened) {
		if open.loop > 0 {
			return open.loop
		}
	}
	return r.within
}

// loopBody goes from the condition of a loop to what it repeats.
func (r *shellReader) loopBody() {
	if n := len(r.opened); n > 0 && r.opened[n-1].want != "" {
		c := &r.opened[n-1]
		c.guard, c.want = r.condition(c.from, c.want == "while", c.guard), ""
	}
	r.newList()
}

// branch goes from one part of an if to the next.
func (r *shellReader) branch(word string) {
	n := len(r.opened)
	if n == 0 || r.opened[n-1].closes != "fi" {
		r.unknown("a stray %q", word)
		return
	}
	c := &r.opened[n-1]
	r.newBlock(c.block)
	if word == "then" {
		c.guard = r.condition(c.from, true, c.guard)
	} else {
		// The then before has made the condition the innermost guard.
		if c.guard != c.before {
			failed := *c.guard
			failed.want = false
			c.guard = &failed
		}
		c.from = len(r.script.commands)
	}
	r.newList()
}

func (r *shellReader) closes(word string) {
	n := len(r.opened)
	if n == 0 || r.opened[n-1].closes != word {
		r.unknown("a stray %q", word)
		return
	}
	c := r.opened[n-1]
	r.opened, r.block = r.opened[:n-1], c.block
	r.joint, r.chain, r.whole = "", c.chain, false
}

func (r *shellReader) add(word string) {
	if r.script.words++; r.script.words > maxWords {
		r.unknown("more than %d words", maxWords)
		return
	}
	if !r.started {
		r.begin()
	}
	if r.bare {
		r.current.bare = append(r.current.bare, len(r.current.words))
	}
	r.current.words = append(r.current.words, word)
	r.started, r.bare = true, false
}

// begin notes where the current command stands.
func (r *shellReader) begin() {
	c := &r.current
	c.line, c.joint, c.negated, c.depth, c.nest, c.guard, c.block = r.line, r.joint, r.negated, r.depth, len(r.opened), r.guardNow(), r.block
	c.loop = r.loopNow()
	r.joint, r.negated = "", false
}

var assignment = pattern(`(?s)^([A-Za-z_][A-Za-z0-9_]*)=(.*)$`)

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
		r.counts(c.words[1:])
	}
	assigns, declares := c.words, false
	if len(assigns) > 0 && slices.Contains([]string{"export", "local", "declare", "readonly"}, assigns[0]) {
		assigns, declares = assigns[1:], assigns[0] != "export"
	}
	for _, word := range assigns {
		match := assignment().FindStringSubmatch(word)
		switch {
		case match != nil:
			r.assign(match[1], match[2])
			if c.depth == 0 && c.joint == "" && onlyAssigns(assigns) && len(r.script.given[match[1]]) < maxVariants {
				r.script.given[match[1]] = append(r.script.given[match[1]], len(r.script.commands))
			}
			continue
		case declares:
			r.assign(word, "")
			continue
		}
		break
	}
	if len(c.words) > 1 && (c.words[0] == "read" || c.words[0] == "printf") {
		for _, name := range c.words[1:] { // of printf -v, the variable; all others are no names
			r.script.vars[name] = nil
		}
	}
	r.script.commands = append(r.script.commands, c)
}

func (r *shellReader) counts(words []string) {
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
	if values == nil || !r.script.certain(value, len(r.script.commands), r.block) || assigned && known == nil || len(known)+len(values) > maxVariants {
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
	operator := redirectOperator().FindString(rest)
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
	toDescriptor := strings.HasSuffix(operator, "&") && descriptor().MatchString(target)
	if strings.Contains(operator, ">") && !toDescriptor {
		r.current.writes = append(r.current.writes, target)
	}
}

var (
	redirectOperator = pattern(`^(&>>?|[0-9]*(<<<|<<-?|<>|<&|<|>>|>&|>\||>))`)
	descriptor       = pattern(`^([0-9]+-?|-)$`)
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
			r.bare = true
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
	plainName  = pattern(`^\$([A-Za-z_][A-Za-z0-9_]*|[0-9?#@*!$-])`)
	bracedName = pattern(`^\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)
)

// expansion reads what begins with $ or a backtick. The commands of a command
// substitution are read too.
func (r *shellReader) expansion(b *strings.Builder) {
	rest := r.text[r.at:]
	mark := func(name string) { b.WriteString(expandStart + name + expandEnd) }
	match := bracedName().FindStringSubmatch(rest)
	if match == nil {
		match = plainName().FindStringSubmatch(rest)
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
		mark(computed)
	case strings.HasPrefix(rest, "$["):
		r.bracket(rest, 2, "]")
		mark(computed)
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
	inner := rest[from : from+end]
	if strings.Contains(inner, "$(") || strings.Contains(inner, "`") {
		r.unknown("a nested substitution")
	}
	r.script.forget(inner)
	r.skip(from + end + len(closing))
}

func (r *shellReader) inside(text string) {
	if r.depth >= maxNesting {
		r.unknown("substitutions nested more than %d deep", maxNesting)
		return
	}
	outer := r.current.guard
	if !r.started {
		outer = r.guardNow()
	}
	inner := &shellReader{script: r.script, text: text, line: r.line, depth: r.depth + 1, outer: outer, within: r.loopNow(), block: r.block}
	inner.newList()
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

var expansion = pattern(expandStart + `([^` + expandEnd + `]*)` + expandEnd)

const (
	maxVariants = 16      // of a word
	maxWord     = 4 << 10 // bytes of an expanded word
)

// expand returns every value a word can have, or nil when that depends on
// something only the running script knows.
func (s *shellScript) expand(word string) []string {
	variants := []string{word}
	for {
		at := expansion().FindStringSubmatchIndex(variants[0])
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
			span := expansion().FindStringIndex(variant)
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
		if len(values) == 1 {
			for i := range all {
				all[i] = append(all[i], values[0])
			}
			continue
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

// split returns the words that the shell makes of a variant of a command's: one with an
// expansion and no quotes is split at its blanks, and lost when it is empty.
func (c shellCommand) split(variant []string) []string {
	if len(c.bare) == 0 || variant[0] == "[[" {
		return variant
	}
	var words []string
	for i, word := range variant {
		if !slices.Contains(c.bare, i) || assignment().MatchString(word) {
			words = append(words, word)
			continue
		}
		words = append(words, strings.FieldsFunc(word, func(c rune) bool { return c == ' ' || c == '\t' || c == '\n' })...)
	}
	return words
}

// partly replaces the variables that have exactly one value and shows the others
// as $NAME.
func (s *shellScript) partly(word string) string {
	left := maxWord
	return expansion().ReplaceAllStringFunc(word, func(found string) string {
		name := strings.TrimSuffix(strings.TrimPrefix(found, expandStart), expandEnd)
		if values := s.vars[name]; len(values) == 1 && len(values[0]) <= left {
			left -= len(values[0])
			return values[0]
		}
		if name == computed {
			return "$"
		}
		return "$" + name
	})
}
