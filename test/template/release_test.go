// SPDX-License-Identifier: Apache-2.0

package template

import (
	"slices"
	"strings"
	"testing"
)

func TestFindRelease(t *testing.T) {
	t.Parallel()
	for suite, want := range map[string]string{"": "bookworm", "bookworm": "bookworm", "trixie": "trixie"} {
		if got, err := findRelease(suite); err != nil || got.suite != want {
			t.Errorf("%q: got %q, %v, want %s", suite, got.suite, err, want)
		}
	}
	if _, err := findRelease("sid"); err == nil || !strings.Contains(err.Error(), "bookworm, trixie") {
		t.Errorf("sid: got error %v, want one that names the suites", err)
	}
}

// Another release, architecture or list of packages is another root in the cache.
func TestMmdebstrapSuite(t *testing.T) {
	t.Parallel()
	for _, suite := range Suites() {
		argv := mmdebstrap([]string{"systemd", "udev"}, "arm64", suite)
		if got := argv[len(argv)-1]; got != suite {
			t.Errorf("last argument is %q, want %s", got, suite)
		}
		if !slices.Contains(argv, "--include=systemd,udev") {
			t.Errorf("got %q, want the packages in it", argv)
		}
		if !slices.Contains(argv, "--architectures=arm64") {
			t.Errorf("got %q, want the architecture in it", argv)
		}
	}
}
