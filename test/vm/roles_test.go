// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"nodeagent/test/cloud"
	"nodeagent/test/lab"
	"nodeagent/test/template"
)

// stillAfter is how long a machine is looked at: what was stopped must not come back
// by a timer, a socket or somebody who waits (S4).
const stillAfter = 5 * time.Minute

// otherRoles are the boot args of every role that CloudStack's own scripts set up.
func otherRoles(router string) map[string]string {
	args := cloud.SystemVMArgs{Name: "s-1-VM", ID: 1, Hosts: []string{"192.0.2.2"}, LocalGateway: netip.MustParseAddr("192.0.2.1"),
		NICs: []cloud.NIC{{Prefix: netip.MustParsePrefix("169.254.3.7/16")}, {Prefix: netip.MustParsePrefix("192.0.2.7/24"), Gateway: netip.MustParseAddr("192.0.2.1")}},
		DNS:  []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	all := map[string]string{"consoleproxy": args.ConsoleProxy(), "secstorage": args.SecondaryStorage()}
	for _, role := range []string{"router", "vpcrouter", "dhcpsrvr", "elbvm", "ilbvm", "sharedfsvm"} {
		all[role] = strings.Replace(router, " type=router ", " type="+role+" ", 1)
	}
	return all
}

// Every role on both Debians: one machine takes one role after the other, as its host
// delivers other boot args, and is after each what the role wants.
func TestVMRoles(t *testing.T) {
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			ctx, l := newLabWith(t, template.Options{Suite: suite}, labLimit)
			spec := l.RouterSpec("vm-1")
			spec.BootFromDisk = true
			roles := otherRoles(spec.BootArgs)
			m := boot(t, ctx, l, spec)
			before := ""
			for _, boots := range [][]string{{"router", "vpcrouter", "dhcpsrvr"}, {"consoleproxy"}, {"sharedfsvm"}, {"secstorage", "elbvm", "ilbvm"}} {
				if before != "" {
					output(t, ctx, m, "/usr/bin/sync")
					if err := m.Reset(ctx); err != nil {
						t.Fatal(err)
					}
					if err := m.DeliverBootArgs(ctx, roles[boots[0]]); err != nil {
						t.Fatal(err)
					}
				}
				status, code := follow(t, ctx, m, before)
				wantOtherRole(t, ctx, m, boots[0], status, code)
				before = status.BootID
				for _, role := range boots[1:] { // whose units are the same: without a boot
					if err := m.DeliverBootArgs(ctx, roles[role]); err != nil {
						t.Fatal(err)
					}
					output(t, ctx, m, "/usr/bin/systemctl", "restart", "nodeagent.service")
					output(t, ctx, m, "/usr/bin/nodeagent", "status", "--wait")
					status, code, err := lab.ReadStatus(ctx, m)
					if err != nil {
						t.Fatal(err)
					}
					wantOtherRole(t, ctx, m, role, status, code)
				}
			}
			if suite != "bookworm" {
				return // once is enough: it is the same package
			}
			select {
			case <-time.After(stillAfter):
			case <-ctx.Done():
				t.Fatal(context.Cause(ctx))
			}
			wantNoContainers(t, ctx, m, "later")
		})
	}
}

// wantOtherRole checks a machine that CloudStack's own scripts set up.
func wantOtherRole(t *testing.T, ctx context.Context, m *cloud.Machine, role string, status *lab.Status, code int) {
	t.Helper()
	if code != 0 || status.Role != role {
		t.Fatalf("%s: exit code %d, role %s, failures %v, warnings %v", role, code, status.Role, status.Failures(), status.Warnings)
	}
	settled(t, ctx, m)
	wantNoContainers(t, ctx, m, role)
	wantNeighbours(t, ctx, m, true)
	port := map[bool]string{true: "22", false: "3922"}[role == "sharedfsvm"]
	if got := output(t, ctx, m, "/usr/bin/grep", "-h", "^Port ", "/etc/ssh/sshd_config"); got != "Port "+port+"\n" {
		t.Errorf("%s: sshd_config has %q, want the port %s that CloudStack's scripts have set", role, got, port)
	}
}

// wantNoContainers checks that docker, containerd and cloud-init neither run nor start
// at the next boot, whatever they are called in this Debian.
func wantNoContainers(t *testing.T, ctx context.Context, m *cloud.Machine, what string) {
	t.Helper()
	patterns := []string{"docker*", "containerd*", "cloud-init*", "cloud-config*", "cloud-final*"}
	for question, argv := range map[string][]string{
		"runs":           {"list-units", "--plain", "--no-legend", "--state=active,activating,reloading"},
		"starts at boot": {"list-unit-files", "--no-legend", "--state=enabled,enabled-runtime"},
	} {
		// Its exit code is 1 where there is none.
		result, err := m.Agent().Exec(ctx, "/usr/bin/systemctl", append(argv, patterns...)...)
		if err != nil || len(result.Stderr) > 0 {
			t.Fatalf("%s: systemctl %s: %v %s", what, argv[0], err, result.Stderr)
		}
		for line := range strings.Lines(string(result.Stdout)) {
			t.Errorf("%s: %s: %s", what, question, line)
		}
	}
}

// A Kubernetes node on Debian 13, up to what it takes from the ISO: cloud-init has
// other units there.
func TestVMNodeOnTrixie(t *testing.T) {
	ctx, l := newLabWith(t, template.Options{Suite: "trixie"}, labLimit)
	m := boot(t, ctx, l, nodeSpec(t, l, 12*gib))
	if err := m.InsertISO(ctx, incompleteISO(t, ctx)); err != nil {
		t.Fatal(err)
	}
	wantNodeUpToISO(t, ctx, l, m, "http://10.1.1.1:80")
	wantNeighbours(t, ctx, m, false)
	if got := output(t, ctx, m, "/usr/bin/systemctl", "is-active", "containerd.service"); got != "active\n" {
		t.Errorf("containerd is %q", got)
	}
	waitStep(t, ctx, m, "ssh", func(s lab.Step) bool { return s.Status == "done" })
	wantBanner(t, ctx, l, m)
	wantNodeSettings(t, ctx, m)
}
