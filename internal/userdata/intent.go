// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"nodeagent/internal/fault"
	"nodeagent/internal/secret"
)

// Mode is what a Kubernetes node is to become.
type Mode string

// Modes.
const (
	ModeNone             Mode = "none" // the userdata makes no Kubernetes node
	ModeInit             Mode = "init"
	ModeJoin             Mode = "join"
	ModeJoinControlPlane Mode = "joinControlPlane"
	ModeEtcd             Mode = "etcd"
)

// Flavor says whose way of describing a node the userdata follows.
type Flavor string

// Flavors.
const (
	FlavorNone       Flavor = ""
	FlavorCloudStack Flavor = "cloudstack"  // the scripts of CloudStack's Kubernetes service
	FlavorNodeConfig Flavor = "nodeconfig"  // nodeagent's own (docs/nodeconfig.md)
	FlavorClusterAPI Flavor = "cluster-api" // Cluster API's kubeadm bootstrap provider
	FlavorKubeadm    Flavor = "kubeadm"     // commands of the administrator that call kubeadm
)

// Who makes the node.
const (
	HandoverNodeagent = "nodeagent"
	HandoverCloudInit = "cloud-init"
)

// Intent is what the userdata asks for.
type Intent struct {
	Flavor  Flavor
	Mode    Mode
	Version string // of Kubernetes, as given; "" leaves it to the kubeadm on the ISO
	// Endpoint is host:port of the API server: what the cluster is reached by or,
	// of a node that joins, the server it asks.
	Endpoint         string
	AdvertiseAddress string // of this node's API server; "" leaves it to kubeadm
	BindPort         int    // of this node's API server; 0 leaves it to kubeadm
	NodeName         string // "" is the machine's host name
	CertSANs         []string
	Token            secret.Text
	TokenTTL         string // as given to kubeadm: "0" never expires (pain-point C26)
	Discovery        Discovery
	CertificateKey   secret.Text
	UploadCerts      bool
	IgnorePreflight  []string // names of kubeadm's preflight checks
	CRISocket        string
	Flags            Words  // every other word of the kubeadm line, in order
	KubeadmConfig    string // the file kubeadm is given
	// KubeadmDocuments is what that file holds, where it is for nodeagent to give.
	KubeadmDocuments secret.Text
	ExternalEtcd     []string // endpoints
	Etcd             *Etcd    // of mode etcd
	ExternalCNI      bool     // the network plugin does not come from the ISO
	Registry         *Registry
	WaitInterval     time.Duration // between the original's looks for the ISO
	WaitAttempts     int
	EjectISO         bool
	VRISO            string // address of the virtual router that serves the ISO's files
	SSHKeys          int

	Handover        string   // HandoverNodeagent or HandoverCloudInit
	HandoverReasons []string // why cloud-init, one line each, no secrets

	// Origins says where each value came from, by the keys of Explain.
	Origins map[string]string
}

// Discovery is how a node that joins knows that it talks to its cluster.
type Discovery struct {
	UnsafeSkipCA      bool     // it does not (pain-point K3)
	CAHashes          []string // of the cluster's CA, as sha256:...
	File              string   // a kubeconfig that holds the CA
	TLSBootstrapToken secret.Text
}

// Registry is a private image registry.
type Registry struct {
	Host     string
	URL      string
	Username string
	Password secret.Text
	Token    secret.Text
}

const hostPort = `([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?`

var (
	registryHostForm = pattern(`^` + hostPort + `$`)
	registryURLForm  = pattern(`^https?://` + hostPort + `(/[A-Za-z0-9._/-]*)?$`)
)

// reachable says that host and URL can be those of a registry.
func (r Registry) reachable() bool {
	return registryHostForm().MatchString(r.Host) && registryURLForm().MatchString(r.URL)
}

// Words are words of a command line, printed without those that look secret.
type Words []string

var secretFlag = pattern(`(?i)token|pass|pwd|secret|credential|key$`)

func (w Words) shown() []string {
	shown := make([]string, len(w))
	hide := false // the word before is a flag whose value is secret
	for i, word := range w {
		head, rest := word, ""
		if at := strings.IndexFunc(word, unicode.IsSpace); at >= 0 { // of several words in one only the first is known for what it is
			head, rest = word[:at], " "+secret.Redacted
		}
		name, _, given := strings.Cut(head, "=")
		secretive := strings.HasPrefix(word, "-") && secretFlag().MatchString(name)
		switch {
		case hide:
			shown[i] = secret.Redacted
		case secretive && given:
			shown[i] = name + "=" + secret.Redacted
		default:
			shown[i] = withoutSecrets(head) + rest
		}
		hide = secretive && !given && rest == ""
	}
	return shown
}

// String shows the words.
func (w Words) String() string { return strings.Join(w.shown(), " ") }

// GoString keeps %#v from showing secrets.
func (w Words) GoString() string { return fmt.Sprintf("%q", w.shown()) }

// MarshalJSON writes the list as String shows it.
func (w Words) MarshalJSON() ([]byte, error) { return json.Marshal(w.shown()) }

// Parse reads userdata. It is pure. A node is nodeagent's own when every part of
// its making was recognised; else Handover is HandoverCloudInit, with the reasons
// and a warning. A text that was cut off or cannot be meant is a problem of
// severity error. Nothing Parse says holds a secret.
func Parse(raw []byte) (Intent, []Problem) {
	intent := Intent{Mode: ModeNone, Handover: HandoverCloudInit, Origins: map[string]string{}}
	p := parser{intent: &intent}
	parts := p.parse(raw)
	if len(p.reasons) == 0 && intent.Mode != ModeNone && Err(p.problems) == nil {
		if _, err := seedOf(parts, intent.Flavor); err != nil {
			p.hand("%v", err)
		} else {
			intent.Handover = HandoverNodeagent
		}
	}
	intent.HandoverReasons = p.reasons
	if len(p.reasons) > 0 {
		p.problems = append(p.problems, Problem{SeverityWarning, fault.UserdataUnknown, "",
			"the userdata is left to cloud-init as it is: " + strings.Join(p.reasons, "; ")})
	}
	return intent, p.problems
}

// Joins says that the node becomes a member of a cluster that others have begun.
func (i Intent) Joins() bool { return i.Mode == ModeJoin || i.Mode == ModeJoinControlPlane }

type parser struct {
	intent       *Intent
	config       *cloudConfig
	merged       bool   // config is made of several
	ending       string // where its text ends
	cutTold      bool
	lostRegistry bool // a template has setup-containerd, what it renders to may not
	reasons      []string
	problems     []Problem
}

// maxReasons keeps a hostile text from filling the state file.
const maxReasons = 20

func (p *parser) hand(format string, args ...any) {
	reason := fmt.Sprintf(format, args...)
	switch {
	case slices.Contains(p.reasons, reason):
	case len(p.reasons) == maxReasons:
		p.reasons = append(p.reasons, "and more")
	case len(p.reasons) < maxReasons:
		p.reasons = append(p.reasons, reason)
	}
}

func (p *parser) invalid(key, format string, args ...any) {
	p.problems = append(p.problems, invalid(key, format, args...))
}

// parse finds out whose userdata it is and has it read.
func (p *parser) parse(raw []byte) []part {
	if len(bytes.TrimSpace(raw)) == 0 {
		p.hand("it is empty")
		return nil
	}
	parts, problems := unwrap(raw)
	for _, problem := range problems {
		if problem.Severity == SeverityError {
			problem.Message = "the userdata is not usable: " + problem.Message
		} else {
			problem.Message = "the userdata: " + problem.Message
		}
		p.problems = append(p.problems, problem)
	}
	if Err(problems) != nil {
		return nil
	}
	var natives, configs []part
	var scripts []string
	for _, part := range parts {
		at := ""
		if len(parts) > 1 {
			at = where(part)
		}
		if part.strange != "" {
			p.hand("%s%s", at, part.strange)
		}
		switch {
		case part.kind == partNodeConfig:
			natives = append(natives, part)
		case part.kind == partCloudConfig, part.mediaType == typeJinja:
			configs = append(configs, part)
		case part.kind == partScript || part.kind == partBoothook:
			scripts = append(scripts, at+"it is a script, which may prepare something for the node")
		}
	}
	if len(configs) > 0 {
		p.readConfigs(raw, parts, configs)
	}
	if len(natives) > 0 {
		p.native(natives)
		return parts
	}
	for _, script := range scripts {
		p.hand("%s", script)
	}
	if p.config != nil {
		p.dispatch()
	}
	return parts
}

// readConfigs reads the cloud-configs as the one that cloud-init makes of them or,
// where that is not known, each alone: enough to say what kind of node it is.
func (p *parser) readConfigs(raw []byte, parts, configs []part) {
	merged, strange := mergeCloudConfigs(parts)
	if i := slices.IndexFunc(configs, func(config part) bool { return config.strange != "" }); i >= 0 {
		strange = configs[i].strange
	}
	p.loseRegistry(configs)
	if strange == "" {
		from := filesOf(configs)
		origin, label, text := from.origin, from.origin, from.text
		if origin == "" || origin == "(jinja)" { // not wrapped
			origin, label, text = "user-data", "the text", raw
		}
		p.ending, p.merged = endingOf(label, text), len(configs) > 1
		config, err := readCloudConfig(merged)
		if err != nil {
			p.unreadable(err, merged)
			return
		}
		p.config = config
		p.config.tell(origin, text, merged)
		p.intent.SSHKeys = p.config.keys
		p.intent.set("sshKeys", p.config.origin+" (ssh_authorized_keys)")
		for _, reason := range p.config.strange {
			p.hand("%s", reason)
		}
		return
	}
	if len(p.reasons) == 0 {
		p.hand("%s", strange)
	}
	for _, part := range configs {
		config, err := readCloudConfig(part.text)
		if err != nil {
			continue
		}
		config.tell(part.origin, nil, nil)
		if part.origin == "" || part.origin == "(jinja)" {
			config.tell("user-data", raw, part.text)
		}
		config.strange = append(config.strange, strange)
		p.intent.SSHKeys += config.keys
		p.intent.set("sshKeys", "user-data (ssh_authorized_keys)")
		if p.config == nil || len(config.files) > len(p.config.files) {
			p.config = config
		}
	}
}

// filesOf returns the cloud-config whose files are written.
func filesOf(configs []part) part {
	for _, part := range slices.Backward(configs) {
		if bytes.Contains(part.text, []byte("\nwrite_files:")) {
			return part
		}
	}
	return configs[0]
}

func (p *parser) dispatch() {
	etcd, isEtcd := p.config.find(etcdScript)
	setup, hasSetup := p.config.find(setupScript)
	deploy, hasDeploy := p.config.find(deployScript)
	switch {
	case isEtcd:
		p.etcd(etcd)
	case hasSetup || hasDeploy:
		p.cloudstack(setup, deploy)
	case p.ownKubeadm():
	case len(p.config.strange) > 0:
		// Nothing more was looked at.
	case slices.ContainsFunc(p.config.files, func(f configFile) bool { return strings.HasPrefix(f.path, cloudstackPKI) }):
		p.cut(setupScript, "it has CloudStack's certificates but no %s", setupScript)
	default:
		p.hand("it has neither %s nor %s", setupScript, deployScript)
	}
}

// set notes where the value of a field came from.
func (i *Intent) set(key, from string) {
	if i.Origins == nil {
		i.Origins = map[string]string{}
	}
	i.Origins[key] = from
}
