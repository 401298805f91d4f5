// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Where Cluster API's kubeadm bootstrap provider puts kubeadm's configuration, now
// and before its v1alpha4, and how it is told that kubeadm has succeeded.
const (
	clusterAPIFolder = "/run/cluster-api/"
	clusterAPIScript = "/usr/local/bin/kubeadm-bootstrap-script" // runs the phases of kubeadm join one by one
)

func clusterAPIConfigs() []string {
	return []string{"/run/kubeadm/kubeadm.yaml", "/run/kubeadm/kubeadm-join-config.yaml", "/tmp/kubeadm.yaml", "/tmp/kubeadm-join-config.yaml"}
}

// ownKubeadm reads userdata whose own commands call kubeadm: Cluster API's, or an
// administrator's. All of it is cloud-init's work; what it asks for is read from
// kubeadm's words and configuration, and judged by kubeadm.
func (p *parser) ownKubeadm() bool {
	call, found := p.kubeadmEntry()
	if !found {
		return false
	}
	p.intent.Flavor = FlavorKubeadm
	if p.isClusterAPI(call) {
		p.intent.Flavor = FlavorClusterAPI
	}
	if call.config != "" {
		p.intent.KubeadmConfig = call.config
		p.intent.set("kubeadmConfig", call.from.line(call.line, "kubeadm "+call.verb+" --config"))
		if file, ok := p.config.find(call.config); ok {
			readKubeadmConfig(p.intent, file)
		}
	}
	readKubeadm(p.intent, call)
	what := "an administrator's own"
	if p.intent.Flavor == FlavorClusterAPI {
		what = "Cluster API's"
	}
	p.hand("it makes the node by %s call of kubeadm %s (%s), which is cloud-init's to run", what, call.verb, p.intent.Mode)
	return true
}

// kubeadmEntry finds the first call of kubeadm init or join in runcmd. Where Cluster
// API calls it in a script, the configuration says what the call would.
func (p *parser) kubeadmEntry() (kubeadmCall, bool) {
	for i, entry := range p.config.runcmd {
		from := source{config: p.config, file: fmt.Sprintf("runcmd entry %d", i+1), before: entry.node.Line - 1}
		if entry.node.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
			from.before++
		}
		if calls := kubeadmCalls(entry.script, from); len(calls) > 0 {
			return calls[0], true
		}
	}
	if _, ok := p.config.find(clusterAPIScript); !ok {
		return kubeadmCall{}, false
	}
	for _, name := range clusterAPIConfigs() {
		if file, ok := p.config.find(name); ok {
			verb := "init"
			if strings.Contains(path.Base(name), "join") {
				verb = "join"
			}
			return newKubeadmCall(file.source(), 1, verb, []string{"--config", name}), true
		}
	}
	return kubeadmCall{}, false
}

func (p *parser) isClusterAPI(call kubeadmCall) bool {
	return slices.Contains(clusterAPIConfigs(), call.config) ||
		slices.ContainsFunc(p.config.files, func(f configFile) bool { return strings.HasPrefix(f.path, clusterAPIFolder) }) ||
		slices.ContainsFunc(p.config.runcmd, func(e runEntry) bool { return e.about(clusterAPIFolder) })
}
