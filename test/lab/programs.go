// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Program is something of this tree that runs inside a machine.
type Program struct {
	Name    string // of the file
	Package string // import path
	Tests   bool   // its tests with the build tag guest, not its main function
}

// ProgramDisk builds programs as static files and makes dir/programs.iso of them,
// for cloud.MachineSpec's ExtraDisks.
func ProgramDisk(ctx context.Context, dir string, programs ...Program) (string, error) {
	content, image := filepath.Join(dir, "programs"), filepath.Join(dir, "programs.iso")
	var commands []*exec.Cmd
	for _, p := range programs {
		args := []string{"build"}
		if p.Tests {
			args = []string{"test", "-c", "-tags", "guest"}
		}
		build := exec.CommandContext(ctx, "go", append(args, "-o", filepath.Join(content, p.Name), p.Package)...)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		commands = append(commands, build)
	}
	commands = append(commands, exec.CommandContext(ctx, "xorriso", "-as", "mkisofs", "-quiet", "-r", "-o", image, content))
	for _, command := range commands {
		if text, err := command.CombinedOutput(); err != nil {
			return "", fmt.Errorf("cannot make a disk of programs: %s: %w\n%s", command, err, text)
		}
	}
	return image, nil
}
