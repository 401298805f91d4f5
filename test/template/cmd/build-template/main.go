// SPDX-License-Identifier: Apache-2.0

// Command build-template builds the VM tests' template from a nodeagent package
// and prints where its files are.
package main

import (
	"context"
	"flag"
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
	flags := flag.NewFlagSet("build-template", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: build-template [options] nodeagent.deb")
		flags.PrintDefaults()
	}
	var options template.Options
	flags.BoolVar(&options.GPT, "gpt", false, "partitions of the aarch64 template; boots with -kernel only")
	flags.BoolVar(&options.DiskTools, "disk-tools", false, "with programs that make and check file systems and volumes")
	if err := flags.Parse(args); err != nil {
		return 64
	}
	if flags.NArg() != 1 {
		flags.Usage()
		return 64
	}
	options.Package = flags.Arg(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	image, err := template.Build(ctx, stderr, options)
	if err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	fmt.Fprintf(stdout, "disk:   %s\nkernel: %s\ninitrd: %s\nappend: %s\n", image.Disk, image.Kernel, image.Initrd, image.Append)
	return 0
}
