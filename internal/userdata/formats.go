// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/fault"
)

// This file takes userdata out of its wrapping the way cloud-init does (22.4.2, Debian
// 12's: cloudinit/user_data.py and cloudinit/handlers). Where cloud-init would not
// recognise what plainly is meant, nodeagent does, and says so in a warning:
// a byte order mark, base64 or gzip more often than once, a jinja template or text
// beyond ASCII in a MIME part whose headers do not say so.

// partKind is what cloud-init, or nodeagent, does with a part.
type partKind int

const (
	partOther partKind = iota // not known; strange says why
	partCloudConfig
	partNodeConfig // nodeagent's own; cloud-init leaves it out
	partScript
	partBoothook
	partInclude
	partHandler
	partJSONPatch
)

// part is one piece of userdata without its wrapping.
type part struct {
	kind      partKind
	name      string // file name; "" lets cloud-init number it. A script runs in the order of names
	origin    string // for people: "MIME part 2 (gzip, base64)", "" for plain userdata
	text      []byte // as cloud-init would see it: templates rendered; a cloud-config has LF line ends and no byte order mark
	mergeType string // MIME header (X-)Merge-Type, "" for none
	template  []byte // what text was rendered from, nil for no template
	strange   string // why only cloud-init can take it, "" where it is understood
	mediaType string // MIME type as cloud-init determines it, "" for the kind's own
}

const (
	maxUnpacked = 4 << 20 // bytes out of all gzip together
	maxLayers   = 4       // of gzip and base64 around the whole
	maxParts    = 64
)

// MIME types that are treated specially. The others are in handledType.
const (
	typePlain   = "text/x-not-multipart" // userdata that is no MIME archive
	typeText    = "text/plain"
	typeConfig  = "text/cloud-config"
	typeScript  = "text/x-shellscript"
	typePatch   = "text/cloud-config-jsonp"
	typeJinja   = "text/jinja2"
	typeArchive = "text/cloud-config-archive"
)

// byteOrderMark begins what some editors write.
const byteOrderMark = "\ufeff"

// nodeConfigLine is what nodeagent's own configuration is known by.
var nodeConfigLine = pattern(`(?m)^(?:\x{feff})?["']?apiVersion["']?[ \t]*:[ \t]*["']?nodeagent/`)

// handledType returns the kind of a MIME type that cloud-init has a handler for.
func handledType(mediaType string) partKind {
	switch mediaType {
	case typeConfig:
		return partCloudConfig
	case typePatch:
		return partJSONPatch
	case typeScript, "text/x-shellscript-per-boot", "text/x-shellscript-per-instance", "text/x-shellscript-per-once":
		return partScript
	case "text/cloud-boothook":
		return partBoothook
	case "text/part-handler":
		return partHandler
	case "text/x-include-url", "text/x-include-once-url":
		return partInclude
	}
	return partOther
}

// isExamined says that what a part is of this MIME type is told by its content.
func isExamined(mediaType string) bool {
	return mediaType == typePlain || mediaType == typeText || mediaType == typeScript
}

// ownType is the MIME type of a kind.
func (k partKind) ownType() string {
	return [...]string{typeText, typeConfig, typeText, typeScript, "text/cloud-boothook", "text/x-include-url", "text/part-handler", typePatch}[k]
}

// typeByHeader returns the MIME type of content by its first words, "" for none that
// cloud-init knows. Blanks and empty lines before them do not count, comments do
// (INCLUSION_TYPES_MAP, longest first).
func typeByHeader(text []byte) string {
	text = bytes.TrimLeftFunc(text, pythonSpace)
	start := strings.ToLower(string(text[:min(len(text), 64)]))
	for _, known := range [...][2]string{
		{"text/x-shellscript-per-instance", "text/x-shellscript-per-instance"},
		{"text/x-shellscript-per-boot", "text/x-shellscript-per-boot"},
		{"text/x-shellscript-per-once", "text/x-shellscript-per-once"},
		{"#cloud-config-archive", typeArchive},
		{"#cloud-config-jsonp", typePatch},
		{jinjaTitle, typeJinja},
		{"#cloud-boothook", "text/cloud-boothook"},
		{"#include-once", "text/x-include-once-url"},
		{"#cloud-config", typeConfig},
		{"#part-handler", "text/part-handler"},
		{"#include", "text/x-include-url"},
		{"#!", typeScript},
	} {
		if strings.HasPrefix(start, known[0]) {
			return known[1]
		}
	}
	return ""
}

// pythonSpace is Python's str.isspace, which says what its strip takes away.
func pythonSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

func isGzip(data []byte) bool { return bytes.HasPrefix(data, []byte{0x1f, 0x8b}) }

// known says that content needs no further unwrapping to be told what it is.
func known(text []byte) bool {
	return typeByHeader(text) != "" || isMIME(text) || nodeConfigLine().Match(text)
}

// unwrap takes all wrapping off userdata. It is pure. What is cut off, damaged, too
// large or nested too deep is a problem of severity error, and there are no parts
// then; else there is at least one. Nothing but text holds a secret.
func unwrap(raw []byte) (parts []part, problems []Problem) {
	u := unwrapper{left: maxUnpacked}
	if len(raw) > MaxUserdata {
		u.fail("", "it is larger than %d bytes", MaxUserdata)
	} else if data, steps, ok := u.peel(raw); ok && isMIME(data) {
		u.mime(data)
	} else if ok {
		label := ""
		if len(steps) > 0 {
			label = "userdata"
		}
		u.content(part{mediaType: typePlain, text: data}, label, steps)
	}
	if Err(u.problems) != nil {
		return nil, u.problems
	}
	if len(u.parts) == 0 {
		u.parts = []part{{mediaType: typePlain, strange: "there is nothing in it"}}
	}
	return u.parts, u.problems
}

type unwrapper struct {
	left     int // bytes that may still be unpacked
	parts    []part
	problems []Problem
}

func (u *unwrapper) fail(label, format string, args ...any) {
	u.say(SeverityError, label, format, args...)
}

func (u *unwrapper) warn(label, format string, args ...any) {
	u.say(SeverityWarning, label, format, args...)
}

func (u *unwrapper) say(severity Severity, label, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if label != "" {
		message = label + ": " + message
	}
	u.problems = append(u.problems, Problem{severity, fault.UserdataInvalid, "", message})
}

// peel takes off what is around the whole. cloud-init itself takes off one layer of
// gzip; CloudStack and its users add base64.
func (u *unwrapper) peel(data []byte) (_ []byte, steps []string, ok bool) {
	for {
		step, err := "gzip", error(nil)
		if isGzip(data) {
			data, err = u.gunzip(data)
		} else if wrapped := data; !known(data) && isBase64(data) {
			step = "base64"
			data, err = decodeBase64(wrapped)
		} else {
			break
		}
		if err != nil {
			u.fail("", "%v", err)
			return nil, nil, false
		}
		if steps = append(steps, step); len(steps) > maxLayers {
			u.fail("", "it is wrapped in gzip or base64 more than %d times", maxLayers)
			return nil, nil, false
		}
	}
	if len(steps) > 0 && !slices.Equal(steps, []string{"gzip"}) {
		u.warn("", "it is wrapped in %s, of which cloud-init itself takes off one gzip only", strings.Join(steps, ", "))
	}
	return u.skipMark("", data), steps, true
}

// skipMark removes a byte order mark that hides what follows from cloud-init.
func (u *unwrapper) skipMark(label string, data []byte) []byte {
	rest, found := bytes.CutPrefix(data, []byte(byteOrderMark))
	if !found || !known(rest) {
		return data
	}
	u.warn(label, "it begins with a byte order mark, for which cloud-init itself does not know it")
	return rest
}

// gunzip unpacks no more than is left of maxUnpacked.
func (u *unwrapper) gunzip(data []byte) ([]byte, error) {
	reader, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, errors.New("it is damaged: the gzip header cannot be read")
	}
	unpacked, err := io.ReadAll(io.LimitReader(reader, int64(u.left)+1))
	switch {
	case len(unpacked) > u.left:
		return nil, fmt.Errorf("it unpacks to more than %d bytes", maxUnpacked)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("it was cut off: the gzip data end after %d unpacked bytes", len(unpacked))
	case err != nil:
		return nil, fmt.Errorf("it is damaged: the gzip data are wrong after %d unpacked bytes", len(unpacked))
	}
	u.left -= len(unpacked)
	return unpacked, nil
}

// isBase64 says that a text is userdata in base64, whole or damaged: not that it
// decodes, which many a word does, but that known content comes out.
func isBase64(data []byte) bool {
	for _, enough := range []int{64, 8192} {
		head := withoutBlanks(data[:min(len(data), enough)])
		decoded, err := base64.StdEncoding.DecodeString(string(head[:len(head)/4*4]))
		if err != nil || len(decoded) == 0 {
			return false
		}
		if isGzip(decoded) || known(bytes.TrimPrefix(decoded, []byte(byteOrderMark))) || isBase64(decoded) {
			return true
		}
	}
	return false
}

// decodeBase64 decodes as cloud-init does, line ends and missing padding forgiven, but
// takes no other characters.
func decodeBase64(data []byte) ([]byte, error) {
	blankless := withoutBlanks(data)
	decoded, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(string(blankless), "="))
	if err != nil {
		return nil, fmt.Errorf("it is damaged or cut off: it is not base64 after %d of %d characters", len(decoded)/3*4, len(blankless))
	}
	return decoded, nil
}

func withoutBlanks(data []byte) []byte {
	return slices.DeleteFunc(bytes.Clone(data), func(b byte) bool { return b == ' ' || b == '\t' || b == '\r' || b == '\n' })
}

// content adds what a plain text or a MIME part holds, which may be an archive. Only
// of some MIME types the content is looked at to learn what it is.
func (u *unwrapper) content(p part, label string, steps []string) {
	if isExamined(p.mediaType) {
		p.text = u.skipMark(label, p.text)
		if found := typeByHeader(p.text); found != "" {
			p.mediaType = found
		}
	}
	if p.mediaType == typeArchive {
		u.archive(p.text, label)
		return
	}
	u.add(p, label, steps)
}

// add finishes a part whose MIME type is settled.
func (u *unwrapper) add(p part, label string, steps []string) {
	if len(u.parts) == maxParts {
		u.fail("", "it has more than %d parts", maxParts)
		return
	}
	if p.strange != "" {
		p.origin = label
		u.parts = append(u.parts, p)
		return
	}
	p.kind = handledType(p.mediaType)
	switch {
	case p.mediaType == typeJinja:
		u.template(&p, label)
		steps = append(slices.Clip(steps), "jinja")
	case p.kind == partCloudConfig && isHiddenTemplate(p.text):
		u.warn(label, "it is a jinja template, which cloud-init itself does not render: its first line must be %q and its MIME type not %s", jinjaTitle, typeConfig)
		title := hiddenTitle().FindSubmatchIndex(p.text)
		p.text = slices.Concat([]byte(jinjaTitle+"\n"), p.text[:title[2]], p.text[title[3]:])
		u.template(&p, label)
		steps = append(slices.Clip(steps), "jinja")
	case p.kind == partOther && nodeConfigLine().Match(p.text):
		p.kind = partNodeConfig
	case p.kind == partOther && p.mediaType == typePlain:
		p.strange = "it begins with nothing that cloud-init knows"
	case p.kind == partOther && p.mediaType == typeText:
		p.strange = "it is a text that begins with nothing that cloud-init knows"
	case p.kind == partOther:
		p.strange = "it is of the MIME type " + quote(p.mediaType) + ", which cloud-init leaves out"
	case p.kind == partInclude:
		p.strange = "it includes userdata from elsewhere"
	case p.kind == partHandler:
		p.strange = "it is a program that handles other parts"
	case p.kind == partJSONPatch:
		p.strange = "it patches the cloud-config (JSON patch)"
	}
	if p.kind == partCloudConfig || p.kind == partNodeConfig {
		// All of these end a line in YAML.
		p.text = bytes.TrimPrefix(p.text, []byte(byteOrderMark))
		p.text = []byte(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(p.text)))
	}
	if p.origin = label; len(steps) > 0 {
		p.origin = fmt.Sprintf("%s (%s)", label, strings.Join(steps, ", "))
	}
	p.origin = strings.TrimSpace(p.origin)
	u.parts = append(u.parts, p)
}

// hiddenTitle matches a template's first line among the comments that begin a text.
var hiddenTitle = pattern(`(?i)^(?:#[^\n]*\n|[ \t\r]*\n)*?(` + jinjaTitle + `[ \t\r]*\n)`)

// isHiddenTemplate says that a cloud-config cannot be meant as it is, but as a template:
// CloudStack's management server gives one a MIME type for which cloud-init does not
// look for the template's first line (cs#11691).
func isHiddenTemplate(text []byte) bool {
	return hiddenTitle().Match(text) && !isPlainYAML(text)
}

// template renders a jinja template, which becomes a cloud-config or a script
// (cloudinit/handlers/jinja_template.py).
func (u *unwrapper) template(p *part, label string) {
	rendered, missing, why := renderJinja(p.text)
	found := typeByHeader([]byte(rendered))
	if why == "" && found != typeConfig && found != typeScript {
		why = "it is a jinja template of what cloud-init takes no template of"
	}
	if why != "" {
		p.kind, p.mediaType, p.strange = partOther, typeJinja, why
		return
	}
	if missing {
		u.warn(label, "its jinja template uses the variable registry, which cloud-init does not have: %sregistry stands in its place", missingVariable)
	}
	p.kind, p.mediaType, p.template, p.text = handledType(found), found, p.text, []byte(rendered)
}

// archive adds the entries of a cloud-config-archive, a YAML list of texts or of
// mappings with content, type and filename (_explode_archive).
func (u *unwrapper) archive(text []byte, label string) {
	root, why, strange := readYAML(text)
	if root != nil && root.Kind != yaml.SequenceNode {
		why = "it is not a list"
	}
	switch {
	case why != "":
		u.fail(label, "cannot read the cloud-config-archive: %s", why)
		return
	case strange != "":
		u.add(part{mediaType: typeArchive, text: text, strange: "it is a cloud-config-archive, and " + strange}, label, nil)
		return
	}
	for i, node := range root.Content {
		p := archiveEntry(node)
		u.add(p, strings.TrimPrefix(fmt.Sprintf("%s, archive entry %d", label, i+1), ", "), nil)
		if Err(u.problems) != nil {
			return
		}
	}
}

// archiveEntry reads an entry. cloud-init gives up the whole userdata at some that are
// not understood here. A type that is given stands, whatever the content begins with.
func archiveEntry(node *yaml.Node) (p part) {
	notUnderstood := part{mediaType: typeArchive, strange: "it is a kind of archive entry that is not understood"}
	if node.Kind == yaml.ScalarNode {
		node = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Value: "content"}, node}}
	}
	if node.Kind != yaml.MappingNode {
		return notUnderstood
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i].Value, node.Content[i+1]
		if value.Kind != yaml.ScalarNode || value.ShortTag() != "!!str" && key != "launch-index" {
			return notUnderstood
		}
		switch key {
		case "content":
			p.text = []byte(value.Value)
		case "type":
			p.mediaType = strings.ToLower(value.Value)
		case "filename":
			p.name = fileName(value.Value)
		case "Merge-Type", "X-Merge-Type":
			p.mergeType = oneLine(value.Value)
		}
	}
	found := typeByHeader(p.text)
	switch {
	case p.mediaType == "":
		p.mediaType = cmp.Or(found, typeConfig)
	case !mediaTypeShape().MatchString(p.mediaType), isExamined(p.mediaType) && found != "" && found != p.mediaType:
		return notUnderstood
	}
	return p
}

// readYAML reads one YAML document that is not large, not deep, and says all it says
// where it says it: without aliases, merge keys and keys that are no scalars.
// What cannot be read at all is why, what is only not looked into is strange.
func readYAML(text []byte) (root *yaml.Node, why, strange string) {
	if len(text) > MaxUserdata {
		return nil, "", fmt.Sprintf("it is larger than %d bytes", MaxUserdata)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	if decoder.Decode(&document) != nil || len(document.Content) != 1 {
		return nil, "it is not YAML", ""
	}
	if !errors.Is(decoder.Decode(new(yaml.Node)), io.EOF) {
		return nil, "there is more after the end of the YAML document", ""
	}
	nodes := maxNodes
	if !isPlain(document.Content[0], maxDepth, &nodes) {
		return nil, "", "it uses YAML aliases or keys that are no words, or is too large or deep"
	}
	return document.Content[0], "", ""
}

func isPlain(node *yaml.Node, depth int, nodes *int) bool {
	*nodes--
	if depth == 0 || *nodes < 0 || node.Anchor != "" || node.ShortTag() == "!!merge" {
		return false
	}
	for i, child := range node.Content {
		if node.Kind == yaml.MappingNode && i%2 == 0 && child.Kind != yaml.ScalarNode || !isPlain(child, depth-1, nodes) {
			return false
		}
	}
	return true
}

func isPlainYAML(text []byte) bool {
	root, _, _ := readYAML(text)
	return root != nil
}

// rewrap makes of parts userdata for cloud-init that means the same: one part alone
// plain, several, or one that needs headers, as a MIME archive. The same parts give
// the same bytes.
func rewrap(parts []part) []byte {
	if len(parts) == 1 {
		again, problems := unwrap(parts[0].text)
		if len(problems) == 0 && len(again) == 1 && samePart(again[0], parts[0]) {
			return parts[0].text
		}
	}
	sum := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(sum, "%q %q %q %q\n", p.header(), p.name, p.mergeType, p.text)
	}
	// No line of the parts can be taken for it: they are base64.
	boundary := fmt.Sprintf("nodeagent-%x", sum.Sum(nil)[:16])
	var out bytes.Buffer
	fmt.Fprintf(&out, "Content-Type: multipart/mixed; boundary=%q\nMIME-Version: 1.0\n", boundary)
	for _, p := range parts {
		fmt.Fprintf(&out, "\n--%s\nContent-Type: %s\nContent-Transfer-Encoding: base64\n", boundary, p.header())
		if p.name != "" {
			fmt.Fprintf(&out, "Content-Disposition: attachment; filename=\"%s\"\n", p.name)
		}
		if p.mergeType != "" {
			fmt.Fprintf(&out, "X-Merge-Type: %s\n", p.mergeType)
		}
		for line := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(p.text)), 76) {
			out.WriteString("\n")
			out.Write(line)
		}
	}
	fmt.Fprintf(&out, "\n--%s--\n", boundary)
	return out.Bytes()
}

// header is the part's MIME type.
func (p part) header() string {
	if p.mediaType == "" {
		return p.kind.ownType()
	}
	return p.mediaType
}

// samePart says that cloud-init does the same with both.
func samePart(a, b part) bool {
	sameType := a.header() == b.header() || a.kind == b.kind && (a.kind == partOther || a.kind == partNodeConfig)
	return a.kind == b.kind && a.name == b.name && bytes.Equal(a.text, b.text) && a.mergeType == b.mergeType && sameType
}

// oneLine puts foreign text on one line.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return pythonSpace(r) || unicode.IsControl(r) }), " ")
}

// fileName leaves out of a name what cannot be in a header; cloud-init leaves it out of
// the files it writes too (clean_filename).
func fileName(name string) string {
	return oneLine(strings.NewReplacer(`"`, "", `\`, "").Replace(strings.ToValidUTF8(name, "")))
}

func isASCII(data []byte) bool {
	return !slices.ContainsFunc(data, func(b byte) bool { return b >= utf8.RuneSelf })
}
