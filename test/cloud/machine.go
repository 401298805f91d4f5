// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/google/uuid"
)

// MachineSpec is what a machine is made of. Name and Disk are needed.
type MachineSpec struct {
	// Name is the host name, and the machine's name in DNS, DHCP and logs.
	Name string
	// Disk is the template's qcow2 image. It is never written to: the machine
	// gets an overlay.
	Disk string
	// DiskBytes is the size of the root disk; zero: the template's own.
	DiskBytes int64
	// Arch is the kind of machine, amd64 or arm64. Empty: amd64. arm64 is
	// emulated on every host.
	Arch string
	// ExtraDisks are raw images attached as further virtio disks, written to.
	ExtraDisks []string
	// Address is the fixed address; zero: the next free one from 10.1.1.11.
	Address netip.Addr

	// Kernel, Initrd and Append boot the machine directly; without Kernel, or
	// with BootFromDisk, its own boot loader does. Kernel also serves to find
	// out whether KVM works here.
	Kernel, Initrd, Append string
	BootFromDisk           bool
	// UEFI gives the machine UEFI firmware, with variables of its own, in place of a
	// BIOS.
	UEFI bool

	// BootArgs is the line for a role, as NodeArgs.String makes it. Create
	// delivers it; after Start it is the caller's part (DeliverBootArgs).
	BootArgs string
	// FirmwareBootArgs are offered in fw_cfg opt/cloudstack/cmdline from
	// power-on; empty: not at all.
	FirmwareBootArgs string

	// Userdata and PublicKeys are served by the metadata server, or are on the
	// config drive. Nil Userdata is not found there.
	Userdata   []byte
	PublicKeys []string
	// ConfigDrive attaches a config drive; the metadata server then knows nothing
	// of the machine.
	ConfigDrive ConfigDrivePlace
	// Metadata adds to, or replaces, the keys of meta-data/.
	Metadata map[string]string

	MemoryMiB int // zero: 3072
	CPUs      int // zero: 2
	// CountInstructions makes the machine's clock one of instructions, a nanosecond
	// each: how much CPU time something takes then depends neither on the emulation
	// nor on what else this host does. Always emulated.
	CountInstructions bool
}

// Machine is a virtual machine of a cloud. It may be powered off and on again,
// with the same disk and address.
type Machine struct {
	Spec    MachineSpec // as given to Start, with its defaults filled in
	Address netip.Addr
	MAC     net.HardwareAddr
	ID      string // CloudStack's id of the machine, also cloud-init's instance-id

	cloud       *Cloud
	platform    platform
	overlay     string
	uefiVars    string
	tap         string
	console     *Transcript
	consoleFile *os.File

	mu    sync.Mutex
	power *power // the last power-on
}

// power is one run of QEMU.
type power struct {
	cmd    *exec.Cmd
	qmp    *QMP
	agent  *Agent
	exited chan struct{}
	err    error // of QEMU; read after exited is closed
}

// Start makes a machine and powers it on. It returns when QEMU runs, not when
// the system inside is up.
func (c *Cloud) Start(ctx context.Context, spec MachineSpec) (*Machine, error) {
	if spec.MemoryMiB == 0 {
		spec.MemoryMiB = 3072
	}
	if spec.CPUs == 0 {
		spec.CPUs = 2
	}
	m, err := c.reserve(spec)
	if err != nil {
		return nil, fmt.Errorf("cannot start machine %q: %w", spec.Name, err)
	}
	if err := m.make(ctx); err != nil {
		c.drop(m)
		return nil, errors.Join(fmt.Errorf("cannot start machine %q: %w", spec.Name, err), m.remove())
	}
	if err := m.PowerOn(ctx); err != nil {
		c.drop(m)
		return nil, errors.Join(err, m.remove())
	}
	return m, nil
}

// reserve takes a name, an address and a tap for the machine.
func (c *Cloud) reserve(spec MachineSpec) (*Machine, error) {
	if !validName(spec.Name) {
		return nil, errors.New("the name is no host name")
	}
	on, err := findPlatform(spec.Arch)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("the cloud is closed")
	}
	taken := map[netip.Addr]string{gateway: "the gateway", c.Router.Address: "the router"}
	for _, other := range c.machines {
		if other.Spec.Name == spec.Name {
			return nil, errors.New("there is a machine of that name")
		}
		taken[other.Address] = "machine " + other.Spec.Name
	}
	if !spec.Address.IsValid() {
		spec.Address = firstAddress
		for taken[spec.Address] != "" {
			spec.Address = spec.Address.Next()
		}
	}
	if !guestNetwork.Contains(spec.Address) {
		return nil, fmt.Errorf("address %s is not in %s", spec.Address, guestNetwork)
	}
	if owner := taken[spec.Address]; owner != "" {
		return nil, fmt.Errorf("address %s belongs to %s", spec.Address, owner)
	}
	octets := spec.Address.As4()
	m := &Machine{
		Spec: spec, Address: spec.Address, ID: uuid.NewString(), cloud: c, platform: on,
		MAC:      net.HardwareAddr{0x02, 0x01, octets[0], octets[1], octets[2], octets[3]},
		overlay:  filepath.Join(c.dir, spec.Name+".qcow2"),
		uefiVars: filepath.Join(c.dir, spec.Name+".uefivars"),
		tap:      "tap" + strconv.Itoa(c.taps),
		console:  new(Transcript),
	}
	c.taps++
	c.machines = append(c.machines, m)
	return m, nil
}

func validName(name string) bool {
	if name == "" || len(name) > 63 || name[0] == '-' {
		return false
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

func (c *Cloud) drop(m *Machine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, other := range c.machines {
		if other == m {
			c.machines = append(c.machines[:i:i], c.machines[i+1:]...)
			return
		}
	}
}

// make prepares all that outlives a power-off: disk, firmware variables, tap, lease,
// metadata, log.
func (m *Machine) make(ctx context.Context) error {
	file, err := os.Create(filepath.Join(m.cloud.dir, m.Spec.Name+".console.log"))
	if err != nil {
		return err
	}
	m.consoleFile, m.console.copy = file, file

	disk, err := filepath.Abs(m.Spec.Disk)
	if err != nil {
		return err
	}
	args := []string{"create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk, m.overlay}
	if m.Spec.DiskBytes > 0 {
		args = append(args, strconv.FormatInt(m.Spec.DiskBytes, 10))
	}
	if output, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot make disk: %w: %s", err, output)
	}
	if m.Spec.UEFI {
		vars, err := os.ReadFile(m.platform.uefiVars)
		if err != nil {
			return fmt.Errorf("cannot make UEFI variables: %w", err)
		}
		if err := os.WriteFile(m.uefiVars, vars, 0o600); err != nil {
			return err
		}
	}
	if err := m.cloud.network.addTap(m.tap); err != nil {
		return err
	}
	if m.Spec.ConfigDrive == NoConfigDrive {
		m.cloud.Router.metadata.set(m.Address, instance{userdata: m.Spec.Userdata, keys: m.metadata()})
	}
	return m.cloud.Router.add(ctx, m.Spec.Name, m.MAC, m.Address)
}

// metadata are the keys that CloudStack's router has for a machine.
func (m *Machine) metadata() map[string]string {
	keys := map[string]string{
		"availability-zone": "zone1",
		"cloud-identifier":  "CloudStack-{" + uuid.NewSHA1(uuid.NameSpaceDNS, []byte(domain)).String() + "}",
		"instance-id":       m.ID,
		"local-hostname":    m.Spec.Name,
		"local-ipv4":        m.Address.String(),
		"public-hostname":   m.cloud.Router.Address.String(),
		"public-ipv4":       m.cloud.Router.Address.String(),
		"public-keys":       joinLines(m.Spec.PublicKeys),
		"service-offering":  "CKS Node",
		"vm-id":             m.ID,
	}
	maps.Copy(keys, m.Spec.Metadata)
	return keys
}

func joinLines(lines []string) string {
	var text string
	for _, line := range lines {
		text += line + "\n"
	}
	return text
}

// SetUserdata changes what the metadata server tells from now on (contract 5.5), or
// what is on the config drive from the next power-on.
func (m *Machine) SetUserdata(userdata []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Spec.Userdata = userdata
	if m.Spec.ConfigDrive == NoConfigDrive {
		m.cloud.Router.metadata.set(m.Address, instance{userdata: userdata, keys: m.metadata()})
	}
}

// PowerOn starts QEMU; the machine must be off.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.power != nil && !m.power.ended() {
		return fmt.Errorf("cannot power on machine %q: it is on", m.Spec.Name)
	}
	accel, err := m.cloud.accelerator(ctx, m.platform, m.Spec.Kernel, m.Spec.Initrd)
	if err != nil {
		return fmt.Errorf("cannot power on machine %q: %w", m.Spec.Name, err)
	}
	if m.power, err = m.launch(ctx, accel); err != nil {
		return fmt.Errorf("cannot power on machine %q: %w", m.Spec.Name, err)
	}
	m.cloud.logf("%s: on (%s, %s)", m.Spec.Name, m.Address, accel)
	return nil
}

func (m *Machine) launch(ctx context.Context, accel string) (*power, error) {
	files := hostFiles{overlay: m.overlay, uefiVars: m.uefiVars, tap: m.tap, mac: m.MAC}
	if m.Spec.FirmwareBootArgs != "" {
		files.bootArgs = filepath.Join(m.cloud.sockets, m.Spec.Name+".cmdline")
		if err := os.WriteFile(files.bootArgs, []byte(m.Spec.FirmwareBootArgs), 0o600); err != nil {
			return nil, err
		}
	}
	var err error
	if files.configDrive, err = m.makeConfigDrive(ctx); err != nil {
		return nil, err
	}
	p := &power{cmd: exec.Command(m.platform.qemu, qemuArgs(m.platform, m.Spec, accel, files)...), exited: make(chan struct{})}

	// QEMU gets sockets that listen already: nobody has to wait for them.
	paths := make([]string, 0, 2)
	for _, kind := range []string{"qmp", "agent"} { // in the order of qmpFD, agentFD
		path := filepath.Join(m.cloud.sockets, m.Spec.Name+"."+kind)
		file, err := listenUnix(path)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, file)
		paths = append(paths, path)
	}
	var complaints Transcript
	p.cmd.Stdout, p.cmd.Stderr = m.console, io.MultiWriter(&complaints, m.console)
	if err := m.cloud.network.start(p.cmd); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
		cancel(errors.New("QEMU has ended"))
	}()
	if p.qmp, err = DialQMP(ctx, paths[0]); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s", err, complaints.String()), p.kill())
	}
	p.agent = NewAgent(paths[1])
	return p, nil
}

func listenUnix(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	return listener.File()
}

func (p *power) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

func (p *power) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.exited
	if p.qmp != nil {
		p.qmp.Close()
	}
	if p.agent != nil {
		p.agent.Close()
	}
	return nil
}

func (m *Machine) current() *power {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.power
}

// Agent is the guest agent of the present power-on.
func (m *Machine) Agent() *Agent { return m.current().agent }

// QMP is QEMU's own protocol of the present power-on.
func (m *Machine) QMP() *QMP { return m.current().qmp }

// Console is what the machine wrote to its serial port, over all power-ons.
func (m *Machine) Console() string { return m.console.String() }

// ConsoleLen is a place in the console to wait from: what comes next.
func (m *Machine) ConsoleLen() int { return m.console.Len() }

// WaitConsole blocks until piece stands in the console after its first from
// bytes. It gives up when ctx ends or the machine goes off.
func (m *Machine) WaitConsole(ctx context.Context, from int, piece string) error {
	p := m.current()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.exited:
			cancel(errors.New("the machine is off"))
		case <-ctx.Done():
		}
	}()
	if err := m.console.Wait(ctx, from, piece); err != nil {
		return fmt.Errorf("%s: %w", m.Spec.Name, err)
	}
	return nil
}

// DeliverBootArgs writes the boot args into the machine as the KVM host does.
func (m *Machine) DeliverBootArgs(ctx context.Context, args string) error {
	if err := m.Agent().DeliverBootArgs(ctx, args); err != nil {
		return fmt.Errorf("%s: %w", m.Spec.Name, err)
	}
	m.cloud.logf("%s: boot args delivered", m.Spec.Name)
	return nil
}

// InsertISO puts an image into the machine's CD drive.
func (m *Machine) InsertISO(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if err := m.QMP().InsertISO(ctx, path); err != nil {
		return fmt.Errorf("%s: cannot insert %s: %w", m.Spec.Name, path, err)
	}
	m.cloud.logf("%s: ISO attached", m.Spec.Name)
	return nil
}

// EjectISO takes the medium out of the CD drive, used or not.
func (m *Machine) EjectISO(ctx context.Context) error {
	if err := m.QMP().EjectISO(ctx); err != nil {
		return fmt.Errorf("%s: cannot eject ISO: %w", m.Spec.Name, err)
	}
	m.cloud.logf("%s: ISO detached", m.Spec.Name)
	return nil
}

// SetLink pulls the network cable of the machine, or puts it back.
func (m *Machine) SetLink(ctx context.Context, up bool) error {
	if err := m.QMP().Execute(ctx, "set_link", map[string]any{"name": "net0", "up": up}, nil); err != nil {
		return fmt.Errorf("%s: cannot set its link: %w", m.Spec.Name, err)
	}
	m.cloud.logf("%s: link up: %v", m.Spec.Name, up)
	return nil
}

// Reboot has the machine restart itself, and returns at the reset. CloudStack
// knows nothing of it and delivers nothing.
func (m *Machine) Reboot(ctx context.Context) error {
	qmp := m.QMP()
	seen := len(qmp.Events())
	if _, err := m.Agent().launch(ctx, "/usr/bin/systemctl", []string{"reboot"}, false); err != nil {
		return fmt.Errorf("%s: cannot reboot: %w", m.Spec.Name, err)
	}
	if _, err := qmp.WaitEvent(ctx, seen, "RESET"); err != nil {
		return fmt.Errorf("%s: cannot reboot: %w", m.Spec.Name, err)
	}
	m.cloud.logf("%s: rebooted", m.Spec.Name)
	return nil
}

// Reset presses the reset button.
func (m *Machine) Reset(ctx context.Context) error {
	qmp := m.QMP()
	seen := len(qmp.Events())
	if err := qmp.Reset(ctx); err != nil {
		return fmt.Errorf("%s: %w", m.Spec.Name, err)
	}
	_, err := qmp.WaitEvent(ctx, seen, "RESET")
	m.cloud.logf("%s: reset", m.Spec.Name)
	return err
}

// PowerOff presses the power button and returns when the machine is off.
func (m *Machine) PowerOff(ctx context.Context) error {
	if err := m.QMP().PowerDown(ctx); err != nil {
		return fmt.Errorf("%s: %w", m.Spec.Name, err)
	}
	return m.Wait(ctx)
}

// Wait blocks until the machine is off. QEMU's own failure is an error.
func (m *Machine) Wait(ctx context.Context) error {
	p := m.current()
	select {
	case <-p.exited:
		m.cloud.logf("%s: off", m.Spec.Name)
		if p.err != nil {
			return fmt.Errorf("%s: QEMU failed: %w", m.Spec.Name, p.err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: cannot wait for power-off: %w", m.Spec.Name, context.Cause(ctx))
	}
}

// Kill cuts the power: what the machine has not flushed is lost.
func (m *Machine) Kill() error {
	m.cloud.logf("%s: power cut", m.Spec.Name)
	return m.current().kill()
}

// Stop cuts the power and removes the machine with its disk.
func (m *Machine) Stop() error {
	m.cloud.drop(m)
	return m.remove()
}

func (m *Machine) remove() error {
	var errs []error
	p := m.current()
	if p != nil {
		errs = append(errs, p.kill())
	}
	if m.consoleFile != nil {
		m.cloud.Router.metadata.forget(m.Address)
		if err := m.cloud.network.removeTap(m.tap); err != nil && p != nil {
			errs = append(errs, err)
		}
		for _, path := range []string{m.overlay, m.uefiVars, filepath.Join(m.cloud.dir, m.Spec.Name+".configdrive")} {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		errs = append(errs, m.consoleFile.Close())
		m.consoleFile = nil
	}
	return errors.Join(errs...)
}
