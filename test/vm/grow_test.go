// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"os"
	"strings"
	"testing"

	"nodeagent/test/lab"
	"nodeagent/test/template"
)

// The layout of the aarch64 template: GPT, EFI, /boot, swap and root as the last.
// The root is grown while it is mounted, the backup header moves to the end of
// the disk, and the second boot writes nothing. C35, G2, G5, G12.
func TestVMRootOnGPT(t *testing.T) {
	ctx, l := newLabWith(t, template.Options{GPT: true}, labLimit)
	spec := l.RouterSpec("r-8-vm")
	spec.DiskBytes = 10 * gib
	spec.BootFromDisk, spec.UEFI = true, true
	m := boot(t, ctx, l, spec)
	status, code := follow(t, ctx, m, "")
	if code != 0 || status.Phase != "done" {
		t.Fatalf("exit code %d, failures %v, warnings %v", code, status.Failures(), status.Warnings)
	}
	disk, partition, filesystem := sizes(t, ctx, m, "/dev/vda4")
	if disk != 10*gib || partition < 8*gib || filesystem < partition*95/100 {
		t.Errorf("disk %d, partition %d, file system %d: not grown to the disk", disk, partition, filesystem)
	}
	verdict := output(t, ctx, m, "/usr/sbin/sfdisk", "--verify", "/dev/vda")
	if !strings.Contains(verdict, "No errors detected") {
		t.Errorf("sfdisk --verify: %s", verdict)
	}
	if swaps := output(t, ctx, m, "/usr/bin/cat", "/proc/swaps"); !strings.Contains(swaps, "/dev/vda3") {
		t.Errorf("swap is not on: %s", swaps)
	}

	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	status, code = follow(t, ctx, m, status.BootID)
	if step, _ := status.Step("disk"); code != 0 || step.Note != "nothing to grow" {
		t.Errorf("second boot: exit code %d, disk note %q, want nothing to grow", code, step.Note)
	}
	if _, again, _ := sizes(t, ctx, m, "/dev/vda4"); again != partition {
		t.Errorf("second boot: the kernel read a partition of %d bytes, want %d", again, partition)
	}
}

// Every layout with every file system, grown in use on a real kernel with udev
// beside it; a hundred rounds of one; and every state a power cut can leave, read
// by the kernel's own partition parsers. G3, G4, G5, G6, G7, G8, G11, G12, G13.
func TestVMGrowEverything(t *testing.T) {
	ctx, l := newLabWith(t, template.Options{DiskTools: true}, labLimit)
	programs, err := lab.ProgramDisk(ctx, t.TempDir(), lab.Program{Name: "growpart.test", Package: "nodeagent/internal/growpart", Tests: true})
	if err != nil {
		t.Fatal(err)
	}
	spec := l.RouterSpec("workshop")
	spec.DiskBytes = 16 * gib
	spec.MemoryMiB = 2048
	spec.ExtraDisks = []string{programs}
	m := boot(t, ctx, l, spec)
	if _, code := follow(t, ctx, m, ""); code != 0 {
		t.Fatalf("the workshop did not boot: exit code %d", code)
	}
	output(t, ctx, m, "/usr/bin/mount", "-o", "ro", "/dev/vdb", "/mnt")
	args := []string{"-test.v", "-test.run", "^TestGuest", "-test.timeout", "25m"}
	if os.Getenv("CI") != "" {
		args = append(args, "-test.short") // six minutes less
	}
	result, err := m.Agent().Exec(ctx, "/mnt/growpart.test", args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("in the machine:\n%s%s", result.Stdout, result.Stderr)
	if result.ExitCode != 0 {
		t.Errorf("the tests in the machine failed: exit code %d", result.ExitCode)
	}
}
