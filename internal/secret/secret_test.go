// SPDX-License-Identifier: Apache-2.0

package secret_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap/zapcore"
	"go.yaml.in/yaml/v3"

	"nodeagent/internal/secret"
)

// C33: a secret must not leave the process, however it is printed.
func TestTextNeverShowsItsValue(t *testing.T) {
	t.Parallel()
	const value = "abcdef.0123456789abcdef"
	text := secret.New(value)
	holder := struct{ Token secret.Text }{text}

	var shown []string
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		shown = append(shown, fmt.Sprintf(verb, text), fmt.Sprintf(verb, holder), fmt.Sprintf(verb, &holder))
	}
	asJSON, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	asYAML, err := yaml.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	var journal strings.Builder
	slog.New(slog.NewTextHandler(&journal, nil)).Info("step", "token", text, "holder", holder)
	encoded, err := zapcore.NewJSONEncoder(zapcore.EncoderConfig{}).EncodeEntry(zapcore.Entry{},
		[]zapcore.Field{{Key: "holder", Type: zapcore.ReflectType, Interface: holder}})
	if err != nil {
		t.Fatal(err)
	}
	shown = append(shown, string(asJSON), string(asYAML), journal.String(), encoded.String())

	hex := fmt.Sprintf("%x", value)
	for _, text := range shown {
		if strings.Contains(text, value) || strings.Contains(text, hex) {
			t.Errorf("secret shown in %q", text)
		}
	}
	if got := text.Reveal(); got != value {
		t.Errorf("Reveal() = %q, want %q", got, value)
	}
}
