// SPDX-License-Identifier: Apache-2.0

package redact

import (
	"slices"
	"strings"
)

// ByForm strikes only what is secret wherever it stands, such as bootstrap tokens, private
// keys and passwords in URLs: for text that was written with care, in which a key may be
// followed by what is wrong with it.
func ByForm(text string) string {
	var out strings.Builder
	r := reader{rules: New(nil)}
	for line := range strings.Lines(text) {
		whole := strings.TrimRight(line, "\n")
		out.WriteString(cutOut(whole, slices.Concat(r.privateKey(whole), r.certificateKey(whole), byForm(whole))) + line[len(whole):])
	}
	return out.String()
}

// Find returns the values of secret keys in a text, such as a configuration file: what
// New is to know, so that they are struck where no key stands before them, too.
func Find(text string) (values []string) {
	r := reader{rules: New(nil), found: func(value string) { values = append(values, value) }}
	for line := range strings.Lines(text) {
		r.strike(strings.TrimRight(line, "\r\n"))
	}
	slices.Sort(values)
	return slices.Compact(values)
}
