// SPDX-License-Identifier: Apache-2.0

package template

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// As in Debian 12's qemu-user-static.
const debianDescription = `:qemu-aarch64:M::\x7f\x45\x4c\x46\x02:\xff\xff:/usr/libexec/qemu-binfmt/aarch64-binfmt-P:OPF` + "\n"

// The kernel is told of the emulator as Debian describes it, under another name, and
// forgets it again; a handler of the machine's own is used, if a chroot can.
func TestRegister(t *testing.T) {
	t.Parallel()
	const line = `:nodeagent-aarch64:M::\x7f\x45\x4c\x46\x02:\xff\xff:/usr/libexec/qemu-binfmt/aarch64-binfmt-P:OPF`
	for name, test := range map[string]struct {
		debian, ours string // states of handlers that are there
		want         string // in register
		oursAfter    string
	}{
		"none":          {want: line},
		"Debian's":      {debian: "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POF\noffset 0\n"},
		"off":           {debian: "disabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POF\n", want: line},
		"opened late":   {debian: "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: POC\n", want: line},
		"F in the path": {debian: "enabled\ninterpreter /opt/F\nflags: OC\n", want: line},
		"a killed one's": {ours: "enabled\nflags: POF\n", want: line,
			oursAfter: "-1abled\nflags: POF\n"}, // which the kernel takes for "remove"
	} {
		dir := t.TempDir()
		for file, content := range map[string]string{"register": "", debianHandler: test.debian, ourHandler: test.ours} {
			if content == "" && file != "register" {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := register(dir, debianDescription); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for file, want := range map[string]string{"register": test.want, ourHandler: test.oursAfter} {
			if got, _ := os.ReadFile(filepath.Join(dir, file)); string(got) != want {
				t.Errorf("%s: %s has %q, want %q", name, file, got, want)
			}
		}
		if err := unregister(dir); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHandlerLine(t *testing.T) {
	t.Parallel()
	for name, description := range map[string]string{
		"empty":           "",
		"another's":       ":qemu-arm:M::a:b:/c:OPF",
		"by its suffix":   ":qemu-aarch64:E::a:b:/c:OPF",
		"two":             debianDescription + debianDescription,
		"opened too late": ":qemu-aarch64:M::a:b:/F:OPC",
	} {
		if line, err := handlerLine(description); err == nil {
			t.Errorf("%s: got %q, want an error", name, line)
		}
	}
}

// Programs of this machine need no emulator.
func TestNotEmulated(t *testing.T) {
	t.Parallel()
	ran := false
	if err := emulated(architecture{name: runtime.GOARCH}, func() error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("ran: %v, %v", ran, err)
	}
}
