// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"

	"nodeagent/internal/host"
)

// CmdlineFile is where CloudStack puts and looks for the boot args.
const CmdlineFile = "/var/cache/cloud/cmdline"

// cmdlineJSON is the form CloudStack's Python reads.
const cmdlineJSON = "/var/cache/cloud/cmd_line.json"

// leave puts accepted boot args where CloudStack's programs look for them. They
// run as root and the text holds passwords, so the files are root's alone.
// written says that the host has written CmdlineFile itself.
func leave(h *host.Host, text string, written bool) error {
	var errs []error
	if written {
		errs = append(errs, restrict(h.Path(CmdlineFile)))
	} else {
		_, err := h.WriteFile(CmdlineFile, []byte(text), 0o600)
		errs = append(errs, err)
	}
	// On other roles CloudStack's common.sh writes this file, and update_config.py
	// takes it away when it has read it: a second one would be processed again.
	if args := ParseBootArgs(text); args.Type() == typeNode {
		data, err := args.commandLine()
		if err == nil {
			_, err = h.WriteFile(cmdlineJSON, data, 0o600)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// restrict takes a file from all but its owner. Its times stay: they tell when
// the host wrote it.
func restrict(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Perm() == 0o600 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}

// commandLine is the data bag "cmdline" of CloudStack's merge.py. In contrast to
// common.sh, which stops at a second "=" and escapes nothing, it holds whole
// values and is always JSON.
func (a BootArgs) commandLine() ([]byte, error) {
	values := map[string]string{}
	for _, key := range a.Keys() {
		values[key], _ = a.Get(key)
	}
	data, err := json.MarshalIndent(map[string]any{"type": "cmdline", "cmd_line": values}, "", "  ")
	return append(data, '\n'), err
}
