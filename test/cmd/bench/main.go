// SPDX-License-Identifier: Apache-2.0

// Command bench measures nodeagent against what it replaces, side by side in one
// machine of the emulated cloud, and prints the ratios. Arguments choose of its
// parts, grow and boot.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, only []string) error {
	parts := map[string]func(context.Context, string, io.Writer) error{"grow": benchGrow, "boot": benchBoot}
	names := only
	if len(names) == 0 {
		names = []string{"grow", "boot"}
	}
	for _, name := range names {
		if parts[name] == nil {
			return fmt.Errorf("there is no part %q", name)
		}
	}
	dir, err := os.MkdirTemp("", "nodeagent-bench-")
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "build.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Println("logs, also of the machine's console:", dir)
	for _, name := range names {
		if err := parts[name](ctx, dir, log); err != nil {
			return err
		}
	}
	return nil
}
