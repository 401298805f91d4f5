// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"nodeagent/internal/host"
)

// Names of a Source.
const (
	SourceGuestAgent = "guest agent"
	SourceFile       = "file" // somebody else than the guest agent wrote CmdlineFile
	SourceFWCfg      = "fw_cfg"
	SourceMachineID  = "VMware machine.id"
	SourceKernel     = "kernel command line"
	SourceXenstore   = "xenstore"
	SourceKVP        = "Hyper-V KVP"
	SourceDMI        = "DMI"
	SourceOverride   = "override"  // overrideFile, on any hypervisor
	SourcePersisted  = "persisted" // from an earlier boot
)

// overrideFile comes before what the hypervisor says, as in CloudStack's scripts.
const overrideFile = "/mnt/cmdline"

// sources are the ways in which boot args can reach a machine, in the order in
// which they are looked at.
type sources struct {
	// carriers are names of one systemd unit that brings them; the first that
	// exists is started.
	carriers []string
	held     []held
	delivery *delivery // nil: nothing comes later than the machine starts
	hint     string    // what an operator can do when nothing came; "" is the catalogue's
}

// held are boot args the machine has from its start, or never. An error says why
// there are none.
type held struct {
	name string
	read func(context.Context, *host.Host) (string, error)
}

// delivery are boot args the host has somebody write into a file at some time
// after the machine's start.
type delivery struct {
	name   string
	awaits string   // what is waited for
	files  []string // alternatives; the folder of the first is made
	// parse returns the boot args in such a file, and whether they are whole for
	// sure although their writer may not have closed the file.
	parse func(data []byte) (text string, whole bool)
}

// sourcesOf is the table of contract 1.1. An unknown machine is taken for KVM,
// which looks like many things.
func sourcesOf(hypervisor Hypervisor) sources {
	override := held{SourceOverride, readOverride}
	xenstore := held{SourceXenstore, readXenstore}
	switch hypervisor {
	case VMware:
		return sources{
			carriers: []string{"open-vm-tools.service"},
			held:     []held{override, {SourceMachineID, readMachineID}},
			hint:     "Check that open-vm-tools is in the template and that the VM's advanced settings have machine.id; then stop and start the VM from CloudStack.",
		}
	case XenPV:
		return sources{
			held: []held{override, {SourceKernel, readKernelCmdline}, xenstore},
			hint: "Check the VM's PV-args on the host; then stop and start the VM from CloudStack.",
		}
	case XenHVM:
		return sources{
			held: []held{override, xenstore},
			hint: "Check the VM's xenstore-data on the host (" + xenstoreKey + "); then stop and start the VM from CloudStack.",
		}
	case HyperV:
		return sources{
			// Debian 12 has the first, templates up to 4.19 the second.
			carriers: []string{"hv-kvp-daemon.service", "hyperv-daemons.hv-kvp-daemon.service"},
			held:     []held{override},
			delivery: &delivery{SourceKVP, "Hyper-V's host to send " + kvpKey, []string{kvpPool, kvpPoolOld}, parseKVP},
			hint:     "Check that the VM's integration service \"Data Exchange\" is on and hyperv-daemons is in the template; then stop and start the VM from CloudStack.",
		}
	case VirtualBox:
		return sources{
			held: []held{override, {SourceDMI, readDMI}},
			hint: "Set a DMI string of the VM to " + dmiMarker + " and the boot args, with VBoxManage setextradata.",
		}
	}
	return sources{
		carriers: []string{guestAgent},
		held:     []held{override, {SourceFWCfg, readFWCfg}},
		delivery: &delivery{SourceGuestAgent, "the host to write them through the guest agent", []string{CmdlineFile}, parseCmdlineFile},
	}
}

// parseCmdlineFile reads what patch.sh writes through the guest agent: an echo of
// the boot args, so it ends in a newline.
func parseCmdlineFile(data []byte) (text string, whole bool) {
	if blank(string(data)) {
		return "", false
	}
	return string(data), strings.HasSuffix(string(data), "\n")
}

func readOverride(_ context.Context, h *host.Host) (string, error) {
	// Anything but a file, such as a mount point, is none: so do the scripts see it.
	if info, err := os.Stat(h.Path(overrideFile)); err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("no file %s", overrideFile)
	}
	data, err := h.ReadFile(overrideFile)
	if err == nil && blank(string(data)) {
		err = errors.New(overrideFile + " is empty")
	}
	return string(data), err
}

const blanks = " \t\r\n\x00"

func blank(text string) bool { return strings.Trim(text, blanks) == "" }

// fromCloudStack tells boot args from other text in a place not CloudStack's
// alone: every line of its has both keys.
func fromCloudStack(text string) bool {
	args := ParseBootArgs(text)
	_, typed := args.Get("type")
	_, templated := args.Get("template")
	return typed || templated
}
