// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestWriteConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := writeConfig(dir, podSubnet(netip.MustParseAddr("192.168.80.23"))); err != nil {
		t.Fatal(err)
	}
	found, err := fs.Glob(os.DirFS(dir), "*")
	if err != nil || len(found) != 1 {
		t.Fatalf("got files %q (%v), want one", found, err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "10-podnet.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/10-podnet.conflist")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWantedRoutes(t *testing.T) {
	t.Parallel()
	self := netip.MustParseAddr("192.168.80.23")
	type routes = map[netip.Prefix]netip.Addr
	near, far := netip.MustParseAddr("192.168.80.24"), netip.MustParseAddr("192.168.80.200")
	tests := []struct {
		name  string
		nodes map[string]netip.Addr
		want  routes
	}{
		{"alone", map[string]netip.Addr{"a": self}, routes{}},
		{"not yet registered", nil, routes{}},
		{"three", map[string]netip.Addr{"a": self, "b": near, "c": far}, routes{
			netip.MustParsePrefix("10.244.24.0/24"):  near,
			netip.MustParsePrefix("10.244.200.0/24"): far,
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := wantedRoutes(self, test.nodes); !maps.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestFollowNodes(t *testing.T) {
	t.Parallel()
	object := func(name, address string) string {
		return fmt.Sprintf(`{"metadata":{"name":%q},"status":{"addresses":[{"type":"Hostname","address":%q},{"type":"InternalIP","address":%q}]}}`, name, name, address)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != "Bearer sesame" {
			t.Errorf("authorization: got %q", got)
		}
		if r.URL.Query().Get("watch") == "" {
			fmt.Fprintf(w, `{"metadata":{"resourceVersion":"7"},"items":[%s]}`, object("a", "192.168.80.23"))
			return
		}
		if got := r.URL.Query().Get("resourceVersion"); got != "7" {
			t.Errorf("resourceVersion: got %q, want 7", got)
		}
		fmt.Fprintf(w, `{"type":"ADDED","object":%s}`+"\n", object("b", "192.168.80.24"))
		fmt.Fprintf(w, `{"type":"MODIFIED","object":%s}`+"\n", object("b", "192.168.80.24"))
		fmt.Fprintf(w, `{"type":"BOOKMARK","object":{}}`+"\n")
		fmt.Fprintf(w, `{"type":"MODIFIED","object":%s}`+"\n", object("b", "192.168.80.25"))
		fmt.Fprintf(w, `{"type":"DELETED","object":%s}`+"\n", object("b", "192.168.80.25"))
	}))
	t.Cleanup(server.Close)

	var got []string
	err := testClient(t, server).followNodes(context.Background(), func(nodes map[string]netip.Addr) error {
		got = append(got, fmt.Sprint(nodes))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"map[a:192.168.80.23]",
		"map[a:192.168.80.23 b:192.168.80.24]",
		"map[a:192.168.80.23 b:192.168.80.25]",
		"map[a:192.168.80.23]",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestFollowNodesFails(t *testing.T) {
	t.Parallel()
	const list = `{"metadata":{"resourceVersion":"7"},"items":[]}`
	tests := []struct {
		name        string
		list, watch string
		status      int
		want        string
	}{
		{"refused", list, "", http.StatusForbidden, "cannot list nodes: the server answers 403 Forbidden"},
		{"not JSON", "<html>", "", http.StatusOK, "cannot list nodes: invalid character"},
		{"expired", list, `{"type":"ERROR","object":{"code":410}}`, http.StatusOK, `cannot watch nodes: the server says: {"code":410}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(test.status)
				if r.URL.Query().Get("watch") == "" {
					fmt.Fprint(w, test.list)
				} else {
					fmt.Fprint(w, test.watch)
				}
			}))
			t.Cleanup(server.Close)
			err := testClient(t, server).followNodes(context.Background(), func(map[string]netip.Addr) error { return nil })
			if err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func testClient(t *testing.T, server *httptest.Server) *client {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return &client{base: server.URL, tokenFile: token, http: server.Client()}
}

func TestRunRefusesAddress(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "fd00::1", "node"} {
		err := run(nil, func(string) string { return address }, os.Stderr)
		want := fmt.Sprintf("cannot use HOST_IP %q: want the node's IPv4 address", address)
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// In a network namespace of its own.
func TestSetRoutes(t *testing.T) {
	t.Parallel()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); errors.Is(err, unix.EPERM) && os.Getenv("CI") == "" {
		t.Skip("needs root")
	} else if err != nil {
		t.Fatal(err)
	}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}
	address, err := netlink.ParseAddr("192.168.80.23/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.LinkAdd(link), netlink.AddrAdd(link, address), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	subnet := func(n string) netip.Prefix { return netip.MustParsePrefix("10.244." + n + ".0/24") }
	near := netip.MustParseAddr("192.168.80.24")

	for _, wanted := range []map[netip.Prefix]netip.Addr{
		{subnet("24"): near, subnet("25"): netip.MustParseAddr("192.168.80.25")},
		{subnet("24"): netip.MustParseAddr("192.168.80.99")},
		{},
	} {
		if err := setRoutes(wanted); err != nil {
			t.Fatalf("setRoutes(%v): %v", wanted, err)
		}
		if got := podRoutes(t); !maps.Equal(got, wanted) {
			t.Errorf("got %v, want %v", got, wanted)
		}
	}
	err = setRoutes(map[netip.Prefix]netip.Addr{subnet("24"): near, subnet("9"): netip.MustParseAddr("172.16.0.9")})
	if want := "cannot route 10.244.9.0/24 via 172.16.0.9: network is unreachable"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if got := podRoutes(t); got[subnet("24")] != near {
		t.Errorf("one bad node kept the route to a good one away: %v", got)
	}
}

func podRoutes(t *testing.T) map[netip.Prefix]netip.Addr {
	t.Helper()
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	found := map[netip.Prefix]netip.Addr{}
	for _, route := range routes {
		if route.Gw == nil {
			continue
		}
		via, _ := netip.AddrFromSlice(route.Gw.To4())
		found[prefixOf(route.Dst)] = via
	}
	return found
}
