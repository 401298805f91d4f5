// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nodeagent/test/cloud"
	"nodeagent/test/iso"
	"nodeagent/test/lab"
)

// incompleteISO is a binaries ISO that ends a node's making at the step iso, when
// userdata and cloud-init are done.
func incompleteISO(t *testing.T, ctx context.Context) string {
	t.Helper()
	path, err := iso.Build(ctx, os.Stderr, iso.Options{Small: true, Omit: []string{"k8s/kubeadm"}})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// wantNodeUpToISO follows a node to the incomplete ISO and checks where its
// userdata came from and that the key in it is the cloud user's.
func wantNodeUpToISO(t *testing.T, ctx context.Context, l *lab.Lab, m *cloud.Machine, source string) {
	t.Helper()
	status := wantFailure(t, ctx, l, m, 22, "iso-incomplete")
	wantSteps(t, status, map[string]string{"network": "done", "userdata": "done", "preflight": "done", "iso": "failed"})
	if step, _ := status.Step("userdata"); !strings.HasPrefix(step.Note, "init, from "+source) {
		t.Errorf("userdata note %q, want it from %s", step.Note, source)
	}
	wantKey(t, ctx, l, m)
	if id := output(t, ctx, m, "/usr/bin/cat", "/var/lib/cloud/data/instance-id"); strings.TrimSpace(id) != m.ID {
		t.Errorf("cloud-init's instance id is %q, want %s", id, m.ID)
	}
	if got := output(t, ctx, m, "/usr/bin/cat", "/proc/mounts"); strings.Contains(got, "iso9660") {
		t.Errorf("a medium is still mounted:\n%s", got)
	}
}

// wantKey waits until the cloud user has the key of the userdata: the step iso may
// fail before cloud-init is done.
func wantKey(t *testing.T, ctx context.Context, l *lab.Lab, m *cloud.Machine) {
	t.Helper()
	status := waitStep(t, ctx, m, "cloud-init", func(s lab.Step) bool { return s.Status == "done" || s.Status == "failed" })
	if status.Status != "done" {
		t.Errorf("cloud-init is %s: %s", status.Status, status.Note)
	}
	if got := output(t, ctx, m, "/usr/bin/cat", "/home/cloud/.ssh/authorized_keys"); !strings.Contains(got, strings.Fields(l.Key.Public)[1]) {
		t.Errorf("the cloud user lacks the key of the userdata: %q", got)
	}
}

// waitStep asks for the status until the step is as wanted.
func waitStep(t *testing.T, ctx context.Context, m *cloud.Machine, name string, wanted func(lab.Step) bool) lab.Step {
	t.Helper()
	var last lab.Step
	for {
		if status, _, err := lab.ReadStatus(ctx, m); err == nil {
			last, _ = status.Step(name)
			if wanted(last) {
				return last
			}
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			t.Fatalf("step %s is %q (%s): %v", name, last.Status, last.Note, context.Cause(ctx))
		}
	}
}

// C6, C12: a config drive in front of the drive for ISOs, behind it, on a disk and in a
// partition, in a network whose router refuses every request.
func TestVMConfigDrive(t *testing.T) {
	wantConfigDrives(t, map[cloud.ConfigDrivePlace]string{cloud.ConfigDriveFirstCD: "/dev/sr0", cloud.ConfigDrivePartition: "/dev/vdb1"})
}

// The same in further places.
func TestMoreConfigDrives(t *testing.T) {
	wantConfigDrives(t, map[cloud.ConfigDrivePlace]string{cloud.ConfigDriveSecondCD: "/dev/sr1", cloud.ConfigDriveDisk: "/dev/vdb"})
}

func wantConfigDrives(t *testing.T, devices map[cloud.ConfigDrivePlace]string) {
	for place, device := range devices {
		t.Run(filepath.Base(device), func(t *testing.T) {
			ctx, l := newLab(t)
			if err := l.Cloud.Router.SetRefuse(true); err != nil {
				t.Fatal(err)
			}
			spec := nodeSpec(t, l, 12*gib)
			spec.ConfigDrive = place
			m := boot(t, ctx, l, spec)
			if err := m.InsertISO(ctx, incompleteISO(t, ctx)); err != nil {
				t.Fatal(err)
			}
			wantNodeUpToISO(t, ctx, l, m, "config drive "+device+" (label config-2)")
		})
	}
}

// C6, C13: the one CD drive of some hypervisors has the config drive, late, and
// then the binaries ISO.
func TestMoreConfigDriveLate(t *testing.T) {
	ctx, l := newLab(t)
	spec := nodeSpec(t, l, 12*gib)
	served := spec.Userdata
	spec.Userdata = nil // the router has metadata only
	m := boot(t, ctx, l, spec)
	waitStep(t, ctx, m, "userdata", func(s lab.Step) bool {
		return strings.Contains(s.Note, "/dev/sr0: no medium") && strings.Contains(s.Note, "answered 404 Not Found")
	})
	drive := m.ConfigDrive()
	drive.Userdata = served
	path := filepath.Join(t.TempDir(), "drive.iso")
	if err := drive.Build(ctx, path); err != nil {
		t.Fatal(err)
	}
	if err := m.InsertISO(ctx, path); err != nil {
		t.Fatal(err)
	}
	waitStep(t, ctx, m, "userdata", func(s lab.Step) bool { return s.Status == "done" })
	if err := m.InsertISO(ctx, incompleteISO(t, ctx)); err != nil {
		t.Fatal(err)
	}
	wantNodeUpToISO(t, ctx, l, m, "config drive /dev/sr0 (label config-2)")
}

// C8: a shared network, where the router is not the gateway and the zone's resolver
// does not know data-server: the DHCP server's identifier is the only way.
func TestVMSharedNetwork(t *testing.T) {
	ctx, l := newLab(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	shared, err := cloud.New(ctx, cloud.Options{Dir: t.TempDir(), Log: t.Output(), Router: netip.MustParseAddr("10.1.1.5")})
	if err != nil {
		t.Fatal(err)
	}
	l.Cloud = shared // newLab's cleanup closes it
	spec := nodeSpec(t, l, 12*gib)
	args := shared.NodeArgs(spec.Name, spec.Address)
	resolver := []netip.Addr{netip.MustParseAddr("10.1.1.1")} // the gateway: nobody answers there
	args.InternalDNS, args.DNS = resolver, resolver
	spec.BootArgs = args.String()
	m := boot(t, ctx, l, spec)
	if err := m.InsertISO(ctx, incompleteISO(t, ctx)); err != nil {
		t.Fatal(err)
	}
	wantNodeUpToISO(t, ctx, l, m, "http://10.1.1.5:80 (DHCP server)")
	for _, query := range shared.Router.Queries() {
		if strings.HasPrefix(query.Name, "data-server") {
			t.Errorf("the router was asked for %s: the test shows nothing", query.Name)
		}
	}
}
