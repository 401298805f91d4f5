// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// reaches returns the "mark X" commands of a script that may run.
func reaches(text string) []string {
	s := readShell(text)
	var found []string
	for _, c := range s.commands {
		if len(c.words) == 2 && c.words[0] == "mark" && !s.unreachable(c) {
			found = append(found, c.words[1])
		}
	}
	return found
}

func reachScripts() []struct{ name, text, want string } {
	return []struct{ name, text, want string }{
		{"if of a variable", "A=true\nif [ \"$A\" = true ]; then mark a; else mark b; fi", "a"},
		{"if not", "A=true\nif ! [ $A = true ]; then mark a; else mark b; fi", "b"},
		{"elif", "A=2\nif [[ $A == 1 ]]; then mark a; elif [[ $A == 2 ]]; then mark b; elif [[ $A == 2 ]]; then mark c; else mark d; fi", "b"},
		{"nested", "A=1\nif [ $A = 1 ]; then if [ $A = 2 ]; then mark a; fi; mark b; fi", "b"},
		{"and, or", "A=no\n[ $A = yes ] && mark a\n[ $A = yes ] || mark b\n[ $A = no ] && mark c", "b c"},
		{"several conditions", "A=no\nif [ -f /x ] && [ $A = yes ]; then mark a; fi\nif [ -f /etc ] || [ $A = no ]; then mark b; fi", "b"},
		{"conditions in brackets", "A=no\nif [[ -f /x && $A == yes ]]; then mark a; fi\nif [[ -z $A || $A -eq 0 ]]; then mark b; fi", "b"},
		{"emptiness", "A=\nif [ -n \"$A\" ]; then mark a; fi\nif [ \"$A\" ]; then mark b; fi\nif [[ -z \"$A\" ]]; then mark c; fi\nif [ \"$A\" != \"\" ]; then mark d; fi", "c"},
		{"numbers", "A=3\nif [ $A -gt 2 ]; then mark a; fi\nif [ $A -le 2 ]; then mark b; fi", "a"},
		{"a group", "A=1\n[ $A = 2 ] || { mark a; mark b; }\n[ $A = 2 ] && { mark c; }\nmark d", "a b d"},
		{"a substitution", "A=1\nif [ $A = 2 ]; then x=$(mark a); fi\nx=$(mark b)", "b"},
		{"true and false", "if false; then mark a; fi\nif true; then mark b; fi\ntrue || mark c", "b"},
		{"while and until", "while false; do mark a; done\nuntil true; do mark b; done\nwhile true; do mark c; break; done\nuntil false; do mark d; break; done", "c d"},
		{"a loop of a variable", "A=1\nwhile [ $A = 2 ]; do mark a; break; done\nuntil [ $A = 2 ]; do mark b; break; done", "b"},
		{"assigned in the loop", "while true; do A=\"\"\nif [ \"$A\" != \"\" ]; then mark a; fi\nbreak; done", ""},
	}
}

// bash itself agrees: what it runs is not called unreachable, and in these scripts
// the reverse is so too.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	for _, test := range reachScripts() {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := strings.Join(reaches(test.text), " "); got != test.want {
				t.Errorf("may run %q, want %q", got, test.want)
			}
			if ran := bashMarks(t, test.text); strings.Join(ran, " ") != test.want {
				t.Errorf("bash runs %q, want %q", ran, test.want)
			}
		})
	}
}

// bashMarks runs a script and returns the marks it passes.
func bashMarks(t *testing.T, text string) []string {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command("bash", "-c", "mark() { echo \"$1\" >> "+log+"; }\n"+text)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	_ = cmd.Run() // the last condition's status
	marks, err := os.ReadFile(log)
	if err != nil {
		return nil
	}
	return strings.Fields(string(marks))
}

// What depends on the machine, on what came before or on grammar that is not
// followed may run.
func TestUnreachableIsCertain(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"environment":                     "if [ \"$A\" = x ]; then mark a; fi",
		"assigned later":                  "if [ \"$A\" != x ]; then mark a; fi\nA=x",
		"assigned twice":                  "A=x\nif [ -f /y ]; then A=z; fi\nif [ $A = z ]; then mark a; fi",
		"assigned perhaps":                "if [ -f /y ]; then A=x; fi\nif [ \"$A\" != x ]; then mark a; fi",
		"assigned in another branch":      "if [ -f /y ]; then A=x; else if [ \"$A\" != x ]; then mark a; fi; fi",
		"assigned in a subshell":          "(A=x)\nif [ \"$A\" != x ]; then mark a; fi",
		"assigned in a pipeline":          "A=x | true\nif [ \"$A\" != x ]; then mark a; fi",
		"assigned in the background":      "A=x & \nif [ \"$A\" != x ]; then mark a; fi",
		"assigned from what may be unset": "(B=x)\nexport B=$B\nif [ -z \"$B\" ]; then mark a; fi",
		"assigned by and":                 "false && A=x\nif [ \"$A\" != x ]; then mark a; fi",
		"assigned to a command":           "A=x true\nif [ \"$A\" != x ]; then mark a; fi",
		"assigned in a function":          "f() { A=x; }\nif [ \"$A\" != x ]; then mark a; fi",
		"counted":                         "A=1\n(( A++ ))\nif [ $A = 2 ]; then mark a; fi",
		"counted in brackets":             "A=1\nB=$((A += 1))\nif [ $A = 2 ]; then mark a; fi",
		"counted the old way":             "A=1\nA=$[$A + 1]\nif [ $A = 2 ]; then mark a; fi",
		"read":                            "A=1\nread A <<< 2\nif [ $A = 2 ]; then mark a; fi",
		"printed into":                    "A=1\nprintf -v A 2\nif [ $A = 2 ]; then mark a; fi",
		"looped":                          "A=1\nfor A in 2 3; do if [ $A = 3 ]; then mark a; fi; done",
		"assigned in a while":             "A=1\nwhile [ $A != 3 ]; do if [ $A = 2 ]; then mark a; A=3; else A=2; fi; done",
		"assigned by a loop's condition":  "while A=x; [ $A = x ]; do mark a; break; done",
		"default":                         "B=${A:=x}\nif [ \"$A\" = x ]; then mark a; fi",
		"pattern":                         "A=xy\nif [[ $A == x* ]]; then mark a; fi",
		"regular expression":              "A=xy\nif [[ $A =~ y ]]; then mark a; fi",
		"words split":                     "A='x = x -o y'\nif [ $A = z ]; then mark a; fi",
		"emptied word":                    "A=\nif [ $A != x ]; then mark a; else mark b; fi",
		"compound condition":              "if { false; true; }; then mark a; fi",
		"pipeline as a condition":         "if false | true; then mark a; fi",
		"negated pipeline":                "if ! true | false; then mark a; fi",
		"parentheses":                     "if [[ ( 1 == 2 ) || 1 == 1 ]]; then mark a; fi",
		"status of a list":                "if false; true; then mark a; fi",
		"after a group":                   "{ false; } || mark a",
		"after a command":                 "A=1\n[ $A = 1 ] && false || mark a",
		"numbers that are none":           "A=b\nb=3\nif [[ A -eq 3 ]]; then mark a; fi",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, ran := range bashMarks(t, text) {
				if !slices.Contains(reaches(text), ran) {
					t.Errorf("bash runs %q, which is called unreachable", ran)
				}
			}
			if name != "emptied word" && !slices.Contains(reaches(text), "a") {
				t.Error("a is called unreachable")
			}
		})
	}
}

// Scripts at random, run by bash: a mark that it passes was never called
// unreachable.
func TestUnreachableAgainstBash(t *testing.T) {
	t.Parallel()
	const scripts = 150
	all := 0
	for seed := range uint64(scripts) {
		g := &scriptMaker{random: rand.New(rand.NewPCG(seed, 4))}
		text := g.list(0)
		may := reaches(text)
		if s := readShell(text); s.beyond != "" || s.open != "" {
			t.Fatalf("seed %d: the script is not read (%s%s):\n%s", seed, s.beyond, s.open, text)
		}
		all += g.marks - len(may)
		for _, ran := range bashMarks(t, text) {
			if !slices.Contains(may, ran) {
				t.Errorf("seed %d: bash runs mark %s, which is called unreachable:\n%s", seed, ran, text)
			}
		}
	}
	if all < scripts { // else nothing was put to the test
		t.Errorf("only %d marks were called unreachable in %d scripts", all, scripts)
	}
}

// scriptMaker makes scripts that end.
type scriptMaker struct {
	random *rand.Rand
	marks  int
	named  int
}

func (g *scriptMaker) one(of ...string) string { return of[g.random.IntN(len(of))] }

func (g *scriptMaker) list(depth int) string {
	var lines []string
	for range 2 + g.random.IntN(4) {
		lines = append(lines, g.statement(depth))
	}
	return strings.Join(lines, "\n")
}

func (g *scriptMaker) mark() string {
	g.marks++
	return fmt.Sprintf("mark %d", g.marks)
}

func (g *scriptMaker) assign() string {
	name, value := g.one("A", "B", "C"), g.one("x", "y", "1", "2", `""`, `"$A"`, "$B", "x$C", "'x y'")
	switch g.random.IntN(12) {
	case 0:
		return "export " + name + "=" + value
	case 1:
		return "read " + name + " <<< " + value
	case 2:
		return "(( " + name + " += 1 ))"
	case 3:
		return "(" + name + "=" + value + ")"
	case 4:
		return name + "=" + value + " true"
	case 5:
		return g.condition() + " && " + name + "=" + value
	case 6:
		return name + "=" + value + " | true"
	case 7:
		return "Z=$(" + name + "=" + value + ")"
	}
	return name + "=" + value
}

func (g *scriptMaker) condition() string {
	word := g.one("$A", "$B", `"$A"`, `"$B"`, `"$C"`, "x", `""`)
	other := g.one("x", "y", "1", `"$B"`, `""`, "x*")
	switch g.random.IntN(9) {
	case 0:
		return "[ -n " + word + " ]"
	case 1:
		return "[[ -z " + word + " ]]"
	case 2:
		return "[ " + word + " -gt 1 ]"
	case 3:
		return "[[ " + word + " == " + other + " || " + word + " != y && -n $C ]]"
	case 4:
		return "! [ " + word + " = " + other + " ]"
	case 5:
		return g.one("true", "false", ":")
	case 6:
		return g.condition() + g.one(" && ", " || ") + g.condition()
	}
	return g.one("[ "+word+" = "+other+" ]", "[[ "+word+" != "+other+" ]]", "test "+word+" = "+other)
}

func (g *scriptMaker) statement(depth int) string {
	if depth > 3 {
		return g.mark()
	}
	switch g.random.IntN(12) {
	case 0, 1, 2, 3:
		return g.assign()
	case 4, 5:
		text := "if " + g.condition() + "; then\n" + g.list(depth+1)
		for range g.random.IntN(3) {
			text += "\nelif " + g.condition() + "; then\n" + g.list(depth+1)
		}
		if g.random.IntN(2) == 0 {
			text += "\nelse\n" + g.list(depth+1)
		}
		return text + "\nfi"
	case 6:
		return "for " + g.one("A", "I") + " in 1 x; do\n" + g.list(depth+1) + "\ndone"
	case 7:
		return g.condition() + g.one(" && ", " || ") + g.mark()
	case 8:
		return g.condition() + g.one(" && ", " || ") + "{ " + g.list(depth+1) + "\n}" + g.one("", " || "+g.mark())
	case 9:
		g.named++
		name := fmt.Sprintf("f%d", g.named)
		return name + "() {\n" + g.list(depth+1) + "\n}\n" + g.assign() + "\n" + name
	case 10:
		return "Z=$(" + g.condition() + " && " + g.mark() + ")"
	}
	return g.mark()
}

// A script of an administrator may be any size; how long reading takes must follow from
// the limits, not from the size squared.
func TestManyOfEverythingIsHandedOver(t *testing.T) {
	t.Parallel()
	const head = "#cloud-config\nwrite_files:\n- path: " + setupScript + "\n  content: |\n    true\n- path: " + deployScript +
		"\n  content: |\n    kubeadm init --token " + testToken + "\n"
	fill := func(begin, each string) string {
		return begin + strings.Repeat(each, (MaxUserdata-len(begin))/len(each))
	}
	for want, text := range map[string]string{
		"more than 20000 words":                fill(head+"runcmd:\n- echo", " a"),
		"its runcmd has more than 500 entries": head + "runcmd:\n" + strings.Repeat("- [ /bin/true ]\n", maxListed+1),
		"it writes more than 500 files":        head + strings.Repeat("- {path: /a, content: b}\n", maxListed),
		"more than 5000 commands":              fill(head+"runcmd:\n- true", ";true"),
	} {
		intent, _ := Parse([]byte(text))
		if intent.Handover != HandoverCloudInit || !strings.Contains(strings.Join(intent.HandoverReasons, "; "), want) {
			t.Errorf("handed to %s because of %q, want %q", intent.Handover, intent.HandoverReasons, want)
		}
	}
}
