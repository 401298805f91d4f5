// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// licence is one that a file grants, in that file's words.
type licence struct {
	name string // Debian's short name
	text string
}

// known is a licence's text by its first and last words. One kind of text is known
// under several names when they differ in the middle.
type known struct {
	before     string // a heading that says nothing about the work, as a regular expression
	begin, end string
	after      string            // as before
	names      map[string]string // by fingerprint
}

// knownTexts are those that somebody has read. Another wording, which may be another
// licence, is an error until its fingerprint is added.
var knownTexts = []known{
	{
		before: `(?:Apache License\s+Version 2\.0, January 2004\s+https?://www\.apache\.org/licenses/\s+)?` +
			`(?:TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION\s+)?(?:1\. Definitions\.\s+)?`,
		begin: `"License" shall mean the terms and conditions for use`,
		end:   `any such warranty or additional liability.`,
		after: `(?:\s+END OF TERMS AND CONDITIONS)?(?:\s+APPENDIX: How to apply.*?third-party archives\.)?`,
		names: map[string]string{"173ce91d427c8147": "Apache-2.0"},
	},
	{
		begin: `Licensed under the Apache License, Version 2.0`,
		end:   `limitations under the License.`,
		names: map[string]string{"76b74bae095290b0": "Apache-2.0"},
	},
	{
		begin: `Redistribution and use in source and binary forms`,
		end:   `POSSIBILITY OF SUCH DAMAGE.`,
		names: map[string]string{"125653d71e4cd329": "BSD-2-clause", "890a32020111b7fe": "BSD-3-clause"},
	},
	{
		begin: `Permission is hereby granted, free of charge, to any person obtaining a copy`,
		end:   `DEALINGS IN THE SOFTWARE.`,
		names: map[string]string{"34564db085181523": "Expat"},
	},
	{
		begin: `Permission to use, copy, modify, and`,
		end:   `PERFORMANCE OF THIS SOFTWARE.`,
		names: map[string]string{"648983243b7da9fb": "ISC"},
	},
	{
		before: `(?:Mozilla Public License Version 2\.0\s+=*\s*)?`,
		begin:  `1. Definitions`,
		end:    `defined by the Mozilla Public License, v. 2.0.`,
		names:  map[string]string{"ca2075c595ae9a69": "MPL-2.0"},
	},
}

// recognise finds the licences that a file grants. The rest is what it says besides,
// the texts replaced by their names; it is empty when that is no more than one
// licence, its title and whose work it is.
func recognise(file string) (found []licence, rest string, err error) {
	rest = file
	for _, k := range knownTexts {
		pattern := regexp.MustCompile(`(?is)` + k.before + `(` + phrase(k.begin) + `.*?` + phrase(k.end) + `)` + k.after)
		for at := pattern.FindStringSubmatchIndex(rest); at != nil; at = pattern.FindStringSubmatchIndex(rest) {
			text := rest[at[2]:at[3]]
			name := k.names[fingerprint(text)]
			if name == "" {
				return nil, "", fmt.Errorf("the text from %q on is none of those known (its fingerprint is %s)", k.begin, fingerprint(text))
			}
			found = append(found, licence{name, text})
			rest = rest[:at[0]] + "[" + name + "]" + rest[at[1]:]
		}
	}
	if len(found) == 0 {
		return nil, "", errors.New("its text is not known")
	}
	plain := !slices.ContainsFunc(found, func(l licence) bool { return l.name != found[0].name })
	for line := range strings.Lines(rest) {
		if grants.MatchString(line) {
			return nil, "", fmt.Errorf("it grants or forbids something besides: %q", strings.TrimSpace(line))
		}
		plain = plain && saysNothing.MatchString(strings.TrimSpace(line))
	}
	if plain {
		return found, "", nil
	}
	return found, strings.Trim(rest, "\n"), nil
}

var (
	grants = regexp.MustCompile(`(?i)\b(permi(t|ssion)|redistribut|hereby|provided that|warrant|prohibit|restrict)`)
	// saysNothing is a line with a copyright statement, a title, a licence's name or none of it.
	saysNothing = regexp.MustCompile(`(?i)^\W*(copyright\b.*|all rights reserved\W*|` +
		`(the )?(mit|expat|isc|apache|bsd [23]-clause|mozilla public) license( \(mit\))?\W*|\[[-.0-9a-z]+\]\W*)?$`)
)

// phrase is the pattern of words, whatever is between them.
func phrase(text string) string {
	words := strings.Fields(text)
	for i, word := range words {
		words[i] = regexp.QuoteMeta(word)
	}
	return strings.Join(words, `\s+`)
}

// words are a text's words without case, marks, numbers and list letters.
func words(text string) string {
	text = strings.ReplaceAll(strings.ToLower(text), "https:", "http:")
	return strings.Join(regexp.MustCompile(`[a-z]{2,}`).FindAllString(text, -1), " ")
}

// fingerprint is the start of the SHA-256 of a text's words without the names of those who grant it.
func fingerprint(text string) string {
	text = words(text)
	for _, name := range []string{`neither the (.{1,200}?) may be used`, `provided by (.{1,200}?) as is`, `in no event shall (.{1,200}?) be liable`} {
		if at := regexp.MustCompile(name).FindStringSubmatchIndex(text); at != nil {
			text = text[:at[2]] + text[at[3]:]
		}
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:16]
}
