// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// cloudConfig is a #cloud-config document (cloud-init documentation, "User data
// formats"), with the nodes of the parts nodeagent looks at.
type cloudConfig struct {
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
	content string // decoded
	node    *yaml.Node
}

// runEntry is an entry of runcmd.
type runEntry struct {
	script *shellScript
	node   *yaml.Node
}

const (
	maxDepth = 32
	maxNodes = 20000
	maxFile  = 1 << 20 // bytes of one file, unpacked
)

// format says what kind of userdata a text is, "" for a cloud-config.
func format(raw []byte) string {
	text := bytes.TrimPrefix(raw, []byte("\ufeff"))
	first, _, _ := bytes.Cut(text, []byte("\n"))
	line := strings.TrimSpace(string(first))
	switch {
	case line == "#cloud-config":
		return ""
	case strings.HasPrefix(line, "## template:"):
		return "a template (" + quote(line) + ")"
	case bytes.HasPrefix(raw, []byte{0x1f, 0x8b}):
		return "compressed"
	case strings.HasPrefix(strings.ToLower(line), "content-type:"), strings.HasPrefix(strings.ToLower(line), "mime-version:"):
		return "a MIME archive"
	case strings.HasPrefix(line, "#!"):
		return "a script"
	case strings.HasPrefix(line, "#"):
		return "of another kind (" + quote(line) + ")"
	}
	return "no cloud-config"
}

// yamlQuotes are the parts of a YAML error that may repeat the text.
var yamlQuotes = regexp.MustCompile("(['\"`])[^'\"`]{2,}['\"`]")

// readCloudConfig reads a cloud-config.
func readCloudConfig(raw []byte) (*cloudConfig, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(raw, []byte("\ufeff"))))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it is empty")
		}
		return nil, errors.New(yamlQuotes.ReplaceAllString(err.Error(), "$1...$1"))
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the end of the YAML document")
	}
	if len(document.Content) != 1 || document.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("it is not a YAML mapping")
	}
	c := &cloudConfig{root: document.Content[0]}
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
				c.strange = append(c.strange, fmt.Sprintf("line %d repeats the key %s", node.Content[i].Line, quote(key)))
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
	file := configFile{path: text(get(node, "path")), node: node}
	if !isOurs(file.path) {
		// cloud-init's work: whatever it holds passes through.
		c.files = append(c.files, file)
		return nil
	}
	content := get(node, "content")
	if content == nil {
		return fmt.Errorf("line %d: %s has no content", node.Line, file.path)
	}
	encoding := text(get(node, "encoding"))
	if content.Tag == "!!binary" {
		encoding = "b64"
	}
	var err error
	if file.content, err = decode(content.Value, encoding); err != nil {
		return fmt.Errorf("line %d: cannot decode the content of %s: %w", node.Line, file.path, err)
	}
	if strings.EqualFold(text(get(node, "append")), "true") || get(node, "source") != nil || get(node, "defer") != nil {
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

// file returns the content of a file nodeagent looks into. Of one written twice
// the last content holds, as with cloud-init.
func (c *cloudConfig) file(path string) (string, bool) {
	for _, file := range slices.Backward(c.files) {
		if file.path == path {
			return file.content, true
		}
	}
	return "", false
}
