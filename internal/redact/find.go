// SPDX-License-Identifier: Apache-2.0

package redact

import "strings"

// Find returns the values of secret keys in a text, such as a configuration file: what
// New is to know, so that they are struck where no key stands before them, too.
func Find(text string) (values []string) {
	r := reader{rules: New(nil), found: func(value string) { values = append(values, value) }}
	for line := range strings.Lines(text) {
		r.strike(strings.TrimRight(line, "\r\n"))
	}
	return values
}
