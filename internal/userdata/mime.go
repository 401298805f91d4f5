// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// This file reads MIME archives (RFC 2045, 2046) as Python's email package does for
// cloud-init (email/feedparser.py, email/message.py), which takes more than Go's
// mime/multipart. Only an archive without its end is refused here: it was cut off.

const (
	maxMIMEDepth = 8
	soleMessage  = "MIME message" // what the only part is called where there is no multipart
)

// mediaTypeShape is the form of MIME types that are taken, and quoted.
var mediaTypeShape = pattern(`^[a-z0-9][a-z0-9.+_-]*/[a-z0-9][a-z0-9.+_-]*$`)

// isMIMEHeader says that a line is a header, or goes on with one; any other line ends
// the headers.
func isMIMEHeader(line string) bool {
	end := strings.IndexFunc(line, func(c rune) bool { return c <= ' ' || c == ':' || c > '~' })
	return end >= 0 && line[end] == ':' || line[0] == ' ' || line[0] == '\t'
}

// isMIME says that cloud-init parses userdata as a MIME message (convert_string).
func isMIME(data []byte) bool {
	return bytes.Contains(bytes.ToLower(data[:min(len(data), 4096)]), []byte("mime-version:"))
}

// message is a MIME message or a part of one.
type message struct {
	header []headerField
	usual  string // its media type where no header says
	body   string
	parts  []*message
}

type headerField struct{ name, value string }

// get returns the first header of a name in any spelling.
func (m *message) get(name string) string {
	for _, field := range m.header {
		if strings.EqualFold(field.name, name) {
			return field.value
		}
	}
	return ""
}

// mediaType returns the type, without parameters.
func (m *message) mediaType() string {
	value := m.get("Content-Type")
	if value == "" {
		return m.usual
	}
	value, _, _ = strings.Cut(value, ";")
	value = strings.ToLower(strings.TrimFunc(value, pythonSpace))
	if strings.Count(value, "/") != 1 {
		return typeText
	}
	return value
}

// parameter returns a parameter of a header. encoded says that it is given in the
// split or encoded form of RFC 2231, which is not read.
func (m *message) parameter(header, name string) (value string, encoded bool) {
	for rest := m.get(header); rest != ""; {
		end, quoted := 0, false
		for ; end < len(rest) && (quoted || rest[end] != ';'); end++ {
			if rest[end] == '"' && (end == 0 || rest[end-1] != '\\') {
				quoted = !quoted
			}
		}
		key, found, _ := strings.Cut(rest[:end], "=")
		rest = rest[min(end+1, len(rest)):]
		switch key = strings.ToLower(strings.TrimFunc(key, pythonSpace)); {
		case key == name:
			return unquote(strings.TrimFunc(found, pythonSpace)), false
		case strings.HasPrefix(key, name+"*"):
			return "", true
		}
	}
	return "", false
}

// unquote is that of email/_parseaddr.
func unquote(text string) string {
	if len(text) > 1 && text[0] == '"' && text[len(text)-1] == '"' {
		return strings.ReplaceAll(strings.ReplaceAll(text[1:len(text)-1], `\\`, `\`), `\"`, `"`)
	}
	if len(text) > 1 && text[0] == '<' && text[len(text)-1] == '>' {
		return text[1 : len(text)-1]
	}
	return text
}

// mimeParser reads a message line by line.
type mimeParser struct {
	text   string
	count  int   // of parts
	failed error // why the reading was given up
}

// next returns the next line with its end, without taking it. It ends at a boundary of
// any message around.
func (p *mimeParser) next(around []string) (line string, ok bool) {
	if p.text == "" || p.failed != nil {
		return "", false
	}
	end := strings.IndexAny(p.text, "\r\n") + 1
	switch {
	case end == 0:
		end = len(p.text)
	case strings.HasPrefix(p.text[end-1:], "\r\n"):
		end++
	}
	line = p.text[:end]
	for _, boundary := range around {
		if found, _ := isBoundary(line, boundary); found {
			return "", false
		}
	}
	return line, true
}

func isBoundary(line, boundary string) (found, last bool) {
	rest, found := strings.CutPrefix(line, "--"+boundary)
	if !found {
		return false, false
	}
	rest, last = strings.CutPrefix(rest, "--")
	return strings.TrimLeft(strings.TrimRight(rest, "\r\n"), " \t") == "", last
}

// rest takes all lines up to a boundary.
func (p *mimeParser) rest(around []string) string {
	all := p.text
	for line, ok := p.next(around); ok; line, ok = p.next(around) {
		p.text = p.text[len(line):]
	}
	return all[:len(all)-len(p.text)]
}

func (p *mimeParser) message(usual string, around []string) *message {
	m := &message{usual: usual}
	if p.count++; p.count > 2*maxParts {
		p.failed = fmt.Errorf("it has more than %d parts", maxParts)
	}
	p.headers(m, around)
	boundary, _ := m.parameter("Content-Type", "boundary")
	boundary = strings.TrimRightFunc(boundary, pythonSpace)
	if !strings.HasPrefix(m.mediaType(), "multipart/") || boundary == "" {
		m.body = p.rest(around)
	} else if len(around) == maxMIMEDepth {
		p.failed = fmt.Errorf("its MIME parts are nested more than %d deep", maxMIMEDepth)
	} else {
		p.multipart(m, boundary, around)
	}
	return m
}

// headers takes the header lines. A line that begins with a blank goes on the one before.
func (p *mimeParser) headers(m *message, around []string) {
	begin := p.text // at the last header's name
	for line, ok := p.next(around); ok; line, ok = p.next(around) {
		if !isMIMEHeader(line) {
			if strings.TrimRight(line, "\r\n") == "" {
				p.text = p.text[len(line):]
			}
			return
		}
		if line[0] != ' ' && line[0] != '\t' {
			begin = p.text
			m.header = append(m.header, headerField{})
		}
		p.text = p.text[len(line):]
		if len(m.header) > 0 {
			name, value, _ := strings.Cut(begin[:len(begin)-len(p.text)], ":")
			m.header[len(m.header)-1] = headerField{name, strings.TrimRight(strings.TrimLeft(value, " \t"), "\r\n")}
		}
	}
}

func (p *mimeParser) multipart(m *message, boundary string, around []string) {
	usual := typeText
	if m.mediaType() == "multipart/digest" {
		usual = "message/rfc822"
	}
	inside := append(slices.Clip(around), boundary)
	started := false
	for line, ok := p.next(around); ok; line, ok = p.next(around) {
		p.text = p.text[len(line):]
		found, last := isBoundary(line, boundary)
		if last && found {
			p.rest(around) // the epilogue
			return
		}
		if !found && !started {
			continue // the preamble
		}
		started = true
		for again, ok := p.next(around); ok; again, ok = p.next(around) {
			if more, _ := isBoundary(again, boundary); !more {
				break
			}
			p.text = p.text[len(again):]
		}
		part := p.message(usual, inside)
		// The end of the line before a boundary belongs to the boundary.
		part.body = strings.TrimSuffix(strings.TrimSuffix(part.body, "\n"), "\r")
		m.parts = append(m.parts, part)
	}
	if p.failed == nil {
		p.failed = errors.New("its MIME archive was cut off: the boundary that ends it is missing")
	}
}

// mime adds the parts of a MIME message.
func (u *unwrapper) mime(data []byte) {
	if !utf8.Valid(data) {
		u.fail("", "its MIME archive is not UTF-8 text")
		return
	}
	parser := mimeParser{text: string(data)}
	whole := parser.message(typeText, nil)
	if parser.failed != nil {
		u.fail("", "%v", parser.failed)
		return
	}
	if len(whole.parts) > 0 {
		u.walk(whole, "MIME part ")
	} else {
		u.leaf(whole, soleMessage)
	}
}

func (u *unwrapper) walk(m *message, label string) {
	for i, child := range m.parts {
		name := fmt.Sprintf("%s%d", label, i+1)
		if len(child.parts) > 0 {
			u.walk(child, name+".")
		} else {
			u.leaf(child, name)
		}
	}
}

// leaf adds a part that holds no others (_process_msg).
func (u *unwrapper) leaf(m *message, label string) {
	p := part{mediaType: m.mediaType(), text: []byte(m.body), mergeType: m.mergeType()}
	name, encoded := m.parameter("Content-Disposition", "filename")
	inType := name == "" && !encoded
	if inType {
		name, encoded = m.parameter("Content-Type", "name")
	}
	p.name = fileName(name)
	switch {
	case strings.HasPrefix(p.mediaType, "multipart/"):
		p.strange = "it is a MIME archive without parts or a boundary"
	case strings.HasPrefix(p.mediaType, "message/"):
		p.strange = "it is a MIME message inside the MIME archive"
	case encoded:
		p.strange = "its file name is encoded (RFC 2231)"
	default:
		steps, err := u.decode(m, &p, label)
		// Where cloud-init writes the type anew, a name in it is lost.
		found := typeByHeader(p.text)
		if inType && p.mediaType == m.mediaType() && (label == soleMessage || isExamined(p.mediaType) && found != "" && found != p.mediaType) {
			p.name = ""
		}
		if err != nil {
			u.fail(label, "%v", err)
		} else if p.strange == "" {
			u.content(p, label, steps)
		}
	}
	if p.strange != "" {
		u.add(p, label, nil)
	}
}

// mergeType is read as cloud-init does, where the spelling counts.
func (m *message) mergeType() string {
	for _, name := range []string{"Merge-Type", "X-Merge-Type"} {
		for _, field := range m.header {
			if field.name == name && field.value != "" {
				return oneLine(field.value)
			}
		}
	}
	return ""
}

// decode undoes the transfer encoding of a part, and gzip where the MIME type says so.
func (u *unwrapper) decode(m *message, p *part, label string) (steps []string, err error) {
	switch encoding := strings.ToLower(m.get("Content-Transfer-Encoding")); encoding {
	case "base64":
		steps = []string{"base64"}
		p.text, err = decodeBase64(p.text)
	case "quoted-printable":
		steps = []string{"quoted-printable"}
		p.text = decodeQuoted(p.text)
	case "", "7bit", "8bit", "binary":
		if !isASCII(p.text) {
			u.warn(label, "it has characters beyond ASCII and no Content-Transfer-Encoding of base64 or quoted-printable: cloud-init itself garbles them")
		}
	default:
		p.strange = "it has the Content-Transfer-Encoding " + quote(encoding)
	}
	if err != nil || !isGzipType(p.mediaType) || p.strange != "" {
		return steps, err
	}
	// Of the headers cloud-init keeps only the name.
	p.mediaType, p.mergeType = typeText, ""
	if !isGzip(p.text) {
		return nil, errors.New("it is damaged: its MIME type is gzip's, its content is not gzip")
	}
	if p.text, err = u.gunzip(p.text); err == nil && !utf8.Valid(p.text) {
		err = errors.New("it is damaged: what was packed is not UTF-8 text")
	}
	return append(steps, "gzip"), err
}

// decodeQuoted decodes quoted-printable as Python's binascii.a2b_qp does, which takes
// for itself what is no escape.
func decodeQuoted(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		rest := text[i+1:]
		var code [1]byte
		switch {
		case text[i] != '=':
			out = append(out, text[i])
		case len(rest) == 0: // cut off
		case rest[0] == '\n':
			i++
		case rest[0] == '\r':
			end := bytes.IndexByte(rest, '\n')
			if end < 0 {
				return out
			}
			i += end + 1
		case rest[0] == '=':
			out = append(out, '=')
			i++
		case len(rest) > 1 && isHex(rest[:2], code[:]):
			out = append(out, code[0])
			i += 2
		default:
			out = append(out, '=')
		}
	}
	return out
}

func isHex(digits, code []byte) bool {
	_, err := hex.Decode(code, digits)
	return err == nil
}

func isGzipType(mediaType string) bool {
	switch mediaType {
	case "application/gzip", "application/gzip-compressed", "application/gzipped", "application/x-compress",
		"application/x-compressed", "application/x-gunzip", "application/x-gzip", "application/x-gzip-compressed":
		return true
	}
	return false
}
