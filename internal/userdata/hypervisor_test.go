// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"testing"

	"nodeagent/internal/host/hosttest"
)

func TestHypervisor(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		facts hypervisorFacts
		want  Hypervisor
	}{
		{"CloudStack's KVM", hypervisorFacts{SysVendor: "Apache Software Foundation", Product: "CloudStack KVM Hypervisor", BIOSVendor: "SeaBIOS"}, KVM},
		{"plain QEMU", hypervisorFacts{SysVendor: "QEMU", Product: "Standard PC (Q35 + ICH9, 2009)"}, KVM},
		{"an operator's own DMI", hypervisorFacts{SysVendor: "ACME", Product: "Cloud", AgentPort: true}, KVM},
		{"KVM with Hyper-V's enlightenments", hypervisorFacts{SysVendor: "QEMU", FWCfg: true}, KVM},
		{"arm64 by device tree", hypervisorFacts{DeviceTree: "linux,kvm"}, KVM},
		{"VMware", hypervisorFacts{SysVendor: "VMware, Inc.", Product: "VMware20,1", BIOSVendor: "VMware, Inc."}, VMware},
		{"VirtualBox, on KVM's clock", hypervisorFacts{SysVendor: "innotek GmbH", Product: "VirtualBox", BIOSVendor: "innotek GmbH"}, VirtualBox},
		{"Hyper-V", hypervisorFacts{SysVendor: "Microsoft Corporation", Product: "Virtual Machine", VMBus: true}, HyperV},
		{"Virtual PC", hypervisorFacts{SysVendor: "Microsoft Corporation", Product: "Virtual Machine"}, HyperV},
		{"a Microsoft notebook", hypervisorFacts{SysVendor: "Microsoft Corporation", Product: "Surface Laptop"}, Unknown},
		{"Xen PV", hypervisorFacts{Type: "xen", GuestType: "PV", ProcXen: true}, XenPV},
		{"Xen PVH", hypervisorFacts{Type: "xen", GuestType: "PVH"}, XenPV},
		{"Xen PVH with DMI", hypervisorFacts{Type: "xen", GuestType: "PVH", SysVendor: "Xen"}, XenPV},
		{"Xen HVM", hypervisorFacts{Type: "xen", GuestType: "HVM", SysVendor: "Xen", Product: "HVM domU"}, XenHVM},
		// cs#2760: virt-what says "hyperv" first and "xen-domU" last.
		{"Xen HVM with Viridian", hypervisorFacts{Type: "xen", GuestType: "HVM", SysVendor: "Xen", Product: "HVM domU", VMBus: true}, XenHVM},
		{"Xen HVM that the kernel takes for Hyper-V", hypervisorFacts{SysVendor: "Xen", Product: "HVM domU", VMBus: true}, XenHVM},
		{"Xen HVM of a kernel without guest_type", hypervisorFacts{ProcXen: true, SysVendor: "Xen"}, XenHVM},
		{"Xen PV of a kernel without guest_type", hypervisorFacts{ProcXen: true}, XenPV},
		{"Xen on arm64", hypervisorFacts{DeviceTree: "xen,xen-4.17\x00xen,xen"}, XenPV},
		{"hardware", hypervisorFacts{SysVendor: "Dell Inc.", Product: "PowerEdge R650"}, Unknown},
		{"nothing", hypervisorFacts{}, Unknown},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := test.facts.hypervisor(); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
}

func TestReadHypervisorFacts(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	for name, text := range map[string]string{
		"/sys/hypervisor/type":                     "xen\n",
		"/sys/hypervisor/guest_type":               "HVM\n",
		"/proc/xen/capabilities":                   "",
		"/sys/class/dmi/id/sys_vendor":             "Xen\n",
		"/sys/class/dmi/id/product_name":           "HVM domU\n",
		"/sys/class/dmi/id/bios_vendor":            "Xen\n",
		"/proc/device-tree/hypervisor/compatible":  "xen,xen\x00",
		"/sys/bus/vmbus/devices/a-b-c/uevent":      "",
		"/sys/firmware/qemu_fw_cfg/rev":            "1",
		"/dev/virtio-ports/org.qemu.guest_agent.0": "",
	} {
		m.Write(name, text)
	}
	want := hypervisorFacts{Type: "xen", GuestType: "HVM", ProcXen: true, SysVendor: "Xen", Product: "HVM domU", BIOSVendor: "Xen",
		DeviceTree: "xen,xen", VMBus: true, FWCfg: true, AgentPort: true}
	if got := readHypervisorFacts(m.Host()); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := readHypervisorFacts(hosttest.New(t).Host()); got != (hypervisorFacts{}) {
		t.Errorf("of an empty machine: %+v", got)
	}
}
