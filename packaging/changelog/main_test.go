// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestChangelog(t *testing.T) {
	t.Parallel()
	const markdown = `# Changelog

All of it.

## Unreleased

- ` + "`nodeagent run`" + ` boots a machine, and this sentence is longer than a line of
  a Debian changelog is.
- Short.

## 0.1.0 (2026-10-01)

- First.
`
	const want = `nodeagent (0.2.0) unstable; urgency=medium

  * ` + "`nodeagent run`" + ` boots a machine, and this sentence is longer than a line of
    a Debian changelog is.
  * Short.

 -- A Name <a@example.org>  Wed, 18 Nov 2026 11:06:40 +0000

nodeagent (0.1.0) unstable; urgency=medium

  * First.

 -- A Name <a@example.org>  Thu, 01 Oct 2026 00:00:00 +0000
`
	var out bytes.Buffer
	if err := run([]string{"0.2.0", "A Name <a@example.org>"}, "1795000000", strings.NewReader(markdown), &out); err != nil {
		t.Fatal(err)
	}
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestChangelogErrors(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ epoch, markdown, want string }{
		{"", "## Unreleased\n\n- x\n", "SOURCE_DATE_EPOCH"},
		{"1", "# Changelog\n", "no release"},
		{"1", "## Unreleased\n\n## 0.1.0\n\n- x\n", "release 9 has no items"},
		{"1", "## Next\n\n- x\n", "line 1: want \"## Unreleased\""},
		{"1", "## 0.1.0 (2026-13-01)\n\n- x\n", "line 1: "},
		{"1", "## Unreleased\n\nText.\n", "line 3: want a list item"},
	} {
		err := run([]string{"9", "m"}, test.epoch, strings.NewReader(test.markdown), new(bytes.Buffer))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: error %v, want %q in it", test.markdown, err, test.want)
		}
	}
}
