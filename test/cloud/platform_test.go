// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"net"
	"strings"
	"testing"
)

func findTestPlatform(t *testing.T, arch string) platform {
	t.Helper()
	on, err := findPlatform(arch)
	if err != nil {
		t.Fatal(err)
	}
	return on
}

// An arm64 machine has a board without IDE and ISA, and everything of CloudStack's on
// PCI, and is emulated, whatever a cloud is told.
func TestArm64Args(t *testing.T) {
	t.Parallel()
	on := findTestPlatform(t, "arm64")
	if on.qemu != "qemu-system-aarch64" {
		t.Errorf("program %s, want qemu-system-aarch64", on.qemu)
	}
	args := strings.Join(qemuArgs(on, MachineSpec{Name: "n1", CPUs: 1, MemoryMiB: 512}, "tcg", hostFiles{mac: net.HardwareAddr{2}}), " ")
	contains(t, "arguments", args, "-machine virt -smp 1 -m 512 -accel tcg,thread=multi -cpu cortex-a76",
		"virtio-blk-pci,drive=disk0", "virtio-scsi-pci", "name=org.qemu.guest_agent.0", "-serial chardev:console")
	if accel, err := (&Cloud{accel: "kvm"}).accelerator(t.Context(), on, "/k", ""); err != nil || accel != "tcg" {
		t.Errorf("accelerator %s, %v, want tcg", accel, err)
	}
	if _, err := findPlatform("riscv64"); err == nil {
		t.Error("riscv64: got no error, want one")
	}
	if _, err := (&Cloud{}).reserve(MachineSpec{Name: "n1", Arch: "riscv64"}); err == nil {
		t.Error("a machine of riscv64: got no error, want one")
	}
}
