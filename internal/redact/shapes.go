// SPDX-License-Identifier: Apache-2.0

package redact

import "strings"

// isList says that a value is a list or an object, which may go on for lines.
func isList(value string) bool {
	return strings.HasPrefix(value, "[") || strings.HasPrefix(value, "{")
}

// maxListLines is how many lines a list goes on for at most: in a log it may never end.
const maxListLines = 100

var quotedText = pattern(`"([^"]*)"|'([^']*)'`)

// openList looks whether the list that begins a value is closed in its line, and tells
// what is in it.
func (r *reader) openList(value string) {
	r.open, r.left = depth(value), maxListLines
	if value[0] == '[' {
		r.tellQuoted(value)
	}
}

func (r *reader) tellQuoted(text string) {
	if r.found == nil {
		return
	}
	for _, quoted := range quotedText().FindAllString(text, -1) {
		r.tell(quoted)
	}
}

// list returns where a line goes on with a list that is secret.
func (r *reader) list(line string) []span {
	if r.open <= 0 {
		return nil
	}
	from := len(line) - len(strings.TrimLeft(line, " \t"))
	if from == len(line) {
		return nil
	}
	r.tellQuoted(line)
	r.open += depth(line)
	if r.left--; r.left == 0 {
		r.open = 0
	}
	return []span{{from, len(line)}}
}

// depth is how many more brackets a text opens than it closes, outside quotes.
func depth(text string) (depth int) {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		case '"', '\'':
			// One that is not closed is no quote.
			if end := strings.IndexByte(text[i+1:], text[i]); end >= 0 {
				i += end + 1
			} else if text[i] == '"' {
				return depth
			}
		}
	}
	return depth
}

var (
	// As Go prints a pod's variable (k8s.io/api/core/v1, EnvVar.String).
	goVariable = pattern(`EnvVar\{Name:[^,]*,Value:(.*?)(?:,ValueFrom:|$)`)
	// The same in YAML and JSON, in one line.
	variable = pattern(`\bname\\*["']?\s*:\s*\\*["']?([A-Za-z0-9_.-]+)\\*["']?\s*,\s*\\*["']?value\\*["']?\s*:\s*`)
)

// variables returns where a line has the values of variables of pods: of those that Go
// printed all, of others those with a secret name.
func (r *reader) variables(line string) (spans []span) {
	if strings.Contains(line, "EnvVar{") {
		for _, at := range goVariable().FindAllStringSubmatchIndex(line, -1) {
			if at[3] > at[2] {
				spans = append(spans, span{at[2], at[3]})
			}
		}
	}
	if !strings.Contains(line, "value") {
		return spans
	}
	for _, at := range variable().FindAllStringSubmatchIndex(line, maxKeys) {
		if !isSecret(line[at[2]:at[3]], "=") {
			continue
		}
		s := valueAt(line, at[1])
		if rest := line[s.from:]; s.from < len(line) && !strings.ContainsAny(rest[:1], `\"'`) {
			// A plain value ends with its object; it may have spaces.
			if end := strings.IndexByte(rest, '}'); end >= 0 {
				s.to = s.from + end
			} else {
				s.to = len(line)
			}
		}
		if s.to > s.from {
			spans = r.addValue(spans, line, s)
		}
	}
	return spans
}

// As in ipsec.secrets(5).
var preShared = pattern(`\bPSK\s+\\*["']?`)

// psk returns where a line has a pre-shared key of IPsec.
func (r *reader) psk(line string) (spans []span) {
	if !strings.Contains(line, "PSK") {
		return nil
	}
	for _, at := range preShared().FindAllStringIndex(line, maxKeys) {
		from := at[1] - len(line[at[0]:at[1]]) + len("PSK")
		for isBlank(line[from]) {
			from++
		}
		if s := valueAt(line, from); s.to > s.from && (from < at[1] || strings.HasPrefix(line[from:], "0")) {
			spans = r.addValue(spans, line, s)
		}
	}
	return spans
}

var longHex = pattern(`\b[0-9a-fA-F]{64}\b`)

// certificateKey returns where a line has the key that kubeadm prints below "Using
// certificate key:" (kubeadm's phase upload-certs).
func (r *reader) certificateKey(line string) (spans []span) {
	if strings.Contains(line, "ertificate") && strings.Contains(strings.ToLower(line), "certificate key") {
		r.hex = 3
	}
	if r.hex == 0 {
		return nil
	}
	r.hex--
	for _, at := range longHex().FindAllStringIndex(line, -1) {
		spans = append(spans, span{at[0], at[1]})
	}
	return spans
}
