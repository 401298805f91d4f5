// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// linked is a package that is part of the program, as `go list -json` shows it.
type linked struct {
	Dir      string
	Standard bool
	Module   struct {
		Path, Version, Dir string
		Main               bool
	}
	GoFiles, CgoFiles, SFiles []string // those that are compiled for the architecture
}

// listLinked lists what a program is made of on one architecture, without nodeagent's
// own packages. Those of the standard library are given Go itself for a module.
func listLinked(arch, program string) (packages []linked, err error) {
	var golang struct{ GOROOT, GOVERSION string }
	output, err := goCommand(arch, "env", "-json", "GOROOT", "GOVERSION")
	if err == nil {
		err = json.Unmarshal(output, &golang)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find Go: %w", err)
	}
	output, err = goCommand(arch, "list", "-deps", "-buildvcs=false", "-tags=dqlite,nosqlite3,netgo,osusergo",
		"-json=Dir,Standard,Module,GoFiles,CgoFiles,SFiles", program)
	if err != nil {
		return nil, fmt.Errorf("cannot list what %s links for %s: %w", program, arch, err)
	}
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var p linked
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("cannot read go list's answer: %w", err)
		}
		if p.Standard {
			p.Module.Path, p.Module.Version, p.Module.Dir = "std", golang.GOVERSION, golang.GOROOT
		}
		if !p.Module.Main {
			packages = append(packages, p)
		}
	}
}

// goCommand runs go as `make deb` does.
func goCommand(arch string, args ...string) ([]byte, error) {
	command := exec.Command("go", args...)
	command.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=1")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return output, nil
}
