// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host/hosttest"
)

// bare is a machine without a disk.
func bare(t *testing.T) *hosttest.Machine {
	t.Helper()
	m := hosttest.New(t)
	if err := os.MkdirAll(m.Path("/sys/class/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	return m
}

// router plays a virtual router with this userdata.
func router(t *testing.T, raw string) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	serve := func(path, body string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
	}
	serve("/latest/user-data", raw)
	serve("/latest/meta-data/instance-id", "9e2f\n")
	serve("/latest/meta-data/local-hostname", "n1")
	serve("/latest/meta-data/public-keys", "ssh-rsa A\nssh-rsa B\n")
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server
}

func handler(t *testing.T, answer http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return server
}

// C8: several servers are asked at once; the one that has the userdata wins,
// whatever the others do.
func TestFetchTakesTheFirstThatHasIt(t *testing.T) {
	t.Parallel()
	good := router(t, "#cloud-config\n")
	silent := handler(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	missing := handler(t, http.NotFound)
	got, err := Fetch(t.Context(), bare(t).Host(), FetchOptions{Timeout: 20 * time.Second,
		BaseURLs: []string{"http://127.0.0.1:1", silent.URL, missing.URL, good.URL}}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Raw) != "#cloud-config\n" || !strings.HasPrefix(got.Source, good.URL) {
		t.Errorf("got %q from %q, want the userdata of %s", got.Raw, got.Source, good.URL)
	}
	if want := "map[instance-id:9e2f local-hostname:n1 public-keys:ssh-rsa A\nssh-rsa B]"; fmt.Sprint(got.Meta) != want {
		t.Errorf("metadata = %v, want %s", got.Meta, want)
	}
}

// C8: the router may come up after the node.
func TestFetchTriesAgain(t *testing.T) {
	t.Parallel()
	good := router(t, "#cloud-config\n")
	var asked atomic.Int32
	late := handler(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		good.Config.Handler.ServeHTTP(w, r)
	})
	var reports []string
	_, err := Fetch(t.Context(), bare(t).Host(), FetchOptions{BaseURLs: []string{late.URL}}, func(format string, args ...any) {
		reports = append(reports, fmt.Sprintf(format, args...))
	})
	refused := func(text string) bool {
		return text == "no userdata yet: config drive: none attached; given address "+late.URL+": answered 503 Service Unavailable (attempt 2)"
	}
	if err != nil || !slices.ContainsFunc(reports, refused) {
		t.Errorf("error %v, reports %q; want success after a report of the second attempt and of what else was looked at", err, reports)
	}
}

func TestFetchNamesEveryFailure(t *testing.T) {
	t.Parallel()
	elsewhere := router(t, "#cloud-config\n")
	noID := http.NewServeMux()
	noID.HandleFunc("/latest/user-data", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "#cloud-config\n") })
	for _, test := range []struct {
		name, want string
		answer     http.HandlerFunc
	}{
		{"not found", "answered 404 Not Found", http.NotFound},
		{"empty", "answered with empty userdata", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, " \n") }},
		{"web page", "answered with a web page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<!DOCTYPE html><p>login") }},
		{"too large", "answered with more than 1048576 bytes", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", MaxUserdata+1)) }},
		{"broken off", "answer broken off after 3 bytes", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			fmt.Fprint(w, "abc")
		}},
		{"redirect to elsewhere", "redirected to elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusFound)
		}},
		{"slow", "no answer in time", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{"no instance id", "answered without an instance-id", noID.ServeHTTP},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := handler(t, test.answer)
			_, err := Fetch(t.Context(), bare(t).Host(), FetchOptions{Timeout: 2 * time.Second, BaseURLs: []string{server.URL, "http://127.0.0.1:1"}}, quiet)
			got := fault.As(err)
			if got.Code != fault.UserdataUnreachable || !strings.Contains(got.Message, server.URL+": "+test.want) ||
				!strings.Contains(got.Message, "http://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused") {
				t.Errorf("error = %s %q, want %s with both addresses and %q", got.Code, got.Message, fault.UserdataUnreachable, test.want)
			}
		})
	}
}

// The end of the wait does not hide what was wrong before.
func TestRaceKeepsTheFailureBeforeTheEnd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	r := &race{report: quiet}
	r.failed(ctx, "router", "answered 503")
	r.failed(ctx, "router", "answered 404")
	cancel()
	r.failed(ctx, "router", "no answer in time")
	r.failed(ctx, "DHCP server", "no answer in time")
	if want := "router: answered 404 (attempt 2); DHCP server: no answer in time"; r.failure().Error() != want {
		t.Errorf("error %v, want %s", r.failure(), want)
	}
}

// The parameters of registered userdata are metadata as well; a name that is a path
// or turns cloud-init elsewhere is not asked for, and there is a bound.
func TestFetchListedMetadata(t *testing.T) {
	t.Parallel()
	good := router(t, "#cloud-config\n")
	list := "AS_NUMBER\ninstance-id\n../../etc/passwd\nseedfrom\npublic-keys/\n a b\n"
	for i := range 2 * maxNames {
		list += fmt.Sprintf("n%d\n", i)
	}
	var mu sync.Mutex
	var paths []string
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		paths = append(paths, r.URL.Path)
		mu.Unlock()
		switch {
		case r.URL.Path == "/latest/meta-data/":
			fmt.Fprint(w, list)
		case strings.HasPrefix(r.URL.Path, "/latest/meta-data/n") || strings.HasSuffix(r.URL.Path, "/AS_NUMBER"):
			fmt.Fprint(w, "64512\n")
		default:
			good.Config.Handler.ServeHTTP(w, r)
		}
	})
	got, err := Fetch(t.Context(), bare(t).Host(), FetchOptions{BaseURLs: []string{server.URL}}, quiet)
	if err != nil || got.Meta["AS_NUMBER"] != "64512" || got.Meta["n0"] != "64512" || got.Meta["instance-id"] != "9e2f" {
		t.Fatalf("got %d metadata, %v; want the listed ones", len(got.Meta), err)
	}
	if len(paths) != maxNames+2 {
		t.Errorf("%d requests, want those for userdata, the list and %d names", len(paths), maxNames)
	}
	for _, path := range paths {
		if name := strings.TrimPrefix(path, "/latest/meta-data/"); strings.ContainsAny(name, " .") || name == "seedfrom" {
			t.Errorf("asked for %s", path)
		}
	}
}

// An instance id that is a path would name a folder elsewhere.
func TestFetchRefusesAPathAsInstanceID(t *testing.T) {
	t.Parallel()
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/instance-id") {
			fmt.Fprint(w, "../../etc")
			return
		}
		fmt.Fprint(w, "x")
	})
	_, err := Fetch(t.Context(), bare(t).Host(), FetchOptions{Timeout: 2 * time.Second, BaseURLs: []string{server.URL}}, quiet)
	if err == nil || !strings.Contains(err.Error(), `answered, but its instance id "../../etc" is none`) {
		t.Errorf("error %v, want the instance id refused", err)
	}
}

// The gateway, the DHCP server and the name are the three ways to a router.
func TestFetchCandidates(t *testing.T) {
	t.Parallel()
	gateway := netip.MustParseAddr("127.0.0.98")
	for _, test := range []struct {
		name string
		dhcp func(context.Context, string) (netip.Addr, error)
		want []string
	}{
		{"DHCP server elsewhere", func(context.Context, string) (netip.Addr, error) { return netip.MustParseAddr("127.0.0.99"), nil },
			[]string{"default gateway http://127.0.0.98:80: ", "DHCP server http://127.0.0.99:80: ", "name data-server http://data-server: "}},
		{"no DHCP server", func(_ context.Context, device string) (netip.Addr, error) {
			return netip.Addr{}, errors.New("no DHCP server answered on " + device)
		}, []string{"default gateway http://127.0.0.98:80: ", "DHCP server: no DHCP server answered on eth0", "name data-server"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := Fetch(t.Context(), bare(t).Host(), FetchOptions{Gateway: gateway, DHCPServer: test.dhcp, Timeout: 2 * time.Second}, quiet)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error = %v\nwant %q in it", err, want)
				}
			}
		})
	}
}

func TestFetchAsksAServerFoundTwiceOnce(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	server := handler(t, func(_ http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		<-r.Context().Done() // so nobody asks a second time
	})
	_, err := Fetch(t.Context(), bare(t).Host(), FetchOptions{Timeout: time.Second, BaseURLs: []string{server.URL, server.URL}}, quiet)
	if err == nil || asked.Load() > 1 {
		t.Errorf("asked %d times (%v), want once", asked.Load(), err)
	}
}

// The router tells its clients apart by their address.
func TestFetchLeavesFromTheNodesAddress(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 100)
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		seen <- client
		http.NotFound(w, r)
	})
	_, _ = Fetch(t.Context(), bare(t).Host(), FetchOptions{Local: netip.MustParseAddr("127.0.0.57"), Timeout: time.Second, BaseURLs: []string{server.URL}}, quiet)
	if got := <-seen; got != "127.0.0.57" {
		t.Errorf("client address = %s, want 127.0.0.57", got)
	}
}

func TestFetchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	server := handler(t, func(w http.ResponseWriter, r *http.Request) {
		cancel(stopped)
		http.NotFound(w, r)
	})
	if _, err := Fetch(ctx, bare(t).Host(), FetchOptions{BaseURLs: []string{server.URL}}, quiet); !errors.Is(err, stopped) {
		t.Errorf("error = %v, want the context's cause", err)
	}
}

// C33
func TestUserdataNeverShowsItself(t *testing.T) {
	t.Parallel()
	u := Userdata{Raw: []byte("hunter2"), Source: "http://10.1.1.1"}
	holder := struct{ U Userdata }{u}
	asJSON, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	shown := string(asJSON)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		shown += fmt.Sprintf(verb, u) + fmt.Sprintf(verb, holder) + fmt.Sprintf(verb, &holder)
	}
	for _, hidden := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), "104 117 110", "aHVudGVyM"} {
		if strings.Contains(shown, hidden) {
			t.Errorf("userdata shown in %s", shown)
		}
	}
	if !strings.Contains(u.String(), "7 bytes") {
		t.Errorf("String() = %q, want the size", u)
	}
}
