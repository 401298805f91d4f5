// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/secret"
)

func nodeConfigSchema(t *testing.T) map[string]any {
	t.Helper()
	data, err := os.ReadFile("../../docs/nodeconfig.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

// The schema and the Go type have the same keys, of the same kinds.
func TestNodeConfigSchemaIsTheType(t *testing.T) {
	t.Parallel()
	compareSchema(t, "NodeConfig", nodeConfigSchema(t), reflect.TypeFor[NodeConfig]())
}

func compareSchema(t *testing.T, at string, schema map[string]any, typ reflect.Type) {
	properties, _ := schema["properties"].(map[string]any)
	if schema["additionalProperties"] != false {
		t.Errorf("%s: the schema allows keys that are not known", at)
	}
	var names []string
	for i := range typ.NumField() {
		field := typ.Field(i)
		name := field.Tag.Get("yaml")
		names = append(names, name)
		property, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("%s.%s: not in the schema", at, name)
			continue
		}
		want := map[reflect.Kind]string{reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer", reflect.Slice: "array", reflect.Struct: "object"}[field.Type.Kind()]
		if field.Type == reflect.TypeFor[secret.Text]() {
			want = "string"
		}
		kinds := fmt.Sprint(property["type"])
		if property["const"] != nil || property["enum"] != nil {
			kinds = "string"
		}
		if !strings.Contains(kinds, want) {
			t.Errorf("%s.%s: the schema says %v, the type %s", at, name, kinds, want)
		}
		if want == "object" {
			compareSchema(t, at+"."+name, property, field.Type)
		}
	}
	for name := range properties {
		if !slices.Contains(names, name) {
			t.Errorf("%s.%s: in the schema alone", at, name)
		}
	}
}

// violations checks a value against as much of JSON Schema as this schema uses.
func violations(at string, schema map[string]any, value any) []string {
	var found []string
	wrong := func(format string, args ...any) { found = append(found, at+": "+fmt.Sprintf(format, args...)) }
	for keyword, argument := range schema {
		switch keyword {
		case "const":
			if !reflect.DeepEqual(value, argument) {
				wrong("is not %v", argument)
			}
		case "enum":
			if !slices.ContainsFunc(argument.([]any), func(known any) bool { return reflect.DeepEqual(known, value) }) {
				wrong("is not one of %v", argument)
			}
		case "type":
			kinds, ok := argument.([]any)
			if !ok {
				kinds = []any{argument}
			}
			if !slices.ContainsFunc(kinds, func(kind any) bool { return kind == kindOf(value) }) {
				wrong("is of type %v, not %v", kindOf(value), kinds)
			}
		case "pattern":
			if text, ok := value.(string); ok && !regexp.MustCompile(argument.(string)).MatchString(text) {
				wrong("does not match %v", argument)
			}
		case "minimum", "maximum":
			if n, ok := value.(int); ok && (keyword == "minimum" && float64(n) < argument.(float64) || keyword == "maximum" && float64(n) > argument.(float64)) {
				wrong("is out of bounds")
			}
		case "maxLength":
			if text, ok := value.(string); ok && float64(len(text)) > argument.(float64) {
				wrong("is too long")
			}
		case "required":
			for _, name := range argument.([]any) {
				if object, ok := value.(map[string]any); ok && object[name.(string)] == nil {
					wrong("lacks %v", name)
				}
			}
		case "items":
			list, _ := value.([]any)
			for i, item := range list {
				found = append(found, violations(fmt.Sprintf("%s[%d]", at, i), argument.(map[string]any), item)...)
			}
		case "properties":
			object, _ := value.(map[string]any)
			for name, member := range object {
				property, known := argument.(map[string]any)[name].(map[string]any)
				if !known {
					wrong("has the key %s", name)
					continue
				}
				found = append(found, violations(at+"."+name, property, member)...)
			}
		case "additionalProperties", "description", "title", "$schema", "$id":
		default:
			wrong("the schema uses %s, which this test does not know", keyword)
		}
	}
	return found
}

func kindOf(value any) string {
	switch v := value.(type) {
	case string:
		return "string"
	case bool:
		return "boolean"
	case int:
		return "integer"
	case float64:
		if v == math.Trunc(v) {
			return "integer"
		}
		return "number"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return "null"
}

// The examples of the documentation are read without a problem (but for those that
// this version does not make), and hold to the schema.
func TestNodeConfigExamples(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/nodeconfig.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```(yaml|mime)\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(examples) < 5 {
		t.Fatalf("%d examples found", len(examples))
	}
	for i, example := range examples {
		kind, document := example[1], example[2]
		intent, problems := Parse([]byte(document))
		if intent.Handover != HandoverNodeagent || intent.Flavor != FlavorNodeConfig || len(problems) > 0 {
			t.Errorf("example %d: %+v, %v", i+1, intent, problems)
		}
		if kind != "yaml" {
			continue
		}
		var value map[string]any
		if err := yaml.Unmarshal([]byte(document), &value); err != nil {
			t.Fatal(err)
		}
		if found := violations("", nodeConfigSchema(t), value); len(found) > 0 {
			t.Errorf("example %d: the schema refuses it: %q", i+1, found)
		}
	}
}

// What the documentation's table names are the keys there are.
func TestNodeConfigIsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/nodeconfig.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.SplitN(line, "|", 3); len(cells) == 3 && cells[0] == "" {
			for _, match := range regexp.MustCompile("`([\\w.]+)`").FindAllStringSubmatch(cells[1], -1) {
				documented[match[1]] = true
			}
		}
	}
	var keys func(at string, typ reflect.Type)
	keys = func(at string, typ reflect.Type) {
		for i := range typ.NumField() {
			field := typ.Field(i)
			key := strings.TrimPrefix(at+"."+field.Tag.Get("yaml"), ".")
			if field.Type.Kind() == reflect.Struct && field.Type != reflect.TypeFor[secret.Text]() {
				keys(key, field.Type)
				continue
			}
			if !documented[key] {
				t.Errorf("%s is not documented", key)
			}
			delete(documented, key)
		}
	}
	keys("", reflect.TypeFor[NodeConfig]())
	for key := range documented {
		t.Errorf("%s is documented, but no key", key)
	}
}

// Both judge alike: what the reader refuses as no NodeConfig the schema refuses too.
func TestNodeConfigSchemaJudgesAlike(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		good bool
	}{
		{"mode: init", true},
		{"mode: init\nkubernetes: {tokenTTL: 0, certSANs: [a, b], bindPort: 6443, uploadCerts: true}", true},
		{"mode: init\nkubernetes: {version: latest}", false},
		{"mode: init\nkubernetes: {version: 1.30}", false},
		{"mode: init\nkubernetes: {token: short}", false},
		{"mode: init\nkubernetes: {certificateKey: abc}", false},
		{"mode: init\nkubernetes: {bindPort: many}", false},
		{"mode: init\nkubernetes: {bindPort: 65536}", false},
		{"mode: init\nkubernetes: {uploadCerts: maybe}", false},
		{"mode: init\nkubernetes: {certSANs: a}", false},
		{"mode: init\nkubernetes: {certSANs: [[a]]}", false},
		{"mode: init\nkubernetes: {colour: red}", false},
		{"mode: init\nkubernetes:", false},
		{"mode: other", false},
		{"mode: [init]", false},
		{"kubernetes: {}", false},
		{"mode: init\ncolour: red", false},
		{"mode: init\nregistry: {host: a}", false},
		{"mode: init\niso: {waitAttempts: -1}", false},
		{"mode: init\niso: {eject: 1}", false},
	} {
		document := "apiVersion: nodeagent/v1\nkind: NodeConfig\n" + test.text + "\n"
		var value map[string]any
		if err := yaml.Unmarshal([]byte(document), &value); err != nil {
			t.Fatal(err)
		}
		if found := violations("", nodeConfigSchema(t), value); (len(found) == 0) != test.good {
			t.Errorf("%q: the schema says %q, want good %v", test.text, found, test.good)
		}
		if _, problems := Parse([]byte(document)); (Err(problems) == nil) != test.good {
			t.Errorf("%q: the reader says %v, want good %v", test.text, problems, test.good)
		}
	}
}
