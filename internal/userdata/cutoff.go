// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// CloudStack refuses userdata that is too long (UserDataManagerImpl: "exceeded
// configurable max length") and cuts none. Still a text can arrive without its end.
// That is said only where the end is what is missing, for whoever reads it looks for
// the rest then and not for the mistake.

// ownText is what the userdata of CloudStack's Kubernetes service holds before its end,
// the runcmd that starts it all.
var (
	ownText     = pattern(`(?m)^[^#\n]*\bpath: *["']?(?:/opt/bin/(?:setup|deploy)-(?:kube-system|etcd-node)|/etc/kubernetes/pki/cloudstack/)`)
	runcmdBegin = pattern(`(?m)^runcmd:`)
	yamlLine    = pattern(`\bline ([0-9]+)`)
)

// cut reports what a text lacks that its beginning promised. Where the text itself
// is of a kind that is not read wholly, something missing says nothing.
func (p *parser) cut(key, format string, args ...any) {
	if p.config != nil && len(p.config.strange) > 0 {
		return
	}
	p.tellCut(p.endMissing(key), key, fmt.Sprintf(format, args...))
}

// endMissing says that what is about a key is missing where the text ends: runcmd is
// the last of CloudStack's texts.
func (p *parser) endMissing(key string) bool {
	keys := p.config.keysOf()
	last := len(keys) > 0 && keys[len(keys)-1] == "runcmd"
	return last == (key == "runcmd") || !p.config.hasRuncmd
}

// unreadable reports a cloud-config that cannot be read.
func (p *parser) unreadable(err error, text []byte) {
	message := err.Error()
	line := 0
	if match := yamlLine().FindStringSubmatch(message); match != nil {
		line, _ = strconv.Atoi(match[1])
	}
	midLine := len(text) > 0 && text[len(text)-1] != '\n' && line > 0 && line >= bytes.Count(text, []byte("\n"))
	midLine = midLine && strings.Contains(message, "find expected") // not of a character that is wrong wherever it is
	p.tellCut(midLine || strings.Contains(message, "end of stream") || ownText().Match(text) && !runcmdBegin().Match(text), "", message)
}

// tellCut reports it, and says once what may be the reason.
func (p *parser) tellCut(ends bool, key, message string) {
	switch {
	case p.cutTold:
	case p.merged:
		message += "; of its cloud-configs, cloud-init lets a key of a later one replace the same key of an earlier one"
		p.cutTold = true
	case ends:
		message += "; " + p.ending + ": it was cut off, or is not complete"
		p.cutTold = true
	}
	p.invalid(key, "%s", message)
}

// endingOf says where a text ends.
func endingOf(label string, text []byte) string {
	where, lines := "with", bytes.Count(text, []byte("\n"))
	if len(text) > 0 && text[len(text)-1] != '\n' {
		where, lines = "in", lines+1
	}
	return fmt.Sprintf("%s ends %s line %d, after %d bytes", label, where, lines, len(text))
}

// loseRegistry notes that a template has the script for the registry, which what
// cloud-init makes of it may not have.
func (p *parser) loseRegistry(configs []part) {
	script := []byte("path: " + containerdScript)
	p.lostRegistry = slices.ContainsFunc(configs, func(c part) bool { return bytes.Contains(c.template, script) })
}
