// SPDX-License-Identifier: Apache-2.0

// Package secret holds text that must not be seen: tokens, certificate keys,
// passwords. A Text shows itself as [redacted] however it is printed, logged or
// encoded; Reveal is the one way to its value, so a search for Reveal finds
// every place a secret is used.
package secret

import "encoding/json"

// Redacted is what a Text prints as.
const Redacted = "[redacted]"

// Text is a secret string. The zero Text is empty and prints as "".
type Text struct{ value string }

// New hides value.
func New(value string) Text { return Text{value} }

// Reveal returns the secret itself.
func (t Text) Reveal() string { return t.value }

// Empty says that there is no secret.
func (t Text) Empty() bool { return t.value == "" }

// String returns Redacted, or "" for an empty Text.
func (t Text) String() string {
	if t.value == "" {
		return ""
	}
	return Redacted
}

// GoString keeps %#v from showing the value.
func (t Text) GoString() string { return t.String() }

// MarshalJSON writes the redacted form.
func (t Text) MarshalJSON() ([]byte, error) { return json.Marshal(t.String()) }

// MarshalText writes the redacted form; YAML and TOML encoders use it.
func (t Text) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// IsZero lets omitzero drop an empty Text.
func (t Text) IsZero() bool { return t.value == "" }
