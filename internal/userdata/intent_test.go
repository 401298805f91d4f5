// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
)

var update = flag.Bool("update", false, "write the golden files anew")

// What the test documents hold and nothing may show.
const (
	testToken = "5ecre7.0123456789abcdef"
	testKey   = "5ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2e75ec2"
)

func read(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// edit replaces a text that must be there.
func edit(t testing.TB, document, old, replacement string) string {
	t.Helper()
	if !strings.Contains(document, old) {
		t.Fatalf("the document does not hold %q", old)
	}
	return strings.Replace(document, old, replacement, 1)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-update writes it):\n%s", path, got)
	}
}

func TestParseGolden(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"control", "control-4.16.0", "worker", "etcd"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := []byte(read(t, name+".yml"))
			intent, problems := Parse(raw)
			var shown string
			for field, value := range reflect.ValueOf(intent).Fields() {
				shown += fmt.Sprintf("%s: %v\n", field.Name, value.Interface())
			}
			for _, p := range problems {
				shown += fmt.Sprintf("%s %s %s: %s\n", p.Severity, p.Code, p.Key, p.Message)
			}
			golden(t, name+".intent", shown)

			seed, err := Seed(raw, intent)
			if err != nil {
				t.Fatal(err)
			}
			if intent.Handover == HandoverCloudInit && !bytes.Equal(seed, raw) {
				t.Error("userdata left to cloud-init was changed")
			}
			if intent.Handover == HandoverNodeagent {
				golden(t, name+".seed", string(seed))
			}
		})
	}
}

func TestParseReveals(t *testing.T) {
	t.Parallel()
	intent, _ := Parse([]byte(read(t, "control.yml")))
	if intent.Token.Reveal() != testToken || intent.CertificateKey.Reveal() != testKey {
		t.Errorf("token %q, certificate key %q: not those of the document", intent.Token.Reveal(), intent.CertificateKey.Reveal())
	}
}

// Line ends, a byte order mark, encodings and an administrator's additions do not
// keep nodeagent from making the node.
func TestParseTolerates(t *testing.T) {
	t.Parallel()
	control := read(t, "control.yml")
	want, _ := Parse([]byte(control))
	for _, test := range []struct{ name, document string }{
		{"byte order mark and CRLF", "\ufeff" + strings.ReplaceAll(control, "\n", "\r\n")},
		{"base64 script", encodeFile(t, control, deployScript, "b64", false)},
		{"gzip script", encodeFile(t, control, setupScript, "gz+b64", true)},
		{"a file of the administrator", edit(t, control, "write_files:\n", "write_files:\n  - path: /etc/motd\n    content: hello\n    encoding: rot13\n")},
		{"commands of the administrator", edit(t, control, "runcmd:\n", "runcmd:\n  - [touch, /root/mine, 7]\n  - echo 'a (b' | tee /etc/issue && case x in y) ;; esac\n")},
		{"modules of the administrator", control + "package_update: true\nbootcmd: [[ls]]\n"},
		{"other quotes and blanks", edit(t, control, `--token 5ecre7.0123456789abcdef --token-ttl 0`, `--token="5ecre7.0123456789abcdef"   --token-ttl '0'`)},
		{"a variable with one value", edit(t, edit(t, control, "--token 5ecre7.0123456789abcdef", "--token ${TOKEN}"), "attempt=1\n", "attempt=1\n      TOKEN=5ecre7.0123456789abcdef\n")},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, problems := Parse([]byte(test.document))
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) || got.Token != want.Token || len(problems) > 0 {
				t.Errorf("got  %+v\n%v\nwant %+v", got, problems, want)
			}
			seed, err := Seed([]byte(test.document), got)
			if err != nil || !bytes.HasPrefix(seed, []byte("#cloud-config\n")) || bytes.Contains(seed, []byte("kubeadm init")) {
				t.Errorf("seed: %v\n%s", err, seed)
			}
		})
	}
}

// encodeFile replaces a literal content by an encoded one.
func encodeFile(t *testing.T, document, path, encoding string, pack bool) string {
	t.Helper()
	config, err := readCloudConfig([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	content, _ := config.file(path)
	data := []byte(content)
	if pack {
		var packed bytes.Buffer
		writer := gzip.NewWriter(&packed)
		if _, err := writer.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := writer.Close(); err != nil {
			t.Fatal(err)
		}
		data = packed.Bytes()
	}
	start := strings.Index(document, "  - path: "+path+"\n")
	length := strings.Index(document[start+1:], "\n  - path: ") + 2
	return document[:start] + "  - path: " + path + "\n    encoding: " + encoding + "\n    permissions: '0700'\n    content: " +
		base64.StdEncoding.EncodeToString(data) + "\n" + document[start+length:]
}

// What nodeagent would not do itself must not get lost: the userdata goes to
// cloud-init as it is, and the reason names the line.
func TestParseHandsOver(t *testing.T) {
	t.Parallel()
	control, worker := read(t, "control.yml"), read(t, "worker.yml")
	const lastSetup = "      modprobe overlay && modprobe br_netfilter"
	inSetup := func(line string) string { return edit(t, control, lastSetup, "      "+line+"\n"+lastSetup) }
	const inLoop = "      sudo touch /home/cloud/success"
	inDeploy := func(line string) string { return edit(t, control, inLoop, "      "+line+"\n"+inLoop) }
	unknown := func(script, name string) string {
		return script + "-kube-system line " + map[string]string{"setup": "62", "deploy": "43"}[script] + `: the command "` + name + `"`
	}
	for _, test := range []struct {
		name, document string
		mode           Mode
		reason         string
	}{
		{"unknown program", inSetup("apt-get install -y nfs-common"), ModeInit, unknown("setup", "apt-get")},
		{"unknown manifest", inDeploy("/opt/bin/kubectl apply -f https://example.com/x.yaml"), ModeInit, unknown("deploy", "/opt/bin/kubectl")},
		{"extra manifest of the ISO", inDeploy("/opt/bin/kubectl apply -f ${MANIFESTS}/mine.yaml"), ModeInit, unknown("deploy", "/opt/bin/kubectl")},
		{"another kubelet flag", edit(t, control, "--cgroup-driver=systemd", "--max-pods=200"), ModeInit, `the command "echo"`},
		{"another sysctl", inSetup("sysctl vm.max_map_count=262144"), ModeInit, unknown("setup", "sysctl")},
		{"a file written", inDeploy("echo hello > /etc/motd"), ModeInit, unknown("deploy", "echo")},
		{"a file written by a substitution", inDeploy("x=$(echo hello > /etc/motd)"), ModeInit, unknown("deploy", "echo")},
		{"a file written by backticks", inDeploy("x=`echo hello > /etc/motd`"), ModeInit, unknown("deploy", "echo")},
		{"a file written by a loop", inDeploy("for f in /home/cloud/success /etc/motd; do echo true > $f; done"), ModeInit, unknown("deploy", "echo")},
		{"after a pipe", inDeploy("id | nc example.com 99"), ModeInit, unknown("deploy", "nc")},
		{"after and", inDeploy("true && reboot"), ModeInit, unknown("deploy", "reboot")},
		{"in a subshell", inDeploy("(reboot)"), ModeInit, unknown("deploy", "reboot")},
		{"in a function", inDeploy("mine() { reboot; }; mine"), ModeInit, unknown("deploy", "reboot")},
		{"a program in a variable", inDeploy("$PROGRAM x"), ModeInit, unknown("deploy", "$PROGRAM")},
		{"with an environment", inDeploy("HTTPS_PROXY=http://p /opt/bin/kubectl version"), ModeInit, unknown("deploy", "/opt/bin/kubectl")},
		{"here-document", inDeploy("cat <<END"), ModeInit, "a here-document"},
		{"case", inDeploy("case $x in a) reboot;; esac"), ModeInit, `"case"`},
		{"sourced file", inDeploy(". /etc/profile"), ModeInit, unknown("deploy", ".")},
		{"kubeadm phase", inDeploy("kubeadm init phase addon all"), ModeInit, "in 2 places"},
		{"kubeadm with a variable", edit(t, control, "--token-ttl 0", "--token-ttl 0 $EXTRA"), ModeInit, "depends on a variable"},
		{"kubeadm under timeout", edit(t, control, "kubeadm init --token", "timeout 600 kubeadm init --token"), ModeInit, `the command "timeout"`},
		{"online", edit(t, control, "ATTEMPT_ONLINE_INSTALL=false", "ATTEMPT_ONLINE_INSTALL=true"), ModeInit, "installs from the internet"},
		{"external etcd", edit(t, control, "EXTERNAL_ETCD_NODES=false", "EXTERNAL_ETCD_NODES=true"), ModeInit, "external etcd"},
		{"perhaps an external CNI", edit(t, control, "EXTERNAL_CNI_PLUGIN=false", "EXTERNAL_CNI_PLUGIN={{ k8s.external.cni.plugin }}"), ModeInit, "network plugin"},
		{"edited unit", edit(t, control, "      Restart=on-failure\n", "      Restart=on-failure\n      LimitNOFILE=1\n"), ModeInit, "LimitNOFILE"},
		{"edited containerd configuration", edit(t, control, "SystemdCgroup = true/g'", "SystemdCgroup = true/g; s/a/b/'"), ModeInit, "runcmd entry 3 writes containerd's"},
		{"own containerd configuration", edit(t, control, "write_files:\n", "write_files:\n  - path: /etc/containerd/config.toml\n    content: x\n"), ModeInit, "it writes /etc/containerd/config.toml"},
		{"kubeadm in runcmd", edit(t, control, "runcmd:\n", "runcmd:\n  - kubeadm reset -f\n"), ModeInit, "runcmd entry 1 calls kubeadm"},
		{"appended script", edit(t, control, "path: /opt/bin/setup-kube-system\n", "path: /opt/bin/setup-kube-system\n    append: true\n"), ModeInit, "is appended to"},
		{"script written twice", edit(t, control, "write_files:\n", "write_files:\n  - path: /opt/bin/deploy-kube-system\n    content: x\n"), ModeInit, "is written twice"},
		{"private registry", strings.NewReplacer("{{registry.url.endpoint}}", "r.example.com", "{{registry.url}}", "https://r.example.com",
			"{{registry.username}}", "joe", "{{registry.password}}", "hunter2", "{{registry.token}}", "",
			"  - containerd config default > /etc/containerd/config.toml\n", "  - bash -x /opt/bin/setup-containerd\n").Replace(control), ModeInit, "private registry"},
		{"YAML alias", edit(t, edit(t, control, "users:\n", "users: &u\n"), "runcmd:\n", "other: *u\nruncmd:\n"), ModeNone, "YAML alias"},
		{"repeated key", control + "runcmd: []\n", ModeNone, `repeats the key "runcmd"`},
		{"worker", worker, ModeJoin, "joins a cluster (join)"},
		{"further control node", edit(t, worker, "--discovery-token-unsafe", "--control-plane --certificate-key "+testKey+" --discovery-token-unsafe"), ModeJoinControlPlane, "joins a cluster (joinControlPlane)"},
		{"jinja", "## template: jinja\n" + control, ModeNone, "a template"},
		{"MIME", "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x\n", ModeNone, "a MIME archive"},
		{"gzip", "\x1f\x8b\x08", ModeNone, "compressed"},
		{"script", "#!/bin/sh\ntrue\n", ModeNone, "a script"},
		{"something else", "hello", ModeNone, "no cloud-config"},
		{"no CKS", "#cloud-config\npackages: [vim]\n", ModeNone, "has neither"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			intent, problems := Parse([]byte(test.document))
			if intent.Mode != test.mode {
				t.Errorf("mode = %s, want %s", intent.Mode, test.mode)
			}
			if intent.Handover != HandoverCloudInit || !strings.Contains(strings.Join(intent.HandoverReasons, "\n"), test.reason) {
				t.Errorf("handover = %s because of %q, want %s because of %q", intent.Handover, intent.HandoverReasons, HandoverCloudInit, test.reason)
			}
			if len(problems) != 1 || problems[0].Code != fault.UserdataUnknown || problems[0].Severity != SeverityWarning {
				t.Errorf("problems = %v, want one warning %s", problems, fault.UserdataUnknown)
			}
			seed, err := Seed([]byte(test.document), intent)
			if err != nil || string(seed) != test.document {
				t.Errorf("Seed changed userdata that is cloud-init's (%v)", err)
			}
		})
	}
}

func TestParseExternalCNI(t *testing.T) {
	t.Parallel()
	intent, problems := Parse([]byte(edit(t, read(t, "control.yml"), "EXTERNAL_CNI_PLUGIN=false", "EXTERNAL_CNI_PLUGIN=true")))
	if !intent.ExternalCNI || intent.Handover != HandoverNodeagent || len(problems) > 0 {
		t.Errorf("got %+v, %v; want an external CNI in nodeagent's hands", intent, problems)
	}
}

func TestParseRegistry(t *testing.T) {
	t.Parallel()
	document := strings.NewReplacer("{{registry.url.endpoint}}", "r.example.com", "{{registry.url}}", "https://r.example.com",
		"{{registry.username}}", "joe", "{{registry.password}}", "hunter2", "{{registry.token}}", "",
		"  - containerd config default > /etc/containerd/config.toml\n", "  - bash -x /opt/bin/setup-containerd\n").Replace(read(t, "control.yml"))
	intent, _ := Parse([]byte(document))
	r := intent.Registry
	if r == nil || r.Host != "r.example.com" || r.URL != "https://r.example.com" || r.Username != "joe" || r.Password.Reveal() != "hunter2" {
		t.Errorf("registry = %+v, want the document's", r)
	}
}

// Contract 7.3: userdata over vm.userdata.max.length arrives cut off. Wherever the
// cut is, the node must say so or hand over, never be half made.
func TestParseCutOff(t *testing.T) {
	t.Parallel()
	control := read(t, "control.yml")
	deploy := strings.Index(control, "  - path: /opt/bin/deploy-kube-system")
	for cut := range len(control) - 1 {
		if cut%13 != 0 && control[cut] != '\n' && control[cut-1] != '\n' {
			continue
		}
		intent, problems := Parse([]byte(control[:cut]))
		if intent.Handover == HandoverNodeagent {
			t.Errorf("cut at byte %d (after %q): nodeagent would make the node", cut, control[max(0, cut-40):cut])
		}
		if cut > deploy && Err(problems) == nil {
			t.Errorf("cut at byte %d (after %q): no error", cut, control[max(0, cut-40):cut])
		}
		if shown := fmt.Sprint(intent, problems); strings.Contains(shown, testToken) {
			t.Errorf("cut at byte %d shows the token: %s", cut, shown)
		}
	}
}

func TestParseInvalid(t *testing.T) {
	t.Parallel()
	control := read(t, "control.yml")
	for _, test := range []struct{ name, document, want string }{
		{"broken YAML", "#cloud-config\nwrite_files: [\n", "yaml:"},
		{"two documents", "#cloud-config\na: 1\n---\nb: 1\n", "after the end of the YAML document"},
		{"list", "#cloud-config\n- a\n", "not a YAML mapping"},
		{"empty", "#cloud-config\n", "it is empty"},
		{"write_files of another kind", "#cloud-config\nwrite_files: 7\n", "write_files is not a list"},
		{"runcmd of another kind", "#cloud-config\nruncmd: 7\n", "runcmd is not a list"},
		{"no content", edit(t, control, "owner: root:root\n    content: |\n", "owner: root:root\n    contents: |\n"), "/opt/bin/setup-kube-system has no content"},
		{"unknown encoding", edit(t, control, "owner: root:root\n", "encoding: rot13\n"), `unknown encoding "rot13"`},
		{"not base64", edit(t, control, "owner: root:root\n", "encoding: b64\n"), "not base64"},
		{"certificates only", control[:strings.Index(control, "  - path: /opt/bin/setup-kube")], "no /opt/bin/setup-kube-system"},
		{"cut in a loop", control[:strings.Index(control, "        attempt=$[")], `ends in the middle: "done" is not closed`},
		{"cut in a quote", control[:strings.Index(control, `home/cloud/success"`)], `ends in the middle: "quote"`},
		{"no runcmd", control[:strings.Index(control, "runcmd:")], "it has no runcmd"},
		{"cut runcmd", strings.TrimSuffix(control, "-kube-system\n"), "runcmd does not start deploy-kube-system"},
		{"no kubeadm", edit(t, edit(t, control, "kubeadm init --config", "true"), "kubeadm init", "true"), "neither script has a kubeadm"},
		{"no unit", edit(t, control, "path: /etc/systemd/system/deploy-kube-system.service", "path: /etc/other"), "it has no /etc/systemd/system/deploy"},
		{"placeholder", edit(t, control, testToken, "{{ k8s_control_node.cluster.token }}"), "placeholder"},
		{"token", edit(t, control, testToken, "5ecre7.0123456789ABCDEF"), "--token is 23 characters that are not a token"},
		{"certificate key", edit(t, control, testKey, testKey[1:]), "--certificate-key is not 64"},
		{"version", edit(t, control, "=1.34.4", "=latest"), `"latest"`},
		{"endpoint", edit(t, control, "10.1.1.57:6443", "10.1.1.57:99999"), "host:port"},
		{"too large", "#cloud-config\n" + strings.Repeat("#", MaxUserdata), "larger than"},
		{"too deep", "#cloud-config\na: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), "nested more than"},
		{"secret as an anchor", "#cloud-config\na: *" + strings.ReplaceAll(testToken, ".", ""), "unknown anchor '...'"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			intent, problems := Parse([]byte(test.document))
			err := Err(problems)
			if err == nil || !strings.Contains(fmt.Sprint(err, fault.As(err).Log), test.want) || fault.As(err).Code != fault.UserdataInvalid {
				t.Errorf("error = %v, want %s with %q", err, fault.UserdataInvalid, test.want)
			}
			if intent.Handover == HandoverNodeagent {
				t.Error("nodeagent would make the node")
			}
		})
	}
}

func TestReadKubeadm(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, line string
		mode       Mode
		endpoint   string
		flags      []string
	}{
		{"flags are carried on", "kubeadm init --token " + testToken + " --pod-network-cidr=10.0.0.0/8 --service-cidr 10.9.0.0/16 --ignore-preflight-errors NumCPU,Mem -v 5 --dry-run",
			ModeInit, "", []string{"--pod-network-cidr=10.0.0.0/8", "--service-cidr", "10.9.0.0/16", "--ignore-preflight-errors", "NumCPU,Mem", "-v", "5", "--dry-run"}},
		{"IPv6 endpoint", "/opt/bin/kubeadm init --token=" + testToken + " --control-plane-endpoint [fd00::1]:6443", ModeInit, "[fd00::1]:6443", nil},
		{"name without a port", "sudo kubeadm init --token=" + testToken + " --control-plane-endpoint api.example.com", ModeInit, "api.example.com", nil},
		{"join", "kubeadm join 10.1.1.57:6443 --token " + testToken + " --discovery-token-unsafe-skip-ca-verification", ModeJoin, "10.1.1.57:6443",
			[]string{"--discovery-token-unsafe-skip-ca-verification"}},
		{"continued line", "kubeadm join \\\n  10.1.1.57:6443 \\\n  --token " + testToken + " --control-plane --certificate-key " + testKey, ModeJoinControlPlane, "10.1.1.57:6443", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			calls := kubeadmCalls(readShell(test.line))
			if len(calls) != 1 {
				t.Fatalf("%d calls found, want 1", len(calls))
			}
			var intent Intent
			problems := readKubeadm(&intent, calls[0])
			if len(problems) > 0 || intent.Mode != test.mode || intent.Endpoint != test.endpoint || !slices.Equal(intent.Flags, test.flags) || intent.Token.Reveal() != testToken {
				t.Errorf("got %+v, %v; want %s, %q, flags %q", intent, problems, test.mode, test.endpoint, test.flags)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"control.yml", "control-4.16.0.yml", "worker.yml", "etcd.yml"} {
		f.Add([]byte(read(f, name)))
	}
	f.Add([]byte("#cloud-config\na: &a [*a, *a]\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		intent, problems := Parse(raw)
		for _, hidden := range []string{testToken, testKey} {
			if shown := fmt.Sprintf("%+v %#v %v %v", intent, intent, problems, Err(problems)); strings.Contains(shown, hidden) {
				t.Errorf("secret shown in %s", shown)
			}
		}
		seed, err := Seed(raw, intent)
		if err != nil && strings.Contains(err.Error(), testToken) {
			t.Errorf("secret shown in %v", err)
		}
		if intent.Handover == HandoverCloudInit && !bytes.Equal(seed, raw) {
			t.Error("Seed changed userdata that is cloud-init's")
		}
		if intent.Handover == HandoverNodeagent && (intent.Token.Empty() || intent.Mode != ModeInit || bytes.Contains(seed, []byte("kubeadm init"))) {
			t.Errorf("nodeagent would make a node of %+v with the seed\n%s", intent, seed)
		}
	})
}

func FuzzKubeadmLine(f *testing.F) {
	f.Add("kubeadm init --token " + testToken + " --token-ttl 0 --certificate-key " + testKey + " --upload-certs")
	f.Add("kubeadm join 10.1.1.57:6443 --token=$(cat /x) \"$A\" '`' `x` ${B:-c} $((1+1)) <<< x > y 2>&1")
	f.Add("A=aa;B=$A$A;C=$B$B\nfor x in $C; do kubeadm init --config=$x; done")
	f.Fuzz(func(t *testing.T, line string) {
		script := readShell(line)
		for _, call := range kubeadmCalls(script) {
			var intent Intent
			problems := readKubeadm(&intent, call)
			words := len(intent.Flags) + len(intent.CertSANs)
			if words > len(call.args)+strings.Count(line, ",") {
				t.Errorf("%d words became %d", len(call.args), words)
			}
			if shown := fmt.Sprint(problems); strings.Contains(shown, testToken) || strings.Contains(shown, testKey) {
				t.Errorf("secret shown in %s", shown)
			}
		}
		for _, reason := range strangers("script", script) {
			if strings.Contains(reason, testToken) || strings.Contains(reason, testKey) {
				t.Errorf("secret shown in %s", reason)
			}
		}
	})
}
