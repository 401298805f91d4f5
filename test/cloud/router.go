// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	domain      = "cs1cloud.internal"
	routerStart = 20 * time.Second // for dnsmasq to come up or to take a host
)

// Router is the virtual router: dnsmasq for DHCP and DNS, and the metadata and
// password servers.
type Router struct {
	// Address is where the router answers; in a shared network it is not the
	// gateway.
	Address netip.Addr
	// Log is what dnsmasq says, DHCP exchanges and DNS queries included.
	Log *Transcript

	metadata *metadata
	hosts    string // folder that dnsmasq watches: one file per name
	leases   string // folder that dnsmasq watches: one file per MAC
	dnsmasq  *exec.Cmd
	exited   chan struct{}
	logFile  *os.File
}

// Query is a name that a machine asked the router for.
type Query struct {
	Client netip.Addr
	Type   string // A, AAAA, PTR ...
	Name   string
}

func startRouter(ctx context.Context, n *network, address netip.Addr, dir string) (*Router, error) {
	r := &Router{
		Address: address,
		Log:     new(Transcript),
		hosts:   filepath.Join(dir, "dnsmasq", "hosts"),
		leases:  filepath.Join(dir, "dnsmasq", "leases"),
		exited:  make(chan struct{}),
	}
	for _, folder := range []string{r.hosts, r.leases} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
	}
	var err error
	if r.logFile, err = os.Create(filepath.Join(dir, "dnsmasq.log")); err != nil {
		return nil, err
	}
	r.Log.copy = r.logFile

	if r.metadata, err = startMetadata(n, address); err != nil {
		return nil, errors.Join(err, r.logFile.Close())
	}
	r.dnsmasq = exec.Command("dnsmasq", dnsmasqArgs(address, r.hosts, r.leases, filepath.Join(dir, "dnsmasq", "state"))...)
	r.dnsmasq.Stdout, r.dnsmasq.Stderr = r.Log, r.Log
	if err := n.start(r.dnsmasq); err != nil {
		return nil, errors.Join(err, r.metadata.close(), r.logFile.Close())
	}
	go func() {
		_ = r.dnsmasq.Wait() // killed by close, or it said why in its log
		close(r.exited)
	}()

	// It reports the size of its cache when its sockets are open.
	if err := r.wait(ctx, 0, "cachesize"); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot start dnsmasq: %w", err), r.close())
	}
	if err := r.addName(ctx, "data-server", address); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// dnsmasqArgs has no configuration file, no resolver above it and no range to
// lease from: only hosts that were announced get an answer.
func dnsmasqArgs(address netip.Addr, hosts, leases, state string) []string {
	return []string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--group=root",
		"--log-facility=-", "--log-queries", "--log-dhcp",
		"--interface=" + bridgeName, "--except-interface=lo", "--bind-interfaces",
		"--no-resolv", "--no-hosts", "--hostsdir=" + hosts, "--domain=" + domain, "--expand-hosts",
		"--dhcp-range=" + guestNetwork.Masked().Addr().String() + ",static",
		"--dhcp-hostsdir=" + leases, "--dhcp-leasefile=" + state, "--dhcp-authoritative", "--no-ping",
		"--dhcp-option=option:router," + gateway.String(),
		"--dhcp-option=option:dns-server," + address.String(),
	}
}

// add announces a machine: its lease and its name.
func (r *Router) add(ctx context.Context, name string, mac net.HardwareAddr, address netip.Addr) error {
	entry := fmt.Sprintf("%s,%s,%s,infinite\n", mac, address, name)
	if err := r.put(ctx, filepath.Join(r.leases, name), entry); err != nil {
		return err
	}
	return r.addName(ctx, name, address)
}

func (r *Router) addName(ctx context.Context, name string, address netip.Addr) error {
	return r.put(ctx, filepath.Join(r.hosts, name), fmt.Sprintf("%s %s\n", address, name))
}

// put writes a file that dnsmasq watches and waits until it was read. It comes
// by rename, so that dnsmasq never reads half of it.
func (r *Router) put(ctx context.Context, path, content string) error {
	from := r.Log.Len()
	temp := filepath.Join(filepath.Dir(filepath.Dir(path)), filepath.Base(path)+".new")
	if err := os.WriteFile(temp, []byte(content), 0o644); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	if err := r.wait(ctx, from, "read "+path); err != nil {
		return fmt.Errorf("cannot announce %s to dnsmasq: %w", path, err)
	}
	return nil
}

// wait waits for a piece of dnsmasq's log, or for dnsmasq's end.
func (r *Router) wait(ctx context.Context, from int, piece string) error {
	ctx, cancel := context.WithTimeout(ctx, routerStart)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-r.exited:
			stop(errors.New("dnsmasq has ended"))
		case <-ctx.Done():
		}
	}()
	return r.Log.Wait(ctx, from, piece)
}

// Queries are the names asked for so far, oldest first.
func (r *Router) Queries() []Query { return parseQueries(r.Log.String()) }

// parseQueries reads lines like "dnsmasq: query[A] data-server from 10.1.1.11".
func parseQueries(log string) []Query {
	var queries []Query
	for line := range strings.Lines(log) {
		_, rest, ok := strings.Cut(line, " query[")
		if !ok {
			continue
		}
		kind, rest, ok := strings.Cut(rest, "] ")
		if !ok {
			continue
		}
		name, client, ok := strings.Cut(strings.TrimSpace(rest), " from ")
		if !ok {
			continue
		}
		address, err := netip.ParseAddr(client)
		if err != nil {
			continue
		}
		queries = append(queries, Query{Client: address, Type: kind, Name: name})
	}
	return queries
}

// Requests are the HTTP requests to the metadata and password servers so far.
func (r *Router) Requests() []Request { return r.metadata.seen() }

// SetDelay makes every later HTTP answer come that much later.
func (r *Router) SetDelay(delay time.Duration) { r.metadata.setDelay(delay) }

// SetRefuse closes the HTTP ports, so that clients are refused as by a router
// that is still booting, or opens them again.
func (r *Router) SetRefuse(refuse bool) error { return r.metadata.setRefuse(refuse) }

func (r *Router) close() error {
	errs := []error{r.metadata.close()}
	if err := r.dnsmasq.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		errs = append(errs, err)
	}
	<-r.exited
	return errors.Join(append(errs, r.logFile.Close(), os.RemoveAll(filepath.Dir(r.hosts)))...)
}
