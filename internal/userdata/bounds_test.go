// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"strings"
	"testing"
)

// A condition of any length takes no time; one that is not looked into may hold.
func TestLongConditionsMayHold(t *testing.T) {
	t.Parallel()
	for name, long := range map[string]func(n int) string{
		"nots": func(n int) string { return "if [ " + strings.Repeat("! ! ", n) + "a = b ]; then mark a; fi" },
		"ors":  func(n int) string { return "if [ a = b" + strings.Repeat(" -o a = b", n) + " ]; then mark a; fi" },
		"ands": func(n int) string { return "if [[ a == b" + strings.Repeat(" && a == b", n) + " ]]; then mark a; fi" },
	} {
		if marks := reaches(long(10)); len(marks) > 0 {
			t.Errorf("%s: a short condition that is never true may hold", name)
		}
		for _, n := range []int{maxConditionWords, maxWords / 5} {
			if marks := reaches(long(n)); len(marks) != 1 {
				t.Errorf("%s: a condition of more than %d words is looked into", name, maxConditionWords)
			}
		}
	}
}

// However often a script has a variable in a word, showing it stays small.
func TestShownWordsAreBounded(t *testing.T) {
	t.Parallel()
	const n = 1000
	s := readShell("A=" + strings.Repeat("a", maxWord/4) + "\nB=" + strings.Repeat("b", maxWord+1) + "\necho " + strings.Repeat("$A", n) + " $B")
	argv := s.variants(s.commands[2].words)[0]
	if most := maxWord + n*len("$A"); len(argv[1]) > most || len(argv[1]) <= maxWord || argv[2] != "$B" {
		t.Errorf("the words have %d and %d bytes, want at most %d and %d", len(argv[1]), len(argv[2]), most, len("$B"))
	}
}

// A setting may be continued over any number of lines.
func TestUnitSettingsJoinsLines(t *testing.T) {
	t.Parallel()
	const lines = 20000
	settings := unitSettings("[Service]\nExecStart=x \\\n" + strings.Repeat("  a\\\n", lines) + "b\nType=simple\n")
	if len(settings) != 3 || settings[1].line != 2 || len(settings[1].value) != len("x ")+1+lines*len("a ")+len("b") || settings[2].line != lines+4 {
		t.Errorf("%d settings, want [Service], ExecStart of all lines, and Type", len(settings))
	}
}
