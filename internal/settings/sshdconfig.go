// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// sshdSettings is what `sshd -T` says of a configuration.
type sshdSettings struct {
	ports     []int // where it listens for others than the machine itself
	publicKey bool  // public keys are accepted at all
	rsa       bool  // among them those signed with SHA-1, as CloudStack's server does
	sftp      bool
	// algorithms is the keyword for accepted keys; OpenSSH renamed it in 8.5.
	algorithms string
}

func parseSSHD(out string) sshdSettings {
	settings := sshdSettings{algorithms: "PubkeyAcceptedAlgorithms"}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "listenaddress":
			if address, err := netip.ParseAddrPort(value); err == nil && !address.Addr().IsLoopback() {
				settings.ports = append(settings.ports, int(address.Port()))
			}
		case "pubkeyauthentication":
			settings.publicKey = value == "yes"
		case "pubkeyacceptedalgorithms", "pubkeyacceptedkeytypes":
			settings.rsa = slices.Contains(strings.Split(value, ","), "ssh-rsa")
			if key == "pubkeyacceptedkeytypes" {
				settings.algorithms = "PubkeyAcceptedKeyTypes"
			}
		case "subsystem":
			name, _, _ := strings.Cut(value, " ")
			settings.sftp = settings.sftp || name == "sftp"
		}
	}
	return settings
}

// The names of what CloudStack's server needs.
const (
	publicKeys = "public keys"
	rsaKeys    = "ssh-rsa keys"
	sftp       = "sftp"
)

// lacks names what CloudStack's server would miss.
func (s sshdSettings) lacks(port int) (missing []string) {
	if !slices.Contains(s.ports, port) {
		missing = append(missing, fmt.Sprintf("port %d", port))
	}
	if !s.publicKey {
		missing = append(missing, publicKeys)
	}
	if !s.rsa {
		missing = append(missing, rsaKeys)
	}
	if !s.sftp {
		missing = append(missing, sftp)
	}
	return missing
}

// withLogin edits an sshd_config(5) so that it has the port and what is missing.
// Of a setting given twice sshd takes the first, so what is missing goes to the
// top, before any Include.
func withLogin(config string, port int, now sshdSettings, missing []string) string {
	lines := map[string]string{
		publicKeys: "PubkeyAuthentication yes\n",
		rsaKeys:    now.algorithms + " +ssh-rsa\n",
		sftp:       "Subsystem sftp internal-sftp\n",
	}
	config = withPort(config, port)
	present := slices.Collect(strings.Lines(config))
	var top strings.Builder
	for _, what := range missing {
		if line := lines[what]; line != "" && !slices.Contains(present, line) {
			top.WriteString(line)
		}
	}
	if top.Len() == 0 {
		return config
	}
	return "# Added by nodeagent: CloudStack's server logs in with this.\n" + top.String() + config
}

// sshdWords splits a line into its keyword, in lower case, and its value.
func sshdWords(line string) (keyword, value string) {
	line = strings.TrimSpace(line)
	at := strings.IndexAny(line, " \t=")
	if at < 0 {
		return strings.ToLower(line), ""
	}
	return strings.ToLower(line[:at]), strings.Trim(line[at:], " \t=")
}

// withPort makes an sshd_config(5) listen on one port. Port lines come before the
// first Match block; a file without one means 22. A ListenAddress may bring its own.
func withPort(config string, port int) string {
	var lines []string
	set, matching := false, false
	for line := range strings.Lines(config) {
		keyword, value := sshdWords(line)
		matching = matching || keyword == "match"
		switch {
		case matching:
		case keyword == "port":
			if _, err := strconv.Atoi(value); err != nil {
				break // sshd will say what it thinks of it
			}
			if !set {
				lines = append(lines, fmt.Sprintf("Port %d\n", port))
			}
			set = true
			continue
		case keyword == "listenaddress":
			if own := colonPort(value); own != "" {
				line = strings.Replace(line, value, strings.TrimSuffix(value, own)+strconv.Itoa(port), 1)
			}
		}
		lines = append(lines, line)
	}
	if !set && port != 22 {
		lines = append([]string{fmt.Sprintf("Port %d\n", port)}, lines...)
	}
	return strings.Join(lines, "")
}

// colonPort returns the port of a ListenAddress, or "" for one without: an IPv6
// address has colons of its own.
func colonPort(address string) string {
	at := strings.LastIndexByte(address, ':')
	if at < 0 || strings.Contains(address[:at], ":") && !strings.HasSuffix(address[:at], "]") {
		return ""
	}
	if _, err := strconv.Atoi(address[at+1:]); err != nil {
		return ""
	}
	return address[at+1:]
}

// withoutAlgorithms drops the one line CloudStack's templates have that an sshd
// before 8.5 does not know; such an sshd accepts ssh-rsa without it.
func withoutAlgorithms(config string) string {
	var lines []string
	for line := range strings.Lines(config) {
		if keyword, _ := sshdWords(line); keyword != "pubkeyacceptedalgorithms" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
