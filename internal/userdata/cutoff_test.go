// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"strings"
	"testing"

	"nodeagent/internal/fault"
)

// "Cut off" sends an operator to look for the rest of a text: it is said where the end
// is what is missing, and nowhere else.
func TestCutOffIsSaidOnlyOfTheEnd(t *testing.T) {
	t.Parallel()
	control := small(t)
	deploy := strings.Index(control, "  - path: /opt/bin/deploy-kube-system")
	for _, test := range []struct{ name, document, ending string }{
		{"no runcmd", control[:strings.Index(control, "runcmd:")], "with"},
		{"in the runcmd", control[:strings.Index(control, "  - systemctl start deploy")], "with"},
		{"in a line of the runcmd", control[:strings.Index(control, "start deploy-kube-system")], "in"},
		{"in a script", control[:strings.Index(control, "        round=$[")], "with"},
		{"in a key", control[:deploy+len("  - path: /opt/bin/deploy-kube-system\n    permi")], "in"},
		{"in a quoted value", "#cloud-config\na: 'b", "in"},
		{"behind a script's path", control[:deploy+len("  - path: /opt/bin/deploy-kube-system\n")], "with"},

		{"tab", edit(t, control, "runcmd:\n", "runcmd:\n\t- ls\n"), ""},
		{"tab in a short text", "#cloud-config\na:\n\tb: c", ""},
		{"unknown anchor", "#cloud-config\na: *bcd\n", ""},
		{"unknown anchor without a last line end", "#cloud-config\nruncmd: []\na: *bcd", ""},
		{"unknown encoding", edit(t, control, "    owner: root:root\n    content: |\n      #!", "    encoding: rot13\n    content: |\n      #!"), ""},
		{"nothing but a header", "#cloud-config\n", ""},
		{"list", "#cloud-config\n- a\n", ""},
		{"no kubeadm", edit(t, control, "kubeadm init --token", "true"), ""},
		{"no unit", edit(t, control, "path: /etc/systemd/system/deploy-kube-system.service", "path: /etc/other"), ""},
		{"a loop not closed", edit(t, control, "        attempt=$[$attempt + 1]\n      done\n", "        attempt=$[$attempt + 1]\n"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, problems := Parse([]byte(test.document))
			err := Err(problems)
			if err == nil {
				t.Fatal("no error")
			}
			said := fmt.Sprint(err, fault.As(err).Log)
			want := ""
			if test.ending != "" {
				lines := strings.Count(strings.TrimSuffix(test.document, "\n"), "\n") + 1
				want = fmt.Sprintf("; the text ends %s line %d, after %d bytes: it was cut off", test.ending, lines, len(test.document))
			}
			if strings.Contains(said, "cut off") != (want != "") || !strings.Contains(said, want) || strings.Contains(said, "vm.userdata") {
				t.Errorf("said %s; want it with %q", said, want)
			}
		})
	}
}

// Since 4.21 cloud-init drops the script for the registry, which the server has put into
// runcmd: cloud-init goes on past that command, and so must the node.
func TestRegistryLostToJinjaIsNoError(t *testing.T) {
	t.Parallel()
	lost := string(corpusText(t, "control-4.21-registry-lost-to-jinja"))
	for name, test := range map[string]struct{ document, want string }{
		"lost":                 {lost, "having no variable registry"},
		"lost in a MIME part":  {"Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\n--b\nContent-Type: text/jinja2\n\n" + lost + "\n--b--\n", "having no variable registry"},
		"forgotten altogether": {edit(t, lost, "path: /opt/bin/setup-containerd", "path: /opt/bin/other"), "which it does not have: the node gets no private registry"},
	} {
		intent, problems := Parse([]byte(test.document))
		if Err(problems) != nil || intent.Handover != HandoverCloudInit || !strings.Contains(strings.Join(intent.HandoverReasons, "\n"), test.want) {
			t.Errorf("%s: left to %s because of %q, %v; want cloud-init because of %q", name, intent.Handover, intent.HandoverReasons, problems, test.want)
		}
	}
}
