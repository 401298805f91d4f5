// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"

	"nodeagent/internal/secret"
)

// kubeadmOutput reads kubeadm's output (at -v=5) line by line and keeps what
// tells an operator something. A cluster that this machine does not belong to may
// have a hand in what kubeadm prints, so all of it is bounded and without control
// characters.
type kubeadmOutput struct {
	preflight []string // the failed checks: "Port-6443: Port 6443 is in use"
	warnings  []string // the first ones of its log
	cause     string   // kubeadm's own last word, in one line
	inCause   bool     // it may go on in the next line
	chain     []string // what stood before stack traces, the innermost error first: kubeadm of before 1.34
	message   []string // what may be the next of them
	waiting   string   // why it tries something again, until it prints anything else
	tail      []string // last lines, without debug messages and stack traces
}

const (
	keepTail      = 25
	keepPreflight = 50
	keepWarnings  = 10
	keepChain     = 15
	keepMessage   = 6
	maxLine       = 600 // bytes of a line that are kept
)

var (
	preflightError = pattern(`^\s*\[ERROR ([^\]]+)\]: (.*)$`)
	phaseLine      = pattern(`^\[[a-z][a-z0-9-]*\] `)
	logLine        = pattern(`^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [^ \]]+\] (.*)$`)
	retrying       = pattern(`^\[[a-z-]+\] (?:Retrying due to error|Failed to request cluster-info, will try again): (.*)$`)
	// A stack trace is pairs of lines: a function, and the indented file it is in.
	traceFile     = pattern(`^\s+\S+\.(go|s):\d+$`)
	traceFunction = pattern(`^(main|runtime|[a-z0-9.-]+(/[A-Za-z0-9._~-]+)+)\.\S+$`)
	colour        = pattern("\x1b\\[[0-9;]*m")
)

// pattern is a regular expression that is compiled when it is first used: most
// commands of nodeagent, and most boots, never run kubeadm.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// add takes one line and returns it when it is worth showing as progress, such as
// "[certs] Generating "ca" certificate and key".
func (o *kubeadmOutput) add(line string) (progress string) {
	line = clean(line)
	if entry := logLine().FindStringSubmatch(line); entry != nil {
		if entry[1] != "I" && len(o.warnings) < keepWarnings {
			o.warnings = append(o.warnings, entry[2])
		}
		if again := retrying().FindStringSubmatch(entry[2]); again != nil {
			o.waiting = again[1]
		}
		if entry[1] == "I" {
			return ""
		}
	}
	if strings.HasPrefix(line, `{"level":"`) { // the etcd client's log
		return ""
	}
	if traceFile().MatchString(line) || traceFunction().MatchString(line) || line == "no stack trace" {
		o.chain = append(o.chain, o.message...)
		o.chain = o.chain[:min(len(o.chain), keepChain)]
		o.message, o.inCause = nil, false
		return ""
	}
	o.waiting = ""
	o.addMessage(line)
	o.tail = append(o.tail, line)
	if len(o.tail) > keepTail {
		o.tail = o.tail[1:]
	}
	found := preflightError().FindStringSubmatch(line)
	if found != nil && len(o.preflight) < keepPreflight {
		o.preflight = append(o.preflight, found[1]+": "+found[2])
	}
	if phaseLine().MatchString(line) {
		progress = line
	}
	o.addCause(line, progress == "" && found == nil)
	return progress
}

// addCause takes a line that may be kubeadm's last word, or, where more says that
// it is nothing else, a further line of it.
func (o *kubeadmOutput) addCause(line string, more bool) {
	text, ok := strings.CutPrefix(line, "error: ")
	switch {
	case ok || strings.HasPrefix(line, "error execution phase "):
		o.cause, o.inCause = strings.TrimSpace(text), true
	case strings.HasPrefix(line, "To see the stack trace"):
		o.inCause = false
	case o.inCause && more && strings.TrimSpace(line) != "" && len(o.cause)+len(line) < maxLine:
		o.cause += " " + strings.TrimSpace(line)
	}
}

// addMessage takes a line that may stand before a stack trace, for it is nothing else.
func (o *kubeadmOutput) addMessage(line string) {
	switch {
	case line == "":
	case line[0] == '\t' || phaseLine().MatchString(line) || logLine().MatchString(line):
		o.message = nil
	default:
		o.message = append(o.message, line)
		o.message = o.message[max(0, len(o.message)-keepMessage):]
	}
}

// lastWord is why kubeadm says it failed, in the form that it has since 1.34: the
// outermost error first. It is empty when kubeadm said nothing.
func (o *kubeadmOutput) lastWord() string {
	if len(o.chain) > 1 && o.cause == o.chain[len(o.chain)-1] || o.cause == "" && len(o.chain) > 0 {
		outermost := slices.Clone(o.chain)
		slices.Reverse(outermost)
		return strings.Join(outermost, ": ")
	}
	return o.cause
}

// where says at what kubeadm was when it was stopped.
func (o *kubeadmOutput) where() string {
	if o.waiting != "" || len(o.tail) == 0 {
		return o.waiting
	}
	return o.tail[len(o.tail)-1]
}

// clean bounds a line and takes colours and control characters out of it, which a
// terminal would obey.
func clean(line string) string {
	hidden := func(r rune) bool { return r != '\t' && unicode.IsControl(r) }
	if strings.ContainsFunc(line, hidden) {
		line = strings.Map(func(r rune) rune {
			if hidden(r) {
				return -1
			}
			return r
		}, colour().ReplaceAllString(line, ""))
	}
	if len(line) > maxLine {
		line = line[:maxLine] + "..."
	}
	return strings.ToValidUTF8(line, "")
}

// scrubber returns a function that takes the secrets out of a text. Of two of
// which one holds the other, the longer one is looked for first.
func scrubber(secrets []string) func(string) string {
	var pairs []string
	for _, s := range slices.SortedFunc(slices.Values(secrets), func(a, b string) int { return len(b) - len(a) }) {
		if s != "" {
			pairs = append(pairs, s, secret.Redacted)
		}
	}
	return strings.NewReplacer(pairs...).Replace
}
