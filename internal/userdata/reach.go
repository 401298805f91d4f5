// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"slices"
	"strconv"
	"strings"
)

// This file tells which commands of a script never run: CloudStack's scripts hold
// all ways a node can be made, and choose by comparing variables whose values the
// management server has filled in. Only what is certain is said; a condition that
// depends on the machine may hold or not.

// guard is a condition for a command: that the commands from..to of the script, at
// one level, succeed or fail.
type guard struct {
	from, to    int
	depth, nest int
	want        bool
	parent      *guard // holds too, or nil

	known, never bool // what unreachable has found out
	judged, ours bool // what asked has
	evaluated    bool // what held has
	outcome      outcome
}

// outcome is what is known of a condition.
type outcome int

const (
	mayBe outcome = iota
	yes
	no
)

func (o outcome) not() outcome { return []outcome{mayBe, no, yes}[o] }

func both(a, b outcome) outcome {
	switch {
	case a == no || b == no:
		return no
	case a == yes && b == yes:
		return yes
	}
	return mayBe
}

func either(a, b outcome) outcome { return both(a.not(), b.not()).not() }

// A condition of more commands, or one of them of more words, is not looked into.
const (
	maxCondition      = 16
	maxConditionWords = 64
)

// unreachable says that a command never runs, whatever machine the script is on.
func (s *shellScript) unreachable(c shellCommand) bool { return s.never(c.guard) }

func (s *shellScript) never(g *guard) bool {
	if g == nil {
		return false
	}
	if !g.known {
		g.known = true
		held := s.held(g)
		g.never = held == yes && !g.want || held == no && g.want || s.never(g.parent)
	}
	return g.never
}

// held evaluates the commands of a condition.
func (s *shellScript) held(g *guard) outcome {
	if !g.evaluated {
		g.evaluated, g.outcome = true, s.evaluate(g)
	}
	return g.outcome
}

func (s *shellScript) evaluate(g *guard) outcome {
	if g.to-g.from > maxCondition || g.to <= g.from {
		return mayBe
	}
	result := mayBe
	for i := g.from; i < g.to; i++ {
		c := s.commands[i]
		if c.depth != g.depth {
			continue // substituted into one of the others
		}
		if c.nest != g.nest || c.joint == "|" {
			return mayBe
		}
		value := s.test(i)
		if c.negated {
			value = value.not()
		}
		switch c.joint {
		case "&&":
			result = both(result, value)
		case "||":
			result = either(result, value)
		default:
			result = value
		}
	}
	return result
}

// test evaluates one command as a condition.
func (s *shellScript) test(at int) outcome {
	words := s.commands[at].words
	if len(words) == 0 {
		return mayBe
	}
	closing, closed := map[string]string{"[": "]", "[[": "]]"}[words[0]]
	switch {
	case words[0] == "true" || words[0] == ":":
		return yes
	case words[0] == "false":
		return no
	case closed && words[len(words)-1] == closing:
		words = words[1 : len(words)-1]
	case words[0] == "test":
		words = words[1:]
	default:
		return mayBe
	}
	if len(words) > maxConditionWords || closing != "]]" && s.splits(at) {
		return mayBe
	}
	return s.expression(words, at)
}

// splits says whether a command may get other words than its text has, because of
// an expansion without quotes.
func (s *shellScript) splits(at int) bool {
	return slices.ContainsFunc(s.commands[at].bare, func(i int) bool {
		values := s.values(s.commands[at].words[i], at)
		return values == nil || slices.ContainsFunc(values, func(value string) bool { return value == "" || strings.ContainsAny(value, " \t\n*?[") })
	})
}

// expression evaluates what stands in brackets, || and -o binding least.
func (s *shellScript) expression(words []string, at int) outcome {
	if slices.Contains(words, "(") {
		return mayBe
	}
	for _, join := range []struct {
		long, short string
		combine     func(a, b outcome) outcome
	}{{"||", "-o", either}, {"&&", "-a", both}} {
		for i, word := range words {
			if i > 0 && (word == join.long || word == join.short) {
				return join.combine(s.expression(words[:i], at), s.expression(words[i+1:], at))
			}
		}
	}
	if len(words) > 0 && words[0] == "!" {
		return s.expression(words[1:], at).not()
	}
	switch {
	case len(words) == 1:
		return s.compare(words[0], "!=", "", at)
	case len(words) == 2 && words[0] == "-n":
		return s.compare(words[1], "!=", "", at)
	case len(words) == 2 && words[0] == "-z":
		return s.compare(words[1], "=", "", at)
	case len(words) == 3:
		return s.compare(words[0], words[1], words[2], at)
	}
	return mayBe
}

// compare is certain when all values the words can have there compare alike.
func (s *shellScript) compare(a, operator, b string, at int) outcome {
	result := mayBe
	for _, x := range s.values(a, at) {
		for _, y := range s.values(b, at) {
			value := compareValues(x, operator, y)
			if value == mayBe || result != mayBe && result != value {
				return mayBe
			}
			result = value
		}
	}
	return result
}

func compareValues(x, operator, y string) outcome {
	if operator == "=" || operator == "==" || operator == "!=" {
		if strings.ContainsAny(y, "*?[") { // a pattern, perhaps
			return mayBe
		}
		return certainly((x == y) == (operator != "!="))
	}
	m, err1 := strconv.Atoi(x)
	n, err2 := strconv.Atoi(y)
	if err1 != nil || err2 != nil {
		return mayBe
	}
	switch operator {
	case "-eq":
		return certainly(m == n)
	case "-ne":
		return certainly(m != n)
	case "-gt":
		return certainly(m > n)
	case "-ge":
		return certainly(m >= n)
	case "-lt":
		return certainly(m < n)
	case "-le":
		return certainly(m <= n)
	}
	return mayBe
}

func certainly(holds bool) outcome {
	if holds {
		return yes
	}
	return no
}

// values returns what a word can be in the command at that place, or nil where
// that is not certain.
func (s *shellScript) values(word string, at int) []string {
	if !s.certain(word, at, s.commands[at].block) {
		return nil
	}
	return s.expand(word)
}

// certain says that all variables of a word have been assigned when a command there
// runs: before its first assignment a variable may be anything.
func (s *shellScript) certain(word string, at, block int) bool {
	for _, match := range expansion().FindAllStringSubmatch(word, -1) {
		if !slices.ContainsFunc(s.given[match[1]], func(given int) bool { return given < at && s.within(block, s.commands[given].block) }) {
			return false
		}
	}
	return true
}

// within says that a block is another one or inside of it.
func (s *shellScript) within(block, around int) bool {
	for block > around { // a block is younger than the one around it
		block = s.blocks[block]
	}
	return block == around
}
