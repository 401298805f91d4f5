// SPDX-License-Identifier: Apache-2.0

//go:build vm

// Package vm tests nodeagent on real machines: the template booted by QEMU in
// an emulated CloudStack.
package vm

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/test/cloud"
	"nodeagent/test/iso"
	"nodeagent/test/lab"
	"nodeagent/test/template"
)

const gib = 1 << 30

// labLimit is how long one test may take, unless it says otherwise.
const labLimit = 45 * time.Minute

// newLab makes a cloud for one test.
func newLab(t *testing.T) (context.Context, *lab.Lab) {
	t.Helper()
	return newLabWith(t, template.Options{}, labLimit)
}

// newLabWith makes a cloud with another template, for as long as limit. Clouds know
// nothing of each other: how many tests run at once is go test's -parallel.
func newLabWith(t *testing.T, options template.Options, limit time.Duration) (context.Context, *lab.Lab) {
	t.Helper()
	t.Parallel()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("VM tests need root")
		}
		t.Skip("VM tests need root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "lab.log"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(ctx, dir, log, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		log.Close()
	})
	return ctx, l
}

// boot starts a machine; when the test fails it shows what the machine said.
func boot(t *testing.T, ctx context.Context, l *lab.Lab, spec cloud.MachineSpec) *cloud.Machine {
	t.Helper()
	m, err := l.Boot(ctx, spec)
	if m != nil {
		t.Cleanup(func() {
			if t.Failed() {
				autopsy(t, m)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func autopsy(t *testing.T, m *cloud.Machine) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, command := range [][]string{
		{"/usr/bin/nodeagent", "status"},
		{"/usr/bin/journalctl", "-b", "--no-pager", "-n", "150", "-o", "short-monotonic"},
		{"/usr/bin/systemctl", "list-jobs", "--no-pager"},
	} {
		if result, err := m.Agent().Exec(ctx, command[0], command[1:]...); err == nil {
			t.Logf("%s: $ %s\n%s%s", m.Spec.Name, strings.Join(command, " "), result.Stdout, result.Stderr)
		}
	}
	console := m.Console()
	t.Logf("console of %s ends:\n%s", m.Spec.Name, console[max(0, len(console)-4000):])
}

// follow waits until nodeagent has ended on a boot other than the one before.
func follow(t *testing.T, ctx context.Context, m *cloud.Machine, before string) (*lab.Status, int) {
	t.Helper()
	began := time.Now()
	status, code, err := lab.Follow(ctx, m, before, func(step lab.Step) {
		t.Logf("%6.1fs %-12s %-8s %s", time.Since(began).Seconds(), step.Name, step.Status, step.Note)
	})
	if err != nil {
		t.Fatal(err)
	}
	return status, code
}

// output runs a program in the machine.
func output(t *testing.T, ctx context.Context, m *cloud.Machine, path string, args ...string) string {
	t.Helper()
	text, err := lab.Text(ctx, m, path, args...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// settled waits until systemd has no more jobs: what nodeagent queued has
// happened.
func settled(t *testing.T, ctx context.Context, m *cloud.Machine) {
	t.Helper()
	if _, err := m.Agent().Exec(ctx, "/usr/bin/systemctl", "is-system-running", "--wait"); err != nil {
		t.Fatal(err)
	}
}

func wantSteps(t *testing.T, status *lab.Status, want map[string]string) {
	t.Helper()
	for name, state := range want {
		if step, _ := status.Step(name); step.Status != state {
			t.Errorf("step %s is %q (%s), want %s", name, step.Status, step.Note, state)
		}
	}
}

// sizes are the bytes of the root disk, its partition and its file system.
func sizes(t *testing.T, ctx context.Context, m *cloud.Machine, root string) (disk, partition, filesystem int64) {
	t.Helper()
	fmt.Sscan(output(t, ctx, m, "/usr/sbin/blockdev", "--getsize64", "/dev/vda", root), &disk, &partition)
	fields := strings.Fields(output(t, ctx, m, "/usr/bin/stat", "-f", "-c", "%b %S", "/"))
	var blocks, size int64
	fmt.Sscan(strings.Join(fields, " "), &blocks, &size)
	return disk, partition, blocks * size
}

// A router of 256 MB's worth of work: disk grown, docker, containerd and
// cloud-init off, CloudStack's own scripts run after it; the second boot changes
// nothing. C3, C4, C34, G3, G12, S2, S8.
func TestVMRouter(t *testing.T) {
	ctx, l := newLab(t)
	spec := l.RouterSpec("r-7-vm")
	spec.DiskBytes = 10 * gib
	spec.BootFromDisk = true // by grub, from its own disk
	m := boot(t, ctx, l, spec)
	status, code := follow(t, ctx, m, "")
	if code != 0 || status.Phase != "done" || status.Role != "router" {
		t.Fatalf("exit code %d, phase %s, role %s, failures %v, warnings %v", code, status.Phase, status.Role, status.Failures(), status.Warnings)
	}
	wantSteps(t, status, map[string]string{"boot-args": "done", "role": "done", "disk": "done", "services": "done", "kubeadm": ""})
	disk, partition, filesystem := sizes(t, ctx, m, "/dev/vda6")
	if disk != 10*gib || partition < 8*gib || filesystem < partition*95/100 {
		t.Errorf("disk %d, partition %d, file system %d: not grown to the disk", disk, partition, filesystem)
	}
	settled(t, ctx, m)
	wantOff(t, ctx, m, []string{"docker.service", "docker.socket", "containerd.service", "cloud-init.service"})
	wantNeighbours(t, ctx, m, true)
	if got := output(t, ctx, m, "/usr/bin/systemctl", "show", "-p", "MainPID,ActiveState", "nodeagent.service"); got != "MainPID=0\nActiveState=active\n" {
		t.Errorf("nodeagent.service: %q, want active without a process", got)
	}

	// Second boot, by the guest itself: nothing is delivered (C4), nothing grows.
	first := status.BootID
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	status, code = follow(t, ctx, m, first)
	if code != 0 || status.Phase != "done" {
		t.Fatalf("second boot: exit code %d, failures %v", code, status.Failures())
	}
	step, _ := status.Step("boot-args")
	if !strings.Contains(step.Note, "persisted") && !strings.Contains(step.Note, "stale") {
		t.Errorf("second boot: boot args note %q does not say they are those of an earlier boot", step.Note)
	}
	if step, _ := status.Step("disk"); !strings.Contains(step.Note, "nothing to grow") {
		t.Errorf("second boot: disk note %q, want nothing to grow", step.Note)
	}
	if step, _ := status.Step("services"); !strings.Contains(step.Note, "all as they should be") {
		t.Errorf("second boot: services note %q, want no change", step.Note)
	}
}

// wantNeighbours checks whether CloudStack's own units ran, and after nodeagent.
func wantNeighbours(t *testing.T, ctx context.Context, m *cloud.Machine, ran bool) {
	t.Helper()
	for _, unit := range []string{"cloud-preinit", "cloud-early-config", "cloud-postinit"} {
		result, err := m.Agent().Exec(ctx, "/usr/bin/stat", "/run/cloudstack/"+unit)
		if err != nil {
			t.Fatal(err)
		}
		if (result.ExitCode == 0) != ran {
			t.Errorf("%s ran: %v, want %v", unit, result.ExitCode == 0, ran)
		}
	}
}

// C4: no boot args is a named failure, visible where an operator looks, with ssh
// up; it ends, and does not wait for ever.
func TestVMMissingBootArgs(t *testing.T) {
	ctx, l := newLab(t)
	m := boot(t, ctx, l, l.Spec("nobody", 6*gib))
	wantFailure(t, ctx, l, m, 3922, "boot-args-missing")
}

// The boot args come by fw_cfg here: no wait for the guest agent.
func TestVMWrongType(t *testing.T) {
	ctx, l := newLab(t)
	spec := l.Spec("wrong", 6*gib)
	spec.FirmwareBootArgs = " template=domP name=wrong type=coffeemachine eth0ip=10.1.1.11 eth0mask=255.255.255.0 gateway=10.1.1.1"
	m := boot(t, ctx, l, spec)
	status := wantFailure(t, ctx, l, m, 3922, "role-unknown")
	if step, _ := status.Step("boot-args"); !strings.Contains(step.Note, "fw_cfg") {
		t.Errorf("boot args note %q, want fw_cfg", step.Note)
	}
}

// wantFailure waits for the failure and checks status, console, /etc/issue and
// that ssh answers (C9, C41).
func wantFailure(t *testing.T, ctx context.Context, l *lab.Lab, m *cloud.Machine, sshPort uint16, code string) *lab.Status {
	t.Helper()
	status, exit := follow(t, ctx, m, "")
	if exit != 1 || !slices.Equal(status.Failures(), []string{code}) {
		t.Errorf("exit code %d, failures %v, want 1 and %s", exit, status.Failures(), code)
	}
	if err := m.WaitConsole(ctx, 0, code); err != nil {
		t.Error(err)
	}
	if issue := output(t, ctx, m, "/usr/bin/cat", "/etc/issue"); !strings.Contains(issue, code) {
		t.Errorf("/etc/issue does not name %s:\n%s", code, issue)
	}
	text, err := m.Agent().Exec(ctx, "/usr/bin/nodeagent", "status")
	if err != nil || !strings.Contains(string(text.Stdout), "What to do") {
		t.Errorf("status does not say what to do (%v)", err)
	}
	t.Logf("nodeagent status:\n%s", text.Stdout)
	// Its start was queued before the failure; it is ordered after the network.
	settled(t, ctx, m)
	if sockets := output(t, ctx, m, "/usr/bin/ss", "-Hltn", "sport", "=", fmt.Sprintf(":%d", sshPort)); !strings.Contains(sockets, "LISTEN") {
		t.Errorf("ssh does not listen on %d: %q", sshPort, sockets)
	}
	return status
}

// nodeSpec is a control node whose network and userdata are right.
func nodeSpec(t *testing.T, l *lab.Lab, diskBytes int64) cloud.MachineSpec {
	t.Helper()
	spec, _, err := l.ControlNodeSpec("node-1", netip.MustParseAddr("10.1.1.57"))
	if err != nil {
		t.Fatal(err)
	}
	spec.DiskBytes = diskBytes
	return spec
}

func wantBanner(t *testing.T, ctx context.Context, l *lab.Lab, m *cloud.Machine) {
	t.Helper()
	if banner, err := l.Cloud.DialSSHBanner(ctx, netip.AddrPortFrom(m.Address, 22)); err != nil || !strings.HasPrefix(banner, "SSH-2.0") {
		t.Errorf("ssh from outside on port 22: %q, %v", banner, err)
	}
}

// C36: a node whose disk is too small says so, with both sizes.
func TestVMNodeDiskTooSmall(t *testing.T) {
	ctx, l := newLab(t)
	m := boot(t, ctx, l, nodeSpec(t, l, 5*gib))
	status := wantFailure(t, ctx, l, m, 22, "disk-too-small")
	for _, step := range status.Steps {
		if step.Error != nil && (!strings.Contains(step.Error.Message, "5.0 GiB") || !strings.Contains(step.Error.Message, "8.0 GiB")) {
			t.Errorf("message %q lacks one of the sizes", step.Error.Message)
		}
	}
	wantBanner(t, ctx, l, m)
}

func TestVMNodeUserdataCutInHalf(t *testing.T) {
	ctx, l := newLab(t)
	spec := nodeSpec(t, l, 12*gib)
	spec.Userdata = spec.Userdata[:len(spec.Userdata)/2]
	m := boot(t, ctx, l, spec)
	wantFailure(t, ctx, l, m, 22, "userdata-invalid")
	wantBanner(t, ctx, l, m)
}

// C12: an ISO without kubeadm is refused by name; the neighbours' units skip
// themselves on a node nodeagent owns, and the host settings are made.
func TestVMNodeISOWithoutKubeadm(t *testing.T) {
	ctx, l := newLab(t)
	path, err := iso.Build(ctx, os.Stderr, iso.Options{Small: true, Omit: []string{"k8s/kubeadm"}})
	if err != nil {
		t.Fatal(err)
	}
	m := boot(t, ctx, l, nodeSpec(t, l, 12*gib))
	if err := m.InsertISO(ctx, path); err != nil {
		t.Fatal(err)
	}
	status := wantFailure(t, ctx, l, m, 22, "iso-incomplete")
	if step, _ := status.Step("iso"); step.Error == nil || !strings.Contains(step.Error.Message, "k8s/kubeadm") {
		t.Errorf("the failure does not name k8s/kubeadm: %+v", step.Error)
	}
	wantNeighbours(t, ctx, m, false)
	wantNodeSettings(t, ctx, m)
	if got := strings.TrimSpace(output(t, ctx, m, "/usr/bin/hostname")); got != "node-1" {
		t.Errorf("host name %q, want node-1", got)
	}
	if got := output(t, ctx, m, "/usr/bin/cat", "/proc/swaps"); strings.Count(got, "\n") > 1 {
		t.Errorf("swap is on:\n%s", got)
	}
	if got := output(t, ctx, m, "/usr/bin/cat", "/home/cloud/.ssh/authorized_keys"); !strings.Contains(got, strings.Fields(l.Key.Public)[1]) {
		t.Errorf("the cloud user lacks the key of the userdata: %q", got)
	}
	if result, err := m.Agent().Exec(ctx, "/usr/bin/stat", "/home/cloud/success"); err != nil || result.ExitCode == 0 {
		t.Errorf("the success marker is there on a failed node (%v)", err)
	}
}
