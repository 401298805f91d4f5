// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/host"
)

// A NoCloud seed is how a lab without CloudStack hands userdata over: two files
// in a folder or on a drive (cloud-init documentation, "NoCloud").
const (
	noCloudLabel      = "cidata"
	labSeedFolder     = seedFolder + "-net"
	noCloudInstanceID = "nocloud" // cloud-init's own default
)

// readNoCloud returns what a NoCloud seed holds. read returns one of its files; a
// seed without one of the two is fs.ErrNotExist.
func readNoCloud(read func(name string, most int) ([]byte, error)) (Userdata, error) {
	text, err := read("meta-data", maxMetadata)
	if err != nil {
		return Userdata{}, err
	}
	meta, err := parseNoCloudMetadata(text)
	if err != nil {
		return Userdata{}, err
	}
	raw, err := read("user-data", MaxUserdata)
	if err != nil {
		return Userdata{}, err
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		raw = nil
	}
	return Userdata{Raw: raw, Meta: meta}, nil
}

// parseNoCloudMetadata reads a meta-data file, which is YAML. Only texts and the
// keys are taken.
func parseNoCloudMetadata(text []byte) (map[string]string, error) {
	var doc map[string]any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		// The error of a YAML reader quotes what it read.
		return nil, errors.New("cannot read meta-data: it is no YAML mapping")
	}
	if len(doc) > maxNames {
		return nil, fmt.Errorf("cannot read meta-data: it has %d names, %d at most are read", len(doc), maxNames)
	}
	meta := map[string]string{}
	for name, value := range doc {
		if !isMetadataName(name) {
			continue
		}
		switch value := value.(type) {
		case string:
			meta[name] = strings.TrimSpace(value)
		case int, bool, float64:
			meta[name] = fmt.Sprint(value)
		}
	}
	if keys := keyList(doc["public-keys"]); len(keys) > 0 {
		meta["public-keys"] = strings.Join(keys, "\n")
	}
	if meta["instance-id"] == "" {
		meta["instance-id"] = noCloudInstanceID
	}
	return meta, checkInstanceID(meta)
}

// keyList reads public-keys, which is a list or a mapping of names to keys or
// lists of keys.
func keyList(value any) (keys []string) {
	switch value := value.(type) {
	case string:
		keys = append(keys, strings.TrimSpace(value))
	case []any:
		for _, key := range value {
			if key, ok := key.(string); ok {
				keys = append(keys, strings.TrimSpace(key))
			}
		}
	case map[string]any:
		for _, under := range value {
			if _, nested := under.(map[string]any); !nested {
				keys = append(keys, keyList(under)...)
			}
		}
		slices.Sort(keys)
	}
	return keys
}

// readSeedFolders returns the first NoCloud seed in cloud-init's folders, with the
// folder's name. The seed nodeagent writes for cloud-init is none: it is what was
// made of the userdata, with stand-ins in it. None at all is fs.ErrNotExist.
func readSeedFolders(h *host.Host) (found Userdata, folder string, err error) {
	for _, folder := range []string{seedFolder, labSeedFolder} {
		if folder == seedFolder && ownsSeed(h) {
			continue
		}
		found, err := readNoCloud(func(name string, most int) ([]byte, error) { return readPlain(h, folder, name, most) })
		if !errors.Is(err, fs.ErrNotExist) {
			return found, folder, err
		}
	}
	return Userdata{}, "", fs.ErrNotExist
}

// readPlain reads a plain file of a folder; a link that leaves the folder is not
// followed, and a pipe not waited for.
func readPlain(h *host.Host, folder, name string, most int) ([]byte, error) {
	root, err := os.OpenRoot(h.Path(folder))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > int64(most) {
		return nil, fmt.Errorf("cannot read %s/%s: it is no plain file of at most %d bytes", folder, name, most)
	}
	file, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, int64(most)))
}

// ownsSeed says whether the seed in seedFolder is nodeagent's: from the first seed
// on, cloud-init's configuration is.
func ownsSeed(h *host.Host) bool { return h.Exists(cloudConfFile) }

// claimSeed makes seedFolder nodeagent's, before anything is written there: a power
// cut leaves no seed of nodeagent's that looks like a lab's. A lab's own seed goes to
// the folder beside, where later boots find it.
func claimSeed(h *host.Host) (changed bool, err error) {
	if !ownsSeed(h) && h.Exists(seedFolder+"/user-data") && !h.Exists(labSeedFolder) {
		if err := os.Rename(h.Path(seedFolder), h.Path(labSeedFolder)); err != nil {
			return false, fmt.Errorf("cannot move the seed in %s aside: %w", seedFolder, err)
		}
	}
	return h.WriteFile(cloudConfFile, []byte(cloudConf), 0o644)
}
