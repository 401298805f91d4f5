// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ConfigDrivePlace is where a machine finds its config drive.
type ConfigDrivePlace string

// The places. KVM hosts of CloudStack attach it as a CD beside the drive for ISOs;
// where a hypervisor allows one CD only it is in that, or a disk.
const (
	NoConfigDrive        ConfigDrivePlace = ""
	ConfigDriveFirstCD   ConfigDrivePlace = "first CD"  // sr0; the drive for ISOs is sr1
	ConfigDriveSecondCD  ConfigDrivePlace = "second CD" // sr1
	ConfigDriveDisk      ConfigDrivePlace = "disk"      // the last virtio disk
	ConfigDrivePartition ConfigDrivePlace = "partition" // the only one of that disk
)

// ConfigDrive is what CloudStack puts on a config drive (ConfigDriveBuilder.java).
type ConfigDrive struct {
	Userdata []byte // nil: none
	// Metadata are the values that the virtual router would serve, by the same
	// names. Nil: no network of the machine has its userdata here, so the drive has
	// network data only.
	Metadata map[string]string
	Password string // empty: none
	Label    string // empty: config-2
}

// Build makes the ISO image with the program and the options that CloudStack uses.
func (d ConfigDrive) Build(ctx context.Context, path string) error {
	if err := d.build(ctx, path); err != nil {
		return fmt.Errorf("cannot make config drive: %w", err)
	}
	return nil
}

func (d ConfigDrive) build(ctx context.Context, path string) error {
	tree, err := os.MkdirTemp("", "configdrive-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	files, err := d.files()
	if err != nil {
		return err
	}
	for name, text := range files {
		name = filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if d.Userdata != nil {
		if err := os.Link(filepath.Join(tree, "cloudstack/userdata/user_data.txt"), filepath.Join(tree, "openstack/latest/user_data")); err != nil {
			return err
		}
	}
	label := d.Label
	if label == "" {
		label = "config-2"
	}
	output, err := exec.CommandContext(ctx, "genisoimage", "-o", path, "-ldots", "-allow-lowercase", "-allow-multidot",
		"-cache-inodes", "-l", "-quiet", "-J", "-r", "-V", label, tree).CombinedOutput()
	if err != nil {
		return fmt.Errorf("genisoimage: %w: %s", err, output)
	}
	return nil
}

// files are all files but the link.
func (d ConfigDrive) files() (map[string]string, error) {
	files := map[string]string{
		"openstack/latest/vendor_data.json":  "{}",
		"openstack/latest/network_data.json": "{}", // DHCP and DNS are not the config drive's here
	}
	if d.Metadata == nil {
		return files, nil
	}
	if d.Userdata != nil {
		files["cloudstack/userdata/user_data.txt"] = string(d.Userdata)
	}
	if d.Password != "" {
		files["cloudstack/password/vm_password.txt"] = d.Password
	}
	openStackNames := map[string]string{
		"availability-zone": "availability_zone", "local-hostname": "hostname", "vm-id": "uuid", "public-hostname": "name",
		"cloud-domain": "cloud-domain", "cloud-domain-id": "cloud-domain-id", "cloud-name": "cloud-name", "hypervisor-host-name": "hypervisor-host-name",
	}
	meta := map[string]any{}
	for name, value := range d.Metadata {
		if strings.TrimSpace(value) == "" {
			continue
		}
		files["cloudstack/metadata/"+name+".txt"] = value
		if name == "public-keys" {
			keyName := "key"
			if words := strings.Split(value, " "); len(words) > 3 && words[2] != "" {
				keyName = words[2]
			}
			meta["keys"] = []map[string]string{{"type": "ssh", "data": value, "name": keyName}}
			meta["public_keys"] = map[string]string{keyName: value}
		} else if key := openStackNames[name]; key != "" {
			meta[key] = value
		}
	}
	text, err := json.Marshal(meta)
	files["openstack/latest/meta_data.json"] = string(text)
	return files, err
}

// partitionStart is where the partition begins in a disk with one; a multiple of
// the sectors of disks and CDs.
const partitionStart = 1 << 20

// BuildPartition makes a disk image whose only partition holds the drive.
func (d ConfigDrive) BuildPartition(ctx context.Context, path string) error {
	drive := path + ".partition"
	defer os.Remove(drive)
	if err := d.Build(ctx, drive); err != nil {
		return err
	}
	if err := partitioned(ctx, path, drive); err != nil {
		return fmt.Errorf("cannot make disk with config drive: %w", err)
	}
	return nil
}

func partitioned(ctx context.Context, path, drive string) error {
	from, err := os.Open(drive)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	disk, err := os.Create(path)
	if err != nil {
		return err
	}
	defer disk.Close()
	if _, err := io.Copy(io.NewOffsetWriter(disk, partitionStart), from); err != nil {
		return err
	}
	if err := errors.Join(disk.Truncate(2*partitionStart+info.Size()), disk.Close()); err != nil {
		return err
	}
	sfdisk := exec.CommandContext(ctx, "sfdisk", "--quiet", "--no-tell-kernel", path)
	sfdisk.Stdin = strings.NewReader(fmt.Sprintf("label: dos\nstart=%d, size=%d, type=83\n", partitionStart/512, info.Size()/512))
	if output, err := sfdisk.CombinedOutput(); err != nil {
		return fmt.Errorf("sfdisk: %w: %s", err, output)
	}
	return nil
}

// ConfigDrive is the config drive of this machine as it would be made now.
func (m *Machine) ConfigDrive() ConfigDrive {
	return ConfigDrive{Userdata: m.Spec.Userdata, Metadata: m.metadata()}
}

// makeConfigDrive makes the image to attach, as CloudStack does at every start; ""
// when the machine has none.
func (m *Machine) makeConfigDrive(ctx context.Context) (string, error) {
	if m.Spec.ConfigDrive == NoConfigDrive {
		return "", nil
	}
	path := filepath.Join(m.cloud.dir, m.Spec.Name+".configdrive")
	if m.Spec.ConfigDrive == ConfigDrivePartition {
		return path, m.ConfigDrive().BuildPartition(ctx, path)
	}
	return path, m.ConfigDrive().Build(ctx, path)
}
