// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/host"
)

// standIn takes the place of a script whose work nodeagent does: whoever runs it
// waits for that work, as he would have waited for the script. nodeagent itself
// must therefore never wait for runcmd or for the units below, only for
// cloud-init's stages before.
const standIn = "#!/bin/sh\nexec /usr/bin/nodeagent status --wait\n"

// standInUnit keeps `systemctl start` working. 2 is "done with warnings".
const standInUnit = `[Unit]
Description=Kubernetes on this node, made by nodeagent.service

[Service]
Type=oneshot
RemainAfterExit=yes
SuccessExitStatus=2
ExecStart=%s
`

// standIns returns what the files that nodeagent replaces hold instead.
func standIns() map[string]string {
	return map[string]string{
		setupScript:      standIn,
		deployScript:     standIn,
		containerdScript: "#!/bin/sh\n# nodeagent configures containerd.\n", // the script may hold credentials
		etcdScript:       standIn,
		setupUnit:        fmt.Sprintf(standInUnit, setupScript),
		deployUnit:       fmt.Sprintf(standInUnit, deployScript),
	}
}

// Seed returns the userdata for cloud-init. Userdata that is left to cloud-init is
// returned as it is, byte for byte. Of userdata nodeagent takes over, all stays in
// order (users, keys, files, commands) but the recognised scripts and units, which
// become stand-ins, the unit of etcd, the commands that write containerd's configuration
// and a NodeConfig, which go. It is pure.
func Seed(raw []byte, intent Intent) ([]byte, error) {
	if intent.Handover != HandoverNodeagent {
		return raw, nil
	}
	parts, problems := unwrap(raw)
	if err := Err(problems); err != nil {
		return nil, fmt.Errorf("cannot make cloud-init's seed: %w", err)
	}
	return seedOf(parts, intent.Flavor)
}

func seedOf(parts []part, flavor Flavor) ([]byte, error) {
	var kept []part
	for _, p := range parts {
		switch {
		case p.kind == partNodeConfig:
			continue
		case p.kind == partCloudConfig && flavor == FlavorCloudStack:
			text, err := withStandIns(p.text)
			if err != nil {
				return nil, fmt.Errorf("cannot make cloud-init's seed: %s%w", where(p), err)
			}
			p.text = text
		}
		kept = append(kept, p)
	}
	if len(kept) == 0 {
		return []byte(seedHeader + "{}\n"), nil
	}
	return rewrap(kept), nil
}

const seedHeader = "#cloud-config\n# CloudStack's userdata without what nodeagent does itself.\n"

// withStandIns edits a cloud-config; one with nothing to edit stays as it is.
func withStandIns(text []byte) ([]byte, error) {
	config, err := readCloudConfig(text)
	if err != nil {
		return nil, err
	}
	contents, changed := standIns(), false
	for _, file := range config.files {
		if content, ok := contents[file.path]; ok {
			replaceContent(file.node, content)
			changed = true
		}
	}
	if _, etcd := config.find(etcdScript); etcd {
		files := get(config.root, "write_files")
		files.Content, changed = nil, true
		for _, file := range config.files {
			if file.path != etcdUnit { // nodeagent writes its own
				files.Content = append(files.Content, file.node)
			}
		}
	}
	if runcmd := get(config.root, "runcmd"); runcmd != nil {
		runcmd.Content = nil
		for _, entry := range config.runcmd {
			if configuresContainerd(entry) {
				changed = true
				continue
			}
			runcmd.Content = append(runcmd.Content, entry.node)
		}
	}
	if !changed {
		return text, nil
	}
	// The comment before the first key is the header, which is written anew.
	config.root.HeadComment = ""
	if len(config.root.Content) > 0 {
		config.root.Content[0].HeadComment = ""
	}
	var seed bytes.Buffer
	seed.WriteString(seedHeader)
	encoder := yaml.NewEncoder(&seed)
	encoder.SetIndent(2)
	if err := errors.Join(encoder.Encode(config.root), encoder.Close()); err != nil {
		return nil, errors.New("the edited document cannot be written")
	}
	if again, err := readCloudConfig(seed.Bytes()); err != nil || !sameYAML(config.root, again.root) {
		return nil, errors.New("the edited document does not read back the same")
	}
	return seed.Bytes(), nil
}

func replaceContent(file *yaml.Node, content string) {
	for i := 0; i+1 < len(file.Content); i += 2 {
		switch file.Content[i].Value {
		case "content":
			file.Content[i+1] = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.LiteralStyle, Value: content}
		case "encoding":
			file.Content[i+1] = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: "text/plain"}
		}
	}
}

// sameYAML compares two documents by what they say, not how.
func sameYAML(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.ShortTag() == b.ShortTag() && a.Value == b.Value &&
		slices.EqualFunc(a.Content, b.Content, sameYAML)
}

// Files by which cloud-init is told what to do.
const (
	seedFolder     = "/var/lib/cloud/seed/nocloud"
	cloudConfFile  = "/etc/cloud/cloud.cfg.d/zz-nodeagent.cfg" // sorts after the template's cloudstack.cfg
	dsIdentifyFile = "/etc/cloud/ds-identify.cfg"
	runtimeFile    = "/run/cloud-init/cloud.cfg"
)

// datasources must stand on one line: ds-identify reads no other form.
const datasources = "datasource_list: [ NoCloud, None ]\n"

const cloudConf = "# Written by nodeagent, which fetches the userdata itself and owns the\n" +
	"# network, the disk and the host name of this node.\n" +
	datasources +
	"datasource:\n  NoCloud:\n    fs_label: null\n" + // no search for a medium labelled cidata
	"network:\n  config: disabled\n" +
	"growpart:\n  mode: \"off\"\n" +
	"resize_rootfs: false\n" +
	"locale: false\n" + // the template's stays; generating one takes long and may fail
	"preserve_hostname: true\n" +
	"manage_etc_hosts: false\n"

// WriteSeed makes cloud-init take its userdata from a local seed and nothing from
// anywhere else, with the instance id CloudStack gave: a node cloud-init knows
// already is not set up again. It reports whether it changed a file. cloud-init
// must not be running.
func WriteSeed(h *host.Host, userdata Userdata, seed []byte) (changed bool, err error) {
	meta, err := metadataYAML(userdata.Meta)
	if err != nil {
		return false, err
	}
	if changed, err = claimSeed(h); err != nil {
		return changed, err
	}
	folder := h.Path(seedFolder)
	if err := errors.Join(os.MkdirAll(folder, 0o700), os.Chmod(folder, 0o700)); err != nil {
		return false, fmt.Errorf("cannot make %s: %w", seedFolder, err)
	}
	for _, file := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{
		{seedFolder + "/meta-data", meta, 0o600},
		{seedFolder + "/user-data", seed, 0o600},
		// Without this cloud-init is silently off where DMI does not name CloudStack
		// (pain-point C7).
		{dsIdentifyFile, []byte("policy: enabled\n"), 0o644},
		// ds-identify may have run before nodeagent in this boot; what it wrote here
		// would win over /etc/cloud.
		{runtimeFile, []byte(datasources), 0o644},
	} {
		wrote, err := h.WriteFile(file.name, file.data, file.mode)
		if err != nil {
			return changed, err
		}
		changed = changed || wrote
	}
	return changed, nil
}

// metadataYAML is the meta-data file of the NoCloud seed (cloud-init
// documentation, "NoCloud").
func metadataYAML(meta map[string]string) ([]byte, error) {
	if meta["instance-id"] == "" {
		return nil, errors.New("cannot write cloud-init's seed: the metadata have no instance-id")
	}
	values := map[string]any{}
	for name, value := range meta {
		if value != "" {
			values[name] = value
		}
	}
	var keys []string
	for line := range strings.Lines(meta["public-keys"]) {
		if key := strings.TrimSpace(line); key != "" {
			keys = append(keys, key)
		}
	}
	delete(values, "public-keys")
	if len(keys) > 0 {
		values["public-keys"] = keys
	}
	data, err := yaml.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("cannot write cloud-init's seed: %w", err)
	}
	return data, nil
}
