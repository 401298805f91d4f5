// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// goFiles returns the Go files below the top of the tree.
func goFiles(t *testing.T) (files []string) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Leaves know the machine and nothing of each other; agent knows no leaf. What is
// in the binary is not in tests' hands.
func TestImports(t *testing.T) {
	t.Parallel()
	shared := []string{"nodeagent/internal/host", "nodeagent/internal/fault", "nodeagent/internal/secret", "nodeagent/internal/iso9660", "nodeagent/internal/redact"}
	for _, path := range goFiles(t) {
		if !strings.HasPrefix(path, "../../internal/") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "/hosttest/") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(name, "nodeagent/") && !slices.Contains(shared, name) {
				t.Errorf("%s imports %s; leaves import %q only", path, name, shared)
			}
			if name == "testing" || name == "C" {
				t.Errorf("%s imports %q", path, name)
			}
		}
	}
}

// K12: programs are started with argument arrays, never through a shell.
func TestNoShell(t *testing.T) {
	t.Parallel()
	shell := regexp.MustCompile(`"(/bin/|/usr/bin/)?(ba|da)?sh"`)
	for _, path := range goFiles(t) {
		if strings.HasSuffix(path, "_test.go") || !(strings.HasPrefix(path, "../../internal/") || strings.HasPrefix(path, "../../cmd/")) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), `Path: "/bin/sh"`) || (strings.Contains(string(text), "host.Command{") && shell.Match(text)) {
			t.Errorf("%s names a shell", path)
		}
		if strings.Contains(string(text), "func init()") {
			t.Errorf("%s has an init function", path)
		}
	}
}

func TestEveryFileNamesItsLicence(t *testing.T) {
	t.Parallel()
	for _, path := range goFiles(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "// SPDX-License-Identifier: Apache-2.0\n") {
			t.Errorf("%s does not begin with its licence", path)
		}
	}
}

// Every command a unit starts exists.
func TestUnitsStartRealCommands(t *testing.T) {
	t.Parallel()
	units, err := filepath.Glob("../../systemd/*.service")
	if err != nil || len(units) == 0 {
		t.Fatalf("found no units (%v)", err)
	}
	for _, path := range units {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			line, found := strings.CutPrefix(lines.Text(), "ExecStart=/usr/bin/nodeagent ")
			if !found {
				if strings.HasPrefix(lines.Text(), "ExecStart=") {
					t.Errorf("%s starts something else: %s", path, lines.Text())
				}
				continue
			}
			if command, _, err := rootCommand(nil).Find(strings.Fields(line)); err != nil || command.Name() != strings.Fields(line)[0] {
				t.Errorf("%s starts %q, which is no command", path, line)
			}
		}
	}
}
