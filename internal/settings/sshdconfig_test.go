// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"slices"
	"strings"
	"testing"
)

func TestWithPort(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ config, want string }{
		{"Port 3922\nPermitRootLogin yes\n", "Port 22\nPermitRootLogin yes\n"},
		{"#Port 3922\nX y\n", "#Port 3922\nX y\n"},
		{"Port 22\nPort 3922\n", "Port 22\n"},
		{"port=3922\nMatch LocalPort 3922\n  Port 3922\n", "Port 22\nMatch LocalPort 3922\n  Port 3922\n"},
		{" PORT \t 3922", "Port 22\n"},
		{"Port ssh\nPort\n", "Port ssh\nPort\n"},
		{"Ports 3922\nGatewayPorts no\n", "Ports 3922\nGatewayPorts no\n"},
		{"ListenAddress 10.1.1.57:3922\nListenAddress [::]:3922\n", "ListenAddress 10.1.1.57:22\nListenAddress [::]:22\n"},
		{"ListenAddress 0.0.0.0\nListenAddress fe80::3922\nListenAddress ::\n", "ListenAddress 0.0.0.0\nListenAddress fe80::3922\nListenAddress ::\n"},
		{"\x00\xff\xfe", "\x00\xff\xfe"},
		{"", ""},
	} {
		got := withPort(test.config, 22)
		if got != test.want {
			t.Errorf("withPort(%q, 22) = %q, want %q", test.config, got, test.want)
		}
		if again := withPort(got, 22); again != got {
			t.Errorf("withPort(%q, 22) = %q, want no change", got, again)
		}
	}
	if got := withPort("X y\n", 3922); got != "Port 3922\nX y\n" {
		t.Errorf("withPort without a Port line = %q", got)
	}
	long := strings.Repeat("X", 1<<20) + "\n"
	if got := withPort(long+"Port 1\n", 22); got != long+"Port 22\n" {
		t.Error("a long line was changed")
	}
}

// What `sshd -T` of OpenSSH 9.2 and of 8.4 says.
const (
	effective92 = "port 22\naddressfamily any\nlistenaddress [::]:22\nlistenaddress 0.0.0.0:22\npubkeyauthentication yes\n" +
		"pubkeyacceptedalgorithms ssh-ed25519,rsa-sha2-512,ssh-rsa\nsubsystem sftp /usr/lib/openssh/sftp-server\n"
	effective84 = "port 22\nlistenaddress 0.0.0.0:22\npubkeyauthentication yes\npubkeyacceptedkeytypes ssh-ed25519,ssh-rsa\n" +
		"subsystem sftp internal-sftp\n"
)

func TestParseSSHD(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		out  string
		want []string
	}{
		{effective92, nil},
		{effective84, nil},
		{strings.ReplaceAll(effective92, ":22\n", ":3922\n"), []string{"port 22"}},
		{"listenaddress 127.0.0.1:22\nlistenaddress [::1]:22\n", []string{"port 22", publicKeys, rsaKeys, sftp}},
		{strings.ReplaceAll(effective92, "ssh-rsa", "ssh-rsa-cert-v01@openssh.com"), []string{rsaKeys}},
		{strings.ReplaceAll(effective92, "authentication yes", "authentication no"), []string{publicKeys}},
		{strings.ReplaceAll(effective92, "subsystem sftp", "subsystem sftpx"), []string{sftp}},
		{"", []string{"port 22", publicKeys, rsaKeys, sftp}},
		{"listenaddress nonsense\nlistenaddress\n\x00\n", []string{"port 22", publicKeys, rsaKeys, sftp}},
	} {
		if got := parseSSHD(test.out).lacks(22); !slices.Equal(got, test.want) {
			t.Errorf("%q lacks %q, want %q", test.out, got, test.want)
		}
	}
	for out, want := range map[string]string{effective92: "PubkeyAcceptedAlgorithms", effective84: "PubkeyAcceptedKeyTypes"} {
		if got := parseSSHD(out).algorithms; got != want {
			t.Errorf("keyword %s, want %s", got, want)
		}
	}
}

func TestWithLogin(t *testing.T) {
	t.Parallel()
	const header = "# Added by nodeagent: CloudStack's server logs in with this.\n"
	old := sshdSettings{algorithms: "PubkeyAcceptedKeyTypes"}
	now := parseSSHD(effective92)
	for _, test := range []struct {
		config  string
		now     sshdSettings
		missing []string
		want    string
	}{
		{"Port 22\n", now, nil, "Port 22\n"},
		{"Port 3922\n", now, []string{"port 22"}, "Port 22\n"},
		// The top comes before what an Include brings.
		{"Include /etc/ssh/sshd_config.d/*.conf\n", now, []string{rsaKeys},
			header + "PubkeyAcceptedAlgorithms +ssh-rsa\nInclude /etc/ssh/sshd_config.d/*.conf\n"},
		{"X y\n", old, []string{rsaKeys, sftp}, header + "PubkeyAcceptedKeyTypes +ssh-rsa\nSubsystem sftp internal-sftp\nX y\n"},
		{"PubkeyAuthentication no\n", now, []string{publicKeys}, header + "PubkeyAuthentication yes\nPubkeyAuthentication no\n"},
		// What did not help (a Match block wins) is not added again at every boot.
		{"PubkeyAcceptedAlgorithms +ssh-rsa\nMatch user cloud\n", now, []string{rsaKeys}, "PubkeyAcceptedAlgorithms +ssh-rsa\nMatch user cloud\n"},
	} {
		got := withLogin(test.config, 22, test.now, test.missing)
		if got != test.want {
			t.Errorf("withLogin(%q, %q) = %q, want %q", test.config, test.missing, got, test.want)
		}
		if again := withLogin(got, 22, test.now, test.missing); again != got {
			t.Errorf("withLogin(%q, %q) a second time = %q", test.config, test.missing, again)
		}
	}
}

func TestWithoutAlgorithms(t *testing.T) {
	t.Parallel()
	const rest = "#PubkeyAcceptedAlgorithms x\nPubkeyAcceptedAlgorithmsX y\nPubkeyAuthentication yes"
	if got := withoutAlgorithms("PubkeyAcceptedAlgorithms=+ssh-rsa\n pubkeyacceptedalgorithms +ssh-rsa\n" + rest); got != rest {
		t.Errorf("got %q, want %q", got, rest)
	}
}
