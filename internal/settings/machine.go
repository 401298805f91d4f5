// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	shadowFile  = "/etc/shadow"
	profileFile = "/etc/profile.d/nodeagent.sh"
)

// profile puts the ISO's programs on the search path of every login; root's other
// shells find them by the line kubeadm's installation puts into .bashrc.
const profile = `# Written by nodeagent: kubeadm, kubectl and crictl.
case ":$PATH:" in
*:/opt/bin:*) ;;
*) PATH=$PATH:/opt/bin ;;
esac
`

// Machine makes the small settings of a node (contract 2.1): nobody logs in as
// root, /opt/bin is on the search path, the log rotation of CloudStack's scripts
// and irqbalance are off. It returns what it did.
func Machine(ctx context.Context, h *host.Host) (done []string, err error) {
	fail := func(err error) ([]string, error) {
		return done, fault.Wrap(fault.HostSettingsFailed, err, "cannot make the settings of this machine")
	}
	locked, err := lockRoot(ctx, h)
	done = append(done, locked...)
	if err != nil {
		return fail(err)
	}
	wrote, err := h.WriteFile(profileFile, []byte(profile), 0o644)
	if err != nil {
		return fail(err)
	}
	if wrote {
		done = append(done, "/opt/bin on the search path")
	}
	removed, err := h.Remove("/etc/logrotate.d/cloud")
	if err != nil {
		return fail(err)
	}
	if removed {
		done = append(done, "/etc/logrotate.d/cloud removed")
	}
	off, err := turnOff(ctx, h, "irqbalance.service")
	done = append(done, off...)
	if err != nil {
		return fail(err)
	}
	return done, nil
}

// lockRoot leaves root no password and no key. passwd(1) does it, because it takes
// the lock all others take who change /etc/shadow.
func lockRoot(ctx context.Context, h *host.Host) (done []string, err error) {
	locked, err := rootLocked(h)
	if err != nil {
		return nil, err
	}
	if !locked {
		if _, err := h.Run.Run(ctx, host.Command{Path: "/usr/bin/passwd", Args: []string{"-l", "root"}}); err != nil {
			return nil, err
		}
		if locked, err = rootLocked(h); err != nil || !locked {
			return nil, errors.Join(fmt.Errorf("passwd -l has left root's password in %s", shadowFile), err)
		}
		done = append(done, "root locked")
	}
	emptied, err := EmptyRootKeys(h)
	return append(done, emptied...), err
}

// EmptyRootKeys takes from root every key that opens the machine, and returns what it
// did. cloud-init gives root the instance's keys, if only to be told to log in as
// somebody else: it is to be called again after cloud-init.
func EmptyRootKeys(h *host.Host) (done []string, err error) {
	for _, name := range []string{"/root/.ssh/authorized_keys", "/root/.ssh/authorized_keys2"} {
		keys, err := h.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return done, err
		}
		if len(bytes.TrimSpace(keys)) == 0 {
			continue
		}
		if _, err := h.WriteFile(name, nil, 0o600); err != nil {
			return done, err
		}
		done = append(done, name+" emptied")
	}
	return done, nil
}

func rootLocked(h *host.Host) (bool, error) {
	shadow, err := h.ReadFile(shadowFile)
	if err != nil {
		return false, err
	}
	return passwordLocked(string(shadow), "root")
}

// passwordLocked says whether a shadow(5) file lets a user log in with no password
// whatever. An empty one is no lock: it lets everybody in.
func passwordLocked(shadow, user string) (bool, error) {
	for line := range strings.Lines(shadow) {
		name, rest, _ := strings.Cut(line, ":")
		if name != user {
			continue
		}
		password, _, found := strings.Cut(rest, ":")
		if !found {
			return false, fmt.Errorf("the line of %s in %s is cut off", user, shadowFile)
		}
		return strings.HasPrefix(password, "!") || strings.HasPrefix(password, "*"), nil
	}
	return false, fmt.Errorf("%s has no line for %s", shadowFile, user)
}
