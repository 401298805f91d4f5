// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/growpart"
)

// callOriginal runs the growpart of cloud-guest-utils.
func callOriginal(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	path, err := exec.LookPath("growpart")
	if err != nil {
		t.Fatalf("the test needs growpart, from Debian's package cloud-guest-utils: %v", err)
	}
	var out, errs bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// makeDisk makes an image with two partitions and a gap after each.
func makeDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 100<<20)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "--quiet", path)
	cmd.Stdin = strings.NewReader("label: dos\nstart=2048, size=20480\nstart=24576, size=20480\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	return path
}

// Every call is understood as the original understands it, wrong ones too: the
// same exit code, the same line on standard output, the same last words on
// standard error where the usage is shown (I1).
func TestGrowpartArguments(t *testing.T) {
	t.Parallel()
	disk := makeDisk(t)
	before, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{}, {disk}, {"", "1"}, {"-N"}, {"--"},
		{disk, "1", "extra"}, {disk + "x", "1"}, {disk + "x", "one"}, {disk, "one"}, {disk, "1x"}, {disk, "-1"}, {disk, "1.5"},
		{"--nonsense", disk, "1"}, {disk, "1", "-x"}, {"-vN", disk, "1"}, {"-"}, {"--dry-run=1", disk, "1"}, {"--fudge=5", disk, "1"}, {"-h=1"},
		{"--free-percent"}, {"--free-percent="}, {"--free-percent", "0", disk, "1"}, {"--free-percent=100", disk, "1"},
		{"--free-percent", "ten", disk, "1"}, {"--free-percent=-5", disk, "1"}, {"--free-percent", "1.5", disk, "1"}, {"--free-percent", "-N", disk, "1"},
		{"--update"}, {"--update="}, {"--update", "maybe", disk, "1"}, {"--update=maybe", disk, "1"}, {"-u", disk, "1"},
		{"--nonsense", "--help"}, {disk, "1", "2", "--help"},
		{"-N", disk, "1"}, {disk, "-N", "1"}, {disk, "1", "-N"}, {"--dry-run", "--verbose", "-v", disk, "2"},
		{"-N", "--update", "off", disk, "1"}, {"-N", "--update=auto", disk, "1"}, {"-N", "-u", "force", disk, "1"}, {"-u", "on", "-N", disk, "1"},
		{"-N", "--fudge", "2097152", disk, "1"}, {"-N", "--fudge", "2097153", disk, "1"}, {"-N", "--fudge", "0x200200", disk, "1"}, {"-N", "--fudge", "010000000", disk, "1"},
		{"-N", "--free-percent", "60", disk, "2"}, {"-N", "--free-percent=99", disk, "1"}, {"-N", "--free-percent", "5", "--free-percent", "90", disk, "2"},
	} {
		wantCode, want, wantErrs := callOriginal(t, args...)
		code, got, errs := call(t, append([]string{"growpart"}, args...)...)
		numbers := regexp.MustCompile(`new: size=.*|only be grown by .*`)
		want = numbers.ReplaceAllString(want, "") // the rounding: see internal/growpart
		got = numbers.ReplaceAllString(got, "")
		if code != wantCode || got != want {
			t.Errorf("growpart %q: %d, %q\nthe original: %d, %q", args, code, got, wantCode, want)
		}
		if want == "" && lastLine(errs) != lastLine(wantErrs) {
			t.Errorf("growpart %q: %q\nthe original: %q", args, lastLine(errs), lastLine(wantErrs))
		}
	}
	if after, err := os.ReadFile(disk); err != nil || !bytes.Equal(before, after) {
		t.Errorf("wrong calls and dry runs wrote to the disk (%v)", err)
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// Calls that are understood otherwise than by the original, and why.
func TestGrowpartArgumentsThatDiffer(t *testing.T) {
	t.Parallel()
	disk := makeDisk(t)
	for _, test := range []struct {
		args   []string
		code   int
		stdout string // its beginning
		why    string
	}{
		{[]string{"-N", "--", disk, "1"}, 0, "CHANGE: partition=1 ", "the original forgets what follows --"},
		{[]string{"-N", disk, "1", "--", "x"}, 2, "FAILED: confused by arg x\n", "the original forgets what follows --"},
		{[]string{"-N", "--fudge", "abc", disk, "1"}, 2, "FAILED: unknown/invalid --fudge option: abc\n", "dash takes words for 0"},
		{[]string{"-N", "--fudge", "-5", disk, "1"}, 2, "FAILED: unknown/invalid --fudge option: -5\n", "a partition could become smaller"},
		{[]string{"--fudge"}, 2, "", "the usage, not an error of the shell"},
		{[]string{disk, "3"}, 2, "FAILED: failed to get start and end for partition 3 in " + disk + ". Its partitions: 1 2.\n", "names are not put together"},
		{[]string{"/", "1"}, 2, "FAILED: cannot open /: it is neither a disk nor a file with the content of one. ", "says what is wrong"},
		{[]string{"/dev/null", "1"}, 2, "FAILED: cannot open /dev/null: it is neither ", "says what is wrong"},
		{[]string{os.Args[0], "1"}, 2, "FAILED: cannot read the partition table of " + os.Args[0] + ": sector 0 has no partition table. Inspect it with ", "says what is wrong"},
	} {
		code, out, _ := call(t, append([]string{"growpart"}, test.args...)...)
		if code != test.code || !strings.HasPrefix(out, test.stdout) {
			t.Errorf("growpart %q: %d, %q, want %d, %q", test.args, code, out, test.code, test.stdout)
		}
		originalCode, original, _ := callOriginal(t, test.args...)
		if originalCode == code && original == out && out != "" {
			t.Errorf("growpart %q: the original does not differ (%s): %d, %q", test.args, test.why, originalCode, original)
		}
	}
}

// cloud-init takes a growpart that has --update with a value for one it can use
// (ResizeGrowPart.available in its cc_growpart.py), and only then.
func TestGrowpartHelp(t *testing.T) {
	t.Parallel()
	code, help, errs := call(t, "growpart", "--help")
	if code != 0 || errs != "" || !regexp.MustCompile(`--update\s+`).MatchString(help) {
		t.Errorf("--help: %d, stderr %q\n%s", code, errs, help)
	}
	for _, args := range [][]string{{"growpart", "-h"}, {"growpart", "disk", "-N", "-h", "--nonsense"}, {"help", "growpart"}} {
		if code, out, _ := call(t, args...); code != 0 || out != help {
			t.Errorf("%v: %d, %q, want the help", args, code, out)
		}
	}
	if code, out, errs := call(t, "growpart"); code != 2 || out != "" || !strings.HasPrefix(errs, help) {
		t.Errorf("growpart alone: %d, stdout %q, stderr %q, want the help there", code, out, errs)
	}
	_, original, _ := callOriginal(t, "--help")
	for _, option := range regexp.MustCompile(`(^|[ |])--?[A-Za-z][a-z-]*`).FindAllString(original, -1) {
		if option = strings.TrimLeft(option, " |"); !strings.Contains(help, option) {
			t.Errorf("the help lacks %s", option)
		}
	}
}

// Through a link named growpart the program is that command; growpart's own exit
// codes pass through (I1).
func TestCalledAsGrowpart(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ argv, want []string }{
		{[]string{"/usr/bin/nodeagent", "status"}, []string{"status"}},
		{[]string{"nodeagent"}, []string{}},
		{[]string{"growpart", "/dev/sda", "1"}, []string{"growpart", "/dev/sda", "1"}},
		{[]string{"/usr/local/sbin/growpart"}, []string{"growpart"}},
		{[]string{"/opt/growpart/nodeagent", "status"}, []string{"status"}},
		{nil, nil},
	} {
		if got := commandLine(test.argv); !slices.Equal(got, test.want) {
			t.Errorf("commandLine(%q) = %q, want %q", test.argv, got, test.want)
		}
	}
	disk := makeDisk(t)
	for _, test := range []struct {
		args []string
		code int
		line string
	}{
		{[]string{disk, "2"}, 0, "CHANGED: partition=2 start=24576 old: size=20480 end=45055 new: size=178176 end=202751\n"},
		{[]string{disk, "2"}, 1, "NOCHANGE: partition 2 is size 178176. it cannot be grown\n"},
		{[]string{"--fudge", "4000000", disk, "1"}, 1, "NOCHANGE: partition 1 could only be grown by 2048 [fudge=7812]\n"},
		{[]string{"--free-percent=50", disk, "2"}, 1, "NOCHANGE: partition 2 could not be grown while leaving 50% (102400 sectors) free on device\n"},
		{[]string{disk, "3"}, 2, "FAILED: failed to get start and end for partition 3 in " + disk + ". Its partitions: 1 2.\n"},
	} {
		if code, out, errs := call(t, append([]string{"growpart"}, test.args...)...); code != test.code || out != test.line {
			t.Errorf("growpart %q: %d, %q\n%s\nwant %d, %q", test.args, code, out, errs, test.code, test.line)
		}
	}
}

// GROWPART_FUDGE is the default of --fudge.
func TestGrowpartFudge(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		environment string
		args        []string
		want        int64
	}{
		{"", nil, growpart.MinGain}, {"5", nil, 5}, {"5", []string{"--fudge", "7"}, 7}, {"x", []string{"--fudge", "7"}, 7}, {"x", nil, -1}, {"0", nil, 0},
		{"9223372036854775808", nil, -1},
	} {
		got, err := parseGrowpart(append(test.args, "disk", "1"), test.environment)
		if (err != nil) != (test.want < 0) || err == nil && got.options.MinGain != test.want {
			t.Errorf("%q %q: %+v, %v, want %d", test.environment, test.args, got, err, test.want)
		}
	}
}

// Scripts such as growroot read both streams as one and look at its beginning.
// What is said of a repair is said after it, with an exit code that has cloud-init
// go on from its dry run to the real one (G5).
func TestGrowpartLineComesFirst(t *testing.T) {
	t.Parallel()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 100<<20)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "--quiet", disk)
	cmd.Stdin = strings.NewReader("label: gpt\nstart=2048, size=20480\nstart=22528\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	file, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt(make([]byte, 512), 512); err != nil { // the primary header
		t.Fatal(err)
	}
	grow := func() {
		if err := file.Truncate(200 << 20); err != nil {
			t.Fatal(err)
		}
	}
	const first = "partition=1 start=2048 old: size=20480 end=22527 new: size=20480 end=22527\n"
	for _, test := range []struct {
		args        []string
		do          func()
		code        int
		begin, then string
	}{
		{[]string{"-N", disk, "1"}, nil, 0, "CHANGE: " + first, "would repair the primary partition table"},
		{[]string{disk, "1"}, nil, 0, "CHANGED: " + first, "repaired the primary partition table"},
		{[]string{disk, "1"}, nil, 1, "NOCHANGE: partition 1 is size 20480. it cannot be grown\n", ""},
		{[]string{disk, "1"}, grow, 1, "NOCHANGE: partition 1 is size 20480. it cannot be grown\n", "WARNING: cannot grow partition 1 into 101 MiB of free disk: partition 2 "},
		{[]string{"-v", "-N", disk, "2"}, nil, 0, "CHANGE: partition=2 start=22528 ", "# write the header of the primary partition table"},
	} {
		if test.do != nil {
			test.do()
		}
		var both bytes.Buffer
		code := run(append([]string{"growpart"}, test.args...), &both, &both)
		rest, found := strings.CutPrefix(both.String(), test.begin)
		if code != test.code || !found || !strings.Contains(rest, test.then) || test.then == "" && rest != "" {
			t.Errorf("growpart %q: %d\n%s\nwant %d, %q first, then %q", test.args, code, both.String(), test.code, test.begin, test.then)
		}
	}
}
