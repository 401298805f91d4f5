// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// K4: the clock is right, by one service and no more; a second boot changes nothing.
func TestTimeIsOneService(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name            string
		units           []host.Unit
		service         string
		done, off, runs []string
	}{
		{"Debian 12", []host.Unit{{Name: "systemd-timesyncd.service", FileState: "enabled", ActiveState: "active"}},
			"systemd-timesyncd", nil, nil, []string{"systemd-timesyncd.service: enabled active"}},
		{"off in the template", []host.Unit{{Name: "chrony.service"}}, "chrony", []string{"enabled"}, nil, []string{"chrony.service: enabled active"}},
		{"two", []host.Unit{{Name: "chrony.service", FileState: "enabled"},
			{Name: "systemd-timesyncd.service", FileState: "enabled", ActiveState: "active"}},
			"chrony", []string{"systemd-timesyncd.service off"}, []string{"systemd-timesyncd.service: disabled inactive"},
			[]string{"chrony.service: enabled active"}},
		// ntpsec also answers to ntp's name: it must not be turned off by it.
		{"ntpsec", []host.Unit{{Name: "ntpsec.service", FileState: "enabled", ActiveState: "active"},
			{Name: "ntp.service", FileState: "alias", ActiveState: "active"}},
			"ntpsec", nil, nil, []string{"ntpsec.service: enabled active", "ntp.service: alias active"}},
		{"Debian 11", []host.Unit{{Name: "ntp.service"}}, "ntp", []string{"enabled"}, nil, []string{"ntp.service: enabled active"}},
		{"masked by the administrator", []host.Unit{{Name: "chrony.service", LoadState: "masked", FileState: "masked"},
			{Name: "systemd-timesyncd.service"}},
			"systemd-timesyncd", []string{"enabled"}, []string{"chrony.service: masked inactive"}, []string{"systemd-timesyncd.service: enabled active"}},
		{"none", nil, "", nil, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := hosttest.New(t)
			for _, unit := range test.units {
				m.AddUnit(unit)
			}
			service, done, err := Time(context.Background(), m.Host(), nil)
			if err != nil || service != test.service || !slices.Equal(done, test.done) {
				t.Errorf("%q did %q (%v), want %q, %q", service, done, err, test.service, test.done)
			}
			for _, want := range append(test.runs, test.off...) {
				if !strings.Contains(m.String(), "unit "+want+"\n") {
					t.Errorf("want %q in\n%s", want, m)
				}
			}
			m.Actions()
			if _, done, err := Time(context.Background(), m.Host(), nil); err != nil || len(done) > 0 || len(m.Actions()) > 0 {
				t.Errorf("the second boot did %q (%v), want nothing", done, err)
			}
		})
	}
}

// The servers of the boot args are asked, and those alone, until there are none any
// more: then the template's are again.
func TestTimeServersOfTheBootArgs(t *testing.T) {
	t.Parallel()
	const chrony = "pool 2.debian.pool.ntp.org iburst\nsourcedir /etc/chrony/sources.d\n"
	for unit, config := range map[string]struct{ file, template, want string }{
		"chrony.service": {"/etc/chrony/chrony.conf", chrony,
			"#nodeagent# pool 2.debian.pool.ntp.org iburst\nsourcedir /etc/chrony/sources.d\n" +
				blockBegin + "\nserver 10.0.0.1 iburst\nserver ntp.example.org iburst\n" + blockEnd + "\n"},
		"openntpd.service": {"/etc/openntpd/ntpd.conf", "servers pool.ntp.org\n", "#nodeagent# servers pool.ntp.org\n" + blockBegin +
			"\nserver 10.0.0.1\nserver ntp.example.org\n" + blockEnd + "\n"},
		"systemd-timesyncd.service": {"/etc/systemd/timesyncd.conf.d/nodeagent.conf", "",
			blockBegin + "\n[Time]\nNTP=\nNTP=10.0.0.1 ntp.example.org\nFallbackNTP=\n"},
	} {
		m := hosttest.New(t)
		m.AddUnit(host.Unit{Name: unit, FileState: "enabled", ActiveState: "active"})
		if config.template != "" {
			m.Write(config.file, config.template)
		}
		servers := []string{"10.0.0.1", "ntp.example.org"}
		for i, want := range [][]string{{"restart " + unit}, nil} {
			if _, _, err := Time(context.Background(), m.Host(), servers); err != nil || !slices.Equal(m.Actions(), want) {
				t.Errorf("%s, boot %d: %v; want %q done", unit, i, err, want)
			}
			if got := m.Read(config.file); got != config.want {
				t.Errorf("%s, boot %d:\n%s\nwant\n%s", config.file, i, got, config.want)
			}
		}
		if _, done, err := Time(context.Background(), m.Host(), nil); err != nil || len(done) != 1 {
			t.Errorf("%s without servers did %q, %v", unit, done, err)
		}
		if exists := m.Host().Exists(config.file); exists != (config.template != "") || exists && m.Read(config.file) != config.template {
			t.Errorf("%s is not the template's again", config.file)
		}
	}
}

func TestWithServers(t *testing.T) {
	t.Parallel()
	servers := []string{"10.0.0.1"}
	const block = blockBegin + "\nserver 10.0.0.1 iburst\n" + blockEnd + "\n"
	for _, test := range []struct{ old, want, back string }{
		{"", block, ""},
		{"driftfile x", "driftfile x\n" + block, "driftfile x\n"},
		{"Server a\n\tpool b iburst\npeer c\nserver\n#server d\n",
			"#nodeagent# Server a\n#nodeagent# \tpool b iburst\n#nodeagent# peer c\nserver\n#server d\n" + block,
			"Server a\n\tpool b iburst\npeer c\nserver\n#server d\n"},
		{"serverx a\r\n\x00\xff", "serverx a\r\n\x00\xff\n" + block, "serverx a\r\n\x00\xff\n"},
		// Somebody has removed the end of what nodeagent had written: what follows stays.
		{blockBegin + "\nserver old\nrestrict default\nserver e\n", "restrict default\n#nodeagent# server e\n" + block, "restrict default\nserver e\n"},
		{blockBegin, block, ""},
	} {
		got := withNTPServers(test.old, servers)
		if got != test.want {
			t.Errorf("withNTPServers(%q) = %q, want %q", test.old, got, test.want)
		}
		if again := withNTPServers(got, servers); again != got {
			t.Errorf("withNTPServers(%q) a second time = %q", test.old, again)
		}
		if back := withNTPServers(got, nil); back != test.back {
			t.Errorf("withNTPServers(%q) taken back = %q, want %q", test.old, back, test.back)
		}
	}
	const untouched = "pool a\nserver b # x"
	if got := withNTPServers(untouched, nil); got != untouched {
		t.Errorf("without servers %q becomes %q", untouched, got)
	}
}

// What goes into a configuration file is a name or an address.
func TestTimeServers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		list           string
		servers, wrong []string
	}{
		{"", nil, nil},
		{"pool.ntp.org,10.2.0.2", []string{"pool.ntp.org", "10.2.0.2"}, nil},
		{"a,\rb\r,,a", []string{"a", "b"}, nil},
		{"2001:db8::1,ntp-1.example.", []string{"2001:db8::1", "ntp-1.example."}, nil},
		{"a\nmakestep,-x,x;y,$(z),10.0.0.1/8,fe80::1%eth0,.,a..b", nil,
			[]string{"a\nmakestep", "-x", "x;y", "$(z)", "10.0.0.1/8", "fe80::1%eth0", ".", "a..b"}},
		{strings.Repeat("x", 254), nil, []string{strings.Repeat("x", 254)}},
	} {
		servers, wrong := TimeServers(test.list)
		if !slices.Equal(servers, test.servers) || !slices.Equal(wrong, test.wrong) {
			t.Errorf("TimeServers(%q) = %q, %q; want %q, %q", test.list, servers, wrong, test.servers, test.wrong)
		}
	}
}
