// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestReadShell(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, text string
		want       []string // commands as "line: words > file"
		open       string
		beyond     string
	}{
		{"words", "a 'b c' \"d e\" f\\ g # h\n\n  i#j", []string{"1: a|b c|d e|f g", "3: i#j"}, "", ""},
		{"joined by operators", "a; b && c || d | e & f", []string{"1: a", "1: b", "1: c", "1: d", "1: e", "1: f"}, "", ""},
		{"continued line", "a \\\n  b\nc", []string{"1: a|b", "3: c"}, "", ""},
		{"if, while, for", "if a; then b; elif c; then d; else e; fi\nwhile f; do g; done <<< \"$h\"\nfor i in 1 2; do j $i; done",
			[]string{"1: a", "1: b", "1: c", "1: d", "1: e", "2: f", "2: g", "3: for|i|in|1|2", "3: j|1", "3: j|2"}, "", ""},
		{"arithmetic", "for (( i = 1; i < 3; i++ )); do a; done; if (( x > 1 )); then b $[1+1] $((2*2)); fi", []string{"1: for", "1: a", "1: ((", "1: b|$|$"}, "", ""},
		{"tests", "[[ $a != *:/b && ( c < d ) ]] && e; [ -f x ]", []string{"1: [[|$a|!=|*:/b|&&|(|c|<|d|)|]]", "1: e", "1: [|-f|x|]"}, "", ""},
		{"redirections", "a > b 2>&1 >> \"c\" < d 2>/dev/null &> e", []string{"1: a > b > c > /dev/null > e"}, "", ""},
		{"substitutions", "a $(b `c` \"$(d ')')\") `e \\`f\\``", []string{"1: c", "1: d|)", "1: b|$|$", "1: f", "1: e|$", "1: a|$|$"}, "", ""},
		{"functions and groups", "f() {\n a\n}\n{ b; }; (c; d)\nf", []string{"2: a", "4: b", "4: c", "4: d", "5: f"}, "", ""},
		{"variables", "A=1 B='2 3'\nexport C=$A/x\ny ${A} \"$B\" $C \\$A '$A' $D ${E:-f} $?", []string{"1: A=1|B=2 3", "2: export|C=1/x", "3: y|1|2 3|1/x|$A|$A|$D|$|$?"}, "", ""},
		{"keywords as arguments", "echo if done fi; done=1", []string{"1: echo|if|done|fi", "1: done=1"}, "", ""},
		{"CRLF", "a\r\nb\r\n", []string{"1: a", "2: b"}, "", ""},
		{"open if", "if a; then\nb", []string{"1: a", "2: b"}, "fi", ""},
		{"open quote", "a 'b\nc", []string{"1: a|"}, "quote", ""},
		{"open substitution", "a $(b", []string{"1: a|"}, "$(", ""},
		{"open backtick", "a `b", []string{"1: a|"}, "backtick", ""},
		{"open brace", "a ${b", []string{"1: a|$"}, "${", ""},
		{"open redirection", "a >", []string{"1: a"}, "redirection", ""},
		{"here-document", "a << E\nb\nE", []string{"1: a"}, "", "a here-document in line 1"},
		{"case", "a\ncase x in", []string{"1: a"}, "", `"case" in line 2`},
		{"stray fi", "a\nfi", []string{"1: a"}, "", `a stray "fi" in line 2`},
		{"array", "a=(b c)", []string{"1: a="}, "", "a parenthesis in line 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := readShell(test.text)
			var got []string
			for _, c := range s.commands {
				for _, argv := range s.variants(c.words) {
					line := fmt.Sprintf("%d: %s", c.line, strings.Join(argv, "|"))
					for _, target := range c.writes {
						line += " > " + target
					}
					got = append(got, line)
				}
			}
			slices.Sort(got)
			want := slices.Sorted(slices.Values(test.want))
			if !slices.Equal(got, want) || s.open != test.open || s.beyond != test.beyond {
				t.Errorf("got  %q open %q beyond %q\nwant %q open %q beyond %q", got, s.open, s.beyond, want, test.open, test.beyond)
			}
		})
	}
}

// A hostile script must not grow without bound. The measure is how often memory is asked for, which no other work on the
// machine changes; so nothing may run beside this test.
func TestReadShellIsBounded(t *testing.T) {
	var doubling strings.Builder
	doubling.WriteString("A=aaaaaaaaaaaaaaaa\n")
	for range 3000 {
		doubling.WriteString("B=$A$A; A=$B$B; x $A$B$A$B\n")
	}
	var manyValues strings.Builder
	for i := range 15 {
		fmt.Fprintf(&manyValues, "A=%d\n", i)
	}
	for name, text := range map[string]string{
		"doubling variables": doubling.String(),
		"substitutions":      strings.Repeat("$(", 50000),
		"backticks":          strings.Repeat("`", 50001),
		"commands":           strings.Repeat("a;", 100000),
		"parentheses":        strings.Repeat("(", 100000),
		"nested ifs":         strings.Repeat("if true; then ", 50000),
		"long list":          strings.Repeat("a && ", 50000),
		"long elif":          "A=1\nif a; then b" + strings.Repeat("; elif [ $A = 2 ]; then c", 20000) + "; fi",
		"many values":        manyValues.String() + strings.Repeat("if [ \"$A\" -eq \"$A\" ] || [ $A -lt $A ]; then x $A; fi\n", 1500),
		"deep guards":        strings.Repeat("a && { ", 90) + "b" + strings.Repeat("\n}", 90),
		"deep pauses":        strings.Repeat("while a; do sleep 1; blkid; ", 99) + strings.Repeat("sleep 1; ", 4000) + strings.Repeat("done; ", 99),
		"guarded ends":       "A=1; " + strings.Repeat("if [ $B = $C ]; then ", 99) + strings.Repeat("exit 0; exit 1; kubectl apply x; ", 1500) + strings.Repeat("fi; ", 99),
		"chained ends":       strings.Repeat("if (( A > 1 )) && [ -f /x ]; then exit 1; fi; ", 1600),
		"loop product":       strings.Repeat("for a in 1 2 3 4; do for b in 1 2 3 4; do x $a$b$a$b $a $b; done; done\n", 300),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			s := readShell(text)
			strangers("script", s, nodeCommands())
			runtime.ReadMemStats(&after)
			const most = 10_000_000
			if asked := after.Mallocs - before.Mallocs; asked > most {
				t.Errorf("a script of %d bytes took %d allocations, at most %d wanted", len(text), asked, most)
			}
		})
	}
}
