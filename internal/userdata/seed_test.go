// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/host/hosttest"
)

func TestWriteSeed(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	data := Userdata{Raw: []byte("#cloud-config\n"), Meta: map[string]string{
		"instance-id": "9e2f: yes", "local-hostname": "n1", "public-keys": "ssh-rsa A\n\nssh-rsa B\n", "public-ipv4": ""}}
	changed, err := WriteSeed(m.Host(), data, data.Raw)
	if err != nil || !changed {
		t.Fatalf("WriteSeed = %v, %v; want true, nil", changed, err)
	}
	for name, mode := range map[string]os.FileMode{seedFolder: os.ModeDir | 0o700, seedFolder + "/user-data": 0o600,
		seedFolder + "/meta-data": 0o600, cloudConfFile: 0o644, dsIdentifyFile: 0o644, runtimeFile: 0o644} {
		info, err := os.Stat(m.Path(name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want mode %s", name, info, err, mode)
		}
	}
	if got := m.Read(seedFolder + "/user-data"); got != "#cloud-config\n" {
		t.Errorf("user-data = %q", got)
	}
	var meta map[string]any
	if err := yaml.Unmarshal([]byte(m.Read(seedFolder+"/meta-data")), &meta); err != nil {
		t.Fatal(err)
	}
	if meta["instance-id"] != "9e2f: yes" || meta["local-hostname"] != "n1" || len(meta["public-keys"].([]any)) != 2 || len(meta) != 3 {
		t.Errorf("meta-data = %v, want instance id, host name and two keys", meta)
	}
	// C7: one data source, named on one line, and cloud-init on.
	for _, name := range []string{cloudConfFile, runtimeFile} {
		if !strings.Contains(m.Read(name), "datasource_list: [ NoCloud, None ]\n") {
			t.Errorf("%s = %q, want the seed as the only data source", name, m.Read(name))
		}
	}
	if got := m.Read(dsIdentifyFile); got != "policy: enabled\n" {
		t.Errorf("%s = %q", dsIdentifyFile, got)
	}
	var conf struct {
		Network          struct{ Config string }
		Growpart         struct{ Mode string }
		ResizeRootfs     any  `yaml:"resize_rootfs"`
		PreserveHostname bool `yaml:"preserve_hostname"`
		ManageEtcHosts   any  `yaml:"manage_etc_hosts"`
	}
	if err := yaml.Unmarshal([]byte(m.Read(cloudConfFile)), &conf); err != nil {
		t.Fatal(err)
	}
	if conf.Network.Config != "disabled" || conf.Growpart.Mode != "off" || conf.ResizeRootfs != false || !conf.PreserveHostname || conf.ManageEtcHosts != false {
		t.Errorf("%s = %+v, want network, disk and host name left alone", cloudConfFile, conf)
	}

	if changed, err := WriteSeed(m.Host(), data, data.Raw); err != nil || changed {
		t.Errorf("second WriteSeed = %v, %v; want false, nil", changed, err)
	}
	if changed, err := WriteSeed(m.Host(), data, []byte("#cloud-config\n{}\n")); err != nil || !changed {
		t.Errorf("WriteSeed of new userdata = %v, %v; want true, nil", changed, err)
	}
}

func TestWriteSeedWantsAnInstanceID(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	if _, err := WriteSeed(m.Host(), Userdata{}, nil); err == nil || m.Host().Exists(seedFolder) {
		t.Errorf("WriteSeed without an instance id = %v, want an error and nothing written", err)
	}
}

// Whoever runs a stand-in waits for nodeagent; nothing of the original may run
// beside it.
func TestSeedKeepsWhatIsNotNodeagents(t *testing.T) {
	t.Parallel()
	document := small(t) + "  - [touch, /root/last]\n  - systemctl daemon-reload\n  - systemctl restart containerd\n  - mkdir -p /etc/mine\n"
	intent, problems := Parse([]byte(document))
	seed, err := Seed([]byte(document), intent)
	if err != nil || intent.Handover != HandoverNodeagent {
		t.Fatalf("%v, %+v, %v", err, intent.HandoverReasons, problems)
	}
	var got struct {
		WriteFiles []struct{ Path, Content string } `yaml:"write_files"`
		Runcmd     []any
	}
	if err := yaml.Unmarshal(seed, &got); err != nil {
		t.Fatal(err)
	}
	want := []string{"chown", "until [ -f /opt/bin/setup", "/opt/bin/setup-kube-system", "until [ -f /etc", "systemctl start deploy", "last", "daemon-reload", "mkdir"}
	if len(got.Runcmd) != len(want) {
		t.Fatalf("runcmd = %v, want %d entries", got.Runcmd, len(want))
	}
	for i, entry := range got.Runcmd {
		if text, ok := entry.(string); ok && !strings.Contains(text, want[i]) {
			t.Errorf("runcmd entry %d = %q, want %q", i+1, text, want[i])
		}
	}
	for _, file := range got.WriteFiles {
		own := strings.HasSuffix(file.Path, "-kube-system")
		if stands := strings.Contains(file.Content, "exec /usr/bin/nodeagent status --wait"); stands != own {
			t.Errorf("%s: stand-in %v, want %v", file.Path, stands, own)
		}
		if strings.Contains(file.Content, testToken) {
			t.Errorf("%s holds the token", file.Path)
		}
	}
}

// Of several parts only the one with the scripts changes, and a NodeConfig goes.
func TestSeedKeepsTheOtherParts(t *testing.T) {
	t.Parallel()
	raw := corpusText(t, "control-4.21-cni-mime-key")
	intent, _ := Parse(raw)
	seed, err := Seed(raw, intent)
	if err != nil {
		t.Fatal(err)
	}
	before, _ := unwrap(raw)
	after, problems := unwrap(seed)
	if len(problems) > 0 || len(after) != 2 || string(after[1].text) != string(before[1].text) {
		t.Fatalf("parts %d, %v; want the second as it was", len(after), problems)
	}
	if !strings.Contains(string(after[0].text), "nodeagent status --wait") || strings.Contains(string(after[0].text), "kubeadm init") {
		t.Errorf("the first part is\n%s", after[0].text)
	}

	raw = corpusText(t, "nodeconfig-init-mime")
	intent, _ = Parse(raw)
	seed, err = Seed(raw, intent)
	if err != nil || !strings.HasPrefix(string(seed), "#cloud-config\nusers:\n") || strings.Contains(string(seed), testToken) {
		t.Errorf("seed = %q, %v; want the cloud-config alone", seed, err)
	}
}
