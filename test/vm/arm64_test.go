// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"strings"
	"testing"
	"time"

	"nodeagent/test/template"
)

// An arm64 machine with arm64's package, from its own boot loader to the end of
// nodeagent, and again. CloudStack's scripts grow partitions 2 and 6 there, of four:
// the root stays as small as the template (C35). Named so that `make test` does not
// choose it: the machine is emulated.
func TestE2EArm64(t *testing.T) {
	ctx, l := newLabWith(t, template.Options{Arch: "arm64", GPT: true}, labLimit)
	spec := l.RouterSpec("r-10-vm")
	spec.DiskBytes = 10 * gib
	spec.BootFromDisk, spec.UEFI = true, true
	began := time.Now()
	m := boot(t, ctx, l, spec)
	status, code := follow(t, ctx, m, "")
	t.Logf("nodeagent had ended %.0fs after power-on", time.Since(began).Seconds())
	wantOtherRole(t, ctx, m, "router", status, code)
	for _, step := range status.Steps {
		if step.Status != "done" {
			t.Errorf("step %s is %s (%s)", step.Name, step.Status, step.Note)
		}
	}
	if step, _ := status.Step("boot-args"); !strings.Contains(step.Note, "guest agent") {
		t.Errorf("boot args note %q, want the guest agent", step.Note)
	}
	if got := output(t, ctx, m, "/usr/bin/uname", "-m"); got != "aarch64\n" {
		t.Errorf("the machine is %q", got)
	}
	disk, partition, filesystem := sizes(t, ctx, m, "/dev/vda4")
	if disk != 10*gib || partition < 8*gib || filesystem < partition*95/100 {
		t.Errorf("disk %d, partition %d, file system %d: not grown to the disk", disk, partition, filesystem)
	}
	if verdict := output(t, ctx, m, "/usr/sbin/sfdisk", "--verify", "/dev/vda"); !strings.Contains(verdict, "No errors detected") {
		t.Errorf("sfdisk --verify: %s", verdict)
	}
	wantOff(t, ctx, m, []string{"docker.service", "docker.socket", "containerd.service", "cloud-init-local.service", "cloud-init.service"})

	// What the last of CloudStack's scripts does on a router.
	output(t, ctx, m, "/usr/bin/systemctl", "start", "ssh.service")
	if banner := output(t, ctx, m, "/usr/bin/bash", "-c", "head -n 1 </dev/tcp/127.0.0.1/3922"); !strings.HasPrefix(banner, "SSH-2.0") {
		t.Errorf("ssh says %q", banner)
	}

	first := status.BootID
	began = time.Now()
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	status, code = follow(t, ctx, m, first)
	t.Logf("nodeagent had ended %.0fs after the reboot", time.Since(began).Seconds())
	wantOtherRole(t, ctx, m, "router", status, code)
	for name, want := range map[string]string{"disk": "nothing to grow", "services": "all as they should be"} {
		if step, _ := status.Step(name); !strings.Contains(step.Note, want) {
			t.Errorf("second boot: %s note %q, want %s", name, step.Note, want)
		}
	}
	if _, again, _ := sizes(t, ctx, m, "/dev/vda4"); again != partition {
		t.Errorf("second boot: the kernel read a partition of %d bytes, want %d", again, partition)
	}
}
