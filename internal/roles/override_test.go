// SPDX-License-Identifier: Apache-2.0

package roles_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/roles"
)

// read reads override files, given as name and content in turn.
func read(t *testing.T, files ...string) (roles.Overrides, []string) {
	t.Helper()
	m := hosttest.New(t)
	for i := 0; i < len(files); i += 2 {
		m.Write(roles.OverridesDir+"/"+files[i], files[i+1])
	}
	overrides, problems := roles.ReadOverrides(m.Host(), roles.OverridesDir)
	var texts []string
	for _, problem := range problems {
		texts = append(texts, strings.TrimPrefix(problem.String(), roles.OverridesDir+"/"))
	}
	return overrides, texts
}

// Files apply in the order of their names, and the last word on a unit holds.
func TestOverridesAreMerged(t *testing.T) {
	t.Parallel()
	overrides, problems := read(t,
		"20-team.yaml", "router:\n  off: [node-exporter.service]\n  onDemand: [containerd.service]\n  minimumDisk: 6\n",
		"10-site.yaml", "# site\nrouter:\n  on: [node-exporter.service, chrony.service]\n  off: [snmpd.service]\n  minimumDisk: 5\n  sshPort: 3923\ncksnode: {minimumDisk: 20}\nstoragefsvm: {minimumDisk: 3}\n",
		"30-empty.yaml", "# nothing\n", "40-null.yaml", "---\n", "README", "not: [yaml", ".hidden.yaml", "not: [yaml", "old.yaml~", "x", "50.yaml.dpkg-dist", "x")
	if len(problems) > 0 {
		t.Fatalf("problems %q", problems)
	}
	table := find(t, "router")
	router := overrides.Apply(table)
	if !slices.Equal(router.On, []string{"chrony.service"}) || !slices.Equal(router.Leave, []string{"containerd.service"}) || len(router.OnDemand) > 0 {
		t.Errorf("on %q, left alone %q, on demand %q", router.On, router.Leave, router.OnDemand)
	}
	if slices.Contains(router.Off, "containerd.service") || !slices.Contains(router.Off, "docker.service") ||
		!slices.Equal(router.Off[len(router.Off)-2:], []string{"snmpd.service", "node-exporter.service"}) {
		t.Errorf("off %q", router.Off)
	}
	if router.MinimumDisk != 6<<30 || router.SSHPort != 3923 || router.Owner != table.Owner {
		t.Errorf("disk %d, port %d, owner %s", router.MinimumDisk, router.SSHPort, router.Owner)
	}
	if got := overrides.Apply(find(t, "cksnode")).MinimumDisk; got != 20<<30 {
		t.Errorf("cksnode's disk %d", got)
	}
	if got := overrides.Apply(find(t, "sharedfsvm")).MinimumDisk; got != 3<<30 {
		t.Errorf("sharedfsvm's disk %d; its other name was overridden", got)
	}
	if got := overrides.Apply(find(t, "ilbvm")); got.MinimumDisk != 0 || overrides.Of(got) != 0 {
		t.Errorf("ilbvm %+v is not overridden", got)
	}
	// The table itself is as it was.
	if again := find(t, "router"); !slices.Equal(again.Off, table.Off) || len(again.On) > 0 {
		t.Errorf("the table has changed: %+v", again)
	}

	var explained []string
	for _, origin := range overrides.Explain(table) {
		value := origin.Value
		if len(strings.Fields(value)) > 2 {
			value = "..."
		}
		explained = append(explained, origin.Key+" "+value+" "+strings.TrimPrefix(origin.From, roles.OverridesDir+"/"))
	}
	want := []string{
		"on chrony.service 10-site.yaml line 3",
		"onDemand containerd.service 20-team.yaml line 3",
		"off ... role table", "off snmpd.service 10-site.yaml line 4", "off node-exporter.service 20-team.yaml line 2",
		"minimumDisk 6 GiB 20-team.yaml line 4", "sshPort 3923 10-site.yaml line 6",
	}
	if !slices.Equal(explained, want) {
		t.Errorf("explained\n%s\nwant\n%s", strings.Join(explained, "\n"), strings.Join(want, "\n"))
	}
}

// Cloud-init's stages stay in the order in which they run, whatever order they are
// given in.
func TestOverrideGivesARoleCloudInit(t *testing.T) {
	t.Parallel()
	overrides, problems := read(t, "a.yaml", `router:
  onDemand: [cloud-final.service, cloud-config.service, cloud-config.target, cloud-init.service, cloud-init-local.service]
`)
	if len(problems) > 0 {
		t.Fatalf("problems %q", problems)
	}
	router := overrides.Apply(find(t, "router"))
	want := []string{"cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service"}
	if !slices.Equal(router.OnDemand, want) || !router.UsesCloudInit() || !slices.Equal(router.Leave, []string{"cloud-config.target"}) {
		t.Errorf("on demand %q, left alone %q", router.OnDemand, router.Leave)
	}
	if plan, err := roles.Apply(t.Context(), template(t, 12).Host(), router); err != nil || strings.Contains(plan.String(), "cloud-final") {
		t.Errorf("%s, %v; want cloud-init left alone", plan, err)
	}
	// Of Debian 13's names none was given: that is said, and not passed over.
	if _, err := roles.Apply(t.Context(), template(t, 13).Host(), router); err == nil || !strings.Contains(err.Error(), "the template has no cloud-init.service") {
		t.Errorf("%v, want cloud-init.service missing", err)
	}
}

// Every mistake is told, with file, line, key, value and what was expected.
func TestOverridesAreStrict(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ content, want string }{
		{"rooter: {minimumDisk: 1}", `a.yaml line 1: "rooter" is no role; expected one of cksnode, sharedfsvm, router, vpcrouter, dhcpsrvr, elbvm, ilbvm, consoleproxy, secstorage`},
		{"router: {minimumDisk: 1}\nrouter: {sshPort: 1}", `a.yaml line 2: router is given twice; expected once in a file`},
		{"sharedfsvm: {minimumDisk: 1}\nstoragefsvm: {sshPort: 1}", `a.yaml line 2: sharedfsvm is given twice; expected once in a file`},
		{"router:", `a.yaml line 1: router is empty; expected a mapping of keys`},
		{"- router", `a.yaml line 1: is a list; expected a mapping of roles`},
		{"router", `a.yaml line 1: is "router"; expected a mapping of roles`},
		{"router:\n  owner: nodeagent", `a.yaml line 2: router has no key "owner"; expected one of on, onDemand, off, minimumDisk, sshPort`},
		{"router:\n  Off: [a.service]", `a.yaml line 2: router has no key "Off"; expected one of on, onDemand, off, minimumDisk, sshPort`},
		{"router:\n  sshPort: 22\n  sshPort: 23", `a.yaml line 3: router.sshPort is given twice; expected once`},
		{"router:\n  minimumDisk: -1", `a.yaml line 2: router.minimumDisk is -1; expected a number of GiB from 0, for none, to 1048576`},
		{"router:\n  minimumDisk: 1048577", `a.yaml line 2: router.minimumDisk is 1048577; expected a number of GiB from 0, for none, to 1048576`},
		{"router:\n  minimumDisk: 8.5", `a.yaml line 2: router.minimumDisk is 8.5; expected a number of GiB from 0, for none, to 1048576`},
		{"router:\n  minimumDisk: 8GiB", `a.yaml line 2: router.minimumDisk is "8GiB"; expected a number of GiB from 0, for none, to 1048576`},
		{"router:\n  minimumDisk: \"8\"", `a.yaml line 2: router.minimumDisk is "8"; expected a number of GiB from 0, for none, to 1048576`},
		{"router:\n  minimumDisk:", `a.yaml line 2: router.minimumDisk is empty; expected a number of GiB from 0, for none, to 1048576`},
		{"router:\n  sshPort: 0", `a.yaml line 2: router.sshPort is 0; expected a port, 1 to 65535`},
		{"router:\n  sshPort: 65536", `a.yaml line 2: router.sshPort is 65536; expected a port, 1 to 65535`},
		{"router:\n  sshPort: ssh", `a.yaml line 2: router.sshPort is "ssh"; expected a port, 1 to 65535`},
		{"router:\n  off: a.service", `a.yaml line 2: router.off is "a.service"; expected a list of units`},
		{"router:\n  off: []", `a.yaml line 2: router.off is an empty list; expected a list of units`},
		{"router:\n  off: [docker]", `a.yaml line 2: router.off has "docker"; expected the name of a unit, such as docker.service`},
		{"router:\n  off:\n  - a b.service", `a.yaml line 3: router.off has "a b.service"; expected the name of a unit, such as docker.service`},
		{"router:\n  off: [getty@.service]", `a.yaml line 2: router.off has "getty@.service"; expected the name of a unit, such as docker.service`},
		{"router:\n  off: [/etc/a.service]", `a.yaml line 2: router.off has "/etc/a.service"; expected the name of a unit, such as docker.service`},
		{"router:\n  off: [dev-vda.device]", `a.yaml line 2: router.off has "dev-vda.device"; expected the name of a unit, such as docker.service`},
		{"router:\n  off: [a.service, {}]", `a.yaml line 2: router.off has a mapping; expected the name of a unit, such as docker.service`},
		{"router:\n  off: [&a a.service, *a]", `a.yaml line 2: router.off has a reference to an anchor; expected the name of a unit, such as docker.service`},
		{"router:\n  on: [a.service]\n  off: [a.service]", `a.yaml line 3: router.off has a.service, which router.on has on line 2; expected each unit once`},
		{"router:\n  on: [ssh.service]", `a.yaml line 2: router.on has ssh.service, which is nodeagent's own to start; expected another unit`},
		{"router:\n  off: [cloud-early-config.service]", `a.yaml line 2: router.off has cloud-early-config.service, which is CloudStack's own to start; expected another unit`},
		{"router:\n  on: [haproxy.service]", `a.yaml line 2: router.on has haproxy.service, which is CloudStack's own to enable and disable on this role; expected another unit`},
		{"router:\n  on: [cloud-init.service]", `a.yaml line 2: router.on has cloud-init.service, which has no use before its seed; expected it in onDemand`},
		{"cksnode:\n  off: [containerd.service]", `a.yaml line 2: cksnode.off has containerd.service, without which a cksnode cannot be made; expected another unit`},
		{"cksnode:\n  off: [cloud-init-network.service]", `a.yaml line 2: cksnode.off has cloud-init-network.service, without which a cksnode cannot be made; expected another unit`},
		{"a: [", `a.yaml: cannot be read: yaml: line 1: did not find expected node content`},
		{"router: {sshPort: 22}\n---\nrouter: {sshPort: 22}", `a.yaml line 2: has a second document; expected one`},
	} {
		_, problems := read(t, "a.yaml", test.content)
		if !slices.Equal(problems, []string{test.want}) {
			t.Errorf("%q:\n%q\nwant %q", test.content, problems, test.want)
		}
	}
	for _, unit := range []string{"getty@tty1.service", `dev-disk-by\x2dlabel.swap`, "a.timer", "a-b_c:d.path", "network-online.target"} {
		if _, problems := read(t, "a.yaml", "router:\n  off: ['"+unit+"']"); len(problems) > 0 {
			t.Errorf("%s: %q", unit, problems)
		}
	}
}

// What only together cannot be: found after all files were merged.
func TestContradictions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		files []string
		want  []string
	}{
		{[]string{"a.yaml", "router: {on: [docker.service]}"}, []string{
			"a.yaml line 1: router.on leaves docker.service to run and docker.socket, which it needs, off; expected both of them on, or both off",
			"a.yaml line 1: router.on leaves docker.service to run and containerd.service, which it needs, off; expected both of them on, or both off"}},
		{[]string{"a.yaml", "router: {on: [docker.service, docker.socket]}", "b.yaml", "router: {onDemand: [containerd.service]}"}, nil},
		{[]string{"a.yaml", "cksnode: {on: [docker.service, docker.socket]}"}, nil},
		{[]string{"a.yaml", "router: {on: [docker.socket]}"}, []string{
			"a.yaml line 1: router.on leaves docker.socket to run and docker.service, which it needs, off; expected both of them on, or both off"}},
		{[]string{"a.yaml", "router: {on: [backup.timer]}", "b.yaml", "router: {off: [backup.service]}"}, []string{
			"a.yaml line 1: router.on leaves backup.timer to run and backup.service, which it needs, off; expected both of them on, or both off"}},
		{[]string{"a.yaml", "router: {on: [backup.service, backup.timer]}", "b.yaml", "router: {off: [backup.timer]}"}, nil},
		{[]string{"a.yaml", "sharedfsvm:\n  off:\n  - cloud-config.target"}, []string{
			"a.yaml line 3: sharedfsvm.off leaves cloud-config.service to run and cloud-config.target, which it needs, off; expected both of them on, or both off"}},
	} {
		if _, problems := read(t, test.files...); !slices.Equal(problems, test.want) {
			t.Errorf("%q:\n%q\nwant\n%q", test.files, problems, test.want)
		}
	}
}

// All problems of all files at once, as one failure with a code.
func TestAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write(roles.OverridesDir+"/10.yaml", "router:\n  off: [x]\n  minimumDisk: -1\n")
	m.Write(roles.OverridesDir+"/20.yaml", "coffee: {}\n")
	m.Write(roles.OverridesDir+"/30.yml", "")
	if err := os.Mkdir(m.Path(roles.OverridesDir+"/40.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, problems := roles.ReadOverrides(m.Host(), roles.OverridesDir)
	err := roles.Err(problems)
	if err == nil {
		t.Fatal("no error")
	}
	failure := fault.As(err)
	told := append([]string{failure.Message}, failure.Log...)
	want := []string{"10.yaml line 2: router.off", "10.yaml line 3: router.minimumDisk", `20.yaml line 1: "coffee"`, "30.yml: is not read", "40.yaml: cannot be read: is a directory"}
	if failure.Code != fault.ConfigInvalid || len(told) != len(want) {
		t.Fatalf("%s: %q", failure.Code, told)
	}
	for i := range want {
		if !strings.HasPrefix(told[i], roles.OverridesDir+"/"+want[i]) {
			t.Errorf("problem %d is %q, want %q", i, told[i], want[i])
		}
	}
	if err := roles.Err(nil); err != nil {
		t.Errorf("without problems: %v", err)
	}
	// No folder, no override; a file in its place is a mistake.
	if list, problems := roles.ReadOverrides(hosttest.New(t).Host(), roles.OverridesDir); len(list)+len(problems) > 0 {
		t.Errorf("without the folder: %v, %v", list, problems)
	}
	m = hosttest.New(t)
	m.Write(roles.OverridesDir, "")
	if _, problems := roles.ReadOverrides(m.Host(), roles.OverridesDir); len(problems) != 1 || problems[0].String() != roles.OverridesDir+": cannot be read: not a directory" {
		t.Errorf("a file in place of the folder: %v", problems)
	}
}

// No text makes the reader panic, and every problem says which file it is in.
func FuzzOverrides(f *testing.F) {
	for _, seed := range []string{"", "---\n", "router: {on: [a.service]}", "router:\n  minimumDisk: 0x10\n", "a: &a [*a]", "? [a]\n: b", "<<: {}", "!!binary x", "\x00", "%YAML 1.1\n---\n..."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m := hosttest.New(t)
		m.Write(roles.OverridesDir+"/a.yaml", text)
		overrides, problems := roles.ReadOverrides(m.Host(), roles.OverridesDir)
		for _, problem := range problems {
			if problem.File != roles.OverridesDir+"/a.yaml" || problem.Message == "" {
				t.Errorf("%+v", problem)
			}
		}
		for _, role := range roles.Table() {
			if changed := overrides.Apply(role); len(problems) == 0 && (changed.Owner != role.Owner || changed.MinimumDisk < 0) {
				t.Errorf("%+v", changed)
			}
		}
	})
}
