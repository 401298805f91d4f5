// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/growpart"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/roles"
)

func TestReadConfig(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		content string
		want    int64
		wrong   string
	}{
		{"", 0, ""},
		{"# nothing but a comment\n", 0, ""},
		{"rootDiskSize: 20\n", 20, ""},
		{"rootDiskSize: -1\n", 0, "rootDiskSize is -1; expected a number of GiB from 1 to 1048576"},
		{"rootDiskSize: 1048577\n", 0, "rootDiskSize is 1048577"},
		{"rootDiskSize: 20GB\n", 0, "line 1: cannot unmarshal !!str `20GB`"},
		{"rootDisksize: 20\n", 0, "field rootDisksize not found"},
		{"[", 0, "cannot read /etc/nodeagent/nodeagent.yaml: yaml:"},
	} {
		m := hosttest.New(t)
		m.Write(configFile, test.content)
		got, err := readConfig(m.Host())
		if test.wrong == "" && (err != nil || got.RootDiskSize != test.want) {
			t.Errorf("%q = %+v, %v, want %d", test.content, got, err, test.want)
		}
		if test.wrong != "" && (err == nil || !strings.Contains(err.Error(), test.wrong) || fault.As(err).Code != fault.ConfigInvalid) {
			t.Errorf("%q: %v, want %q with code %s", test.content, err, test.wrong, fault.ConfigInvalid)
		}
	}
	if got, err := readConfig(hosttest.New(t).Host()); err != nil || got != (config{}) {
		t.Errorf("without the file: %+v, %v, want defaults", got, err)
	}
}

// The file of the package is one that changes nothing.
func TestPackagedConfig(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(filepath.Join("..", "..", "packaging", "nodeagent.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	m := hosttest.New(t)
	m.Write(configFile, strings.ReplaceAll(string(data), "#rootDiskSize", "rootDiskSize"))
	if got, err := readConfig(m.Host()); err != nil || got != (config{}) {
		t.Errorf("%+v, %v, want the defaults", got, err)
	}
}

// A wrong config file stops the growth before anything is touched: a disk that
// has grown too far cannot be made smaller.
func TestWrongConfigGrowsNothing(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write(configFile, "rootDiskSize: all\n")
	n := &node{host: m.Host()}
	if _, err := n.growRoot(context.Background(), nil); err == nil || fault.As(err).Code != fault.ConfigInvalid {
		t.Errorf("error = %v, want code %s", err, fault.ConfigInvalid)
	}
}

// The minimum of the role is compared with what of the disk may be used; both
// numbers are in the message, in bytes and GiB (C36).
func TestCheckMachineNamesBothSizes(t *testing.T) {
	t.Parallel()
	role, err := roles.Find(kubernetesRole)
	if err != nil {
		t.Fatal(err)
	}
	const gib = int64(1) << 30
	for _, test := range []struct {
		disk, used int64
		want       string
	}{
		{8 * gib, 8 * gib, ""},
		{20 * gib, 8 * gib, ""},
		{8*gib - 1, 8*gib - 1, "the root disk /dev/vda has 8.0 GiB (8589934591 bytes); a Kubernetes node needs 8.0 GiB (8589934592 bytes) at least"},
		{20 * gib, 5 * gib, "the root disk /dev/vda has 20.0 GiB of which rootdisksize allows 5.0 GiB (5368709120 bytes); a Kubernetes node needs 8.0 GiB (8589934592 bytes) at least"},
	} {
		n := &node{role: role, disk: growpart.Result{Disk: "/dev/vda", DiskBytes: test.disk}, diskBytes: test.used}
		_, err := n.checkMachine(context.Background(), nil)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%d of %d bytes: %v, want none", test.used, test.disk, err)
		case test.want != "" && (err == nil || err.Error() != test.want || fault.As(err).Code != fault.DiskTooSmall):
			t.Errorf("%d of %d bytes: %v, want %q", test.used, test.disk, err, test.want)
		}
	}
}

// The plan says how much of the disk would be used, and that it is too little.
func TestPlanOfTheDisk(t *testing.T) {
	t.Parallel()
	const node = " type=cksnode name=node-1 eth0ip=10.1.1.57 eth0mask=255.255.255.0 gateway=10.1.1.1"
	for size, tooSmall := range map[string]bool{"20": false, "8": false, "7": true} {
		report := makePlan(node+" rootdisksize="+size, nil)
		found := false
		for _, problem := range report.Problems {
			found = found || problem.Code == fault.DiskTooSmall
		}
		if found != tooSmall || report.Disk.RequestedBytes == 0 {
			t.Errorf("rootdisksize=%s: %+v, %+v", size, report.Disk, report.Problems)
		}
	}
}
