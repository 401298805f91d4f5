// SPDX-License-Identifier: Apache-2.0

package redact

import (
	"regexp"
	"strconv"
	"strings"
	"sync"

	"nodeagent/internal/secret"
)

// pattern is a regular expression that is compiled when it is first used.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

func isBase64(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("+/=_-", c) >= 0
}

// Private keys in PEM (RFC 7468), which go on for lines.
var (
	keyBegin = pattern(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY`)
	keyEnd   = pattern(`-----END [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----`)
)

// maxKeyLines is how long a private key may be: RSA of 16384 bits has 200 lines.
const maxKeyLines = 400

func (r *reader) privateKey(line string) (spans []span) {
	if r.pem == 0 && !strings.Contains(line, "PRIVATE KEY") {
		return nil
	}
	from := 0
	for {
		if r.pem == 0 {
			begin := keyBegin().FindStringIndex(line[from:])
			if begin == nil {
				return spans
			}
			from += begin[0]
			r.pem = maxKeyLines
		}
		end := keyEnd().FindStringIndex(line[from:])
		if end == nil {
			r.pem--
			return append(spans, span{from, len(line)})
		}
		spans = append(spans, span{from, from + end[1]})
		from += end[1]
		r.pem = 0
	}
}

// base64 of this many bytes and more is no word, no name and no digest.
const longBase64 = 60

// base64 returns where a line has long base64, which may hold anything: userdata, keys.
// Lines that are all of them wrapped from one are struck to the last.
func (r *reader) base64(line string) (spans []span) {
	follows := r.encoded
	r.encoded = false
	for at := 0; at < len(line); at++ {
		if !isBase64(line[at]) {
			continue
		}
		from := at
		upper, lower, digits := 0, 0, 0
		for ; at < len(line) && isBase64(line[at]); at++ {
			switch c := line[at]; {
			case 'A' <= c && c <= 'Z':
				upper++
			case 'a' <= c && c <= 'z':
				lower++
			case '0' <= c && c <= '9':
				digits++
			}
		}
		last := strings.TrimRight(line[at:], "\r\"' ") == ""
		long := at-from >= longBase64 && upper >= 4 && lower >= 4 && digits >= 1
		begins := from == 0 || line[from-1] == ' ' || line[from-1] == '\t'
		if long || follows && last && begins {
			spans = append(spans, span{from, at})
			r.encoded = last && long
		}
	}
	return spans
}

var (
	yamlKey = pattern(`^([\s>-]*(?:- )?)["']?([A-Za-z0-9_./-]+)["']?\s*:(?:\s+(.*))?$`)
	// The whole of a value that is data of a Secret.
	dataValue = pattern(`^[A-Za-z0-9+/]{4,}={0,2}$`)
	jsonData  = pattern(`\\*"(?:stringData|data)\\*"\s*:\s*\{([^{}]*)\}`)
)

// yaml follows YAML: the values of secret keys that go on in deeper lines, and the data
// of Kubernetes' Secrets.
func (r *reader) yaml(line string) (spans []span) {
	if strings.Contains(line, `ata`) {
		for _, at := range jsonData().FindAllStringSubmatchIndex(line, -1) {
			if at[3] > at[2] {
				spans = append(spans, span{at[2], at[3]})
			}
		}
	}
	text := strings.TrimLeft(line, " ")
	column := len(line) - len(text)
	empty := strings.TrimSpace(text) == ""
	if r.block > 0 && !empty {
		if column >= r.block {
			return append(spans, span{column, len(line)})
		}
		r.block = 0
	}
	if r.data > 0 && !empty && column < r.data {
		r.data = 0
	}
	if r.env > 0 && !empty && column+1 < r.env && !strings.HasPrefix(text, "- ") {
		r.env = 0
	}
	if !strings.Contains(text, ":") {
		return spans
	}
	at := yamlKey().FindStringSubmatchIndex(line)
	if at == nil {
		return spans
	}
	column = at[3] // of the key: a dash before it belongs to the list
	key, value := line[at[4]:at[5]], ""
	if at[6] >= 0 {
		value = strings.TrimSpace(line[at[6]:at[7]])
	}
	bare := strings.Trim(strings.TrimSuffix(value, ","), `"'`)
	switch {
	case key == "name":
		r.env = 0
		if isSecret(strings.TrimRight(bare, `"'`), "=") {
			r.env = column + 1
		}
	case r.data > 0 && dataValue().MatchString(bare) && len(bare)%4 == 0:
		spans = append(spans, span{at[6], len(line)})
	case key == "data" && (value == "" || value == "{"):
		r.data = column + 1
	case key == "stringData" && (value == "" || value == "{"):
		r.block = column + 1
	case isSecret(key, ":") || key == "value" && r.env == column+1:
		// A scalar may go on in the lines below.
		r.block = column + 1
		if value != "" && !isWord(value) {
			spans = append(spans, span{at[6], len(line)})
			r.tell(value)
		}
	}
	return spans
}

// tell passes on a value as it is written and as it is meant.
func (r *reader) tell(value string) {
	if r.found == nil {
		return
	}
	r.found(strings.Trim(value, `\"' `))
	if inner, found := strings.CutPrefix(value, "'"); found { // YAML's
		r.found(strings.ReplaceAll(strings.TrimSuffix(inner, "'"), "''", "'"))
	}
	if meant, err := strconv.Unquote(value); err == nil && value[0] == '"' {
		r.found(meant)
	}
}

// maxKeys is how many keys of a line are looked at: each costs a look at its rest. What
// comes after as many is struck whole.
const maxKeys = 1000

// keyed returns where a line has the value of a key, flag or header that is secret.
func (r *reader) keyed(line string) (spans []span) {
	if !mayHaveSecretKey(line) {
		return nil
	}
	left := maxKeys
	for at := 0; at < len(line); at++ {
		key, sign, from := "", "=", 0
		switch line[at] {
		case '=', ':':
			key, sign, from = assigned(line, at)
		case '-':
			key, from = flagged(line, at)
		}
		if key == "" || !isSecret(key, sign) {
			continue
		}
		if left--; left == 0 {
			return append(spans, span{at, len(line)})
		}
		s := valueAt(line, from)
		switch {
		case isHeader(key):
			s = span{from, len(line)}
		case isList(line[s.from:s.to]):
			r.openList(line[s.from:s.to])
		}
		spans = r.addValue(spans, line, s)
	}
	return spans
}

func isKey(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '-'
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// assigned returns the key before a sign (= : := =>), which may be quoted, and where the
// value after it begins.
func assigned(line string, at int) (key, sign string, from int) {
	end, from := at, at+1
	sign = line[at : at+1]
	switch {
	case sign == ":" && from < len(line) && line[from] == '=': // the = will come
		return "", "", 0
	case sign == "=" && from < len(line) && line[from] == '>':
		from++
	case sign == "=" && at > 0 && line[at-1] == ':':
		end--
	}
	for end > 0 && isBlank(line[end-1]) {
		end--
	}
	if end > 0 && (line[end-1] == '"' || line[end-1] == '\'') {
		for end--; end > 0 && line[end-1] == '\\'; end-- {
		}
	}
	begin := end
	for begin > 0 && isKey(line[begin-1]) {
		begin--
	}
	for from < len(line) && isBlank(line[from]) {
		from++
	}
	return line[begin:end], sign, from
}

// flagged returns the name of the flag that begins with a dash and has its value in the
// next word, or the next element of a list, and where that begins.
func flagged(line string, at int) (key string, from int) {
	if at > 0 && !strings.ContainsRune(" \t\"'=[(,", rune(line[at-1])) {
		return "", 0
	}
	for at++; at < len(line) && line[at] == '-'; at++ {
	}
	end := at
	for end < len(line) && isKey(line[end]) {
		end++
	}
	from = end
	for from < len(line) && line[from] == '\\' {
		from++
	}
	if from < len(line) && (line[from] == '"' || line[from] == '\'') {
		from++
	}
	word := from
	for from < len(line) && (isBlank(line[from]) || line[from] == ',') {
		from++
	}
	if from == word || strings.HasPrefix(line[from:], "--") {
		return "", 0
	}
	return line[at:end], from
}

func (r *reader) addValue(spans []span, line string, s span) []span {
	value := line[s.from:s.to]
	if isWord(value) || isPath(strings.Trim(value, `"'`)) {
		return spans
	}
	r.tell(value)
	return append(spans, s)
}

// valueAt is the value that begins at a place: to the quote that ends it, or the next
// white space; of a list or an object to the end of the line.
func valueAt(line string, at int) span {
	rest := line[at:]
	slashes := len(rest) - len(strings.TrimLeft(rest, `\`))
	if slashes < len(rest) && (rest[slashes] == '"' || rest[slashes] == '\'') {
		quote := rest[:slashes+1]
		for from := len(quote); from < len(rest); {
			end := strings.Index(rest[from:], quote)
			if end < 0 {
				break
			}
			end += from
			// One that is escaped more than the first does not end it.
			if end > 0 && rest[end-1] == '\\' && quote != "'" {
				from = end + 1
				continue
			}
			return span{at, at + end + len(quote)}
		}
		return span{at, len(line)}
	}
	for _, nothing := range []string{"[]", "{}", secret.Redacted} {
		if strings.HasPrefix(rest, nothing) {
			return span{at, at + len(nothing)}
		}
	}
	if isList(rest) {
		return span{at, len(line)}
	}
	if end := strings.IndexAny(rest, " \t\r"); end >= 0 {
		return span{at, at + end}
	}
	return span{at, len(line)}
}

// mayHaveSecretKey is a fast look for isSecret.
func mayHaveSecretKey(line string) bool {
	for i := 0; i+3 < len(line); i++ {
		switch line[i] | 0x20 { // in lower case
		case 'p', 's', 't', 'k', 'a', 'c', 'u':
		default:
			continue
		}
		for _, word := range []string{"pas", "pwd", "psk", "secret", "token", "key", "auth", "cred", "cookie", "user", "cert"} {
			if len(line)-i >= len(word) && strings.EqualFold(line[i:i+len(word)], word) {
				return true
			}
		}
	}
	return false
}

var plain = strings.NewReplacer("-", "", "_", "", ".", "")

// isSecret says whether the value of a key is secret. Of boot args, which are written
// with =, more keys are (internal/userdata has the list).
func isSecret(key, sign string) bool {
	key = strings.TrimSuffix(plain.Replace(strings.ToLower(key)), "s")
	if strings.HasSuffix(key, "secretid") || strings.HasSuffix(key, "psk") {
		return true // Vault's, IPsec's
	}
	for _, end := range []string{"hash", "hashe", "ttl", "name", "file", "path", "dir", "ref", "type", "url", "id", "count", "expiration", "second", "version", "clas", "cidr"} {
		if strings.HasSuffix(key, end) {
			return false
		}
	}
	switch key {
	case "auth", "authorization", "proxyauthorization", "cookie", "setcookie", "pas", "pwd":
		return true
	}
	for _, part := range []string{"passw", "passphrase", "passcode", "secret", "token", "credential", "privatekey", "certificatekey", "apikey", "accesskey",
		"keydata", "encryptionkey", "authkey", "presharedkey"} {
		if strings.Contains(key, part) {
			return true
		}
	}
	if sign != "=" {
		return false
	}
	for _, end := range []string{"key", "pas", "pwd", "cred", "userdata", "cert"} {
		if strings.HasSuffix(key, end) {
			return true
		}
	}
	return false
}

// isHeader says that a value goes to the end of its line.
func isHeader(key string) bool {
	key = plain.Replace(strings.ToLower(key))
	return strings.HasSuffix(key, "authorization") || strings.HasSuffix(key, "cookie")
}

var somePath = pattern(`^/(etc|var|run|opt|home|usr|tmp|root|dev|proc|sys)/`)

func isPath(value string) bool { return strings.HasPrefix(value, "/") && somePath().MatchString(value) }

var (
	jwt    = pattern(`eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?`)
	bearer = pattern(`(?i)\b(?:bearer|basic|negotiate)\s+([A-Za-z0-9+/=._~-]{8,})`)
	// A token in the place of the user: https://TOKEN@host.
	urlUser     = pattern(`(?i)\bhttps?://([^/\s:@"'?#]{4,}):?@`)
	urlPassword = pattern(`[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@"']*:([^/\s"']+)@`)
	cryptHash   = pattern(`\$(?:1|2[abxy]?|5|6|7|y|gy|md5|sha1)\$[./A-Za-z0-9=$,]{8,}`)
)

// byForm returns where a line has what is secret wherever it stands.
func byForm(line string) (spans []span) {
	spans = bootstrapTokens(line)
	find := func(p func() *regexp.Regexp, group int) {
		for _, at := range p().FindAllStringSubmatchIndex(line, -1) {
			spans = append(spans, span{at[2*group], at[2*group+1]})
		}
	}
	if strings.Contains(line, "eyJ") {
		find(jwt, 0)
	}
	if lower := strings.ToLower(line); strings.Contains(lower, "bearer ") || strings.Contains(lower, "basic ") || strings.Contains(lower, "negotiate ") {
		find(bearer, 1)
	}
	if strings.Contains(line, "://") && strings.Contains(line, "@") {
		find(urlPassword, 1)
		find(urlUser, 1)
	}
	if strings.Contains(line, "$") {
		find(cryptHash, 0)
	}
	return spans
}

// Lengths of a bootstrap token: abcdef.0123456789abcdef (kubernetes.io/docs, Bootstrap
// Tokens).
const (
	tokenID     = 6
	tokenSecret = 16
)

func bootstrapTokens(line string) (spans []span) {
	for at := tokenID; at+tokenSecret < len(line); at++ {
		if line[at] != '.' {
			continue
		}
		from, to := at-tokenID, at+1+tokenSecret
		if isToken(line[from:at]) && isToken(line[at+1:to]) && (from == 0 || !isTokenByte(line[from-1])) && (to == len(line) || !isTokenByte(line[to])) {
			spans = append(spans, span{from, to})
		}
	}
	return spans
}

func isToken(text string) bool {
	for i := range len(text) {
		if !isTokenByte(text[i]) {
			return false
		}
	}
	return true
}

func isTokenByte(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
