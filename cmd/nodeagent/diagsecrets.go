// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"nodeagent/internal/host"
	"nodeagent/internal/redact"
	"nodeagent/internal/userdata"
)

// maxUnpacked is how many texts, packed in each other, are looked through for secrets.
const maxUnpacked = 50

// secretsIn returns the secrets in a file: the values of secret keys, what they hold
// where they are encoded, and those of userdata, whichever way these are packed.
func secretsIn(text string) (secrets []string) {
	texts := []string{text}
	for i := 0; i < len(texts) && i < maxUnpacked; i++ {
		values := redact.Find(texts[i])
		secrets = append(secrets, values...)
		for _, value := range values {
			decoded, err := base64.StdEncoding.DecodeString(value)
			if err != nil || !utf8.Valid(decoded) {
				continue
			}
			texts = append(texts, string(decoded))
			// A registry's credentials are user:password.
			if user, password, found := strings.Cut(string(decoded), ":"); found && !strings.ContainsAny(user, " \n") {
				secrets = append(secrets, password)
			} else {
				secrets = append(secrets, string(decoded))
			}
		}
		texts = append(texts, stringsIn(texts[i])...)
		intent, _ := userdata.Parse([]byte(texts[i]))
		secrets = append(secrets, intent.Token.Reveal(), intent.CertificateKey.Reveal(), intent.Discovery.TLSBootstrapToken.Reveal())
		if r := intent.Registry; r != nil {
			secrets = append(secrets, r.Password.Reveal(), r.Token.Reveal())
		}
	}
	return secrets
}

// stringsIn returns the texts in a JSON object, such as the record of the boot args.
func stringsIn(text string) (found []string) {
	var object map[string]any
	if json.Unmarshal([]byte(text), &object) != nil {
		return nil
	}
	for _, value := range object {
		if text, ok := value.(string); ok && strings.Contains(text, "=") {
			found = append(found, text)
		}
	}
	return found
}

// secretFiles are files that hold secrets, which are read only to know them.
func secretFiles() []string {
	return []string{
		userdata.CmdlineFile, "/var/cache/cloud/cmd_line.json", "/var/lib/nodeagent/boot-args.json", "/mnt/cmdline", "/proc/cmdline",
		"/var/lib/cloud/seed/*/user-data", "/var/lib/cloud/seed/*/vendor-data", "/var/lib/cloud/instances/*/user-data.txt", "/var/lib/cloud/instances/*/cloud-config.txt",
		"/run/nodeagent/kubeadm.yaml", "/etc/nodeagent/nodeagent.yaml", "/etc/nodeagent/roles.d/*",
		"/etc/containerd/config.toml", "/etc/containerd/conf.d/*", "/etc/containerd/certs.d/*/hosts.toml", "/etc/docker/daemon.json", "/root/.docker/config.json", "/var/lib/kubelet/config.json",
		"/etc/kubernetes/*.conf", "/etc/kubernetes/encryption*.yaml", "/home/cloud/.kube/config", "/root/.kube/config",
	}
}

// knownSecrets returns the secrets that can be found on this machine.
func knownSecrets(h *host.Host) []string {
	var secrets []string
	for _, pattern := range secretFiles() {
		names, err := filepath.Glob(h.Path(pattern))
		if err != nil {
			continue
		}
		for _, name := range names[:min(len(names), maxMatches)] {
			if text, err := h.ReadFile(strings.TrimPrefix(name, h.Root)); err == nil {
				secrets = append(secrets, secretsIn(string(text))...)
			}
		}
	}
	slices.Sort(secrets)
	return slices.Compact(secrets)
}
