// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// MaxUserdata is the most bytes of userdata that are read: what CloudStack's API
// takes at most.
const MaxUserdata = 1 << 20

const (
	maxMetadata    = 64 << 10
	attemptTimeout = 10 * time.Second // to the response's headers
	bodyTimeout    = 30 * time.Second // to the end of the response
	firstBackoff   = 250 * time.Millisecond
	lastBackoff    = 5 * time.Second
)

// Userdata is what the network serves for this VM. Raw holds secrets: no printed
// or encoded form of Userdata shows it.
type Userdata struct {
	Raw    []byte
	Meta   map[string]string // metadata by name: instance-id, local-hostname, public-keys, ...
	Source string            // the address that answered and how it was found
}

// String shows size and source only.
func (u Userdata) String() string {
	return fmt.Sprintf("%d bytes of userdata from %s", len(u.Raw), cmp.Or(u.Source, "nowhere"))
}

// Format shows the same as String for every verb.
func (u Userdata) Format(state fmt.State, _ rune) { io.WriteString(state, u.String()) }

// MarshalJSON leaves Raw out.
func (u Userdata) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"size": len(u.Raw), "source": u.Source})
}

// FetchOptions says where to look for userdata. Zero values take the defaults.
type FetchOptions struct {
	Gateway   netip.Addr    // the default gateway; the zero Addr leaves it out
	Interface string        // where to ask for a DHCP server: eth0
	Local     netip.Addr    // the address requests leave from: the router tells nodes apart by it
	Timeout   time.Duration // for everything: 300 s
	// DHCPServer finds the identifier of the DHCP server: DHCPServer of this package.
	DHCPServer func(ctx context.Context, device string) (netip.Addr, error)
	// BaseURLs are asked in place of all of the above (http://address).
	BaseURLs []string
}

// candidate is one server that may have the userdata.
type candidate struct {
	name string
	// find returns the server's base URL; it is asked again for every attempt.
	find func(ctx context.Context) (string, error)
}

func (o FetchOptions) candidates() []candidate {
	var all []candidate
	for _, base := range o.BaseURLs {
		all = append(all, candidate{"given address", func(context.Context) (string, error) { return base, nil }})
	}
	if len(all) > 0 {
		return all
	}
	if o.Gateway.IsValid() {
		all = append(all, candidate{"default gateway", func(context.Context) (string, error) { return baseURL(o.Gateway), nil }})
	}
	all = append(all, candidate{"DHCP server", func(ctx context.Context) (string, error) {
		server, err := o.DHCPServer(ctx, o.Interface)
		if err != nil {
			return "", err
		}
		return baseURL(server), nil
	}})
	return append(all, candidate{"name data-server", func(context.Context) (string, error) { return "http://data-server", nil }})
}

func baseURL(address netip.Addr) string {
	return (&url.URL{Scheme: "http", Host: net.JoinHostPort(address.String(), "80")}).String()
}

// Fetch returns the userdata and metadata of this VM from its virtual router. In
// some networks the router is the default gateway, in shared ones only the DHCP
// server, so all are asked at once and again until one has it (pain-point C8). It
// blocks for at most options.Timeout. The error is a fault with the code
// UserdataUnreachable that lists every address with its last error, or ctx's.
func Fetch(ctx context.Context, options FetchOptions, report host.Report) (Userdata, error) {
	options.Timeout = cmp.Or(options.Timeout, 300*time.Second)
	options.Interface = cmp.Or(options.Interface, "eth0")
	if options.DHCPServer == nil {
		options.DHCPServer = DHCPServer
	}
	limited, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()

	r := &race{client: newClient(options.Local), report: report, tried: map[string]string{}}
	userdata, err := r.run(limited, options.candidates())
	if err != nil && ctx.Err() != nil {
		return Userdata{}, fmt.Errorf("cannot fetch the userdata: %w", context.Cause(ctx))
	}
	if err != nil {
		return Userdata{}, fault.New(fault.UserdataUnreachable, "no userdata after %s: %v", options.Timeout, err)
	}
	return userdata, nil
}

// newClient returns a client that goes straight to the server: no proxy, no
// redirect to elsewhere, nothing unpacked.
func newClient(local netip.Addr) *http.Client {
	dialer := &net.Dialer{Timeout: attemptTimeout}
	if local.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	return &http.Client{
		Timeout: bodyTimeout,
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			ResponseHeaderTimeout:  attemptTimeout,
			MaxResponseHeaderBytes: maxMetadata,
			DisableCompression:     true,
			DisableKeepAlives:      true,
		},
		CheckRedirect: func(next *http.Request, before []*http.Request) error {
			if len(before) > 3 || next.URL.Host != before[0].URL.Host {
				return errors.New("redirected to elsewhere, which is not followed")
			}
			return nil
		},
	}
}

// race asks several candidates at once until one answers.
type race struct {
	client *http.Client
	report host.Report

	mu    sync.Mutex
	order []string
	tried map[string]string // "default gateway http://10.1.1.1" -> last error
	taken []string          // base URLs a candidate asks already
}

func (r *race) run(ctx context.Context, candidates []candidate) (Userdata, error) {
	racing, stop := context.WithCancel(ctx)
	defer stop()
	answers := make(chan Userdata, len(candidates))
	var group sync.WaitGroup
	for _, c := range candidates {
		group.Go(func() {
			if userdata, ok := r.ask(racing, c); ok {
				answers <- userdata
				stop()
			}
		})
	}
	group.Wait()
	select {
	case userdata := <-answers:
		return userdata, nil
	default:
		return Userdata{}, r.failure()
	}
}

// ask asks one candidate again and again until it answers or ctx ends.
func (r *race) ask(ctx context.Context, c candidate) (Userdata, bool) {
	var mine string
	backoff := firstBackoff
	for attempt := 1; ; attempt++ {
		base, err := c.find(ctx)
		if err == nil && base != mine {
			if !r.take(base) {
				return Userdata{}, false // another candidate asks this server
			}
			mine = base
		}
		if err == nil {
			var userdata Userdata
			if userdata, err = r.get(ctx, base); err == nil {
				userdata.Source = fmt.Sprintf("%s (%s)", base, c.name)
				return userdata, true
			}
		}
		r.failed(ctx, c.name, base, attempt, err)

		timer := time.NewTimer(backoff)
		select {
		case <-ctx.Done():
			timer.Stop()
			return Userdata{}, false
		case <-timer.C:
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

func (r *race) take(base string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.taken, base) {
		return false
	}
	r.taken = append(r.taken, base)
	return true
}

// failed notes an attempt's error; one that only says that the race is over must
// not hide what was wrong before.
func (r *race) failed(ctx context.Context, name, base string, attempt int, err error) {
	who := strings.TrimSpace(name + " " + base)
	what := shorten(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	before, known := r.tried[who]
	if !known {
		r.order = append(r.order, who)
	}
	if !known || ctx.Err() == nil {
		r.tried[who] = what
	}
	if what != before && ctx.Err() == nil {
		r.report("userdata: %s: %s (attempt %d)", who, what, attempt)
	}
}

func (r *race) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, who := range r.order {
		all = append(all, who+": "+r.tried[who])
	}
	return errors.New(strings.Join(all, "; "))
}

// shorten takes the URL out of an HTTP client's error: it is told already.
func shorten(err error) string {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return err.Error()
}

// metadataNames are what a virtual router serves below latest/meta-data
// (CloudStack documentation, "User Data and Meta Data").
func metadataNames() []string {
	return []string{"instance-id", "local-hostname", "public-keys", "availability-zone", "service-offering",
		"local-ipv4", "public-ipv4", "public-hostname", "vm-id", "cloud-identifier", "hypervisor-host-name"}
}

// get fetches userdata and metadata from one server. cloud-init keys all it has
// done on the instance id, so a server without one is not good enough; the other
// names may be missing.
func (r *race) get(ctx context.Context, base string) (Userdata, error) {
	raw, err := r.fetch(ctx, base+"/latest/user-data", MaxUserdata)
	if err != nil {
		return Userdata{}, err
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return Userdata{}, errors.New("answered with empty userdata")
	}
	if isHTML(raw) {
		return Userdata{}, errors.New("answered with a web page in place of userdata")
	}
	userdata := Userdata{Raw: raw, Meta: map[string]string{}}
	for _, name := range metadataNames() {
		value, err := r.fetch(ctx, base+"/latest/meta-data/"+name, maxMetadata)
		if err == nil && !isHTML(value) {
			userdata.Meta[name] = strings.TrimSpace(string(value))
		}
		if name == "instance-id" && userdata.Meta[name] == "" {
			return Userdata{}, fmt.Errorf("answered without an instance-id: %s", shorten(cmp.Or(err, errors.New("empty"))))
		}
	}
	return userdata, nil
}

func (r *race) fetch(ctx context.Context, address string, most int) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	response, err := r.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answered %d %s", response.StatusCode, http.StatusText(response.StatusCode))
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, int64(most)+1))
	if err != nil {
		return nil, fmt.Errorf("answer broken off after %d bytes: %s", len(body), shorten(err))
	}
	if len(body) > most {
		return nil, fmt.Errorf("answered with more than %d bytes", most)
	}
	return body, nil
}

func isHTML(body []byte) bool {
	start := strings.ToLower(string(bytes.TrimSpace(body[:min(len(body), 512)])))
	return strings.HasPrefix(start, "<!doctype html") || strings.HasPrefix(start, "<html")
}
