// SPDX-License-Identifier: Apache-2.0

// Command leader stands in the images of the controller manager and the scheduler for
// the program itself, which it runs with more time to keep the lease of the leader. The
// 10 s that they have are too short for an emulated CPU that other machines share: both
// would give up and be started again, later each time.
package main

import (
	"fmt"
	"os"
	"slices"
	"syscall"
)

// realSuffix is what the program's own file has behind its name.
const realSuffix = ".real"

func main() {
	arguments := slices.Concat(os.Args, []string{
		"--leader-elect-lease-duration=60s", "--leader-elect-renew-deadline=50s", "--leader-elect-retry-period=3s",
	})
	self, err := os.Executable()
	if err == nil {
		err = syscall.Exec(self+realSuffix, arguments, os.Environ())
	}
	fmt.Fprintf(os.Stderr, "cannot run %s%s: %v\n", self, realSuffix, err)
	os.Exit(1)
}
