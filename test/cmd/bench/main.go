// SPDX-License-Identifier: Apache-2.0

// Command bench measures nodeagent against what it replaces, side by side in one
// machine of the emulated cloud, and prints the ratios.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context) error {
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
	if err := benchGrow(ctx, dir, log); err != nil {
		return err
	}
	return benchBoot(ctx, dir, log)
}
