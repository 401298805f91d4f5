// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"context"
	"slices"
	"strings"
	"testing"

	"nodeagent/test/cloud"
	"nodeagent/test/template"
)

// The template of `make template` that no other test boots (TestVMRoles starts both with
// an MBR, TestVMRootOnGPT the other one with UEFI), by its own boot loader: the root is grown, containers and cloud-init are
// off, CloudStack's scripts have run. C3, C35, G3.
func TestMoreTemplates(t *testing.T) {
	// What cloud-init's units are called.
	cloudInit := map[string][]string{
		"bookworm": {"cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service"},
		"trixie": {"cloud-init-main.service", "cloud-init-local.service", "cloud-init-network.service",
			"cloud-config.service", "cloud-final.service"},
	}
	for name, test := range map[string]struct {
		options template.Options
		root    string
	}{
		"trixie-gpt": {template.Options{Suite: "trixie", GPT: true}, "/dev/vda4"},
	} {
		t.Run(name, func(t *testing.T) {
			suite := test.options.Suite
			ctx, l := newLabWith(t, test.options, labLimit)
			spec := l.RouterSpec("r-9-vm")
			spec.DiskBytes = 10 * gib
			spec.BootFromDisk, spec.UEFI = true, test.options.GPT
			m := boot(t, ctx, l, spec)
			status, code := follow(t, ctx, m, "")
			if code != 0 || status.Phase != "done" || status.Role != "router" {
				t.Fatalf("exit code %d, phase %s, role %s, failures %v, warnings %v", code, status.Phase, status.Role, status.Failures(), status.Warnings)
			}
			if got := output(t, ctx, m, "/usr/bin/cat", "/etc/os-release"); !strings.Contains(got, "VERSION_CODENAME="+suite+"\n") {
				t.Errorf("this is not Debian %s:\n%s", suite, got)
			}
			if disk, partition, filesystem := sizes(t, ctx, m, test.root); disk != 10*gib || partition < 8*gib || filesystem < partition*95/100 {
				t.Errorf("disk %d, partition %d, file system %d: not grown to the disk", disk, partition, filesystem)
			}
			if verdict := output(t, ctx, m, "/usr/sbin/sfdisk", "--verify", "/dev/vda"); !strings.Contains(verdict, "No errors detected") {
				t.Errorf("sfdisk --verify: %s", verdict)
			}
			mounts := output(t, ctx, m, "/usr/bin/cat", "/proc/mounts")
			if got := strings.Contains(mounts, "/dev/vda1 /boot/efi vfat "); got != test.options.GPT {
				t.Errorf("EFI system partition mounted: %v, want %v\n%s", got, test.options.GPT, mounts)
			}
			if result, err := m.Agent().Exec(ctx, "/usr/bin/stat", "/sys/firmware/efi"); err != nil || (result.ExitCode == 0) != test.options.GPT {
				t.Errorf("booted by UEFI: %v, want %v (%v)", result.ExitCode == 0, test.options.GPT, err)
			}
			settled(t, ctx, m)
			wantNeighbours(t, ctx, m, true)
			wantOff(t, ctx, m, slices.Concat([]string{"docker.service", "docker.socket", "containerd.service"}, cloudInit[suite]))
		})
	}
}

// wantOff checks of units that are there that they neither run nor start at boot.
func wantOff(t *testing.T, ctx context.Context, m *cloud.Machine, units []string) {
	t.Helper()
	for question, want := range map[string]string{"is-active": "inactive", "is-enabled": "disabled"} {
		result, err := m.Agent().Exec(ctx, "/usr/bin/systemctl", append([]string{question}, units...)...)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Fields(string(result.Stdout)); !slices.Equal(got, slices.Repeat([]string{want}, len(units))) {
			t.Errorf("systemctl %s %q says %q (%s), want %s of all", question, units, got, result.Stderr, want)
		}
	}
}
