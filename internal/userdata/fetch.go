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

// Userdata is what CloudStack tells this VM, from wherever it came. Raw holds
// secrets: no printed or encoded form of Userdata shows it. A VM's password, which
// the router (port 8080) and config drives hand out as well, is not asked for: it is
// the business of CloudStack's own scripts.
type Userdata struct {
	Raw    []byte
	Meta   map[string]string // metadata by CloudStack's names: instance-id, local-hostname, public-keys, ...
	Source string            // what had it: "config drive /dev/sr1 (label config-2)"
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
	Name      string        // the machine's name: which of several config drives is its own
	Instance  string        // the instance id of an earlier boot, for the same end
	BootArg   string        // the boot arg userdata= as it came
	Gateway   netip.Addr    // the default gateway; the zero Addr leaves it out
	Interface string        // where to ask for a DHCP server: eth0
	Local     netip.Addr    // the address requests leave from: the router tells nodes apart by it
	Timeout   time.Duration // for everything: 300 s
	// DHCPServer finds the identifier of the DHCP server: DHCPServer of this package.
	DHCPServer func(ctx context.Context, device string) (netip.Addr, error)
	// BaseURLs are asked in place of gateway, DHCP server and name (http://address).
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

// Fetch returns the userdata and metadata of this VM. It looks on the machine (a
// config drive, the boot arg, a NoCloud seed) and asks its virtual router at the
// same time, both again until one has it; what is on the machine wins, so with a
// config drive no network is needed (pain-point C6). Media that come late are seen
// by the kernel's events. In some networks the router is the default gateway, in
// shared ones only the DHCP server, so all are asked (C8). It blocks for at most
// options.Timeout. The error is a fault with the code UserdataUnreachable that
// lists every place with its last error, UserdataInvalid when two config drives
// cannot be told apart, or ctx's.
func Fetch(ctx context.Context, h *host.Host, options FetchOptions, report host.Report) (Userdata, error) {
	// The watch comes before the first look, or a medium between the two would go
	// unseen.
	var changed <-chan struct{}
	if watch, err := host.WatchBlock(); err != nil {
		report("a late config drive goes unnoticed: %v", err)
	} else {
		defer watch.Close()
		changed = watch.Changed
	}
	return fetch(ctx, newFinder(h, options), options, changed, report)
}

func fetch(ctx context.Context, local *finder, options FetchOptions, changed <-chan struct{}, report host.Report) (Userdata, error) {
	options.Timeout = cmp.Or(options.Timeout, 300*time.Second)
	options.Interface = cmp.Or(options.Interface, "eth0")
	if options.DHCPServer == nil {
		options.DHCPServer = DHCPServer
	}
	limited, cancel := context.WithTimeout(ctx, options.Timeout)
	defer cancel()

	if err := local.host.EnableMediaEvents(); err != nil {
		report("%v", err)
	}
	r := &race{client: newClient(options.Local), report: report, changed: changed}
	userdata, err := r.run(limited, local, options.candidates())
	switch {
	case err == nil:
		return userdata, nil
	case ctx.Err() != nil:
		return Userdata{}, fmt.Errorf("cannot fetch the userdata: %w", context.Cause(ctx))
	case limited.Err() != nil:
		return Userdata{}, fault.New(fault.UserdataUnreachable, "no userdata after %s: %v", options.Timeout, err)
	}
	return Userdata{}, err
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

// race looks on this machine and asks several servers at once until one of them
// has the userdata.
type race struct {
	client  *http.Client
	report  host.Report
	changed <-chan struct{} // a block device has come, or another medium

	mu    sync.Mutex
	local []attempt // the last look on this machine
	tried []attempt // the servers
	told  string    // the last report
	taken []string  // base URLs a candidate asks already
}

// attempt is what became of the last try at one place.
type attempt struct {
	who   string // default gateway http://10.1.1.1:80
	what  string // connection refused
	count int    // of tries; 0 for what is no server
}

func (a attempt) String() string {
	if a.count > 1 {
		return fmt.Sprintf("%s: %s (attempt %d)", a.who, a.what, a.count)
	}
	return a.who + ": " + a.what
}

func (r *race) run(ctx context.Context, local *finder, candidates []candidate) (Userdata, error) {
	type answer struct {
		userdata Userdata
		err      error
	}
	racing, stop := context.WithCancel(ctx)
	defer stop()
	answers := make(chan answer, len(candidates)+1)
	looked := make(chan struct{}) // what is on this machine has been seen once
	var group sync.WaitGroup
	group.Go(func() {
		first := sync.OnceFunc(func() { close(looked) })
		defer first()
		if userdata, err := r.look(racing, local, first); userdata != nil || err != nil {
			if err != nil {
				userdata = new(Userdata)
			}
			answers <- answer{*userdata, err}
			stop()
		}
	})
	for _, c := range candidates {
		group.Go(func() {
			if userdata, ok := r.ask(racing, c); ok {
				<-looked
				answers <- answer{userdata, nil}
				stop()
			}
		})
	}
	group.Wait()
	select {
	case first := <-answers:
		return first.userdata, first.err
	default:
		return Userdata{}, r.failure()
	}
}

// look looks on this machine whenever something may have changed there, until
// there is userdata or ctx ends. It calls first after each look that showed none.
func (r *race) look(ctx context.Context, local *finder, first func()) (*Userdata, error) {
	for {
		found, seen, again, err := local.look(ctx)
		if found != nil || err != nil {
			return found, err
		}
		r.saw(ctx, seen)
		first()
		var reread <-chan time.Time
		if again {
			reread = time.After(local.reread)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-r.changed:
		case <-reread:
		}
	}
}

// ask asks one candidate again and again until it answers or ctx ends.
func (r *race) ask(ctx context.Context, c candidate) (Userdata, bool) {
	var mine string
	backoff := firstBackoff
	for {
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
		r.failed(ctx, strings.TrimSpace(c.name+" "+base), shorten(err))

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

// saw notes what is on this machine.
func (r *race) saw(ctx context.Context, seen []attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() == nil || r.local == nil {
		r.local = seen
	}
	r.tell(ctx)
}

// failed notes an attempt's error; one that only says that the race is over must
// not hide what was wrong before.
func (r *race) failed(ctx context.Context, who, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := slices.IndexFunc(r.tried, func(a attempt) bool { return a.who == who })
	switch {
	case at < 0:
		r.tried = append(r.tried, attempt{who, what, 1})
	case ctx.Err() == nil:
		r.tried[at].what, r.tried[at].count = what, r.tried[at].count+1
	}
	r.tell(ctx)
}

// tell reports what every place says; r.mu is held.
func (r *race) tell(ctx context.Context) {
	if text := r.summary(); text != r.told && ctx.Err() == nil {
		r.told = text
		r.report("no userdata yet: %s", text)
	}
}

func (r *race) summary() string {
	var all []string
	for _, place := range slices.Concat(r.local, r.tried) {
		all = append(all, place.String())
	}
	return strings.Join(all, "; ")
}

func (r *race) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.New(r.summary())
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
// (CloudStack documentation, "User Data and Meta Data"; NetworkModel.java).
func metadataNames() []string {
	return []string{"instance-id", "local-hostname", "public-keys", "availability-zone", "service-offering",
		"local-ipv4", "public-ipv4", "public-hostname", "vm-id", "cloud-identifier", "hypervisor-host-name",
		"cloud-domain", "cloud-domain-id", "cloud-name"}
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
	for _, name := range r.names(ctx, base) {
		value, err := r.fetch(ctx, base+"/latest/meta-data/"+name, maxMetadata)
		if err == nil && !isHTML(value) {
			userdata.Meta[name] = strings.TrimSpace(string(value))
		}
		if name == "instance-id" && userdata.Meta[name] == "" {
			return Userdata{}, fmt.Errorf("answered without an instance-id: %s", shorten(cmp.Or(err, errors.New("empty"))))
		}
	}
	if err := checkInstanceID(userdata.Meta); err != nil {
		return Userdata{}, fmt.Errorf("answered, but %w", err)
	}
	return userdata, nil
}

// names returns the known names and those the server lists besides: the parameters
// of registered userdata.
func (r *race) names(ctx context.Context, base string) []string {
	names := metadataNames()
	list, err := r.fetch(ctx, base+"/latest/meta-data/", maxMetadata)
	if err != nil || isHTML(list) {
		return names
	}
	for line := range strings.Lines(string(list)) {
		if name := strings.TrimSpace(line); isMetadataName(name) && !slices.Contains(names, name) && len(names) < maxNames {
			names = append(names, name)
		}
	}
	return names
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
