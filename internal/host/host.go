// SPDX-License-Identifier: Apache-2.0

// Package host is the machine as a value: files below a root prefix, commands,
// systemd units, mounts and kernel events. All other packages reach the machine
// through it, so that tests can hand them another one (see hosttest).
package host

import "context"

// Host is one machine.
type Host struct {
	Root   string    // prefix of all file names; "" is the running machine
	Run    Commander // programs
	Units  Units     // systemd
	Kernel Kernel    // mounts, swap, host name
}

// Kernel is what is asked of the running kernel other than through files. Sizes
// are bytes; none of the calls waits for more than the kernel itself.
type Kernel interface {
	// Mount mounts a block device read-only, without devices, set-uid programs
	// or executables.
	MountReadOnly(device, target, fstype string) error
	// Unmount detaches target; a target that is no mount point is no error.
	Unmount(target string) error
	// SwapOff stops swapping to a device or file.
	SwapOff(path string) error
	// Sync blocks until all that was written to any file is on its disk.
	Sync()
	// SetHostname sets the kernel's host name.
	SetHostname(name string) error
}

// Report tells whoever watches a step what it waits for or how far it is, in one
// line. It never blocks.
type Report func(format string, args ...any)

// New returns the machine this program runs on. The connection to systemd is
// made when it is first needed.
func New() *Host {
	return &Host{Run: Exec{}, Units: &Systemd{}, Kernel: LinuxKernel{}}
}

// Commander runs programs.
type Commander interface {
	// Run runs a program and waits for it. It returns what the program wrote to
	// its standard output, also when it failed. A failure has a *CommandError
	// in its chain; when ctx ends first the program's process group is killed and ctx's error
	// is in the chain.
	Run(ctx context.Context, command Command) ([]byte, error)
}
