// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"encoding/hex"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/secret"
)

// kubeadmCall is a `kubeadm init` or `kubeadm join` of a script.
type kubeadmCall struct {
	line   int
	verb   string   // init or join
	args   []string // what follows the verb
	config string   // value of --config
}

// kubeadmCalls finds the calls in a script, also behind other words ("timeout 60
// kubeadm init").
func kubeadmCalls(s *shellScript) []kubeadmCall {
	var calls []kubeadmCall
	for _, c := range s.commands {
		words := s.variants(c.words)[0]
		at := slices.IndexFunc(words, func(word string) bool { return path.Base(word) == "kubeadm" })
		if at < 0 || at+1 >= len(words) || words[0] == "echo" || words[0] == "[" || words[0] == "[[" {
			continue
		}
		if verb := words[at+1]; verb == "init" || verb == "join" {
			call := kubeadmCall{line: c.line, verb: verb, args: words[at+2:]}
			for i, arg := range call.args {
				if value, found := strings.CutPrefix(arg, "--config="); found {
					call.config = value
				} else if arg == "--config" && i+1 < len(call.args) {
					call.config = call.args[i+1]
				}
			}
			calls = append(calls, call)
		}
	}
	return calls
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
	intent.Mode = ModeInit
	if call.verb == "join" {
		intent.Mode = ModeJoin
	}
	args := call.args
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if !strings.HasPrefix(arg, "-") {
			if call.verb == "join" && intent.Endpoint == "" {
				intent.Endpoint = arg
			} else {
				intent.Flags = append(intent.Flags, arg)
			}
			continue
		}
		name, value, given := strings.Cut(arg, "=")
		words := []string{arg}
		if !given && !slices.Contains(switches(), name) && len(args) > 0 && !strings.HasPrefix(args[0], "--") {
			value, words, args = args[0], append(words, args[0]), args[1:]
		}
		on := !given || value == "true"
		switch name {
		case "--token", "--discovery-token", "--tls-bootstrap-token":
			intent.Token = secret.New(value)
		case "--token-ttl":
			intent.TokenTTL = value
		case "--certificate-key":
			intent.CertificateKey = secret.New(value)
		case "--control-plane-endpoint":
			intent.Endpoint = value
		case "--apiserver-cert-extra-sans":
			for san := range strings.SplitSeq(value, ",") {
				if san != "" && !slices.Contains(intent.CertSANs, san) {
					intent.CertSANs = append(intent.CertSANs, san)
				}
			}
		case "--kubernetes-version":
			intent.Version = value
		case "--cri-socket":
			intent.CRISocket = value
		case "--upload-certs":
			intent.UploadCerts = on
		case "--control-plane":
			if on {
				intent.Mode = ModeJoinControlPlane
			}
		default:
			intent.Flags = append(intent.Flags, words...)
		}
	}
	return checkKubeadm(intent, call)
}

var (
	tokenForm   = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`) // kubeadm's own
	versionForm = regexp.MustCompile(`^v?[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$`)
)

// checkKubeadm says what kubeadm would refuse, before anything is installed.
func checkKubeadm(intent *Intent, call kubeadmCall) []Problem {
	var problems []Problem
	wrong := func(flag, format string, args ...any) {
		message := "the kubeadm " + call.verb + " line: " + flag + " "
		problems = append(problems, invalid(deployScript, message+format, args...))
	}
	switch {
	case slices.ContainsFunc(call.args, func(arg string) bool { return strings.Contains(arg, "{{") }):
		wrong("it", "holds a placeholder that CloudStack has not filled in")
		return problems
	case intent.Token.Empty() && (call.verb == "join" || call.config == ""):
		wrong("--token", "is missing")
	case !intent.Token.Empty() && !tokenForm.MatchString(intent.Token.Reveal()):
		wrong("--token", "is %d characters that are not a token of the form 6.16 lower-case letters and digits", len(intent.Token.Reveal()))
	}
	if key := intent.CertificateKey; !key.Empty() {
		if raw, err := hex.DecodeString(key.Reveal()); err != nil || len(raw) != 32 {
			wrong("--certificate-key", "is not 64 hexadecimal digits")
		}
	}
	if intent.Mode == ModeJoinControlPlane && intent.CertificateKey.Empty() {
		wrong("--certificate-key", "is missing")
	}
	if intent.Version != "" && !versionForm.MatchString(intent.Version) {
		wrong("--kubernetes-version", "is %s; a version such as 1.34.4 was expected", quote(intent.Version))
	}
	if intent.Endpoint != "" && !isEndpoint(intent.Endpoint) {
		wrong("the API server's endpoint", "is %s; host:port was expected", quote(intent.Endpoint))
	}
	if call.verb == "join" && intent.Endpoint == "" {
		wrong("the API server's endpoint", "is missing")
	}
	return problems
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
	return host != "" && !strings.ContainsAny(host, " /@$,")
}

func invalid(key, format string, args ...any) Problem {
	return Problem{SeverityError, fault.UserdataInvalid, key, "the userdata is not usable: " + fault.New("", format, args...).Message}
}
