// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"slices"
	"strings"
	"testing"
)

func readOutput(text string) (kubeadmOutput, []string) {
	var output kubeadmOutput
	var progress []string
	for line := range strings.Lines(text) {
		if shown := output.add(strings.TrimRight(line, "\n")); shown != "" {
			progress = append(progress, shown)
		}
	}
	return output, progress
}

// The text is what kubeadm 1.34.4 printed at -v=5 on a machine that was unfit.
func TestKubeadmOutputPreflight(t *testing.T) {
	t.Parallel()
	output, progress := readOutput(string(testdata(t, "kubeadm/preflight-1.34.txt")))
	want := []string{
		"KubeletVersion: couldn't get kubelet version: cannot execute 'kubelet --version': executable file not found in $PATH",
		"FileContent--proc-sys-net-ipv4-ip_forward: /proc/sys/net/ipv4/ip_forward contents are not set to 1",
	}
	if !slices.Equal(output.preflight, want) {
		t.Errorf("preflight errors = %q, want %q", output.preflight, want)
	}
	if want := "error execution phase preflight: preflight checks failed"; output.cause != want {
		t.Errorf("cause = %q, want %q", output.cause, want)
	}
	if len(progress) == 0 || progress[0] != "[preflight] Running pre-flight checks" {
		t.Errorf("progress = %q", progress)
	}
	if last := output.tail[len(output.tail)-1]; last != "error: "+output.cause {
		t.Errorf("the last line is %q, want the error and no stack trace", last)
	}
	for _, line := range output.tail {
		if strings.Contains(line, ".go:262") || strings.HasPrefix(line, "I1120") {
			t.Errorf("the tail has the debug line %q", line)
		}
	}
}

// Before 1.28 the preflight errors came as part of the last message.
func TestKubeadmOutputOfOlderVersions(t *testing.T) {
	t.Parallel()
	output, _ := readOutput("error execution phase preflight: [preflight] Some fatal errors occurred:\n\t[ERROR Port-6443]: Port 6443 is in use\n\t[ERROR Swap]: running with swap on\n[preflight] If you know\n")
	if want := []string{"Port-6443: Port 6443 is in use", "Swap: running with swap on"}; !slices.Equal(output.preflight, want) {
		t.Errorf("preflight errors = %q, want %q", output.preflight, want)
	}
	output, _ = readOutput("error execution phase wait-control-plane: couldn't initialize a Kubernetes cluster\nTo see the stack trace\n")
	if !strings.HasSuffix(output.cause, "couldn't initialize a Kubernetes cluster") || len(output.preflight) != 0 {
		t.Errorf("output = %+v", output)
	}
}

// Another cluster's words may be in kubeadm's: nothing that a terminal obeys stays.
func TestKubeadmOutputHasNoControlCharacters(t *testing.T) {
	t.Parallel()
	output, _ := readOutput("[certs] \x1b[0;32mok\x1b[0m\nerror: configmaps \"\x1b]0;title\a\x1b[2J\u009b1m\" not found\r\n")
	if want := []string{"[certs] ok", "error: configmaps \"]0;title[2J1m\" not found"}; !slices.Equal(output.tail, want) {
		t.Errorf("tail = %q, want %q", output.tail, want)
	}
}

// K5: a kubeadm that is stopped while it waits says why it waits.
func TestKubeadmOutputWaiting(t *testing.T) {
	t.Parallel()
	const again = "I1121 18:27:11.144349     222 token.go:236] [discovery] Retrying due to error: "
	output, _ := readOutput("[preflight] Running\n" + again + "first\nI1121 18:27:12.1     222 token.go:229] [discovery] Waiting\n" + again + "second\n")
	if got := output.where(); got != "second" {
		t.Errorf("it was at %q, want the last error", got)
	}
	output.add("[preflight] Reading configuration")
	if got := output.where(); got != "[preflight] Reading configuration" || output.waiting != "" {
		t.Errorf("it was at %q, waiting for %q; want the last line", got, output.waiting)
	}
}

func TestScrubberTakesTheLongerSecretFirst(t *testing.T) {
	t.Parallel()
	if got := scrubber([]string{"0123456789abcdef", "", "abcdef.0123456789abcdef"})("abcdef.0123456789abcdef"); got != "[redacted]" {
		t.Errorf("scrubbed to %q", got)
	}
}

func FuzzKubeadmOutput(f *testing.F) {
	f.Add(string(testdata(f, "kubeadm/preflight-1.34.txt")))
	f.Add("[ERROR ]: \n\t[ERROR a]b]: c\nerror: \n")
	f.Fuzz(func(t *testing.T, text string) {
		output, progress := readOutput(text)
		if len(output.tail) > keepTail || len(output.preflight) > keepPreflight || len(output.warnings) > keepWarnings {
			t.Errorf("kept %d lines, %d errors and %d warnings", len(output.tail), len(output.preflight), len(output.warnings))
		}
		for _, line := range slices.Concat(output.tail, output.preflight, output.warnings, progress, output.chain, []string{output.cause, output.waiting, output.lastWord()}) {
			if len(line) > maxLine+len("...")+len(": ") {
				t.Errorf("kept a line of %d bytes", len(line))
			}
		}
	})
}
