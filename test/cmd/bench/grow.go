// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"nodeagent/test/lab"
	"nodeagent/test/template"
)

// benchGrow runs bench-grow, which grows disks in both ways, in a machine.
func benchGrow(ctx context.Context, dir string, log io.Writer) (err error) {
	dir = filepath.Join(dir, "grow")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	programs, err := lab.ProgramDisk(ctx, dir, lab.Program{Name: "bench-grow", Package: "nodeagent/test/cmd/bench-grow"})
	if err != nil {
		return err
	}
	l, err := lab.New(ctx, dir, log, template.Options{DiskTools: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	spec := l.RouterSpec("bench")
	spec.DiskBytes = 16 << 30
	spec.MemoryMiB = 2048
	spec.ExtraDisks = []string{programs}
	m, err := l.Boot(ctx, spec)
	if err != nil {
		return err
	}
	if _, _, err := lab.Follow(ctx, m, "", func(lab.Step) {}); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"/usr/bin/systemctl", "is-system-running", "--wait"},
		{"/usr/bin/mount", "-o", "ro", "/dev/vdb", "/mnt"},
		{"/mnt/bench-grow"},
	} {
		result, err := m.Agent().Exec(ctx, command[0], command[1:]...)
		if err != nil {
			return err
		}
		if command[0] == "/mnt/bench-grow" {
			os.Stdout.Write(result.Stdout)
		}
		if result.ExitCode != 0 && command[0] != "/usr/bin/systemctl" {
			return fmt.Errorf("%q: exit code %d: %s", command, result.ExitCode, result.Stderr)
		}
	}
	return nil
}
