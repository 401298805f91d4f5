// SPDX-License-Identifier: Apache-2.0

package template

import (
	"slices"
	"strings"
	"testing"
)

func findTestArchitecture(t *testing.T, name string) architecture {
	t.Helper()
	arch, err := findArchitecture(name, true)
	if err != nil {
		t.Fatal(err)
	}
	return arch
}

func TestFindArchitecture(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"": "amd64", "amd64": "amd64", "arm64": "arm64"} {
		arch := findTestArchitecture(t, name)
		if arch.name != want || !slices.Contains(arch.packages, "linux-image-cloud-"+want) {
			t.Errorf("%q: got %s with packages %q, want %s and its kernel", name, arch.name, arch.packages, want)
		}
	}
	if _, err := findArchitecture("riscv64", true); err == nil || !strings.Contains(err.Error(), "amd64, arm64") {
		t.Errorf("riscv64: got error %v, want one that names the architectures", err)
	}
}

// There is no BIOS to boot an arm64 machine from an MBR.
func TestArm64NeedsGPT(t *testing.T) {
	t.Parallel()
	if _, err := findArchitecture("arm64", false); err == nil || !strings.Contains(err.Error(), "GPT") {
		t.Errorf("arm64 with an MBR: got error %v, want one that names the GPT", err)
	}
	if _, err := findArchitecture("amd64", false); err != nil {
		t.Errorf("amd64 with an MBR: %v", err)
	}
}
