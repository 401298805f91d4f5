// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"
)

// call runs a command line.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

// I1: the exit codes are an interface.
func TestWrongUsageIs64(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{}, {"nonsense"}, {"status", "extra"}, {"status", "--nonsense"}, {"status", "-o", "xml"}, {"plan"},
		{"plan", "--boot-args", "/dev/null", "-o", "xml"}, {"run", "extra"}, {"grow", "/", "extra"}, {"upgrade", "v1", "extra"}, {"reset", "extra"}, {"timeline", "extra"}, {"timeline", "-o", "xml"}, {"timeline", "--order", "name"}, {"diag", "extra"}, {"version", "extra"},
		{"iso"}, {"iso", "nonsense"}, {"iso", "check"}, {"iso", "check", "a", "b"}, {"iso", "check", "-o", "xml", "a"}, {"iso", "manifest"},
	} {
		if code, out, errs := call(t, args...); code != 64 || out != "" || errs == "" {
			t.Errorf("nodeagent %v: exit code %d, stdout %q, stderr %q; want 64 and words on stderr only", args, code, out, errs)
		}
	}
}

func TestHelpHasExamples(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"status", "timeline", "diag", "plan", "grow", "upgrade", "reset", "iso", "iso check", "iso manifest"} {
		if code, out, _ := call(t, append(strings.Fields(command), "--help")...); code != 0 || !strings.Contains(out, "Examples:") {
			t.Errorf("nodeagent %s --help: exit code %d\n%s", command, code, out)
		}
	}
	if code, out, _ := call(t, "version"); code != 0 || !strings.HasPrefix(out, "nodeagent ") {
		t.Errorf("version: %d %q", code, out)
	}
}

func TestAFileThatIsNotThereIsAFailure(t *testing.T) {
	t.Parallel()
	if code, _, errs := call(t, "plan", "--boot-args", "/does/not/exist"); code != 1 || !strings.Contains(errs, "/does/not/exist") {
		t.Errorf("exit code %d, stderr %q", code, errs)
	}
}

// A failure with a remedy says it.
func TestAFailureSaysWhatToDo(t *testing.T) {
	t.Parallel()
	code, _, errs := call(t, "grow", "/not/a/mount/point")
	if code != 1 || !strings.Contains(errs, `nothing is mounted at "/not/a/mount/point"`) || !strings.Contains(errs, "\nWhat to do: ") {
		t.Errorf("exit code %d, stderr %q", code, errs)
	}
}
