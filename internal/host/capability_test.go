// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExplainNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	const all, none, withoutAdmin, withoutModule = 0x1ffffffffff, 0, 0x1ffffdfffff, 0x1fffffeffff
	mount := os.NewSyscallError("mount", unix.EPERM)
	modprobe := &CommandError{Command: "/sbin/modprobe -a overlay", ExitCode: 1, Err: errors.New("exit status 1"),
		Tail: []string{"modprobe: ERROR: could not insert 'overlay': Operation not permitted"}}
	for _, test := range []struct {
		name      string
		err       error
		effective uint64
		needed    []int
		want      string
	}{
		{"a call", mount, withoutAdmin, []int{unix.CAP_SYS_ADMIN}, "mount: operation not permitted: this process lacks CAP_SYS_ADMIN"},
		{"EACCES, wrapped", fmt.Errorf("cannot open it: %w", &fs.PathError{Op: "open", Path: "/x", Err: unix.EACCES}), none,
			[]int{unix.CAP_DAC_OVERRIDE}, "cannot open it: open /x: permission denied: this process lacks CAP_DAC_OVERRIDE"},
		{"only those that are missing", mount, withoutAdmin, []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}, mount.Error() + ": this process lacks CAP_SYS_ADMIN"},
		{"two", mount, none, []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_RESOURCE}, mount.Error() + ": this process lacks CAP_NET_ADMIN and CAP_SYS_RESOURCE"},
		{"a program", modprobe, withoutModule, []int{unix.CAP_SYS_MODULE}, modprobe.Error() + ": this process lacks CAP_SYS_MODULE"},
		{"it has them", mount, all, []int{unix.CAP_SYS_ADMIN}, mount.Error()},
		{"another error", os.NewSyscallError("mount", unix.EBUSY), none, []int{unix.CAP_SYS_ADMIN}, "mount: device or resource busy"},
		{"a program with another error", &CommandError{Command: "x", Err: errors.New("exit status 1"), Tail: []string{"no such module"}},
			none, []int{unix.CAP_SYS_MODULE}, "x: exit status 1: no such module"},
	} {
		got := explain(test.err, test.effective, test.needed)
		if got.Error() != test.want {
			t.Errorf("%s:\n got %q\nwant %q", test.name, got, test.want)
		}
		if !errors.Is(got, test.err) {
			t.Errorf("%s: the cause is not in the chain of %q", test.name, got)
		}
	}
}

func TestExplainKnowsItsOwnCapabilities(t *testing.T) {
	t.Parallel()
	if err := Explain(nil, unix.CAP_SYS_ADMIN); err != nil {
		t.Errorf("no error became %q", err)
	}
	// No process has a capability of this number.
	err := Explain(unix.EPERM, unix.CAP_LAST_CAP+1)
	if want := fmt.Sprintf("operation not permitted: this process lacks capability %d", unix.CAP_LAST_CAP+1); err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestCapabilityNames(t *testing.T) {
	t.Parallel()
	for capability, want := range map[int]string{
		unix.CAP_CHOWN: "CAP_CHOWN", unix.CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE", unix.CAP_NET_ADMIN: "CAP_NET_ADMIN",
		unix.CAP_NET_RAW: "CAP_NET_RAW", unix.CAP_SYS_MODULE: "CAP_SYS_MODULE", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN",
		unix.CAP_SYS_RESOURCE: "CAP_SYS_RESOURCE", unix.CAP_SYS_TIME: "CAP_SYS_TIME", unix.CAP_MKNOD: "CAP_MKNOD",
		unix.CAP_SYSLOG: "CAP_SYSLOG", unix.CAP_LAST_CAP: "CAP_CHECKPOINT_RESTORE", -1: "capability -1",
	} {
		if got := capabilityName(capability); got != want {
			t.Errorf("capability %d is %s, want %s", capability, got, want)
		}
	}
}
