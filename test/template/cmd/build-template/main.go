// SPDX-License-Identifier: Apache-2.0

// Command build-template builds a template from a nodeagent package and prints where
// its files are: in the cache, where the VM tests use them, and with -o in a file to
// take away.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"

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
	suites := template.Suites()
	flags.StringVar(&options.Suite, "suite", suites[0], "release of Debian: "+strings.Join(suites, " or "))
	architectures := template.Architectures()
	flags.StringVar(&options.Arch, "arch", architectures[0], "kind of machine: "+strings.Join(architectures, " or ")+", the latter with -gpt only")
	flags.BoolVar(&options.GPT, "gpt", false, "GPT that UEFI firmware boots, as in the aarch64 template, in place of an MBR that a BIOS boots")
	flags.BoolVar(&options.DiskTools, "disk-tools", false, "with programs that make and check file systems and volumes")
	output := flags.String("o", "", "also write the disk, compressed, to this `file`")
	if err := flags.Parse(args); err != nil {
		return 64
	}
	if flags.NArg() != 1 || !slices.Contains(suites, options.Suite) || !slices.Contains(architectures, options.Arch) {
		flags.Usage()
		return 64
	}
	options.Package = flags.Arg(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := build(ctx, options, *output, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

func build(ctx context.Context, options template.Options, output string, stdout, stderr io.Writer) error {
	image, err := template.Build(ctx, stderr, options)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "disk:   %s\nkernel: %s\ninitrd: %s\nappend: %s\n", image.Disk, image.Kernel, image.Initrd, image.Append)
	if output == "" {
		return nil
	}
	if err := template.Export(ctx, stderr, image, output); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "output: %s\n", output)
	return err
}
