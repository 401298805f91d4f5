// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"strings"
	"testing"
)

// C33: where a command, a setting or a key stands there may be a piece of a password.
func TestOnlyWhatEverybodyKnowsIsNamed(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"apt-get install x":             "apt-get",
		"sudo A=b /usr/bin/curl x":      "/usr/bin/curl",
		"/opt/bin/x/../kubectl":         "/opt/bin/kubectl",
		"'modprobe' x":                  "modprobe",
		"hunter2pw":                     "",
		"/home/hunter2pw/curl":          "",
		"/opt/bin/hunter2pw":            "",
		"X=curl; $X":                    "",
		"curl$X":                        "",
		"A=b":                           "",
		"sudo":                          "",
		"hunter2pw curl":                "",
		"'curl -u bob:hunter2pw http:'": "",
	} {
		s := readShell(line)
		if got := programName(s.commands[len(s.commands)-1]); got != want {
			t.Errorf("%q: named %q, want %q", line, got, want)
		}
	}
	control := small(t)
	for name, test := range map[string]struct{ document, want string }{
		"key of a cloud-config": {control + "hunter2pw: 1\n", "it has a key that is not cloud-init's"},
		"key given twice":       {control + "hunter2pw: 1\nhunter2pw: 2\n", "repeats a key"},
		"setting of a unit":     {edit(t, control, "      Restart=on-failure\n", "      Restart=on-failure\n      hunter2pw=1\n"), "line 9 has a setting of its own"},
		"command of a script":   {edit(t, control, "      systemctl enable kubelet &&", "      true;hunter2pw;systemctl enable kubelet &&"), "line 67 runs a command"},
		"command of runcmd":     {edit(t, control, "runcmd:\n", "runcmd:\n  - curl -u bob:a&hunter2pw http://x\n"), "runcmd entry 1 comes before"},
		"list in runcmd":        {edit(t, control, "runcmd:\n", "runcmd:\n  - [ hunter2pw, x ]\n"), "runcmd entry 1 comes before"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			intent, problems := Parse([]byte(test.document))
			shown := fmt.Sprint(problems, intent.HandoverReasons, intent.Explain())
			if strings.Contains(shown, "hunter2pw") || !strings.Contains(shown, test.want) || Err(problems) != nil {
				t.Errorf("said %s, want %q and no password", shown, test.want)
			}
		})
	}
}

// C33: CloudStack pastes the registry's password into a string of a script. Whatever is
// in it, the node is cloud-init's and nothing of it is shown.
func TestRegistryPasswordIsNotShown(t *testing.T) {
	t.Parallel()
	document := string(corpusText(t, "control-4.20-registry"))
	for _, password := range []string{`pa"ss;S3cr3tTail`, `pa"ss|S3cr3tTail`, `pa"ss'S3cr3tTail`, "p$(S3cr3tTail)", "p`S3cr3tTail`", `p"&&sudo S3cr3tTail`, `p"; curl S3cr3tTail`,
		`p"$(S3cr3tTail`, `p" > S3cr3tTail`, `p" << S3cr3tTail`, `p";case S3cr3tTail`, `p";S3cr3tTail()`, `p\"S3cr3tTail`, `p";{{S3cr3tTail`} {
		intent, problems := Parse([]byte(strings.ReplaceAll(document, "hunter2hunter2", password)))
		shown := fmt.Sprintf("%v %v %v %+v %v", problems, Err(problems), intent.Explain(), intent, intent.Shown())
		if strings.Contains(shown, "S3cr3t") || strings.Contains(shown, `"curl"`) {
			t.Errorf("password %s: shown in %s", password, shown)
		}
		if intent.Handover != HandoverCloudInit || Err(problems) != nil {
			t.Errorf("password %s: left to %s, %v; want cloud-init without an error", password, intent.Handover, problems)
		}
	}
}

// C33: a user's name and password in a URL, wherever one can stand.
func TestUserInfoIsNotShown(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"https://bob:hunter2pw@r.example.com/x": "https://[redacted]@r.example.com/x",
		"https://hunter2pw@r.example.com":       "https://[redacted]@r.example.com",
		"bob:hunter2pw@10.1.1.57:6443":          "bob:[redacted]@10.1.1.57:6443",
		"http://bob:hun/ter2@pw@x":              "http://[redacted]@x",
		"http://bob:hunter2 pw@x":               "http://[redacted]@x",
		"http://a,http://bob:hunter2pw@x":       "http://[redacted]@x",
		"10.1.1.57:6443":                        "10.1.1.57:6443",
		"https://[fd00::1]:6443/x":              "https://[fd00::1]:6443/x",
	} {
		if got := withoutSecrets(text); got != want {
			t.Errorf("%q is shown as %q, want %q", text, got, want)
		}
	}
	const url = "http://bob:hunter2pw@x"
	intent := Intent{Version: url, Endpoint: url, AdvertiseAddress: url, NodeName: url, CertSANs: []string{url}, TokenTTL: url, Discovery: Discovery{File: url, CAHashes: []string{url}},
		IgnorePreflight: []string{url}, CRISocket: url, Flags: Words{url}, KubeadmConfig: url, ExternalEtcd: []string{url}, VRISO: url, HandoverReasons: []string{url},
		Etcd: &Etcd{Name: url, Address: url, InitialCluster: url, State: url, Token: url, Flags: Words{url}}, Registry: &Registry{Host: url, URL: url, Username: url}}
	shown := intent.Shown()
	if text := fmt.Sprintf("%v %v %v %v", shown, *shown.Etcd, *shown.Registry, intent.Explain()); strings.Contains(text, "hunter2pw") {
		t.Errorf("shown: %s", text)
	}
	if intent.Etcd.Name != url || intent.Registry.Host != url || intent.CertSANs[0] != url || intent.Flags[0] != url {
		t.Errorf("showing it changed the intent: %+v", intent)
	}
	hash := "sha256:" + strings.Repeat("ab", 32)
	if shown := (Intent{Discovery: Discovery{CAHashes: []string{hash}}}).Shown(); shown.Discovery.CAHashes[0] != hash {
		t.Errorf("the CA's hash, which is public, is shown as %s", shown.Discovery.CAHashes[0])
	}
}

// C33: of a word that holds several only the first is known for what it is.
func TestWordsWithBlanksAreShownWithoutTheirRest(t *testing.T) {
	t.Parallel()
	words := Words{"--foo-password hunter2pw", "--v=5 --pwd=hunter2pw", "x hunter2pw", "--passphrase", "-hunter2pw", "--my-key", "--token", "hunter2pw", "-v", "5"}
	const want = "--foo-password [redacted] --v=5 [redacted] x [redacted] --passphrase [redacted] --my-key [redacted] [redacted] -v 5"
	if got := words.String(); got != want {
		t.Errorf("shown as %q, want %q", got, want)
	}
}
