// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// This file makes kubeadm's configuration from the one that the userdata bring: all of
// it stays, also what is not known here, and what nodeagent needs is added where it says
// nothing. The documents are brought to the version that the installed kubeadm reads
// (kubernetes.io/docs/reference/config-api, "v1beta3" and "v1beta4").

const (
	kubeadmGroup = "kubeadm.k8s.io/"
	apiV1beta2   = "kubeadm.k8s.io/v1beta2"

	kindInit    = "InitConfiguration"
	kindCluster = "ClusterConfiguration"
	kindJoin    = "JoinConfiguration"
	kindKubelet = "KubeletConfiguration"
)

// givenConfig are the documents of a configuration file.
type givenConfig struct{ documents []*yaml.Node }

func readGiven(text string) (*givenConfig, error) {
	const most = 16
	g := &givenConfig{}
	for decoder := yaml.NewDecoder(strings.NewReader(text)); ; {
		var document yaml.Node
		err := decoder.Decode(&document)
		switch {
		case errors.Is(err, io.EOF):
			return g, nil
		case err != nil:
			return nil, errors.New("the file of the userdata is no YAML") // its error may repeat a secret
		case len(g.documents) == most:
			return nil, fmt.Errorf("the file of the userdata has more than %d documents", most)
		case len(document.Content) == 1 && document.Content[0].Kind == yaml.MappingNode:
			g.documents = append(g.documents, document.Content[0])
		}
	}
}

// of returns the document of a kind, or nil.
func (g *givenConfig) of(kind string) *yaml.Node {
	for _, document := range g.documents {
		if textAt(document, "kind") == kind {
			return document
		}
	}
	return nil
}

// ensure returns the document of a kind, a new one where there is none.
func (g *givenConfig) ensure(api, kind string) *yaml.Node {
	document := g.of(kind)
	if document == nil {
		document = &yaml.Node{Kind: yaml.MappingNode}
		put(document, "apiVersion", scalarNode(api))
		put(document, "kind", scalarNode(kind))
		g.documents = append(g.documents, document)
	}
	return document
}

func scalarNode(text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
}

// child returns the value at a path of keys, or nil.
func child(node *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		if node == nil || node.Kind != yaml.MappingNode {
			return nil
		}
		var found *yaml.Node
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == key {
				found = node.Content[i+1]
			}
		}
		node = found
	}
	return node
}

func textAt(node *yaml.Node, keys ...string) string {
	if node = child(node, keys...); node == nil || node.Kind != yaml.ScalarNode || node.Tag == "!!null" {
		return ""
	}
	return node.Value
}

func listAt(node *yaml.Node, keys ...string) []string {
	var list []string
	if node = child(node, keys...); node != nil && node.Kind == yaml.SequenceNode {
		for _, item := range node.Content {
			list = append(list, item.Value)
		}
	}
	return list
}

// put sets a key of a mapping; nil removes it.
func put(mapping *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value != key {
			continue
		}
		if value == nil {
			mapping.Content = slices.Delete(mapping.Content, i, i+2)
		} else {
			mapping.Content[i+1] = value
		}
		return
	}
	if value != nil {
		mapping.Content = append(mapping.Content, scalarNode(key), value)
	}
}

// putAt sets the value at a path of keys; what stands in the way is replaced.
func putAt(node *yaml.Node, value *yaml.Node, keys ...string) {
	for _, key := range keys[:len(keys)-1] {
		next := child(node, key)
		if next == nil || next.Kind != yaml.MappingNode {
			next = &yaml.Node{Kind: yaml.MappingNode}
			put(node, key, next)
		}
		node = next
	}
	put(node, keys[len(keys)-1], value)
}

// fillText sets a text where there is none.
func fillText(node *yaml.Node, text string, keys ...string) {
	if text != "" && textAt(node, keys...) == "" {
		putAt(node, scalarNode(text), keys...)
	}
}

func listNode(items []string) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, item := range items {
		list.Content = append(list.Content, scalarNode(item))
	}
	return list
}

// bring changes the documents to what the installed kubeadm reads.
func (g *givenConfig) bring(v1beta4 bool) error {
	want := apiV1beta3
	if v1beta4 {
		want = apiV1beta4
	}
	for _, document := range g.documents {
		api := textAt(document, "apiVersion")
		if !strings.HasPrefix(api, kubeadmGroup) || api == want {
			continue
		}
		if api != apiV1beta3 && api != apiV1beta2 {
			return fmt.Errorf("the file of the userdata is of %s; the kubeadm on the ISO reads %s", api, want)
		}
		put(document, "apiVersion", scalarNode(want))
		if api == apiV1beta2 {
			put(document, "useHyperKubeImage", nil)
			if dns := child(document, "dns"); dns != nil && dns.Kind == yaml.MappingNode {
				put(dns, "type", nil)
			}
		}
		if v1beta4 {
			g.toV1beta4(document)
		}
	}
	return nil
}

// toV1beta4 makes lists of the arguments that were mappings, and moves the time limits.
func (g *givenConfig) toV1beta4(document *yaml.Node) {
	for _, keys := range [][]string{{"apiServer", "extraArgs"}, {"controllerManager", "extraArgs"}, {"scheduler", "extraArgs"},
		{"etcd", "local", "extraArgs"}, {"nodeRegistration", "kubeletExtraArgs"}} {
		args := child(document, keys...)
		if args == nil || args.Kind != yaml.MappingNode {
			continue
		}
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for i := 0; i+1 < len(args.Content); i += 2 {
			item := &yaml.Node{Kind: yaml.MappingNode}
			put(item, "name", args.Content[i])
			put(item, "value", args.Content[i+1])
			list.Content = append(list.Content, item)
		}
		putAt(document, list, keys...)
	}
	if limit := textAt(document, "apiServer", "timeoutForControlPlane"); limit != "" {
		put(child(document, "apiServer"), "timeoutForControlPlane", nil)
		fillText(g.ensure(apiV1beta4, kindInit), limit, "timeouts", "controlPlaneComponentHealthCheck")
	}
	if limit := textAt(document, "discovery", "timeout"); limit != "" {
		put(child(document, "discovery"), "timeout", nil)
		fillText(document, limit, "timeouts", "discovery")
	}
}

// register fills in how the node registers; its name is decided already.
func register(document *yaml.Node, name string) (criSocket string) {
	if name != "" {
		putAt(document, scalarNode(strings.ToLower(name)), "nodeRegistration", "name")
	}
	fillText(document, CRISocket, "nodeRegistration", "criSocket")
	criSocket = textAt(document, "nodeRegistration", "criSocket")
	if !strings.Contains(criSocket, "://") {
		criSocket = "unix://" + criSocket
		putAt(document, scalarNode(criSocket), "nodeRegistration", "criSocket")
	}
	fillText(document, "Never", "nodeRegistration", "imagePullPolicy") // K9
	return criSocket
}

// finish writes the documents as what kubeadm is run with. document is the one of the
// node, flags what stood beside the file on kubeadm's command line.
func (g *givenConfig) finish(document *yaml.Node, criSocket string, flags []string) (*config, error) {
	c := &config{criSocket: criSocket, skipped: listAt(document, "skipPhases")}
	args, err := places{"skip-phases": intoList(&c.skipped)}.take(flags)
	if err != nil {
		return nil, err
	}
	c.args = args
	if len(c.skipped) > 0 {
		put(document, "skipPhases", listNode(c.skipped))
	}
	all := make([]any, len(g.documents))
	for i, document := range g.documents {
		all[i] = document
		c.hideIn(document)
	}
	c.file, err = documents(all...)
	return c, err
}

// hideIn keeps a document's secrets out of logs and errors.
func (c *config) hideIn(node *yaml.Node) {
	for i, part := range node.Content {
		if node.Kind == yaml.MappingNode && i%2 == 1 && slices.Contains([]string{"token", "certificateKey", "tlsBootstrapToken"}, node.Content[i-1].Value) {
			c.hide(part.Value)
		}
		c.hideIn(part)
	}
}

// renderGivenInit is renderInit for a plan with documents.
func renderGivenInit(plan InitPlan) (*config, error) {
	g, err := readGiven(plan.Documents.Reveal())
	if err != nil {
		return nil, err
	}
	version := WithV(textAt(g.of(kindCluster), "kubernetesVersion"))
	if version == "" {
		version = WithV(plan.Version)
	}
	v1beta4, err := takesV1beta4(version)
	if err == nil {
		err = g.bring(v1beta4)
	}
	if err != nil {
		return nil, err
	}
	api := apiV1beta3
	if v1beta4 {
		api = apiV1beta4
	}
	init, cluster := g.ensure(api, kindInit), g.ensure(api, kindCluster)
	putAt(cluster, scalarNode(version), "kubernetesVersion")
	fillText(cluster, plan.Endpoint, "controlPlaneEndpoint")
	fillText(init, plan.AdvertiseAddress, "localAPIEndpoint", "advertiseAddress")
	if v1beta4 {
		fillText(init, controlPlaneLimit, "timeouts", "controlPlaneComponentHealthCheck")
		fillText(init, apiCallLimit, "timeouts", "kubernetesAPICall")
	} else {
		fillText(cluster, controlPlaneLimit, "apiServer", "timeoutForControlPlane")
	}
	fillText(g.ensure("kubelet.config.k8s.io/v1beta1", kindKubelet), "systemd", "cgroupDriver")
	flags := slices.Clone(plan.Flags)
	if plan.UploadCerts && !slices.Contains(flags, uploadCerts) {
		flags = append(flags, uploadCerts)
	}
	c, err := g.finish(init, register(init, plan.NodeName), flags)
	if err == nil {
		c.externalEtcd = len(g.etcd().endpoints) > 0
	}
	return c, err
}

// etcdAccess is how a control plane speaks to an etcd that is not its own.
type etcdAccess struct {
	endpoints []string
	EtcdTLS
}

func (g *givenConfig) etcd() etcdAccess {
	external := child(g.of(kindCluster), "etcd", "external")
	return etcdAccess{listAt(external, "endpoints"), EtcdTLS{textAt(external, "caFile"), textAt(external, "certFile"), textAt(external, "keyFile")}}
}

// externalEtcd is the plan's, without endpoints when the control plane makes its own.
func (p InitPlan) externalEtcd() (etcdAccess, error) {
	if p.Documents.Empty() {
		return etcdAccess{endpoints: p.ExternalEtcd}, nil
	}
	g, err := readGiven(p.Documents.Reveal())
	if err != nil {
		return etcdAccess{}, err
	}
	return g.etcd(), nil
}

// renderGivenJoin is renderJoin for a plan with documents.
func renderGivenJoin(plan JoinPlan) (*config, error) {
	g, err := readGiven(plan.Documents.Reveal())
	if err != nil {
		return nil, err
	}
	join := g.of(kindJoin)
	if join == nil {
		return nil, fmt.Errorf("the file of the userdata has no %s", kindJoin)
	}
	v1beta4, err := takesV1beta4(plan.Version)
	if err == nil {
		err = g.bring(v1beta4)
	}
	if err != nil {
		return nil, err
	}
	if token := child(join, "discovery", "bootstrapToken"); token != nil && token.Kind == yaml.MappingNode && len(plan.CAHashes) > 0 {
		put(token, "caCertHashes", listNode(plan.CAHashes))
		put(token, "unsafeSkipCAVerification", nil)
	}
	if plan.ControlPlane {
		fillText(join, plan.AdvertiseAddress, "controlPlane", "localAPIEndpoint", "advertiseAddress")
	}
	if v1beta4 {
		fillText(join, controlPlaneLimit, "timeouts", "controlPlaneComponentHealthCheck")
		fillText(join, apiCallLimit, "timeouts", "kubernetesAPICall")
		fillText(join, discoveryLimit, "timeouts", "discovery")
		fillText(join, controlPlaneLimit, "timeouts", "tlsBootstrap")
	} else {
		fillText(join, discoveryLimit, "discovery", "timeout")
	}
	c, err := g.finish(join, register(join, plan.NodeName), plan.Flags)
	if own := child(join, "controlPlane", "localAPIEndpoint"); err == nil && own != nil {
		err = own.Decode(&c.ownAPI)
	}
	return c, err
}
