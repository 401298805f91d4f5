// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// testLifecycles has dpkg install the package into folders: as into a template that
// is being built, where nothing runs, and as into a running machine. systemd's tools
// are stand-ins that write down how they were called: nothing may start a unit.
func testLifecycles(t *testing.T, deb string) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("installing needs root (chroot)")
		}
		t.Skip("installing needs root (chroot)")
	}
	const (
		asked    = "deb-systemd-helper --quiet was-enabled nodeagent.service"
		enabled  = "deb-systemd-helper enable nodeagent.service"
		kept     = "deb-systemd-helper update-state nodeagent.service"
		reloaded = "systemctl --system daemon-reload"
		stopped  = "deb-systemd-invoke stop nodeagent.service"
		purged   = "deb-systemd-helper purge nodeagent.service"
	)
	type calls struct{ install, upgrade, remove, purge []string }
	for _, test := range []struct {
		name     string
		running  bool // systemd
		disabled bool // by the administrator, before the upgrade
		calls    calls
	}{
		{"in a template being built", false, false, calls{
			install: []string{asked, enabled}, upgrade: []string{asked, enabled}, remove: []string{purged}, purge: []string{purged}}},
		{"on a running machine", true, false, calls{
			install: []string{asked, enabled, reloaded}, upgrade: []string{asked, enabled, reloaded},
			remove: []string{stopped, purged, reloaded}, purge: []string{purged, reloaded}}},
		{"disabled by the administrator", true, true, calls{
			install: []string{asked, enabled, reloaded}, upgrade: []string{asked, kept, reloaded},
			remove: []string{stopped, purged, reloaded}, purge: []string{purged, reloaded}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newFolder(t, test.running)
			write(t, filepath.Join(m.root, "etc/issue"), "Debian\n", 0o644)
			before := tree(t, m.root, m.records()...)

			m.dpkg(t, "--install", deb)
			m.wantCalls(t, "install", test.calls.install)
			// What an operator and the agent leave there.
			config, override := filepath.Join(m.root, "etc/nodeagent/nodeagent.yaml"), filepath.Join(m.root, "etc/nodeagent/roles.d/mine.yaml")
			write(t, config, "rootDiskSize: 7\n", 0o644)
			write(t, override, "mine\n", 0o644)
			for _, name := range []string{"var/lib/nodeagent/state.json", "var/log/nodeagent/kubeadm-init.log", "run/nodeagent/owns-node"} {
				write(t, filepath.Join(m.root, name), "x", 0o644)
			}
			write(t, filepath.Join(m.root, "etc/issue"), "Debian\n--- nodeagent ---\nFAILED\n-----------------\nMine\n", 0o644)
			if test.disabled {
				write(t, filepath.Join(m.root, "disabled"), "", 0o644)
			}

			m.dpkg(t, "--install", deb) // dpkg's way of an upgrade
			m.wantCalls(t, "upgrade", test.calls.upgrade)
			m.dpkg(t, "--remove", "nodeagent")
			m.wantCalls(t, "remove", test.calls.remove)
			for path, want := range map[string]string{config: "rootDiskSize: 7\n", override: "mine\n",
				filepath.Join(m.root, "var/lib/nodeagent/state.json"): "x", filepath.Join(m.root, "etc/issue"): "Debian\nMine\n"} {
				if got := read(t, path); got != want {
					t.Errorf("after remove %s holds %q, want %q", path, got, want)
				}
			}
			m.dpkg(t, "--purge", "nodeagent")
			m.wantCalls(t, "purge", test.calls.purge)
			after := tree(t, m.root, m.records()...)
			if left, lost := without(after, before), without(before, after); len(left)+len(lost) > 0 {
				t.Errorf("purge leaves %q and takes %q along", left, lost)
			}
		})
	}
}

// without returns the names that are not among others.
func without(names, others []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(others, name) })
}

// folder is a machine's files, with as much of a system as maintainer scripts need.
type folder struct{ root string }

// records are what the test and dpkg note in the folder.
func (folder) records() []string {
	return []string{"/calls", "/disabled", "/var/lib/dpkg", "/dpkg.log"}
}

func newFolder(t *testing.T, running bool) folder {
	t.Helper()
	m := folder{root: t.TempDir()}
	for _, program := range []string{"sh", "rm", "sed", "mountpoint", "umount"} {
		copyProgram(t, m.root, program)
	}
	const standIn = "#!/bin/sh\necho \"${0##*/} $*\" >>/calls\n"
	for name, rest := range map[string]string{
		"systemctl": "", "deb-systemd-invoke": "", "invoke-rc.d": "", "service": "",
		"deb-systemd-helper": "[ \"$2\" != was-enabled ] || [ ! -e /disabled ]\n",
	} {
		write(t, filepath.Join(m.root, "usr/bin", name), standIn+rest, 0o755)
	}
	for _, name := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/log", "run", "etc"} {
		if err := os.MkdirAll(filepath.Join(m.root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(m.root, "var/lib/dpkg/status"), "", 0o644)
	write(t, filepath.Join(m.root, "dev/null"), "", 0o644) // a file does
	// dpkg removes folders of the package that are empty; those of a machine are not.
	for _, name := range []string{"usr/lib/systemd/system/cloud-preinit.service.d", "usr/share/bash-completion/completions",
		"usr/share/zsh/vendor-completions", "usr/share/fish/vendor_completions.d", "usr/share/man/man8", "usr/share/doc", "usr/share/lintian/overrides"} {
		write(t, filepath.Join(m.root, name, "other"), "", 0o644)
	}
	if running {
		write(t, filepath.Join(m.root, "run/systemd/system/x"), "", 0o644)
	}
	return m
}

// copyProgram puts a program of this machine into the folder, with its libraries.
func copyProgram(t *testing.T, root, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	files := []string{path}
	for _, field := range strings.Fields(tool(t, "ldd", path)) {
		if strings.HasPrefix(field, "/") {
			files = append(files, field)
		}
	}
	for _, file := range files {
		target := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		tool(t, "cp", "--dereference", file, target)
	}
	// Scripts begin with #!/bin/sh, whatever folder the shell was found in.
	if link := filepath.Join(root, "bin", name); filepath.Join(root, path) != link {
		write(t, link, read(t, path), 0o755)
	}
}

func (m folder) dpkg(t *testing.T, args ...string) {
	t.Helper()
	tool(t, "dpkg", append([]string{"--root=" + m.root, "--log=" + filepath.Join(m.root, "dpkg.log"), "--force-depends"}, args...)...)
}

// wantCalls compares what was called since it was last asked.
func (m folder) wantCalls(t *testing.T, when string, want []string) {
	t.Helper()
	path := filepath.Join(m.root, "calls")
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	_ = os.Remove(path)
	if got := strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' }); !slices.Equal(got, want) {
		t.Errorf("%s called\n%q\nwant\n%q", when, got, want)
	}
}
