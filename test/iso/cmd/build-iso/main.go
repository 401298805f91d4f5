// SPDX-License-Identifier: Apache-2.0

// Command build-iso builds a CKS binaries ISO, or finds it in the cache, and
// prints its path. Progress goes to standard error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"nodeagent/test/iso"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	var options iso.Options
	flags := flag.NewFlagSet("build-iso", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&options.Version, "version", iso.DefaultVersion, "Kubernetes `version`")
	flags.StringVar(&options.Label, "label", "CDROM", "volume `label`")
	flags.BoolVar(&options.Small, "small", false, "tiny stand-ins in place of Kubernetes")
	flags.Func("omit", "leave out this `file` or folder; may be repeated", func(name string) error {
		options.Omit = append(options.Omit, name)
		return nil
	})
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 64
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "build-iso: unexpected argument %q\n", flags.Arg(0))
		return 64
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	path, err := iso.Build(ctx, stderr, options)
	if err != nil {
		fmt.Fprintln(stderr, "build-iso:", err)
		return 1
	}
	fmt.Fprintln(stdout, path)
	return 0
}
