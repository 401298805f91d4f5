// SPDX-License-Identifier: Apache-2.0

package template

import (
	"fmt"
	"slices"
	"strings"
)

// architecture is a kind of processor with what a template has to know of it.
type architecture struct {
	name string // Debian's, and Go's
	// kernelArgs are its part of the kernel's command line.
	kernelArgs string
	packages   []string

	platform string // of GRUB for UEFI firmware
	// grubInside: GRUB's modules are in the template's root, for Debian has them for
	// machines of that kind only.
	grubInside bool
	// loader is where firmware looks on a disk it has no boot entry for: a machine made
	// from a template has fresh firmware variables.
	loader string
	bios   bool // there are machines without UEFI firmware
}

// architectures has the default first.
func architectures() []architecture {
	return []architecture{
		{
			name: "amd64",
			// Without KVM on a busy host the kernel's test of the timer fails, and it panics.
			kernelArgs: "no_timer_check console=tty0 console=ttyS0",
			packages:   []string{"linux-image-cloud-amd64"},
			platform:   "x86_64-efi", loader: "BOOTX64.EFI", bios: true,
		},
		{
			name:       "arm64",
			kernelArgs: "console=tty0 console=ttyAMA0",
			packages:   []string{"linux-image-cloud-arm64", "grub-efi-arm64-bin"},
			platform:   "arm64-efi", loader: "BOOTAA64.EFI", grubInside: true,
		},
	}
}

// Architectures are the kinds of machine a template can be made for, the default first.
func Architectures() []string {
	var names []string
	for _, a := range architectures() {
		names = append(names, a.name)
	}
	return names
}

// findArchitecture returns an architecture whose machines boot from such a disk.
func findArchitecture(name string, gpt bool) (architecture, error) {
	known := architectures()
	if name == "" {
		name = known[0].name
	}
	i := slices.IndexFunc(known, func(a architecture) bool { return a.name == name })
	if i < 0 {
		return architecture{}, fmt.Errorf("architecture %q: expected one of %s", name, strings.Join(Architectures(), ", "))
	}
	if !gpt && !known[i].bios {
		return architecture{}, fmt.Errorf("architecture %s: it needs a GPT, for it has no BIOS", name)
	}
	return known[i], nil
}
