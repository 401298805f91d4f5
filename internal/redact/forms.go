// SPDX-License-Identifier: Apache-2.0

package redact

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
)

const (
	shortest = 4    // bytes of a secret that is looked for
	largest  = 4096 // longer ones are keys and documents, known by their form
)

// form is one way in which a secret is written.
type form struct {
	text string
	// encoded says that it stands for a part of a longer base64, all of which goes.
	encoded bool
}

// learn adds all forms of a secret.
func (r *Rules) learn(value string) {
	if len(value) < shortest || len(value) > largest || isWord(value) {
		return
	}
	escaped, err := json.Marshal(value)
	if err == nil {
		r.add(strings.Trim(string(escaped), `"`), false)
	}
	quoted := strconv.Quote(value)
	for _, text := range []string{
		value, quoted[1 : len(quoted)-1], url.QueryEscape(value), url.PathEscape(value),
		strings.ReplaceAll(value, "'", `'\''`), strings.ReplaceAll(value, "'", "''"),
		hex.EncodeToString([]byte(value)), strings.ToUpper(hex.EncodeToString([]byte(value))),
	} {
		r.add(text, false)
	}
	for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 {
			r.add(middle(encoding, before, value), true)
		}
	}
}

// middle is what of the base64 of a text with the value in it depends on the value
// alone, where before bytes (modulo 3) stand before it.
func middle(encoding *base64.Encoding, before int, value string) string {
	text := encoding.EncodeToString([]byte(strings.Repeat("\x00", before) + value))
	first := (before*8 + 5) / 6
	whole := (before + len(value)) * 8 / 6
	return text[min(first, whole):whole]
}

func (r *Rules) add(text string, encoded bool) {
	if len(text) < shortest || encoded && len(text) < 6 {
		return
	}
	key := [shortest]byte([]byte(text[:shortest]))
	for _, have := range r.forms[key] {
		if have.text == text {
			return
		}
	}
	r.forms[key] = append(r.forms[key], form{text, encoded})
	r.longest = max(r.longest, len(text))
}

// known returns where a line has a known secret.
func (r *Rules) known(line string) (spans []span) {
	if len(r.forms) == 0 {
		return nil
	}
	run := span{} // the last base64 that a secret was found in
	for at := 0; at+shortest <= len(line); at++ {
		for _, form := range r.forms[[shortest]byte([]byte(line[at:at+shortest]))] {
			if !strings.HasPrefix(line[at:], form.text) {
				continue
			}
			s := span{at, at + len(form.text)}
			if form.encoded {
				if s.to > run.to {
					run = runAround(line, s)
				}
				s = run
			}
			spans = append(spans, s)
			break
		}
	}
	return spans
}

// runAround widens a span to the whole base64 it is in.
func runAround(line string, s span) span {
	for s.from > 0 && isBase64(line[s.from-1]) {
		s.from--
	}
	for s.to < len(line) && isBase64(line[s.to]) {
		s.to++
	}
	return s
}

// isWord says that a value is one of those that stand for no secret.
func isWord(value string) bool {
	switch strings.ToLower(strings.Trim(value, `"' ,;`)) {
	case "", "true", "false", "null", "none", "nil", "yes", "[]", "{}", "<nil>", "[redacted]", "<redacted>", "<unset>", "redacted":
		return true
	}
	return false
}
