// SPDX-License-Identifier: Apache-2.0

// Command podnet is the pod network of the test clusters. On every node it
// gives the pods a bridge with the subnet 10.244.N.0/24, N being the last part
// of the node's IPv4 address, and routes the other nodes' subnets to them. It is
// for nodes on one link whose addresses differ in that last part.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Getenv, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "podnet:", err)
		os.Exit(1)
	}
}

// run writes the network's configuration and keeps the routes until a signal
// ends it.
func run(args []string, getenv func(string) string, log io.Writer) error {
	flags := flag.NewFlagSet("podnet", flag.ContinueOnError)
	dir := flags.String("cni", "/etc/cni/net.d", "`folder` of the CNI configuration")
	listen := flags.String("listen", "127.0.0.1:9273", "`address` that tells readiness")
	if err := flags.Parse(args); err != nil {
		return err
	}
	self, err := netip.ParseAddr(getenv("HOST_IP"))
	if err != nil || !self.Is4() {
		return fmt.Errorf("cannot use HOST_IP %q: want the node's IPv4 address", getenv("HOST_IP"))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	// First the file: the node is not Ready without it, and the API server may
	// be unreachable until kube-proxy runs.
	if err := writeConfig(*dir, podSubnet(self)); err != nil {
		return err
	}
	fmt.Fprintf(log, "podnet: this node's pods are in %s\n", podSubnet(self))

	var ready atomic.Bool
	server := serveReadiness(*listen, &ready, log)
	defer server.Close()

	api, err := inCluster(getenv)
	if err != nil {
		return err
	}
	keepRoutes(ctx, api, self, &ready, log)
	return nil
}

// keepRoutes follows the nodes until ctx ends, again after every failure.
func keepRoutes(ctx context.Context, api *client, self netip.Addr, ready *atomic.Bool, log io.Writer) {
	const shortest, longest = time.Second, 30 * time.Second
	wait := shortest
	for {
		err := api.followNodes(ctx, func(nodes map[string]netip.Addr) error {
			if err := setRoutes(wantedRoutes(self, nodes)); err != nil {
				return err
			}
			ready.Store(true)
			wait = shortest
			return nil
		})
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(log, "podnet: %v, trying again in %s\n", err, wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, longest)
	}
}

// serveReadiness answers 200 once ready is set, and 503 before.
func serveReadiness(address string, ready *atomic.Bool, log io.Writer) *http.Server {
	server := &http.Server{
		Addr:              address,
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if !ready.Load() {
				http.Error(w, "no routes yet", http.StatusServiceUnavailable)
			}
		}),
	}
	go func() {
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintf(log, "podnet: cannot tell readiness on %s: %v\n", address, err)
		}
	}()
	return server
}
