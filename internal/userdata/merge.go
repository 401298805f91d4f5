// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// defaultMerge is how cloud-init merges cloud-configs where nothing asks for another
// way (cloudinit/handlers/cloud_config.py, DEF_MERGERS): a key of a later one replaces
// the whole value of the same key of an earlier one. Of two with write_files or runcmd
// only the later one's files are written and commands run.
const defaultMerge = "dict(replace)+list()+str()"

// mergeCloudConfigs makes one cloud-config of the parts that are one, as cloud-init
// does. strange says why it cannot; then only cloud-init can do it.
func mergeCloudConfigs(parts []part) (merged []byte, strange string) {
	var configs []part
	for _, p := range parts {
		if p.kind == partCloudConfig {
			configs = append(configs, p)
		}
	}
	if len(configs) == 0 {
		return nil, "it has no cloud-config"
	}
	union := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, p := range configs {
		root, why, strange := readYAML(p.text)
		switch {
		case asksMerge(p.mergeType):
			return nil, where(p) + "it asks to be merged in a way of its own"
		case root != nil && root.Kind == yaml.MappingNode:
		case len(configs) == 1:
			return p.text, "" // whoever reads it can tell more
		case root != nil || why != "":
			return nil, where(p) + "it is not a YAML mapping, and cloud-init leaves it out"
		default:
			return nil, where(p) + strange
		}
		for i := 0; i+1 < len(root.Content); i += 2 {
			key, value := root.Content[i], root.Content[i+1]
			if key.Value == "merge_how" || key.Value == "merge_type" {
				if value.Kind != yaml.ScalarNode || asksMerge(value.Value) {
					return nil, where(p) + "it asks to be merged in a way of its own (" + key.Value + ")"
				}
				continue
			}
			if setKey(union, key, value); len(union.Content) > 2*maxListed {
				return nil, fmt.Sprintf("its cloud-configs have more than %d keys", maxListed)
			}
		}
	}
	if len(configs) == 1 {
		return configs[0].text, ""
	}
	return encodeCloudConfig(union)
}

// asksMerge says whether a merge type is another than the usual.
func asksMerge(mergeType string) bool {
	blankless := strings.ToLower(strings.Join(strings.Fields(mergeType), ""))
	return blankless != "" && blankless != defaultMerge
}

func where(p part) string {
	if p.origin == "" {
		return ""
	}
	return p.origin + ": "
}

// setKey is Python's dict[key] = value, where a key keeps its place.
func setKey(mapping, key, value *yaml.Node) {
	key.HeadComment = ""
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if known := mapping.Content[i]; known.Value == key.Value && known.ShortTag() == key.ShortTag() {
			mapping.Content[i+1] = value
			return
		}
	}
	mapping.Content = append(mapping.Content, key, value)
}

func encodeCloudConfig(root *yaml.Node) (text []byte, strange string) {
	var out bytes.Buffer
	fmt.Fprintf(&out, "#cloud-config\n")
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(root), encoder.Close()); err != nil {
		return nil, "its cloud-configs cannot be written as one"
	}
	if again, _, _ := readYAML(out.Bytes()); again == nil || !sameYAML(root, again) {
		return nil, "its cloud-configs do not read back the same when written as one"
	}
	return out.Bytes(), ""
}
