// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	metadataPort = 80
	passwordPort = 8080
)

// Request is one HTTP request that the router got.
type Request struct {
	Time   time.Time
	Client netip.Addr
	Port   uint16 // 80 metadata, 8080 passwords
	Path   string
}

// instance is what the router knows of one client address.
type instance struct {
	userdata []byte
	keys     map[string]string
}

// metadata serves user data and metadata by client address, in the paths of
// https://docs.cloudstack.apache.org (virtual machines, user data), and the
// password server, which has no password for anybody.
type metadata struct {
	network *network
	address netip.Addr

	mu        sync.Mutex
	instances map[netip.Addr]instance
	requests  []Request
	delay     time.Duration
	iso       string // folder of the binaries ISO's files, "" for none
	servers   []*http.Server
	serving   sync.WaitGroup
}

func startMetadata(n *network, address netip.Addr) (*metadata, error) {
	m := &metadata{network: n, address: address, instances: make(map[netip.Addr]instance)}
	return m, m.open()
}

func (m *metadata) open() error {
	handlers := map[uint16]http.HandlerFunc{metadataPort: m.serveMetadata, passwordPort: m.servePassword}
	for port, handler := range handlers {
		listener, err := m.network.listen(netip.AddrPortFrom(m.address, port))
		if err != nil {
			return errors.Join(fmt.Errorf("cannot start metadata server: %w", err), m.close())
		}
		server := &http.Server{Handler: m.record(port, handler), ReadHeaderTimeout: time.Minute}
		m.mu.Lock()
		m.servers = append(m.servers, server)
		m.mu.Unlock()
		m.serving.Go(func() { _ = server.Serve(listener) }) // ends by close only
	}
	return nil
}

func (m *metadata) close() error {
	m.mu.Lock()
	servers := m.servers
	m.servers = nil
	m.mu.Unlock()
	var errs []error
	for _, server := range servers {
		errs = append(errs, server.Close())
	}
	m.serving.Wait()
	return errors.Join(errs...)
}

func (m *metadata) setRefuse(refuse bool) error {
	m.mu.Lock()
	open := m.servers != nil
	m.mu.Unlock()
	switch {
	case refuse && open:
		return m.close()
	case !refuse && !open:
		return m.open()
	}
	return nil
}

func (m *metadata) setDelay(delay time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.delay = delay
}

func (m *metadata) set(address netip.Addr, data instance) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.instances[address] = data
}

func (m *metadata) forget(address netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.instances, address)
}

func (m *metadata) seen() []Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.requests)
}

// record notes the request, waits as long as it was told to and hands over.
func (m *metadata) record(port uint16, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.requests = append(m.requests, Request{Time: time.Now(), Client: client(r), Port: port, Path: r.URL.Path})
		delay := m.delay
		m.mu.Unlock()
		if delay > 0 && !pause(r.Context(), delay) {
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (m *metadata) serveMetadata(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	data, known := m.instances[client(r)]
	iso := m.iso
	m.mu.Unlock()
	if iso != "" && strings.HasPrefix(r.URL.Path, isoPath) {
		serveISO(w, r, iso)
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/latest/")
	if !known || !ok {
		http.NotFound(w, r)
		return
	}
	switch path {
	case "user-data":
		if data.userdata == nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write(data.userdata)
	case "meta-data", "meta-data/":
		fmt.Fprintln(w, strings.Join(slices.Sorted(maps.Keys(data.keys)), "\n"))
	default:
		// The shorter path without meta-data/ is of old, and still served.
		value, ok := data.keys[strings.TrimPrefix(path, "meta-data/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, value)
	}
}

func (m *metadata) servePassword(w http.ResponseWriter, r *http.Request) {
	switch r.Header.Get("DomU_Request") {
	case "send_my_password", "saved_password":
		fmt.Fprint(w, "saved_password") // means: there is none to fetch
	default:
		fmt.Fprint(w, "bad_request")
	}
}

func client(r *http.Request) netip.Addr {
	address, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return address.Addr().Unmap()
}

// pause reports whether the whole time passed before ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
