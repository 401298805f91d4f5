// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// templateSSHD is what matters of CloudStack's template, 4.20 and later.
const templateSSHD = "Port 3922\nPermitRootLogin yes\nPubkeyAuthentication yes\nPubkeyAcceptedAlgorithms=+ssh-rsa\n" +
	"Subsystem\tsftp\t/usr/lib/openssh/sftp-server\n"

// sshMachine is a machine with an ssh server that is off, whose sshd plays OpenSSH
// 9.2, or 8.4 where old is set: of a setting given twice it takes the first.
func sshMachine(t *testing.T, config string, old bool) *hosttest.Machine {
	t.Helper()
	m := hosttest.New(t)
	m.Write(sshdConfig, config)
	m.AddUnit(host.Unit{Name: sshUnit})
	m.Program("/usr/bin/ssh-keygen", func(host.Command) (string, error) {
		return "", os.WriteFile(m.Path("/etc/ssh/ssh_host_ed25519_key"), nil, 0o600)
	})
	m.Program("/usr/sbin/sshd", func(command host.Command) (string, error) {
		if _, err := os.Stat(m.Path("/run/sshd")); err != nil {
			return "", sshdError("Missing privilege separation directory: /run/sshd")
		}
		if !slices.Contains(command.Args, "user=cloud,host=cloudstack,addr=192.0.2.1,laddr=192.0.2.2,lport=22") {
			return "", errors.New("sshd is not asked for the login of CloudStack's server")
		}
		text, err := os.ReadFile(command.Args[slices.Index(command.Args, "-f")+1])
		if err != nil {
			return "", err
		}
		return playSSHD(string(text), old)
	})
	return m
}

func sshdError(line string) error {
	return &host.CommandError{Command: "sshd", Tail: []string{line}, Err: errors.New("exit status 255")}
}

func playSSHD(config string, old bool) (string, error) {
	keyword, algorithms := "pubkeyacceptedalgorithms", "ssh-ed25519,rsa-sha2-512"
	if old {
		keyword, algorithms = "pubkeyacceptedkeytypes", "ssh-ed25519,ssh-rsa"
	}
	set := map[string]string{}
	var ports []string
	matched := false
	for line := range strings.Lines(config) {
		key, value := sshdWords(line)
		switch {
		case key == "match":
			matched = true
			continue
		case key == "port":
			ports = append(ports, value)
		case strings.HasPrefix(key, "pubkeyaccepted") && key != keyword:
			return "", sshdError("Bad configuration option: " + key)
		}
		if _, known := set[key]; !known || matched {
			set[key] = value
		}
	}
	if list, plus := strings.CutPrefix(set[keyword], "+"); plus {
		algorithms += "," + list
	} else if list != "" {
		algorithms = list
	}
	out := keyword + " " + algorithms + "\npubkeyauthentication " + cmp.Or(set["pubkeyauthentication"], "yes") + "\n"
	if len(ports) == 0 {
		ports = []string{"22"}
	}
	for _, port := range ports {
		out += "listenaddress 0.0.0.0:" + port + "\n"
	}
	if set["subsystem"] != "" {
		out += "subsystem " + strings.Join(strings.Fields(set["subsystem"]), " ") + "\n"
	}
	return out, nil
}

func withoutChecks(actions []string) []string {
	return slices.DeleteFunc(actions, func(a string) bool { return strings.HasPrefix(a, "run /usr/sbin/sshd") })
}

// C9, contract 10 item 6: sshd is enabled and started on port 22 with ssh-rsa keys and
// sftp; a changed configuration restarts it, nothing else does.
func TestSSH(t *testing.T) {
	t.Parallel()
	m := sshMachine(t, templateSSHD, false)
	for i, test := range []struct {
		want []string
		note string
	}{
		{[]string{"run /usr/bin/ssh-keygen -A", "enable ssh.service", "start ssh.service"}, "on port 22 with ssh-rsa and sftp, sshd_config edited"},
		{nil, "on port 22 with ssh-rsa and sftp, unchanged"},
	} {
		note, err := SSH(context.Background(), m.Host(), 22)
		if err != nil || note != test.note {
			t.Fatalf("run %d: %q, %v; want %q", i, note, err, test.note)
		}
		if got := withoutChecks(m.Actions()); !slices.Equal(got, test.want) {
			t.Errorf("run %d: did %q, want %q", i, got, test.want)
		}
	}
	if got, want := m.Read(sshdConfig), strings.Replace(templateSSHD, "3922", "22", 1); got != want {
		t.Errorf("sshd_config is\n%s\nwant\n%s", got, want)
	}
	m.Write(sshdConfig, templateSSHD)
	if _, err := SSH(context.Background(), m.Host(), 22); err != nil {
		t.Fatal(err)
	}
	if got := withoutChecks(m.Actions()); !slices.Equal(got, []string{"restart ssh.service"}) {
		t.Errorf("after the port changed did %q, want a restart", got)
	}
	if left, _ := filepath.Glob(m.Path("/run/nodeagent/*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// The templates of all releases, and edited ones.
func TestSSHFindsWhatIsMissing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, config string
		old          bool
		has          []string // lines
	}{
		{"template before 4.20", "Port 3922\nPubkeyAuthentication yes\nSubsystem sftp x\n", false, []string{"PubkeyAcceptedAlgorithms +ssh-rsa", "Port 22"}},
		{"template before 4.20, Debian 11", "Port 3922\nSubsystem sftp x\n", true, []string{"Port 22"}},
		// patch_sshd_config of CloudStack's: the line is of a newer template than sshd.
		{"line that sshd does not know", templateSSHD, true, []string{"Port 22"}},
		{"hardened", "PubkeyAcceptedAlgorithms ssh-ed25519\n", false,
			[]string{"PubkeyAcceptedAlgorithms +ssh-rsa", "Subsystem sftp internal-sftp"}},
		{"hardened, Debian 11", "PubkeyAcceptedKeyTypes ssh-ed25519\n", true, []string{"PubkeyAcceptedKeyTypes +ssh-rsa"}},
		{"empty", "", false, []string{"PubkeyAcceptedAlgorithms +ssh-rsa", "Subsystem sftp internal-sftp"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := sshMachine(t, test.config, test.old)
			if _, err := SSH(context.Background(), m.Host(), 22); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(m.Read(sshdConfig), "\n")
			for _, want := range test.has {
				if !slices.Contains(lines, want) {
					t.Errorf("no line %q in\n%s", want, strings.Join(lines, "\n"))
				}
			}
			if out, err := playSSHD(strings.Join(lines, "\n"), test.old); err != nil || len(parseSSHD(out).lacks(22)) > 0 {
				t.Errorf("sshd says %q, %v", out, err)
			}
			m.Actions()
			note, err := SSH(context.Background(), m.Host(), 22)
			if err != nil || !strings.HasSuffix(note, ", unchanged") || len(withoutChecks(m.Actions())) > 0 {
				t.Errorf("second run: %q, %v", note, err)
			}
		})
	}
}

// A configuration that sshd refuses never takes effect, so nobody is locked out: a
// server that runs is left alone, and one that does not is started all the same.
func TestSSHNeverTakesABadConfiguration(t *testing.T) {
	t.Parallel()
	const bad = "Port 3922\nPubkeyAcceptedKeyTypes ssh-ed25519\n" // an option this sshd does not have
	m := sshMachine(t, bad, false)
	_, err := SSH(context.Background(), m.Host(), 22)
	failure := fault.As(err)
	if err == nil || failure.Code != fault.SSHFailed || !slices.Equal(failure.Log, []string{"Bad configuration option: pubkeyacceptedkeytypes"}) {
		t.Errorf("error %v, log %q; want ssh-failed with what sshd says", err, failure.Log)
	}
	if got := m.Read(sshdConfig); got != bad {
		t.Errorf("sshd_config was changed to\n%s", got)
	}
	if got := withoutChecks(m.Actions()); !slices.Equal(got, []string{"run /usr/bin/ssh-keygen -A", "enable ssh.service", "start ssh.service"}) {
		t.Errorf("did %q, want the server started", got)
	}
	if _, err := SSH(context.Background(), m.Host(), 22); err == nil || len(withoutChecks(m.Actions())) > 0 {
		t.Errorf("second run: %v; want the same error and the server left alone", err)
	}
}

// A Match block for the user cloud may still be in the way: the port is right, and
// status says what is wrong.
func TestSSHSaysWhatAMatchBlockTakesAway(t *testing.T) {
	t.Parallel()
	m := sshMachine(t, templateSSHD+"Match User cloud\nPubkeyAcceptedAlgorithms ssh-ed25519\n", false)
	for range 2 {
		_, err := SSH(context.Background(), m.Host(), 22)
		if err == nil || !strings.HasSuffix(err.Error(), "sshd has no ssh-rsa keys for the user cloud") {
			t.Errorf("error %v, want the missing keys named", err)
		}
	}
	if got := m.Read(sshdConfig); !strings.Contains(got, "\nPort 22\n") || strings.Count(got, "\nPubkeyAcceptedAlgorithms +ssh-rsa\n") != 1 {
		t.Errorf("sshd_config:\n%s", got)
	}
}

// On an unknown role nothing is known of the port: the template's stays.
func TestSSHOfAnUnknownRole(t *testing.T) {
	t.Parallel()
	m := sshMachine(t, templateSSHD, false)
	note, err := SSH(context.Background(), m.Host(), 0)
	if err != nil || note != "on the template's port" || m.Read(sshdConfig) != templateSSHD {
		t.Errorf("%q, %v", note, err)
	}
}

// The power of an agent that was killed between the file and the restart is back:
// the server is restarted although the file is as it should be.
func TestSSHRestartIsNotForgotten(t *testing.T) {
	t.Parallel()
	m := sshMachine(t, strings.Replace(templateSSHD, "3922", "22", 1), false)
	m.AddUnit(host.Unit{Name: sshUnit, FileState: "enabled", ActiveState: "active"})
	m.Write("/etc/ssh/ssh_host_rsa_key", "")
	m.Write(restartFor(sshUnit), "")
	if _, err := SSH(context.Background(), m.Host(), 22); err != nil {
		t.Fatal(err)
	}
	if got := withoutChecks(m.Actions()); !slices.Equal(got, []string{"restart ssh.service"}) {
		t.Errorf("did %q, want a restart", got)
	}
}
