// SPDX-License-Identifier: Apache-2.0

// Command build-template builds the VM tests' template from a nodeagent package
// and prints where its files are.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"nodeagent/test/template"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) != 1 {
		fmt.Fprintln(stderr, "usage: build-template nodeagent.deb")
		return 64
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	image, err := template.Build(ctx, stderr, template.Options{Package: args[0]})
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	fmt.Fprintf(stdout, "disk:   %s\nkernel: %s\ninitrd: %s\nappend: %s\n", image.Disk, image.Kernel, image.Initrd, image.Append)
	return 0
}
