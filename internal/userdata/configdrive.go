// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

const configDriveLabel = "config-2" // CloudStack's hidden setting vm.configdrive.label

// What CloudStack's ConfigDriveBuilder writes. The passwords in
// cloudstack/password are not nodeagent's and stay unread.
const (
	driveUserdata       = "openstack/latest/user_data"
	driveUserdataSame   = "cloudstack/userdata/user_data.txt" // another name of the same file
	driveMetadata       = "openstack/latest/meta_data.json"
	driveMetadataFolder = "cloudstack/metadata"
)

// maxNames is the most metadata of one machine that are read: some fifteen of
// CloudStack's own and the parameters of registered userdata.
const maxNames = 256

var (
	metadataName = pattern(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)
	// cloud-init and nodeagent name folders after it.
	instanceID = pattern(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$`)
)

// isMetadataName says whether metadata of a name are taken: not those by which
// cloud-init's NoCloud source is sent elsewhere or turned off.
func isMetadataName(name string) bool {
	return metadataName().MatchString(name) && !slices.Contains([]string{"seedfrom", "dsmode", "network-interfaces"}, name)
}

func checkInstanceID(meta map[string]string) error {
	switch id := meta["instance-id"]; {
	case id == "":
		return errors.New("it names no instance id")
	case !instanceID().MatchString(id):
		return fmt.Errorf("its instance id %s is none: want at most 128 letters, digits and . _ : -", quote(id))
	}
	return nil
}

// readConfigDrive returns what a config drive holds; its Raw is empty when
// CloudStack put no userdata on it. What is no config drive at all is
// fs.ErrNotExist.
func readConfigDrive(v volume) (Userdata, error) {
	meta, err := readDriveMetadata(v)
	if err != nil {
		return Userdata{}, err
	}
	if len(meta) == 0 {
		// CloudStack writes network_data.json alone when no network of the VM has its
		// userdata on a config drive.
		if _, err := findPath(v, "openstack/latest"); err != nil {
			return Userdata{}, err
		}
		return Userdata{}, nil
	}
	if err := checkInstanceID(meta); err != nil {
		return Userdata{}, err
	}
	raw, err := readVolume(v, driveUserdata, MaxUserdata)
	if errors.Is(err, fs.ErrNotExist) {
		raw, err = readVolume(v, driveUserdataSame, MaxUserdata)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Userdata{}, err
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		raw = nil
	}
	return Userdata{Raw: raw, Meta: meta}, nil
}

// readDriveMetadata returns the metadata by CloudStack's names.
func readDriveMetadata(v volume) (map[string]string, error) {
	meta := map[string]string{}
	folder, err := findPath(v, driveMetadataFolder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		files, err := listFolder(v, folder)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			name, isText := strings.CutSuffix(file.name, ".txt")
			if file.folder || !isText || !isMetadataName(name) {
				continue
			}
			if len(meta) == maxNames {
				return nil, fmt.Errorf("%s has more than %d files", driveMetadataFolder, maxNames)
			}
			text, err := readVolume(v, driveMetadataFolder+"/"+file.name, maxMetadata)
			if err != nil {
				return nil, err
			}
			meta[name] = strings.TrimSpace(string(text))
		}
	}
	text, err := readVolume(v, driveMetadata, maxMetadata)
	if errors.Is(err, fs.ErrNotExist) {
		return meta, nil
	}
	if err != nil {
		return nil, err
	}
	return meta, addOpenStack(meta, text)
}

// addOpenStack adds OpenStack's meta_data.json, which also other makers of config
// drives write. Its uuid is what cloud-init takes for the instance id, and names
// the folder in which CloudStack's server removes semaphores (contract 5.5).
// CloudStack's own instance-id.txt says the same, in old versions the VM's internal
// name.
func addOpenStack(meta map[string]string, text []byte) error {
	var doc struct {
		UUID       string            `json:"uuid"`
		Hostname   string            `json:"hostname"`
		Zone       string            `json:"availability_zone"`
		PublicKeys map[string]string `json:"public_keys"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return fmt.Errorf("cannot read %s: %w", driveMetadata, err)
	}
	if doc.UUID != "" {
		meta["instance-id"] = doc.UUID
	}
	for name, value := range map[string]string{"local-hostname": doc.Hostname, "availability-zone": doc.Zone} {
		meta[name] = cmp.Or(meta[name], value)
	}
	if meta["public-keys"] == "" && len(doc.PublicKeys) <= maxNames {
		var keys []string
		for _, key := range doc.PublicKeys {
			keys = append(keys, strings.TrimSpace(key))
		}
		slices.Sort(keys)
		meta["public-keys"] = strings.Join(keys, "\n")
	}
	return nil
}
