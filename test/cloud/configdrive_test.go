// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/json"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// run runs a tool that the test needs.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	output, err := exec.CommandContext(deadline(t, time.Minute), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, output)
	}
	return string(output)
}

// readISO returns the files of an image as xorriso sees them.
func readISO(t *testing.T, image string) map[string]string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "files")
	run(t, "xorriso", "-osirrox", "on", "-indev", image, "-extract", "/", folder)
	files := map[string]string{}
	err := fs.WalkDir(os.DirFS(folder), ".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			var data []byte
			data, err = os.ReadFile(filepath.Join(folder, path))
			files[path] = string(data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func testDrive() ConfigDrive {
	return ConfigDrive{Userdata: []byte("#cloud-config\n"), Password: "x", Metadata: map[string]string{
		"instance-id": "4a6f", "vm-id": "4a6f", "local-hostname": "n1", "public-keys": "ssh-rsa A\nssh-rsa B\n",
		"availability-zone": "zone1", "service-offering": "CKS Node", "public-hostname": ""}}
}

// The files are those of CloudStack's ConfigDriveBuilder, judged by other tools
// than the one that made them.
func TestConfigDriveBuild(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "drive.iso")
	if err := testDrive().Build(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	files := readISO(t, path)
	var meta map[string]any
	if err := json.Unmarshal([]byte(files["openstack/latest/meta_data.json"]), &meta); err != nil {
		t.Fatal(err)
	}
	wantMeta := map[string]any{"uuid": "4a6f", "hostname": "n1", "availability_zone": "zone1",
		"public_keys": map[string]any{"key": "ssh-rsa A\nssh-rsa B\n"},
		"keys":        []any{map[string]any{"type": "ssh", "data": "ssh-rsa A\nssh-rsa B\n", "name": "key"}}}
	if !reflect.DeepEqual(meta, wantMeta) {
		t.Errorf("got meta_data.json %v, want %v", meta, wantMeta)
	}
	delete(files, "openstack/latest/meta_data.json")
	want := map[string]string{
		"cloudstack/metadata/instance-id.txt": "4a6f", "cloudstack/metadata/vm-id.txt": "4a6f",
		"cloudstack/metadata/local-hostname.txt": "n1", "cloudstack/metadata/public-keys.txt": "ssh-rsa A\nssh-rsa B\n",
		"cloudstack/metadata/availability-zone.txt": "zone1", "cloudstack/metadata/service-offering.txt": "CKS Node",
		"cloudstack/password/vm_password.txt": "x", "cloudstack/userdata/user_data.txt": "#cloud-config\n",
		"openstack/latest/user_data": "#cloud-config\n", "openstack/latest/vendor_data.json": "{}", "openstack/latest/network_data.json": "{}",
	}
	if !maps.Equal(files, want) {
		t.Errorf("got files %v\nwant %v", files, want)
	}
	if got := run(t, "blkid", "-p", "-o", "value", "-s", "LABEL", "-s", "TYPE", path); got != "config-2\niso9660\n" {
		t.Errorf("blkid says %q, want config-2 and iso9660", got)
	}
}

func TestConfigDriveWithoutUserdata(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		drive ConfigDrive
		want  []string
	}{
		"no userdata": {ConfigDrive{Metadata: map[string]string{"vm-id": "4a6f"}},
			[]string{"cloudstack/metadata/vm-id.txt", "openstack/latest/meta_data.json", "openstack/latest/network_data.json", "openstack/latest/vendor_data.json"}},
		"network data only": {ConfigDrive{Label: "CONFIG-2"}, []string{"openstack/latest/network_data.json", "openstack/latest/vendor_data.json"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "drive.iso")
			if err := test.drive.Build(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			if got := slices.Sorted(maps.Keys(readISO(t, path))); !slices.Equal(got, test.want) {
				t.Errorf("got files %v, want %v", got, test.want)
			}
		})
	}
}

func TestConfigDriveBuildPartition(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := testDrive().BuildPartition(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "blkid", "-p", "-O", "1048576", "-o", "value", "-s", "LABEL", "-s", "TYPE", path); got != "config-2\niso9660\n" {
		t.Errorf("blkid says %q of the partition, want config-2 and iso9660", got)
	}
	table := run(t, "sfdisk", "--dump", path)
	if !strings.Contains(table, "start=        2048,") || strings.Count(table, "start=") != 1 {
		t.Errorf("got table\n%s\nwant one partition from sector 2048", table)
	}
	run(t, "sfdisk", "--verify", path)
}

func TestQEMUArgsConfigDrive(t *testing.T) {
	t.Parallel()
	for place, want := range map[ConfigDrivePlace]string{
		NoConfigDrive:        "-device scsi-cd,bus=scsi0.0,scsi-id=0,id=cd0 -kernel",
		ConfigDriveFirstCD:   "file=/c,,d -device scsi-cd,bus=scsi0.0,scsi-id=0,drive=config0 -device scsi-cd,bus=scsi0.0,scsi-id=1,id=cd0",
		ConfigDriveSecondCD:  "file=/c,,d -device scsi-cd,bus=scsi0.0,scsi-id=0,id=cd0 -device scsi-cd,bus=scsi0.0,scsi-id=1,drive=config0",
		ConfigDriveDisk:      "readonly=on,file=/c,,d -device virtio-blk-pci,drive=config0",
		ConfigDrivePartition: "readonly=on,file=/c,,d -device virtio-blk-pci,drive=config0",
	} {
		spec := MachineSpec{Name: "n1", ConfigDrive: place, Kernel: "/k"}
		args := strings.Join(qemuArgs(findTestPlatform(t, ""), spec, "tcg", hostFiles{configDrive: "/c,d", mac: net.HardwareAddr{2}}), " ")
		contains(t, "arguments for "+string(place), args, want)
	}
}
