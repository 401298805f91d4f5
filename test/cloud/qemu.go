// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// QEMU inherits its listening sockets under these numbers.
const (
	qmpFD   = 3
	agentFD = 4
)

// kvmProbe is how long a kernel may take on KVM to write its first line.
const kvmProbe = 10 * time.Second

// hostFiles are the things of the host that a QEMU command line names.
type hostFiles struct {
	overlay, tap, bootArgs, configDrive, uefiVars string
	mac                                           net.HardwareAddr
}

// qemuArgs is the machine as CloudStack's KVM host would define it: virtio disk
// and network, guest agent port, an empty CD drive, a serial console.
func qemuArgs(on platform, spec MachineSpec, accel string, host hostFiles) []string {
	args := []string{
		"-name", spec.Name, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", on.machine, "-smp", strconv.Itoa(spec.CPUs), "-m", strconv.Itoa(spec.MemoryMiB),
	}
	if spec.CountInstructions {
		args = append(args, "-accel", "tcg,thread=single", "-cpu", "max", "-icount", "shift=0,sleep=on")
	} else {
		args = append(args, accelArgs(on, accel)...)
	}
	if spec.UEFI {
		args = append(args,
			"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+on.uefiCode,
			"-drive", "if=pflash,unit=1,format=raw,file="+escape(host.uefiVars))
	}
	args = append(args,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpFD), "-mon", "chardev=qmp,mode=control",
		"-drive", "if=none,id=disk0,format=qcow2,cache=unsafe,discard=unmap,file="+escape(host.overlay),
		"-device", "virtio-blk-pci,drive=disk0,bootindex=1",
		"-netdev", "tap,id=net0,script=no,downscript=no,ifname="+host.tap,
		"-device", "virtio-net-pci,netdev=net0,romfile=,mac="+host.mac.String(),
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", agentFD),
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		"-device", "virtio-scsi-pci,id=scsi0", "-device", "virtio-rng-pci",
	)
	args = append(args, cdDrives(spec.ConfigDrive, host.configDrive)...)
	for i, path := range spec.ExtraDisks {
		id := "disk" + strconv.Itoa(i+1)
		args = append(args,
			"-drive", "if=none,id="+id+",format=raw,cache=unsafe,file="+escape(path),
			"-device", "virtio-blk-pci,drive="+id)
	}
	switch spec.ConfigDrive {
	case ConfigDriveDisk, ConfigDrivePartition:
		args = append(args,
			"-drive", "if=none,id=config0,format=raw,readonly=on,file="+escape(host.configDrive),
			"-device", "virtio-blk-pci,drive=config0")
	}
	if host.bootArgs != "" {
		args = append(args, "-fw_cfg", "name=opt/cloudstack/cmdline,file="+escape(host.bootArgs))
	}
	if spec.Kernel != "" && !spec.BootFromDisk {
		args = append(args, "-kernel", spec.Kernel, "-append", spec.Append)
		if spec.Initrd != "" {
			args = append(args, "-initrd", spec.Initrd)
		}
	}
	return args
}

// cdDrives are the empty drive for ISOs and, in front of it or behind, one with the
// config drive. Linux numbers them by their SCSI ids.
func cdDrives(place ConfigDrivePlace, image string) []string {
	forISOs := "scsi-cd,bus=scsi0.0,scsi-id=%d,id=" + cdDrive
	config := "scsi-cd,bus=scsi0.0,scsi-id=%d,drive=config0"
	medium := []string{"-drive", "if=none,id=config0,format=raw,readonly=on,media=cdrom,file=" + escape(image)}
	switch place {
	case ConfigDriveFirstCD:
		return append(medium, "-device", fmt.Sprintf(config, 0), "-device", fmt.Sprintf(forISOs, 1))
	case ConfigDriveSecondCD:
		return append(medium, "-device", fmt.Sprintf(forISOs, 0), "-device", fmt.Sprintf(config, 1))
	}
	return []string{"-device", fmt.Sprintf(forISOs, 0)}
}

func accelArgs(on platform, accel string) []string {
	if accel == "kvm" {
		return []string{"-accel", "kvm", "-cpu", "max"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", on.cpu}
}

// escape doubles commas, which part the options of QEMU.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// accelerator is "kvm" where this kernel image runs on it, else "tcg". The
// answer is kept in the user's cache for the host's kernel release.
func (c *Cloud) accelerator(ctx context.Context, on platform, kernel, initrd string) (string, error) {
	if !on.kvm {
		return "tcg", nil
	}
	if c.accel != "" {
		return c.accel, nil
	}
	if unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) != nil {
		return "tcg", nil
	}
	cache, err := kvmCacheFile()
	if err != nil {
		return "", err
	}
	if kept, err := os.ReadFile(cache); err == nil {
		switch accel := strings.TrimSpace(string(kept)); accel {
		case "kvm", "tcg":
			return accel, nil
		}
	}
	if kernel == "" {
		return "tcg", nil
	}
	accel := "tcg"
	works, err := c.kernelRunsOnKVM(ctx, on, kernel, initrd)
	if err != nil {
		return "", err
	}
	if works {
		accel = "kvm"
	}
	c.logf("a kernel on KVM: %t, so %s from now on (%s)", works, accel, cache)
	if err := os.MkdirAll(filepath.Dir(cache), 0o755); err != nil {
		return "", err
	}
	return accel, os.WriteFile(cache, []byte(accel+"\n"), 0o644)
}

func kvmCacheFile() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", os.NewSyscallError("uname", err)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	release := string(bytes.TrimRight(name.Release[:], "\x00"))
	return filepath.Join(base, "nodeagent", "accelerator-"+release), nil
}

// kernelRunsOnKVM starts the kernel under KVM and waits for its first line on
// the serial port. That QEMU starts proves nothing: there are hosts on which it
// does and no kernel ever runs.
func (c *Cloud) kernelRunsOnKVM(ctx context.Context, on platform, kernel, initrd string) (bool, error) {
	if _, err := os.Stat(kernel); err != nil {
		return false, fmt.Errorf("cannot probe KVM: %w", err)
	}
	probe, cancel := context.WithTimeout(ctx, kvmProbe)
	defer cancel()
	args := append([]string{"-machine", on.machine, "-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "stdio", "-kernel", kernel, "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"}, accelArgs(on, "kvm")...)
	if initrd != "" {
		args = append(args, "-initrd", initrd)
	}
	cmd := exec.CommandContext(probe, on.qemu, args...)
	var console Transcript
	cmd.Stdout = &console
	if err := c.network.start(cmd); err != nil {
		return false, fmt.Errorf("cannot probe KVM: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		cancel()
		close(ended)
	}()
	err := console.Wait(probe, 0, "Linux version")
	cancel()
	<-ended
	if ctx.Err() != nil {
		return false, fmt.Errorf("cannot probe KVM: %w", context.Cause(ctx))
	}
	return err == nil, nil
}
