// SPDX-License-Identifier: Apache-2.0

// Command copyright writes the package's copyright file (standard output) in
// Debian's machine-readable format: nodeagent itself, and every Go module that is
// linked into the program, with the notices and texts its licence wants to be shipped.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "copyright:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: copyright GOARCH PACKAGE")
	}
	packages, err := listLinked(args[0], args[1])
	if err != nil {
		return err
	}
	works, err := findWorks(packages)
	if err != nil {
		return err
	}
	return write(out, works)
}
