// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nodeagent/internal/host"
)

// lab is a bridge with machines on it.
type lab struct {
	scratch  string
	programs programs
	cluster  *cluster // made when it is first needed
	machines int      // made so far
}

var subnet = netip.MustParsePrefix("10.1.1.0/24")

const bridgeName = "lab"

func newLab(scratch string, p programs) (*lab, error) {
	// Of the process ids of this namespace.
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return nil, fmt.Errorf("cannot mount /proc: %w", err)
	}
	if err := unix.Mount("lab", scratch, "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("cannot mount a tmpfs: %w", err)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("cannot make a bridge: %w", err)
	}
	return &lab{scratch: scratch, programs: p}, netlink.LinkSetUp(bridge)
}

// machine is a root and a network of its own.
type machine struct {
	name    string
	address string
	root    string
	api     string // of kubeadm's configuration
	network netns.NsHandle
	stop    context.CancelFunc
	ctx     context.Context
	kubelet *kubelet
}

// machine makes a fresh machine with the address.
func (l *lab) machine(name, address string) (*machine, error) {
	l.machines++
	dir := filepath.Join(l.scratch, fmt.Sprintf("%d-%s", l.machines, name))
	m := &machine{name: name, address: address, root: filepath.Join(dir, "root"), api: apiOf(l.programs.version)}
	m.ctx, m.stop = context.WithCancel(context.Background())
	for _, folder := range []string{"root", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return nil, err
		}
	}
	overlay := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", l.programs.root, filepath.Join(dir, "upper"), filepath.Join(dir, "work"))
	if err := unix.Mount("overlay", m.root, "overlay", 0, overlay); err != nil {
		return nil, fmt.Errorf("cannot mount the root of %s: %w", name, err)
	}
	if err := m.furnish(l.programs); err != nil {
		return nil, fmt.Errorf("cannot make machine %s: %w", name, err)
	}
	if err := m.connect(fmt.Sprintf("lab%d", l.machines)); err != nil {
		return nil, fmt.Errorf("cannot connect machine %s: %w", name, err)
	}
	return m, nil
}

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

// furnish mounts what a root needs and puts the programs in place.
func (m *machine) furnish(p programs) error {
	for _, mount := range []struct{ source, target, kind string }{
		{"proc", "proc", "proc"},
		{"sysfs", "sys", "sysfs"},
		{"tmpfs", "run", "tmpfs"},
		{"tmpfs", "tmp", "tmpfs"},
		// overlayfs cannot lie on overlayfs.
		{"tmpfs", "var/lib/containerd", "tmpfs"},
	} {
		if err := os.MkdirAll(m.path(mount.target), 0o755); err != nil {
			return err
		}
		flags := uintptr(0)
		if mount.kind == "sysfs" {
			flags = unix.MS_RDONLY
		}
		if err := unix.Mount(mount.source, m.path(mount.target), mount.kind, flags, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", mount.target, err)
		}
	}
	if err := m.bind("/dev", "dev"); err != nil {
		return err
	}
	// kubeadm looks for the controllers; nothing here may make a group.
	if err := m.bind("/sys/fs/cgroup", "sys/fs/cgroup"); err != nil {
		return err
	}
	readOnly := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, m.path("sys/fs/cgroup"), unix.AT_RECURSIVE, readOnly); err != nil {
		return err
	}
	if err := m.bind(p.kubernetes, "opt/kubernetes"); err != nil {
		return err
	}
	if err := m.bind(p.etcd, "opt/etcd"); err != nil {
		return err
	}
	if err := m.write("opt/bin/kubeadm", "", 0o755); err != nil {
		return err
	}
	if err := unix.Mount(p.kubeadm, m.path("opt/bin/kubeadm"), "", unix.MS_BIND, ""); err != nil {
		return err
	}
	links := map[string]string{"opt/bin/etcd": "/opt/etcd/server"}
	for _, name := range []string{"kubelet", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		links["opt/bin/"+name] = "/opt/kubernetes/" + name
	}
	if p.version != labVersion {
		// kubeadm asks it for its version, and for nothing else.
		delete(links, "opt/bin/kubelet")
		if err := m.write("opt/bin/kubelet", "#!/bin/sh\necho Kubernetes "+withV(p.version)+"\n", 0o755); err != nil {
			return err
		}
	}
	if m.api == "v1beta3" {
		// kubeadm of before 1.31 asks containerd by crictl.
		if err := m.write("opt/bin/crictl", "#!/bin/sh\ntest -S /run/containerd/containerd.sock\n", 0o755); err != nil {
			return err
		}
	}
	for link, target := range links {
		if err := os.Symlink(target, m.path(link)); err != nil {
			return err
		}
	}
	// systemd's answers of a machine on which all is well.
	if err := m.write("opt/bin/systemctl", "#!/bin/sh\nexit 0\n", 0o755); err != nil {
		return err
	}
	// No name server: names are asked of this machine, which refuses at once.
	if err := m.remove("etc/resolv.conf"); err != nil {
		return err
	}
	if err := m.write("etc/hostname", m.name+"\n", 0o644); err != nil {
		return err
	}
	return m.write("etc/hosts", "127.0.0.1 localhost\n"+m.address+" "+m.name+"\n", 0o644)
}

func (m *machine) bind(source, target string) error {
	if err := os.MkdirAll(m.path(target), 0o755); err != nil {
		return err
	}
	return unix.Mount(source, m.path(target), "", unix.MS_BIND|unix.MS_REC, "")
}

// write writes a file of the machine.
func (m *machine) write(name, content string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(m.path(name), []byte(content), mode)
}

// remove removes a file or folder of the machine.
func (m *machine) remove(name string) error { return os.RemoveAll(m.path(name)) }

// connect makes the machine's network and plugs it into the bridge.
func (m *machine) connect(link string) error {
	bridge, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	made := make(chan error, 1)
	go func() {
		// The thread is in another namespace then and ends with this function.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			m.network, err = netns.Get()
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: link, MasterIndex: bridge.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(m.network)}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		return err
	}
	return m.within(func() error {
		for _, name := range []string{"lo", "eth0"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		if err := m.addAddress(m.address); err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP("10.1.1.1")}); err != nil {
			return err
		}
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	})
}

// addAddress gives eth0 an address; to be called within.
func (m *machine) addAddress(address string) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	parsed, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", address, subnet.Bits()))
	if err != nil {
		return err
	}
	return netlink.AddrAdd(eth0, parsed)
}

// within calls fn in the machine's network.
func (m *machine) within(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(m.network); err != nil {
			result <- err
			return
		}
		result <- fn()
	}()
	return <-result
}

// command is a program that runs in the machine, on as many of its CPUs as cpus
// says, or on all with 0.
func (m *machine) command(ctx context.Context, cpus int, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{machineArgument, m.root, m.name, strconv.Itoa(cpus), program}, args...)...)
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(m.dupNetwork()), "network")}
	cmd.Env = []string{"PATH=" + host.Path, "HOME=/root", "LC_ALL=C.UTF-8"}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// dupNetwork is a descriptor that os/exec may close.
func (m *machine) dupNetwork() int {
	fd, err := unix.FcntlInt(uintptr(m.network), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1 // starting the command then says so
	}
	return fd
}

// output runs a program in the machine and returns what it printed.
func (m *machine) output(program string, args ...string) (string, error) {
	out, err := m.command(m.ctx, 0, program, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s on %s: %w: %s", program, m.name, err, out)
	}
	return string(out), nil
}

// start starts a program in the machine whose output goes to a log there. It is
// killed when ctx ends.
func (m *machine) start(ctx context.Context, program string, args ...string) error {
	log, err := os.OpenFile(m.path("var/log/"+filepath.Base(program)+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd := m.command(ctx, 0, program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Start()
	log.Close()
	if err == nil {
		go func() { _ = cmd.Wait() }()
	}
	return err
}

// startContainerd starts containerd and waits until its socket is there.
func (m *machine) startContainerd() error {
	if err := m.start(m.ctx, "/usr/bin/containerd"); err != nil {
		return err
	}
	return wait(func() error {
		conn, err := net.Dial("unix", m.path("run/containerd/containerd.sock"))
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// off ends all that runs in the machine. Its root stays mounted until the program
// ends.
func (m *machine) off() {
	m.stop()
	m.network.Close()
}

// wait tries until it works, for some minutes.
func wait(try func() error) error {
	deadline := time.Now().Add(3 * time.Minute)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// enterMachine becomes the program: arguments are the root, the host's name, the
// number of CPUs, the program and its arguments; descriptor 3 is the network.
func enterMachine(args []string) error {
	if len(args) < 4 {
		return errors.New("machine: want root, name, CPUs and program")
	}
	runtime.LockOSThread()
	cpus, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	if cpus > 0 {
		var set unix.CPUSet
		for cpu := range cpus {
			set.Set(cpu)
		}
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
	}
	if err := unix.Setns(3, unix.CLONE_NEWNET); err != nil {
		return err
	}
	unix.CloseOnExec(3)
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(args[1])); err != nil {
		return err
	}
	if err := unix.Chroot(args[0]); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	path, err := exec.LookPath(args[3])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args[3:], os.Environ())
}
