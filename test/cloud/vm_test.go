// SPDX-License-Identifier: Apache-2.0

//go:build vm

package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// templateVariable names a folder with disk.qcow2, vmlinuz and initrd.img.
const templateVariable = "NODEAGENT_TEMPLATE"

// unable skips, except in CI, where nothing may go untested.
func unable(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func newTestCloud(t *testing.T, options Options) *Cloud {
	t.Helper()
	if os.Geteuid() != 0 {
		unable(t, "needs root")
	}
	options.Log = t.Output()
	c, err := New(deadline(t, time.Minute), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// newClient is a second namespace on the bridge: a machine without QEMU.
func newClient(t *testing.T, c *Cloud, mac net.HardwareAddr) *network {
	t.Helper()
	client := new(network)
	made := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		client.handle, err = netns.New()
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.handle.Close() })
	err := c.network.do(func() error {
		bridge, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		host := "c" + strings.ReplaceAll(mac.String()[9:], ":", "")
		err = netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: host, MasterIndex: bridge.Attrs().Index}, PeerName: "eth0",
			PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(client.handle),
		})
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName(host)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		t.Fatal(err)
	}
	err = client.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (n *network) dial(ctx context.Context, protocol, address string) (conn net.Conn, err error) {
	err = n.do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, protocol, address)
		return err
	})
	return conn, err
}

// get returns the status and body of a request from the client's address.
func (n *network) get(ctx context.Context, url string) (string, error) {
	transport := &http.Transport{DialContext: n.dial, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("DomU_Request", "send_my_password")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return fmt.Sprintf("%d %s", response.StatusCode, body), err
}

// The router alone, asked by real clients: DHCP with the server identifier that
// pain point C8 turns on, DNS, metadata by client address.
func TestVirtualRouter(t *testing.T) {
	t.Parallel()
	for name, router := range map[string]string{"isolated": "10.1.1.1", "shared": "10.1.1.5"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newTestCloud(t, Options{Router: netip.MustParseAddr(router)})
			ctx := deadline(t, time.Minute)
			m, err := c.reserve(MachineSpec{Name: "control", Userdata: []byte("#cloud-config\n"), PublicKeys: []string{"ssh-rsa A"}})
			if err != nil {
				t.Fatal(err)
			}
			c.Router.metadata.set(m.Address, instance{userdata: m.Spec.Userdata, keys: m.metadata()})
			if err := c.Router.add(ctx, "control", m.MAC, m.Address); err != nil {
				t.Fatal(err)
			}

			client := newClient(t, c, m.MAC)
			err = client.do(func() error {
				dhcp, err := nclient4.New("eth0")
				if err != nil {
					return err
				}
				defer dhcp.Close()
				lease, err := dhcp.Request(ctx, dhcpv4.WithRequestedOptions(dhcpv4.OptionHostName))
				if err != nil {
					return err
				}
				ack := lease.ACK
				got := fmt.Sprintln(ack.YourIPAddr, ack.Router(), ack.DNS(), ack.ServerIdentifier(), ack.HostName(), ack.DomainName())
				want := fmt.Sprintln(m.Address, []string{"10.1.1.1"}, []string{router}, router, "control", domain)
				if got != want {
					t.Errorf("got lease %s, want %s", got, want)
				}
				link, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return addAddress(link, netip.PrefixFrom(m.Address, guestNetwork.Bits()))
			})
			if err != nil {
				t.Fatal(err)
			}

			resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, protocol, _ string) (net.Conn, error) {
				return client.dial(ctx, protocol, router+":53")
			}}
			for host, want := range map[string]string{"data-server.": router, "control.": "10.1.1.11", "control." + domain + ".": "10.1.1.11"} {
				if got, err := resolver.LookupNetIP(ctx, "ip4", host); err != nil || len(got) != 1 || got[0].String() != want {
					t.Errorf("name %s: got %v, %v, want %s", host, got, err, want)
				}
			}
			if got, err := resolver.LookupNetIP(ctx, "ip4", "registry.k8s.io."); err == nil {
				t.Errorf("a name of the outside has address %v", got)
			}
			if err := c.Router.Log.Wait(ctx, 0, "query[A] registry.k8s.io from 10.1.1.11"); err != nil {
				t.Error(err)
			}
			asked := Query{Client: m.Address, Type: "A", Name: "registry.k8s.io"}
			if !slices.Contains(c.Router.Queries(), asked) {
				t.Errorf("got queries %v, want %v among them", c.Router.Queries(), asked)
			}

			for path, want := range map[string]string{
				"/latest/user-data":                "200 #cloud-config\n",
				"/latest/meta-data/instance-id":    "200 " + m.ID,
				"/latest/local-hostname":           "200 control",
				"/latest/meta-data/public-keys":    "200 ssh-rsa A\n",
				"/latest/meta-data/missing":        "404 404 page not found\n",
				"/latest/meta-data/":               "200 availability-zone\ncloud-identifier\ninstance-id\nlocal-hostname\nlocal-ipv4\npublic-hostname\npublic-ipv4\npublic-keys\nservice-offering\nvm-id\n",
				"/openstack/latest/meta_data.json": "404 404 page not found\n",
			} {
				if got, err := client.get(ctx, "http://"+router+path); err != nil || got != want {
					t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
				}
			}
			if got, err := client.get(ctx, "http://"+router+":8080/"); err != nil || got != "200 saved_password" {
				t.Errorf("password server: got %q, %v", got, err)
			}
			if got, err := c.network.get(ctx, "http://"+router+"/latest/user-data"); err != nil || !strings.HasPrefix(got, "404 ") {
				t.Errorf("an unknown client: got %q, %v, want 404", got, err)
			}
			requests := c.Router.Requests()
			if !slices.ContainsFunc(requests, func(r Request) bool {
				return r.Client == m.Address && r.Port == 80 && r.Path == "/latest/user-data" && time.Since(r.Time) < time.Minute
			}) {
				t.Errorf("got requests %v, want one for user-data of %s", requests, m.Address)
			}

			// Late, refusing, and there again (pain point C8).
			c.Router.SetDelay(300 * time.Millisecond)
			began := time.Now()
			if _, err := client.get(ctx, "http://"+router+"/latest/user-data"); err != nil || time.Since(began) < 300*time.Millisecond {
				t.Errorf("answer after %s, %v, want a late one", time.Since(began), err)
			}
			c.Router.SetDelay(0)
			if err := c.Router.SetRefuse(true); err != nil {
				t.Fatal(err)
			}
			if _, err := client.get(ctx, "http://"+router+"/latest/user-data"); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got error %v, want connection refused", err)
			}
			if err := c.Router.SetRefuse(false); err != nil {
				t.Fatal(err)
			}
			if _, err := client.get(ctx, "http://"+router+"/latest/user-data"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Two clouds of one process live side by side, have no way out, and leave
// nothing behind.
func TestCloudIsIsolatedAndCleansUp(t *testing.T) {
	t.Parallel()
	first, second := newTestCloud(t, Options{}), newTestCloud(t, Options{})
	if first.Namespace() == second.Namespace() {
		t.Errorf("both clouds are in %s", first.Namespace())
	}
	for _, address := range []string{"192.0.2.1:80", "9.9.9.9:53"} {
		if conn, err := first.DialContext(deadline(t, 5*time.Second), "tcp", address); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("dial %s: got %v, %v, want network unreachable", address, conn, err)
		}
	}
	if output, err := first.Command(deadline(t, 5*time.Second), "ip", "-br", "link"); err != nil || strings.Count(output, "\n") != 2 {
		t.Errorf("got devices %q, %v, want lo and br0", output, err)
	}
	dnsmasq, sockets, dir := first.Router.dnsmasq.Process.Pid, first.sockets, first.dir
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(dnsmasq, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("dnsmasq %d after Close: %v", dnsmasq, err)
	}
	for _, path := range []string{sockets, dir, filepath.Join(namespaceFolder, first.Namespace())} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left after Close: %v", path, err)
		}
	}
	if _, err := second.DialContext(deadline(t, 5*time.Second), "tcp", "10.1.1.1:80"); err != nil {
		t.Errorf("the other cloud has suffered: %v", err)
	}
}

// What a machine sends to the outside is seen, and what goes to its neighbours or a
// cluster's pods is not.
func TestOutside(t *testing.T) {
	t.Parallel()
	c := newTestCloud(t, Options{})
	client := newClient(t, c, net.HardwareAddr{2, 0, 0, 0, 0, 9})
	if err := client.do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := addAddress(link, netip.MustParsePrefix("10.1.1.99/24")); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()}); err != nil {
			return err
		}
		for _, address := range []string{"10.1.1.1:53", "10.244.1.2:443", "9.9.9.9:53", "9.9.9.9:53", "192.0.2.7:443"} {
			conn, err := net.Dial("udp", address)
			if err != nil {
				return err
			}
			if _, err := conn.Write([]byte("hello")); err != nil {
				return err
			}
			if err := conn.Close(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"UDP to 192.0.2.7:443 from 10.1.1.99", "UDP to 9.9.9.9:53 from 10.1.1.99"}
	for ctx := deadline(t, time.Minute); !slices.Equal(c.Outside(), want); {
		select {
		case <-ctx.Done():
			t.Fatalf("seen %q, want %q", c.Outside(), want)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A killed process must leave neither children nor, after the next New, its
// namespace.
func TestKilledProcessLeavesNothing(t *testing.T) {
	if os.Getenv("CLOUD_TEST_CHILD") != "" {
		c := newTestCloud(t, Options{})
		fmt.Printf("cloud %s %d\n", c.Namespace(), c.Router.dnsmasq.Process.Pid)
		os.Stdout.Sync()
		select {}
	}
	t.Parallel()
	if os.Geteuid() != 0 {
		unable(t, "needs root")
	}
	ctx := deadline(t, time.Minute)
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKilledProcessLeavesNothing$")
	child.Env = append(os.Environ(), "CLOUD_TEST_CHILD=1")
	var output Transcript
	child.Stdout, child.Stderr = &output, &output
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if err := output.Wait(ctx, 0, "\n"); err != nil {
		t.Fatal(err)
	}
	var namespace string
	var dnsmasq int
	if _, err := fmt.Sscanf(output.String(), "cloud %s %d", &namespace, &dnsmasq); err != nil {
		t.Fatalf("%v: %s", err, output.String())
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	err := retry(deadline(t, 10*time.Second), 10*time.Millisecond, "see the end of dnsmasq", func() error {
		if state := processState(dnsmasq); state != "" && state != "Z" {
			return fmt.Errorf("it is in state %s", state)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	newTestCloud(t, Options{})
	if _, err := os.Stat(filepath.Join(namespaceFolder, namespace)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("namespace %s is left: %v", namespace, err)
	}
}

func processState(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	state, _, _ := strings.Cut(rest, " ")
	return state
}

func templateSpec(t *testing.T, name string) MachineSpec {
	t.Helper()
	template := os.Getenv(templateVariable)
	if template == "" {
		unable(t, templateVariable+" names no folder")
	}
	return MachineSpec{
		Name: name, Disk: filepath.Join(template, "disk.qcow2"),
		Kernel: filepath.Join(template, "vmlinuz"), Initrd: filepath.Join(template, "initrd.img"),
		// The agent is off in the template, and who turns it on is not tested here.
		Append: "root=/dev/vda6 ro net.ifnames=0 biosdevname=0 console=ttyS0 systemd.wants=qemu-guest-agent.service",
	}
}

func TestBootFromDisk(t *testing.T) {
	t.Parallel()
	spec := templateSpec(t, "node")
	spec.BootFromDisk = true
	c := newTestCloud(t, Options{Dir: t.ArtifactDir()})
	ctx := deadline(t, 3*time.Minute)
	m, err := c.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WaitConsole(ctx, 0, "Linux version"); err != nil {
		t.Error(err)
	}
}

// One machine with all that a KVM host does to it: boot args through the agent
// (C3), CD medium, reboot, power cut.
func TestMachine(t *testing.T) {
	t.Parallel()
	spec := templateSpec(t, "router")
	spec.DiskBytes = 12 << 30
	spec.Userdata = []byte("#cloud-config\n# for the test\n")
	spec.FirmwareBootArgs = " type=dhcpsrvr"
	c := newTestCloud(t, Options{Dir: t.ArtifactDir()})
	ctx := deadline(t, 9*time.Minute)
	iso := filepath.Join(t.TempDir(), "cd.iso")
	if err := os.WriteFile(iso, make([]byte, 3<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := c.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WaitConsole(ctx, 0, "Linux version"); err != nil {
		t.Fatal(err)
	}
	args := " template=domP name=router type=default eth0ip=" + m.Address.String() + " eth0mask=255.255.255.0"
	if err := m.DeliverBootArgs(ctx, args); err != nil {
		t.Fatalf("%v\n%s", err, m.Console())
	}
	agent := m.Agent()
	if got, err := agent.FileRead(ctx, bootArgsFile); err != nil || string(got) != args+"\n" {
		t.Errorf("got boot args %q, %v, want %q and a newline", got, err, args)
	}
	guest := func(path string, args ...string) string {
		t.Helper()
		result, err := agent.Exec(ctx, path, args...)
		if err != nil {
			t.Fatal(err)
		}
		if result.ExitCode != 0 {
			t.Errorf("%s %q: exit code %d: %s", path, args, result.ExitCode, result.Stderr)
		}
		return string(result.Stdout)
	}
	if result, err := agent.Exec(ctx, "/bin/ls", "/nowhere"); err != nil || result.ExitCode != 2 || !strings.Contains(string(result.Stderr), "/nowhere") {
		t.Errorf("got %+v, %v, want exit code 2 and its message", result, err)
	}
	if got, want := strings.TrimSpace(guest("/bin/cat", "/sys/block/vda/size")), strconv.Itoa(12<<30/512); got != want {
		t.Errorf("got a root disk of %s sectors, want %s", got, want)
	}
	if got := guest("/bin/cat", "/sys/firmware/qemu_fw_cfg/by_name/opt/cloudstack/cmdline/raw"); got != " type=dhcpsrvr" {
		t.Errorf("got firmware boot args %q", got)
	}

	// The network, whatever the template made of it by now.
	guest("/sbin/ip", "link", "set", "eth0", "up")
	guest("/sbin/ip", "address", "replace", m.Address.String()+"/24", "dev", "eth0")
	if got := guest("/usr/bin/curl", "-sf", "--max-time", "60", "http://10.1.1.1/latest/user-data"); got != string(m.Spec.Userdata) {
		t.Errorf("got userdata %q, want %q", got, m.Spec.Userdata)
	}
	if result, err := agent.Exec(ctx, "/sbin/dhclient", "-1", "-v", "-sf", "/bin/true", "eth0"); err != nil || result.ExitCode != 0 {
		t.Errorf("dhclient: %+v, %v", result, err)
	}
	if err := c.Router.Log.Wait(ctx, 0, "DHCPACK("+bridgeName+") "+m.Address.String()); err != nil {
		t.Error(err)
	}

	// The medium comes and goes under the drive that is there all the time.
	sectors := func() string { return strings.TrimSpace(guest("/sbin/blockdev", "--getsize64", "/dev/sr0")) }
	if result, err := agent.Exec(ctx, "/sbin/blockdev", "--getsize64", "/dev/sr0"); err != nil || result.ExitCode == 0 {
		t.Errorf("an empty drive: %+v, %v, want an error of the tool", result, err)
	}
	if err := m.InsertISO(ctx, iso); err != nil {
		t.Fatal(err)
	}
	if got, err := m.QMP().Medium(ctx); err != nil || got != iso {
		t.Errorf("got medium %q, %v, want %q", got, err, iso)
	}
	if got, want := sectors(), strconv.Itoa(3<<20); got != want {
		t.Errorf("got a medium of %s bytes, want %s", got, want)
	}
	if err := m.EjectISO(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := m.QMP().Medium(ctx); err != nil || got != "" {
		t.Errorf("got medium %q, %v, want none", got, err)
	}

	if err := agent.FileWrite(ctx, "/root/kept", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	guest("/bin/sync")
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	from := m.ConsoleLen()
	if err := m.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	agent = m.Agent()
	if err := m.WaitConsole(ctx, from, "Linux version"); err != nil {
		t.Fatal(err)
	}
	if err := agent.DeliverBootArgs(ctx, args); err != nil {
		t.Fatalf("%v\n%s", err, m.Console()[from:])
	}
	if got, err := agent.FileRead(ctx, "/root/kept"); err != nil || string(got) != "kept" {
		t.Errorf("after the power cut: got %q, %v, want what was synced", got, err)
	}
	from = m.ConsoleLen()
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitConsole(ctx, from, "Linux version"); err != nil {
		t.Fatal(err)
	}
	from = m.ConsoleLen()
	if err := m.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitConsole(ctx, from, "login:"); err != nil {
		t.Fatal(err)
	}
	if err := m.PowerOff(ctx); err != nil {
		t.Error(err)
	}
	if err := m.Stop(); err != nil {
		t.Error(err)
	}
}
