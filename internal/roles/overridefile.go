// SPDX-License-Identifier: Apache-2.0

package roles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Problem is one thing wrong with a file of OverridesDir.
type Problem struct {
	File    string
	Line    int    // 0 is the file as a whole
	Key     string // such as router.on
	Message string // what it is, and what was expected
}

func (p Problem) String() string {
	text := p.File
	if p.Line > 0 {
		text += fmt.Sprintf(" line %d", p.Line)
	}
	text += ":"
	if p.Key != "" {
		text += " " + p.Key
	}
	return text + " " + p.Message
}

// Err returns the problems as one error, or nil: its message is the first, its log
// lines are the others.
func Err(problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	failure := fault.New(fault.ConfigInvalid, "%s", problems[0])
	for _, problem := range problems[1:] {
		failure.Log = append(failure.Log, problem.String())
	}
	return failure
}

// ReadOverrides reads the files of a folder whose names end in .yaml, in the order of
// their names; the folder need not be there. They are read strictly: a typing error
// would otherwise have no effect and no message. All problems of all files are
// returned; the overrides hold only if there is none.
func ReadOverrides(h *host.Host, folder string) (Overrides, []Problem) {
	entries, err := os.ReadDir(h.Path(folder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []Problem{{File: folder, Message: "cannot be read: " + cause(err)}}
	}
	var r overrideReader
	for _, entry := range entries {
		name := filepath.Join(folder, entry.Name())
		r.file = name
		switch {
		case strings.HasPrefix(entry.Name(), "."):
		case strings.HasSuffix(name, ".yml"):
			r.wrong(nil, "", "is not read; expected a name that ends in .yaml")
		case strings.HasSuffix(name, ".yaml"):
			data, err := h.ReadFile(name)
			if err != nil {
				r.wrong(nil, "", "cannot be read: %s", cause(err))
				continue
			}
			r.read(data)
		}
	}
	if len(r.problems) == 0 {
		r.problems = r.overrides.contradictions()
	}
	return r.overrides, r.problems
}

// cause is an error without the name of the file, which is told already.
func cause(err error) string {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err.Error()
	}
	return err.Error()
}

type overrideReader struct {
	file      string
	overrides Overrides
	problems  []Problem
}

func (r *overrideReader) wrong(at *yaml.Node, key, format string, args ...any) {
	problem := Problem{File: r.file, Key: key, Message: fmt.Sprintf(format, args...)}
	if at != nil {
		problem.Line = at.Line
	}
	r.problems = append(r.problems, problem)
}

func (r *overrideReader) read(data []byte) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	err := decoder.Decode(&document)
	if errors.Is(err, io.EOF) {
		return
	}
	if err == nil {
		err = decoder.Decode(&second)
	}
	switch {
	case err == nil:
		r.wrong(&second, "", "has a second document; expected one")
		return
	case !errors.Is(err, io.EOF):
		r.wrong(nil, "", "cannot be read: %v", err)
		return
	}
	root := document.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return // nothing but comments
	}
	known := map[string]bool{}
	r.mapping(root, "", "roles", func(name, value *yaml.Node) {
		role, err := Find(name.Value)
		switch {
		case err != nil:
			r.wrong(name, "", "%s is no role; expected one of %s", quote(name.Value), strings.Join(roleNames(), ", "))
		case known[role.Name]:
			r.wrong(name, role.Name, "is given twice; expected once in a file")
		default:
			known[role.Name] = true
			r.role(role, value)
		}
	})
}

func roleNames() (names []string) {
	for _, role := range Table() {
		names = append(names, role.Name)
	}
	return names
}

// mapping calls each for every key of a mapping of what. A key given twice is
// each's to find, for it knows which are the same.
func (r *overrideReader) mapping(node *yaml.Node, key, what string, each func(name, value *yaml.Node)) {
	if node.Kind != yaml.MappingNode {
		r.wrong(node, key, "is %s; expected a mapping of %s", describe(node), what)
		return
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		each(node.Content[i], node.Content[i+1])
	}
}

func (r *overrideReader) role(role Role, node *yaml.Node) {
	given := map[string]bool{}
	units := map[string]Override{} // that this file has in a list of this role
	r.mapping(node, role.Name, "keys", func(name, value *yaml.Node) {
		key := role.Name + "." + name.Value
		if given[name.Value] {
			r.wrong(name, key, "is given twice; expected once")
			return
		}
		given[name.Value] = true
		override := Override{Role: role.Name, Key: name.Value, File: r.file, Line: name.Line}
		switch name.Value {
		case keyOn, keyOnDemand, keyOff:
			r.units(role, override, value, units)
		case keyMinimumDisk:
			r.number(override, value, key, 0, 1<<20, "a number of GiB from 0, for none, to %d")
		case keySSHPort:
			r.number(override, value, key, 1, 65535, "a port, 1 to %d")
		default:
			r.wrong(name, role.Name, "has no key %s; expected one of %s", quote(name.Value),
				strings.Join([]string{keyOn, keyOnDemand, keyOff, keyMinimumDisk, keySSHPort}, ", "))
		}
	})
}

func (r *overrideReader) number(override Override, node *yaml.Node, key string, from, to int64, expected string) {
	number, err := strconv.ParseInt(node.Value, 10, 64)
	if node.Kind != yaml.ScalarNode || node.ShortTag() != "!!int" || err != nil || number < from || number > to {
		r.wrong(node, key, "is %s; expected "+expected, describe(node), to)
		return
	}
	override.Value = number
	r.overrides = append(r.overrides, override)
}

func (r *overrideReader) units(role Role, override Override, node *yaml.Node, units map[string]Override) {
	key := role.Name + "." + override.Key
	if node.Kind != yaml.SequenceNode || len(node.Content) == 0 {
		r.wrong(node, key, "is %s; expected a list of units", describe(node))
		return
	}
	for _, item := range node.Content {
		unit := item.Value
		before, listed := units[unit]
		switch {
		case item.Kind != yaml.ScalarNode || !isUnitName(unit):
			r.wrong(item, key, "has %s; expected the name of a unit, such as docker.service", describe(item))
		case listed:
			r.wrong(item, key, "has %s, which %s.%s has on line %d; expected each unit once", unit, role.Name, before.Key, before.Line)
		case reserved()[unit] != "":
			r.wrong(item, key, "has %s, which is %s to start; expected another unit", unit, reserved()[unit])
		case slices.Contains(role.Theirs, strings.TrimSuffix(unit, ".service")):
			r.wrong(item, key, "has %s, which is CloudStack's own to enable and disable on this role; expected another unit", unit)
		case override.Key == keyOn && isStage(unit):
			r.wrong(item, key, "has %s, which has no use before its seed; expected it in %s", unit, keyOnDemand)
		case role.wants(unit):
			r.wrong(item, key, "has %s, without which a %s cannot be made; expected another unit", unit, role.Name)
		default:
			override.Unit, override.Line = unit, item.Line
			units[unit] = override
			r.overrides = append(r.overrides, override)
		}
	}
}

// isUnitName says whether a text is the name of a unit that can be started and
// enabled, as systemd.unit(5) has it. Templates cannot: an instance is named.
func isUnitName(text string) bool {
	shape := regexp.MustCompile(`^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]+)?\.(service|socket|timer|path|target|mount|automount|swap)$`)
	return len(text) < 256 && shape.MatchString(text)
}

// describe is a value as it is written.
func describe(node *yaml.Node) string {
	switch {
	case node.Kind == yaml.MappingNode:
		return "a mapping"
	case node.Kind == yaml.SequenceNode && len(node.Content) == 0:
		return "an empty list"
	case node.Kind == yaml.SequenceNode:
		return "a list"
	case node.Kind == yaml.AliasNode:
		return "a reference to an anchor"
	case node.ShortTag() == "!!null":
		return "empty"
	case node.ShortTag() != "!!str" && len(node.Value) < 40:
		return node.Value
	}
	return quote(node.Value)
}

// quote shows foreign text in a message, short and escaped.
func quote(text string) string {
	const most = 60
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return strconv.Quote(text)
}
