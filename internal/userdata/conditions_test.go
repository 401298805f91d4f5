// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"strings"
	"testing"
)

// An administrator's condition, pause or end is not dropped: the userdata is left to
// cloud-init as it is, and never called broken.
func TestParseKeepsForeignConditions(t *testing.T) {
	t.Parallel()
	control := string(corpusText(t, "control-4.20"))
	inDeploy := func(line string) string {
		const marker = "      MANIFESTS=/tmp/k8sconfigscripts/\n      if [ -d"
		return edit(t, control, marker, "      "+line+"\n"+marker)
	}
	before := func(line string) string { return edit(t, control, "runcmd:\n", "runcmd:\n  - "+line+"\n") }
	const start, setup = "  - systemctl start deploy-kube-system\n", "  - /opt/bin/setup-kube-system\n"
	starts := func(line string) string { return edit(t, control, start, "  - "+line+"\n") }
	const network, dashboard = "/opt/bin/kubectl apply -f ${MANIFESTS}/network.yaml", "/opt/bin/kubectl apply -f ${MANIFESTS}/dashboard.yaml"
	const foreign = "its condition is not one of CloudStack's"
	const init, condition = "        kubeadm init", "depends on a condition that is not CloudStack's"
	for _, test := range []struct{ name, document, reason string }{
		{"a file is awaited", before("until [ -f /var/lib/data-disk/ready ]; do sleep 5; done"), "runcmd entry 1"},
		{"a file is awaited otherwise", before("while ! test -e /var/lib/data-disk/ready; do sleep 5; done"), "runcmd entry 1"},
		{"a pause", before("sleep 600"), `runcmd entry 1 ("sleep")`},
		{"a pause as words", before("[ sleep, 600 ]"), `runcmd entry 1 ("sleep")`},
		{"a pause in an endless loop", before("while true; do sleep 5; done"), `runcmd entry 1 ("sleep")`},
		{"something else is awaited", before("until grep -q vdb /proc/partitions; do sleep 5; done"), "runcmd entry 1"},
		{"runcmd ends", before("exit 0"), `runcmd entry 1 ("exit")`},
		{"runcmd ends at an error", before("set -e"), `runcmd entry 1 ("set")`},
		{"a gate", starts("test -f /root/go && systemctl start deploy-kube-system"), "runcmd entry 7 starts /opt/bin/deploy-kube-system under a condition"},
		{"a gate of a known file", starts("test -f /home/cloud/success || systemctl start deploy-kube-system"), "under a condition"},
		{"a gate in an if", starts("if [ -f /opt/bin/setup-kube-system ]; then systemctl start deploy-kube-system; fi"), "under a condition"},
		{"never started", edit(t, control, setup, "  - false && /opt/bin/setup-kube-system\n"), "runcmd entry 5 starts /opt/bin/setup-kube-system under a condition"},
		{"started after a subshell", edit(t, control, setup, "  - (false) && /opt/bin/setup-kube-system\n"), "under a condition"},
		{"started by a function", edit(t, control, setup, "  - go() { /opt/bin/setup-kube-system; }\n"), "under a condition"},

		{"the network by a file", edit(t, control, network, "[ -f /etc/want-net ] && "+network), foreign},
		{"the network unless a file", edit(t, control, network, "test -e /etc/no-net || "+network), foreign},
		{"the network by a newer file", edit(t, control, network, "[ /etc/a -nt /home/cloud/success ] && "+network), foreign},
		{"the network by a known file", edit(t, control, network, "[ -n \"$PATH\" ] && [ -w /home/cloud/success ] && "+network), foreign},
		{"the network by the environment", edit(t, control, network, `[[ -n ${WANT} ]] && `+network), foreign},
		{"the network by what is read", edit(t, control, network, "read want < /etc/want; [ -n \"$want\" ] && "+network), "whether kubectl runs " + condition},
		{"the network by a default", edit(t, control, network, `[ "${WANT:-no}" = yes ] && `+network), "whether kubectl runs " + condition},
		{"the network by a command", edit(t, control, network, "id -u joe && "+network), "whether kubectl runs " + condition},
		{"the network by a search", edit(t, control, network, "grep -q net /etc/want && "+network), `the command "grep"`},
		{"the network by a group", edit(t, control, network, "{ id -u joe; } && "+network), "whether kubectl runs " + condition},
		{"the network in a loop", edit(t, control, network, "while id -u joe; do "+network+"; done"), "whether kubectl runs " + condition},
		{"the network in a function", edit(t, control, network, "net() { "+network+"; }"), "whether kubectl runs " + condition},
		{"the network after a pause", edit(t, control, network, "sleep 60; "+network), "it waits where CloudStack's does not"},
		{"the network again and again", edit(t, control, network, "until "+network+"; do sleep 5; done"), "it waits where CloudStack's does not"},
		{"the dashboard by a file", edit(t, control, dashboard, "[ -f /etc/want ] && "+dashboard), foreign},
		{"the dashboard by the environment", edit(t, control, dashboard, `[ "$WANT" = yes ] && `+dashboard), foreign},
		{"a binding by a file", edit(t, control, "      /opt/bin/kubectl create clusterrole", "      [ -f /etc/x ] && /opt/bin/kubectl create clusterrole"), foreign},
		{"kubeadm by a file", edit(t, control, init, "        [ -f /etc/x ] && kubeadm init"), foreign},
		{"kubeadm by a command", edit(t, control, init, "        id -u joe && kubeadm init"), "whether kubeadm runs " + condition},
		{"kubeadm by arithmetic", edit(t, control, init, "        (( WANT > 1 )) && kubeadm init"), "whether kubeadm runs " + condition},
		{"the script ends", inDeploy("exit 0"), "it ends where CloudStack's does not"},
		{"the script ends without a status", inDeploy("if [ -d /tmp/k8sconfigscripts ]; then exit; fi"), "it ends where CloudStack's does not"},
		{"the script fails", inDeploy("exit 1"), "it ends where CloudStack's does not"},
		{"the script fails by a command", inDeploy("id -u joe || exit 1"), "whether exit runs " + condition},
		{"the script returns", inDeploy("return 0"), "it ends where CloudStack's does not"},

		{"every variable exported", inDeploy("set -a; LANG=C; set +a"), `the command "set"`},
		{"every variable exported by its name", inDeploy("set -o allexport"), `the command "set"`},
		{"every variable exported among others", inDeploy("set -ea"), `the command "set"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			intent, problems := Parse([]byte(test.document))
			if intent.Handover != HandoverCloudInit || !strings.Contains(strings.Join(intent.HandoverReasons, "\n"), test.reason) {
				t.Errorf("handed to %s because of %q, want %q", intent.Handover, intent.HandoverReasons, test.reason)
			}
			if err := Err(problems); err != nil {
				t.Errorf("called broken: %v", err)
			}
		})
	}
}

// What CloudStack itself asks, in other words, changes nothing.
func TestParseKnowsConditions(t *testing.T) {
	t.Parallel()
	control := string(corpusText(t, "control-4.20"))
	const start, setup = "  - systemctl start deploy-kube-system\n", "  - /opt/bin/setup-kube-system\n"
	const network = "/opt/bin/kubectl apply -f ${MANIFESTS}/network.yaml"
	for name, document := range map[string]string{
		"started one after the other": edit(t, edit(t, control, start, ""), setup, "  - /opt/bin/setup-kube-system && systemctl start deploy-kube-system\n"),
		"awaited by while":            edit(t, control, "until [ -f /opt/bin/setup-kube-system ]", "while ! test -f /opt/bin/setup-kube-system"),
		"a manifest that is there":    edit(t, control, network, "[ -f ${MANIFESTS}/network.yaml ] && "+network),
		"pipefail":                    edit(t, control, "        set +e\n", "        set +e -o pipefail\n"),
		"ended at its end":            edit(t, control, "      echo \"true\" > /home/cloud/success\n", "      echo \"true\" > /home/cloud/success\n      exit 0\n"),
		"a decided condition":         edit(t, control, network, "A=1; [ $A = 1 ] && "+network),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if intent, problems := Parse([]byte(document)); intent.Handover != HandoverNodeagent || len(problems) > 0 {
				t.Errorf("handed over because of %q, %v", intent.HandoverReasons, problems)
			}
		})
	}
}

// Rights that an administrator has taken away are not granted.
func TestParseRequiresEveryBinding(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"control-4.20", "control-4.23"} {
		control := string(corpusText(t, name))
		for _, binding := range []string{"admin-binding", "cluster-admin-binding", "kubernetes-dashboard-ui"} {
			var kept []string
			removed := false
			for _, line := range strings.Split(control, "\n") {
				if strings.Contains(line, "binding "+binding+" ") {
					removed = true
					continue
				}
				kept = append(kept, line)
			}
			intent, problems := Parse([]byte(strings.Join(kept, "\n")))
			reason := "does not make the role binding " + binding + ", which nodeagent would"
			if removed != strings.Contains(strings.Join(intent.HandoverReasons, "\n"), reason) || removed != (intent.Handover == HandoverCloudInit) || Err(problems) != nil {
				t.Errorf("%s without %s (%t): handed to %s because of %q, %v", name, binding, removed, intent.Handover, intent.HandoverReasons, problems)
			}
		}
	}
}
