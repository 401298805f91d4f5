// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const sshdConfig = "/etc/ssh/sshd_config"

// SSH makes the ssh server answer on a port; 0 keeps the one it is configured
// for. The server's start is queued, not waited for.
func SSH(ctx context.Context, h *host.Host, port int) (note string, err error) {
	fail := func(err error) (string, error) {
		return "", fault.Wrap(fault.SSHFailed, err, "cannot start the ssh server")
	}
	changed := false
	if port != 0 {
		config, err := h.ReadFile(sshdConfig)
		if err != nil {
			return fail(err)
		}
		if changed, err = h.WriteFile(sshdConfig, []byte(withPort(string(config), port)), 0o644); err != nil {
			return fail(err)
		}
	}
	// The server refuses to start without host keys, and a template should have none.
	if keys, _ := filepath.Glob(h.Path("/etc/ssh/ssh_host_*_key")); len(keys) == 0 {
		if _, err := h.Run.Run(ctx, host.Command{Path: "/usr/bin/ssh-keygen", Args: []string{"-A"}}); err != nil {
			return fail(err)
		}
	}
	const unit = "ssh.service"
	state, err := h.Units.State(ctx, unit)
	if err != nil {
		return fail(err)
	}
	if !state.Enabled() {
		if _, err := h.Units.Enable(ctx, unit); err != nil {
			return fail(err)
		}
	}
	if changed && state.Running() {
		_, err = h.Units.Restart(ctx, unit)
	} else {
		_, err = h.Units.Start(ctx, unit)
	}
	if err != nil {
		return fail(err)
	}
	if port == 0 {
		return "on the template's port", nil
	}
	return fmt.Sprintf("on port %d", port), nil
}

// withPort makes an sshd_config(5) listen on one port. Port lines come before the
// first Match block; a file without one means 22.
func withPort(config string, port int) string {
	var lines []string
	set, matching := false, false
	for line := range strings.Lines(config) {
		fields := strings.FieldsFunc(strings.TrimSpace(line), func(r rune) bool { return r == ' ' || r == '\t' || r == '=' })
		if len(fields) > 0 && strings.EqualFold(fields[0], "Match") {
			matching = true
		}
		if len(fields) == 2 && strings.EqualFold(fields[0], "Port") && !matching {
			if !set {
				lines = append(lines, fmt.Sprintf("Port %d\n", port))
			}
			set = true
			continue
		}
		lines = append(lines, line)
	}
	if !set && port != 22 {
		lines = append([]string{fmt.Sprintf("Port %d\n", port)}, lines...)
	}
	return strings.Join(lines, "")
}
