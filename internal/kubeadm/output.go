// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"regexp"
	"strings"

	"nodeagent/internal/secret"
)

// kubeadmOutput reads kubeadm's output (at -v=5) line by line and keeps what
// tells an operator something.
type kubeadmOutput struct {
	preflight []string // the failed checks: "Port-6443: Port 6443 is in use"
	cause     string   // kubeadm's own last word
	tail      []string // last lines, without debug messages and stack traces
}

const (
	keepTail      = 25
	keepPreflight = 50
	maxLine       = 600 // bytes of a line that are kept
)

var (
	preflightError = regexp.MustCompile(`^\s*\[ERROR ([^\]]+)\]: (.*)$`)
	phaseLine      = regexp.MustCompile(`^\[[a-z][a-z0-9-]*\] `)
	debugLine      = regexp.MustCompile(`^I\d{4} \d\d:\d\d:\d\d\.\d+ `)
	// A stack trace is pairs of lines: a function, and the indented file it is in.
	traceFile     = regexp.MustCompile(`^\s+\S+\.(go|s):\d+$`)
	traceFunction = regexp.MustCompile(`^(main|runtime|[a-z0-9.-]+(/[A-Za-z0-9._~-]+)+)\.\S+$`)
)

// add takes one line and returns it when it is worth showing as progress, such as
// "[certs] Generating "ca" certificate and key".
func (o *kubeadmOutput) add(line string) (progress string) {
	if len(line) > maxLine {
		line = strings.ToValidUTF8(line[:maxLine], "") + "..."
	}
	if debugLine.MatchString(line) || traceFile.MatchString(line) || traceFunction.MatchString(line) {
		return ""
	}
	o.tail = append(o.tail, line)
	if len(o.tail) > keepTail {
		o.tail = o.tail[1:]
	}
	if found := preflightError.FindStringSubmatch(line); found != nil && len(o.preflight) < keepPreflight {
		o.preflight = append(o.preflight, found[1]+": "+found[2])
	}
	if text, ok := strings.CutPrefix(line, "error: "); ok {
		o.cause = text
	} else if strings.HasPrefix(line, "error execution phase ") {
		o.cause = line
	}
	if phaseLine.MatchString(line) {
		return line
	}
	return ""
}

// scrubber returns a function that takes the secrets out of a text.
func scrubber(secrets []string) func(string) string {
	var pairs []string
	for _, s := range secrets {
		if s != "" {
			pairs = append(pairs, s, secret.Redacted)
		}
	}
	return strings.NewReplacer(pairs...).Replace
}
