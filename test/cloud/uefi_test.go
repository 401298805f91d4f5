// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"net"
	"strings"
	"testing"
)

// The program of the firmware is shared, and never written; the variables are the
// machine's own. A BIOS machine has neither.
func TestUEFIArgs(t *testing.T) {
	t.Parallel()
	for arch, code := range map[string]string{
		"":      "/usr/share/OVMF/OVMF_CODE_4M.fd",
		"amd64": "/usr/share/OVMF/OVMF_CODE_4M.fd",
		"arm64": "/usr/share/AAVMF/AAVMF_CODE.fd",
	} {
		spec := MachineSpec{Name: "n1", BootFromDisk: true, UEFI: true}
		host := hostFiles{overlay: "/o.qcow2", uefiVars: "/v,1", mac: net.HardwareAddr{2}}
		on := findTestPlatform(t, arch)
		contains(t, "arguments", strings.Join(qemuArgs(on, spec, "tcg", host), " "),
			"if=pflash,unit=0,format=raw,readonly=on,file="+code+" ",
			"if=pflash,unit=1,format=raw,file=/v,,1 ")
		spec.UEFI = false
		if args := strings.Join(qemuArgs(on, spec, "tcg", host), " "); strings.Contains(args, "pflash") {
			t.Errorf("got %s, want no UEFI firmware", args)
		}
	}
}
