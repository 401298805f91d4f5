// SPDX-License-Identifier: Apache-2.0

// Command crictl stands in for cri-tools' crictl on the ISO. kubeadm no longer
// runs crictl; it is there because CloudStack's layout has it. It knows
// --version alone and refuses everything else.
package main

import (
	"fmt"
	"io"
	"os"
)

// version is set when the ISO is built.
var version = "unknown"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 1 && (args[0] == "--version" || args[0] == "-v") {
		fmt.Fprintln(stdout, "crictl version", version)
		return 0
	}
	fmt.Fprintln(stderr, "crictl: this is the test ISO's stand-in; use: ctr -n k8s.io containers list")
	return 64
}
