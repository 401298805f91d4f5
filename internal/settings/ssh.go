// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	sshUnit    = "ssh.service"
	sshdConfig = "/etc/ssh/sshd_config"
	// sshdDraft is where a new sshd_config is tried before it takes effect.
	sshdDraft = "/run/nodeagent/sshd_config"
)

// SSH makes the ssh server answer on a port and let CloudStack's server in: ssh-rsa
// keys and sftp. Port 0 leaves its configuration alone. The server's start is
// queued, not waited for. A configuration that sshd refuses never takes effect
// (pain-point C9).
func SSH(ctx context.Context, h *host.Host, port int) (note string, err error) {
	// The server refuses to start without host keys, and a template should have none.
	if keys, _ := filepath.Glob(h.Path("/etc/ssh/ssh_host_*_key")); len(keys) == 0 {
		if _, err := h.Run.Run(ctx, host.Command{Path: "/usr/bin/ssh-keygen", Args: []string{"-A"}}); err != nil {
			return "", sshFault(err)
		}
	}
	state, err := h.Units.State(ctx, sshUnit)
	if err != nil {
		return "", sshFault(err)
	}
	if !state.Enabled() {
		if _, err := h.Units.Enable(ctx, sshUnit); err != nil {
			return "", sshFault(err)
		}
	}
	// What is wrong with the configuration must not keep the server from trying.
	var wrong error
	changed, err := reconfigure(ctx, h, sshUnit, func() (changed bool, err error) {
		if port != 0 {
			changed, wrong = configureSSHD(ctx, h, port)
		}
		return changed, nil
	})
	if err := errors.Join(wrong, err); err != nil {
		return "", sshFault(err)
	}
	switch {
	case port == 0:
		return "on the template's port", nil
	case changed:
		return fmt.Sprintf("on port %d with ssh-rsa and sftp, sshd_config edited", port), nil
	}
	return fmt.Sprintf("on port %d with ssh-rsa and sftp, unchanged", port), nil
}

func sshFault(err error) error {
	failure := fault.Wrap(fault.SSHFailed, err, "cannot set up the ssh server")
	if command := (*host.CommandError)(nil); errors.As(err, &command) {
		failure.WithLog(command.Tail)
	}
	return failure
}

// configureSSHD edits sshd_config where sshd itself says that something is
// missing, and reports whether it did.
func configureSSHD(ctx context.Context, h *host.Host, port int) (changed bool, err error) {
	old, err := h.ReadFile(sshdConfig)
	if err != nil {
		return false, err
	}
	// sshd checks nothing without this folder, which systemd makes with the service.
	if err := os.MkdirAll(h.Path("/run/sshd"), 0o755); err != nil {
		return false, err
	}
	now, err := askSSHD(ctx, h, sshdConfig, port)
	missing := now.lacks(port)
	if err != nil {
		missing = nil // nothing is known but that it cannot be read
	}
	text := withLogin(string(old), port, now, missing)
	if err != nil {
		text = withoutAlgorithms(text)
	}
	if text == string(old) {
		return false, errors.Join(err, lackError(missing))
	}
	if _, err := h.WriteFile(sshdDraft, []byte(text), 0o600); err != nil {
		return false, err
	}
	then, err := askSSHD(ctx, h, sshdDraft, port)
	if err != nil {
		return false, fmt.Errorf("sshd refuses %s with the settings CloudStack needs, which was left as it is: %w", sshdConfig, err)
	}
	if changed, err = h.WriteFile(sshdConfig, []byte(text), 0o644); err != nil {
		return changed, err
	}
	if _, err := h.Remove(sshdDraft); err != nil {
		return changed, err
	}
	return changed, lackError(then.lacks(port))
}

// askSSHD lets sshd check a configuration file and say what follows from it, with
// all files it includes, when CloudStack's server logs in.
func askSSHD(ctx context.Context, h *host.Host, file string, port int) (sshdSettings, error) {
	login := fmt.Sprintf("user=cloud,host=cloudstack,addr=192.0.2.1,laddr=192.0.2.2,lport=%d", port)
	out, err := h.Run.Run(ctx, host.Command{Path: "/usr/sbin/sshd", Args: []string{"-T", "-f", h.Path(file), "-C", login}})
	if err != nil {
		return sshdSettings{}, err
	}
	return parseSSHD(string(out)), nil
}

func lackError(missing []string) error {
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("with %s and what it includes sshd has no %s for the user cloud", sshdConfig, strings.Join(missing, ", no "))
}
