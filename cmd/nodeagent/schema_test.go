// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"nodeagent/internal/agent"
)

const schemaFile = "../../docs/status.schema.json"

// statusSchema is the published schema of `nodeagent status -o json`.
func statusSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schema, err := compiler.Compile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// checkOutput checks a report as JSON and as YAML prints it.
func checkOutput(t testing.TB, schema *jsonschema.Schema, report *statusReport) {
	t.Helper()
	var text bytes.Buffer
	if err := printReport(&text, report, "json"); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		if clean := agent.Printable(strings.TrimSuffix(line, "\n")); clean+"\n" != line {
			t.Errorf("a terminal would obey %q", line)
		}
	}
	value, err := jsonschema.UnmarshalJSON(&text)
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(value); err != nil {
		t.Errorf("%v\n%v", err, value)
	}

	if err := printReport(&text, report, "yaml"); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text.String()) {
		if clean := agent.Printable(strings.TrimSuffix(line, "\n")); clean+"\n" != line {
			t.Errorf("a terminal would obey %q", line)
		}
	}
	var tree any
	if err := yaml.Unmarshal(text.Bytes(), &tree); err != nil {
		t.Fatalf("%v in\n%s", err, &text)
	}
	// YAML knows times, JSON does not.
	again, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	if value, err = jsonschema.UnmarshalJSON(bytes.NewReader(again)); err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(value); err != nil {
		t.Errorf("YAML: %v\n%v", err, tree)
	}
}

// I2, I4: every output is what the published schema says.
func TestOutputIsOfTheSchema(t *testing.T) {
	t.Parallel()
	schema := statusSchema(t)
	for name, seen := range screens() {
		t.Run(name, func(t *testing.T) { checkOutput(t, schema, seen.report) })
	}
}

// The schema has every key of the report and no other, and would notice a wrong one.
func TestSchemaIsTheType(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	compareKeys(t, "Status", schema, schema, reflect.TypeFor[statusReport]())

	for _, wrong := range []string{`{}`, `{"schemaVersion":2}`, `{"schemaVersion":1,"phase":"failed","bootID":"b","steps":[],"gates":[],"health":[],"warnings":[]}`,
		`{"schemaVersion":1,"phase":"done","bootID":"b","steps":[{"name":"disk","status":"failed"}],"gates":[],"health":[],"warnings":[]}`,
		`{"schemaVersion":1,"phase":"done","bootID":"b","steps":null,"gates":[],"health":[],"warnings":[]}`,
		`{"schemaVersion":1,"phase":"done","bootID":"b","started":"yesterday","steps":[],"gates":[],"health":[],"warnings":[]}`} {
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(wrong))
		if err != nil {
			t.Fatal(err)
		}
		if statusSchema(t).Validate(value) == nil {
			t.Errorf("the schema takes %s", wrong)
		}
	}
}

func compareKeys(t *testing.T, at string, root, schema map[string]any, typ reflect.Type) {
	t.Helper()
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if items, ok := schema["items"].(map[string]any); ok {
		schema = items
	}
	if ref, ok := schema["$ref"].(string); ok {
		schema = root["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
	}
	if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() {
		return
	}
	properties, _ := schema["properties"].(map[string]any)
	known := slices.Collect(maps.Keys(properties))
	for i := range typ.NumField() {
		name, options, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		property, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("%s.%s: not in the schema", at, name)
			continue
		}
		known = slices.DeleteFunc(known, func(other string) bool { return other == name })
		required, _ := schema["required"].([]any)
		if slices.Contains(required, any(name)) == (options == "omitempty") {
			t.Errorf("%s.%s: required %v, but its tag says %q", at, name, required, options)
		}
		compareKeys(t, at+"."+name, root, property, typ.Field(i).Type)
	}
	if len(known) > 0 {
		t.Errorf("%s: %v is in the schema alone", at, known)
	}
}

// The order of YAML is that of JSON, without its quotes; no control character passes.
func TestYAML(t *testing.T) {
	t.Parallel()
	done := screens()["done"]
	var out bytes.Buffer
	if err := printYAML(&out, done.report); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "schemaVersion: 1\nversion: 0.1.0\nrole: cksnode\n") || !strings.Contains(out.String(), "\nwarnings: []\n") {
		t.Errorf("%s", &out)
	}
}
