// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeagent/internal/secret"
)

// This file reads what the scripts of CloudStack's Kubernetes service make of a node
// (cloudstack-contract.md, section 4), from the commands they would run: neither the
// names of their variables nor their order matter. What is not known is never passed
// over: then all of the userdata is cloud-init's.

// Files of CloudStack's templates (cloudstack-contract.md 4.4).
const (
	setupScript      = "/opt/bin/setup-kube-system"
	deployScript     = "/opt/bin/deploy-kube-system"
	setupUnit        = "/etc/systemd/system/setup-kube-system.service"
	deployUnit       = "/etc/systemd/system/deploy-kube-system.service"
	containerdScript = "/opt/bin/setup-containerd"
	etcdScript       = "/opt/bin/setup-etcd-node"
	etcdUnit         = "/etc/systemd/system/etcd.service"
	kubeadmConfig    = "/etc/kubernetes/kubeadm-config.yaml"
	cloudstackPKI    = "/etc/kubernetes/pki/cloudstack/"
)

// isOurs says that nodeagent looks into a file of write_files before it knows what
// kind of userdata it is.
func isOurs(name string) bool {
	return slices.Contains([]string{setupScript, deployScript, setupUnit, deployUnit, containerdScript, etcdScript, etcdUnit, kubeadmConfig}, name)
}

// What CloudStack's global settings have for control nodes by default.
const (
	defaultInterval = 15 * time.Second
	defaultAttempts = 100
	maxInterval     = 3600
	maxAttempts     = 100000
)

// script reads a script and reports one that ends in the middle.
func (p *parser) script(file configFile) *shellScript {
	script := readShell(file.content)
	if script.open != "" {
		p.cut(file.path, "%s ends in the middle: %s is not closed", file.path, strconv.Quote(script.open))
	}
	return script
}

// cloudstack reads the userdata of a control or worker node of CloudStack.
func (p *parser) cloudstack(setupFile, deployFile configFile) {
	p.intent.Flavor, p.intent.WaitInterval, p.intent.WaitAttempts = FlavorCloudStack, defaultInterval, defaultAttempts
	p.missing(setupScript, setupFile.content == "")
	p.missing(deployScript, deployFile.content == "")
	setup, deploy := p.script(setupFile), p.script(deployFile)
	strange := append(strangers(path.Base(setupScript), setup, nodeCommands()), strangers(path.Base(deployScript), deploy, nodeCommands())...)
	// 4.16.0 made the node in the setup script, all later ones in the deploy script.
	calls := append(kubeadmCalls(deploy, deployFile.source()), kubeadmCalls(setup, setupFile.source())...)
	if len(calls) == 0 && len(deploy.commands) > 0 && len(strange) == 0 {
		p.cut(deployScript, "neither script has a kubeadm init or join line")
	}
	if len(calls) > 1 {
		p.hand("the scripts call kubeadm init or join in %d places", len(calls))
	}
	if len(calls) > 0 {
		p.kubeadm(calls[0])
	}
	p.iso(setup, setupFile.source())
	if p.intent.Mode == ModeInit {
		p.addOns(deploy, deployFile.source())
	}
	p.reasons = append(p.leftTo(), p.reasons...)
	for _, reason := range strange {
		p.hand("%s", reason)
	}
	p.units()
	p.runcmd()
	p.surroundings()
}

// missing reports a file that is not there, though the text began as if it would
// be: cut off, or forgotten. Where the commands do not need it, it was left out.
func (p *parser) missing(name string, is bool) {
	needed := slices.ContainsFunc(p.config.runcmd, func(e runEntry) bool { return e.about(strings.TrimSuffix(path.Base(name), ".service")) })
	switch {
	case is && p.config.hasRuncmd && !needed:
		p.hand("it has no %s", name)
	case is:
		p.cut(name, "it has no %s", name)
	}
}

// leftTo says why this version does not make a node that it understands.
func (p *parser) leftTo() []string {
	what := ""
	switch i := p.intent; {
	case i.Mode == ModeNone:
		return nil
	case i.Discovery.File != "" && !path.IsAbs(i.Discovery.File):
		what = "it finds its cluster by a file from elsewhere (" + quote(i.Discovery.File) + ")"
	case !slices.Contains([]string{"", "/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock"}, strings.TrimPrefix(i.CRISocket, "unix://")):
		what = "it uses another container runtime than containerd (" + quote(i.CRISocket) + ")"
	default:
		return nil
	}
	return []string{what + leftSuffix}
}

const leftSuffix = ", which this nodeagent leaves to cloud-init"

// kubeadm takes what a call of kubeadm says, and the file it is given.
func (p *parser) kubeadm(call kubeadmCall) {
	if call.config != "" {
		p.intent.set("kubeadmConfig", call.from.line(call.line, "kubeadm "+call.verb+" --config"))
		p.intent.KubeadmConfig = call.config
		if file, ok := p.config.find(call.config); ok {
			p.kubeadmConfig(call, file)
		} else {
			p.hand("kubeadm's configuration %s is not one of its files", quote(call.config))
		}
	}
	p.problems = append(p.problems, readKubeadm(p.intent, call)...)
	if call.depends {
		p.hand("the kubeadm line in line %d depends on a variable", call.line)
	}
	if versionLabel().MatchString(p.intent.Version) {
		p.hand("it leaves the version to a label (%s), which kubeadm looks up on the internet", quote(p.intent.Version))
	}
}

// kubeadmConfig takes the file that kubeadm is given: all of it goes to kubeadm.
func (p *parser) kubeadmConfig(call kubeadmCall, file configFile) {
	p.problems = append(p.problems, readKubeadmConfig(p.intent, file)...)
	p.intent.KubeadmDocuments = secret.New(file.content)
	if strings.Contains(file.content, "{{") {
		p.hand("kubeadm's configuration %s holds a placeholder that CloudStack has not filled in", quote(call.config))
	}
	for _, arg := range call.args {
		name, _, _ := strings.Cut(arg, "=")
		// kubeadm takes few flags beside a file (ValidateMixedArguments in its validation.go).
		if key := new(Intent).flag(name, "1", true); key != "" && !slices.Contains([]string{"kubeadmConfig", "uploadCerts", "ignorePreflight", "nodeName"}, key) {
			p.hand("kubeadm is given %s beside a configuration file", name)
		}
	}
}

// iso reads how the setup script gets the binaries: how long and how often it
// looks for the ISO, from where else, and whether it ejects it.
func (p *parser) iso(s *shellScript, from source) {
	for _, c := range s.commands {
		if len(c.words) == 0 || s.unreachable(c) {
			continue
		}
		switch name := path.Base(c.words[0]); name {
		case "sleep":
			p.waits(s, c, from)
		case "eject":
			p.intent.EjectISO = true
			p.intent.set("ejectISO", from.line(c.line, "eject"))
		case "wget":
			router, one := s.router(c)
			if !one || !isRouter(router) || (p.intent.VRISO != "" && p.intent.VRISO != router) {
				p.hand("%s line %d downloads from a place that is not the address of a virtual router", path.Base(setupScript), c.line)
				continue
			}
			p.intent.VRISO = router
			p.intent.set("vrISO", from.line(c.line, "wget"))
		case "curl":
			if slices.ContainsFunc(c.words, func(word string) bool { return strings.HasSuffix(word, ":6443/version") }) {
				continue
			}
			p.hand("%s line %d installs from the internet", path.Base(setupScript), c.line)
		case "kubeadm":
			if slices.Contains(c.words, "pull") {
				p.hand("%s line %d installs from the internet", path.Base(setupScript), c.line)
			}
		}
	}
}

// router returns where a wget takes the ISO's files from; one is false when that is
// not one place.
func (s *shellScript) router(wget shellCommand) (router string, one bool) {
	for _, argv := range s.variants(wget.words) {
		for _, arg := range argv[1:] {
			host, ok := strings.CutSuffix(arg, "/cks-iso")
			if host = strings.TrimPrefix(host, "http://"); !ok || (one && host == router) {
				continue
			}
			if one {
				return "", false
			}
			router, one = host, true
		}
	}
	return router, one
}

// isRouter says whether a text is the address of a virtual router.
func isRouter(text string) bool {
	address, err := netip.ParseAddr(text)
	return err == nil && address.Zone() == "" || routerName().MatchString(text)
}

var routerName = pattern(`^([A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?$`)

// waits takes a sleep in a loop for the pause between two looks for the ISO, and
// what the loop counts up to for their number. A value that is 0 or missing is one
// that the script itself replaces.
func (p *parser) waits(s *shellScript, pause shellCommand, from source) {
	if pause.loop == 0 || len(pause.words) < 2 || p.intent.Origins["waitInterval"] != "" {
		return
	}
	if n := firstNumber(s.expand(pause.words[1]), maxInterval); n > 0 {
		p.intent.WaitInterval = time.Duration(n) * time.Second
		p.intent.set("waitInterval", from.line(pause.line, "sleep"))
	}
	for _, c := range s.commands {
		if c.loop != pause.loop {
			continue
		}
		if n := firstNumber(s.limits(c), maxAttempts); n > 0 {
			p.intent.WaitAttempts = n
			p.intent.set("waitAttempts", from.line(c.line, "the loop around sleep"))
			return
		}
	}
}

var arithmeticLimit = pattern(`[<>]=?\s*["']?\$?\{?(\w+)`)

// limits returns the values that a command compares a number with.
func (s *shellScript) limits(c shellCommand) []string {
	if match := arithmeticLimit().FindStringSubmatch(c.arithmetic); match != nil {
		if values, known := s.vars[match[1]]; known {
			return values
		}
		return []string{match[1]}
	}
	for i, word := range c.words {
		if i+1 < len(c.words) && slices.Contains([]string{"-gt", "-ge", "-lt", "-le"}, word) {
			return s.expand(c.words[i+1])
		}
	}
	return nil
}

func firstNumber(values []string, most int) int {
	for _, value := range values {
		if n, err := strconv.Atoi(value); err == nil && n > 0 {
			return min(n, most)
		}
	}
	return 0
}

// addOns compares what the deploy script applies with what nodeagent would: the
// network may come from elsewhere, all the rest is the same for every cluster.
func (p *parser) addOns(s *shellScript, from source) {
	network, doubt := 0, false
	made := map[string]bool{} // by the name of the manifest or binding
	for _, c := range s.commands {
		if len(c.words) == 0 || path.Base(c.words[0]) != "kubectl" || s.unreachable(c) {
			continue
		}
		for _, argv := range s.variants(c.words) {
			for _, arg := range argv[1:] {
				made[path.Base(arg)] = true
				if path.Base(arg) == "network.yaml" {
					network, doubt = c.line, doubt || s.chooses(c)
				}
			}
		}
	}
	if len(s.commands) == 0 {
		return
	}
	p.intent.ExternalCNI = network == 0
	if network > 0 {
		p.intent.set("externalCNI", from.line(network, "kubectl apply"))
	} else {
		p.intent.set("externalCNI", from.whole("no network.yaml is applied"))
	}
	if doubt {
		p.hand("%s does not say plainly whether the network plugin comes from the ISO", deployScript)
	}
	if !made["dashboard.yaml"] && !made["headlamp.yaml"] {
		p.hand("%s applies neither dashboard.yaml nor headlamp.yaml, which nodeagent would", deployScript)
	}
	bindings := []string{"admin-binding", "cluster-admin-binding"}
	// Scripts that know headlamp make no binding for the dashboard of an older ISO.
	if made["dashboard.yaml"] && !made["headlamp.yaml"] {
		bindings = append(bindings, "kubernetes-dashboard-ui")
	}
	for _, binding := range bindings {
		if !made[binding] {
			p.hand("%s does not make the role binding %s, which nodeagent would", deployScript, binding)
		}
	}
}

// chooses says that whether a command runs depends on a comparison whose outcome
// is not known.
func (s *shellScript) chooses(c shellCommand) bool {
	for g := c.guard; g != nil; g = g.parent {
		if s.held(g) != mayBe {
			continue
		}
		for i := g.from; i < g.to; i++ {
			if slices.ContainsFunc(s.commands[i].words, func(word string) bool { return slices.Contains([]string{"=", "==", "!="}, word) }) {
				return true
			}
		}
	}
	return false
}

type unitSetting struct {
	line       int
	key, value string
}

// unitSettings reads a unit file (systemd.syntax(7)): lines joined at a backslash,
// comments left out, section headers as settings without a value.
func unitSettings(content string) []unitSetting {
	var settings []unitSetting
	var joined strings.Builder
	began := 0
	for i, line := range strings.Split(content, "\n") {
		line = strings.TrimSpace(line)
		if joined.Len() == 0 {
			if line == "" || line[0] == '#' || line[0] == ';' {
				continue
			}
			began = i + 1
		}
		if before, more := strings.CutSuffix(line, `\`); more {
			joined.WriteString(before + " ")
			continue
		}
		joined.WriteString(line)
		key, value, _ := strings.Cut(joined.String(), "=")
		settings = append(settings, unitSetting{began, strings.TrimSpace(key), strings.TrimSpace(value)})
		joined.Reset()
	}
	return settings
}

const unitNames = `(?:(?:containerd|setup-kube-system|network|network-online|multi-user)(?:\.service|\.target)? ?)+`

// unitLine is what CloudStack's units consist of; everything else is an edit.
var unitLine = pattern(`^(?:\[(?:Unit|Service|Install)\]=|Description=.*|(?:After|Requires|Wants|WantedBy)=` + unitNames + `|` +
	`Type=(?:simple|exec)|Restart=on-failure|(?:RestartSec|StartLimitInterval|StartLimitIntervalSec|StartLimitBurst)=\d+|` +
	`ExecStart=(?:/bin/bash )?/opt/bin/(?:setup|deploy)-kube-system|ExecStartPre=/usr/bin/curl -k https://[^ ]+:6443/version)$`)

func (p *parser) units() {
	_, found := p.config.find(deployUnit)
	directly := slices.ContainsFunc(p.config.runcmd, func(e runEntry) bool { return e.about(deployScript) })
	p.missing(deployUnit, !found && !directly)
	for _, name := range []string{setupUnit, deployUnit} {
		file, _ := p.config.find(name)
		for _, setting := range unitSettings(file.content) {
			if !unitLine().MatchString(setting.key + "=" + setting.value) {
				p.hand("%s line %d has a setting of its own%s", path.Base(name), setting.line, inBrackets(settingName(setting)))
			}
		}
	}
}

// runcmd checks that the commands start what was written, and that none of an
// administrator's own gets in nodeagent's way. Until the node's own scripts have
// been started cloud-init's commands run beside nodeagent, where they ran before
// the scripts: such a command may prepare something the node needs.
func (p *parser) runcmd() {
	if !p.config.hasRuncmd {
		p.cut("runcmd", "it has no runcmd")
		return
	}
	first, second, word := setupScript, deployScript, "-kube-system"
	if p.intent.Mode == ModeEtcd {
		first, second, word = etcdScript, etcdUnit, "etcd"
	}
	setup, deploy, otherwise := false, false, false
	for i, entry := range p.config.runcmd {
		if p.intent.Registry == nil && callsContainerdScript(entry) {
			p.registry()
		}
		if configuresContainerd(entry) {
			continue
		}
		if entry.about("/etc/containerd") {
			p.hand("runcmd entry %d writes containerd's configuration", i+1)
			continue
		}
		known := entry.only(func(c shellCommand) bool {
			starts := startsScript(entry.script, c)
			return (starts == first || starts == second) && always(entry.script, c) || harmless(entry.script, c)
		})
		if entry.script.open != "" && !(setup && deploy) && i == len(p.config.runcmd)-1 {
			p.cut("runcmd", "runcmd entry %d ends in the middle: %s is not closed", i+1, strconv.Quote(entry.script.open))
		}
		if entry.about("kubeadm") {
			p.hand("runcmd entry %d calls kubeadm", i+1)
		} else if entry.about(word) && !known {
			otherwise = true
			p.hand("runcmd entry %d does something of its own with the scripts that nodeagent replaces", i+1)
		}
		if entry.script.beyond != "" && !(setup && deploy) {
			p.hand("runcmd entry %d, which comes before the node is made, uses %s", i+1, entry.script.beyond)
			continue
		}
		for _, c := range entry.script.commands {
			starts := startsScript(entry.script, c)
			if starts != first && starts != second {
				starts = ""
			}
			if starts != "" && !always(entry.script, c) && !(setup && deploy) {
				otherwise = true
				p.hand("runcmd entry %d starts %s under a condition", i+1, starts)
			}
			setup, deploy = setup || starts == first, deploy || starts == second
			if starts == "" && !(setup && deploy) && !harmless(entry.script, c) {
				p.hand("runcmd entry %d%s comes before the node is made and may prepare something for it", i+1, inBrackets(programName(c)))
			}
		}
	}
	_, hasFirst := p.config.find(first)
	_, hasSecond := p.config.find(second)
	if hasFirst && !setup && !otherwise {
		p.cut("runcmd", "runcmd does not run %s", first)
	}
	if hasSecond && !deploy && !otherwise {
		p.cut("runcmd", "runcmd does not start %s", strings.TrimSuffix(path.Base(second), ".service"))
	}
}

// startsScript returns which of CloudStack's scripts, or etcd's unit, a command of
// runcmd runs, or "".
func startsScript(s *shellScript, c shellCommand) string {
	words := s.variants(c.words)[0]
	for len(words) > 1 && (slices.Contains([]string{"sudo", "bash", "sh", "/bin/bash", "/bin/sh"}, words[0]) || words[0] == "-x" || words[0] == "-e") {
		words = words[1:]
	}
	if slices.ContainsFunc(c.writes, func(file string) bool {
		return file != "/dev/null" && !strings.HasPrefix(path.Clean(file), "/var/log/")
	}) {
		return ""
	}
	if len(words) == 1 && (words[0] == setupScript || words[0] == deployScript || words[0] == etcdScript) {
		return words[0]
	}
	if len(words) < 3 || path.Base(words[0]) != "systemctl" {
		return ""
	}
	unit := strings.TrimSuffix(words[len(words)-1], ".service")
	options := strings.Join(words[1:len(words)-1], " ")
	if !slices.Contains([]string{"start", "restart", "enable --now", "--now enable", "start --no-block", "--no-block start"}, options) {
		return ""
	}
	switch unit {
	case "setup-kube-system":
		return setupScript
	case "deploy-kube-system":
		return deployScript
	case "etcd":
		return etcdUnit
	}
	return ""
}

// always says that a command of runcmd runs in any case, or after what starts one of
// the scripts.
func always(s *shellScript, c shellCommand) bool {
	if c.nest > 0 || c.depth > 0 || c.joint == "|" || c.joint == "||" {
		return false
	}
	g := c.guard
	return g == nil || g.want && g.parent == nil && g.to > g.from &&
		!slices.ContainsFunc(s.commands[g.from:g.to], func(before shellCommand) bool {
			return before.negated || before.joint == "||" || before.joint == "|" || startsScript(s, before) == ""
		})
}

// harmless says that a command of runcmd prepares nothing, and keeps nothing waiting but
// for what the scripts wait for.
func harmless(s *shellScript, c shellCommand) bool {
	return knows(s, c, preparations(), nil) && (len(c.words) == 0 || path.Base(c.words[0]) != "sleep" || awaits(s, c.loop))
}

// awaits says that a loop of runcmd does nothing but look for a file, and sleep.
func awaits(s *shellScript, loop int) bool {
	looks := false
	for _, c := range s.commands {
		if loop == 0 || c.loop != loop || len(c.words) == 0 {
			continue
		}
		switch c.words[0] {
		case "[", "test":
			looks = true
		case "sleep", "echo", ":":
		default:
			return false
		}
	}
	return looks
}

// watched are the places that nodeagent's own work reads or writes before
// cloud-init has made its files, or that only make sense to the scripts it
// replaces.
var watched = pattern(`^(?:/etc/(?:containerd|kubernetes|cni|nodeagent)|/opt/(?:bin|cni|autoscaler|provider|csi)|` +
	`/var/lib/(?:containerd|kubelet|etcd|nodeagent)|/run/(?:containerd|nodeagent)|/tmp/k8sconfigscripts|/mnt/k8sdisk|/root/\.kube|` +
	`/(?:etc|run|usr/lib|lib)/systemd/system/(?:containerd|kubelet|nodeagent|etcd|setup-kube-system|deploy-kube-system)\.service(?:\.d)?)(?:/|$)|` +
	`^(?:/etc/default/kubelet|/etc/crictl\.yaml|/home/cloud/success|/usr/bin/nodeagent)$`)

// modules are the keys of a cloud-config that cannot change what the node's
// scripts find: who may log in, and what is written and run, which is looked at
// entry by entry.
func modules() []string {
	return []string{"users", "user", "groups", "ssh_authorized_keys", "ssh_pwauth", "ssh_import_id", "ssh_keys", "ssh_deletekeys",
		"ssh_genkeytypes", "ssh_quiet_keygen", "ssh_publish_hostkeys", "disable_root", "disable_root_opts", "no_ssh_fingerprints", "password", "chpasswd",
		"write_files", "runcmd", "timezone", "locale", "final_message", "output", "merge_how", "merge_type"}
}

// surroundings looks at what else the cloud-config does: all of it is done by
// cloud-init beside nodeagent, where it was done before the scripts.
func (p *parser) surroundings() {
	for _, key := range p.config.keysOf() {
		if !slices.Contains(modules(), key) {
			p.hand("it has %s, which may prepare something for the node", keyName(key))
		}
	}
	for _, file := range p.config.files {
		own := isOurs(file.path) || strings.HasPrefix(file.path, cloudstackPKI) || file.path == p.intent.KubeadmConfig || file.path == p.intent.Discovery.File
		if !own && watched().MatchString(file.path) {
			p.hand("it writes %s, which is in the way of nodeagent's own work", quote(file.path))
		}
	}
}

const containerdConfig = "/etc/containerd/config.toml"

// configuresContainerd says that an entry of runcmd does only what nodeagent does
// with containerd's configuration.
func configuresContainerd(entry runEntry) bool {
	programs, files := containerdCommands(), containerdFiles()
	return entry.only(func(c shellCommand) bool { return knows(entry.script, c, programs, files) }) &&
		// A bare daemon-reload or mkdir may be meant for something else.
		slices.ContainsFunc(entry.script.commands, func(c shellCommand) bool {
			return strings.Contains(strings.Join(append(slices.Clip(c.words), c.writes...), " "), "containerd")
		})
}

func callsContainerdScript(entry runEntry) bool {
	return slices.ContainsFunc(entry.script.commands, func(c shellCommand) bool {
		return slices.Contains(c.words, containerdScript)
	})
}

var (
	registryHost = pattern(`registry\.mirrors\.\\*"([^"\\]+)\\*"`)
	registryURL  = pattern(`endpoint *= *\[\\*"([^"\\]+)\\*"`)
	registryKey  = pattern(`(?:username|password|identitytoken) *=`)
	// A value ends its line of containerd's configuration, which is one of the string
	// in the script; what the shell or sed would change is none.
	registryValue = pattern("(?m)(username|password|identitytoken) *= *\\\\*\"([^\"\\\\$`]*)\\\\*\" *(?:\\\\n|['\"]?$)")
)

// registry reads the private registry that setup-containerd would set up. The
// script keeps its placeholders where the cluster has none.
func (p *parser) registry() {
	file, ok := p.config.find(containerdScript)
	switch {
	case !ok && p.lostRegistry:
		p.hand("%s is in a block of its template that cloud-init leaves out, having no variable registry, though runcmd runs it: "+
			"the node gets no private registry", containerdScript)
		return
	case !ok: // the command fails, and cloud-init goes on
		p.hand("runcmd runs %s, which it does not have: the node gets no private registry", containerdScript)
		return
	}
	script := readShell(file.content)
	reasons := strangers(path.Base(containerdScript), script, registryCommands())
	if script.open != "" && len(reasons) == 0 { // runcmd stands behind it, so the text was not cut off there
		reasons = append(reasons, path.Base(containerdScript)+stranger(path.Base(containerdScript), shellCommand{}))
	}
	for _, reason := range reasons {
		p.hand("%s", reason)
	}
	if strings.Contains(file.content, "{{") {
		return
	}
	registry := &Registry{}
	if match := registryHost().FindStringSubmatch(file.content); match != nil {
		registry.Host = match[1]
	}
	if match := registryURL().FindStringSubmatch(file.content); match != nil {
		registry.URL = match[1]
	}
	values := registryValue().FindAllStringSubmatch(file.content, 8)
	if !registry.reachable() || len(values) != len(registryKey().FindAllString(file.content, 9)) {
		p.hand("%s does not say in CloudStack's way which registry to use, or with which credentials", containerdScript)
	}
	for _, match := range values {
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
	p.intent.set("registry", file.source().whole(""))
}
