// SPDX-License-Identifier: Apache-2.0

package cloud

import "fmt"

// platform is what machines of one architecture are made of.
type platform struct {
	qemu    string // program
	machine string // QEMU's name of the board
	cpu     string // to emulate
	// UEFI firmware of Debian: the program, which all machines share, and the variables
	// a new machine starts with. They belong together.
	uefiCode, uefiVars string
	kvm                bool // may be used
}

// findPlatform knows architectures by Debian's names. Empty: amd64.
func findPlatform(arch string) (platform, error) {
	switch arch {
	case "", "amd64":
		return platform{
			qemu: "qemu-system-x86_64", machine: "q35", cpu: "max",
			uefiCode: "/usr/share/OVMF/OVMF_CODE_4M.fd", uefiVars: "/usr/share/OVMF/OVMF_VARS_4M.fd", // package ovmf
			kvm: true,
		}, nil
	case "arm64":
		return platform{
			qemu: "qemu-system-aarch64", machine: "virt", cpu: "cortex-a76",
			uefiCode: "/usr/share/AAVMF/AAVMF_CODE.fd", uefiVars: "/usr/share/AAVMF/AAVMF_VARS.fd", // qemu-efi-aarch64
		}, nil
	}
	return platform{}, fmt.Errorf("architecture %q is neither amd64 nor arm64", arch)
}
