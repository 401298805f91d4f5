// SPDX-License-Identifier: Apache-2.0

package host_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// wantRefused checks that the kernel refused something and what it takes is named.
func wantRefused(t *testing.T, what string, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("%s: error %v, want %q", what, err, want)
	}
}

func TestRefusedCallsNameTheCapability(t *testing.T) {
	t.Parallel()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	hosttest.DropCapabilities(t, unix.CAP_SYS_ADMIN)
	kernel := host.LinuxKernel{}
	const lacks = ": operation not permitted: this process lacks CAP_SYS_ADMIN"
	wantRefused(t, "mount", kernel.MountReadOnly("/dev/null", folder, "iso9660"), "mount"+lacks)
	wantRefused(t, "umount", kernel.Unmount(folder), "umount"+lacks)
	wantRefused(t, "swapoff", kernel.SwapOff(filepath.Join(folder, "none")), "swapoff"+lacks)
	wantRefused(t, "sethostname", kernel.SetHostname(name), "sethostname"+lacks)
	if err := kernel.Unmount(filepath.Join(folder, "none")); err != nil {
		t.Errorf("umount of nothing: %v", err)
	}
}

func TestRefusedFilesNameTheCapability(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root to make a folder somebody else's")
		}
		t.Skip("this test needs root to make a folder somebody else's")
	}
	const somebody = 54321
	h := &host.Host{Root: t.TempDir()}
	for folder, mode := range map[string]uint32{"/theirs": 0o755, "/sticky": 0o1777} {
		if err := os.Mkdir(h.Path(folder), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := h.WriteFile(folder+"/file", []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{folder, folder + "/file"} {
			if err := os.Chown(h.Path(name), somebody, somebody); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Chmod(h.Path(folder), mode); err != nil {
			t.Fatal(err)
		}
	}
	hosttest.DropCapabilities(t, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER)
	for folder, want := range map[string]string{
		"/theirs": ": permission denied: this process lacks CAP_DAC_OVERRIDE",
		"/sticky": ": operation not permitted: this process lacks CAP_FOWNER",
	} {
		_, written := h.WriteFile(folder+"/file", []byte("new"), 0o644)
		_, removed := h.Remove(folder + "/file")
		for what, err := range map[string]error{"write": written, "remove": removed} {
			if err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%s in %s: error %v, want %q", what, folder, err, want)
			}
		}
	}
	wantRefused(t, "mount", host.LinuxKernel{}.MountReadOnly("/dev/null", h.Path("/theirs/new"), "iso9660"),
		"mkdir "+h.Path("/theirs/new")+": permission denied: this process lacks CAP_DAC_OVERRIDE")
}

// passwd hides that it lacks CAP_CHOWN, and others say "permission denied" only.
func TestRefusedProgramsNameTheCapability(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	program := func(name, says string) host.Command {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+says+"' >&2\nexit 3\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return host.Command{Path: path}
	}
	for _, test := range []struct {
		name, says string
		lacks      []int
		want       string
	}{
		{"passwd", "passwd: failure while writing changes to /etc/shadow", []int{unix.CAP_CHOWN}, ": this process lacks CAP_CHOWN"},
		{"modprobe", `modprobe: ERROR: could not insert "overlay": Operation not permitted`, []int{unix.CAP_SYS_MODULE}, ": this process lacks CAP_SYS_MODULE"},
		{"lvm", "/dev/mapper/control: open failed: Permission denied", []int{unix.CAP_SYS_ADMIN}, ": this process lacks CAP_SYS_ADMIN"},
		{"sshd", "Permission denied", []int{unix.CAP_CHOWN}, ""},
		{"modprobe", "modprobe: FATAL: Module overlay not found", []int{unix.CAP_SYS_MODULE}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			command := program(test.name, test.says)
			hosttest.DropCapabilities(t, test.lacks...)
			_, err := host.Exec{}.Run(context.Background(), command)
			wantRefused(t, test.says, err, command.Path+": exit status 3: "+test.says+test.want)
		})
	}
}
