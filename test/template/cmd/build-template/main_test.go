// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"testing"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{}, {"a.deb", "b.deb"}, {"-suite", "sid", "a.deb"}, {"-arch", "riscv64", "a.deb"}, {"-nothing", "a.deb"}} {
		var stderr strings.Builder
		if code := run(args, io.Discard, &stderr); code != 64 || !strings.Contains(stderr.String(), "bookworm or trixie") {
			t.Errorf("%q: got exit code %d and %q, want 64 and the usage", args, code, stderr.String())
		}
	}
}
