// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/fault"
)

func TestReadNoCloud(t *testing.T) {
	t.Parallel()
	names := ""
	for i := range maxNames + 1 {
		names += fmt.Sprintf("n%d: x\n", i)
	}
	for _, test := range []struct{ name, meta, want string }{
		{"YAML", "instance-id: lab-1\nlocal-hostname: n1\nlevel: 3\npublic-keys:\n  - ssh-rsa A\n  - ssh-rsa B\n", "map[instance-id:lab-1 level:3 local-hostname:n1 public-keys:ssh-rsa A\nssh-rsa B]"},
		{"JSON", `{"instance-id": "lab-1", "public-keys": {"b": "ssh-rsa B", "a": ["ssh-rsa A"]}}`, "map[instance-id:lab-1 public-keys:ssh-rsa A\nssh-rsa B]"},
		{"empty", "", "map[instance-id:nocloud]"},
		{"sent elsewhere", "seedfrom: http://x/\ndsmode: disabled\nnetwork-interfaces: x\n", "map[instance-id:nocloud]"},
		{"a list", "- a\n- b\n", "cannot read meta-data: it is no YAML mapping"},
		{"cut off", "a: [b", "cannot read meta-data: it is no YAML mapping"},
		{"bad instance id", "instance-id: a/b\n", `its instance id "a/b" is none: want at most 128 letters, digits and . _ : -`},
		{"too many", names, "cannot read meta-data: it has 257 names, 256 at most are read"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := readNoCloud(func(name string, _ int) ([]byte, error) {
				return []byte(map[string]string{"meta-data": test.meta, "user-data": "x"}[name]), nil
			})
			text := fmt.Sprint(got.Meta)
			if err != nil {
				text = err.Error()
			}
			if text != test.want {
				t.Errorf("got %q, want %q", text, test.want)
			}
		})
	}
}

// nodeagent's own seed holds stand-ins: it is never a source, neither whole nor cut
// off by a power cut, and a lab's seed in the same folder stays one.
func TestOwnSeedIsNoSource(t *testing.T) {
	t.Parallel()
	m := bare(t)
	options := FetchOptions{BaseURLs: nowhere(), Timeout: time.Second}
	m.Write(seedFolder+"/user-data", "#cloud-config\n# the lab's\n")
	m.Write(seedFolder+"/meta-data", "instance-id: lab-1\n")
	lab, err := Fetch(t.Context(), m.Host(), options, quiet)
	if err != nil || lab.Source != "NoCloud seed "+seedFolder {
		t.Fatalf("got %q, %v; want the lab's seed", lab.Source, err)
	}
	if _, err := claimSeed(m.Host()); err != nil {
		t.Fatal(err)
	}
	want := func(when string) {
		t.Helper()
		got, err := Fetch(t.Context(), m.Host(), options, quiet)
		if err != nil || got.Source != "NoCloud seed "+labSeedFolder || string(got.Raw) != string(lab.Raw) || got.Meta["instance-id"] != "lab-1" {
			t.Errorf("%s: got %q from %q, %v; want the lab's, moved aside", when, got.Raw, got.Source, err)
		}
	}
	want("claimed, nothing written")
	m.Write(seedFolder+"/meta-data", "instance-id: lab-1\n")
	m.Write(seedFolder+"/user-data", "#cloud-config\n# cut off here")
	want("half a seed written")
	if _, err := WriteSeed(m.Host(), lab, []byte("#cloud-config\n# stand-ins\n")); err != nil {
		t.Fatal(err)
	}
	want("whole seed written")
	if _, err := claimSeed(m.Host()); err != nil {
		t.Fatal(err)
	}
	if changed, err := WriteSeed(m.Host(), lab, []byte("#cloud-config\n# stand-ins\n")); err != nil || changed {
		t.Errorf("on the next boot WriteSeed changed %v, %v; want no change", changed, err)
	}
	want("on the next boot")
}

// On a machine of CloudStack there is no lab's seed: nodeagent's is then nobody's.
func TestNoSeedIsNoSource(t *testing.T) {
	t.Parallel()
	m := bare(t)
	if _, err := claimSeed(m.Host()); err != nil {
		t.Fatal(err)
	}
	data := Userdata{Meta: map[string]string{"instance-id": "u-1"}}
	if _, err := WriteSeed(m.Host(), data, []byte("#cloud-config\n")); err != nil {
		t.Fatal(err)
	}
	_, err := Fetch(t.Context(), m.Host(), FetchOptions{BaseURLs: nowhere(), Timeout: time.Second}, quiet)
	if err == nil || fault.As(err).Code != fault.UserdataUnreachable || strings.Contains(err.Error(), "seed") {
		t.Errorf("error %v, want no userdata and nothing about a seed", err)
	}
}

// A seed folder is foreign: a link out of it is not followed, a pipe not waited
// for, a large file not read.
func TestSeedFolderIsHostile(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		make func(path string) error
		want string
	}{
		"link":   {func(path string) error { return os.Symlink("/etc/passwd", path) }, "path escapes from parent"},
		"folder": {func(path string) error { return os.Mkdir(path, 0o755) }, "it is no plain file of at most 1048576 bytes"},
		"large": {func(path string) error {
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				return err
			}
			return os.Truncate(path, MaxUserdata+1)
		}, "it is no plain file of at most 1048576 bytes"},
		"blank": {func(path string) error { return os.WriteFile(path, []byte("\n"), 0o644) }, "it has no userdata"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bare(t)
			m.Write(labSeedFolder+"/meta-data", "")
			if err := test.make(m.Path(labSeedFolder + "/user-data")); err != nil {
				t.Fatal(err)
			}
			_, err := Fetch(t.Context(), m.Host(), FetchOptions{BaseURLs: nowhere(), Timeout: time.Second}, quiet)
			if err == nil || !strings.Contains(err.Error(), "NoCloud seed "+labSeedFolder+": ") || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q of the seed", err, test.want)
			}
		})
	}
}
