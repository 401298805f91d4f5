// SPDX-License-Identifier: Apache-2.0

package host

import (
	"slices"
	"testing"
)

func TestParseSwaps(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		table string
		want  []string
	}{
		{"", nil},
		{"Filename\tType\n", nil},
		{"Filename\tType\n/dev/vda5 partition 1 0 -2\n/swap\\040file\\011\\134x file 1 0 -3\n", []string{"/dev/vda5", "/swap file\t\\x"}},
		{"h\n/a\\0 x\n/b\\999 y\n/end\\040\n/c\\", []string{`/a\0`, `/b\999`, "/end ", `/c\`}},
	} {
		if got := parseSwaps(test.table); !slices.Equal(got, test.want) {
			t.Errorf("parseSwaps(%q) = %q, want %q", test.table, got, test.want)
		}
	}
}
