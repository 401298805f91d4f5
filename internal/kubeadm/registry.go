// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/secret"
)

// Registry is a private image registry that the node's pods take images from.
type Registry struct {
	Host     string // as the images' names have it: registry.example.com:5000
	URL      string // where it answers; "" is https://Host
	Username string
	Password secret.Text
	Token    secret.Text // OAuth2 identity token, in place of user and password
}

// certsFolder is where containerd looks for a registry's hosts.toml, by its host
// (docs/hosts.md there).
const certsFolder = "/etc/containerd/certs.d"

const hostForm = `([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?`

var (
	registryHost = pattern(`^` + hostForm + `$`)
	registryURL  = pattern(`^https?://` + hostForm + `(/[A-Za-z0-9._/-]*)?$`)
)

// hosts returns the hosts.toml of a registry whose images come from these URLs, in
// this order, and else from the host that the images' names have.
func hosts(urls ...string) ([]byte, error) {
	var text bytes.Buffer
	for _, url := range urls {
		if !registryURL().MatchString(url) {
			return nil, fmt.Errorf("cannot set up the image registry at %q: an address such as https://registry.example.com:5000 was expected", url)
		}
		fmt.Fprintf(&text, "[host.\"%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", url)
	}
	return text.Bytes(), nil
}

// editRegistries has containerd look up registries in certsFolder, with the
// credentials of one. Mirrors in the configuration itself, which containerd refuses
// beside a folder, move there: files are the hosts.toml to write, by host.
func editRegistries(config map[string]any, tables criTables, registry *Registry) (files map[string][]byte, err error) {
	files = map[string][]byte{}
	if mirrors, ok := lookUp(config, under(tables.registry, "mirrors")...); ok {
		byHost, _ := mirrors.(map[string]any)
		for name, mirror := range byHost {
			settings, _ := mirror.(map[string]any)
			endpoints, _ := settings["endpoint"].([]any)
			var urls []string
			for _, endpoint := range endpoints {
				url, _ := endpoint.(string)
				urls = append(urls, url)
			}
			if name != "*" && !registryHost().MatchString(name) || len(urls) == 0 {
				return nil, fmt.Errorf("cannot move the mirror %q to %s: it has no host or no endpoint", name, certsFolder)
			}
			if name == "*" { // all other registries (docs/hosts.md)
				name = "_default"
			}
			if files[name], err = hosts(urls...); err != nil {
				return nil, err
			}
		}
		if err := set(config, map[string]any{}, under(tables.registry, "mirrors")...); err != nil {
			return nil, err
		}
	}
	folders, _ := lookUp(config, under(tables.registry, "config_path")...)
	if known, _ := folders.(string); !slices.Contains(strings.Split(known, ":"), certsFolder) {
		if err := set(config, certsFolder, under(tables.registry, "config_path")...); err != nil {
			return nil, err
		}
	}
	url := registry.URL
	if url == "" {
		url = "https://" + registry.Host
	}
	if files[registry.Host], err = hosts(url); err != nil {
		return nil, err
	}
	auth := map[string]any{}
	for key, value := range map[string]string{"username": registry.Username, "password": registry.Password.Reveal(), "identitytoken": registry.Token.Reveal()} {
		if value != "" {
			auth[key] = value
		}
	}
	if len(auth) > 0 {
		err = set(config, auth, under(tables.registry, "configs", registry.Host, "auth")...)
	}
	return files, err
}

// writeHosts writes what editRegistries returned.
func writeHosts(h *host.Host, files map[string][]byte) (changed bool, err error) {
	for name, text := range files {
		wrote, err := h.WriteFile(path.Join(certsFolder, name, "hosts.toml"), text, 0o644)
		changed = changed || wrote
		if err != nil {
			return changed, fault.Wrap(fault.ContainerdFailed, err, "cannot set up the image registry %s", name)
		}
	}
	return changed, nil
}

func (r *Registry) check() error {
	if !registryHost().MatchString(r.Host) {
		return fault.New(fault.ContainerdFailed, "cannot set up the image registry %q: a host such as registry.example.com:5000 was expected", r.Host)
	}
	return nil
}
