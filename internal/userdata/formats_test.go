// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/fault"
)

// answer is what cloud-init makes of userdata.
type answer struct {
	SHA256 string `json:"sha256"` // of the userdata
	Error  string `json:"error"`
	Parts  []struct {
		Type     string  `json:"type"`
		Name     string  `json:"name"`
		Text     any     `json:"text"` // {"base64": ...} where it is no UTF-8
		Merge    string  `json:"merge"`
		Rendered *string `json:"rendered"`
	} `json:"parts"`
	Config any            `json:"config"` // all cloud-configs merged
	Files  map[string]any `json:"files"`
}

const answersFile = "testdata/formats/answers.json"

// cloudInit knows cloud-init's answers, which are kept in answersFile. With CLOUD_INIT in
// the environment those that are missing or to other userdata are asked for, as
// testdata/formats/oracle.py says, and those no longer used go.
type cloudInit struct {
	modules string // CLOUD_INIT
	kept    map[string]json.RawMessage

	mu   sync.Mutex
	used map[string]json.RawMessage
}

func newCloudInit(t *testing.T) *cloudInit {
	c := &cloudInit{modules: os.Getenv("CLOUD_INIT"), used: map[string]json.RawMessage{}}
	if data, err := os.ReadFile(answersFile); err == nil {
		if err := json.Unmarshal(data, &c.kept); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if c.modules == "" {
			return
		}
		data, err := json.MarshalIndent(c.used, "", " ")
		if err := errors.Join(err, os.WriteFile(answersFile, append(data, '\n'), 0o644)); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *cloudInit) answer(t *testing.T, name string, userdata []byte) (a answer) {
	t.Helper()
	sum := sha256.Sum256(userdata)
	known := c.kept[name]
	if c.modules != "" && !bytes.Contains(known, []byte(hex.EncodeToString(sum[:]))) {
		command := exec.Command("/usr/bin/python3", "testdata/formats/oracle.py")
		command.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH="+c.modules)
		command.Stdin = bytes.NewReader(userdata)
		output, err := command.Output()
		if err != nil {
			t.Fatalf("cloud-init: %v", err)
		}
		known = output
	}
	if err := json.Unmarshal(known, &a); err != nil || a.SHA256 != hex.EncodeToString(sum[:]) {
		t.Fatalf("no answer to this userdata is kept (%v): ask cloud-init as oracle.py says", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used[name] = known
	return a
}

// strangeInputs are left to cloud-init, with the reason.
func strangeInputs() map[string]string {
	const (
		unknown    = "begins with nothing that cloud-init knows"
		cannot     = "not understood"
		attributed = "uses an attribute of the variable registry"
		noTemplate = "a jinja template of what cloud-init takes no template of"
		title      = "its first line is not just"
		included   = "includes userdata from elsewhere"
	)
	return map[string]string{
		"plain-comment-first": unknown, "plain-no-header": unknown, "nothing-known": unknown, "jinja-title": unknown,
		"include": included, "include-once": included, "json-patch": "patches the cloud-config", "part-handler": "handles other parts",
		"jinja-title-2": title, "jinja-title-after-blank": title, "jinja-title-only": noTemplate, "jinja-title-twice": noTemplate,
		"jinja-boothook": noTemplate, "jinja-patch": noTemplate, "jinja-attribute": "line 18 " + attributed, "jinja-attribute-asked": "line 18 " + attributed,
		"jinja-bash-length": "line 14 has a jinja expression that is not understood", "jinja-not-closed": "an if is not closed",
		"jinja-closed-twice": "line 18 has a jinja tag out of place", "jinja-else-twice": "out of place", "jinja-elif-last": "out of place",
		"jinja-nothing-printed": "line 18 has a jinja expression that is not understood",
		// cloud-init has the metadata, and all of Jinja.
		"jinja-metadata": "line 18 uses a variable whose value is not known here", "jinja-cks-calico-sample": "line 20 uses a variable",
		"jinja-raw": cannot, "jinja-for": cannot, "jinja-set": cannot, "jinja-filter": cannot, "jinja-and": cannot,
		"mime-jinja-type": title, "mime-boundary-missing": "without parts or a boundary", "mime-blank-start": unknown, "mime-late": unknown,
		"mime-name-encoded": "RFC 2231", "mime-encoding-unknown": `Content-Transfer-Encoding "x-uuencode"`, "mime-message": "MIME message inside",
		"mime-types-unknown": `MIME type "text/html"`, "mime-types-all": "handles other parts", "mime-gzip-parts": unknown,
		"archive-yaml": unknown, "archive-in-archive": `MIME type "text/cloud-config-archive"`, "archive-mislabelled": cannot, "archive-odd": cannot,
		"archive-list-entry": cannot, "jinja-for-in-if": cannot, "jinja-do-in-if": cannot, "mime-digest": "MIME message inside",
		"archive-aliases": "uses YAML aliases", "archive-empty": "there is nothing in it",
	}
}

// betterThanCloudInit are inputs of which cloud-init makes nothing, or not what was
// meant, with the warning that says so, and the input that says the same plainly.
func betterThanCloudInit() map[string][2]string {
	return map[string][2]string{
		"plain-bom":             {"byte order mark", "plain"},
		"gzip-gzip":             {"wrapped in gzip, gzip", "plain"},
		"gzip-base64":           {"wrapped in gzip, base64", "plain"},
		"base64":                {"wrapped in base64,", "plain"},
		"base64-gzip":           {"wrapped in base64, gzip", "plain"},
		"mime-cloudstack-jinja": {"cloud-init itself does not render", "mime-cloudstack-jinja-meant"}, // cs#11691
		"config-jinja-below":    {"cloud-init itself does not render", "config-jinja-below-meant"},
		"mime-8bit":             {"garbles them", "mime-8bit-meant"},
		"mime-bom":              {"byte order mark", "mime-bom-meant"},
	}
}

// Every input is read as cloud-init reads it (contract 4.1, 7.3; anchors 2.6), and what
// rewrap makes of it means the same to cloud-init.
func TestAgainstCloudInit(t *testing.T) {
	t.Parallel()
	inputs, err := filepath.Glob("testdata/formats/*.in")
	if err != nil || len(inputs) < 100 {
		t.Fatalf("%d inputs, %v", len(inputs), err)
	}
	strange, better, judge := strangeInputs(), betterThanCloudInit(), newCloudInit(t)
	for _, input := range inputs {
		name := strings.TrimSuffix(filepath.Base(input), ".in")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			parts, problems := unwrap(raw)
			var said []string
			for _, p := range problems {
				said = append(said, p.Message)
			}
			if warning := better[name]; warning != [2]string{} {
				if !strings.Contains(strings.Join(said, "\n"), warning[0]) || Err(problems) != nil {
					t.Errorf("problems = %q, want a warning with %q", said, warning[0])
				}
				if raw, err = os.ReadFile("testdata/formats/" + warning[1] + ".in"); err != nil {
					t.Fatal(err)
				}
				name = warning[1]
			} else if len(problems) > 0 && name != "jinja-elif" && name != "jinja-missing" && name != "jinja-blanks" {
				t.Errorf("problems = %q, want none", said)
			}
			want := judge.answer(t, name, raw)
			compare(t, parts, want, strange[name])
			if strange[name] != "" {
				return
			}
			again := rewrap(parts)
			if !bytes.Equal(again, rewrap(parts)) {
				t.Error("rewrap gives other bytes for the same parts")
			}
			sameForCloudInit(t, want, judge.answer(t, name+", rewrapped", again))
		})
	}
}

// compare compares parts with what cloud-init found.
func compare(t *testing.T, parts []part, want answer, strange string) {
	t.Helper()
	found := ""
	for _, p := range parts {
		found = cmp.Or(found, p.strange)
	}
	if (found == "") != (strange == "") || !strings.Contains(found, strange) {
		t.Errorf("strange = %q, want %q", found, strange)
	}
	if found != "" {
		return
	}
	if len(parts) != len(want.Parts) {
		t.Fatalf("%d parts, cloud-init has %d", len(parts), len(want.Parts))
	}
	for i, p := range parts {
		w := want.Parts[i]
		content, _ := w.Text.(string)
		mediaType := w.Type
		if w.Rendered != nil {
			content = *w.Rendered
			mediaType = typeByHeader([]byte(content))
		}
		kind := handledType(mediaType)
		if kind == partOther && p.kind == partNodeConfig {
			kind = partNodeConfig
		}
		if kind == partCloudConfig || kind == partNodeConfig {
			content = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(strings.TrimPrefix(content, "\ufeff"))
		}
		if p.kind != kind || string(p.text) != content || p.mergeType != w.Merge {
			t.Errorf("part %d:\ngot  %d %q %q\nwant %d %q %q", i+1, p.kind, p.text, p.mergeType, kind, content, w.Merge)
		}
		if p.name != w.Name && (p.name != "" || w.Name != fmt.Sprintf("part-%03d", i+1)) {
			t.Errorf("part %d is named %q, want %q", i+1, p.name, w.Name)
		}
	}
	compareConfig(t, parts, want)
}

// compareConfig compares mergeCloudConfigs with cloud-init's own.
func compareConfig(t *testing.T, parts []part, want answer) {
	t.Helper()
	merged, strange := mergeCloudConfigs(parts)
	if reason, ok := strangeMerges()[strings.TrimPrefix(t.Name(), "TestAgainstCloudInit/")]; ok || want.Config == nil {
		if !strings.Contains(strange, reason) || merged != nil {
			t.Errorf("merged to %q, %q, want strange: %q", merged, strange, reason)
		}
		return
	}
	if strange != "" {
		t.Fatalf("cannot merge: %s", strange)
	}
	if got := jsonOf(t, merged); got != nil && !reflect.DeepEqual(got, want.Config) {
		t.Errorf("merged config:\ngot  %v\nwant %v", got, want.Config)
	} else if got == nil && !reflect.DeepEqual(want.Config, map[string]any{}) {
		t.Errorf("merged to no YAML, want %v", want.Config)
	}
}

func strangeMerges() map[string]string {
	return map[string]string{
		"mime-merge-type-append": "MIME part 2 (base64): it asks to be merged in a way of its own",
		"mime-merge-how":         "MIME part 2 (base64): it asks to be merged in a way of its own (merge_how)",
		"mime-merge-broken":      "MIME part 2 (base64): it is not a YAML mapping",
		"mime-merge-list":        "MIME part 2 (base64): it is not a YAML mapping",
		"mime-merge-aliases":     "YAML aliases",
	}
}

// jsonOf reads YAML as JSON would have it, nil for what is none.
func jsonOf(t *testing.T, text []byte) (value any) {
	t.Helper()
	if strings.HasSuffix(t.Name(), "/plain-twice-the-keys") {
		// A key twice in one text: the later value holds, as in two texts.
		first, second, _ := bytes.Cut(text, []byte("\n\n\n"))
		text, _ = mergeCloudConfigs([]part{{kind: partCloudConfig, text: first}, {kind: partCloudConfig, text: second}})
	}
	if yaml.Unmarshal(text, &value) != nil {
		return nil
	}
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	value = nil
	if err := json.Unmarshal(data, &value); err != nil {
		t.Fatal(err)
	}
	return value
}

// sameForCloudInit compares cloud-init's answers to userdata and to the rewrapped one.
func sameForCloudInit(t *testing.T, before, after answer) {
	t.Helper()
	config := func(a answer) any {
		if a.Config == nil {
			return map[string]any{}
		}
		return a.Config
	}
	if after.Error != "" || !reflect.DeepEqual(config(before), config(after)) || !reflect.DeepEqual(before.Files, after.Files) {
		t.Errorf("rewrapped, cloud-init makes something else of it:\nwas %v %v\nis  %s %v %v", before.Config, before.Files, after.Error, after.Config, after.Files)
	}
}

// input reads an input of testdata/formats.
func input(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile("testdata/formats/" + name + ".in")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func packed(data []byte) []byte {
	var out bytes.Buffer
	writer := gzip.NewWriter(&out)
	writer.Write(data)
	writer.Close()
	return out.Bytes()
}

// archiveOf makes a MIME archive of parts that are complete with headers.
func archiveOf(boundary string, parts ...string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "Content-Type: multipart/mixed; boundary=%s\nMIME-Version: 1.0\n\n", boundary)
	for _, p := range parts {
		fmt.Fprintf(&out, "--%s\n%s\n", boundary, p)
	}
	return out.String() + "--" + boundary + "--\n"
}

// secretHeld is in inputs, and in nothing that is said about them.
const secretHeld = "c0ffee.0123456789abcdef"

func TestUnwrapOrigin(t *testing.T) {
	t.Parallel()
	for name, want := range map[string][]string{
		"plain":           {""},
		"gzip":            {"userdata (gzip)"},
		"base64-gzip":     {"userdata (base64, gzip)"},
		"jinja-cks":       {"(jinja)"},
		"jinja-cks-gzip":  {"userdata (gzip, jinja)"},
		"mime-7bit":       {"MIME part 1", "MIME part 2"},
		"mime-nested":     {"MIME part 1.1 (base64)", "MIME part 1.2.1 (base64)", "MIME part 1.3 (base64)", "MIME part 2 (base64)"},
		"mime-gzip-parts": {"MIME part 1 (base64, gzip)", "MIME part 2 (base64, gzip)", "MIME part 3 (base64, gzip)"},
		"mime-archive":    {"MIME part 1, archive entry 1", "MIME part 2, archive entry 1"},
		"archive-jinja":   {"archive entry 1 (jinja)"},
	} {
		parts, _ := unwrap(input(t, name))
		var got []string
		for _, p := range parts {
			got = append(got, p.origin)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: origins %q, want %q", name, got, want)
		}
	}
}

// A text may arrive cut off; anchors 5.6: all that is unpacked is bounded.
func TestUnwrapDamaged(t *testing.T) {
	t.Parallel()
	config := "#cloud-config\ntoken: " + secretHeld + "\n"
	part := "Content-Type: text/cloud-config\n\n" + config
	whole := packed([]byte(config))
	wrong := bytes.Clone(whole)
	wrong[len(wrong)-5] ^= 1
	b64 := base64.StdEncoding.EncodeToString
	nested := part
	for depth := range maxMIMEDepth + 1 {
		nested = archiveOf(fmt.Sprint("b", depth), nested)
	}
	half := packed(make([]byte, maxUnpacked/2+1))
	for _, test := range []struct{ name, raw, want string }{
		{"large", config + strings.Repeat("#", MaxUserdata), "larger than 1048576 bytes"},
		{"gzip cut off", string(whole[:len(whole)-9]), "it was cut off: the gzip data end after"},
		{"gzip header cut off", string(whole[:9]), "the gzip header cannot be read"},
		{"gzip changed", string(wrong), "the gzip data are wrong"},
		{"gzip and more", string(whole) + "more than a header is long", "the gzip data are wrong"},
		{"gzip bomb", string(packed(make([]byte, maxUnpacked+1))), "unpacks to more than 4194304 bytes"},
		{"gzip bomb in two parts", archiveOf("b", "Content-Type: application/gzip\nContent-Transfer-Encoding: base64\n\n"+b64(half),
			"Content-Type: application/gzip\nContent-Transfer-Encoding: base64\n\n"+b64(half)), "MIME part 2: it unpacks to more than"},
		{"layers", b64([]byte(b64([]byte(b64([]byte(b64(packed([]byte(config))))))))), "wrapped in gzip or base64 more than 4 times"},
		{"base64 changed", b64([]byte(strings.Repeat(config, 9)))[:100] + "*", "not base64 after"},
		{"base64 cut off", b64([]byte(config))[:41], "it is damaged or cut off: it is not base64"},
		{"base64 changed in a part", archiveOf("b", "Content-Type: text/cloud-config\nContent-Transfer-Encoding: base64\n\n"+b64([]byte(config))[:20]+"?"), "MIME part 1: it is damaged or cut off: it is not base64"},
		{"no gzip", archiveOf("b", "Content-Type: application/x-gzip\n\n"+config), "MIME part 1: it is damaged: its MIME type is gzip's"},
		{"gzip of no text", archiveOf("b", "Content-Type: application/x-gzip\nContent-Transfer-Encoding: base64\n\n"+b64(packed([]byte("#!/bin/sh\n\xff")))), "not UTF-8"},
		{"MIME of no text", archiveOf("b", part+"\xff"), "its MIME archive is not UTF-8"},
		{"MIME depth", nested, "nested more than 8 deep"},
		{"MIME parts", archiveOf("b", slices.Repeat([]string{part}, maxParts+1)...), "more than 64 parts"},
		{"MIME containers", archiveOf("b", slices.Repeat([]string{archiveOf("c", archiveOf("d", part))}, maxParts)...), "more than 64 parts"},
		{"inner MIME cut off", archiveOf("b", strings.TrimSuffix(archiveOf("c", part), "--c--\n")), "the boundary that ends it is missing"},
		{"archive of no YAML", "#cloud-config-archive\n- [" + secretHeld, "cannot read the cloud-config-archive: it is not YAML"},
		{"archive of no list", "#cloud-config-archive\na: " + secretHeld, "cannot read the cloud-config-archive: it is not a list"},
		{"archive twice", "#cloud-config-archive\n- a\n---\n- b\n", "more after the end of the YAML document"},
		{"archive entries", "#cloud-config-archive\n" + strings.Repeat("- a\n", maxParts+1), "more than 64 parts"},
		{"gzip cut off in a part", archiveOf("b", part, "Content-Type: application/gzip\nContent-Transfer-Encoding: base64\n\n"+b64(whole[:30])), "MIME part 2: it was cut off"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			parts, problems := unwrap([]byte(test.raw))
			err := Err(problems)
			if err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != fault.UserdataInvalid {
				t.Errorf("error = %v, want %s with %q", err, fault.UserdataInvalid, test.want)
			}
			if len(parts) > 0 {
				t.Errorf("%d parts beside the error", len(parts))
			}
			if said := fmt.Sprint(problems); strings.Contains(said, secretHeld) {
				t.Errorf("secret shown in %s", said)
			}
		})
	}
}

// Wherever an archive is cut off, it is noticed.
func TestUnwrapCutOff(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"mime-cloudstack-two-configs", "mime-nested", "mime-7bit-crlf", "gzip", "base64-gzip"} {
		raw := bytes.TrimRight(input(t, name), "\r\n=")
		for cut := 1; cut < len(raw); cut++ {
			parts, problems := unwrap(raw[:cut])
			if Err(problems) == nil && !slices.ContainsFunc(parts, func(p part) bool { return p.strange != "" }) {
				t.Errorf("%s cut off after %d of %d bytes is taken for whole", name, cut, len(raw))
			}
		}
	}
}

// No input makes unwrap take memory out of proportion to what it may unpack.
func TestUnwrapMemory(t *testing.T) {
	fill := func(beginning, repeated string) []byte {
		return []byte(beginning + strings.Repeat(repeated, (MaxUserdata-len(beginning))/len(repeated)))
	}
	whole := fill("#cloud-config-archive\n", "- a\n")
	for name, raw := range map[string][]byte{
		"bomb":            packed(make([]byte, 64<<20)),
		"bombs in bombs":  packed(packed(packed(make([]byte, 64<<20)))),
		"archive entries": whole,
		"archive depth":   fill("#cloud-config-archive\n", "- "),
		"archive flow":    fill("#cloud-config-archive\n", "["),
		"archive commas":  fill("#cloud-config-archive\n[", "a,"),
		"archive maps":    fill("#cloud-config-archive\n", "{a: "),
		"archive aliases": fill("#cloud-config-archive\n- &a b\n", "- *a\n"),
		"packed archive":  packed(bytes.Repeat([]byte("#cloud-config-archive\n"), maxUnpacked/22)),
		"boundaries":      fill("MIME-Version: 1\nContent-Type: multipart/x; boundary=b\n\n", "--b\n\n"),
		"long boundary":   fill("MIME-Version: 1\nContent-Type: multipart/x; boundary=", "b"),
		"headers":         fill("MIME-Version: 1\n", "a:\n"),
		"folded header":   fill("MIME-Version: 1\n", " \n"),
		"parameters":      fill("MIME-Version: 1\nContent-Type: multipart/x", ";a=\""),
		"lines":           fill("MIME-Version: 1\nContent-Type: multipart/x; boundary=b\n\n--b\n\n", "\n"),
		"template":        fill("## template: jinja\n#cloud-config\n", "{{registry}}"),
		"branches":        fill("## template: jinja\n#cloud-config\n", "{%if registry%}"),
		"tag":             fill("## template: jinja\n#cloud-config\n{%", " "),
		"tags":            fill("## template: jinja\n#cloud-config\n", "{%"),
		"comments":        fill("## template: jinja\n#cloud-config\n", "{# "),
		"hidden template": fill("#cloud-config\n", "#\n"),
		"hidden flow":     fill("#cloud-config\n## template: jinja\n", "{a: "),
		"base64":          fill("", "QUFB"),
		"native":          fill("", "apiVersion \n"),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		unwrap(raw)
		runtime.ReadMemStats(&after)
		if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 64*maxUnpacked {
			t.Errorf("%s: unwrap allocated %d MiB", name, allocated>>20)
		}
	}
}

func TestRewrap(t *testing.T) {
	t.Parallel()
	config := part{kind: partCloudConfig, text: []byte("#cloud-config\na: 1\n")}
	script := part{kind: partScript, name: "20 last.sh", text: []byte("#!/bin/sh\n")}
	with := func(p part, change func(p *part)) part {
		change(&p)
		return p
	}
	for _, test := range []struct {
		name  string
		parts []part
		plain bool
	}{
		{"a cloud-config", []part{config}, true},
		{"a script", []part{with(script, func(p *part) { p.name = "" })}, true},
		{"a name", []part{script}, false},
		{"a merge type", []part{with(config, func(p *part) { p.mergeType = "list(append)" })}, false},
		{"no first line", []part{with(config, func(p *part) { p.text = []byte("a: 1\n") })}, false},
		{"another first line", []part{with(config, func(p *part) { p.text = []byte("#!a: 1\n") })}, false},
		// Plain, cloud-init would garble what is beyond ASCII.
		{"a mention of MIME", []part{with(config, func(p *part) { p.text = []byte("#cloud-config\n# MIME-Version: ü\n") })}, false},
		{"large", []part{with(config, func(p *part) { p.text = []byte("#cloud-config\n" + strings.Repeat("#", MaxUserdata)) })}, false},
		{"empty", []part{with(config, func(p *part) { p.text = nil })}, false},
		{"two", []part{config, script}, false},
		{"one twice", []part{config, config}, false},
		{"of each kind", []part{config, {kind: partNodeConfig, text: []byte("apiVersion: nodeagent/v1\n")}, script, {kind: partBoothook, text: []byte("#!/bin/sh\n")}}, false},
	} {
		out := rewrap(test.parts)
		if plain := bytes.Equal(out, test.parts[0].text); plain != test.plain {
			t.Errorf("%s: rewrapped as\n%s", test.name, out)
		}
		if len(out) > MaxUserdata {
			continue
		}
		again, problems := unwrap(out)
		if len(problems) > 0 || !slices.EqualFunc(again, test.parts, samePart) {
			t.Errorf("%s: unwraps to %+v, %v", test.name, again, problems)
		}
	}
}

func TestMergeCloudConfigs(t *testing.T) {
	t.Parallel()
	config := func(text string) part { return part{kind: partCloudConfig, origin: "MIME part 7", text: []byte(text)} }
	for _, test := range []struct {
		name         string
		parts        []part
		want, reason string
	}{
		{"none", []part{{kind: partScript}}, "", "it has no cloud-config"},
		{"one stays as it is", []part{{kind: partScript}, config("#cloud-config\na:   1 # one\na: [")}, "#cloud-config\na:   1 # one\na: [", ""},
		{"one with a usual merge type", []part{config("a: 1\nmerge_how: DICT(replace) + list()+str()\n")}, "a: 1\nmerge_how: DICT(replace) + list()+str()\n", ""},
		{"one with its own merge type", []part{config("a: 1\nmerge_how: list(append)\n")}, "", "MIME part 7: it asks to be merged in a way of its own (merge_how)"},
		{"one with its own merge type by header", []part{{kind: partCloudConfig, mergeType: "str(append)"}}, "", "it asks to be merged"},
		{"a later key replaces", []part{config("#cloud-config\na: [1]\nb: 2\n"), config("a: [3]\nc: |\n  x\n")}, "#cloud-config\na: [3]\nb: 2\nc: |\n  x\n", ""},
		{"a key is its type too", []part{config("1: a\n"), config("\"1\": b\n")}, "#cloud-config\n1: a\n\"1\": b\n", ""},
		{"two documents", []part{config("a: 1\n"), config("b: 1\n---\nc: 1\n")}, "", "MIME part 7: it is not a YAML mapping"},
		{"deep", []part{config("a: 1\n"), config("a: " + strings.Repeat("[", 40) + strings.Repeat("]", 40))}, "", "too large or deep"},
		{"merge key", []part{config("a: 1\n"), config("a: {<<: {b: 1}}\n")}, "", "aliases"},
		{"key that is no scalar", []part{config("a: 1\n"), config("{a: 1}: 2\n")}, "", "keys that are no words"},
	} {
		merged, strange := mergeCloudConfigs(test.parts)
		if string(merged) != test.want || !strings.Contains(strange, test.reason) || (strange == "") != (test.reason == "") {
			t.Errorf("%s: merged to %q, %q; want %q, %q", test.name, merged, strange, test.want, test.reason)
		}
	}
}

// said is all that is said about userdata.
func said(parts []part, problems []Problem) string {
	var all strings.Builder
	fmt.Fprint(&all, problems)
	for _, p := range parts {
		fmt.Fprintln(&all, p.origin, p.strange)
	}
	return all.String()
}

func FuzzUnwrap(f *testing.F) {
	inputs, err := filepath.Glob("testdata/formats/*.in")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range inputs {
		f.Add(input(f, strings.TrimSuffix(filepath.Base(name), ".in")))
	}
	f.Add([]byte("#cloud-config-archive\n- {type: text/x-" + secretHeld + ", content: " + secretHeld + "}\n"))
	f.Add([]byte("## template: jinja\n#cloud-config\na: {{ " + secretHeld + " }}\n"))
	f.Add([]byte(archiveOf("b", "Content-Type: text/"+secretHeld+"\nContent-Transfer-Encoding: "+secretHeld+"\n\n"+secretHeld)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		parts, problems := unwrap(raw)
		if said := said(parts, problems); strings.Contains(said, secretHeld) {
			t.Errorf("secret shown in %s", said)
		}
		if failed := Err(problems) != nil; failed != (len(parts) == 0) {
			t.Fatalf("%d parts beside %v", len(parts), problems)
		}
		merged, strange := mergeCloudConfigs(parts)
		if (merged == nil) == (strange == "") && !slices.ContainsFunc(parts, func(p part) bool { return p.kind == partCloudConfig && len(p.text) == 0 }) {
			t.Errorf("merged to %q, %q", merged, strange)
		}
		size := 0
		for _, p := range parts {
			if size += len(p.text); p.strange != "" || p.kind == partOther {
				if p.strange == "" {
					t.Errorf("%s is of no kind, and not strange", p.origin)
				}
				return // rewrap is not for these
			}
		}
		if size > 3*maxUnpacked {
			t.Errorf("%d bytes became %d", len(raw), size)
		}
		out := rewrap(parts)
		if len(out) > MaxUserdata || len(parts) == 0 {
			return
		}
		again, problems := unwrap(out)
		if len(problems) > 0 || !slices.EqualFunc(again, parts, samePart) {
			t.Errorf("rewrapped\n%s\nunwraps to %+v, %v; was %+v", out, again, problems, parts)
		}
	})
}

// FuzzMIME has Go's mime/multipart as the maker of archives.
func FuzzMIME(f *testing.F) {
	f.Add("attachment", "a.sh", []byte("#include\nhttp://example.com\n"), []byte("\r\n--b\r\n"), true)
	f.Add("inline", "", []byte("=\x00=0A \xff"), []byte(secretHeld), false)
	f.Fuzz(func(t *testing.T, disposition, name string, first, second []byte, quoted bool) {
		var out bytes.Buffer
		writer := multipart.NewWriter(&out)
		fmt.Fprintf(&out, "MIME-Version: 1.0\r\nContent-Type: %s\r\n\r\n", mime.FormatMediaType("multipart/mixed", map[string]string{"boundary": writer.Boundary()}))
		held := mime.FormatMediaType(disposition, map[string]string{"filename": name})
		for _, body := range [][]byte{first, second} {
			header := textproto.MIMEHeader{"Content-Type": {"text/x-include-url"}, "Content-Transfer-Encoding": {"base64"}}
			if held != "" {
				header.Set("Content-Disposition", held)
			}
			if quoted {
				header.Set("Content-Transfer-Encoding", "quoted-printable")
			}
			into, err := writer.CreatePart(header)
			if err != nil {
				t.Skip()
			}
			if quoted {
				encoder := quotedprintable.NewWriter(into)
				encoder.Binary = true
				encoder.Write(body)
				encoder.Close()
			} else {
				for line := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(body)), 76) {
					fmt.Fprintf(into, "%s\r\n", line)
				}
			}
		}
		writer.Close()
		if out.Len() > MaxUserdata {
			return
		}
		parts, problems := unwrap(out.Bytes())
		if strings.Contains(held, "filename*") && parts[0].strange == "its file name is encoded (RFC 2231)" {
			return
		}
		if len(problems) > 0 || len(parts) != 2 || !bytes.Equal(parts[0].text, first) || !bytes.Equal(parts[1].text, second) {
			t.Fatalf("unwrapped to %+v, %v; want %q and %q", parts, problems, first, second)
		}
		if parts[0].name != fileName(name) && held != "" {
			t.Errorf("named %q, want %q", parts[0].name, fileName(name))
		}
		if said := said(parts, problems); strings.Contains(said, secretHeld) {
			t.Errorf("secret shown in %s", said)
		}
	})
}

func TestJinjaTagsAreBounded(t *testing.T) {
	t.Parallel()
	for tags, want := range map[int]string{maxJinjaTags: "", maxJinjaTags + 1: "line 2 has a tag more than the 10000 that are read"} {
		_, _, why := renderJinja([]byte(jinjaTitle + "\n" + strings.Repeat("{{registry}}", tags)))
		if !strings.HasSuffix(why, want) || (why == "") != (want == "") {
			t.Errorf("%d tags: %q, want %q", tags, why, want)
		}
	}
}
