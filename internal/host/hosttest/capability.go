// SPDX-License-Identifier: Apache-2.0

package hosttest

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// DropCapabilities takes capabilities (unix.CAP_SYS_ADMIN, ...) from the thread the
// test runs on until the test ends. Programs that it starts as root have them.
func DropCapabilities(t testing.TB, capabilities ...int) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	runtime.LockOSThread()
	if err := unix.Capget(&header, &before[0]); err != nil {
		t.Fatal(err)
	}
	without := before
	for _, capability := range capabilities {
		without[capability/32].Effective &^= 1 << (capability % 32)
	}
	if err := unix.Capset(&header, &without[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Capset(&header, &before[0]); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
}
