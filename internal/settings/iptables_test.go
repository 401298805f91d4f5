// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

const legacyModules = "kernel/net/ipv4/netfilter/iptable_nat.ko: kernel/net/netfilter/nf_nat.ko\nkernel/net/ipv6/netfilter/ip6table_nat.ko.xz:\n" +
	"kernel/net/ipv4/netfilter/arptable_filter.ko:\n"

// filterMachine is a template with these flavours, and links to nft ones.
func filterMachine(t *testing.T, modules, builtin string, programs ...string) *hosttest.Machine {
	t.Helper()
	m := hosttest.New(t)
	m.Write("/proc/sys/kernel/osrelease", "6.1.0-1-amd64\n")
	m.Write("/lib/modules/6.1.0-1-amd64/modules.dep", modules)
	m.Write("/lib/modules/6.1.0-1-amd64/modules.builtin", builtin)
	link := func(name, program string) {
		m.Write("/etc/alternatives/.keep", "")
		if err := errors.Join(os.RemoveAll(m.Path("/etc/alternatives/"+name)), os.Symlink(program, m.Path("/etc/alternatives/"+name))); err != nil {
			t.Error(err)
		}
	}
	for _, program := range programs {
		m.Write("/usr/sbin/"+program, "")
		if name, ok := strings.CutSuffix(program, "-nft"); ok {
			link(name, "/usr/sbin/"+program)
		}
	}
	m.Program("/usr/bin/update-alternatives", func(command host.Command) (string, error) {
		if len(command.Args) != 3 || command.Args[0] != "--set" {
			return "", errors.New("update-alternatives was asked for something else")
		}
		link(command.Args[1], command.Args[2])
		return "", nil
	})
	return m
}

// Contract 2.1: the legacy flavour, where the template and the kernel have it; a
// second boot changes nothing.
func TestPacketFilters(t *testing.T) {
	t.Parallel()
	both := []string{"iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy", "arptables-nft", "ebtables-nft", "ebtables-legacy"}
	for _, test := range []struct {
		name, modules, builtin string
		programs               []string
		now                    string
		done                   []string
	}{
		// arptables-legacy is a package of its own, and ebtables has no module here.
		{"Debian 12", legacyModules, "", both,
			"iptables-legacy, ip6tables-legacy, ebtables-nft", []string{"iptables", "ip6tables"}},
		{"built in", "", "kernel/net/ipv4/netfilter/iptable_nat.ko\n", both,
			"iptables-legacy, ip6tables-nft, arptables-nft, ebtables-nft", []string{"iptables"}},
		{"a kernel without legacy tables", "kernel/net/netfilter/nf_tables.ko:\n", "", both,
			"iptables-nft, ip6tables-nft, arptables-nft, ebtables-nft", nil},
		{"no iptables", legacyModules, "", nil, "none on this template", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := filterMachine(t, test.modules, test.builtin, test.programs...)
			now, done, err := PacketFilters(context.Background(), m.Host())
			if err != nil || now != test.now || !slices.Equal(done, test.done) {
				t.Errorf("%q, did %q (%v); want %q, %q", now, done, err, test.now, test.done)
			}
			m.Actions()
			now, done, err = PacketFilters(context.Background(), m.Host())
			if err != nil || now != test.now || len(done) > 0 || len(m.Actions()) > 0 {
				t.Errorf("the second boot: %q, did %q (%v); want nothing done", now, done, err)
			}
		})
	}
}

// A template built with legacy links gets a kernel that has no legacy tables.
func TestPacketFiltersFollowTheKernel(t *testing.T) {
	t.Parallel()
	m := filterMachine(t, legacyModules, "", "iptables-nft", "iptables-legacy")
	if now, _, err := PacketFilters(context.Background(), m.Host()); err != nil || now != "iptables-legacy" {
		t.Fatalf("%q, %v", now, err)
	}
	m.Write("/lib/modules/6.1.0-1-amd64/modules.dep", "")
	now, done, err := PacketFilters(context.Background(), m.Host())
	if err != nil || now != "iptables-nft" || !slices.Equal(done, []string{"iptables"}) {
		t.Errorf("%q, did %q, %v; want nft", now, done, err)
	}
}

func TestPacketFiltersOfAnUnknownKernel(t *testing.T) {
	t.Parallel()
	m := filterMachine(t, "", "", "iptables-nft", "iptables-legacy")
	if err := os.RemoveAll(m.Path("/lib/modules")); err != nil {
		t.Fatal(err)
	}
	if now, done, err := PacketFilters(context.Background(), m.Host()); err != nil || !strings.HasPrefix(now, "the template's") || len(done) > 0 {
		t.Errorf("%q, did %q, %v; want the template's left alone", now, done, err)
	}
}
