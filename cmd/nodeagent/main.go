// SPDX-License-Identifier: Apache-2.0

//go:build !docs

// Command nodeagent turns the CloudStack SystemVM template into the machine that
// CloudStack asked for, at every boot, and says what happened.
package main

import "os"

func main() {
	os.Exit(run(commandLine(os.Args), os.Stdout, os.Stderr))
}
