// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// FuzzCloudConfig: no text makes Parse panic, hang or show a secret; who is said to
// make the node is able to, and of what is nodeagent's no user and no key is lost.
func FuzzCloudConfig(f *testing.F) {
	for _, name := range corpusNames(f) {
		if raw := corpusText(f, name); len(raw) < 64<<10 {
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		intent, problems := Parse(raw)
		shown := fmt.Sprintf("%v %v %v %v", problems, Err(problems), intent.HandoverReasons, intent.Explain())
		for _, hidden := range plantedSecrets() {
			if strings.Contains(shown, hidden) {
				t.Errorf("secret shown in %s", shown)
			}
		}
		checkPromises(t, raw, intent, problems, "")
		if intent.Handover != HandoverNodeagent {
			return
		}
		seed, err := Seed(raw, intent)
		if err != nil {
			t.Fatal(err)
		}
		if before, after := usersOf(raw), usersOf(seed); (before == nil) != (after == nil) || before != nil && !sameYAML(before, after) {
			t.Errorf("the users changed in the seed\n%s", seed)
		}
	})
}

// usersOf returns what userdata says of users, or nil.
func usersOf(raw []byte) *yaml.Node {
	parts, _ := unwrap(raw)
	merged, _ := mergeCloudConfigs(parts)
	config, err := readCloudConfig(merged)
	if err != nil {
		return nil
	}
	return get(config.root, "users")
}

func FuzzKubeadmLine(f *testing.F) {
	f.Add("kubeadm init --token " + testToken + " --token-ttl 0 --certificate-key " + testKey + " --upload-certs")
	f.Add("kubeadm join 10.1.1.57:6443 --token=$(cat /x) \"$A\" '`' `x` ${B:-c} $((1+1)) <<< x > y 2>&1")
	f.Add("kubeadm join --discovery-token-ca-cert-hash sha256:" + testKey + " --tls-bootstrap-token " + testToken + " --discovery-file=/x --control-plane a:1 b")
	f.Add("A=aa;B=$A$A;C=$B$B\nfor x in $C; do kubeadm init --config=$x; done")
	f.Add("A=x\nif [[ $A == y || ! -n $A ]]; then kubeadm init; elif [ \"$A\" = x ]; then kubeadm join; else exit 1; fi && { true; } || false | ! (( A++ ))")
	for _, script := range reachScripts() {
		f.Add(script.text)
	}
	f.Fuzz(func(t *testing.T, line string) {
		script := readShell(line)
		for _, call := range kubeadmCalls(script, source{}) {
			var intent Intent
			problems := readKubeadm(&intent, call)
			if words := len(intent.Flags) + len(intent.CertSANs); words > len(call.args)+strings.Count(strings.Join(call.args, " "), ",") {
				t.Errorf("%d words became %d", len(call.args), words)
			}
			if shown := fmt.Sprint(problems, intent.Explain(), intent.Flags); strings.Contains(shown, testToken) || strings.Contains(shown, testKey) {
				t.Errorf("secret shown in %s", shown)
			}
		}
		// Wherever it comes to stand: of a command only what everybody knows is named.
		for _, reason := range strangers("script", readShell(line+"\nhunter2pw"), nodeCommands()) {
			if strings.Contains(reason, "hunter2pw") {
				t.Errorf("secret shown in %s", reason)
			}
		}
		for _, reason := range strangers("script", script, nodeCommands()) {
			if strings.Contains(reason, testToken) || strings.Contains(reason, testKey) {
				t.Errorf("secret shown in %s", reason)
			}
		}
	})
}

// BenchmarkParse is the way from userdata's bytes to the intent.
func BenchmarkParse(b *testing.B) {
	for _, name := range []string{"control-4.23", "control-4.21-cni-mime-key", "worker-4.21", "nodeconfig-init"} {
		b.Run(name, func(b *testing.B) {
			raw := corpusText(b, name)
			for b.Loop() {
				Parse(raw)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/1e3/float64(b.N), "ms/op")
		})
	}
}
