// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/secret"
)

// The corpus: one folder for each text that may arrive, with what is to become of
// it. Its texts are reconstructions, in own words, of the structure of CloudStack's
// templates from 4.16.0 on (cloudstack-contract.md, section 4), of administrators'
// edits to them, and of all else a node may be given. user-data.gz is kept
// compressed for its size alone.
const corpus = "testdata/corpus"

func corpusNames(t testing.TB) []string {
	t.Helper()
	folders, err := os.ReadDir(corpus)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, folder := range folders {
		names = append(names, folder.Name())
	}
	if len(names) < 60 {
		t.Fatalf("the corpus has %d inputs, want at least 60", len(names))
	}
	return names
}

func corpusText(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(corpus, name, "user-data"))
	if err == nil {
		return raw
	}
	file, err := os.Open(filepath.Join(corpus, name, "user-data.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	reader, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = io.ReadAll(reader); err != nil {
		t.Fatal(err)
	}
	return raw
}

// Secrets that the corpus holds and nothing may show.
func plantedSecrets() []string {
	return []string{testToken, strings.ToUpper(testToken), testKey, testKey[1:], "hunter2hunter2", "t0psecrett0psecret", "geheim77geheim77"}
}

// plainSecrets have the form of no secret: only the place tells, so a text that a fuzzer
// has changed may show them.
func plainSecrets() []string { return []string{"S3cr3tTail", "hunter2pw"} }

// corpusGolden is what is kept of an input.
type corpusGolden struct {
	Intent   map[string]any `json:"intent"`
	Problems []string       `json:"problems,omitempty"`
	Explain  []string       `json:"explain,omitempty"`
}

func newGolden(intent Intent, problems []Problem, explained []Explanation) corpusGolden {
	golden := corpusGolden{Intent: map[string]any{}}
	for field, value := range reflect.ValueOf(intent).Fields() {
		switch {
		case value.IsZero() || field.Name == "Origins":
		case value.Type() == reflect.TypeFor[time.Duration]():
			golden.Intent[field.Name] = value.Interface().(time.Duration).String()
		default:
			golden.Intent[field.Name] = value.Interface()
		}
	}
	for _, p := range problems {
		golden.Problems = append(golden.Problems, strings.TrimSuffix(fmt.Sprintf("%s %s [%s]: %s", p.Severity, p.Code, p.Key, p.Message), "\n"))
	}
	for _, e := range explained {
		golden.Explain = append(golden.Explain, fmt.Sprintf("%s: %s <- %s", e.Key, e.Value, e.From))
	}
	return golden
}

func TestCorpus(t *testing.T) {
	t.Parallel()
	for _, name := range corpusNames(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := corpusText(t, name)
			intent, problems := Parse(raw)
			explained := intent.Explain()
			if text, err := os.ReadFile(filepath.Join(corpus, name, "boot-args")); err == nil {
				explained = append(ParseBootArgs(string(text)).Explain(), explained...)
			}
			var text bytes.Buffer
			encoder := json.NewEncoder(&text)
			encoder.SetEscapeHTML(false)
			encoder.SetIndent("", "  ")
			if err := encoder.Encode(newGolden(intent.Shown(), problems, explained)); err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("corpus", name, "intent.json"), text.String())
			checkPromises(t, raw, intent, problems, text.String())
			for _, hidden := range plainSecrets() {
				if strings.Contains(text.String()+fmt.Sprint(intent.Origins, Err(problems)), hidden) {
					t.Errorf("shows the secret %s", hidden)
				}
			}

			seed, err := Seed(raw, intent)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(goldenSeeds(), name) {
				golden(t, filepath.Join("corpus", name, "seed"), strings.NewReplacer(testToken, secret.Redacted, testKey, secret.Redacted).Replace(string(seed)))
			}
		})
	}
}

// goldenSeeds are the inputs whose seed is kept too.
func goldenSeeds() []string {
	return []string{"control-4.16.0", "control-4.21", "control-4.22-cni-appended", "control-4.21-cni-mime-key", "edit-second-user",
		"nodeconfig-init", "nodeconfig-init-mime", "etcd-4.21"}
}

// checkPromises checks what holds of every text whatever.
func checkPromises(t *testing.T, raw []byte, intent Intent, problems []Problem, shown string) {
	t.Helper()
	for _, hidden := range plantedSecrets() {
		if strings.Contains(shown, hidden) || strings.Contains(fmt.Sprintf("%+v %#v %v %v", intent, intent, problems, Err(problems)), hidden) {
			t.Errorf("shows the secret %s...", hidden[:4])
		}
	}
	seed, err := Seed(raw, intent)
	if err != nil {
		t.Fatalf("no seed: %v", err)
	}
	switch intent.Handover {
	case HandoverCloudInit:
		if !bytes.Equal(seed, raw) {
			t.Error("userdata left to cloud-init was changed")
		}
		if len(intent.HandoverReasons) == 0 && Err(problems) == nil {
			t.Error("left to cloud-init without a reason")
		}
	case HandoverNodeagent:
		if intent.Mode == ModeNone || Err(problems) != nil || len(intent.HandoverReasons) > 0 {
			t.Errorf("nodeagent would make a node of mode %s with %v, %v", intent.Mode, problems, intent.HandoverReasons)
		}
		again, found := Parse(seed)
		if again.SSHKeys != intent.SSHKeys {
			t.Errorf("the seed has %d ssh keys, the userdata %d (%v)", again.SSHKeys, intent.SSHKeys, found)
		}
		if again.Flavor == FlavorNodeConfig || bytes.Contains(seed, []byte("kubeadm init")) {
			t.Error("the seed still makes the node")
		}
	default:
		t.Errorf("nobody makes the node: %q", intent.Handover)
	}
}

// Every field of an intent is explained, and shown with its line.
func TestExplainIsComplete(t *testing.T) {
	t.Parallel()
	var intent Intent
	value := reflect.ValueOf(&intent).Elem()
	fill(value)
	intent.Origins = nil
	explained := intent.Explain()
	for i := range value.NumField() {
		name := value.Type().Field(i).Name
		if slices.Contains([]string{"Flavor", "KubeadmDocuments", "Handover", "HandoverReasons", "Origins"}, name) {
			continue
		}
		if !slices.ContainsFunc(explained, func(e Explanation) bool { return strings.EqualFold(e.Key, name) }) {
			t.Errorf("the field %s is not explained", name)
		}
	}
	for _, e := range explained {
		if e.Value == "" || e.From != "default" {
			t.Errorf("%+v: want a value, and default as its origin", e)
		}
	}
}

// C33: a secret in a place for something else is not shown either.
func TestExplainShowsNoSecret(t *testing.T) {
	t.Parallel()
	intent := Intent{Endpoint: testToken + ":6443", NodeName: testKey, CertSANs: []string{testKey}, Flags: Words{"--x", testToken}, ExternalEtcd: []string{"http://" + testToken},
		Etcd: &Etcd{Name: testKey}, Registry: &Registry{Host: testToken}, KubeadmConfig: "/" + testKey, Discovery: Discovery{File: testToken}}
	if shown := fmt.Sprint(intent.Explain()); strings.Contains(shown, testToken) || strings.Contains(shown, testKey) {
		t.Errorf("shown: %s", shown)
	}
	if shown := fmt.Sprint(ParseBootArgs("type=cksnode name=" + testKey).Explain()); strings.Contains(shown, testKey) {
		t.Errorf("shown: %s", shown)
	}
}

// fill gives every field a value.
func fill(value reflect.Value) {
	switch {
	case value.Type() == reflect.TypeFor[secret.Text]():
		value.Set(reflect.ValueOf(secret.New("x")))
	case value.Kind() == reflect.String:
		value.SetString("x")
	case value.Kind() == reflect.Int || value.Kind() == reflect.Int64:
		value.SetInt(7)
	case value.Kind() == reflect.Bool:
		value.SetBool(true)
	case value.Kind() == reflect.Slice:
		value.Set(reflect.MakeSlice(value.Type(), 1, 1))
		fill(value.Index(0))
	case value.Kind() == reflect.Pointer:
		value.Set(reflect.New(value.Type().Elem()))
		fill(value.Elem())
	case value.Kind() == reflect.Struct:
		for i := range value.NumField() {
			fill(value.Field(i))
		}
	}
}

// The line that is named is the line: also of a template, which renders to fewer.
func TestExplainNamesTheLine(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]map[string]string{
		"control-4.21":               {"endpoint": "kubeadm init --token", "waitInterval": "sleep $OFFLINE", "externalCNI": "network.yaml"},
		"control-4.21-external-etcd": {"endpoint": "controlPlaneEndpoint:", "externalEtcd": "- http://10.1.1.61", "token": `- token: "`},
		"worker-4.21":                {"endpoint": "kubeadm join", "discovery": "kubeadm join"},
		"etcd-4.21":                  {"etcd": "ExecStart="},
		"nodeconfig-init":            {"version": "version: 1.33.1", "ejectISO": "eject: true"},
		"wrap-crlf":                  {"endpoint": "kubeadm init --token"},
		"cluster-api-join":           {"endpoint": "apiServerEndpoint:", "mode": "kubeadm join"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := corpusText(t, name)
			intent, _ := Parse(raw)
			lines := strings.Split(string(raw), "\n")
			for _, e := range intent.Explain() {
				var line int
				if want[e.Key] == "" {
					continue
				}
				if _, err := fmt.Sscanf(e.From, "user-data line %d", &line); err != nil || line > len(lines) || !strings.Contains(lines[line-1], want[e.Key]) {
					t.Errorf("%s is said to come from %q; want the line with %q", e.Key, e.From, want[e.Key])
				}
			}
		})
	}
}
