// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
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
	testKey   = "5ec2e75e5ec2e75e5ec2e75e5ec2e75e5ec2e75e5ec2e75e5ec2e75e5ec2e75e"
)

// small is a control node's userdata with everything in it that matters.
func small(t testing.TB) string { return string(corpusText(t, "control-small")) }

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

func TestParseReveals(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"control-small", "control-4.21-external-etcd", "control-add-4.23", "nodeconfig-init"} {
		intent, _ := Parse(corpusText(t, name))
		if intent.Token.Reveal() != testToken || intent.CertificateKey.Reveal() != testKey {
			t.Errorf("%s: token %q, certificate key %q: not those of the document", name, intent.Token.Reveal(), intent.CertificateKey.Reveal())
		}
	}
}

// Line ends, wrappings, other names of variables, branches that are never taken and
// an administrator's additions do not change what is to be made, nor who makes it.
func TestParseTolerates(t *testing.T) {
	t.Parallel()
	want, _ := Parse([]byte(small(t)))
	want.Origins = nil
	for _, name := range []string{"wrap-gzip", "wrap-base64", "wrap-gzip-base64", "wrap-bom", "wrap-crlf", "wrap-mime-one-part", "wrap-mime-plain-text", "wrap-archive",
		"edit-file", "edit-command-after", "edit-token-in-variable", "edit-renamed-variables", "edit-dead-branch", "edit-script-in-base64", "edit-comments-in-unit"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := corpusText(t, name)
			got, problems := Parse(raw)
			got.Origins = nil
			if !reflect.DeepEqual(got, want) || Err(problems) != nil {
				t.Errorf("got  %+v\n%v\nwant %+v", got, problems, want)
			}
			seed, err := Seed(raw, got)
			if err != nil || bytes.Contains(seed, []byte("kubeadm init")) {
				t.Errorf("seed: %v\n%s", err, seed)
			}
		})
	}
}

// All generations but those with a registry are nodeagent's; the
// values do not depend on the generation.
func TestParseGenerations(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"4.16.0", "4.16.1", "4.19", "4.20", "4.21", "4.22", "4.23", "4.23-label", "4.22-vmware", "4.22-cni-appended", "4.21-cni-mime-key"} {
		intent, problems := Parse(corpusText(t, "control-"+name))
		if intent.Handover != HandoverNodeagent || len(problems) > 0 || intent.Endpoint != "10.1.1.57:6443" || intent.Version != "1.33.1" ||
			!slices.Equal(intent.CertSANs, []string{"10.1.1.57", "203.0.113.9"}) || intent.ExternalCNI != strings.Contains(name, "cni") ||
			intent.EjectISO != (name == "4.16.0" || name == "4.22-vmware") || len(intent.Flags) > 0 {
			t.Errorf("control-%s: %+v, %v", name, intent, problems)
		}
	}
	for _, name := range []string{"worker-4.16.0", "worker-4.16.1", "worker-4.20", "worker-4.21", "worker-4.23", "control-add-4.16.1", "control-add-4.23"} {
		intent, problems := Parse(corpusText(t, name))
		mode := ModeJoin
		if strings.HasPrefix(name, "control") {
			mode = ModeJoinControlPlane
		}
		if intent.Handover != HandoverNodeagent || len(problems) > 0 || intent.Mode != mode || intent.Endpoint != "10.1.1.57:6443" || !intent.Discovery.UnsafeSkipCA ||
			intent.Token.Empty() || intent.CertificateKey.Empty() != (mode == ModeJoin) || len(intent.Flags) > 0 {
			t.Errorf("%s: %+v, %v", name, intent, problems)
		}
	}
	for name, want := range map[string]Mode{"etcd-4.21": ModeEtcd, "etcd-arm64-own-flags": ModeEtcd, "control-4.21-external-etcd": ModeInit, "control-4.23-external-etcd-v1beta4": ModeInit} {
		if intent, problems := Parse(corpusText(t, name)); intent.Handover != HandoverNodeagent || intent.Mode != want || len(problems) > 0 {
			t.Errorf("%s: mode %s by %s, %v", name, intent.Mode, intent.Handover, problems)
		}
	}
	const worker = "worker-4.21-virtual-router-iso"
	if intent, problems := Parse(corpusText(t, worker)); intent.Handover != HandoverNodeagent || intent.Mode != ModeJoin || intent.VRISO != "10.1.1.1" || len(problems) > 0 {
		t.Errorf("%s: mode %s by %s with router %q, %v", worker, intent.Mode, intent.Handover, intent.VRISO, problems)
	}
}

// Only one address of a router is taken for the place of the ISO's files.
func TestParseRouterOfISO(t *testing.T) {
	t.Parallel()
	worker := string(corpusText(t, "worker-4.21-virtual-router-iso"))
	const line = `ROUTER_IP="10.1.1.1"`
	for text, want := range map[string]string{
		`ROUTER_IP="r-4-VM.cs1cloud.internal:8080"`:                        "r-4-VM.cs1cloud.internal:8080",
		`ROUTER_IP="[fd00::1]"`:                                            "[fd00::1]",
		`ROUTER_IP="10.1.1.1?x=http://example.com"`:                        "",
		`ROUTER_IP="fe80::1%eth0"`:                                         "",
		`if [ -f /x ]; then R=10.1.1.1; else R=10.1.1.2; fi; ROUTER_IP=$R`: "",
	} {
		intent, _ := Parse([]byte(edit(t, worker, line, text)))
		if by := map[bool]string{true: HandoverCloudInit, false: HandoverNodeagent}[want == ""]; intent.VRISO != want || intent.Handover != by {
			t.Errorf("%s: router %q by %s because of %q; want %q by %s", text, intent.VRISO, intent.Handover, intent.HandoverReasons, want, by)
		}
	}
}

// What nodeagent would not do itself must not get lost: the userdata goes to
// cloud-init as it is, and the reason names the line.
func TestParseHandsOver(t *testing.T) {
	t.Parallel()
	control := small(t)
	const lastSetup = "      systemctl enable kubelet && systemctl start kubelet"
	inSetup := func(line string) string { return edit(t, control, lastSetup, "      "+line+"\n"+lastSetup) }
	const marker = "      sudo touch /home/cloud/success"
	inDeploy := func(line string) string { return edit(t, control, marker, "      "+line+"\n"+marker) }
	before := func(line string) string { return edit(t, control, "runcmd:\n", "runcmd:\n  - "+line+"\n") }
	after := func(line string) string { return control + "  - " + line + "\n" }
	writes := func(path string) string {
		return edit(t, control, "write_files:\n", "write_files:\n  - path: "+path+"\n    content: x\n")
	}
	const setup, deploy = "setup-kube-system line 67: the command ", "deploy-kube-system line 30: the command "
	for _, test := range []struct{ name, document, reason string }{
		{"unknown program", inSetup("apt-get install -y nfs-common"), setup + `"apt-get"`},
		{"unknown manifest", inDeploy("/opt/bin/kubectl apply -f https://example.com/x.yaml"), deploy + `"/opt/bin/kubectl"`},
		{"extra manifest of the ISO", inDeploy("/opt/bin/kubectl apply -f ${MANIFESTS}/mine.yaml"), deploy + `"/opt/bin/kubectl"`},
		{"another kubelet flag", edit(t, control, "--cgroup-driver=systemd", "--max-pods=200"), `the command "echo"`},
		{"another sysctl", inSetup("sysctl vm.max_map_count=262144"), setup + `"sysctl"`},
		{"a file written", inDeploy("echo hello > /etc/motd"), deploy + `"echo"`},
		{"a file written by a substitution", inDeploy("x=$(echo hello > /etc/motd)"), deploy + `"echo"`},
		{"a file written by backticks", inDeploy("x=`echo hello > /etc/motd`"), deploy + `"echo"`},
		{"a file written by a loop", inDeploy("for f in /home/cloud/success /etc/motd; do echo true > $f; done"), deploy + `"echo"`},
		{"after a pipe", inDeploy("id | nc example.com 99"), deploy + `"nc"`},
		{"after and", inDeploy("true && reboot"), deploy + `"reboot"`},
		{"after or", inDeploy("false || reboot"), deploy + `"reboot"`},
		{"in a subshell", inDeploy("(reboot)"), deploy + `"reboot"`},
		{"in a function", inDeploy("mine() { reboot; }; mine"), deploy + `"reboot"`},
		{"in a branch that may be taken", inDeploy("if [ -f /x ]; then reboot; fi"), deploy + `"reboot"`},
		{"in a branch that depends on the environment", inDeploy(`if [ "$MINE" = yes ]; then reboot; fi`), deploy + `"reboot"`},
		{"a program in a variable", inDeploy("$PROGRAM x"), "deploy-kube-system line 30 runs a command"},
		{"with an environment", inDeploy("HTTPS_PROXY=http://p /opt/bin/kubectl version"), deploy + `"/opt/bin/kubectl"`},
		{"here-document", inDeploy("cat <<END"), "a here-document"},
		{"case", inDeploy("case $x in a) reboot;; esac"), `"case"`},
		{"sourced file", inDeploy(". /etc/profile"), deploy + `"."`},
		{"kubeadm phase", inDeploy("kubeadm init phase addon all"), "in 2 places"},
		{"kubeadm with a variable", edit(t, control, "--token-ttl 0", "--token-ttl 0 $EXTRA"), "depends on a variable"},
		{"kubeadm under timeout", edit(t, control, "kubeadm init --token", "timeout 600 kubeadm init --token"), `the command "timeout"`},
		{"online", edit(t, control, "ATTEMPT_ONLINE_INSTALL=false", "ATTEMPT_ONLINE_INSTALL=true"), "installs from the internet"},
		{"container runtime", edit(t, control, "--cri-socket /run/containerd/containerd.sock", "--cri-socket=unix:///run/crio/crio.sock"), "another container runtime"},
		{"no dashboard", edit(t, control, "${MANIFESTS}/dashboard.yaml", "${MANIFESTS}/network.yaml"), "applies neither dashboard.yaml"},
		{"no binding", edit(t, control, "clusterrolebinding cluster-admin-binding", "rolebinding admin-binding"), "cluster-admin-binding"},
		{"network by an environment's choice", edit(t, control, "      /opt/bin/kubectl apply -f ${MANIFESTS}/network", `      [ "$MINE" = no ] || /opt/bin/kubectl apply -f ${MANIFESTS}/network`), "network plugin"},
		{"edited unit", edit(t, control, "      Restart=on-failure\n", "      Restart=on-failure\n      LimitNOFILE=1\n"), `"LimitNOFILE"`},
		{"unit after another", edit(t, control, "      After=containerd.service\n", "      After=containerd.service mine.service\n"), `"After"`},
		{"unit that runs something else", edit(t, control, "ExecStart=/opt/bin/deploy-kube-system", "ExecStart=/opt/bin/deploy-kube-system --mine"), `"ExecStart"`},
		{"edited containerd configuration", edit(t, control, "SystemdCgroup = true/g'", "SystemdCgroup = true/g; s/a/b/'"), "runcmd entry 3 writes containerd's"},
		{"containerd configuration after", after("sed -i s/a/b/ /etc/containerd/config.toml"), "runcmd entry 8 writes containerd's"},
		{"own containerd configuration", writes("/etc/containerd/config.toml"), `writes "/etc/containerd/config.toml"`},
		{"registry mirror", writes("/etc/containerd/certs.d/docker.io/hosts.toml"), "in the way"},
		{"own CA", writes("/etc/kubernetes/pki/ca.crt"), "in the way"},
		{"proxy for containerd", writes("/etc/systemd/system/containerd.service.d/proxy.conf"), "in the way"},
		{"drop-in for the script's unit", writes("/etc/systemd/system/deploy-kube-system.service.d/x.conf"), "in the way"},
		{"kubelet's defaults", writes("/etc/default/kubelet"), "in the way"},
		{"own network plugin", writes("/opt/cni/bin/mine"), "in the way"},
		{"a path written strangely", writes("/etc/../etc//containerd/x"), "in the way"},
		{"kubeadm in runcmd", after("kubeadm reset -f"), "runcmd entry 8 calls kubeadm"},
		{"kubeadm in a shell in runcmd", after("[ bash, -c, 'kubeadm reset -f' ]"), "runcmd entry 8 calls kubeadm"},
		{"script edited by runcmd", after("sed -i s/a/b/ /opt/bin/deploy-kube-system"), "entry 8 does something of its own with the scripts"},
		{"script run otherwise", edit(t, control, "  - /opt/bin/setup-kube-system\n", "  - bash -lc /opt/bin/setup-kube-system\n"), "entry 5 does something of its own with the scripts"},
		{"script run under another name", edit(t, control, "  - /opt/bin/setup-kube-system\n", "  - cp /opt/bin/setup-kube-system /x; /x\n"), "entry 5 does something of its own with the scripts"},
		{"command before", before("[ update-ca-certificates ]"), `runcmd entry 1 ("update-ca-certificates") comes before`},
		{"command before, in one line", edit(t, control, "  - /opt/bin/setup-kube-system\n", "  - mkfs /dev/vdb && /opt/bin/setup-kube-system\n"), `runcmd entry 5 ("mkfs") comes before`},
		{"command between", edit(t, control, "  - systemctl start deploy", "  - modprobe ceph\n  - systemctl start deploy"), `("modprobe") comes before`},
		{"file written before", before("echo x > /etc/motd"), `runcmd entry 1 ("echo") comes before`},
		{"grammar before", before("case x in y) ;; esac"), "uses \"case\""},
		{"packages", control + "packages: [vim]\n", `the key "packages"`},
		{"bootcmd", control + "bootcmd: [ls]\n", `the key "bootcmd"`},
		{"mounts", control + "mounts: [[vdb, /var/lib/containerd]]\n", `the key "mounts"`},
		{"appended script", edit(t, control, "path: /opt/bin/setup-kube-system\n", "path: /opt/bin/setup-kube-system\n    append: true\n"), "is appended to"},
		{"script written twice", writes("/opt/bin/deploy-kube-system"), "is written twice"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			intent, problems := Parse([]byte(test.document))
			if intent.Mode != ModeInit || intent.Token.Empty() {
				t.Errorf("mode = %s, token %q; want what it says in any case", intent.Mode, intent.Token)
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

// A script of another name is an edit, one that is called and not there a text cut
// off.
func TestParseTellsMissingFromRenamed(t *testing.T) {
	t.Parallel()
	renamed := strings.ReplaceAll(small(t), "deploy-kube-system", "my-own")
	intent, problems := Parse([]byte(renamed))
	if Err(problems) != nil || !slices.Contains(intent.HandoverReasons, "it has no /opt/bin/deploy-kube-system") {
		t.Errorf("renamed: %q, %v", intent.HandoverReasons, problems)
	}
	lost := edit(t, small(t), "path: /opt/bin/deploy-kube-system", "path: /opt/bin/my-own")
	if _, problems := Parse([]byte(lost)); Err(problems) == nil {
		t.Error("a script that is called and not there is no error")
	}
	logged := edit(t, small(t), "  - /opt/bin/setup-kube-system\n", "  - bash -x /opt/bin/setup-kube-system > /var/log/setup.log 2>&1\n")
	if intent, problems := Parse([]byte(logged)); intent.Handover != HandoverNodeagent {
		t.Errorf("logged: %q, %v", intent.HandoverReasons, problems)
	}
}

// After the node's scripts anything may come: it runs when the node is made.
func TestParseLeavesLaterCommandsAlone(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"reboot", "[ touch, /root/mine, 7 ]", "echo 'a (b' | tee /etc/issue && case x in y) ;; esac", "until [ -f /home/cloud/success ]; do sleep 5; done",
		"|\n    cat << EOF > /root/x\n    y\n    EOF"} {
		intent, problems := Parse([]byte(small(t) + "  - " + line + "\n"))
		if intent.Handover != HandoverNodeagent || len(problems) > 0 {
			t.Errorf("%q: handed over because of %q, %v", line, intent.HandoverReasons, problems)
		}
	}
}

func TestParseRegistry(t *testing.T) {
	t.Parallel()
	intent, _ := Parse(corpusText(t, "control-4.20-registry"))
	r := intent.Registry
	if r == nil || r.Host != "r.example.com" || r.URL != "https://r.example.com" || r.Username != "joe" || r.Password.Reveal() != "hunter2hunter2" {
		t.Errorf("registry = %+v, want the document's", r)
	}
}

// A text may arrive without its end. Wherever the cut is, the node must say so or hand
// over, never be half made.
func TestParseCutOff(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"control-small", "control-4.22-cni-appended"} {
		control := string(corpusText(t, name))
		deploy := strings.Index(control, "  - path: /opt/bin/deploy-kube-system")
		last := strings.Index(control, "systemctl start deploy-kube-system\n") + len("systemctl start deploy-kube-system")
		for cut := range last - 1 {
			if cut%13 != 0 && control[cut] != '\n' && control[max(0, cut-1)] != '\n' {
				continue
			}
			intent, problems := Parse([]byte(control[:cut]))
			if intent.Handover == HandoverNodeagent {
				t.Errorf("%s cut at byte %d (after %q): nodeagent would make the node", name, cut, control[max(0, cut-40):cut])
			}
			if name == "control-small" && cut > deploy && Err(problems) == nil {
				t.Errorf("%s cut at byte %d (after %q): no error", name, cut, control[max(0, cut-40):cut])
			}
			if shown := fmt.Sprint(intent, problems); strings.Contains(shown, testToken) {
				t.Errorf("%s cut at byte %d shows the token: %s", name, cut, shown)
			}
		}
	}
}

func TestParseInvalid(t *testing.T) {
	t.Parallel()
	control := small(t)
	for _, test := range []struct{ name, document, want string }{
		{"broken YAML", "#cloud-config\nwrite_files: [\n", "yaml:"},
		{"two documents", "#cloud-config\na: 1\n---\nb: 1\n", "after the end of the YAML document"},
		{"list", "#cloud-config\n- a\n", "not a YAML mapping"},
		{"nothing but a header", "#cloud-config\n", "it is empty"},
		{"write_files of another kind", "#cloud-config\nwrite_files: 7\n", "write_files is not a list"},
		{"runcmd of another kind", "#cloud-config\nruncmd: 7\n", "runcmd is not a list"},
		{"unknown encoding", edit(t, control, "    owner: root:root\n    content: |\n      #!", "    encoding: rot13\n    content: |\n      #!"), `unknown encoding "rot13"`},
		{"not base64", edit(t, control, "    owner: root:root\n    content: |\n      #!", "    encoding: b64\n    content: |\n      #!"), "not base64"},
		{"cut in a loop", control[:strings.Index(control, "        round=$[")], `ends in the middle: "done" is not closed`},
		{"no kubeadm", edit(t, control, "kubeadm init --token", "true"), "neither script has a kubeadm"},
		{"no unit", edit(t, control, "path: /etc/systemd/system/deploy-kube-system.service", "path: /etc/other"), "it has no /etc/systemd/system/deploy"},
		{"certificate key", edit(t, control, testKey, testKey[1:]), "--certificate-key is not 64"},
		{"advertised address", edit(t, control, "--token-ttl 0", "--apiserver-advertise-address here"), `"here"; an IP address was expected`},
		{"node name", edit(t, control, "--token-ttl 0", "--node-name a_b"), `"a_b"; a host name was expected`},
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
	hash := "sha256:" + strings.Repeat("ab", 32)
	for _, test := range []struct {
		name, line string
		want       Intent
	}{
		{"flags are carried on", "kubeadm init --token " + testToken + " --pod-network-cidr=10.0.0.0/8 --service-cidr 10.9.0.0/16 -v 5 --dry-run",
			Intent{Mode: ModeInit, Flags: Words{"--pod-network-cidr=10.0.0.0/8", "--service-cidr", "10.9.0.0/16", "-v", "5", "--dry-run"}}},
		{"flags of a place", "kubeadm init --token " + testToken + " --apiserver-advertise-address=10.0.0.1 --apiserver-bind-port 7443 --node-name n1 --ignore-preflight-errors NumCPU,Mem --ignore-preflight-errors=Swap",
			Intent{Mode: ModeInit, AdvertiseAddress: "10.0.0.1", BindPort: 7443, NodeName: "n1", IgnorePreflight: []string{"NumCPU", "Mem", "Swap"}}},
		{"a port that is none", "kubeadm init --token " + testToken + " --apiserver-bind-port=x", Intent{Mode: ModeInit, Flags: Words{"--apiserver-bind-port=x"}}},
		{"IPv6 endpoint", "/opt/bin/kubeadm init --token=" + testToken + " --control-plane-endpoint [fd00::1]:6443", Intent{Mode: ModeInit, Endpoint: "[fd00::1]:6443"}},
		{"name without a port", "sudo kubeadm init --token=" + testToken + " --control-plane-endpoint api.example.com", Intent{Mode: ModeInit, Endpoint: "api.example.com"}},
		{"join", "kubeadm join 10.1.1.57:6443 --token " + testToken + " --discovery-token-unsafe-skip-ca-verification",
			Intent{Mode: ModeJoin, Endpoint: "10.1.1.57:6443", Discovery: Discovery{UnsafeSkipCA: true}}},
		{"join with the CA's hash", "kubeadm join --discovery-token=" + testToken + " --discovery-token-ca-cert-hash " + hash + " api:6443",
			Intent{Mode: ModeJoin, Endpoint: "api:6443", Discovery: Discovery{CAHashes: []string{hash}}}},
		{"continued line", "kubeadm join \\\n  10.1.1.57:6443 \\\n  --discovery-token-unsafe-skip-ca-verification --token " + testToken + " --control-plane --certificate-key " + testKey,
			Intent{Mode: ModeJoinControlPlane, Endpoint: "10.1.1.57:6443", Discovery: Discovery{UnsafeSkipCA: true}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			calls := kubeadmCalls(readShell(test.line), source{})
			if len(calls) != 1 {
				t.Fatalf("%d calls found, want 1", len(calls))
			}
			var got Intent
			problems := readKubeadm(&got, calls[0])
			if got.Token.Reveal() != testToken {
				t.Errorf("token = %q", got.Token.Reveal())
			}
			test.want.Token, test.want.CertificateKey, test.want.Origins = got.Token, got.CertificateKey, got.Origins
			if len(problems) > 0 || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, %v; want %+v", got, problems, test.want)
			}
		})
	}
}

// Nothing is lost on the way back to kubeadm.
func TestKubeadmFlags(t *testing.T) {
	t.Parallel()
	intent, _ := Parse(corpusText(t, "edit-kubeadm-known-flags"))
	want := []string{"--apiserver-advertise-address=10.1.1.57", "--apiserver-bind-port=7443", "--ignore-preflight-errors=NumCPU,Mem"}
	if got := intent.KubeadmFlags(); !slices.Equal(got, want) {
		t.Errorf("flags = %q, want %q", got, want)
	}
	intent, _ = Parse(corpusText(t, "edit-kubeadm-flags"))
	want = []string{"--pod-network-cidr=10.244.0.0/16", "--service-cidr", "10.9.0.0/16", "--feature-gates=A=true", "-v", "5"}
	if got := intent.KubeadmFlags(); !slices.Equal(got, want) {
		t.Errorf("flags = %q, want %q", got, want)
	}
}

// C33: the words of a command line can be shown.
func TestWordsAreShownWithoutSecrets(t *testing.T) {
	t.Parallel()
	words := Words{"--my-key", "short", "--password=x", "--token=" + testToken, "--cidr=10.0.0.0/8", testKey, "-v", "5"}
	const want = "--my-key [redacted] --password=[redacted] --token=[redacted] --cidr=10.0.0.0/8 [redacted] -v 5"
	if got := words.String(); got != want {
		t.Errorf("shown as %q, want %q", got, want)
	}
	encoded, err := words.MarshalJSON()
	if err != nil || strings.Contains(string(encoded)+fmt.Sprintf("%#v", words), testKey) {
		t.Errorf("shown as %s, %#v, %v", encoded, words, err)
	}
}
