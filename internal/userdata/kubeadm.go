// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/fault"
	"nodeagent/internal/secret"
)

// kubeadmCall is a `kubeadm init` or `kubeadm join` of a script.
type kubeadmCall struct {
	from   source
	line   int
	verb   string   // init or join
	args   []string // what follows the verb
	config string   // value of --config
	// depends says that the shell makes other words of the line, by what a variable or a
	// folder holds.
	depends bool
}

// kubeadmCalls finds the calls a script can make, also behind other words ("timeout
// 60 kubeadm init").
func kubeadmCalls(s *shellScript, from source) []kubeadmCall {
	var calls []kubeadmCall
	for _, c := range s.commands {
		if s.unreachable(c) {
			continue
		}
		words, depends := s.splitWords(c)
		at := slices.IndexFunc(words, func(word string) bool { return path.Base(word) == "kubeadm" })
		if at < 0 || at+1 >= len(words) || words[0] == "echo" || words[0] == "[" || words[0] == "[[" {
			continue
		}
		if verb := words[at+1]; verb == "init" || verb == "join" {
			call := newKubeadmCall(from, c.line, verb, words[at+2:])
			call.depends = depends || slices.ContainsFunc(call.args, unresolved)
			calls = append(calls, call)
		}
	}
	return calls
}

// splitWords returns the words of a command; unsure says that the shell may make others
// of them.
func (s *shellScript) splitWords(c shellCommand) (words []string, unsure bool) {
	variants := s.variants(c.words)
	_, separated := s.vars["IFS"]
	unsure = len(variants) > 1 || separated && len(c.bare) > 0
	for _, i := range c.bare {
		// Blanks outside of the expansion are quoted, and do not split.
		unsure = unsure || strings.ContainsAny(variants[0][i], "*?[") || strings.ContainsAny(expansion().ReplaceAllString(c.words[i], ""), " \t\n")
	}
	return c.split(variants[0]), unsure
}

// unresolved says that only the running script knows what a word is.
func unresolved(word string) bool { return strings.Contains(word, "$") }

func newKubeadmCall(from source, line int, verb string, args []string) kubeadmCall {
	call := kubeadmCall{from: from, line: line, verb: verb, args: args}
	for i, arg := range args {
		if value, found := strings.CutPrefix(arg, "--config="); found {
			call.config = value
		} else if arg == "--config" && i+1 < len(args) {
			call.config = args[i+1]
		}
	}
	return call
}

// Flags of kubeadm that take no value; of every other the next word is the value
// unless it follows "=".
func switches() []string {
	return []string{"--upload-certs", "--control-plane", "--discovery-token-unsafe-skip-ca-verification",
		"--skip-certificate-key-print", "--skip-token-print", "--dry-run", "--help", "-h"}
}

// readKubeadm fills an intent from the arguments of kubeadm init or join. Flags
// that have no field go to Flags as they came.
func readKubeadm(intent *Intent, call kubeadmCall) []Problem {
	line := func(flag string) string {
		return call.from.line(call.line, strings.TrimSpace("kubeadm "+call.verb+" "+flag))
	}
	if intent.Mode != ModeJoinControlPlane || call.verb != "join" {
		intent.Mode = ModeInit
		if call.verb == "join" {
			intent.Mode = ModeJoin
		}
		intent.set("mode", line(""))
	}
	for args := call.args; len(args) > 0; {
		if !strings.HasPrefix(args[0], "-") {
			if call.verb == "join" && intent.Endpoint == "" {
				intent.Endpoint = args[0]
				intent.set("endpoint", line(""))
			} else {
				intent.Flags = append(intent.Flags, args[0])
				intent.set("flags", line(""))
			}
			args = args[1:]
			continue
		}
		name, value, given := strings.Cut(args[0], "=")
		taken := 1
		if !given && !slices.Contains(switches(), name) && len(args) > 1 && !strings.HasPrefix(args[1], "--") {
			value, taken = args[1], 2
		}
		key := intent.flag(name, value, !given || value == "true")
		if key == "" {
			if key = "flags"; !flagName().MatchString(name) {
				name = ""
			}
			name = withoutSecrets(name)
			intent.Flags = append(intent.Flags, args[:taken]...)
		}
		intent.set(key, line(name))
		args = args[taken:]
	}
	return checkKubeadm(intent, call)
}

// flagName is a flag that its origin can name: several words in one are not.
var flagName = pattern(`^(?:--[a-z][a-z0-9-]*|-[a-z])$`)

// flag takes a flag of kubeadm that has a field, and returns the field's key.
func (i *Intent) flag(name, value string, on bool) (key string) {
	switch name {
	case "--token", "--discovery-token":
		i.Token = secret.New(value)
		return "token"
	case "--tls-bootstrap-token":
		if i.Token.Empty() {
			i.Token = secret.New(value)
			return "token"
		}
		i.Discovery.TLSBootstrapToken = secret.New(value)
		return "discovery"
	case "--token-ttl":
		i.TokenTTL = value
		return "tokenTTL"
	case "--discovery-token-unsafe-skip-ca-verification":
		i.Discovery.UnsafeSkipCA = on
		return "discovery"
	case "--discovery-token-ca-cert-hash":
		i.Discovery.CAHashes = add(i.Discovery.CAHashes, value)
		return "discovery"
	case "--discovery-file":
		i.Discovery.File = value
		return "discovery"
	case "--certificate-key":
		i.CertificateKey = secret.New(value)
		return "certificateKey"
	case "--control-plane-endpoint":
		i.Endpoint = value
		return "endpoint"
	case "--apiserver-advertise-address":
		i.AdvertiseAddress = value
		return "advertiseAddress"
	case "--apiserver-bind-port":
		port, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return ""
		}
		i.BindPort = int(port)
		return "bindPort"
	case "--apiserver-cert-extra-sans":
		i.CertSANs = add(i.CertSANs, value)
		return "certSANs"
	case "--node-name":
		i.NodeName = value
		return "nodeName"
	case "--ignore-preflight-errors":
		i.IgnorePreflight = add(i.IgnorePreflight, value)
		return "ignorePreflight"
	case "--kubernetes-version":
		i.Version = value
		return "version"
	case "--cri-socket":
		i.CRISocket = value
		return "criSocket"
	case "--upload-certs":
		i.UploadCerts = on
		return "uploadCerts"
	case "--control-plane":
		if on {
			i.Mode = ModeJoinControlPlane
		}
		return "mode"
	case "--config":
		return "kubeadmConfig"
	}
	return ""
}

// add appends the items of a comma-separated list that are not there yet.
func add(list []string, items string) []string {
	for item := range strings.SplitSeq(items, ",") {
		if item != "" && !slices.Contains(list, item) {
			list = append(list, item)
		}
	}
	return list
}

// KubeadmFlags are the flags to give kubeadm beside those that have a place of
// their own in whatever calls it: Flags, and the fields that only some userdata has.
// Beside KubeadmDocuments kubeadm takes few, and the rest is in there.
func (i Intent) KubeadmFlags() []string {
	flags := slices.Clone([]string(i.Flags))
	file := !i.KubeadmDocuments.Empty()
	if i.AdvertiseAddress != "" && !file {
		flags = append(flags, "--apiserver-advertise-address="+i.AdvertiseAddress)
	}
	if i.BindPort > 0 && !file {
		flags = append(flags, "--apiserver-bind-port="+strconv.Itoa(i.BindPort))
	}
	if i.NodeName != "" && !file {
		flags = append(flags, "--node-name="+i.NodeName)
	}
	if len(i.IgnorePreflight) > 0 {
		flags = append(flags, "--ignore-preflight-errors="+strings.Join(i.IgnorePreflight, ","))
	}
	return flags
}

var (
	tokenForm   = pattern(`^[a-z0-9]{6}\.[a-z0-9]{16}$`) // kubeadm's own
	versionForm = pattern(`^v?[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$`)
	// versionLabel names a version that kubeadm looks up on the internet.
	versionLabel = pattern(`^(?:(?:release|ci)/[-.\w+]+|(?:k8s-)?(?:latest|stable)(?:-[0-9]+(?:\.[0-9]+)?)?)$`)
	hashForm     = pattern(`^sha256:[0-9a-fA-F]{64}$`)
)

// checkKubeadm says what kubeadm would refuse, before anything is installed.
func checkKubeadm(intent *Intent, call kubeadmCall) []Problem {
	if slices.ContainsFunc(call.args, func(arg string) bool { return strings.Contains(arg, "{{") }) {
		return []Problem{invalid(call.from.file, "the kubeadm %s line: it holds a placeholder that CloudStack has not filled in", call.verb)}
	}
	// What only the running script knows is kubeadm's to judge, and so is a label.
	known := *intent
	for _, field := range []*string{&known.Version, &known.Endpoint, &known.AdvertiseAddress, &known.NodeName} {
		if unresolved(*field) {
			*field = ""
		}
	}
	for _, field := range []*secret.Text{&known.Token, &known.CertificateKey} {
		if unresolved(field.Reveal()) {
			*field = secret.Text{}
		}
	}
	known.Discovery.CAHashes = slices.DeleteFunc(slices.Clone(known.Discovery.CAHashes), unresolved)
	if versionLabel().MatchString(known.Version) {
		known.Version = ""
	}
	var problems []Problem
	for _, p := range checkIntent(&known, call.config != "" || call.depends) {
		problems = append(problems, invalid(call.from.file, "the kubeadm %s line: %s %s", call.verb, p.flag, p.message))
	}
	return problems
}

// wrong is something kubeadm would refuse: the flag, its field's key in a
// NodeConfig, and what is wrong.
type wrong struct {
	flag, key, message string
}

// checkIntent checks what any kind of userdata can say of kubeadm init and join.
// What is missing may stand in kubeadm's own configuration, where there is one.
func checkIntent(intent *Intent, configured bool) []wrong {
	var found []wrong
	no := func(flag, key, format string, args ...any) {
		found = append(found, wrong{flag, key, fault.New("", format, args...).Message})
	}
	joins := intent.Joins()
	switch {
	case !intent.Token.Empty() && !tokenForm().MatchString(intent.Token.Reveal()):
		no("--token", "kubernetes.token", "is %d characters that are not a token of the form 6.16 lower-case letters and digits", len(intent.Token.Reveal()))
	case intent.Token.Empty() && !configured && (!joins || intent.Discovery.File == ""):
		no("--token", "kubernetes.token", "is missing")
	}
	if key := intent.CertificateKey; !key.Empty() {
		if raw, err := hex.DecodeString(key.Reveal()); err != nil || len(raw) != 32 {
			no("--certificate-key", "kubernetes.certificateKey", "is not 64 hexadecimal digits")
		}
	}
	if intent.Mode == ModeJoinControlPlane && intent.CertificateKey.Empty() && !configured {
		no("--certificate-key", "kubernetes.certificateKey", "is missing")
	}
	if intent.Version != "" && !versionForm().MatchString(intent.Version) {
		no("--kubernetes-version", "kubernetes.version", "is %s; a version such as 1.34.4 was expected", quote(intent.Version))
	}
	if intent.Endpoint != "" && !isEndpoint(intent.Endpoint) {
		no("the API server's endpoint", "kubernetes.endpoint", "is %s; host:port was expected", quote(intent.Endpoint))
	}
	if intent.AdvertiseAddress != "" {
		if _, err := netip.ParseAddr(intent.AdvertiseAddress); err != nil {
			no("--apiserver-advertise-address", "kubernetes.advertiseAddress", "is %s; an IP address was expected", quote(intent.AdvertiseAddress))
		}
	}
	if intent.NodeName != "" && (!hostname().MatchString(intent.NodeName) || len(intent.NodeName) > maxHostname) {
		no("--node-name", "kubernetes.nodeName", "is %s; a host name was expected", quote(intent.NodeName))
	}
	for _, endpoint := range intent.ExternalEtcd {
		if !etcdURL().MatchString(endpoint) {
			no("the endpoint of etcd", "etcd.endpoints", "is %s; a URL such as http://10.1.1.61:2379 was expected", quote(endpoint))
		}
	}
	if !joins {
		return found
	}
	if intent.Endpoint == "" && !configured && intent.Discovery.File == "" {
		no("the API server's endpoint", "kubernetes.endpoint", "is missing")
	}
	for _, hash := range intent.Discovery.CAHashes {
		if !hashForm().MatchString(hash) {
			no("--discovery-token-ca-cert-hash", "discovery.caCertHashes", "is %s; sha256: and 64 hexadecimal digits were expected", quote(hash))
		}
	}
	if d := intent.Discovery; !d.UnsafeSkipCA && len(d.CAHashes) == 0 && d.File == "" && !configured {
		no("--discovery-token-ca-cert-hash", "discovery.caCertHashes", "is missing, and so is --discovery-token-unsafe-skip-ca-verification")
	}
	return found
}

func isEndpoint(text string) bool {
	host, port := text, ""
	if at := strings.LastIndexByte(text, ':'); at > strings.LastIndexByte(text, ']') {
		host, port = text[:at], text[at+1:]
	}
	if port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	return isHost(host)
}

func isHost(text string) bool { return text != "" && !strings.ContainsAny(text, " /@$,{}") }

func invalid(key, format string, args ...any) Problem {
	return Problem{SeverityError, fault.UserdataInvalid, key, "the userdata is not usable: " + fault.New("", format, args...).Message}
}

// readKubeadmConfig fills an intent from a configuration file of kubeadm
// (kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta3 and .v1beta4,
// which name alike what is read here). What else the file holds is kubeadm's.
func readKubeadmConfig(intent *Intent, file configFile) []Problem {
	const maxDocuments = 16
	decoder := yaml.NewDecoder(strings.NewReader(file.content))
	known := 0
	for range maxDocuments {
		var document yaml.Node
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return []Problem{invalid(file.path, "%s: %s", quote(file.path), yamlQuotes().ReplaceAllString(err.Error(), "$1...$1"))}
		}
		if len(document.Content) != 1 || !strings.HasPrefix(text(get(document.Content[0], "apiVersion")), "kubeadm.k8s.io/") {
			continue
		}
		known++
		c := kubeadmDocument{intent, file.source(), text(get(document.Content[0], "kind")), document.Content[0]}
		switch c.kind {
		case "ClusterConfiguration":
			c.cluster()
		case "InitConfiguration":
			c.init()
		case "JoinConfiguration":
			c.join()
		}
	}
	if known == 0 {
		return []Problem{invalid(file.path, "%s has no document of apiVersion kubeadm.k8s.io", quote(file.path))}
	}
	return nil
}

type kubeadmDocument struct {
	intent *Intent
	from   source
	kind   string
	root   *yaml.Node
}

// at returns the value at a path of keys; 0 is the first item of a list.
func (c kubeadmDocument) at(keys ...string) *yaml.Node {
	node := c.root
	for _, key := range keys {
		if key == "0" {
			if node == nil || node.Kind != yaml.SequenceNode || len(node.Content) == 0 {
				return nil
			}
			node = node.Content[0]
			continue
		}
		node = get(node, key)
	}
	return node
}

// text returns the text at a path and notes it as the origin of a field. A template
// that cloud-init fills in is no value.
func (c kubeadmDocument) text(key string, keys ...string) string {
	node := c.at(keys...)
	value := text(node)
	if value == "" || node.Tag == "!!null" || strings.Contains(value, "{{") {
		return ""
	}
	c.note(key, node, keys)
	return value
}

func (c kubeadmDocument) list(key string, keys ...string) []string {
	node := c.at(keys...)
	if node == nil || node.Kind != yaml.SequenceNode {
		return nil
	}
	var list []string
	for _, item := range node.Content {
		if value := text(item); value != "" && item.Tag != "!!null" {
			list = append(list, value)
		}
	}
	if len(list) > 0 {
		c.note(key, node, keys)
	}
	return list
}

func (c kubeadmDocument) note(key string, node *yaml.Node, keys []string) {
	c.intent.set(key, c.from.line(node.Line, c.kind+" "+strings.ReplaceAll(strings.Join(keys, "."), ".0", "")))
}

func (c kubeadmDocument) cluster() {
	i := c.intent
	i.Version = c.text("version", "kubernetesVersion")
	i.Endpoint = c.text("endpoint", "controlPlaneEndpoint")
	i.CertSANs = c.list("certSANs", "apiServer", "certSANs")
	i.ExternalEtcd = c.list("externalEtcd", "etcd", "external", "endpoints")
}

func (c kubeadmDocument) init() {
	i := c.intent
	i.Token = secret.New(c.text("token", "bootstrapTokens", "0", "token"))
	i.TokenTTL = c.text("tokenTTL", "bootstrapTokens", "0", "ttl")
	i.CertificateKey = secret.New(c.text("certificateKey", "certificateKey"))
	c.apiServer("localAPIEndpoint")
	c.registration()
}

func (c kubeadmDocument) apiServer(keys ...string) {
	c.intent.AdvertiseAddress = c.text("advertiseAddress", append(slices.Clip(keys), "advertiseAddress")...)
	if port, err := strconv.ParseUint(c.text("bindPort", append(slices.Clip(keys), "bindPort")...), 10, 16); err == nil {
		c.intent.BindPort = int(port)
	}
}

func (c kubeadmDocument) registration() {
	c.intent.NodeName = c.text("nodeName", "nodeRegistration", "name")
	c.intent.CRISocket = c.text("criSocket", "nodeRegistration", "criSocket")
	c.intent.IgnorePreflight = c.list("ignorePreflight", "nodeRegistration", "ignorePreflightErrors")
}

func (c kubeadmDocument) join() {
	i := c.intent
	i.Mode = ModeJoin
	if plane := c.at("controlPlane"); plane != nil && plane.Tag != "!!null" {
		i.Mode = ModeJoinControlPlane
		c.note("mode", plane, []string{"controlPlane"})
		c.apiServer("controlPlane", "localAPIEndpoint")
		i.CertificateKey = secret.New(c.text("certificateKey", "controlPlane", "certificateKey"))
	}
	i.Endpoint = c.text("endpoint", "discovery", "bootstrapToken", "apiServerEndpoint")
	i.Token = secret.New(c.text("token", "discovery", "bootstrapToken", "token"))
	i.Discovery.CAHashes = c.list("discovery", "discovery", "bootstrapToken", "caCertHashes")
	i.Discovery.UnsafeSkipCA = c.text("discovery", "discovery", "bootstrapToken", "unsafeSkipCAVerification") == "true"
	i.Discovery.File = c.text("discovery", "discovery", "file", "kubeConfigPath")
	if bootstrap := c.text("discovery", "discovery", "tlsBootstrapToken"); i.Token.Empty() {
		i.Token = secret.New(bootstrap)
	} else if bootstrap != i.Token.Reveal() {
		i.Discovery.TLSBootstrapToken = secret.New(bootstrap)
	}
	c.registration()
}
