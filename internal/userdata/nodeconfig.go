// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/secret"
)

// NodeConfig is a node in nodeagent's own words (docs/nodeconfig.md), for those who
// write userdata themselves. docs/nodeconfig.schema.json says the same; a test
// holds the two together.
type NodeConfig struct {
	APIVersion string               `yaml:"apiVersion"`
	Kind       string               `yaml:"kind"`
	Mode       string               `yaml:"mode"`
	Kubernetes NodeConfigKubernetes `yaml:"kubernetes"`
	Discovery  NodeConfigDiscovery  `yaml:"discovery"`
	Etcd       NodeConfigEtcd       `yaml:"etcd"`
	CNI        NodeConfigCNI        `yaml:"cni"`
	Registry   NodeConfigRegistry   `yaml:"registry"`
	ISO        NodeConfigISO        `yaml:"iso"`
}

// NodeConfigKubernetes is what kubeadm is told.
type NodeConfigKubernetes struct {
	Version               string      `yaml:"version"`
	Endpoint              string      `yaml:"endpoint"`
	AdvertiseAddress      string      `yaml:"advertiseAddress"`
	BindPort              int         `yaml:"bindPort"`
	NodeName              string      `yaml:"nodeName"`
	CertSANs              []string    `yaml:"certSANs"`
	Token                 secret.Text `yaml:"token"`
	TokenTTL              string      `yaml:"tokenTTL"`
	CertificateKey        secret.Text `yaml:"certificateKey"`
	UploadCerts           bool        `yaml:"uploadCerts"`
	CRISocket             string      `yaml:"criSocket"`
	IgnorePreflightErrors []string    `yaml:"ignorePreflightErrors"`
	KubeadmFlags          []string    `yaml:"kubeadmFlags"`
}

// NodeConfigDiscovery is how a node that joins knows its cluster.
type NodeConfigDiscovery struct {
	CACertHashes             []string `yaml:"caCertHashes"`
	UnsafeSkipCAVerification bool     `yaml:"unsafeSkipCAVerification"`
	Kubeconfig               string   `yaml:"kubeconfig"`
}

// NodeConfigEtcd is etcd outside of the cluster: its endpoints for a control node,
// the rest for a member of it.
type NodeConfigEtcd struct {
	Endpoints      []string `yaml:"endpoints"`
	Name           string   `yaml:"name"`
	Address        string   `yaml:"address"`
	InitialCluster string   `yaml:"initialCluster"`
	State          string   `yaml:"state"`
	Token          string   `yaml:"token"`
	Flags          []string `yaml:"flags"`
}

// NodeConfigCNI is about the network plugin.
type NodeConfigCNI struct {
	External bool `yaml:"external"`
}

// NodeConfigRegistry is a private image registry.
type NodeConfigRegistry struct {
	Host     string      `yaml:"host"`
	URL      string      `yaml:"url"`
	Username string      `yaml:"username"`
	Password secret.Text `yaml:"password"`
	Token    secret.Text `yaml:"token"`
}

// NodeConfigISO is about the binaries ISO.
type NodeConfigISO struct {
	WaitInterval string `yaml:"waitInterval"`
	WaitAttempts int    `yaml:"waitAttempts"`
	Eject        bool   `yaml:"eject"`
	Router       string `yaml:"router"`
}

const (
	nodeConfigVersion = "nodeagent/v1"
	nodeConfigKind    = "NodeConfig"
)

// native reads a NodeConfig. There is nobody else who could make the node of it:
// what this version does not do is an error, and so is whatever in the rest of the
// userdata would get in its way.
func (p *parser) native(parts []part) {
	p.intent.Flavor, p.intent.WaitInterval, p.intent.WaitAttempts = FlavorNodeConfig, defaultInterval, defaultAttempts
	if len(parts) > 1 {
		p.invalid("", "it has %d documents of kind NodeConfig; one was expected", len(parts))
	}
	label := cmp.Or(parts[0].origin, "user-data")
	config, lines, found := readNodeConfig(parts[0].text)
	r := nativeReader{p, config, lines, label}
	for _, problem := range found {
		if problem.line == 0 { // of the whole document
			r.invalid("", "%s: %s", label, problem.message)
			continue
		}
		r.wrong(problem.key, problem.line, "%s", problem.message)
	}
	r.fill()
	if Err(p.problems) == nil {
		r.judge()
	}
}

type nativeReader struct {
	*parser
	given *NodeConfig
	lines map[string]int
	label string
}

func (r nativeReader) wrong(key string, line int, format string, args ...any) {
	if line == 0 {
		line = r.lines[key]
	}
	at := r.label
	if line > 0 {
		at = fmt.Sprintf("%s line %d", r.label, line)
	}
	r.invalid(key, "%s: %s %s", at, cmp.Or(key, "the NodeConfig"), fmt.Sprintf(format, args...))
}

// fill turns the NodeConfig into an intent.
func (r nativeReader) fill() {
	i, c, k := r.intent, r.given, r.given.Kubernetes
	if c.APIVersion != nodeConfigVersion {
		r.wrong("apiVersion", 0, "is %s; %s was expected", quote(c.APIVersion), nodeConfigVersion)
	}
	if c.Kind != nodeConfigKind {
		r.wrong("kind", 0, "is %s; %s was expected", quote(c.Kind), nodeConfigKind)
	}
	modes := []Mode{ModeInit, ModeJoin, ModeJoinControlPlane, ModeEtcd}
	if i.Mode = Mode(c.Mode); !slices.Contains(modes, i.Mode) {
		i.Mode = ModeNone
		r.wrong("mode", 0, "is %s; one of %s was expected", quote(c.Mode), strings.Trim(fmt.Sprint(modes), "[]"))
	}
	i.Version, i.Endpoint, i.AdvertiseAddress, i.BindPort, i.NodeName, i.CertSANs = k.Version, k.Endpoint, k.AdvertiseAddress, k.BindPort, k.NodeName, k.CertSANs
	i.Token, i.TokenTTL, i.CertificateKey, i.UploadCerts = k.Token, k.TokenTTL, k.CertificateKey, k.UploadCerts
	i.CRISocket, i.IgnorePreflight, i.Flags = k.CRISocket, k.IgnorePreflightErrors, k.KubeadmFlags
	i.Discovery = Discovery{UnsafeSkipCA: c.Discovery.UnsafeSkipCAVerification, CAHashes: c.Discovery.CACertHashes, File: c.Discovery.Kubeconfig}
	i.ExternalCNI = c.CNI.External
	if c.Registry != (NodeConfigRegistry{}) {
		registry := Registry(c.Registry)
		i.Registry = &registry
		if !registry.reachable() {
			r.wrong("registry", 0, "needs a host such as registry.example.com:5000 and a url such as https://registry.example.com:5000")
		}
	}
	i.EjectISO, i.VRISO = c.ISO.Eject, c.ISO.Router
	if c.ISO.WaitInterval != "" {
		interval, err := time.ParseDuration(c.ISO.WaitInterval)
		if err != nil || interval < time.Second || interval > maxInterval*time.Second {
			r.wrong("iso.waitInterval", 0, "is %s; a duration from 1s to 1h was expected", quote(c.ISO.WaitInterval))
		} else {
			i.WaitInterval = interval
		}
	}
	if n := c.ISO.WaitAttempts; n < 0 || n > maxAttempts {
		r.wrong("iso.waitAttempts", 0, "is %d; 1 to %d were expected", n, maxAttempts)
	} else if n > 0 {
		i.WaitAttempts = n
	}
	if i.VRISO != "" && !isRouter(i.VRISO) {
		r.wrong("iso.router", 0, "is %s; an address was expected", quote(i.VRISO))
	}
	if k.BindPort < 0 || k.BindPort > 65535 {
		r.wrong("kubernetes.bindPort", 0, "is %d; a port was expected", k.BindPort)
	}
	r.etcd()
	r.flags()
	r.origins()
	if i.Mode == ModeEtcd {
		return
	}
	for _, wrong := range checkIntent(i, false) {
		if (i.Mode == ModeInit || i.Mode == ModeNone) && wrong.flag == "--token" && i.Token.Empty() {
			continue // kubeadm makes one itself
		}
		r.wrong(wrong.key, 0, "%s", wrong.message)
	}
}

func (r nativeReader) etcd() {
	e := r.given.Etcd
	r.intent.ExternalEtcd = e.Endpoints
	member := e.Name + e.Address + e.InitialCluster + e.State + e.Token + strings.Join(e.Flags, "")
	switch {
	case r.intent.Mode != ModeEtcd && member != "":
		r.wrong("etcd", 0, "describes a member of etcd, which only a node of mode etcd is")
	case r.intent.Mode != ModeEtcd:
	case e.Name == "" || e.Address == "" || e.InitialCluster == "":
		r.wrong("etcd", 0, "needs name, address and initialCluster")
	case !isHost(e.Address):
		r.wrong("etcd.address", 0, "is %s; an address was expected", quote(e.Address))
	default:
		member := newEtcd(e)
		r.intent.Etcd = member
		for _, wrong := range member.check() {
			r.wrong("etcd", 0, "%s", wrong)
		}
		if reason := member.beyond(); reason != "" {
			r.wrong("etcd.flags", 0, "%s", reason)
		}
	}
}

// flags refuses flags that have a key: two places for one thing would differ some
// day.
func (r nativeReader) flags() {
	for _, flag := range r.given.Kubernetes.KubeadmFlags {
		name, _, _ := strings.Cut(flag, "=")
		if strings.HasPrefix(name, "-") && strings.ContainsFunc(name, unicode.IsSpace) {
			r.wrong("kubernetes.kubeadmFlags", 0, "has a flag with a blank in its name; a value is an item of its own or follows =")
			continue
		}
		if key := new(Intent).flag(name, "1", true); key != "" {
			r.wrong("kubernetes.kubeadmFlags", 0, "has %s, which has a key of its own", quote(name))
		}
	}
}

// origins notes the lines of what was given.
func (r nativeReader) origins() {
	for key, path := range map[string]string{
		"mode": "mode", "version": "kubernetes.version", "endpoint": "kubernetes.endpoint", "advertiseAddress": "kubernetes.advertiseAddress",
		"bindPort": "kubernetes.bindPort", "nodeName": "kubernetes.nodeName", "certSANs": "kubernetes.certSANs", "token": "kubernetes.token",
		"tokenTTL": "kubernetes.tokenTTL", "certificateKey": "kubernetes.certificateKey", "uploadCerts": "kubernetes.uploadCerts",
		"criSocket": "kubernetes.criSocket", "ignorePreflight": "kubernetes.ignorePreflightErrors", "flags": "kubernetes.kubeadmFlags",
		"discovery": "discovery", "etcd": "etcd", "externalEtcd": "etcd.endpoints", "externalCNI": "cni.external", "registry": "registry",
		"waitInterval": "iso.waitInterval", "waitAttempts": "iso.waitAttempts", "ejectISO": "iso.eject", "vrISO": "iso.router",
	} {
		if line := r.lines[path]; line > 0 {
			r.intent.set(key, fmt.Sprintf("%s line %d (%s)", r.label, line, path))
		}
	}
}

// judge refuses what nobody would do.
func (r nativeReader) judge() {
	if r.config != nil {
		_, setup := r.config.find(setupScript)
		_, deploy := r.config.find(deployScript)
		_, etcd := r.config.find(etcdScript)
		_, kubeadm := r.kubeadmEntry()
		if setup || deploy || etcd || kubeadm {
			r.invalid("", "it has a NodeConfig, and commands of its own that make a Kubernetes node; one of the two was expected")
			return
		}
		for i, entry := range r.config.runcmd {
			if entry.about("/etc/containerd") || entry.about("kubeadm") {
				r.hand("runcmd entry %d calls kubeadm or writes containerd's configuration", i+1)
			}
		}
		for _, file := range r.config.files {
			if watched().MatchString(file.path) {
				r.hand("it writes %s", quote(file.path))
			}
		}
	}
	for _, reason := range r.reasons {
		r.invalid("", "%s, which does not go with a NodeConfig", reason)
	}
	for _, reason := range r.leftTo() {
		r.invalid("", "%s, which this nodeagent does not do for a NodeConfig, and nobody else can", strings.TrimSuffix(reason, leftSuffix))
	}
	r.reasons = nil
}

// keyProblem is something wrong with a key of a NodeConfig.
type keyProblem struct {
	key     string
	line    int
	message string
}

// readNodeConfig reads a document strictly: a key it does not know is an error. It
// returns all problems, and the line of each key that was given.
func readNodeConfig(raw []byte) (*NodeConfig, map[string]int, []keyProblem) {
	config, lines := &NodeConfig{}, map[string]int{}
	root, why, strange := readYAML(raw)
	if message := cmp.Or(why, strange); message != "" {
		return config, lines, []keyProblem{{message: message}}
	}
	reader := nodeConfigReader{lines: lines}
	reader.mapping("", root, reflect.ValueOf(config).Elem())
	return config, lines, reader.problems
}

type nodeConfigReader struct {
	lines    map[string]int
	problems []keyProblem
}

const maxKeyProblems = 50

func (r *nodeConfigReader) wrong(key string, node *yaml.Node, format string, args ...any) {
	if len(r.problems) < maxKeyProblems {
		r.problems = append(r.problems, keyProblem{key, node.Line, fmt.Sprintf(format, args...)})
	}
}

func (r *nodeConfigReader) mapping(at string, node *yaml.Node, into reflect.Value) {
	if node.Kind != yaml.MappingNode {
		r.wrong(at, node, "is not a mapping of keys")
		return
	}
	names := map[string]int{}
	var known []string
	for i := range into.NumField() {
		name := into.Type().Field(i).Tag.Get("yaml")
		names[name], known = i, append(known, name)
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i].Value, node.Content[i+1]
		key := strings.TrimPrefix(at+"."+name, ".")
		field, ok := names[name]
		switch {
		case !ok:
			r.wrong(at, node.Content[i], "has no key %s; known are %s", quote(name), strings.Join(known, ", "))
		case r.lines[key] > 0:
			r.wrong(key, node.Content[i], "is given twice")
		default:
			r.lines[key] = node.Content[i].Line
			r.value(key, value, into.Field(field))
		}
	}
}

func (r *nodeConfigReader) value(key string, node *yaml.Node, into reflect.Value) {
	if into.Kind() == reflect.Struct && into.Type() != reflect.TypeFor[secret.Text]() {
		r.mapping(key, node, into)
		return
	}
	if into.Kind() == reflect.Slice {
		if node.Kind != yaml.SequenceNode {
			r.wrong(key, node, "is not a list")
			return
		}
		for _, item := range node.Content {
			text, err := scalar(item)
			if err != nil {
				r.wrong(key, item, "has an item that is %v", err)
				continue
			}
			into.Set(reflect.Append(into, reflect.ValueOf(text)))
		}
		return
	}
	text, err := scalar(node)
	if err != nil {
		r.wrong(key, node, "is %v", err)
		return
	}
	switch into.Kind() {
	case reflect.String:
		into.SetString(text)
	case reflect.Bool:
		if node.ShortTag() != "!!bool" || text != "true" && text != "false" {
			r.wrong(key, node, "is not true or false")
			return
		}
		into.SetBool(text == "true")
	case reflect.Int:
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			r.wrong(key, node, "is not a number")
			return
		}
		into.SetInt(n)
	default:
		into.Set(reflect.ValueOf(secret.New(text)))
	}
}

// scalar returns a value as it is written: 1.30 is a version, not a number.
func scalar(node *yaml.Node) (string, error) {
	switch {
	case node.Kind != yaml.ScalarNode:
		return "", errors.New("not a single value")
	case node.ShortTag() == "!!null" || node.Value == "":
		return "", errors.New("empty")
	}
	return node.Value, nil
}
