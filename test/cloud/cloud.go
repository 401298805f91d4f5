// SPDX-License-Identifier: Apache-2.0

// Package cloud is one CloudStack zone on one machine, for tests: a network
// namespace with a bridge, a virtual router (dnsmasq and the metadata server),
// QEMU machines whose boot args arrive through the guest agent, and the checks
// the management server makes on a Kubernetes cluster it created.
//
// Nothing here is a stand-in for a protocol: a node under test talks to the
// same DHCP, DNS, HTTP, guest agent and CD drive as on a KVM host of
// CloudStack. Needs root and Linux.
package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// Options are the choices of one cloud. The zero value is an isolated network
// whose router is its gateway.
type Options struct {
	// Dir takes the logs (console and dnsmasq) and, while machines live, their
	// disks; it serves one cloud at a time. Empty: a temporary folder that
	// Close removes.
	Dir string
	// Log takes one line per thing that happens. Nil: nothing is written.
	Log io.Writer
	// Router is the virtual router's address in a shared network, where it is
	// not the gateway. Zero: the gateway, 10.1.1.1.
	Router netip.Addr
	// Accel is "kvm" or "tcg". Empty: KVM where a kernel runs on it, else TCG.
	Accel string
}

// Cloud is a running zone. Its methods may be called at the same time.
type Cloud struct {
	Router *Router

	dir     string // logs and disks
	ownDir  bool
	sockets string // unix sockets: their paths may have 107 bytes only
	accel   string
	network *network
	outside *outside
	began   time.Time

	logMu sync.Mutex
	log   io.Writer

	mu       sync.Mutex
	machines []*Machine
	taps     int
	closed   bool
}

// New makes the namespace, the bridge and the virtual router, and returns when
// dnsmasq and the metadata server answer. It fails when the namespace has any
// way to the outside.
func New(ctx context.Context, options Options) (*Cloud, error) {
	for _, tool := range []string{"qemu-system-x86_64", "qemu-img", "dnsmasq"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("cannot make cloud: %w", err)
		}
	}
	if options.Accel != "" && options.Accel != "kvm" && options.Accel != "tcg" {
		return nil, fmt.Errorf("cannot make cloud: accelerator %q is neither kvm nor tcg", options.Accel)
	}
	router := options.Router
	if !router.IsValid() {
		router = gateway
	}
	if !guestNetwork.Contains(router) {
		return nil, fmt.Errorf("cannot make cloud: router %s is not in %s", router, guestNetwork)
	}

	c := &Cloud{dir: options.Dir, log: options.Log, accel: options.Accel, began: time.Now()}
	if c.log == nil {
		c.log = io.Discard
	}
	if err := c.open(ctx, router); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot make cloud: %w", err), c.Close())
	}
	return c, nil
}

func (c *Cloud) open(ctx context.Context, router netip.Addr) error {
	var err error
	if c.sockets, err = os.MkdirTemp("", "cloud-"); err != nil {
		return err
	}
	if c.dir == "" {
		c.ownDir = true
		if c.dir, err = os.MkdirTemp("", "cloud-"); err != nil {
			return err
		}
	} else {
		if c.dir, err = filepath.Abs(c.dir); err != nil { // dnsmasq changes its folder
			return err
		}
		if err := os.MkdirAll(c.dir, 0o755); err != nil {
			return err
		}
	}
	if c.network, err = newNetwork(router); err != nil {
		return err
	}
	if c.outside, err = watchOutside(c.network); err != nil {
		return err
	}
	if c.Router, err = startRouter(ctx, c.network, router, c.dir); err != nil {
		return err
	}
	c.logf("network namespace %s, router %s", c.network.name, router)
	return nil
}

// Namespace is the name of the network namespace, for `ip netns exec`.
func (c *Cloud) Namespace() string { return c.network.name }

// Close kills the processes of this cloud, removes the namespace with its taps
// and removes disks and sockets. Logs stay in Options.Dir. A second call does
// nothing.
func (c *Cloud) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	machines := c.machines
	c.machines = nil
	c.mu.Unlock()

	var errs []error
	for _, m := range machines {
		errs = append(errs, m.remove())
	}
	if c.Router != nil {
		errs = append(errs, c.Router.close())
	}
	if c.outside != nil {
		errs = append(errs, c.outside.close())
	}
	if c.network != nil {
		errs = append(errs, c.network.close())
	}
	if c.sockets != "" {
		errs = append(errs, os.RemoveAll(c.sockets))
	}
	if c.ownDir && c.dir != "" {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot close cloud: %w", err)
	}
	return nil
}

func (c *Cloud) logf(format string, args ...any) {
	c.logMu.Lock()
	defer c.logMu.Unlock()
	fmt.Fprintf(c.log, "%7.1fs %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}
