// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
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
		"/etc/kubernetes/*.conf", "/etc/kubernetes/encryption*.yaml", "/home/cloud/.kube/config", "/root/.kube/config", "/etc/cni/net.d/*kubeconfig*",
		"/run/cloud-init/combined-cloud-config.json", "/etc/ppp/chap-secrets", "/etc/ipsec.secrets", "/etc/ipsec.d/*.secrets",
	}
}

// chapSecrets returns the third fields of a file: user, server, secret (pppd(8)).
func chapSecrets(text string) (secrets []string) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 2 && !strings.HasPrefix(fields[0], "#") {
			secrets = append(secrets, strings.Trim(fields[2], `"'`))
		}
	}
	return secrets
}

// secretsTimeout bounds the look for what is secret.
const secretsTimeout = 30 * time.Second

// knownSecrets returns the secrets that can be found on this machine, and which files
// could not be looked through. An error is that it took too long.
func knownSecrets(ctx context.Context, h *host.Host) (secrets, missed []string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, secretsTimeout, fmt.Errorf("cannot tell what is secret on this machine: a file could not be read within %s; nothing was written", secretsTimeout))
	defer cancel()
	type found struct{ secrets, missed []string }
	done := make(chan found, 1)
	go func() { // a file may be on a disk that does not answer
		secrets, missed := readSecrets(ctx, h)
		done <- found{secrets, missed}
	}()
	select {
	case f := <-done:
		secrets, missed = f.secrets, f.missed
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	return secrets, missed, nil
}

// readSecrets is knownSecrets until ctx ends.
func readSecrets(ctx context.Context, h *host.Host) (secrets, missed []string) {
	for _, pattern := range secretFiles() {
		names, err := filepath.Glob(h.Path(pattern))
		if err != nil {
			continue
		}
		for _, name := range names[:min(len(names), maxMatches)] {
			if ctx.Err() != nil {
				return nil, nil
			}
			name = strings.TrimPrefix(name, h.Root)
			text, err := readBounded(h, name)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				missed = append(missed, fmt.Sprintf("%s: %v", name, err))
			}
			secrets = append(secrets, secretsIn(text)...)
			if path.Base(name) == "chap-secrets" {
				secrets = append(secrets, chapSecrets(text)...)
			}
		}
	}
	slices.Sort(secrets)
	return slices.Compact(secrets), missed
}

// readBounded returns the first bytes of a regular file, also when there are more, which
// is an error.
func readBounded(h *host.Host, name string) (string, error) {
	file, info, err := openRegular(h, name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, host.MaxFile))
	if err == nil && info.Size() > host.MaxFile {
		err = fmt.Errorf("larger than %d bytes", host.MaxFile)
	}
	return string(text), err
}
