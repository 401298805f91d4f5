// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// This file tells what CloudStack's scripts ask of a machine from what somebody else
// asks of it. nodeagent asks nothing: a condition, a pause or an end of an
// administrator's would be lost, so a script that holds one is left to cloud-init.

// Files that CloudStack's scripts, and its runcmd, look for.
const (
	askedByScripts = `(?:/home/cloud/success|(?:/mnt/k8sdisk|/mnt/etcddisk|/tmp/k8sconfigscripts)(?:/[^ ]*)?)`
	askedByRuncmd  = `(?:/home/cloud/success|` + setupScript + `|` + deployScript + `|` + etcdScript + `|/etc/systemd/system/(?:(?:setup|deploy)-kube-system|etcd)\.service)`
)

var variable = pattern(`\$(\w+)`)

// tests knows conditions about known files, and comparisons of what a script has
// given a value itself.
func tests(files string) rule {
	known := pattern(`^` + files + `$`)
	return rule{is: func(s *shellScript, args []string) bool {
		first := true // of an expression
		for i, arg := range args {
			switch {
			case first && len(arg) == 2 && arg[0] == '-' && arg != "-n" && arg != "-z":
				if !slices.Contains([]string{"-e", "-f", "-d"}, arg) || i+1 == len(args) || !known().MatchString(args[i+1]) {
					return false
				}
			case arg == "-nt" || arg == "-ot" || arg == "-ef":
				return false
			}
			first = slices.Contains([]string{"!", "(", "&&", "||", "-a", "-o"}, arg)
			for _, match := range variable().FindAllStringSubmatch(arg, -1) {
				if _, given := s.vars[match[1]]; !given && match[1] != "PATH" {
					return false
				}
			}
		}
		return true
	}}
}

// misplaced says what is strange about a command that is CloudStack's by itself, ""
// when nothing: whether kubeadm and kubectl run, or the script ends, must not depend on
// what CloudStack does not ask, and only the look for the ISO pauses.
func (s *shellScript) misplaced(at int) string {
	for _, words := range s.variants(s.commands[at].words) {
		if what := s.misplacedWords(at, words); what != "" {
			return what
		}
	}
	return ""
}

func (s *shellScript) misplacedWords(at int, words []string) string {
	for len(words) > 1 && (words[0] == "sudo" || assignment().MatchString(words[0])) {
		words = words[1:]
	}
	if len(words) == 0 {
		return ""
	}
	c, what := s.commands[at], path.Base(words[0])
	switch {
	case what == "sleep" && !s.waitsForISO(c.loop):
		return ": it waits where CloudStack's does not"
	case what == "return" && c.nest == 0,
		what == "exit" && (len(words) == 1 || words[1] == "0") && !s.succeeded(c.guard) && !s.atEnd(at),
		what == "exit" && !s.undecided(c.guard) && !s.atEnd(at):
		return ": it ends where CloudStack's does not"
	case what == "exit", len(words) > 1 && what == "kubeadm" && (words[1] == "init" || words[1] == "join"),
		len(words) > 1 && what == "kubectl" && (words[1] == "apply" || words[1] == "create"):
		if !s.asked(c.guard) {
			return fmt.Sprintf(": whether %s runs depends on a condition that is not CloudStack's", what)
		}
	}
	return ""
}

// waitsForISO says that a loop looks for the ISO.
func (s *shellScript) waitsForISO(loop int) bool {
	if s.isoLoops == nil {
		s.isoLoops = map[int]bool{}
		for _, c := range s.commands {
			if len(c.words) == 0 || path.Base(c.words[0]) != "blkid" {
				continue
			}
			for around := c.loop; around > 0 && !s.isoLoops[around]; around = s.loops[around] {
				s.isoLoops[around] = true
			}
		}
	}
	return s.isoLoops[loop]
}

// atEnd says that nothing comes after a command, which always runs.
func (s *shellScript) atEnd(at int) bool {
	return at == len(s.commands)-1 && s.commands[at].guard == nil && s.commands[at].nest == 0
}

// succeeded says that a guard wants the file that the scripts leave behind.
func (s *shellScript) succeeded(g *guard) bool {
	for ; g != nil; g = g.parent {
		if g.to-g.from != 1 || !g.want || s.commands[g.from].negated {
			continue
		}
		words := s.variants(s.commands[g.from].words)[0]
		if (len(words) == 3 || len(words) == 4) && slices.Equal(words[1:3], []string{"-f", "/home/cloud/success"}) {
			return true
		}
	}
	return false
}

// undecided says that it depends on the machine whether a guard holds.
func (s *shellScript) undecided(g *guard) bool {
	for ; g != nil; g = g.parent {
		if s.held(g) == mayBe {
			return true
		}
	}
	return false
}

// asked says that a guard, and all around it, holds or not whatever the machine is
// like, or asks only what CloudStack's scripts ask.
func (s *shellScript) asked(g *guard) bool {
	if g == nil {
		return true
	}
	if !g.judged {
		g.judged, g.ours = true, (s.held(g) != mayBe || s.asks(g)) && s.asked(g.parent)
	}
	return g.ours
}

// asks says that the commands of a condition are CloudStack's. Of the tests, the files
// were looked at by their rule.
func (s *shellScript) asks(g *guard) bool {
	if g.to <= g.from || g.to-g.from > maxCondition {
		return false
	}
	inside := 0 // commands whose output is compared
	for _, c := range s.commands[g.from:g.to] {
		if len(c.words) == 0 {
			return false
		}
		name := c.words[0]
		switch {
		case c.depth > g.depth || name == "systemctl":
			unit := strings.TrimSuffix(strings.Join(c.words, " "), ".service")
			if unit != "systemctl is-active setup-kube-system" && unit != "systemctl is-active --quiet setup-kube-system" {
				return false
			}
			inside++
		case name == "true" || name == "false" || name == ":" || s.functions[name] && len(c.words) == 1:
		case name == "((":
			if slices.ContainsFunc(variableName().FindAllString(c.arithmetic, -1), func(name string) bool { return !s.own(name) }) {
				return false
			}
		case name == "[" || name == "[[" || name == "test":
			for _, match := range expansion().FindAllStringSubmatch(strings.Join(c.words, " "), -1) {
				if match[1] == "" && inside > 0 {
					inside--
				} else if !s.own(match[1]) {
					return false
				}
			}
		default:
			return false
		}
	}
	return true
}

var variableName = pattern(`[A-Za-z_]\w*`)

// own says that a variable holds nothing but what the script says, counts, or has got
// as a command's status.
func (s *shellScript) own(name string) bool {
	if name == "PATH" || name == "?" || name == computed {
		return true
	}
	if s.foreign == nil {
		s.foreign = map[string]bool{}
		for _, c := range s.commands {
			s.findForeign(c)
		}
	}
	_, given := s.vars[name]
	return given && !s.foreign[name]
}

// findForeign notes the variables that a command gives a value from outside.
func (s *shellScript) findForeign(c shellCommand) {
	for i, word := range c.words {
		if i > 0 && (c.words[0] == "read" || c.words[0] == "printf" || c.words[0] == "for" && i == 1 && s.vars[word] == nil && c.arithmetic == "") {
			s.foreign[word] = true
		}
		match := assignment().FindStringSubmatch(word)
		if match == nil {
			continue
		}
		for _, used := range expansion().FindAllStringSubmatch(match[2], -1) {
			if s.vars[used[1]] == nil && used[1] != "?" && used[1] != computed {
				s.foreign[match[1]] = true
			}
		}
	}
}
