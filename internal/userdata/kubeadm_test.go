// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"slices"
	"strings"
	"testing"
)

// What only the running script knows is no error: it is left to kubeadm, and so is a
// label for a version.
func TestParseLeavesKubeadmItsOwn(t *testing.T) {
	t.Parallel()
	control := string(corpusText(t, "control-4.20"))
	with := func(words string) string { return edit(t, control, "--token-ttl 0", "--token-ttl 0 "+words) }
	const variable = "depends on a variable"
	for name, test := range map[string]struct{ document, reason string }{
		"node name by a command":          {with("--node-name=$(hostname)"), variable},
		"node name by a variable":         {with("--node-name $HOSTNAME"), variable},
		"address by a pipeline":           {with("--apiserver-advertise-address=$(hostname -I | cut -d' ' -f1)"), variable},
		"endpoint":                        {edit(t, control, "--control-plane-endpoint 10.1.1.57:6443", "--control-plane-endpoint $IP:6443"), variable},
		"token":                           {edit(t, control, "--token "+testToken, "--token $T"), variable},
		"certificate key":                 {edit(t, control, testKey, `"$KEY"`), variable},
		"all flags":                       {edit(t, control, "--token "+testToken, "$FLAGS"), variable},
		"version":                         {edit(t, control, "=1.33.1", "=$V"), variable},
		"version stable":                  {edit(t, control, "=1.33.1", "=stable"), `a label ("stable")`},
		"version latest of a minor":       {edit(t, control, "=1.33.1", " latest-1.29"), `a label ("latest-1.29")`},
		"version of a bucket":             {edit(t, control, "=1.33.1", "=ci/latest"), `a label ("ci/latest")`},
		"one of two values":               {edit(t, control, "        kubeadm init", "        E=--v=4\n        if [ -d /mnt/k8sdisk ]; then E=--v=5; fi\n        kubeadm init $E"), variable},
		"a pattern":                       {edit(t, control, "        kubeadm init", "        E='--v=[45]'\n        kubeadm init $E"), variable},
		"words split at something else":   {edit(t, control, "        kubeadm init", "        IFS=,; E=--v=4,--dry-run\n        kubeadm init $E"), variable},
		"blanks beside what is not known": {edit(t, control, "        kubeadm init", "        E=--v=4\n        kubeadm init \"a b\"$E"), variable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			intent, problems := Parse([]byte(test.document))
			if intent.Mode != ModeInit || intent.Handover != HandoverCloudInit || !strings.Contains(strings.Join(intent.HandoverReasons, "\n"), test.reason) || Err(problems) != nil {
				t.Errorf("handed to %s because of %q, %v; want %q", intent.Handover, intent.HandoverReasons, problems, test.reason)
			}
		})
	}
}

// An expansion without quotes becomes as many words as the shell makes of it.
func TestParseSplitsUnquotedWords(t *testing.T) {
	t.Parallel()
	control := string(corpusText(t, "control-4.20"))
	for line, want := range map[string][]string{
		"EXTRA='--pod-network-cidr=10.1.0.0/16 --v=5'\n        kubeadm init $EXTRA":     {"--pod-network-cidr=10.1.0.0/16", "--v=5"},
		"EXTRA=\n        kubeadm init $EXTRA":                                           nil,
		"EXTRA=\n        kubeadm init $EXTRA$EXTRA --dry-run":                           {"--dry-run"},
		"EXTRA='  --v=5\t-x '\n        kubeadm init ${EXTRA}":                           {"--v=5", "-x"},
		"EXTRA='a b'\n        kubeadm init --feature-gates \"$EXTRA\"":                  {"--feature-gates", "a b"},
		"EXTRA='5 --dry-run'\n        kubeadm init --v=$EXTRA":                          {"--v=5", "--dry-run"},
		"K='kubeadm init --dry-run'\n        $K":                                        {"--dry-run"},
		"EXTRA=\n        kubeadm init --v=\"5\" $EXTRA --service-dns-domain \"a.test\"": {"--v=5", "--service-dns-domain", "a.test"},
	} {
		intent, problems := Parse([]byte(edit(t, control, "        kubeadm init", "        "+line)))
		if !slices.Equal(intent.Flags, Words(want)) || intent.Token.Reveal() != testToken || len(problems) > 0 {
			t.Errorf("%q gives the flags %q, %v; want %q", line, []string(intent.Flags), problems, want)
		}
	}
}
