// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"os"
	"strings"

	"nodeagent/internal/host"
)

// Hypervisor is what runs this machine, by the names CloudStack's scripts use.
type Hypervisor string

// The hypervisors. Each hands boot args over in its own way (contract 1.1).
const (
	KVM        Hypervisor = "kvm"
	VMware     Hypervisor = "vmware"
	XenPV      Hypervisor = "xen-pv"
	XenHVM     Hypervisor = "xen-hvm"
	HyperV     Hypervisor = "hyperv"
	VirtualBox Hypervisor = "virtualbox"
	Unknown    Hypervisor = "unknown"
)

// hypervisorFacts are what the kernel says of the machine it runs on. The CPUID
// leaves from 0x40000000 on are not among them: nothing but machine code reads
// them, and all they would add, Xen behind the Hyper-V leaf, the kernel has found
// out itself before it shows /sys/hypervisor.
type hypervisorFacts struct {
	Type       string // /sys/hypervisor/type; there on Xen only
	GuestType  string // /sys/hypervisor/guest_type: PV, HVM, PVH
	ProcXen    bool   // /proc/xen
	SysVendor  string // DMI
	Product    string
	BIOSVendor string
	DeviceTree string // compatible of the device tree's hypervisor node (arm64 without ACPI)
	VMBus      bool   // Hyper-V's bus has devices
	FWCfg      bool   // QEMU's fw_cfg
	AgentPort  bool   // the port of the QEMU guest agent
}

func readHypervisorFacts(h *host.Host) hypervisorFacts {
	text := func(name string) string {
		data, err := h.ReadFile(name)
		if err != nil {
			return "" // not there: not this hypervisor
		}
		return strings.Trim(string(data), " \t\r\n\x00")
	}
	vmbus, _ := os.ReadDir(h.Path("/sys/bus/vmbus/devices"))
	return hypervisorFacts{
		Type:       text("/sys/hypervisor/type"),
		GuestType:  text("/sys/hypervisor/guest_type"),
		ProcXen:    h.Exists("/proc/xen"),
		SysVendor:  text("/sys/class/dmi/id/sys_vendor"),
		Product:    text("/sys/class/dmi/id/product_name"),
		BIOSVendor: text("/sys/class/dmi/id/bios_vendor"),
		DeviceTree: text("/proc/device-tree/hypervisor/compatible"),
		VMBus:      len(vmbus) > 0,
		FWCfg:      h.Exists("/sys/firmware/qemu_fw_cfg"),
		AgentPort:  h.Exists("/dev/virtio-ports/org.qemu.guest_agent.0"),
	}
}

// hypervisor judges the facts. Xen comes first: with Viridian, its HVM guests see
// a Hyper-V as well (CloudStack issue 2760).
func (f hypervisorFacts) hypervisor() Hypervisor {
	has := func(text, part string) bool { return strings.Contains(strings.ToLower(text), part) }
	switch {
	case f.Type == "xen" || f.ProcXen || f.SysVendor == "Xen" || f.Product == "HVM domU" || has(f.DeviceTree, "xen"):
		return f.xen()
	case has(f.SysVendor, "vmware") || has(f.DeviceTree, "vmware"):
		return VMware
	case f.Product == "VirtualBox" || f.BIOSVendor == "innotek GmbH":
		return VirtualBox
	case f.VMBus || f.SysVendor == "Microsoft Corporation" && f.Product == "Virtual Machine":
		return HyperV
	case f.SysVendor == "QEMU" || f.SysVendor == "Apache Software Foundation" || has(f.Product, "kvm") ||
		f.BIOSVendor == "SeaBIOS" || has(f.DeviceTree, "kvm") || f.FWCfg || f.AgentPort:
		return KVM
	}
	return Unknown
}

// xen tells a guest that Xen started from its kernel, which therefore has a
// kernel command line of Xen's, from one with firmware. A kernel before 4.13 does
// not say; only firmware makes DMI.
func (f hypervisorFacts) xen() Hypervisor {
	switch f.GuestType {
	case "PV", "PVH":
		return XenPV
	case "HVM":
		return XenHVM
	}
	if f.SysVendor+f.Product+f.BIOSVendor != "" {
		return XenHVM
	}
	return XenPV
}
