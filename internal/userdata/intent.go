// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/fault"
	"nodeagent/internal/secret"
)

// Mode is what a Kubernetes node is to become.
type Mode string

// Modes.
const (
	ModeNone             Mode = "none" // no CKS userdata
	ModeInit             Mode = "init"
	ModeJoin             Mode = "join"
	ModeJoinControlPlane Mode = "joinControlPlane"
	ModeEtcd             Mode = "etcd"
)

// Who makes the node.
const (
	HandoverNodeagent = "nodeagent"
	HandoverCloudInit = "cloud-init"
)

// Intent is what the userdata asks for.
type Intent struct {
	Mode           Mode
	Version        string // of Kubernetes, as given; "" leaves it to the kubeadm on the ISO
	Endpoint       string // host:port of the API server
	CertSANs       []string
	Token          secret.Text
	TokenTTL       string // as given to kubeadm: "0" never expires (pain-point C26)
	CertificateKey secret.Text
	UploadCerts    bool
	CRISocket      string
	Flags          []string // every other word of the kubeadm line, in order
	ExternalEtcd   []string // endpoints
	ExternalCNI    bool     // the network plugin does not come from the ISO
	Registry       *Registry
	WaitInterval   time.Duration // between the original's looks for the ISO
	WaitAttempts   int
	EjectISO       bool
	SSHKeys        int

	Handover        string   // HandoverNodeagent or HandoverCloudInit
	HandoverReasons []string // why cloud-init, one line each, no secrets
}

// Registry is a private image registry.
type Registry struct {
	Host     string
	URL      string
	Username string
	Password secret.Text
	Token    secret.Text
}

// Files of CloudStack's templates (cloudstack-contract.md 4.4).
const (
	setupScript      = "/opt/bin/setup-kube-system"
	deployScript     = "/opt/bin/deploy-kube-system"
	setupUnit        = "/etc/systemd/system/setup-kube-system.service"
	deployUnit       = "/etc/systemd/system/deploy-kube-system.service"
	containerdScript = "/opt/bin/setup-containerd"
	etcdScript       = "/opt/bin/setup-etcd-node"
	kubeadmConfig    = "/etc/kubernetes/kubeadm-config.yaml"
	cloudstackPKI    = "/etc/kubernetes/pki/cloudstack/"
)

// isOurs says that nodeagent looks into a file of write_files.
func isOurs(name string) bool {
	return slices.Contains([]string{setupScript, deployScript, setupUnit, deployUnit, containerdScript, etcdScript, kubeadmConfig}, name)
}

// What CloudStack's global settings have for control nodes by default.
const (
	defaultInterval = 15 * time.Second
	defaultAttempts = 100
	maxInterval     = 3600
	maxAttempts     = 100000
)

// Parse reads userdata. It is pure. A node is nodeagent's own when every part of
// its making was recognised; else Handover is HandoverCloudInit, with the reasons
// and a warning. A text that was cut off or cannot be meant is a problem of
// severity error. Nothing Parse says holds a secret.
func Parse(raw []byte) (Intent, []Problem) {
	intent := Intent{Mode: ModeNone, Handover: HandoverCloudInit, WaitInterval: defaultInterval, WaitAttempts: defaultAttempts}
	p := parser{intent: &intent, size: len(raw)}
	p.parse(raw)
	if len(p.reasons) == 0 && intent.Mode == ModeInit && Err(p.problems) == nil {
		intent.Handover = HandoverNodeagent
	}
	intent.HandoverReasons = p.reasons
	if len(p.reasons) > 0 {
		p.problems = append(p.problems, Problem{SeverityWarning, fault.UserdataUnknown, "",
			"the userdata is left to cloud-init as it is: " + strings.Join(p.reasons, "; ")})
	}
	return intent, p.problems
}

type parser struct {
	intent   *Intent
	size     int
	config   *cloudConfig
	reasons  []string
	problems []Problem
}

func (p *parser) hand(format string, args ...any) {
	p.reasons = append(p.reasons, fmt.Sprintf(format, args...))
}

func (p *parser) invalid(key, format string, args ...any) {
	p.problems = append(p.problems, invalid(key, format, args...))
}

// cut reports what a text lacks that its beginning promised. Where the text itself
// is of a kind that is not read wholly, something missing says nothing.
func (p *parser) cut(key, format string, args ...any) {
	if p.config != nil && len(p.config.strange) > 0 {
		return
	}
	p.invalid(key, "%s; the text is %d bytes long: if that is all of it, it was cut off, as happens when it grows over the setting vm.userdata.max.length",
		fmt.Sprintf(format, args...), p.size)
}

func (p *parser) parse(raw []byte) {
	if len(raw) > MaxUserdata {
		p.invalid("", "it is larger than %d bytes", MaxUserdata)
		return
	}
	if kind := format(raw); kind != "" {
		p.hand("it is %s", kind)
		return
	}
	var err error
	if p.config, err = readCloudConfig(raw); err != nil {
		p.cut("", "%v", err)
		return
	}
	p.intent.SSHKeys = p.config.keys
	p.reasons = append(p.reasons, p.config.strange...)

	_, etcd := p.config.file(etcdScript)
	setup, hasSetup := p.config.file(setupScript)
	deploy, hasDeploy := p.config.file(deployScript)
	switch {
	case len(p.config.strange) > 0 && !hasSetup && !hasDeploy && !etcd:
		// Nothing was looked at.
	case etcd:
		p.etcd()
	case hasSetup || hasDeploy:
		p.node(setup, deploy)
	case slices.ContainsFunc(p.config.files, func(f configFile) bool { return strings.HasPrefix(f.path, cloudstackPKI) }):
		p.cut(setupScript, "it has CloudStack's certificates but no %s", setupScript)
	default:
		p.hand("it has neither %s nor %s", setupScript, deployScript)
	}
}

func (p *parser) etcd() {
	p.intent.Mode = ModeEtcd
	script, _ := p.config.file(etcdScript)
	p.waits(p.shell(etcdScript, script))
	if !p.config.hasRuncmd {
		p.cut("runcmd", "it has no runcmd")
	}
	p.hand("it makes an etcd node, which this nodeagent leaves to cloud-init")
}

// node reads the userdata of a control or worker node.
func (p *parser) node(setupText, deployText string) {
	if setupText == "" {
		p.cut(setupScript, "it has %s but no %s", deployScript, setupScript)
	}
	if deployText == "" {
		p.cut(deployScript, "it has %s but no %s", setupScript, deployScript)
	}
	setup, deploy := p.shell(setupScript, setupText), p.shell(deployScript, deployText)
	p.waits(setup)
	p.intent.EjectISO = slices.Contains(setup.vars["EJECT_ISO_FROM_OS"], "true")
	if slices.Contains(setup.vars["ATTEMPT_ONLINE_INSTALL"], "true") {
		p.hand("%s installs from the internet", setupScript)
	}
	p.reasons = append(p.reasons, strangers(path.Base(setupScript), setup)...)
	p.reasons = append(p.reasons, strangers(path.Base(deployScript), deploy)...)
	// 4.16.0 made the node in the setup script, all later ones in the deploy script.
	p.kubeadm(setup, deploy, append(kubeadmCalls(deploy), kubeadmCalls(setup)...))
	p.units()
	p.runcmd()
}

// shell reads a script and reports one that ends in the middle.
func (p *parser) shell(name, text string) *shellScript {
	script := readShell(text)
	if text != "" && script.open != "" {
		p.cut(name, "%s ends in the middle: %s is not closed", name, strconv.Quote(script.open))
	}
	return script
}

func (p *parser) kubeadm(setup, deploy *shellScript, calls []kubeadmCall) {
	if len(calls) == 0 {
		if len(deploy.commands) > 0 {
			p.cut(deployScript, "neither script has a kubeadm init or join line")
		}
		return
	}
	var plain, configured []kubeadmCall
	for _, call := range calls {
		if call.config != "" {
			configured = append(configured, call)
		} else {
			plain = append(plain, call)
		}
	}
	external := deploy.vars["EXTERNAL_ETCD_NODES"]
	var call kubeadmCall
	switch {
	case len(configured) > 0 && (len(plain) == 0 || !slices.Equal(external, []string{"false"})):
		call = configured[0]
		p.intent.ExternalEtcd = p.etcdEndpoints()
		p.hand("%s calls kubeadm with a configuration file for external etcd", deployScript)
	case len(plain) > 1:
		p.hand("the scripts call kubeadm init or join in %d places", len(plain))
		call = plain[0]
	default:
		call = plain[0]
	}
	p.problems = append(p.problems, readKubeadm(p.intent, call)...)
	if slices.ContainsFunc(call.args, func(arg string) bool { return strings.Contains(arg, "$") }) {
		p.hand("the kubeadm line in line %d depends on a variable", call.line)
	}
	if p.intent.Mode == ModeJoin || p.intent.Mode == ModeJoinControlPlane {
		p.hand("it joins a cluster (%s), which this nodeagent leaves to cloud-init", p.intent.Mode)
	}
	cni, given := deploy.vars["EXTERNAL_CNI_PLUGIN"]
	p.intent.ExternalCNI = slices.Equal(cni, []string{"true"})
	if given && !p.intent.ExternalCNI && !slices.Equal(cni, []string{"false"}) {
		p.hand("%s does not say plainly whether the network plugin comes from the ISO", deployScript)
	}
}

// waits reads how long and how often the script looks for the ISO. A value the
// script itself replaces when it is 0 or missing leaves the default.
func (p *parser) waits(script *shellScript) {
	if n := firstNumber(script.vars["OFFLINE_INSTALL_ATTEMPT_SLEEP"], maxInterval); n > 0 {
		p.intent.WaitInterval = time.Duration(n) * time.Second
	}
	if n := firstNumber(script.vars["MAX_OFFLINE_INSTALL_ATTEMPTS"], maxAttempts); n > 0 {
		p.intent.WaitAttempts = n
	}
}

func firstNumber(values []string, most int) int {
	for _, value := range values {
		if n, err := strconv.Atoi(value); err == nil && n > 0 {
			return min(n, most)
		}
	}
	return 0
}

// etcdEndpoints reads the endpoints of external etcd from kubeadm's configuration
// (kubeadm.k8s.io ClusterConfiguration, etcd.external.endpoints).
func (p *parser) etcdEndpoints() []string {
	content, _ := p.config.file(kubeadmConfig)
	decoder := yaml.NewDecoder(strings.NewReader(content))
	for range 8 {
		var document struct {
			Etcd struct {
				External struct {
					Endpoints []string `yaml:"endpoints"`
				} `yaml:"external"`
			} `yaml:"etcd"`
		}
		if err := decoder.Decode(&document); err != nil {
			return nil
		}
		if endpoints := document.Etcd.External.Endpoints; len(endpoints) > 0 {
			return endpoints
		}
	}
	return nil
}

// unitLine is what CloudStack's units consist of; everything else is an edit.
var unitLine = regexp.MustCompile(`^(\[(Unit|Service|Install)\]|(Description|After|Requires|Wants|Type|Restart|RestartSec|WantedBy|` +
	`StartLimitInterval|StartLimitIntervalSec|StartLimitBurst)=.*|ExecStart=(/bin/bash )?/opt/bin/(setup|deploy)-kube-system|` +
	`ExecStartPre=/usr/bin/curl -k https://[^ ]+:6443/version|)$`)

func (p *parser) units() {
	if _, ok := p.config.file(deployUnit); !ok {
		p.cut(deployUnit, "it has no %s", deployUnit)
	}
	for _, name := range []string{setupUnit, deployUnit} {
		content, _ := p.config.file(name)
		for line := range strings.Lines(content) {
			line = strings.TrimSpace(line)
			if !unitLine.MatchString(line) {
				key, _, _ := strings.Cut(line, "=")
				p.hand("%s has a setting of its own (%s)", path.Base(name), quote(key))
			}
		}
	}
}

// runcmd checks that the commands start what was written, and that none of an
// administrator's own gets in nodeagent's way.
func (p *parser) runcmd() {
	if !p.config.hasRuncmd {
		p.cut("runcmd", "it has no runcmd")
		return
	}
	setup, deploy := false, false
	for i, entry := range p.config.runcmd {
		for _, c := range entry.script.commands {
			words := strings.Join(c.words, " ")
			if c.words == nil || slices.Contains([]string{"[", "[[", "test"}, c.words[0]) {
				continue
			}
			setup = setup || strings.Contains(words, "setup-kube-system")
			deploy = deploy || strings.Contains(words, "deploy-kube-system")
			if path.Base(c.words[0]) == "kubeadm" {
				p.hand("runcmd entry %d calls kubeadm", i+1)
			}
		}
		switch {
		case callsContainerdScript(entry):
			p.registry()
		case touchesContainerd(entry) && !configuresContainerd(entry):
			p.hand("runcmd entry %d writes containerd's configuration", i+1)
		}
	}
	for _, file := range p.config.files {
		if file.path == containerdConfig {
			p.hand("it writes %s", containerdConfig)
		}
	}
	if !setup {
		p.cut("runcmd", "runcmd does not run %s", setupScript)
	}
	if !deploy {
		p.cut("runcmd", "runcmd does not start deploy-kube-system")
	}
}

const containerdConfig = "/etc/containerd/config.toml"

// configuresContainerd says that an entry of runcmd does only what nodeagent does
// with containerd's configuration.
func configuresContainerd(entry runEntry) bool {
	programs, files := containerdCommands(), containerdFiles()
	writes := false
	for _, c := range entry.script.commands {
		if !knows(entry.script, c, programs, files) {
			return false
		}
		// A bare daemon-reload or mkdir may be meant for something else.
		writes = writes || strings.Contains(strings.Join(append(slices.Clip(c.words), c.writes...), " "), "containerd")
	}
	return writes && entry.script.beyond == "" && entry.script.open == ""
}

func touchesContainerd(entry runEntry) bool {
	return slices.ContainsFunc(entry.script.commands, func(c shellCommand) bool {
		return slices.ContainsFunc(append(slices.Clip(c.words), c.writes...), func(word string) bool {
			return strings.Contains(word, containerdConfig)
		})
	})
}

func callsContainerdScript(entry runEntry) bool {
	return slices.ContainsFunc(entry.script.commands, func(c shellCommand) bool {
		return slices.Contains(c.words, containerdScript)
	})
}

var (
	registryHost  = regexp.MustCompile(`registry\.mirrors\.\\*"([^"\\]+)\\*"`)
	registryURL   = regexp.MustCompile(`endpoint *= *\[\\*"([^"\\]+)\\*"`)
	registryValue = regexp.MustCompile(`(username|password|identitytoken) *= *\\*"([^"\\]*)\\*"`)
)

// registry reads the private registry that setup-containerd would set up. The
// script keeps its placeholders where the cluster has none.
func (p *parser) registry() {
	content, ok := p.config.file(containerdScript)
	if !ok {
		p.cut(containerdScript, "runcmd runs %s, which it does not have", containerdScript)
		return
	}
	if strings.Contains(content, "{{") {
		return
	}
	registry := &Registry{}
	if match := registryHost.FindStringSubmatch(content); match != nil {
		registry.Host = match[1]
	}
	if match := registryURL.FindStringSubmatch(content); match != nil {
		registry.URL = match[1]
	}
	for _, match := range registryValue.FindAllStringSubmatch(content, 8) {
		switch match[1] {
		case "username":
			registry.Username = match[2]
		case "password":
			registry.Password = secret.New(match[2])
		case "identitytoken":
			registry.Token = secret.New(match[2])
		}
	}
	p.intent.Registry = registry
	p.hand("it sets up a private registry, which this nodeagent leaves to cloud-init")
}
