// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/test/cloud"
)

// packageDisk builds the package with a version and makes a medium of it.
func packageDisk(t *testing.T, ctx context.Context, version string) string {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "package.iso")
	for _, argv := range [][]string{
		{"make", "-C", "../..", "deb", "VERSION=" + version, "ARCH=amd64", "DIST=" + filepath.Join(dir, "dist")},
		{"mkdir", filepath.Join(dir, "content")},
		{"cp", filepath.Join(dir, "dist", fmt.Sprintf("nodeagent_%s_amd64.deb", version)), filepath.Join(dir, "content", "new.deb")},
		{"xorriso", "-as", "mkisofs", "-quiet", "-r", "-o", image, filepath.Join(dir, "content")},
	} {
		command := exec.CommandContext(ctx, argv[0], argv[1:]...)
		command.Env = append(os.Environ(), "MAKEFLAGS=")
		if text, err := command.CombinedOutput(); err != nil {
			t.Fatalf("cannot make a disk with the package: %s: %v\n%s", command, err, text)
		}
	}
	return image
}

// The package in the life of a router: as the template has it, upgraded while the
// machine runs, disabled by its administrator, purged. After that the machine boots
// as one that never had it, with CloudStack's own scripts.
func TestVMPackage(t *testing.T) {
	ctx, l := newLab(t)
	spec := l.RouterSpec("r-9-vm")
	spec.ExtraDisks = []string{packageDisk(t, ctx, "0.1.1")}
	m := boot(t, ctx, l, spec)
	shell := func(script string) string {
		t.Helper()
		return output(t, ctx, m, "/bin/sh", "-euc", script)
	}
	// want compares what a script prints.
	want := func(script, text string) {
		t.Helper()
		if got := strings.TrimSpace(shell(script)); got != text {
			t.Errorf("%s\nprints %q, want %q", script, got, text)
		}
	}

	status, code := follow(t, ctx, m, "")
	if code != 0 || status.Phase != "done" {
		t.Fatalf("exit code %d, failures %v, warnings %v", code, status.Failures(), status.Warnings)
	}
	if step, _ := status.Step("disk"); !strings.Contains(step.Note, "grew") {
		t.Errorf("disk note %q: with the unit's capabilities it did not grow", step.Note)
	}
	settled(t, ctx, m)
	want("systemctl is-enabled nodeagent.service", "enabled")
	const listFailed = "systemctl list-units --state=failed --plain --no-legend | cut -d' ' -f1"
	failed := strings.Fields(shell(listFailed))

	// An upgrade keeps what the operator wrote, what the agent knows, and the unit
	// as it is: this boot's work is done.
	shell("mount -o ro /dev/vdb /mnt; echo 'rootDiskSize: 0' >>/etc/nodeagent/nodeagent.yaml; echo '# mine' >/etc/nodeagent/roles.d/mine.yaml")
	const state = "cd /; sha256sum etc/nodeagent/nodeagent.yaml etc/nodeagent/roles.d/mine.yaml var/lib/nodeagent/*.json; " +
		"systemctl show -p ActiveState,InvocationID,UnitFileState,ExecMainStartTimestampMonotonic nodeagent.service"
	before := shell(state)
	shell("dpkg --install /mnt/new.deb")
	if after := shell(state); after != before {
		t.Errorf("the upgrade changed\n%sto\n%s", before, after)
	}
	if got := shell("nodeagent version"); !strings.HasPrefix(got, "nodeagent 0.1.1 ") {
		t.Errorf("after the upgrade it is %q", got)
	}
	want("dpkg-query -W -f '${Version} ${Status}' nodeagent", "0.1.1 install ok installed")
	shell("systemctl disable nodeagent.service; dpkg --install /mnt/new.deb")
	want("systemctl is-enabled nodeagent.service || true", "disabled")

	// CloudStack's scripts start the guest agent; those of the test only record that
	// they ran.
	shell("umount /mnt; systemctl enable nodeagent.service; systemctl add-wants multi-user.target qemu-guest-agent.service")
	shell("dpkg --purge nodeagent")
	want("systemctl show -p LoadState nodeagent.service", "LoadState=not-found")
	want("systemctl show -p DropInPaths 'cloud-*.service' | grep nodeagent || true", "")
	want("find / -xdev -name '*nodeagent*'; find /run -name '*nodeagent*'; grep nodeagent /etc/issue || true", "")

	first := shell("cat /proc/sys/kernel/random/boot_id")
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	awaitBoot(t, ctx, m, first)
	settled(t, ctx, m)
	wantNeighbours(t, ctx, m, true)
	for _, unit := range strings.Fields(shell(listFailed)) {
		if !slices.Contains(failed, unit) {
			t.Errorf("without the package %s fails:\n%s", unit, shell("journalctl -b -u "+unit))
		}
	}
	want("find / -xdev -name '*nodeagent*'; find /run -name '*nodeagent*'", "")
}

// awaitBoot waits until the guest agent answers in another boot than before.
func awaitBoot(t *testing.T, ctx context.Context, m *cloud.Machine, before string) {
	t.Helper()
	ask := func() (string, error) {
		// What is sent to an agent that has not started may never be answered.
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		result, err := m.Agent().Exec(ctx, "/usr/bin/cat", "/proc/sys/kernel/random/boot_id")
		return string(result.Stdout), err
	}
	for {
		id, err := ask()
		if err == nil && id != before {
			return
		}
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			t.Fatalf("the machine did not come back: %v, %v", context.Cause(ctx), err)
		}
	}
}
