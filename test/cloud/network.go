// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	bridgeName      = "br0"
	namespacePrefix = "nodeagent-cloud-" // then the process id and some random bytes
	namespaceFolder = "/run/netns"
)

var (
	gateway      = netip.MustParseAddr("10.1.1.1")
	guestNetwork = netip.MustParsePrefix("10.1.1.0/24")
	firstAddress = netip.MustParseAddr("10.1.1.11")
)

// network is a network namespace without a way out, and the thread that starts
// children in it.
type network struct {
	name   string
	handle netns.NsHandle
	starts chan func()
	ended  chan struct{}
}

// newNetwork makes a namespace with the bridge, which carries the router's
// address. In a shared network the gateway is another address, kept on lo,
// from where it answers ARP as well.
func newNetwork(router netip.Addr) (*network, error) {
	if err := removeDeadNamespaces(); err != nil {
		return nil, err
	}
	suffix := make([]byte, 3)
	if _, err := rand.Read(suffix); err != nil {
		return nil, err
	}
	n := &network{
		name:   fmt.Sprintf("%s%d-%s", namespacePrefix, os.Getpid(), hex.EncodeToString(suffix)),
		starts: make(chan func()),
		ended:  make(chan struct{}),
	}

	made := make(chan error)
	go func() {
		defer close(n.ended)
		// The thread dies with this goroutine, and never goes back to the
		// pool in a foreign namespace. It lives as long as the cloud because
		// the parent-death signal of a child follows the thread, not the process.
		runtime.LockOSThread()
		handle, err := netns.NewNamed(n.name)
		n.handle = handle
		made <- err
		for start := range n.starts {
			start()
		}
	}()
	if err := <-made; err != nil {
		close(n.starts)
		<-n.ended
		return nil, fmt.Errorf("cannot make network namespace: %w", err)
	}

	if err := n.do(func() error { return buildBridge(router) }); err != nil {
		return nil, errors.Join(err, n.close())
	}
	if err := n.do(checkIsolated); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func buildBridge(router netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("cannot set lo up: %w", err)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("cannot add bridge: %w", err)
	}
	if err := addAddress(bridge, netip.PrefixFrom(router, guestNetwork.Bits())); err != nil {
		return err
	}
	if router != gateway {
		if err := addAddress(lo, netip.PrefixFrom(gateway, 32)); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("cannot set bridge up: %w", err)
	}
	return nil
}

func addAddress(link netlink.Link, prefix netip.Prefix) error {
	address := &netlink.Addr{IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 32)}}
	if err := netlink.AddrAdd(link, address); err != nil {
		return fmt.Errorf("cannot add address %s to %s: %w", prefix, link.Attrs().Name, err)
	}
	return nil
}

// checkIsolated asks the kernel for a route to addresses outside, and looks for
// a device that could lead there.
func checkIsolated() error {
	for _, outside := range []string{"192.0.2.1", "2001:db8::1"} {
		routes, err := netlink.RouteGet(net.ParseIP(outside))
		if err == nil {
			return fmt.Errorf("the namespace has a route to the outside: %v", routes)
		}
		if !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
			return fmt.Errorf("cannot ask for a route to %s: %w", outside, err)
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range links {
		if name := link.Attrs().Name; name != "lo" && name != bridgeName {
			return fmt.Errorf("the namespace has a foreign device %s", name)
		}
	}
	return nil
}

// do runs fn on a thread of its own inside the namespace. Sockets that fn makes
// stay in the namespace wherever they are used later.
func (n *network) do(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err := netns.Set(n.handle); err != nil {
			result <- fmt.Errorf("cannot enter network namespace %s: %w", n.name, err)
			return
		}
		result <- fn()
	}()
	return <-result
}

// start starts cmd inside the namespace; the kernel kills it when this process
// dies, however it dies.
func (n *network) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	result := make(chan error, 1)
	n.starts <- func() { result <- cmd.Start() }
	return <-result
}

// listen opens a TCP socket on an address of the namespace.
func (n *network) listen(address netip.AddrPort) (net.Listener, error) {
	var listener net.Listener
	err := n.do(func() (err error) {
		listener, err = net.Listen("tcp4", address.String())
		return err
	})
	return listener, err
}

// addTap makes a tap device on the bridge.
func (n *network) addTap(name string) error {
	return n.do(func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		tap := &netlink.Tuntap{
			LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: bridge.Attrs().Index},
			Mode:      netlink.TUNTAP_MODE_TAP,
			Flags:     netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR,
		}
		if err := netlink.LinkAdd(tap); err != nil {
			return fmt.Errorf("cannot add tap %s: %w", name, err)
		}
		for _, fd := range tap.Fds {
			fd.Close()
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
}

func (n *network) removeTap(name string) error {
	return n.do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
}

func (n *network) close() error {
	close(n.starts)
	<-n.ended
	return errors.Join(n.handle.Close(), netns.DeleteNamed(n.name))
}

// DialContext connects to an address of the guest network, by number: names are
// of no use here, the host's resolver knows nothing of them.
func (c *Cloud) DialContext(ctx context.Context, protocol, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("cannot dial %q: %w", address, err)
	}
	var conn net.Conn
	err := c.network.do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, protocol, address)
		return err
	})
	return conn, err
}

// Command starts a host program inside the namespace and returns what it
// printed, as the tools of a network administrator would be used on the host.
func (c *Cloud) Command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var output Transcript
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := c.network.start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return output.String(), fmt.Errorf("cannot run %s: %w: %s", strings.Join(cmd.Args, " "), err, output.String())
	}
	return output.String(), nil
}

// removeDeadNamespaces removes what clouds of processes left behind that were
// killed before their Close; the kernel has killed their children already.
func removeDeadNamespaces() error {
	entries, err := os.ReadDir(namespaceFolder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		owner, ok := namespaceOwner(entry.Name())
		if !ok || !errors.Is(syscall.Kill(owner, 0), syscall.ESRCH) {
			continue
		}
		err := netns.DeleteNamed(entry.Name())
		switch {
		case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.EINVAL): // another process was faster
		case errors.Is(err, unix.EBUSY): // ip-netns(8) has mounted the folder over itself since: out of reach
		case err != nil:
			return fmt.Errorf("cannot remove network namespace %s: %w", entry.Name(), err)
		}
	}
	return nil
}

func namespaceOwner(name string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(name, namespacePrefix)
	if !ok {
		return 0, false
	}
	number, _, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, false
	}
	pid, err := strconv.Atoi(number)
	return pid, err == nil && pid > 0
}
