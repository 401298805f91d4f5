// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"slices"
	"strings"
	"testing"
)

// C29: an etcd node is nodeagent's, with what an administrator has changed and nodeagent
// understands; all else is left to cloud-init with the reason, or named as wrong.
func TestEtcdEdits(t *testing.T) {
	t.Parallel()
	etcd := string(corpusText(t, "etcd-4.21"))
	const state = "--initial-cluster-state new"
	for name, test := range map[string]struct {
		old, new        string
		reason, problem string
	}{
		"as it comes":      {state, state, "", ""},
		"data folder":      {state, state + " --data-dir /data/etcd", "", ""},
		"one hyphen":       {"--name etcd-1", "-name=etcd-1", "", ""},
		"restart always":   {"Restart=on-failure", "Restart=always", "", ""},
		"existing":         {state, "--initial-cluster-state existing", "", ""},
		"waits for script": {"- /opt/bin/setup-etcd-node", "- until [ -f /opt/bin/setup-etcd-node ]; do sleep 5; done\n  - /opt/bin/setup-etcd-node", "", ""},
		"command after":    {"enable --now etcd", "enable --now etcd\n  - logger done", "", ""},

		"user":                 {"Restart=on-failure", "User=etcd", "etcd.service line", ""},
		"relative data folder": {state, state + " --data-dir data", "no absolute path", ""},
		"discovery":            {state, state + " --discovery-srv example.com", "--discovery-srv", ""},
		"new over old":         {state, state + " --force-new-cluster", "--force-new-cluster", ""},
		"variable":             {"--name etcd-1", "--name ${NAME}", "a quote, blank, $ or %", ""},
		"other program":        {"ExecStart=/opt/bin/etcd ", "ExecStart=/usr/bin/etcd ", "/opt/bin/etcd was expected", ""},
		"other unit":           {"/etc/systemd/system/etcd.service", "/etc/systemd/system/etcd-member.service", "etcd-member.service", ""},
		"command before":       {"- /opt/bin/setup-etcd-node", "- mkfs.ext4 /dev/vdb\n  - /opt/bin/setup-etcd-node", "comes before the node", ""},
		"script":               {"sudo rm -rf /opt/bin/etcd-*", "sudo rm -rf /opt/bin/etcd-*; useradd etcd", "useradd", ""},
		"file in the way":      {"write_files:\n", "write_files:\n  - path: /var/lib/etcd/x\n    content: x\n", "in the way", ""},
		"packages":             {"runcmd:\n", "packages: [etcd-client]\nruncmd:\n", "packages", ""},

		"placeholder":   {"http://10.1.1.61:2380 \\\n        --listen-peer", "http://{{ etcd.node_ip }}:2380 \\\n        --listen-peer", "", "placeholder"},
		"not a member":  {"--name etcd-1", "--name etcd-4", "", "does not name this member"},
		"other address": {"--initial-cluster etcd-1=http://10.1.1.61", "--initial-cluster etcd-1=http://10.1.1.99", "", "elsewhere"},
		"no port":       {"10.1.1.62:2380,", "10.1.1.62,", "", "was expected"},
		"state":         {state, "--initial-cluster-state newish", "", "newish"},
		"no unit":       {"ExecStart=/opt/bin/etcd ", "ExecStart=/opt/bin/other ", "", "no unit that runs etcd"},
		"not started":   {"  - systemctl enable --now etcd", "", "", "does not start etcd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(etcd, test.old) {
				t.Fatalf("the userdata have no %q", test.old)
			}
			intent, problems := Parse([]byte(strings.Replace(etcd, test.old, test.new, 1)))
			err, reasons := Err(problems), strings.Join(intent.HandoverReasons, "\n")
			switch {
			case test.problem != "":
				if err == nil || !strings.Contains(err.Error(), test.problem) {
					t.Errorf("problems %v, reasons %q; want %q", err, reasons, test.problem)
				}
			case err != nil || (intent.Handover == HandoverCloudInit) != (test.reason != "") || !strings.Contains(reasons, test.reason):
				t.Errorf("handed to %s because of %q, %v; want %q", intent.Handover, reasons, err, test.reason)
			}
		})
	}
}

// What a NodeConfig says of a member becomes the same as CloudStack's command line.
func TestNodeConfigEtcd(t *testing.T) {
	t.Parallel()
	with := func(etcd string) string {
		return "apiVersion: nodeagent/v1\nkind: NodeConfig\nmode: etcd\netcd:\n  name: etcd-1\n" + etcd
	}
	const members = "  initialCluster: etcd-1=https://10.1.1.61:2380,etcd-2=https://10.1.1.62:2380\n"
	intent, problems := Parse([]byte(with("  address: 10.1.1.61\n" + members + "  flags: [--cert-file=/etc/ssl/etcd.crt]\n")))
	if Err(problems) != nil || intent.Etcd == nil || intent.Handover != HandoverNodeagent {
		t.Fatalf("intent %+v, %v", intent, problems)
	}
	for _, word := range []string{"https://10.1.1.61:2379,https://127.0.0.1:2379", "https://10.1.1.61:2380", "--cert-file=/etc/ssl/etcd.crt"} {
		if !slices.Contains(intent.Etcd.Flags, word) {
			t.Errorf("flags %q lack %q", intent.Etcd.Flags, word)
		}
	}
	for text, want := range map[string]string{
		"  address: 10.1.1.61\n  initialCluster: etcd-2=http://10.1.1.62:2380\n":          "does not name this member",
		"  address: \"10.1.1.61 -x\"\n" + members:                                         "an address was expected",
		"  address: 10.1.1.61\n" + members + "  flags: [--data-dir=data]\n":               "no absolute path",
		"  address: 10.1.1.61\n" + members + "  flags: [--force-new-cluster]\n":           "--force-new-cluster",
		"  address: 10.1.1.61\n" + members + "  flags: [\"--a\\nExecStartPre=/bin/x\"]\n": "a quote, blank, $ or %",
	} {
		if _, problems := Parse([]byte(with(text))); Err(problems) == nil || !strings.Contains(Err(problems).Error(), want) {
			t.Errorf("%s: problems %v, want %q", text, problems, want)
		}
	}
}

// Issue 6: kubeadm's file is taken over whole; what kubeadm would refuse beside it, or
// what is not filled in, is left to cloud-init.
func TestKubeadmDocuments(t *testing.T) {
	t.Parallel()
	control := string(corpusText(t, "control-4.21-external-etcd"))
	const call = "kubeadm init --config /etc/kubernetes/kubeadm-config.yaml"
	intent, problems := Parse([]byte(control))
	if intent.Handover != HandoverNodeagent || !strings.Contains(intent.KubeadmDocuments.Reveal(), "external:") || Err(problems) != nil {
		t.Fatalf("handed to %s because of %q", intent.Handover, intent.HandoverReasons)
	}
	if flags := intent.KubeadmFlags(); len(flags) > 0 {
		t.Errorf("flags %q beside a file", flags)
	}
	for _, test := range []struct{ old, new, reason string }{
		{call, call + " --token-ttl 5h", "--token-ttl"},
		{call, "kubeadm init --config /root/mine.yaml", "not one of its files"},
		{"- 203.0.113.9\n      controlPlane", "- \"{{ k8s_control.server_ips }}\"\n      controlPlane", "jinja"},
	} {
		intent, _ := Parse([]byte(edit(t, control, test.old, test.new)))
		if !strings.Contains(strings.Join(intent.HandoverReasons, "\n"), test.reason) {
			t.Errorf("reasons %q, want %q", intent.HandoverReasons, test.reason)
		}
	}
	if _, problems := Parse([]byte(edit(t, control, "- http://10.1.1.61:2379", "- 10.1.1.61"))); Err(problems) == nil || !strings.Contains(Err(problems).Error(), "endpoint of etcd") {
		t.Errorf("problems %v, want the endpoint", problems)
	}
}

// Joins with a file of kubeadm's, by a kubeconfig on the machine or under another name
// are nodeagent's too.
func TestJoinsByFiles(t *testing.T) {
	t.Parallel()
	worker := string(corpusText(t, "worker-4.21"))
	const call = "kubeadm join 10.1.1.57:6443 --token " + testToken + " --discovery-token-unsafe-skip-ca-verification"
	withFile := edit(t, edit(t, worker, call, "kubeadm join --config /etc/kubernetes/join.yaml"), "write_files:\n", `write_files:
  - path: /etc/kubernetes/join.yaml
    content: |
      apiVersion: kubeadm.k8s.io/v1beta3
      kind: JoinConfiguration
      discovery:
        bootstrapToken:
          token: `+testToken+`
          apiServerEndpoint: 10.1.1.57:6443
          unsafeSkipCAVerification: true
`)
	intent, problems := Parse([]byte(withFile))
	if intent.Handover != HandoverNodeagent || intent.Mode != ModeJoin || intent.Endpoint != "10.1.1.57:6443" || intent.KubeadmDocuments.Empty() || len(problems) > 0 {
		t.Errorf("with a file: %s, mode %s at %q because of %q, %v", intent.Handover, intent.Mode, intent.Endpoint, intent.HandoverReasons, problems)
	}
	by := edit(t, worker, call, "kubeadm join --token "+testToken+" --discovery-file /etc/kubernetes/discovery.conf")
	by = edit(t, by, "write_files:\n", "write_files:\n  - path: /etc/kubernetes/discovery.conf\n    content: x\n")
	if intent, problems := Parse([]byte(by)); intent.Handover != HandoverNodeagent || intent.Discovery.File != "/etc/kubernetes/discovery.conf" || len(problems) > 0 {
		t.Errorf("by a kubeconfig: %s because of %q, %v", intent.Handover, intent.HandoverReasons, problems)
	}
}
