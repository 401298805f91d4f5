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

const shadow = "root:$y$j9T$salt$hash:20778:0:99999:7:::\ndaemon:*:20778:0:99999:7:::\n"

// withPasswd installs a passwd that locks as passwd(1) does.
func withPasswd(t *testing.T, m *hosttest.Machine) {
	t.Helper()
	m.Program("/usr/bin/passwd", func(command host.Command) (string, error) {
		if !slices.Equal(command.Args, []string{"-l", "root"}) {
			return "", errors.New("passwd was asked for something else")
		}
		m.Write(shadowFile, strings.Replace(m.Read(shadowFile), "root:", "root:!", 1))
		return "", nil
	})
}

// Contract 2.1 and 10 item 6: no password, no key lets anybody in as root; a second
// boot changes nothing.
func TestMachine(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	withPasswd(t, m)
	m.Write(shadowFile, shadow)
	m.Write("/root/.ssh/authorized_keys", "ssh-rsa AAAA root@template\n")
	m.Write("/root/.ssh/authorized_keys2", "ssh-rsa AAAA root@template\n")
	m.Write("/etc/logrotate.d/cloud", "/var/log/cloud.log {\n}\n")
	m.AddUnit(host.Unit{Name: "irqbalance.service", FileState: "enabled", ActiveState: "active"})
	done, err := Machine(context.Background(), m.Host())
	want := []string{"root locked", "/root/.ssh/authorized_keys emptied", "/root/.ssh/authorized_keys2 emptied", "/opt/bin on the search path",
		"/etc/logrotate.d/cloud removed", "irqbalance.service off"}
	if err != nil || !slices.Equal(done, want) {
		t.Errorf("did %q (%v), want %q", done, err, want)
	}
	if got := m.Actions(); !slices.Equal(got, []string{"run /usr/bin/passwd -l root", "disable irqbalance.service", "stop irqbalance.service"}) {
		t.Errorf("did %q", got)
	}
	if m.Read("/root/.ssh/authorized_keys") != "" || m.Host().Exists("/etc/logrotate.d/cloud") {
		t.Error("root has a key, or the log rotation is there")
	}
	if info, err := os.Stat(m.Path("/root/.ssh/authorized_keys")); err != nil || info.Mode() != 0o600 {
		t.Errorf("authorized_keys: %v, %v; want mode 0600", info, err)
	}
	if got := m.Read(shadowFile); !strings.HasPrefix(got, "root:!$y$") || !strings.HasSuffix(got, "\ndaemon:*:20778:0:99999:7:::\n") {
		t.Errorf("shadow:\n%s", got)
	}
	if done, err := Machine(context.Background(), m.Host()); err != nil || len(done) > 0 || len(m.Actions()) > 0 {
		t.Errorf("the second boot did %q (%v), want nothing", done, err)
	}
}

// A link in the place of root's keys, as dotfile managers make them, leads to no file
// of somebody else's being emptied.
func TestRootsKeysBehindALink(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write(shadowFile, "root:*:1:0:99999:7:::\n")
	m.Write("/home/cloud/.ssh/authorized_keys", "ssh-rsa AAAA cloud\n")
	if err := os.MkdirAll(m.Path("/root/.ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(m.Path("/home/cloud/.ssh/authorized_keys"), m.Path("/root/.ssh/authorized_keys")); err != nil {
		t.Fatal(err)
	}
	if _, err := Machine(context.Background(), m.Host()); err != nil {
		t.Fatal(err)
	}
	if m.Read("/root/.ssh/authorized_keys") != "" || m.Read("/home/cloud/.ssh/authorized_keys") != "ssh-rsa AAAA cloud\n" {
		t.Error("root has keys, or the user cloud has none")
	}
}

// passwd(1) that does nothing is no success.
func TestMachineVerifiesThatRootIsLocked(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write(shadowFile, shadow)
	m.Program("/usr/bin/passwd", func(host.Command) (string, error) { return "", nil })
	if _, err := Machine(context.Background(), m.Host()); err == nil || !strings.Contains(err.Error(), "root's password") {
		t.Errorf("error %v, want that the password is still there", err)
	}
}

func TestPasswordLocked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		shadow string
		locked bool
		wrong  string // part of the error
	}{
		{shadow, false, ""},
		{"root:!$y$j9T$salt$hash:1:::::\n", true, ""},
		{"root:!:1:::::", true, ""},
		{"root:*:1:::::\r\n", true, ""},
		{"root::1:::::\n", false, ""}, // no password at all lets everybody in
		{"rootx:!:1\n root:!:1\nroot:x:1\n", false, ""},
		{"", false, "no line for root"},
		{"toor:!:1\n#root:!:1\n\x00\xff\n", false, "no line for root"},
		{"root:!", false, "cut off"},
		{"root\n", false, "no line for root"},
	} {
		locked, err := passwordLocked(test.shadow, "root")
		if locked != test.locked || (err == nil) != (test.wrong == "") || err != nil && !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("passwordLocked(%q) = %v, %v; want %v, %q", test.shadow, locked, err, test.locked, test.wrong)
		}
	}
}
