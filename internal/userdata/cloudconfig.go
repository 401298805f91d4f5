// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// cloudConfig is a #cloud-config document (cloud-init documentation, "User data
// formats"), with the nodes of the parts nodeagent looks at.
type cloudConfig struct {
	origin string // what its lines are counted in, for people
	lines  []int  // where they stand in the userdata; nil where they were
	root   *yaml.Node
	files  []configFile
	runcmd []runEntry
	// hasRuncmd is false where a cut-off text ends before its runcmd.
	hasRuncmd bool
	keys      int      // ssh keys of all users
	strange   []string // why nodeagent does not take the document over
}

// configFile is an entry of write_files.
type configFile struct {
	path    string
	content string // decoded, where it was looked at
	node    *yaml.Node
	config  *cloudConfig
}

// runEntry is an entry of runcmd.
type runEntry struct {
	script *shellScript
	node   *yaml.Node
}

// only says that an entry holds nothing but commands of one kind.
func (e runEntry) only(is func(c shellCommand) bool) bool {
	return e.script.beyond == "" && e.script.open == "" && !slices.ContainsFunc(e.script.commands, func(c shellCommand) bool { return !is(c) })
}

// about says that a text occurs in an entry, wherever.
func (e runEntry) about(text string) bool {
	if e.node.Kind == yaml.ScalarNode {
		return strings.Contains(e.node.Value, text)
	}
	return slices.ContainsFunc(e.node.Content, func(word *yaml.Node) bool { return strings.Contains(word.Value, text) })
}

// source is where something was read, for Intent.Origins.
type source struct {
	config *cloudConfig
	file   string // a file in it, or ""
	before int    // lines before the file's first; 0 where the file's lines are not the text's
}

// line names a line of the file.
func (s source) line(n int, what string) string {
	switch {
	case s.config == nil:
		return what
	case s.before > 0:
		return fmt.Sprintf("%s line %d (%s: %s)", s.config.origin, s.config.line(s.before+n), s.file, what)
	}
	return fmt.Sprintf("%s (%s line %d: %s)", s.config.origin, s.file, n, what)
}

// whole names the file.
func (s source) whole(what string) string {
	if what != "" {
		what = ": " + what
	}
	return fmt.Sprintf("%s (%s%s)", s.config.origin, s.file, what)
}

func (f configFile) source() source {
	from := source{config: f.config, file: withoutSecrets(f.path)}
	if content := get(f.node, "content"); content != nil && content.Style&yaml.LiteralStyle != 0 && text(get(f.node, "encoding")) == "" {
		from.before = content.Line
	}
	return from
}

// tell says what the document's lines are lines of. A template has lines more than
// what it renders to, and some that become another text.
func (c *cloudConfig) tell(origin string, template, rendered []byte) {
	c.origin, c.lines = origin, nil
	if bytes.Equal(template, rendered) {
		return
	}
	of := strings.Split(strings.ReplaceAll(string(template), "\r\n", "\n"), "\n")
	places := map[string][]int{}
	for i, line := range of {
		places[line] = append(places[line], i+1)
	}
	last := 0
	c.lines = []int{0}
	for line := range strings.SplitSeq(string(rendered), "\n") {
		at := places[line]
		for len(at) > 0 && at[0] <= last {
			at = at[1:]
		}
		if places[line] = at; len(at) > 0 {
			last = at[0]
		}
		c.lines = append(c.lines, last)
	}
}

func (c *cloudConfig) line(n int) int {
	if n < len(c.lines) {
		return c.lines[n]
	}
	return n
}

const (
	maxDepth = 32
	maxNodes = 20000
	maxFile  = 1 << 20 // bytes of one file, unpacked
	// maxListed bounds the files and the commands that are looked at, and the keys of
	// cloud-configs that are made one; CloudStack has about ten of each.
	maxListed = 500
)

// yamlQuotes are the parts of a YAML error that may repeat the text.
var yamlQuotes = pattern("(['\"`])[^'\"`]{2,}['\"`]")

// readCloudConfig reads a cloud-config.
func readCloudConfig(raw []byte) (*cloudConfig, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(raw, []byte("\ufeff"))))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it is empty")
		}
		return nil, errors.New(yamlQuotes().ReplaceAllString(err.Error(), "$1...$1"))
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the end of the YAML document")
	}
	if len(document.Content) != 1 || document.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("it is not a YAML mapping")
	}
	c := &cloudConfig{origin: "user-data", root: document.Content[0]}
	nodes := 0
	if err := c.bound(c.root, 0, &nodes); err != nil {
		return nil, err
	}
	if len(c.strange) > 0 { // what an alias stands for is not looked into
		return c, nil
	}
	return c, c.read()
}

// bound keeps foreign input small, and notes the YAML this package does not edit.
func (c *cloudConfig) bound(node *yaml.Node, depth int, nodes *int) error {
	if *nodes++; depth > maxDepth || *nodes > maxNodes {
		return fmt.Errorf("it is nested more than %d deep or has more than %d parts", maxDepth, maxNodes)
	}
	if node.Kind == yaml.AliasNode || node.Anchor != "" || node.Tag == "!!merge" {
		if len(c.strange) == 0 {
			c.strange = append(c.strange, fmt.Sprintf("line %d uses a YAML alias", node.Line))
		}
		return nil
	}
	if node.Kind == yaml.MappingNode {
		seen := map[string]bool{}
		for i := 0; i < len(node.Content); i += 2 {
			key := node.Content[i].Value
			if seen[key] {
				c.strange = append(c.strange, fmt.Sprintf("line %d repeats %s", node.Content[i].Line, keyName(key)))
			}
			seen[key] = true
		}
	}
	for _, child := range node.Content {
		if err := c.bound(child, depth+1, nodes); err != nil {
			return err
		}
	}
	return nil
}

// get returns the value of a key of a mapping, or nil.
func get(mapping *yaml.Node, key string) *yaml.Node {
	if mapping == nil || mapping.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

func text(node *yaml.Node) string {
	if node == nil || node.Kind != yaml.ScalarNode {
		return ""
	}
	return node.Value
}

func (c *cloudConfig) read() error {
	if files := get(c.root, "write_files"); files != nil {
		if files.Kind != yaml.SequenceNode {
			return fmt.Errorf("line %d: write_files is not a list", files.Line)
		}
		if len(files.Content) > maxListed {
			c.strange = append(c.strange, fmt.Sprintf("it writes more than %d files", maxListed))
			return nil
		}
		for _, node := range files.Content {
			if err := c.readFile(node); err != nil {
				return err
			}
		}
	}
	if runcmd := get(c.root, "runcmd"); runcmd != nil {
		if runcmd.Kind != yaml.SequenceNode {
			return fmt.Errorf("line %d: runcmd is not a list", runcmd.Line)
		}
		c.hasRuncmd = true
		if len(runcmd.Content) > maxListed {
			c.strange = append(c.strange, fmt.Sprintf("its runcmd has more than %d entries", maxListed))
			return nil
		}
		for _, node := range runcmd.Content {
			c.runcmd = append(c.runcmd, readRunEntry(node))
		}
	}
	c.keys = countKeys(get(c.root, "ssh_authorized_keys"))
	if users := get(c.root, "users"); users != nil && users.Kind == yaml.SequenceNode {
		for _, user := range users.Content {
			c.keys += countKeys(get(user, "ssh_authorized_keys"))
			c.keys += countKeys(get(user, "ssh-authorized-keys"))
		}
	}
	return nil
}

func (c *cloudConfig) readFile(node *yaml.Node) error {
	file := configFile{path: text(get(node, "path")), node: node, config: c}
	if file.path != "" {
		file.path = path.Clean(file.path)
	}
	if !isOurs(file.path) {
		// cloud-init's work: whatever it holds passes through.
		c.files = append(c.files, file)
		return nil
	}
	if err := file.decode(); err != nil {
		return err
	}
	if file.changes() {
		c.strange = append(c.strange, fmt.Sprintf("%s is appended to, deferred or downloaded", file.path))
	}
	for _, other := range c.files {
		if other.path == file.path {
			c.strange = append(c.strange, fmt.Sprintf("%s is written twice", file.path))
		}
	}
	c.files = append(c.files, file)
	return nil
}

// changes says that the entry is not the file's whole content from the start.
func (f configFile) changes() bool {
	return strings.EqualFold(text(get(f.node, "append")), "true") || get(f.node, "source") != nil || get(f.node, "defer") != nil
}

// decode fills in the content.
func (f *configFile) decode() error {
	content := get(f.node, "content")
	if content == nil {
		return fmt.Errorf("line %d: %s has no content", f.node.Line, f.path)
	}
	encoding := text(get(f.node, "encoding"))
	if content.Tag == "!!binary" {
		encoding = "b64"
	}
	var err error
	if f.content, err = decode(content.Value, encoding); err != nil {
		return fmt.Errorf("line %d: cannot decode the content of %s: %w", f.node.Line, f.path, err)
	}
	return nil
}

// decode undoes write_files' encoding (cloud-init's module "Write Files").
func decode(content, encoding string) (string, error) {
	packed, base := false, false
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "gz", "gzip":
		packed = true
	case "gz+base64", "gzip+base64", "gz+b64", "gzip+b64":
		packed, base = true, true
	case "b64", "base64":
		base = true
	case "", "text/plain":
	default:
		return "", fmt.Errorf("unknown encoding %s", quote(encoding))
	}
	data := []byte(content)
	if base {
		blankless := strings.Join(strings.Fields(content), "")
		var err error
		if data, err = base64.StdEncoding.DecodeString(blankless); err != nil {
			return "", errors.New("not base64")
		}
	}
	if packed {
		reader, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return "", errors.New("not gzip")
		}
		if data, err = io.ReadAll(io.LimitReader(reader, maxFile+1)); err != nil {
			return "", errors.New("broken gzip")
		}
	}
	if len(data) > maxFile {
		return "", fmt.Errorf("larger than %d bytes", maxFile)
	}
	return string(data), nil
}

// readRunEntry reads an entry of runcmd: a shell line, or a list of words.
func readRunEntry(node *yaml.Node) runEntry {
	if node.Kind == yaml.ScalarNode {
		return runEntry{readShell(node.Value), node}
	}
	command := shellCommand{line: 1}
	for _, word := range node.Content {
		command.words = append(command.words, text(word))
	}
	script := &shellScript{}
	if len(command.words) > 0 {
		script.commands = []shellCommand{command}
	}
	return runEntry{script, node}
}

// countKeys counts ssh keys, a list or (some templates) a block of lines.
func countKeys(node *yaml.Node) int {
	switch {
	case node == nil:
		return 0
	case node.Kind == yaml.SequenceNode:
		return len(node.Content)
	}
	count := 0
	for line := range strings.Lines(node.Value) {
		if strings.TrimSpace(line) != "" {
			count++
		}
	}
	return count
}

// find returns a file. Of one written twice the last holds, as with cloud-init.
func (c *cloudConfig) find(name string) (configFile, bool) {
	for _, file := range slices.Backward(c.files) {
		if file.path == path.Clean(name) {
			err := file.decode()
			return file, err == nil
		}
	}
	return configFile{}, false
}

// keysOf returns the document's keys.
func (c *cloudConfig) keysOf() []string {
	var keys []string
	for i := 0; i < len(c.root.Content); i += 2 {
		keys = append(keys, c.root.Content[i].Value)
	}
	return keys
}
