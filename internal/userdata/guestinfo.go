// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"nodeagent/internal/host"
)

const (
	vmtoolsd    = "/usr/bin/vmtoolsd"
	vmtoolsWait = 30 * time.Second
	// What the hypervisor answers when the machine's configuration has none.
	noMachineID = "No machine id"
)

// readMachineID returns VMware's machine.id, where CloudStack puts the boot args.
// vmtoolsd asks the hypervisor itself and needs no running daemon. Of its output
// nothing but the one known answer may reach an error: it is boot args or part of
// them.
func readMachineID(ctx context.Context, h *host.Host) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, vmtoolsWait)
	defer cancel()
	out, err := h.Run.Run(ctx, host.Command{Path: vmtoolsd, Args: []string{"--cmd", "machine.id.get"}})
	said := string(out)
	var failed *host.CommandError
	if errors.As(err, &failed) {
		said += strings.Join(failed.Tail, "\n")
	}
	switch {
	case strings.HasPrefix(strings.TrimSpace(said), noMachineID):
		return "", errors.New("the machine has no machine.id")
	case err == nil && fromCloudStack(said):
		return said, nil
	case err == nil:
		return "", errors.New("machine.id has no type=")
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s is not installed", vmtoolsd)
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s did not answer: %w", vmtoolsd, context.Cause(ctx))
	case failed != nil:
		return "", fmt.Errorf("%s ended with code %d", vmtoolsd, failed.ExitCode)
	}
	return "", fmt.Errorf("%s could not be run", vmtoolsd)
}
